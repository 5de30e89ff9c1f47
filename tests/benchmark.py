"""Measure gan.py: how fast it trains, what it costs beside that, and how good its digits are.

    python tests/benchmark.py speed                 training steps against NumPy's matmul
    python tests/benchmark.py recipes               training steps of the README's recipes
    python tests/benchmark.py overhead EPOCHS=3     a whole run: start, pictures, files, memory
    python tests/benchmark.py bigfile               memory while training 20 s on a 4 GB file
    python tests/benchmark.py scale                 one worker against two, of a core each
    python tests/benchmark.py quality --udacity     the reference for quality's ratio, once
    python tests/benchmark.py quality --seeds 10    FID and more on MNIST, for 10 seeds

On Linux. Settings, as gan.py takes them, hold for all rows. Quality reads the four IDX .gz files of
MNIST in the folder GAN_MNIST, whose digits overhead trains on, too, if it is given.
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
import timeit
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("command", choices=("speed", "recipes", "overhead", "bigfile", "scale", "quality"))
    add("settings", nargs="*", metavar="NAME=value")
    add("--cores", type=int, default=1, help="that speed and recipes are pinned to (default: 1)")
    add("--seeds", default="3", help="a list as 3,5,8 or a number (default: 3)")
    add("--udacity", action="store_true", help="take Udacity's settings and keep their FID")
    add("--samples-out", metavar="FILE.png", help="picture of 100 images of the first seed")
    options = parser.parse_intermixed_args()
    sys.stdout.reconfigure(line_buffering=True)
    if options.command in ("speed", "recipes"):  # before NumPy and TensorFlow start their threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # leaves room for gan.py's process

import numpy as np

import gan

keras, layers, tf = gan.keras, gan.layers, gan.tf
MNIST = f"DATA={os.environ.get('GAN_MNIST') or 'mnist'}"


# ---- Speed: training steps of GAN.train on random images ----
def multiplications(z, g_hidden, d_hidden, pixels, penalized):
    """Return the multiplications per image of an iteration's matrix products, in mlps of one layer.

    With g = Z Hg + Hg P and d = P Hd + Hd weights: D's update takes, for real and for fake images,
    d forward, d and Hd backward to the weights and the hidden layer; the penalty, in the share
    penalized of the iterations, d backward to the image and twice that for the way back through it,
    less the Hd to logits, which are not needed. G's update takes g forward, d forward and backward
    through D, then g and Hg P backward to G's weights and its hidden layer.
    """
    g, d = z * g_hidden + g_hidden * pixels, pixels * d_hidden + d_hidden
    penalty = penalized * (3 * d - d_hidden)
    return 2 * (2 * d + d_hidden + penalty) + 2 * g + 2 * d + g_hidden * pixels


def median_seconds(repeats, function):
    """Return the median time of a call; the first one is not counted, as it may trace."""
    return np.median(timeit.repeat(function, number=1, repeat=1 + repeats)[1:])


def training_rate(iterations, repeats):
    """Return the images/s of gan.GAN by gan's settings, on 28 x 28, in calls of so many steps."""
    keras.backend.clear_session()
    gan.choose_defaults((28, 28, 1))
    shape = iterations, gan.D_STEPS, gan.BATCH_SIZE, 28, 28, 1
    batches = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    model = gan.GAN(batches[0, 0])
    seconds = median_seconds(repeats, lambda: (model.train(batches, 0, 0), model.sums.numpy()))
    return math.prod(shape[:3]) / seconds  # the sums are there once all steps are done


def speed(options):
    """Print a row for each size of networks, batch and penalty."""
    settings = dict(map(gan.parse_setting, options.settings))
    names = "G_HIDDEN", "D_HIDDEN", "BATCH_SIZE", "GRADIENT_PENALTY"
    if taken := settings.keys() & {*names, "MODEL", "D_STEPS", "G_STEPS"}:
        raise gan.Problem(f"speed has its own values of {', '.join(taken)}")
    square = np.random.default_rng(0).random((1024, 1024), np.float32)
    print("  ".join(names), " images/s  GFLOP/s  NumPy's  ratio")
    networks = (128, 128), (512, 256), (1024, 512)
    for hidden, batch, penalty in itertools.product(networks, (100, 200, 400), (0, 0.3)):
        gan.change_settings(settings | dict(zip(names, (*hidden, batch, penalty))))
        numpy = 2 * 1024**3 / median_seconds(25, lambda: square @ square) / 1e9
        rate = training_rate(100, 7)
        penalized = len(range(0, 100, gan.PENALTY_EVERY)) / 100 if penalty else 0
        own = 2 * multiplications(gan.noise_size(), *hidden, 784, penalized) * rate / 1e9
        row = "{:8}  {:8}  {:10}  {:16}".format(*hidden, batch, penalty)
        print(f"{row}  {rate:8,.0f}  {own:7.1f}  {numpy:7.1f}  {own / numpy:5.2f}")
    print(f"in all rows PENALTY_EVERY={gan.PENALTY_EVERY} and noise of {gan.noise_size()}")


