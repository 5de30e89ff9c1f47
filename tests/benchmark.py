"""Measure gan.py: how fast it trains, what it costs beside that, and how good its digits are.

    python tests/benchmark.py speed                 training steps against NumPy's matmul
    python tests/benchmark.py recipes               training steps of the README's recipes
    python tests/benchmark.py overhead EPOCHS=3     a whole run: start, pictures, files, memory
    python tests/benchmark.py bigfile               memory while training 20 s on a 4 GB file
    python tests/benchmark.py scale                 one worker against two, of a thread each
    python tests/benchmark.py quality --udacity     the reference for quality's ratio, once
    python tests/benchmark.py quality --seeds 10    FID and more on MNIST, for 10 seeds

Speed, recipes, overhead and quality take settings as gan.py does; those of speed and recipes hold
for all their rows.
MNIST with labels is the folder GAN_MNIST of the four IDX .gz files, else Keras' mnist.npz.
"""

import argparse
import gzip
import itertools
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None


def seed_list(text):
    """Return the seeds of "3,5,8", or of "4": 0 to 3."""
    return [int(x) for x in text.strip(",").split(",")] if "," in text else range(int(text) or 1)


def command_line():
    """Return the parsed command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True)
    names = "speed", "recipes", "overhead", "bigfile", "scale", "quality"
    subs = [commands.add_parser(name) for name in names]
    speed, recipes, overhead, _, _, quality = (sub.add_argument for sub in subs)
    for command in (speed, recipes):
        command("--cores", type=int, default=1, help="number of cores to pin to (default: 1)")
    overhead("--epochs-flat", type=int, metavar="N", help="do N epochs: does memory stay flat?")
    quality("--seeds", type=seed_list, default="3", help="a list as 3,5,8 or a number (default: 3)")
    quality("--udacity", action="store_true", help="take Udacity's settings and keep their FID")
    quality("--samples-out", metavar="FILE.png", help="picture of 100 images of the first seed")
    options, options.settings = parser.parse_known_args()
    alone = options.command in ("bigfile", "scale")
    if any(x.startswith("-") or alone for x in options.settings):
        parser.error(f"not known here: {' '.join(options.settings)}")
    return options


def pin(cores):
    """Keep this process to so many cores."""
    for library in ("OMP_NUM", "OPENBLAS_NUM", "VECLIB_MAXIMUM", "TF_NUM_INTRAOP"):
        os.environ[f"{library}_THREADS"] = str(cores)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
        print(f"pinned to {len(os.sched_getaffinity(0))} cores")
    else:
        print(f"{cores} threads; this system cannot pin them to cores")


if __name__ == "__main__":
    options = command_line()
    if "cores" in options:
        pin(options.cores)  # before the imports below, which start NumPy's and TensorFlow's threads

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # leaves room for gan.py's process

import numpy as np

import gan

keras, layers = gan.keras, gan.layers


def parse(arguments, *forbidden):
    """Return the settings of NAME=value arguments. Raises gan.Problem."""
    settings = dict(map(gan.parse_setting, arguments))
    gan.check_settings(settings)
    for name in {"OUT", *forbidden} & set(settings):
        raise gan.Problem(f"{name} cannot be set here")
    return settings


# Speed: training steps of GAN.train on random images.


def multiplications(z, g_hidden, d_hidden, pixels, penalized):
    """Return the multiplications per image of the matrix products of an iteration in GAN.

    For one hidden layer each and D_STEPS = G_STEPS = 1. With g = Z Hg + Hg P and d = P Hd + Hd
    weights, D's update takes, for real and for fake images, d forward, d backward to the weights
    and Hd backward to the hidden layer: 2 (2 d + Hd). The penalty adds, for both again, d backward
    to the image and twice that for the way back through it, less the Hd to logits that are not
    needed: 2 (3 d - Hd), in the share penalized of the iterations. G's update takes g forward
    (D's update uses the same fakes), d forward and d backward through D, then g backward to G's
    weights and Hg P to its hidden layer:

        2 g + Hg P + 6 d + 2 Hd + penalized (6 d - 2 Hd)
    """
    g, d = z * g_hidden + g_hidden * pixels, pixels * d_hidden + d_hidden
    always = 2 * g + g_hidden * pixels + 6 * d + 2 * d_hidden
    return always + penalized * (6 * d - 2 * d_hidden)


def median_seconds(repeats, function):
    """Return the median time of a call; the first one is not counted, as it may trace."""
    times = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return np.median(times[1:])


def speed(options):
    """Print a row for each size of network, precision and batch, and penalty.

    NumPy's GFLOP/s are float32's in each row. A CPU without bfloat16 computes in float32 there.
    """
    settings = parse(options.settings, "DATA", "D_STEPS", "G_STEPS")
    vars(gan).update(settings)
    if tuple in (type(gan.G_HIDDEN), type(gan.D_HIDDEN)):
        raise gan.Problem("speed counts the work of networks with one hidden layer only")
    images = np.random.default_rng(0).integers(0, 256, (10000, 28, 28, 1), np.uint8)
    square, done = np.random.default_rng(0).random((1024, 1024), np.float32), []

    def train():
        model.train(batches, 0, 0)
        model.sums.numpy()  # waits for the result

    print(f"PENALTY_EVERY={gan.PENALTY_EVERY} Z_SIZE={gan.Z_SIZE}")
    print(
        "PRECISION  G_HIDDEN  D_HIDDEN  batch  penalty  images/s  GFLOP/s  NumPy's ratio",
        flush=True,
    )
    names = "G_HIDDEN", "D_HIDDEN", "PRECISION", "BATCH_SIZE", "GRADIENT_PENALTY"
    networks = (128, 128), (512, 256), (1024, 512)
    kinds = ("float32", 100), ("float32", 200), ("float32", 400), ("bfloat16", 400)
    for network, kind, penalty in itertools.product(networks, kinds, (0, 0.3)):
        vars(gan).update(dict(zip(names, (*network, *kind, penalty))) | settings)
        g_hidden, d_hidden, precision, batch, penalty = row = [vars(gan)[name] for name in names]
        if row in done:
            continue
        done.append(row)
        numpy = 2 * 1024**3 / median_seconds(25, lambda: square @ square) / 1e9
        keras.backend.clear_session()
        model, batches = gan.GAN(images), np.resize(images, (100, 1, batch, 28, 28, 1))
        rate = 100 * batch / median_seconds(7, train)
        penalized = len(range(0, 100, gan.PENALTY_EVERY)) / 100 if penalty else 0
        work = multiplications(gan.Z_SIZE, g_hidden, d_hidden, 784, penalized)
        own = 2 * work * rate / 1e9
        print(
            f"{precision:9}  {g_hidden:8}  {d_hidden:8}  {batch:5}  {penalty:7}  {rate:8,.0f}"
            f"  {own:7.1f}  {numpy:7.1f} {own / numpy:5.2f}",
            flush=True,
        )
    print(f"peak memory of this process, over all rows: {peak_memory('RUSAGE_SELF'):,.0f} MB")


def tutorial_generator(shape, normalize=gan.batch_normalization):
    """Return the generator of TensorFlow's DCGAN tutorial, for images [28, 28, 1]."""
    stack = [keras.Input((gan.Z_SIZE,)), layers.Dense(7 * 7 * 256, use_bias=False)]
    stack += [normalize(momentum=0.99), layers.LeakyReLU(0.3), layers.Reshape((7, 7, 256))]
    for channels, stride in ((128, 1), (64, 2)):
        stack += [layers.Conv2DTranspose(channels, 5, stride, padding="same", use_bias=False)]
        stack += [normalize(momentum=0.99), layers.LeakyReLU(0.3)]
    output = {"padding": "same", "use_bias": False, "activation": "tanh"}
    return keras.Sequential([*stack, layers.Conv2DTranspose(1, 5, 2, **output)])


def tutorial_discriminator(shape):
    """Return the discriminator of TensorFlow's DCGAN tutorial: images -> logits [n, 1]."""
    stack = [keras.Input(shape)]
    for channels in (64, 128):
        stack += [layers.Conv2D(channels, 5, 2, padding="same"), layers.LeakyReLU(0.3)]
        stack += [layers.Dropout(0.3)]
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(1)])


