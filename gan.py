"""A generative adversarial network (GAN) in one script (arXiv:1406.2661).

The generator (G) turns noise into images. The discriminator (D) looks at an
image and says whether it is real (1) or fake (0). Each is trained against the
other, in turns, until the fakes look real.

    python gan.py                       train on MNIST: see samples/mnist-001
    python gan.py EPOCHS=5 BETA_1=0.5   the same with other settings
    python gan.py --resume              continue the newest run
    python gan.py --sample 1000         save 1,000 new images of the newest run
    python gan.py --sample 9 --category 7    images of category 7 alone
    python gan.py --run FOLDER          continue that run, or --sample it
"""

# ruff: noqa: BLE001, SIM115 - damaged files raise nearly anything; some files stay open
import argparse
import ast
import contextlib
import glob
import gzip
import hashlib
import importlib.util
import io
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # fatal errors only
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # leaves room for a second run
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever ~/.keras/keras.json says
# TensorFlow's remarks, as on missing GPUs, go to another process, which shows them only if
# this one ends while it loads. It has its own session, so that Ctrl-C does not reach it.
stderr = os.dup(2)
listen = [sys.executable, "-c", "import sys; sys.stderr.write(sys.stdin.read())"]
listener = subprocess.Popen(listen, stdin=subprocess.PIPE, start_new_session=True)
os.dup2(listener.stdin.fileno(), 2)
try:
    import keras
    import tensorflow as tf
    from keras import layers
finally:
    os.dup2(stderr, 2)
listener.kill()
keras.config.set_floatx("float32")  # overrides keras.json, too
keras.config.set_image_data_format("channels_last")

# ---- Settings: change them here, or for one run as in python gan.py EPOCHS=5 G_HIDDEN=256,512 ----
# fmt: off
# Data
DATA = "mnist"            # "mnist", "digits" (drawn, offline), or a path
IMAGE_SIZE = 64           # for a folder of pictures: pixels, or width,height
AUGMENT = False           # D sees altered images, also mirrored: for few photos
SEED = 0                  # same seed, same run (on a CPU)
# Networks (None: chosen by MODEL)
MODEL = "mlp"             # "mlp": fully connected; "dcgan": convolutions
Z_SIZE = None             # length of the noise z; None: 14, for a dcgan 64
CATEGORIES = None         # discrete latent categories that G learns by itself;
                          # 1: off; None: 28, for a dcgan 1
PRIOR = "sphere"          # of z: "normal", "sphere" (of one length), low,high
G_HIDDEN = 1024           # mlp: units of the hidden layer; two layers: 256,512
D_HIDDEN = 768            # the same for D; more of both: sharper, slower
CHANNELS = None           # dcgan: filters next to the image, of G,D, doubled at
                          # each stage; None: 56,32, above 32 pixels 28,32
KERNEL = 4                # dcgan: side of a filter; odd ones leave a fine grid
ACTIVATION = "relu"       # mlp: "relu", "leaky_relu", "tanh"
LEAK = 0.2                # slope of leaky_relu below 0
OUTPUT = "sigmoid"        # "sigmoid": pixels in 0..1, or "tanh": in -1..1
BATCH_NORM = False        # in hidden layers: True, "G" (in G only) or False
# Losses
LOSS = "non-saturating"   # of G: "non-saturating", or "minimax" (learns slower)
SMOOTH = 0.0              # label smoothing: real images count as 1 - SMOOTH
GRADIENT_PENALTY = 0.05   # R1 + R2 penalty; more: steadier, blurrier; 0: off
PENALTY_EVERY = 8         # lazily: every so many iterations, that much heavier
# Training
EPOCHS = 19               # passes over the data, of 10,000 images at least
BATCH_SIZE = None         # images per update, in all; None: 100, for a dcgan 50
LEARNING_RATE = None      # of D; None: 0.004; dcgan: 0.003, above 32 px 0.0015
G_RATE = 2.0              # G's learning rate is this times D's
WARM_UP = None            # iterations of rising rates; None: 1, for a dcgan 300
LR_DECAY = True           # learning rates fall to 0 over EPOCHS
BETA_1 = 0.0              # Adam's decay of the mean gradient
BETA_2 = None             # Adam's, of its square; None: 0.99, for a dcgan 0.9
D_STEPS = 1               # updates of D per iteration
G_STEPS = 1               # updates of G per iteration
EMA = 0.999               # decay of the average of G's weights; 0: off
EARLY_STOP = None         # low,high: stop when D(G(z)) lies between; None: off
# Pictures and files
GRID = 10                 # pictures show GRID x GRID images
OUT = "samples"           # folder of the runs
# fmt: on


# ---- Networks ----
def noise_size():
    """Return the length of G's input: that of z, and a number for each of the CATEGORIES."""
    return Z_SIZE + (CATEGORIES if CATEGORIES > 1 else 0)


def stages(shape, channels):
    """Return the shapes (H, W, C) of a dcgan's stages: the image's, then halved, to 7 or fewer."""
    shapes = [shape]
    while min(shape[:2]) > 7:  # halve the sides, rounded up
        shape = math.ceil(shape[0] / 2), math.ceil(shape[1] / 2), channels
        shapes.append(shape)
        channels *= 2
    return shapes


def activate(x, activation, normalize):
    """Return x, the output of a hidden layer, normalized if wanted, then activated."""
    if normalize:
        x = layers.BatchNormalization(momentum=0.8, synchronized=tf.distribute.has_strategy())(x)
    leaky = activation == "leaky_relu"
    return layers.LeakyReLU(LEAK)(x) if leaky else layers.Activation(activation)(x)


def build_generator(shape):
    """Return the generator: noise [n, noise_size()] -> images [n, *shape] in OUTPUT's range."""
    noise = keras.Input((noise_size(),))
    x = noise[:, :Z_SIZE]
    if PRIOR == "sphere":  # in here, so that the saved generator takes plain normal noise
        x = layers.Rescaling(math.sqrt(Z_SIZE))(layers.UnitNormalization()(x))
    if CATEGORIES > 1:  # the category of the largest score gets 3, the others 0 (arXiv:2006.04596)
        scores = noise[:, Z_SIZE:]
        # Not by argmax, which converts to neither TFLite nor ONNX.
        category = keras.ops.equal(scores, keras.ops.max(scores, -1, keepdims=True))
        x = layers.Concatenate()([x, 3.0 * keras.ops.cast(category, "float32")])
    if MODEL == "dcgan":  # of Radford 2015, arXiv:1511.06434: each stage doubles the sides
        g_channels, _ = np.broadcast_to(CHANNELS, 2).tolist()  # a number or a pair
        *larger, smallest = stages(shape, g_channels)
        x = layers.Dense(math.prod(smallest), kernel_initializer="he_normal")(x)
        x = layers.Reshape(smallest)(x)
        for height, width, channels in reversed(larger):
            x = activate(x, "relu", BATCH_NORM)
            up = layers.Conv2DTranspose(channels, KERNEL, 2, "same", kernel_initializer="he_normal")
            x = up(x)[:, :height, :width]  # crop: odd sides were rounded up when halved
        images = layers.Activation(OUTPUT)(x)
    else:
        for units in np.atleast_1d(G_HIDDEN).tolist():
            x = activate(layers.Dense(units)(x), ACTIVATION, BATCH_NORM)
        images = layers.Reshape(shape)(layers.Dense(math.prod(shape), activation=OUTPUT)(x))
    return keras.Model(noise, images, name="generator")