def tutorial_networks():
    """Return both networks of TensorFlow's DCGAN tutorial: z of 100, images of 28 x 28."""
    stack = [keras.Input((100,)), layers.Dense(7 * 7 * 256, use_bias=False)]
    stack += [layers.BatchNormalization(), layers.LeakyReLU(0.3), layers.Reshape((7, 7, 256))]
    for channels, stride in ((128, 1), (64, 2)):
        stack += [layers.Conv2DTranspose(channels, 5, stride, "same", use_bias=False)]
        stack += [layers.BatchNormalization(), layers.LeakyReLU(0.3)]
    stack += [layers.Conv2DTranspose(1, 5, 2, "same", use_bias=False, activation="tanh")]
    generator = keras.Sequential(stack)
    stack = [keras.Input((28, 28, 1))]
    for channels in (64, 128):
        stack += [layers.Conv2D(channels, 5, 2, "same"), layers.LeakyReLU(0.3), layers.Dropout(0.3)]
    return generator, keras.Sequential([*stack, layers.Flatten(), layers.Dense(1)])


def tutorial_rate(generator, discriminator, real):
    """Return the images/s of both, by Keras' Adam in a loop like the tutorial's, compiled."""
    optimizers = keras.optimizers.Adam(1e-4), keras.optimizers.Adam(1e-4)

    @tf.function
    def step():
        noise = tf.random.normal((len(real), 100))
        with tf.GradientTape(persistent=True) as tape:
            fake = discriminator(generator(noise, training=True), training=True)
            true = discriminator(real, training=True)
            losses = gan.generator_loss(fake), gan.discriminator_loss(true, fake)
        for network, optimizer, loss in zip((generator, discriminator), optimizers, losses):
            weights = network.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
        return losses

    return 10 * len(real) / median_seconds(3, lambda: [step()[0].numpy() for _ in range(10)])


def recipe_settings():
    """Return the settings of each of the README's recipes, in one string."""
    readme = Path(gan.__file__).with_name("README.md").read_text("utf-8")
    return re.findall(r"^    python gan\.py (.*PENALTY=.*)", readme, re.MULTILINE)


def recipes(options):
    """Print images/s of the README's recipes, and of the nets of TensorFlow's DCGAN tutorial."""
    found = [(f"recipe {i}", each) for i, each in enumerate(recipe_settings(), 1)]
    nets = "the nets of TensorFlow's DCGAN tutorial"
    generator, discriminator = tutorial_networks()
    theirs = "MODEL=dcgan Z_SIZE=100 CATEGORIES=1 OUTPUT=tanh GRADIENT_PENALTY=0 EMA=0"
    defaults = gan.current_settings()
    for title, command in (("default", ""), *found, (nets, f"{theirs} BATCH_SIZE=256")):
        words = command.split() + options.settings
        gan.change_settings(defaults | dict(map(gan.parse_setting, words)))
        if title == nets:
            gan.build_generator = lambda shape: generator
            gan.build_discriminator = lambda shape: discriminator
        print(f"{training_rate(10 if gan.MODEL == 'dcgan' else 100, 3):9,.0f} images/s  {title}")
    real = 2 * np.random.default_rng(0).random((256, 28, 28, 1), np.float32) - 1
    rate = tutorial_rate(generator, discriminator, real)
    print(f"{rate:9,.0f} images/s  the same, with Keras' Adam, in a loop like the tutorial's")


# ---- Overhead and big files: runs of gan.py in a process of their own ----
MEMORY = "VmRSS", "RssAnon", "RssFile", "RssShmem"  # the first is the sum of the others