def plain_loop(images):
    """Return a function that does 10 steps like the tutorial's, compiled, on images [n, H, W, C].

    Batch normalisation and Adam are Keras' own here, and G learns from D as it was before its step.
    """
    generator = tutorial_generator(None, layers.BatchNormalization)
    discriminator = tutorial_discriminator(images.shape[1:])
    networks = generator, discriminator
    optimizers = keras.optimizers.Adam(1e-4), keras.optimizers.Adam(1e-4)
    real, loss = images / 127.5 - 1, keras.losses.BinaryCrossentropy(from_logits=True)
    real = real.astype(np.float32)

    @gan.tf.function
    def step():
        noise = gan.tf.random.normal((len(real), gan.Z_SIZE))
        with gan.tf.GradientTape(persistent=True) as tape:
            fake = discriminator(generator(noise, training=True), training=True)
            true = discriminator(real, training=True)
            g_loss = loss(gan.tf.ones_like(fake), fake)
            d_loss = loss(gan.tf.ones_like(true), true) + loss(gan.tf.zeros_like(fake), fake)
        for network, optimizer, each in zip(networks, optimizers, (g_loss, d_loss)):
            weights = network.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(each, weights), weights))
        return g_loss

    return lambda: [step().numpy() for _ in range(10)]


def recipes(options):
    """Print images/s of the README's recipes, and of the nets of TensorFlow's DCGAN tutorial."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = {"default": ""}
    for title, line in itertools.pairwise(lines):
        if "python gan.py" in line and title.startswith("    # "):
            commands[title.strip("# ")] = line.partition("gan.py ")[2]
    tutorial = "MODEL=dcgan PRIOR=normal Z_SIZE=100 OUTPUT=tanh GRADIENT_PENALTY=0 EMA=0"
    nets = "the nets of TensorFlow's DCGAN tutorial"
    commands[nets] = f"{tutorial} BATCH_SIZE=256"
    defaults = {name: vars(gan)[name] for name in gan.SETTINGS}
    settings = parse(options.settings, "DATA", "MODEL")
    for title, command in commands.items():
        vars(gan).update(defaults | parse(command.split()) | settings)
        if title == nets:
            vars(gan).update(
                build_generator=tutorial_generator, build_discriminator=tutorial_discriminator
            )
        keras.backend.clear_session()
        shape = (10 if gan.MODEL == "dcgan" else 100, 1, gan.BATCH_SIZE, 28, 28, 1)
        batches = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        model = gan.GAN(batches[0, 0])

        def train(model=model, batches=batches):
            model.train(batches, 0, 0)
            model.sums.numpy()  # waits for the result

        rate = math.prod(shape[:3]) / median_seconds(3, train)
        print(f"{rate:9,.0f} images/s  {title}", flush=True)
    rate = 10 * gan.BATCH_SIZE / median_seconds(3, plain_loop(batches[0, 0]))
    print(
        f"{rate:9,.0f} images/s  the same, all of Keras' own, in a loop like the tutorial's",
        flush=True,
    )


# Overhead and big files: runs of gan.py in a process of their own.


def peak_memory(who):
    """Return the peak of this process or of its children in MB, nan where it is not known."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(vars(resource)[who]).ru_maxrss / unit if resource else np.nan