def build_discriminator(shape):
    """Return the discriminator: images [n, *shape] -> logits [n, 1], above 0 for "real"."""
    x = images = keras.Input(shape)
    normalize = BATCH_NORM is True
    if MODEL == "dcgan":  # each stage halves the sides
        _, d_channels = np.broadcast_to(CHANNELS, 2).tolist()
        for i, (_, _, channels) in enumerate(stages(shape, d_channels)[1:]):
            x = layers.Conv2D(channels, KERNEL, 2, "same", kernel_initializer="he_normal")(x)
            x = activate(x, "leaky_relu", normalize and i > 0)  # not in the first stage
    x = layers.Flatten()(x)
    if MODEL == "mlp":
        for units in np.atleast_1d(D_HIDDEN).tolist():
            x = activate(layers.Dense(units)(x), ACTIVATION, normalize)
    return keras.Model(images, layers.Dense(1)(x), name="discriminator")


# ---- The GAN ----
EPOCH_IMAGES = 10_000  # at least, as a pass over a few photographs is no time to learn
EMA_EVERY = 10  # iterations, as averaging takes a tenth of an iteration's time
METRICS = "d_loss", "g_loss", "D(x)", "D(G(z))", "D accuracy"


def cross_entropy(label, logits):
    """Return the mean sigmoid cross-entropy of logits [n, 1] against one label for all of them."""
    labels = tf.fill(tf.shape(logits), label)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))


def discriminator_loss(real_logits, fake_logits):
    """Return D's loss: it wants to call real images real (1) and fake ones fake (0)."""
    return cross_entropy(1.0 - SMOOTH, real_logits) + cross_entropy(0.0, fake_logits)


def generator_loss(fake_logits):
    """Return G's loss: it wants its fakes to be called real."""
    if LOSS == "minimax":  # minus D's second term: its gradient vanishes while D wins
        return -cross_entropy(0.0, fake_logits)
    return cross_entropy(1.0, fake_logits)


def draw_noise(count, key):
    """Return noise [count, noise_size()] from PRIOR, determined by SEED and an integer key."""
    shape, seed = (count, noise_size()), tf.stack([SEED, tf.cast(key, tf.int64)])
    if isinstance(PRIOR, str):  # "sphere", too: G itself scales z to one length
        return tf.random.stateless_normal(shape, seed)
    return tf.random.stateless_uniform(shape, seed, *PRIOR)


class GAN:
    """Both networks, their optimizers, and the moving average of the generator (EMA)."""

    def __init__(self, images, strategy=None):
        """Build everything for images, uint8 [N, H, W, C], on the devices of the strategy."""
        keras.utils.set_random_seed(SEED)
        self.data_shape, shape = images.shape, images.shape[1:]
        self.epoch_iterations = max(EPOCH_IMAGES, len(images)) // (D_STEPS * BATCH_SIZE)
        self.strategy = strategy or tf.distribute.get_strategy()
        self.replicas = self.strategy.num_replicas_in_sync
        with self.strategy.scope():
            self.generator = build_generator(shape)
            self.average = build_generator(shape) if EMA else self.generator
            self.average.set_weights(self.generator.get_weights())
            self.discriminator = build_discriminator(shape)
            self.g_optimizer = FusedAdam(beta_1=BETA_1, beta_2=BETA_2)
            self.d_optimizer = FusedAdam(beta_1=BETA_1, beta_2=BETA_2)
            self.g_optimizer.build(self.generator.trainable_variables)
            self.d_optimizer.build(self.discriminator.trainable_variables)
        self.sums = tf.Variable(tf.zeros(1 + len(METRICS), tf.float64))  # iterations, METRICS
        self.epoch, self.position = 0, 0  # epochs done; images used of the one in progress
        self.step = 0  # iterations done, each of D_STEPS updates of D and G_STEPS of G
        self.rows = []  # of losses.csv, one for each epoch done
        batches = tf.TensorSpec((None, D_STEPS, BATCH_SIZE, *shape), tf.uint8)
        count = tf.TensorSpec((), tf.int64)
        self.train = tf.function(self.train_batches, input_signature=(batches, count, count))

    def variables(self):
        """Return every variable that training changes: what a checkpoint holds."""
        parts = self.generator, self.average, self.discriminator, self.g_optimizer, self.d_optimizer
        return [self.sums] + [variable for part in parts for variable in part.variables]

    def train_batches(self, batches, step, seen):
        """Do an iteration with each of batches [n, D_STEPS, BATCH_SIZE, H, W, C], compiled."""
        # step: iterations done; seen: images used, as a resumed run may have another BATCH_SIZE.
        total = EPOCHS * self.epoch_iterations * D_STEPS * BATCH_SIZE
        for i in tf.range(tf.shape(batches, tf.int64)[0]):
            rate = LEARNING_RATE * tf.minimum((step + i + 1) / WARM_UP, 1.0)
            if LR_DECAY:
                rate *= tf.maximum(1.0 - (seen + i * D_STEPS * BATCH_SIZE) / total, 0.0)
            rate = tf.cast(rate, tf.float32)
            self.d_optimizer.learning_rate.assign(rate)
            self.g_optimizer.learning_rate.assign(rate * G_RATE)
            # Two calls: TensorFlow compiles train_step both with the penalty and without it.
            if GRADIENT_PENALTY and (step + i) % PENALTY_EVERY == 0:
                self.step_everywhere(batches[i], step + i, True)
            else:
                self.step_everywhere(batches[i], step + i, False)
            if EMA and (step + i) % EMA_EVERY == 0:
                # The decay rises from 0.1, so that the random first weights are forgotten.
                early_decay = (step + i + 1) / (step + i + 10)
                decay = tf.minimum(tf.cast(early_decay, tf.float32), EMA) ** EMA_EVERY
                for average, value in zip(self.average.variables, self.generator.variables):
                    average.assign_add((1.0 - decay) * (value - average))

    def step_everywhere(self, *arguments):
        """Do a train_step on every replica and add its metrics to the epoch's sums."""
        metrics = self.strategy.run(self.train_step, arguments)
        metrics = self.strategy.reduce("MEAN", metrics, axis=None)
        self.sums.assign_add(tf.cast(metrics, tf.float64))

    def train_step(self, batches, step, with_penalty):
        """Update D with batches [D_STEPS, BATCH_SIZE, H, W, C], then G; return 1 and METRICS."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        size = BATCH_SIZE // self.replicas  # each replica has its own slice of every batch

        for draw in range(D_STEPS):
            key = self.noise_key(step, draw, replica)
            real = to_floats(batches[draw, replica * size : (replica + 1) * size])
            with tf.GradientTape() as g_tape:  # for G's update below
                fake = self.generator(draw_noise(size, key), training=True)
            with tf.GradientTape() as d_tape:
                with tf.GradientTape() as slope_tape:  # inside d_tape: D learns from its slopes
                    slope_tape.watch([real, fake])
                    # Two passes, so that batch normalisation never mixes real images with fakes.
                    real_logits = self.judge(real, key, REAL)
                    fake_logits = self.judge(fake, key, FAKE)
                d_loss = discriminator_loss(real_logits, fake_logits)
                penalty = 0.0  # on D's slopes at the images; keeps D smooth (arXiv:1801.04406)
                if with_penalty:  # it doubles D's work, so it comes rarely, and is heavier
                    slopes = slope_tape.gradient([real_logits, fake_logits], [real, fake])
                    real_penalty, fake_penalty = [tf.reduce_sum(s**2) / size for s in slopes]
                    weight = PENALTY_EVERY * GRADIENT_PENALTY / 2
                    penalty = weight * (real_penalty + fake_penalty)
                penalized_loss = d_loss + penalty
            self.update(self.discriminator, self.d_optimizer, d_tape, penalized_loss)

        for draw in range(G_STEPS):
            if draw > 0:  # the first update takes D's last fakes, further ones make their own
                key = self.noise_key(step, D_STEPS - 1 + draw, replica)
                with tf.GradientTape() as g_tape:
                    fake = self.generator(draw_noise(size, key), training=True)
            with g_tape:  # resumes recording: the updated D judges the fakes
                g_loss = generator_loss(self.judge(fake, key, FAKE_FOR_G))
            self.update(self.generator, self.g_optimizer, g_tape, g_loss)

        correct = tf.cast(tf.concat([real_logits > 0, fake_logits < 0], 0), tf.float32)
        judgements = tf.sigmoid(real_logits), tf.sigmoid(fake_logits), correct
        # The 1 counts iterations: the means of an epoch are its sums divided by the sum of ones.
        return tf.stack([1.0, d_loss, g_loss, *map(tf.reduce_mean, judgements)])

    def noise_key(self, step, draw, replica):
        """Return a number unique to this step, draw and replica."""
        draws = D_STEPS + G_STEPS - 1  # D's last update and G's first use the same one
        return (step * draws + draw) * self.replicas + tf.cast(replica, tf.int64)

    def judge(self, images, key, purpose):
        """Return D's logits [n, 1] for images [n, H, W, C], augmented if AUGMENT is set."""
        images = augment(images, key, purpose) if AUGMENT else images
        return self.discriminator(images, training=True)

    def update(self, network, optimizer, tape, loss):
        """Change the network so that the loss, recorded by the tape, gets smaller."""
        variables = network.trainable_variables
        share = tf.constant(1.0 / self.replicas)  # as the optimizer adds up the replicas' gradients
        gradients = tape.gradient(loss, variables, output_gradients=share)
        optimizer.apply_gradients(zip(gradients, variables))