@contextmanager
def training(*settings, seconds=math.inf):
    """Run gan.py in a process of its own, take its settings, and yield (its folder, what was seen).

    That is the time and the MEMORY in MB, 100 times a second, as columns. Ctrl-C comes so many
    seconds after the first picture. Exits if gan.py fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, gan.__file__, *settings, f"OUT={folder}"]
        process, seen = subprocess.Popen(command, stdout=subprocess.DEVNULL), []
        try:
            while process.poll() is None:
                status = Path(f"/proc/{process.pid}/status").read_text()
                found = dict(re.findall(r"(\w+):\s+(\d+) kB", status))  # nothing if it just ended
                seen.append([time.time(), *(int(found.get(name, 0)) / 1024 for name in MEMORY)])
                for picture in Path(folder).glob("*/epoch-000.png"):
                    if time.time() - picture.stat().st_mtime > seconds:
                        process.send_signal(signal.SIGINT)
                        seconds = math.inf  # as a second one would end it at once
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait()
        if process.returncode not in (0, 128 + signal.SIGINT):
            sys.exit(f"gan.py ended with status {process.returncode}")
        yield gan.open_run(next(Path(folder).glob("*-001")), {})[0], np.transpose(seen)


def columns(run):
    """Return the columns of the run's losses.csv by name."""
    return np.genfromtxt(run / "losses.csv", delimiter=",", names=True, deletechars="", ndmin=1)


def overhead(options):
    """Print where the time and the memory of one run go."""
    command = [sys.executable, "-c", "import tensorflow"]
    bare = median_seconds(1, lambda: subprocess.check_call(command, stderr=subprocess.DEVNULL))
    with training(MNIST, *options.settings) as (run, (times, sizes, *_)):
        first, *ends = sorted(file.stat().st_mtime for file in run.glob("epoch-*.png"))
        *_, (_, _, steps) = np.load(run / "checkpoint.npz").values()
        table = columns(run)
    epoch_images = steps * gan.BATCH_SIZE * gan.D_STEPS / len(table)
    seconds = epoch_images / table["images/s"]
    tracing = seconds[0] - min(seconds)
    pure, start = sum(seconds) - tracing, first - times[0]
    rest = times[-1] - first - sum(seconds)
    print(f"until first picture  {start:8.2f} s   (python -c 'import tensorflow': {bare:.2f} s)")
    print(f"training             {pure:8.2f} s   epochs: {len(table)}; tracing: {tracing:.2f} s")
    print(f"pictures, files, ... {rest:8.2f} s   {rest / pure:.1%} of training")
    print(f"total                {times[-1] - times[0]:8.2f} s")
    print(f"peak memory          {max(sizes):8,.0f} MB")
    at_ends, tenth = np.interp(ends, times, sizes), math.ceil(len(ends) / 10)
    low, high = np.median(at_ends[:tenth]), np.median(at_ends[-tenth:])
    print(f"after epochs         {low:8,.0f} MB   the first tenth; the last {high - low:+.1f} MB")


def bigfile(options):
    """Print the peak memory, split by kind, of a run on a file of 4 GB."""
    with tempfile.TemporaryDirectory() as room:
        path, shape = Path(room, "big.npy"), (2**32 // 784, 28, 28, 1)
        # Of one white image: the file is sparse and takes no room on the disk.
        np.lib.format.open_memmap(path, "w+", np.uint8, shape)[0] = 255
        with training(*options.settings, f"DATA={path}", seconds=20) as (run, (times, *sizes)):
            stop = times[-1] - (run / "epoch-000.png").stat().st_mtime - 20
            *_, (_, _, steps) = np.load(run / "checkpoint.npz").values()
    print(f"{steps:,} iterations on {shape[0]:,} images; stopped {stop:.1f} s after SIGINT")
    print("peak memory", *(f"  {name} {max(mb):,.0f} MB" for name, mb in zip(MEMORY, sizes)))
    print("RssFile is the system's cache of the file; it shrinks when memory is short")


# ---- Scale: several workers, which exchange the gradients of both networks in each iteration ----
def train_together(workers, settings):
    """Return the images/s of the last epoch of so many workers, pinned to a core each."""
    addresses, cores, started = [], sorted(os.sched_getaffinity(0)), []
    for _ in range(workers):
        with socket.create_server(("127.0.0.1", 0)) as free:
            addresses.append(f"127.0.0.1:{free.getsockname()[1]}")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, gan.__file__, *settings, f"OUT={folder}"]
        for index in range(workers):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = os.environ | ({"TF_CONFIG": json.dumps(task)} if workers > 1 else {})
            pinned = ["taskset", "--cpu-list", str(cores[index % len(cores)]), *command]
            started.append(subprocess.Popen(pinned, env=environment, stdout=subprocess.DEVNULL))
        if any(statuses := [process.wait() for process in started]):
            sys.exit(f"a worker failed: {statuses}")
        return columns(next(Path(folder).glob("*-001")))["images/s"][-1]