def memory(pid):
    """Return the memory figures of /proc/PID/status in MB by name, {} where there is none."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {name: int(kb) / 1024 for name, kb in re.findall(r"(\w+):\s+(\d+) kB", status)}


@contextmanager
def training(*arguments):
    """Start gan.py with its run in a temporary folder; yield (process, folder), end both after."""
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "log"), "w") as log:
        command = [sys.executable, ROOT / "gan.py", *arguments, f"OUT={folder}"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield process, Path(folder)
        finally:
            process.kill()
            process.wait()


def finish(process, folder, status=0):
    """Wait for the process, return its run's folder. Raises gan.Problem for another status."""
    if process.wait() != status:
        text = (folder / "log").read_text().strip()
        raise gan.Problem(f"gan.py ended with status {process.returncode}:\n{text[-500:]}", 1)
    return next(folder.glob("*/settings.json")).parent


def iterations(run):
    """Return the number of iterations at the run's last checkpoint, and when it was saved."""
    file = max((run / "checkpoint").glob("step-*.npz"))
    return int(file.stem.partition("-")[2]), file.stat().st_mtime


def columns(run):
    """Return the columns of the run's losses.csv by name."""
    table = np.genfromtxt(run / "losses.csv", delimiter=",", names=True, deletechars="")
    return np.atleast_1d(table)