# ---- Data: every source becomes one array, uint8 [N, H, W, C], grey (C = 1) or RGB (C = 3) ----
MNIST_FILE = "train-images-idx3-ubyte.gz"
MNIST_SHA256 = "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://dataset.bj.bcebos.com/mnist/",  # in Beijing
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
TIMEOUT = 10  # seconds
TYPES = Image.registered_extensions().items()
# {suffix: format} of what Pillow reads by itself: for PostScript it runs another program.
PICTURE_TYPES = {suffix: name for suffix, name in TYPES if name in Image.OPEN and name != "EPS"}


class Problem(Exception):
    """Bad input: reported to the user in one line, with exit status 2."""


def tell(message):
    """Print a message to stderr, in one line."""
    print("gan.py:", " ".join(str(message).split()), file=sys.stderr, flush=True)


last_progress = [time.monotonic()]  # when a line was last printed


def show_progress(text):
    """Show text in the terminal's last line; elsewhere, as in a log file, a line a minute."""
    if sys.stdout and sys.stdout.isatty():
        width = min(78, shutil.get_terminal_size().columns - 1)
        print(f"{text[:width]:{width}}", end="\r", flush=True)
    elif time.monotonic() - last_progress[0] > 60:
        last_progress[0] = time.monotonic()
        print(text, flush=True)


def load_images():
    """Return (name, images) of DATA, or of "digits" if MNIST fails. Raises Problem."""
    if DATA == "mnist":
        try:
            return DATA, load_mnist()
        except ConnectionError as error:
            print(f"{'!' * 78}\n{error}\nThis run takes DRAWN DIGITS instead.\n{'!' * 78}\n")
    if DATA in ("mnist", "digits"):
        return "digits", draw_digits(20000)
    path = Path(DATA)
    if not path.exists():
        raise Problem(f'DATA={DATA}: no such file or folder, nor "mnist" or "digits"')
    if path.is_file():
        return path.stem, read_file(path)
    for folder in (path, path / "raw", path / "MNIST" / "raw"):  # as torchvision keeps it
        for file in sorted(folder.glob("*train-images*idx3-ubyte*")):
            return path.stem, read_file(file)
    return path.stem, read_folder(path)


def load_mnist():
    """Return MNIST's images from Keras' cache, else from the web. Raises ConnectionError."""
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    try:
        return read_file(home / "datasets" / "mnist.npz")
    except Problem as problem:  # not there, or damaged
        reasons = f"    mnist.npz: {problem}\n"
    socket.setdefaulttimeout(TIMEOUT)  # otherwise a silent mirror would hang the run
    for mirror in MIRRORS:
        try:
            url = mirror + MNIST_FILE
            file = keras.utils.get_file(None, url, file_hash=MNIST_SHA256, cache_dir=home)
            return read_file(file)
        except Exception as error:
            reasons += f"    {mirror}: {error}\n"
    advice = f"Put {MNIST_FILE}, from any mirror, into {home / 'datasets'}"
    raise ConnectionError(f"MNIST failed to load:\n{reasons}{advice}")


def draw_digits(count):
    """Return count digits drawn in a font, uint8 [count, 28, 28, 1]: a function of SEED."""
    random, font, glyphs = np.random.default_rng(SEED), ImageFont.load_default(108), []
    for i in range(50):
        glyphs.append(Image.new("L", (144, 144)))  # too large: shrinking smooths the edges
        draw = ImageDraw.Draw(glyphs[-1])
        draw.text((72, 72), str(i % 10), 255, font, anchor="mm", stroke_width=i // 10)
    images = np.empty((count, 28, 28, 1), np.uint8)
    for image in images:
        matrix = random.normal(4.6 * np.eye(2), 0.6)  # shrinks, turns, slants and scales
        shift = 72 - matrix @ random.uniform(13, 15, 2)
        affine = (*matrix[0], shift[0], *matrix[1], shift[1])
        glyph = glyphs[random.integers(len(glyphs))]
        glyph = glyph.transform((28, 28), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
        image[..., 0] = glyph.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 0.8)))
    return images


def read_file(path):
    """Return the images of an IDX (.gz or not), .npz or .npy file. Raises Problem."""
    try:
        with open(path, "rb") as file:
            head = file.read(2)
        if head == b"\x93N":  # .npy
            return as_images(np.load(path, mmap_mode="r", allow_pickle=False))
        if head == b"PK":  # .npz, or any other zip file
            arrays = np.load(path, allow_pickle=False)
            for name in ("x_train", "images", *arrays):
                # If it is missing, or holds labels, objects or a picture, try the next one.
                with contextlib.suppress(KeyError, ValueError, AttributeError):
                    return as_images(arrays[name])
            some = ", ".join(list(arrays)[:5])
            raise ValueError(f"no grey or RGB images in {some}; a zip of pictures: unpack it first")
        with gzip.open(path) if head == b"\x1f\x8b" else open(path, "rb") as file:
            content = file.read()
        if content[:3] != b"\0\0\x08":  # IDX of unsigned bytes, as MNIST
            raise ValueError("no images in IDX, .npz or .npy form")
        shape = np.frombuffer(content, ">u4", content[3], offset=4)
        return as_images(np.frombuffer(content, np.uint8, offset=4 + shape.nbytes).reshape(shape))
    except Exception as error:
        raise Problem(f"{path} cannot be used: {error}") from None