def scale(options):
    """Print the rates of one and of two workers, and what a network allows for more of them."""
    dcgan = "MODEL=dcgan CHANNELS=64 BATCH_NORM=True Z_SIZE=100 CATEGORIES=1 GRADIENT_PENALTY=0"
    for name, settings in (("mlp", ""), ("dcgan", dcgan)):
        words = ["DATA=digits", "EPOCHS=2", *settings.split(), *options.settings]
        one, two = (train_together(n, [*words, f"BATCH_SIZE={100 * n}"]) for n in (1, 2))
        gan.change_settings(dict(map(gan.parse_setting, words)))
        gan.choose_defaults((28, 28, 1))
        networks = gan.build_generator((28, 28, 1)), gan.build_discriminator((28, 28, 1))
        size = 4 * sum(math.prod(w.shape) for n in networks for w in n.trainable_weights)
        print(f"{name}: {one:,.0f} images/s with 1 worker, {two:,.0f} with 2")
        print(f"    all-reduced in an iteration: {size / 1e6:.2f} MB")
        print("    times as fast as one worker, each with a batch of 100 of its own:")
        print("      workers       1 Gbit/s      10 Gbit/s     100 Gbit/s")
        for n in (1, 8, 64, 512):
            # A ring sends and receives 2 (n - 1) / n of the bytes on every machine.
            sending = [2 * (n - 1) / n * size * 8 / gigabits / 1e9 for gigabits in (1, 10, 100)]
            print(f"    {n:9}", *(f"{n / (1 + t * one / 100):14.1f}" for t in sending))


# ---- Quality: generated digits against MNIST's test images ----
# The columns of quality's table, and which value of each is the worst.
WORST = {"seconds": max, "images/s": min, "digits": min, "TV": max, "FID": max}
WORST |= {"ratio": max, "precision": min, "recall": min, "Parzen": min, "purity": min}
ROW = "{:6} {:9.1f} {:9,.0f} {:9.0f} {:9.3f} {:9.2f} {:9.3f} {:9.3f} {:9.3f} {:9.1f} {:9.3f}"


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
        logs = tf.reduce_logsumexp(-squares / (2 * sigma**2), 1).numpy() - np.log(len(samples))
        return logs.mean() - samples.shape[1] / 2 * np.log(2 * np.pi * sigma**2)

    squares = squared_distances(validation, samples)
    sigma = max(np.geomspace(0.1, 0.4, 29), key=lambda s: mean_log(squares, s))
    parts = np.array_split(test, math.ceil(len(test) / 500))
    logs = [mean_log(squared_distances(part, samples), sigma) for part in parts]
    return np.average(logs, weights=[len(part) for part in parts]), sigma


def precision_recall(real, fake, k=3, chunk=500):
    """Return the share of fakes among the reals and of reals among the fakes (Kynkaanniemi 2019).

    A row is among others when it is as near to one of them as that one's k-th neighbour.
    """

    def share_among(rows, others):
        found = np.zeros(len(rows), bool)
        for part in np.array_split(others, math.ceil(len(others) / chunk)):
            radii = np.partition(squared_distances(part, others), k)[:, k]  # the 0-th is itself
            found |= (squared_distances(rows, part) <= radii).any(1)
        return found.mean()

    return share_among(fake, real), share_among(real, fake)


def labelled_mnist(name):
    """Return the images and the labels of MNIST's part "train" or "t10k". Raises gan.Problem."""
    folder = os.environ.get("GAN_MNIST")
    if not folder:
        raise gan.Problem("quality needs GAN_MNIST, the folder of MNIST's four IDX .gz files")
    images = gan.read_file(Path(folder, f"{name}-images-idx3-ubyte.gz"))
    labels = gzip.decompress(Path(folder, f"{name}-labels-idx1-ubyte.gz").read_bytes())
    return images, np.frombuffer(labels, np.uint8, offset=8)