def overhead(options):
    """Print where the time and the memory of one run go."""
    arguments = [f"DATA={os.environ.get('GAN_MNIST') or 'mnist'}", *options.settings]
    parse(options.settings)
    if options.epochs_flat:
        arguments.append(f"EPOCHS={options.epochs_flat}")
    began = time.time()
    command = [sys.executable, "-c", "import tensorflow"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    bare = time.time() - began
    peak, at_epochs, changed, began = 0, [], 0, time.time()
    with training(*arguments) as (process, folder):
        while process.poll() is None:
            now = memory(process.pid)
            peak = max(peak, now.get("VmHWM", 0))
            for file in folder.glob("*/losses.csv") if "VmRSS" in now else ():
                if changed != (changed := file.stat().st_mtime_ns):
                    at_epochs.append(now["VmRSS"])
            time.sleep(0.01)
        total, run = time.time() - began, finish(process, folder)
        first = (run / "epoch-000.png").stat().st_mtime - began
        (count, saved), used = iterations(run), gan.read_settings(run)
        rates = columns(run)["images/s"]
    seconds = count / len(rates) * used["BATCH_SIZE"] * used["D_STEPS"] / rates
    pure, tracing = seconds.sum(), seconds[0] - np.median(seconds[min(1, len(seconds) - 1) :])
    rest = saved - began - first - pure
    print(f"until first picture  {first:8.2f} s   (python -c 'import tensorflow': {bare:.2f} s)")
    print(f"training             {pure:8.2f} s   epochs: {len(rates)}; tracing: {tracing:.2f} s")
    print(f"pictures, files, ... {rest:8.2f} s   {rest / pure:.1%} of training")
    print(f"total                {total:8.2f} s")
    print(f"peak memory          {peak or peak_memory('RUSAGE_CHILDREN'):8,.0f} MB")
    if not at_epochs:
        print("memory at the ends of epochs: not known, as there is no /proc here")
    elif options.epochs_flat:
        tenth = max(1, len(at_epochs) // 10)
        start, end = np.median(at_epochs[:tenth]), np.median(at_epochs[-tenth:])
        print(f"memory at the ends of {len(at_epochs)} epochs, medians of first and last tenth:")
        print(f"    {start:,.1f} MB, {end:,.1f} MB: {end - start:+,.1f} MB")


def bigfile(_):
    """Print the peak memory, split by kind, of a run on a file of 4 GB."""
    if not memory(os.getpid()):
        raise gan.Problem("bigfile reads the memory from /proc, which is missing here", 1)
    peaks, began = dict.fromkeys(("VmRSS", "RssAnon", "RssFile", "RssShmem"), 0), None
    with tempfile.TemporaryDirectory() as room:
        path, shape = Path(room, "big.npy"), (2**32 // 784, 28, 28, 1)
        np.lib.format.open_memmap(path, "w+", np.uint8, shape)  # sparse: takes no room on the disk
        with training(f"DATA={path}", "EPOCHS=1") as (process, folder):
            while process.poll() is None and not (began and time.monotonic() - began > 20):
                if not began and any(folder.glob("*/epoch-000.png")):
                    began = time.monotonic()
                now = memory(process.pid)
                peaks = {name: max(peak, now.get(name, 0)) for name, peak in peaks.items()}
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            stop = time.monotonic()
            run = finish(process, folder, 128 + signal.SIGINT)
            stop = time.monotonic() - stop
            count, _ = iterations(run)
    print(f"{count:,} iterations on {shape[0]:,} images; stopped {stop:.1f} s after SIGINT")
    print("peak memory  " + "  ".join(f"{name} {peak:,.0f} MB" for name, peak in peaks.items()))
    print("RssFile is the system's cache of the file; it shrinks when memory is short")


# Scale: several workers, which exchange the gradients of both networks in each iteration.

DCGAN = """MODEL=dcgan G_HIDDEN=128,64 D_HIDDEN=64,128 BATCH_NORM=True Z_SIZE=100 PRIOR=normal
OUTPUT=tanh GRADIENT_PENALTY=0"""


def train_together(workers, file, settings):
    """Return the images/s of the last epoch of so many workers, pinned to a core each."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(workers)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for index in range(workers):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = os.environ | ({"TF_CONFIG": json.dumps(task)} if workers > 1 else {})
            command = [sys.executable, ROOT / "gan.py", f"DATA={file}", f"OUT={folder}", *settings]
            os.sched_setaffinity(0, {cores[index % len(cores)]})  # which the worker inherits
            started.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
        os.sched_setaffinity(0, cores)
        statuses = [process.wait() for process in started]
        if any(statuses):
            raise gan.Problem(f"a worker failed: {statuses}", 1)
        return columns(next(Path(folder).glob("*/settings.json")).parent)["images/s"][-1]


def scale(_):
    """Print the rates of one and of two workers, and what a network allows for more of them."""
    with tempfile.TemporaryDirectory() as folder:
        images = np.random.default_rng(0).integers(0, 256, (20000, 28, 28), np.uint8)
        for name, count, settings in (("mlp", 20000, []), ("dcgan", 2000, DCGAN.split())):
            file = Path(folder, f"{name}.npy")
            np.save(file, images[:count])
            rates = []
            for workers in (1, 2):
                words = [*settings, "EPOCHS=3", f"BATCH_SIZE={100 * workers}"]
                rates.append(train_together(workers, file, words))
            vars(gan).update(parse(settings))
            networks = gan.build_generator((28, 28, 1)), gan.build_discriminator((28, 28, 1))
            size = 4 * sum(math.prod(w.shape) for n in networks for w in n.trainable_weights)
            print(f"{name}: {rates[0]:,.0f} images/s with 1 worker, {rates[1]:,.0f} with 2")
            print(f"    all-reduced in an iteration: {size / 1e6:.2f} MB")
            # A ring sends and receives 2 (n - 1) / n of the bytes on every machine.
            step = 100 / rates[0]
            print("    times as fast as one worker, each with a batch of 100 of its own:")
            print(
                f"    {'workers':>9}" + "".join(f"{gigabit:>8} Gbit/s" for gigabit in (1, 10, 100))
            )
            for n in (1, 8, 64, 512):
                sending = [2 * (n - 1) / n * size * 8 / (g * 1e9) for g in (1, 10, 100)]
                print(f"    {n:9}" + "".join(f"{n * step / (step + t):15.1f}" for t in sending))


# Quality: generated digits against MNIST's test images.

UDACITY = """Z_SIZE=100 PRIOR=-1,1 G_HIDDEN=128 D_HIDDEN=128 LEAK=0.01 SMOOTH=0.1
LEARNING_RATE=0.002 G_RATE=1 BETA_1=0.9 BETA_2=0.999 BATCH_SIZE=100 EPOCHS=100 GRADIENT_PENALTY=0 EMA=0
LR_DECAY=False OUTPUT=tanh ACTIVATION=leaky_relu LOSS=non-saturating BATCH_NORM=False"""


def squared_distances(a, b):
    """Return the squared distances [len(a), len(b)] of all rows."""
    return np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0)


def frechet(a, b):
    """Return the Frechet distance of the Gaussians fitted to rows a and b (Heusel 2017)."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    # cov_a cov_b has the eigenvalues of root cov_b root, which is symmetric.
    values = np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)
    gap = a.mean(0) - b.mean(0)
    return gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(values).sum()


def parzen(samples, validation, test):
    """Return (mean log-likelihood of test, sigma) with Gaussians at samples (Goodfellow 2014).

    All are rows in [0, 1]; sigma is the one of a grid that suits validation best.
    """

    def mean_log(squares, sigma):
        exponents = -squares / (2 * sigma**2)
        top = exponents.max(1, keepdims=True)  # factored out, as all others may vanish
        logs = np.log(np.exp(exponents - top).mean(1)) + top[:, 0]
        return logs.mean() - samples.shape[1] / 2 * np.log(2 * np.pi * sigma**2)

    squares = squared_distances(validation, samples)
    sigma = max(np.geomspace(0.1, 0.4, 29), key=lambda s: mean_log(squares, s))
    parts = np.array_split(test, max(1, len(test) // 500))
    logs = [mean_log(squared_distances(part, samples), sigma) for part in parts]
    return np.average(logs, weights=[len(part) for part in parts]), sigma


def precision_recall(real, fake, k=3, chunk=500):
    """Return the share of fakes among the reals and of reals among the fakes (Kynkaanniemi 2019).

    A row is among others when it is as near to one of them as that one's k-th neighbour.
    """

    def share_among(rows, others):
        found = np.zeros(len(rows), bool)
        for i in range(0, len(others), chunk):
            part = others[i : i + chunk]
            radii = np.partition(squared_distances(part, others), k)[:, k]  # the 0-th is itself
            found |= (squared_distances(rows, part) <= radii).any(1)
        return found.mean()

    return share_among(fake, real), share_among(real, fake)


def labelled_mnist():
    """Return training images, their labels, test images, their labels. Raises gan.Problem."""
    folder = os.environ.get("GAN_MNIST")
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    path, parts = Path(folder or Path(home, "datasets", "mnist.npz")).expanduser(), []
    try:
        if not folder:
            with np.load(path) as arrays:
                xs, ys = ((arrays[f"{name}_train"], arrays[f"{name}_test"]) for name in "xy")
            return gan.as_images(xs[0]), ys[0], gan.as_images(xs[1]), ys[1]
        for name in ("train", "t10k"):
            parts.append(gan.read_file(path / f"{name}-images-idx3-ubyte.gz"))
            labels = gzip.decompress((path / f"{name}-labels-idx1-ubyte.gz").read_bytes())
            parts.append(np.frombuffer(labels, np.uint8, offset=8))
        return parts
    except Exception as error:  # noqa: BLE001 - damaged files raise nearly anything
        text = "quality needs MNIST with labels, as the folder GAN_MNIST of its four .gz or as"
        raise gan.Problem(f"{text} Keras' mnist.npz: {error}") from None


def train_judge(images, labels):
    """Return a small convolutional network, trained to tell the digits."""
    print("training the judge, once ...", flush=True)
    keras.utils.set_random_seed(0)
    stack = [keras.Input((28, 28, 1)), layers.Rescaling(1 / 255)]
    for channels in (32, 64):
        stack += [layers.Conv2D(channels, 3, activation="relu"), layers.MaxPooling2D()]
    stack += [layers.Flatten(), layers.Dropout(0.5), layers.Dense(128, activation="relu")]
    network = keras.Sequential([*stack, layers.Dense(10)])
    # Measured: 99.25 %. With 6 epochs and a dropout of 0.3 it was 99.05 %, too near to the limit.
    decay = keras.optimizers.schedules.CosineDecay(0.001, 10 * math.ceil(len(images) / 128))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(decay), loss)
    network.fit(images, labels, batch_size=128, epochs=10, verbose=0)
    return network


class Judge:
    """A digit classifier and MNIST: what generated images are compared with.

    Only FIDs of one judge compare: four of them gave the same 10,000 images 76 to 111.
    """

    def __init__(self):
        """Load the classifier from the cache, else train it. Raises gan.Problem if it is poor."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gan-benchmark")
        cache.mkdir(parents=True, exist_ok=True)
        self.train, labels, self.test, truth = labelled_mnist()
        path, self.notes = cache / "judge.keras", cache / "judge.json"
        cached = path.exists() and self.notes.exists()
        network = keras.saving.load_model(path) if cached else train_judge(self.train, labels)
        self.network = keras.Model(network.inputs, [layer.output for layer in network.layers[-2:]])
        self.real, digits = self.look(self.test)
        self.shares = np.bincount(truth, minlength=10) / len(truth)
        accuracy = np.mean(digits == truth)
        print(f"judge: {path}, right on {accuracy:.2%} of the test images")
        if accuracy < 0.99:
            raise gan.Problem("that is under 99 %, too little to judge by; is its file damaged?", 1)
        if not cached:  # with another judge, Udacity's FID is another one: its note goes, too
            gan.write(path, network.save)
            self.note(accuracy=accuracy)
        self.udacity = json.loads(self.notes.read_text()).get("udacity", np.nan)

    def note(self, **notes):
        """Keep the notes, and only these, with the classifier."""
        gan.write(self.notes, lambda temporary: temporary.write_text(json.dumps(notes)))

    def look(self, images):
        """Return features, float64 [n, 128], and digits [n] of images."""
        features, logits = self.network.predict(images, batch_size=500, verbose=0)
        return features.astype(np.float64), logits.argmax(1)

    def figures(self, images):
        """Return the figures of 10,000 images, by column."""
        features, digits = self.look(images)
        shares, fid = np.bincount(digits, minlength=10) / len(digits), frechet(self.real, features)
        # Every second one, as MNIST's two halves differ. The few largest real neighbourhoods
        # hold even pure noise: precision tells little where recall is 0.
        precision, recall = precision_recall(self.real[::2], features[::2])
        rows = (x.reshape(len(x), 784) / 255 for x in (images, self.train[50000:51000], self.test))
        return {
            "digits": np.sum(shares >= 0.05), "TV": np.abs(shares - self.shares).sum() / 2,
            "FID": fid, "ratio": fid / self.udacity, "precision": precision, "recall": recall,
            "Parzen": parzen(*rows)[0],
        }  # fmt: skip


# Of each column of quality's table: digits behind the point, and which value is the worst.
COLUMNS = {
    "seconds": (1, max), "images/s": (0, min), "digits": (0, min), "TV": (3, max), "FID": (2, max),
    "ratio": (3, max), "precision": (3, min), "recall": (3, min), "Parzen": (1, min),
}  # fmt: skip


def show(name, figures):
    """Print a row of quality's table."""
    cells = (f"{figures[column]:9,.{places}f}" for column, (places, _) in COLUMNS.items())
    print(f"{name:6}", *(cell.replace("nan", "  -") for cell in cells), flush=True)


def quality(options):
    """Train once per seed, print a row for each, then the median and the worst of each column."""
    parse(options.settings, "DATA", "SEED", *(gan.SETTINGS if options.udacity else ()))
    settings = UDACITY.split() if options.udacity else options.settings
    settings = [*settings, f"DATA={os.environ.get('GAN_MNIST') or 'mnist'}"]
    judge, rows = Judge(), []
    floor = frechet(judge.real, judge.look(judge.train[:10000])[0])
    print(f"FID of 10,000 training images: {floor:.2f}; kept of Udacity's GAN: {judge.udacity:.2f}")
    print("seed  ", *(f"{name:>9}" for name in COLUMNS), flush=True)
    for seed in options.seeds:
        with training(*settings, f"SEED={seed}") as (process, folder):
            run = finish(process, folder)
            vars(gan).update(gan.read_settings(run))
            table, generator = columns(run), keras.saving.load_model(run / "generator.keras")
        noise = gan.draw_noise(10000, -2)  # -2, as training uses the keys from 0, its pictures -1
        images = gan.to_pixels(generator.predict(noise, batch_size=500, verbose=0))
        if options.samples_out and not rows:
            gan.tile(images[:100], 10).save(options.samples_out)
        times = {"seconds": table["seconds"].sum(), "images/s": np.median(table["images/s"])}
        rows.append(times | judge.figures(images))
        show(str(seed), rows[-1])
    median = {name: np.median([row[name] for row in rows]) for name in COLUMNS}
    show("median", median)
    show("worst", {name: worst(row[name] for row in rows) for name, (_, worst) in COLUMNS.items()})
    if options.udacity:
        notes = json.loads(judge.notes.read_text())
        judge.note(**notes | {"udacity": median["FID"]})


if __name__ == "__main__":
    try:
        globals()[options.command](options)
    except gan.Problem as problem:
        print(f"benchmark.py: {problem}", file=sys.stderr)
        sys.exit(problem.status)
    except KeyboardInterrupt:
        sys.exit(130)