def as_images(array):
    """Return array [N, H, W], [N, H, W, C] or [N, C, H, W] as images, numbers scaled to 0..255."""
    if array.ndim == 2 and math.isqrt(array.shape[1]) ** 2 == array.shape[1] > 1:  # flat squares
        array = array.reshape(len(array), math.isqrt(array.shape[1]), -1)
    array = array[..., np.newaxis] if array.ndim == 3 else array
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = np.moveaxis(array, 1, 3)  # PyTorch's order
    if array.ndim != 4 or array.shape[3] not in (1, 3) or array.size == 0:
        raise ValueError(f"its shape is {array.shape}, not [N, H, W], [N, H, W, 1] or [N, H, W, 3]")
    some = array[:: max(1, len(array) // 1000)]  # of a file that may be large
    if array.dtype == np.uint8 and some.max() >= 128:
        return array
    low, high = np.float64(array.min()), np.float64(array.max())
    if array.dtype.kind in "iu" and low >= 0 and 128 <= high <= 255:
        low, high = 0, 255  # they are pixels already
    if not 0 < high - low < math.inf:
        raise ValueError(f"its numbers are {low} to {high}")
    images = np.empty(array.shape, np.uint8)
    for image, numbers in zip(images, array):  # one by one: the file may be large
        image[:] = np.rint((numbers - low) * (255 / (high - low)))
    return images


def find_pictures(folder):
    """Return the picture files below folder, sorted; say how many other files there are."""
    names = glob.glob("**", root_dir=folder, recursive=True)  # without hidden ones
    paths = sorted(Path(folder, name) for name in names if "__MACOSX" not in name)
    runs = {path.parent for path in paths if path.name == "epoch-000.png"}  # they are not data
    files = [path for path in paths if path.is_file() and runs.isdisjoint(path.parents)]
    others = [path for path in files if path.suffix.lower() not in PICTURE_TYPES]
    if others:
        kinds = Counter(path.suffix.lower() or path.name for path in others).most_common(9)
        print(f"left out: {', '.join(f'{count:,} {kind}' for kind, count in kinds)}")
    return [path for path in files if path.suffix.lower() in PICTURE_TYPES]


def read_folder(folder):
    """Return the images below folder, cropped to IMAGE_SIZE; decoded once only. Raises Problem."""
    size = tuple(np.broadcast_to(IMAGE_SIZE, 2).tolist())  # width, height
    files = find_pictures(folder)
    stats = [file.stat() for file in files]
    names = [str(file.relative_to(folder)) for file in files]
    facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(names, stats)]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    name = f"{folder.parent.name}-{folder.name}-{size[0]}x{size[1]}-"  # many are called "train"
    cache = Path(OUT, "cache", f"{name}{digest}.raw")  # pixel by pixel, without a header

    def save(temporary):
        with open(temporary, "wb") as raw:  # one by one: there may be more than memory holds
            raw.writelines(decode(files, size))

    try:
        if not cache.exists():
            cache.parent.mkdir(parents=True, exist_ok=True)
            write(cache, save)
            for old in cache.parent.glob(f"{glob.escape(name)}*"):
                if old != cache:
                    with contextlib.suppress(PermissionError):  # on Windows, open in another run
                        old.unlink()
        pictures = np.memmap(cache, mode="r").reshape(-1, size[1], size[0], 3)
    except OSError as error:
        tell(f"warning: {error}; so the decoded pictures are kept in memory only")
        pictures = np.stack(list(decode(files, size)))
    grey = not any(np.ptp(pixels, axis=2).any() for pixels in pictures)
    return pictures[..., :1] if grey else pictures


def decode(files, size):
    """Yield the pixels [H, W, 3] of the picture files, cropped to size. Raises Problem."""
    readable = 0
    with ThreadPool() as pool:
        pictures = pool.imap(lambda file: read_picture(file, size), files, chunksize=10)
        for done, pixels in enumerate(pictures, 1):
            show_progress(f"reading images: {done:,} of {len(files):,}")
            if pixels is not None:
                readable += 1
                yield pixels
    if not readable:
        raise Problem(f"DATA={DATA}: no readable picture in this folder")


def read_picture(file, size):
    """Return a picture file's pixels [H, W, 3], uint8, cropped and scaled to size, or None."""
    try:
        with Image.open(file, formats=tuple(PICTURE_TYPES.values())) as picture:
            picture.draft("RGB", size)  # a large JPEG is decoded at part size
            picture = ImageOps.exif_transpose(picture)
        if picture.mode[0] in "IF":  # wide numbers, which Pillow would clip
            picture = Image.fromarray(narrow(np.asarray(picture)))
        if picture.has_transparency_data:
            picture = ImageOps.fit(picture.convert("RGBA"), size)
            grey, alpha = np.float64(picture.convert("LA")).transpose(2, 0, 1)
            dark = (grey * alpha).sum() < 96 * alpha.sum()  # would not show on black
            behind = Image.new("RGBA", size, "white" if dark else "black")
            picture = Image.alpha_composite(behind, picture)
        return np.asarray(ImageOps.fit(picture.convert("RGB"), size))
    except Exception as error:
        tell(f"warning: skipped {file}: {error}")


def narrow(numbers):
    """Return numbers of 0..1, or of 8, 12 or 16 bits, as uint8; others stretched to 0..255."""
    low, high = np.float64(numbers.min()), np.float64(numbers.max())
    if low >= 0 and high <= 65535:
        low, high = 0, min(end for end in (1, 255, 4095, 65535) if high <= end)
    return np.uint8(np.rint((numbers - low) * (255 / (high - low or 1))))


# ---- Altered images, and a faster Adam ----
REAL, FAKE, FAKE_FOR_G = range(3)  # purposes; part of the seed, so that each differs


def to_floats(pixels):
    """Return pixels of 0..255 as floats in OUTPUT's range."""
    floats = tf.cast(pixels, tf.float32)
    return floats / 127.5 - 1.0 if OUTPUT == "tanh" else floats / 255.0


def augment(images, key, purpose):
    """Return images [n, H, W, C] mirrored, shifted, partly blanked at random (arXiv:2006.10738)."""
    height, width = images.shape[1:3]
    seed = tf.random.fold_in(tf.stack([SEED, tf.cast(key, tf.int64)]), purpose)
    draws = tf.random.stateless_uniform((5, tf.shape(images)[0], 1), seed)
    down, right, mirror, top, left = tf.unstack(draws)  # [n, 1] each, in 0..1
    rows = tf.range(height) + tf.cast(down * (height // 8 * 2 + 1), tf.int32) - height // 8
    columns = tf.range(width) + tf.cast(right * (width // 8 * 2 + 1), tf.int32) - width // 8
    columns = tf.where(mirror < 0.5, columns, width - 1 - columns)
    # Outside of the image its edge is repeated.
    images = tf.gather(images, tf.clip_by_value(rows, 0, height - 1), axis=1, batch_dims=1)
    images = tf.gather(images, tf.clip_by_value(columns, 0, width - 1), axis=2, batch_dims=1)
    # The blank, in the middle grey, is half as high and wide as the image.
    in_rows = tf.abs(tf.range(height, dtype=tf.float32) / height - top) < 0.25  # [n, H]
    in_columns = tf.abs(tf.range(width, dtype=tf.float32) / width - left) < 0.25
    blank = in_rows[:, :, None, None] & in_columns[:, None, :, None]
    return tf.where(blank, to_floats(127.5), images)


class FusedAdam(keras.optimizers.Adam):
    """Keras' Adam (arXiv:1412.6980), one fused kernel per variable: training is 25 % faster."""

    def update_step(self, gradient, variable, learning_rate):
        """Move the variable by its gradient, both of one shape."""
        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=1e-7,
            grad=gradient,
        )


# ---- Runs: each has its folder of pictures, figures and checkpoints, from which it resumes ----
EARLY = 10, 30, 100, 300  # iterations of the first epoch that leave a picture
CHECKPOINT_SECONDS = 600  # between checkpoints in a long epoch
COLUMNS = "epoch", *METRICS, "spread", "images/s", "seconds"
# What a resumed run cannot change.
FIXED = ["IMAGE_SIZE", "SEED", "MODEL", "Z_SIZE", "CATEGORIES", "PRIOR", "G_HIDDEN"]
FIXED += ["D_HIDDEN", "CHANNELS", "KERNEL", "OUTPUT", "BATCH_NORM", "GRID"]


def write(path, save):
    """Have save(temporary) write a file, then rename it: a crash leaves path whole, old or new."""
    temporary = path.with_name(f"tmp-{os.getpid()}-{path.name}")
    try:
        save(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


said_open = set()  # suffixes that were reported already


def replace(temporary, path):
    """Rename temporary to path. On Windows another program may have that open: then wait for it."""
    for _ in range(10):
        try:
            return os.replace(temporary, path)
        except PermissionError:
            time.sleep(0.1)
    if path.suffix not in (".png", ".csv", ".gif", ".html"):  # no reason to stop a run
        return os.replace(temporary, path)
    if path.suffix not in said_open:
        tell(f"warning: {path} is open in another program and was not replaced")
        said_open.add(path.suffix)


def make_folder(name):
    """Return a new folder OUT/name-NNN with the next free number. Raises Problem."""
    taken = [re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name) for path in Path(OUT).glob("*")]
    number = max((int(match[1]) for match in taken if match), default=0) + 1
    folder = Path(OUT, f"{name}-{number:03}")
    try:
        folder.mkdir(parents=True)
        return folder
    except FileExistsError:  # another run took this number just now
        return make_folder(name)
    except OSError as error:
        raise Problem(f"cannot make a folder for the run: {error}; try OUT=...") from None


def lock(folder):
    """Return an open file whose lock keeps other processes out of the run. Raises Problem."""
    held = PermissionError if os.name == "nt" else BlockingIOError
    try:
        file = open(folder / "lock", "ab")
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except held:
        raise Problem(f"{folder} is in use by another process") from None
    except (OSError, ImportError) as error:  # a disk, or a Python, without locks
        tell(f"warning: no lock ({error}); do not train this run twice at the same time")
        return contextlib.nullcontext()


def open_run(run, out):
    """Return (folder, settings) of the run, or if it is None of the newest one in out."""
    files = [Path(run, "settings.json")] if run else Path(out).expanduser().glob("*/settings.json")
    file = max(filter(Path.is_file, files), key=os.path.getmtime, default=None)
    if not file:
        raise Problem(f"{run or out}: no run there yet (no settings.json)")
    early = {"CATEGORIES": 1, "KERNEL": 5, "WARM_UP": 1}  # of runs before these were settings
    try:
        saved = early | json.loads(file.read_text())
    except (ValueError, TypeError) as error:
        raise Problem(f"{file} cannot be used: {error}") from None
    return file.parent, {name: saved[name] for name in SETTINGS if name in saved}


def save_checkpoint(folder, gan):
    """Write all that training changes to one file in checkpoint/; keep the last three files."""
    values = [variable.numpy() for variable in gan.variables()]
    values += [gan.rows, (gan.epoch, gan.position, gan.step), gan.data_shape]
    file = folder / "checkpoint" / f"step-{gan.step:09}.npz"
    file.parent.mkdir(exist_ok=True)
    write(file, lambda temporary: np.savez(temporary, *values))
    for old in sorted(file.parent.glob("step-*.npz"))[:-3]:
        old.unlink()


def restore(gan, folder):
    """Bring gan to where the run's newest readable checkpoint was saved. Raises Problem."""
    files = sorted((folder / "checkpoint").glob("step-*.npz"), reverse=True)
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                *values, rows, counters, shape = arrays.values()
        except Exception as error:
            tell(f"warning: {file} is damaged ({error}); going back to the one before")
            continue
        count, *size = shape.tolist()
        if tuple(size) != gan.data_shape[1:]:
            raise Problem(
                f"DATA={DATA}: its images are {gan.data_shape[1:]}, and were {tuple(size)}"
            )
        if count != gan.data_shape[0]:
            tell(f"DATA={DATA} has {gan.data_shape[0]:,} images now; it had {count:,}")
        # Backwards: without EMA the average is the generator, whose own weights must come last.
        for variable, value in reversed(list(zip(gan.variables(), values, strict=True))):
            variable.assign(value)
        gan.rows, (gan.epoch, gan.position, gan.step) = rows.tolist(), counters.tolist()
        return
    if files:  # else it was stopped before its first one
        raise Problem(f"{folder} has no checkpoint that can be read; start a new run")


# ---- Pictures ----
FONT, LARGE_FONT = ImageFont.load_default(14), ImageFont.load_default(20)
# Keys of draw_noise, beside training's, which are 0 and above.
PICTURES_KEY, SAMPLE_KEY, WALK_KEY, CATEGORIES_KEY = -1, -3, -4, -5


def generate(generator, noise):
    """Return the generator's uint8 images [n, H, W, C] for noise [n, noise_size()]."""
    n = max(1, min(500, 2**24 // math.prod(generator.output_shape[1:])))  # at a time: 64 MB
    images = []
    for i in range(0, len(noise), n):
        floats = generator(noise[i : i + n], training=False).numpy()  # in OUTPUT's range
        floats = (floats + 1.0) * 127.5 if OUTPUT == "tanh" else floats * 255.0
        images.append(np.rint(floats).astype(np.uint8))
    return np.concatenate(images)


def tile(images, columns):
    """Return a picture of images, uint8 [n, H, W, C], in rows of columns with thin gaps."""
    gap = max(1, images.shape[1] // 32)
    images = np.pad(images, ((0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=80)
    rows = [np.hstack(images[i : i + columns]) for i in range(0, len(images), columns)]
    pixels = np.pad(np.vstack(rows), ((0, gap), (0, gap), (0, 0)), constant_values=80)
    picture = Image.fromarray(np.squeeze(pixels))
    scale = max(1, round(600 / picture.width))  # about 600 pixels, whatever the images' size
    return ImageOps.scale(picture, scale, Image.Resampling.NEAREST)


def plot(rows):
    """Return a chart, 800 x 500, of the rows' losses and, below, of how real D finds images."""
    picture = Image.new("RGB", (800, 500), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((750, 14), "grey line: D is guessing; flat is healthy: neither wins", 0, FONT, "ra")
    draw.text((750, 484), "epoch", "black", FONT, "ra")
    epochs, d_loss, g_loss, real, fake, *_ = np.transpose(rows)
    xs = 60 + 690 * (epochs - epochs[0]) / max(1, epochs[-1] - epochs[0])
    # A few wild losses would flatten all others: what lies above the axis is marked at its end.
    low, high = np.percentile((d_loss, g_loss), (10, 90))
    axis = min(0, math.floor(low)), max(2, math.ceil(high))
    losses = ("D loss", d_loss), ("G loss", g_loss)
    judgements = ("D(x), of real images", real), ("D(G(z)), of fakes", fake)
    guesses = 1.39, (-0.69 if LOSS == "minimax" else 0.69)
    panels = (40, axis, guesses, losses), (285, (0, 1), (0.5,), judgements)
    step = math.ceil(len(rows) / 12)
    for top, (low, high), guessing, lines in panels:
        for level in np.linspace(low, high, 5):
            y = np.interp(level, (low, high), (top + 180, top))
            draw.line((60, y, 750, y), "#dddddd")
            draw.text((52, y), f"{level:g}", "black", FONT, "rm")
        for level in guessing:
            y = np.interp(level, (low, high), (top + 180, top))
            draw.line((60, y, 750, y), "#888888")
        for x, epoch in zip(xs[step - 1 :: step], epochs[step - 1 :: step]):
            draw.text((x, top + 185), f"{epoch:.0f}", "black", FONT, "ma")
        for (name, line), color, left in zip(lines, ("#1f5fd0", "#d0451f"), (60, 260)):
            draw.text((left, top - 26), name, color, FONT)
            ys = np.interp(line, (low, high), (top + 180, top))
            draw.line(list(zip(xs, ys)), color, 2, "curve")
            draw.circle((xs[-1], ys[-1]), 3, color)
            for x in xs[line > high]:
                draw.regular_polygon((x, top + 4, 5), 3, fill=color)
    return picture


def in_category(noise, categories):
    """Return noise changed so that G draws one category, or categories [n]; None: unchanged."""
    noise = np.array(noise)
    if CATEGORIES > 1 and categories is not None:
        noise[:, Z_SIZE:] = np.eye(CATEGORIES)[categories]
    return noise


def picture_categories(generator):
    """Return a picture of the first 40 categories: a row for each, from the same ten noises."""
    count = min(CATEGORIES, 40)
    noise = np.tile(draw_noise(10, CATEGORIES_KEY), (count, 1))
    picture = tile(generate(generator, in_category(noise, np.repeat(np.arange(count), 10))), 10)
    height = picture.height / count
    picture = ImageOps.expand(picture.convert("RGB"), (50, 30, 0, 0), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((50, 15), "one category in each row, the same noise in a column", 0, LARGE_FONT, "lm")
    for row in range(count):
        draw.text((40, 30 + (row + 0.5) * height), str(row), 0, LARGE_FONT, "rm")
    return picture


def epoch_pictures(folder):
    """Return [(title, file name)] of a run's pictures, in the order of training."""
    found = [re.fullmatch(r"epoch-(\d+)(?:-(\d+))?\.png", path.name) for path in folder.iterdir()]
    numbers = sorted((int(match[1]), int(match[2] or 0), match[0]) for match in found if match)
    return [(f"iteration {i}" if i else f"epoch {e}", name) for e, i, name in numbers]


def save_history(folder):
    """Write training.gif: a frame for each of the run's pictures, or for a hundred of them."""
    pictures, frames, times = epoch_pictures(folder), [], []  # times in milliseconds
    for i in np.unique(np.linspace(0, len(pictures) - 1, 100, dtype=int)):
        title, name = pictures[i]
        try:
            frame = Image.open(folder / name).convert("RGB")
        except (OSError, Image.DecompressionBombError) as error:
            tell(f"warning: {name} is not in training.gif: {error}")
            continue
        frame = frame.reduce(max(1, round(frame.width / 350)))
        frame = ImageOps.expand(frame, (0, 30, 0, 0), "white")
        ImageDraw.Draw(frame).text((6, 15), title, "black", LARGE_FONT, "lm")
        frames.append(frame.quantize(64))
        times.append(700 if name.startswith("epoch-000") else max(80, 6000 // len(pictures)))
    if frames:
        times[-1] = 2000
        options = {"save_all": True, "append_images": frames[1:], "duration": times, "loop": 0}
        write(folder / "training.gif", lambda temporary: frames[0].save(temporary, **options))


PAGE = """<!DOCTYPE html><meta charset="utf-8"><style>input { width: 90vw }
body { font: 16px sans-serif } img { width: 46vw; min-width: 330px; margin: 4px }
img, pre { display: inline-block; vertical-align: top }</style><h2 id="heading"></h2>
<input id="slider" type="range"><p><b id="title"></b>: generated images, then real ones</p>
<img id="fakes"><img src="real.png">
<img src="losses.png" onerror="remove()"><img src="training.gif" onerror="remove()">
<img src="categories.png" onerror="remove()"><pre id="facts"></pre><script>
const [name, lines, pictures, training] = RUN, last = pictures.length - 1;
heading.textContent = document.title = name;
facts.textContent = lines.join("\\n");
slider.max = last;
slider.value = location.hash.slice(1) || last; // after a reload it is where it was
onload = oninput = () => {
  [title.textContent, fakes.src] = pictures[slider.value];
  location.replace("#" + (slider.value == last ? "" : slider.value));
};
slider.focus({ preventScroll: true }); // for the arrow keys
if (training) setTimeout(() => location.reload(), 5000);</script>"""


def save_page(folder, gan, training=True):
    """Write index.html, which shows the run in a browser: from the disk, without a server."""
    figures = dict(zip(COLUMNS, np.round(gan.rows[-1], 3))) if gan.rows else {}
    facts = [f"{name}: {value}" for name, value in (figures | current_settings()).items()]
    run = [f"{folder.name}, epoch {gan.epoch} of {EPOCHS}", facts, epoch_pictures(folder), training]
    page = PAGE.replace("RUN", json.dumps(run).replace("<", "\\u003c"))  # no tag from a name
    write(folder / "index.html", lambda temporary: temporary.write_text(page, "utf-8"))


# ---- Training ----
HEADER = " epoch   D loss  G loss   D(x)  D(G(z))  D acc  spread  images/s  seconds"
ROW = "{epoch:4.0f}/{epochs:<4}{d_loss:6.3f} {g_loss:7.3f}  {D(x):5.3f}   {D(G(z)):6.3f}"
ROW += "   {D accuracy:4.0%}  {spread:6.2f} {images/s:9,.0f} {seconds:8.1f}"
COLLAPSE = "   ! mode collapse: try GRADIENT_PENALTY=1, or half the LEARNING_RATE"
OVERPOWERED = "   ! D spots nearly all fakes, so G learns little: raise GRADIENT_PENALTY"


def pixel_spread(images):
    """Return the mean over the pixels of their standard deviation over the images."""
    rows = (images[:, y] for y in range(images.shape[1]))  # one by one, as floats take memory
    return float(np.mean([np.std(row, axis=0, dtype=np.float64) for row in rows]))


def save_picture(gan, folder, name):
    """Write a picture of the average generator's images, always from the same noise; return all."""
    fakes = generate(gan.average, draw_noise(max(256, GRID**2), PICTURES_KEY))
    write(folder / name, tile(fakes[: GRID**2], GRID).save)
    return fakes


def train(gan, images, folder, signals):
    """Train to the end of EPOCHS; return False if something in the list signals stopped it."""
    real_spread = pixel_spread(images[:: max(1, len(images) // 1000)]) or 1.0
    board = importlib.util.find_spec("tensorboard") and tf.summary.create_file_writer(str(folder))
    said = set()
    if gan.step == 0:
        some = np.linspace(0, len(images) - 1, GRID**2, dtype=int)
        write(folder / "real.png", tile(images[some], GRID).save)
        save_picture(gan, folder, "epoch-000.png")
    save_page(folder, gan)
    print(HEADER)
    first, began = gan.epoch + 1, time.perf_counter()
    while gan.epoch < EPOCHS:
        speed = train_epoch(gan, images, folder, signals)
        if not speed:
            return False
        fakes = save_picture(gan, folder, f"epoch-{gan.epoch + 1:03}.png")
        iterations, *sums = gan.sums.numpy().tolist()
        means = [total / iterations for total in sums]
        spread = pixel_spread(fakes) / real_spread
        now = time.perf_counter()
        gan.rows.append([gan.epoch + 1.0, *means, spread, speed, now - began])
        began = now
        gan.epoch, gan.position = gan.epoch + 1, 0
        gan.sums.assign(tf.zeros_like(gan.sums))
        row = dict(zip(COLUMNS, gan.rows[-1]))
        save_epoch(gan, folder)
        if board:
            with board.as_default(gan.epoch):
                for name in COLUMNS[1:]:
                    tf.summary.scalar(name, row[name])
                picture = np.atleast_3d(tile(fakes[: GRID**2], GRID))
                tf.summary.image("samples", picture[np.newaxis])
        print(ROW.format(epochs=EPOCHS, **row))
        if gan.epoch == first and first < EPOCHS:
            left = (EPOCHS - first) * gan.epoch_iterations * D_STEPS * BATCH_SIZE / speed
            print(f"          about {left:,.0f} seconds to go")
        for problem, seen in ((COLLAPSE, spread < 0.5), (OVERPOWERED, row["D accuracy"] > 0.99)):
            trained = gan.step >= max(300, 2 * WARM_UP)  # before that, every G looks like this
            if seen and trained and problem not in said:
                said.add(problem)
                print(problem)
        if EARLY_STOP and EARLY_STOP[0] <= row["D(G(z))"] <= EARLY_STOP[1]:
            return True
    return True


def train_epoch(gan, images, folder, signals):
    """Train on the rest of an epoch; return images per second, or None if signals stopped it."""
    random, stride = np.random.default_rng((SEED, gan.epoch)), D_STEPS * BATCH_SIZE
    length = gan.epoch_iterations * stride  # of the epoch, in images
    gan.position = min(gan.position, length - stride)  # a resumed run may have other batches
    passes = math.ceil(length / len(images))
    order = np.concatenate([random.permutation(len(images)) for _ in range(passes)])
    saved, speeds, n = time.perf_counter(), [], 1
    while left := (length - gan.position) // stride:  # iterations
        n = min([n, left, *(early - gan.step for early in EARLY if early > gan.step)])
        started = time.perf_counter()
        chosen = order[gan.position : gan.position + n * stride]
        batches = images[chosen].reshape(n, D_STEPS, BATCH_SIZE, *images.shape[1:])
        gan.train(batches, gan.step, gan.epoch * length + gan.position)
        gan.step += n
        gan.position += n * stride
        if not np.isfinite(gan.sums.numpy()).all():
            raise ArithmeticError(f"training diverged by step {gan.step:,}: lower LEARNING_RATE")
        now = time.perf_counter()
        if gan.epoch == 0 and gan.step in EARLY and n < left:
            save_picture(gan, folder, f"epoch-000-{gan.step:05}.png")
            save_page(folder, gan)
        if n < left and (signals or now - saved > CHECKPOINT_SECONDS):
            save_checkpoint(folder, gan)
            saved = now
            if signals:
                return None
        bar = "#" * round(gan.position / length * 30)
        speeds.append(n * stride / (now - started))
        show_progress(f"{gan.epoch + 1:4}/{EPOCHS:<4} [{bar:.<30}] {speeds[-1]:,.0f} images/s")
        # Half a second of work at a time keeps Ctrl-C quick; several machines need one number.
        n = 10 if gan.replicas > 1 else max(1, min(100, int(0.5 * n / (now - started))))
    return float(np.median(speeds[1:] or speeds))


def save_epoch(gan, folder):
    """Write an epoch's files, its checkpoint last: after a crash before that, it is repeated."""
    table = {"fmt": "%.7g", "delimiter": ",", "header": ",".join(COLUMNS), "comments": ""}
    write(folder / "losses.csv", lambda temporary: np.savetxt(temporary, gan.rows, **table))
    write(folder / "losses.png", plot(gan.rows).save)
    save_page(folder, gan)
    write(folder / "generator.keras", gan.average.save)
    write(folder / "discriminator.keras", gan.discriminator.save)
    save_checkpoint(folder, gan)


# ---- Command line ----
# fmt: off
DEFAULTS = {  # what None becomes, for an mlp, a dcgan, and a dcgan above 32 pixels
    "Z_SIZE": (14, 64, 64), "CATEGORIES": (28, 1, 1), "BATCH_SIZE": (100, 50, 50),
    "LEARNING_RATE": (0.004, 0.003, 0.0015), "WARM_UP": (1, 300, 300), "BETA_2": (0.99, 0.9, 0.9),
    "CHANNELS": ((56, 32), (56, 32), (28, 32)),
}
CHOICES = {
    "MODEL": ("mlp", "dcgan"), "PRIOR": ("normal", "sphere"), "OUTPUT": ("sigmoid", "tanh"),
    "ACTIVATION": ("relu", "leaky_relu", "tanh"), "LOSS": ("non-saturating", "minimax"),
    "BATCH_NORM": (True, "G", False), "AUGMENT": (True, False), "LR_DECAY": (True, False),
    **dict.fromkeys([*DEFAULTS, "EARLY_STOP"], (None,)),
}
LIMITS = {  # least and greatest; where these are whole, only whole numbers are accepted
    "IMAGE_SIZE": (2, 1024), "SEED": (0, 2**31 - 1), "Z_SIZE": (1, 65536), "CATEGORIES": (1, 1000),
    "G_HIDDEN": (1, 65536), "D_HIDDEN": (1, 65536), "CHANNELS": (1, 4096), "KERNEL": (2, 15),
    "LEAK": (0.0, 1.0), "SMOOTH": (0.0, 0.5), "GRADIENT_PENALTY": (0.0, 1e9),
    "PENALTY_EVERY": (1, 1000), "EPOCHS": (1, 10**6), "BATCH_SIZE": (2, 10**6),
    "LEARNING_RATE": (1e-12, 1e12), "WARM_UP": (1, 10**6), "G_RATE": (0.01, 100.0),
    "BETA_1": (0.0, 0.999999), "BETA_2": (0.0, 0.999999), "D_STEPS": (1, 20), "G_STEPS": (1, 20),
    "EMA": (0.0, 0.9999999), "GRID": (1, 64),
}
LISTS = {  # settings that are several numbers, or can be
    "G_HIDDEN": "several: 256,512", "D_HIDDEN": "several: 512,256", "IMAGE_SIZE": "width,height",
    "CHANNELS": "G,D", "PRIOR": "low,high", "EARLY_STOP": "low,high",
}
# fmt: on
PATHS = "DATA", "OUT"
SETTINGS = [*PATHS, *(LIMITS | CHOICES)]


def accepts(name, value):
    """Return whether the setting of that name can have that value."""
    if name in PATHS:
        return isinstance(value, str) and value != ""
    if repr(value) in map(repr, CHOICES.get(name, ())):  # repr, as 1 == True
        return True
    several = isinstance(value, tuple)
    if name not in (LISTS if several else LIMITS):
        return False
    low, high = LIMITS.get(name, (-math.inf, math.inf))
    numbers = value if several else (value,)
    if not all(type(number) in (int, type(low)) and low <= number <= high for number in numbers):
        return False
    if several and "HIDDEN" not in name:  # a pair
        return len(value) == 2 and (LISTS[name] != "low,high" or value[0] < value[1])
    return True


def check(name, value, written):
    """Return the value of a setting, a list as a tuple. Raises Problem if it cannot have it."""
    value = tuple(value) if isinstance(value, list) else value
    if not accepts(name, value):
        takes = [str(choice) for choice in CHOICES.get(name, ())] + [LISTS.get(name, "")]
        if name in LIMITS:
            low, high = LIMITS[name]
            kind = "a whole number" if isinstance(low, int) else "a number"
            takes.insert(0, f"{kind}, {low} to {high}")
        takes = " or ".join(filter(None, takes)) or "a path"
        raise Problem(f"{name}={written}: it must be {takes}")
    return value


def parse_setting(word):
    """Return (name, value) of NAME=value, whose value is a literal, otherwise a string."""
    name, equals, text = word.partition("=")
    if not equals:
        raise Problem(f"{word}: a setting is written NAME=value, with no spaces around =")
    if name not in SETTINGS:
        raise Problem(f"no setting {name}; see --help")
    try:
        value = text if name in PATHS else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    return name, check(name, value, text)


def current_settings():
    """Return the value of every setting by its name."""
    return {name: globals()[name] for name in SETTINGS}


def change_settings(changes):
    """Set all settings, with these changes and None replaced. Raises Problem for a bad one."""
    settings = current_settings() | changes
    for name, value in settings.items():
        if value is None and name in DEFAULTS:
            value = DEFAULTS[name][settings["MODEL"] == "dcgan"]
        settings[name] = check(name, value, repr(value))
    settings["OUT"] = os.path.expanduser(settings["OUT"])
    if settings["DATA"] not in ("mnist", "digits"):  # a path, to resume from anywhere
        settings["DATA"] = os.path.abspath(os.path.expanduser(settings["DATA"]))
    globals().update(settings)


def describe(name, images, gan, folder):
    """Print what is going to be trained, on what."""
    count, height, width, channels = images.shape
    colour = "grey" if channels == 1 else "RGB"
    gpus = len(tf.config.list_logical_devices("GPU"))
    print(f"data           {name}: {count:,} {colour} images, {width} x {height}")
    for network in (gan.generator, gan.discriminator):
        print(f"{network.name:14} {network.count_params():,} parameters")
    print(f"device         {f'{gpus} GPU' if gpus else 'CPU'}, replicas: {gan.replicas}")
    done = f", {gan.epoch} done" if gan.epoch else ""
    print(f"training       {EPOCHS} epochs of {gan.epoch_iterations:,} iterations{done}")
    print(f"noise          {Z_SIZE} numbers, categories: {CATEGORIES}")
    print(f"rates          D {LEARNING_RATE:g}, G {LEARNING_RATE * G_RATE:g}", end="; ")
    print(f"penalty {GRADIENT_PENALTY:g}")
    if np.ptp(images[:: max(1, count // 1000)]) < 26:
        print("note           these images hardly differ from one plain colour; is that right?")
    if channels == 3 and MODEL == "mlp":
        print("note           an mlp blurs photographs; better: python gan.py MODEL=dcgan ...")
    elif channels == 3 and count < 2000 and not AUGMENT:
        print("note           D may memorise so few images; better: AUGMENT=True")
    print(f"run            {folder}")
    print("               its index.html shows it in a browser\n")


def run(resume, run_folder, changes):
    """Train a new run or resume one; return the exit status. Raises Problem."""
    folder = None
    if resume:
        folder, settings = open_run(run_folder, changes.get("OUT", OUT))
        change_settings(settings)
        for name, value in current_settings().items():
            if name in FIXED and changes.get(name, value) != value:
                raise Problem(f"{name}={value!r} is fixed in this run; start a new one")
    given = current_settings() | changes  # with None where nothing is given
    change_settings(changes)
    strategy = tf.distribute.get_strategy()  # one device
    if "TF_CONFIG" in os.environ:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    elif len(tf.config.list_physical_devices("GPU")) > 1:
        strategy = tf.distribute.MirroredStrategy()
    name, images = load_images()
    if name == "digits" and DATA == "mnist":  # MNIST failed to load
        if resume:
            raise Problem(f"DATA={DATA} failed to load, so this run cannot be resumed")
        change_settings({"DATA": name})
    if MODEL == "dcgan" and max(images.shape[1:3]) > 32:
        change_settings({each: DEFAULTS[each][2] for each in DEFAULTS if given[each] is None})
    devices, most = strategy.num_replicas_in_sync, max(2, len(images) // D_STEPS)
    size = min(BATCH_SIZE, most) // devices * devices
    if size != BATCH_SIZE:
        have = f"{len(images)} images on {devices} device(s)"
        raise Problem(f"BATCH_SIZE={BATCH_SIZE} does not fit {have}: try BATCH_SIZE={size}")
    gan = GAN(images, strategy)
    saved_in = folder
    if not gan.strategy.extended.should_checkpoint:  # another worker keeps the run
        scratch = tempfile.TemporaryDirectory()
        folder, sys.stdout = Path(scratch.name), open(os.devnull, "w")
    folder = folder or make_folder(name)
    with lock(folder):
        if resume:
            restore(gan, saved_in)
        for leftover in folder.rglob("tmp-[0-9]*-*"):  # of a killed process
            leftover.unlink()
        text = json.dumps(current_settings(), indent=1)
        write(folder / "settings.json", lambda temporary: temporary.write_text(text))
        describe(name, images, gan, folder)
        return train_run(gan, images, folder)


def train_run(gan, images, folder):
    """Train in the run's folder, to the end or until Ctrl-C; return the exit status."""
    signals, began = [], time.perf_counter()
    command = f'python gan.py --resume --run "{folder}"'  # as sh and cmd.exe take it

    def stop(number, _):  # after the current chunk; a second signal ends it at once
        signals.append(number)
        signal.signal(number, handlers[number])

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        finished = train(gan, images, folder, signals)
        save_history(folder)
        if CATEGORIES > 1:
            write(folder / "categories.png", picture_categories(gan.average).save)
        save_page(folder, gan, training=False)
        if not finished:
            print(f"\nStopped; nothing is lost. To continue:\n    {command}")
            return 128 + signals[0]
        more = f"EPOCHS={2 * gan.epoch}" if gan.epoch >= EPOCHS else "EARLY_STOP=None"
        seconds = time.perf_counter() - began
        print(f"\nDone in {seconds:.0f} s: see {folder}. To train longer:\n    {command} {more}")
        return 0
    except (MemoryError, tf.errors.ResourceExhaustedError):
        tell(f"out of memory; try a smaller BATCH_SIZE. To continue: {command}")
    except (OSError, ArithmeticError, tf.errors.OpError) as error:
        tell(f"{str(error)[:500]}; saved files are intact. To continue: {command}")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    with contextlib.suppress(OSError):
        save_page(folder, gan, training=False)
    return 1


def sample(count, run_folder, changes, category=None):
    """Save count new images, or of one category; return the exit status. Raises Problem."""
    if count < 1 or changes.keys() - {"SEED", "OUT", "GRID"}:
        raise Problem("--sample needs a number above 0, and accepts only SEED, OUT and GRID")
    folder, settings = open_run(run_folder, changes.get("OUT", OUT))
    change_settings(settings | changes)
    if category is not None and not 0 <= category < CATEGORIES:
        raise Problem(f"--category {category}: this run has 0 to {CATEGORIES - 1}")
    file, generated = folder / "generator.keras", folder / "generated"
    try:
        generator = keras.saving.load_model(file, compile=False)
    except Exception as error:
        raise Problem(f"{file}, saved after each epoch, cannot be used: {error}") from None
    generated.mkdir(exist_ok=True)
    for old in generated.glob("[0-9]" * 5 + "*.png"):
        if old.stem.isdecimal():  # of an older call, not a user's own
            old.unlink()
    for start in range(0, count, 500):
        noise = in_category(draw_noise(500, SAMPLE_KEY - start), category)
        for i, image in enumerate(generate(generator, noise)[: count - start], start):
            Image.fromarray(np.squeeze(image)).save(generated / f"{i:05}.png")
    noise = in_category(draw_noise(GRID**2, SAMPLE_KEY), category)
    write(folder / "grid.png", tile(generate(generator, noise), GRID).save)
    if CATEGORIES > 1:
        write(folder / "categories.png", picture_categories(generator).save)
    # A row walks from one z to another in one category.
    rows = np.linspace(0, CATEGORIES - 1, 10, dtype=int) if category is None else [category] * 10
    starts, ends = in_category(draw_noise(20, WALK_KEY), [*rows, *rows]).reshape(2, 10, -1)
    walks = np.linspace(starts, ends, 10, axis=1).reshape(100, -1)
    write(folder / "interpolation.png", tile(generate(generator, walks), 10).save)
    print(f"{count:,} images in {generated}; see also grid.png and interpolation.png in {folder}")
    return 0


def main(arguments=None):
    """Run the command line, or these words; return the exit status: 2 bad input, 1 failed later."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("settings", nargs="*", metavar="NAME=value")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--sample", type=int, metavar="N")
    parser.add_argument("--category", type=int, metavar="K")
    parser.add_argument("--run", metavar="FOLDER")
    options = parser.parse_intermixed_args(arguments)
    before = current_settings()
    try:
        if options.help:
            source = Path(__file__).read_text("utf-8")
            block = source.partition("# fmt: off\n")[2].partition("# fmt: on")[0]
            print(f"{__doc__}\nSettings, with their defaults:\n\n{block}")
            return 0
        changes = dict(map(parse_setting, options.settings))
        if options.sample is not None:
            return sample(options.sample, options.run, changes, options.category)
        if options.category is not None:
            raise Problem("--category goes with --sample N")
        return run(options.resume or options.run, options.run, changes)
    except Problem as problem:
        tell(problem)
        return 2
    except (OSError, MemoryError, tf.errors.OpError) as error:
        tell(error)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        globals().update(before)  # settings hold for one run


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):  # not in a notebook
        sys.stdout.reconfigure(line_buffering=True, errors="replace")
    pasted = "__file__" not in globals()  # into a notebook's cell: the words are the notebook's
    if status := main([] if pasted else None):
        sys.exit(status)