def train_judge(images, labels):
    """Return a small convolutional network, trained to tell the digits."""
    print("training the judge, once ...")
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
        """Load the classifier from the cache, else train it. Exits if it is poor."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gan-benchmark")
        cache.mkdir(parents=True, exist_ok=True)
        (self.train, labels), (self.test, truth) = map(labelled_mnist, ("train", "t10k"))
        path, self.notes = cache / "judge.keras", cache / "judge.json"
        cached = path.exists() and self.notes.exists()
        network = keras.saving.load_model(path) if cached else train_judge(self.train, labels)
        self.network = keras.Model(network.inputs, [layer.output for layer in network.layers[-2:]])
        self.real, digits = self.look(self.test)
        self.shares = np.bincount(truth, minlength=10) / len(truth)
        accuracy = np.mean(digits == truth)
        print(f"judge: {path}, right on {accuracy:.2%} of the test images")
        if accuracy < 0.99:
            sys.exit("that is under 99 %, too little to judge by; is its file damaged?")
        if not cached:  # with another judge, Udacity's FID is another one: its note goes, too
            gan.write(path, network.save)
            gan.write(self.notes, lambda file: file.write_text(json.dumps({"accuracy": accuracy})))
        self.udacity = json.loads(self.notes.read_text()).get("udacity", np.nan)

    def look(self, images):
        """Return features, float64 [n, 128], and digits [n] of images."""
        features, logits = self.network.predict(images, batch_size=500, verbose=0)
        return features.astype(np.float64), logits.argmax(1)

    def figures(self, images):
        """Return the figures of 10,000 images, in the order of WORST from "digits" on."""
        features, found = self.look(images)
        shares, fid = np.bincount(found, minlength=10) / len(found), frechet(self.real, features)
        # Every second one, as MNIST's two halves differ. The few largest real neighbourhoods
        # hold even pure noise: precision tells little where recall is 0.
        shared = precision_recall(self.real[::2], features[::2])
        rows = (x.reshape(len(x), 784) / 255 for x in (images, self.train[50000:51000], self.test))
        digits, distance = np.sum(shares >= 0.05), np.abs(shares - self.shares).sum() / 2
        return digits, distance, fid, fid / self.udacity, *shared, parzen(*rows)[0]

    def purity(self, generator):
        """Return the mean over the categories of the share of their most frequent digit."""
        shares = []
        for category in range(gan.CATEGORIES):
            noise = gan.in_category(gan.draw_noise(500, -2), category)
            _, digits = self.look(gan.generate(generator, noise))
            shares.append(np.bincount(digits).max() / len(digits))
        return np.mean(shares)


def quality(options):
    """Train once per seed, print a row for each, then the median and the worst of each column."""
    fixed = set(gan.SETTINGS) if options.udacity else {"DATA", "SEED"}
    if taken := fixed & dict(map(gan.parse_setting, options.settings)).keys():
        raise gan.Problem(f"quality has its own values of {', '.join(taken)}")
    settings = recipe_settings()[2].split() if options.udacity else options.settings
    text = options.seeds
    seeds = map(int, text.strip(",").split(",")) if "," in text else range(int(text) or 1)
    judge, rows = Judge(), []
    floor = frechet(judge.real, judge.look(judge.train[:10000])[0])
    print(f"FID of 10,000 training images: {floor:.2f}; kept of Udacity's GAN: {judge.udacity:.2f}")
    print("seed  ", *(f"{name:>9}" for name in WORST))
    for seed in seeds:
        with training(*settings, MNIST, f"SEED={seed}") as (run, _):
            table, generator = columns(run), keras.saving.load_model(run / "generator.keras")
        # The key -2, as training uses those from 0, its pictures -1 and --sample those below.
        images = gan.generate(generator, gan.draw_noise(10000, -2))
        if options.samples_out and not rows:
            gan.tile(images[:100], 10).save(options.samples_out)
        times = sum(table["seconds"]), np.median(table["images/s"])
        rows.append([*times, *judge.figures(images), judge.purity(generator)])
        print(ROW.format(str(seed), *rows[-1]))
    median = dict(zip(WORST, np.median(rows, axis=0)))
    print(ROW.format("median", *median.values()))
    print(ROW.format("worst", *(worst(x) for worst, x in zip(WORST.values(), np.transpose(rows)))))
    if options.udacity:
        notes = json.loads(judge.notes.read_text()) | {"udacity": median["FID"]}
        gan.write(judge.notes, lambda file: file.write_text(json.dumps(notes)))


if __name__ == "__main__":
    try:
        globals()[options.command](options)
    except gan.Problem as problem:
        parser.error(problem)
