"""A generative adversarial network (GAN) in one script (arXiv:1406.2661).

The generator (G) turns noise into images. The discriminator (D) looks at an
image and says whether it is real (1) or fake (0). Each is trained against the
other, in turns, until the fakes look real.

    python gan.py                       train on MNIST: see samples/mnist-001
    python gan.py EPOCHS=5 BETA_1=0.5   the same with other settings
    python gan.py --resume              go on with the newest run
    python gan.py --sample 1000         save 1,000 new images of the newest run
    python gan.py --run FOLDER          go on with that run, or --sample it
"""

import argparse
import ast
import contextlib
import gzip
import importlib.util
import json
import math
import os
import re
import shlex
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever ~/.keras/keras.json says
stderr = os.dup(2)  # keeps TensorFlow's remarks on missing GPUs off the screen while it loads
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
try:
    import keras
    import tensorflow as tf
    from keras import layers
finally:
    os.dup2(stderr, 2)

# ---- Settings: change them here, or for one run as in python gan.py EPOCHS=5 G_HIDDEN=256,512 ----
# fmt: off
DATA = "mnist"            # "mnist", "digits" (drawn, offline), or a path
IMAGE_SIZE = 64           # 2 to 1024 pixels: side of a folder's images
MODEL = "mlp"             # "mlp", or "dcgan": relu in G, leaky_relu in D
Z_SIZE = 14               # 1 to 65536: length of the noise vector z; see DCGAN
CATEGORIES = 28           # 1 to 1000: kinds that G draws; 1: off; see DCGAN
PRIOR = "sphere"          # "normal", "sphere" (normal, one length) or low,high
G_HIDDEN = 1024           # 1 to 65536 units in mlp's hidden layer; two: 256,512
D_HIDDEN = 768            # 1 to 65536 units in mlp's hidden layer; two: 512,256
CHANNELS = 32             # 1 to 4096: of a dcgan's outer stage; doubled inwards
ACTIVATION = "relu"       # of mlp's hidden layers: "relu", "leaky_relu", "tanh"
LEAK = 0.2                # 0.0 to 1.0: slope of leaky_relu below 0
OUTPUT = "sigmoid"        # "sigmoid": pixels in 0..1, or "tanh": in -1..1
BATCH_NORM = False        # True, "G" (in G only) or False: in hidden layers
AUGMENT = False           # True or False: D sees images altered; for few photos
LOSS = "non-saturating"   # of G: "non-saturating" or "minimax" (slower)
SMOOTH = 0.0              # 0.0 to 0.5: real images are labelled 1 - SMOOTH
GRADIENT_PENALTY = 0.05   # 0.0 to 1e9: keeps D smooth; see DCGAN
PENALTY_EVERY = 8         # 1 to 1000: iterations from one penalty to the next
EPOCHS = 19               # 1 to 1000000: passes over the data, 100+ iterations
BATCH_SIZE = 100          # 2 to 1000000: images per update, over all devices
LEARNING_RATE = 0.004     # 1e-12 to 1e12: of Adam for D; see DCGAN
G_RATE = 2.0              # 0.01 to 100: G's learning rate is so many times D's
LR_DECAY = True           # True or False: rates fall to 0 over EPOCHS
BETA_1 = 0.0              # 0.0 to 0.999999: Adam's decay of the mean gradient
BETA_2 = 0.99             # 0.0 to 0.999999: Adam's decay of its mean square
D_STEPS = 1               # 1 to 20: updates of D per iteration
G_STEPS = 1               # 1 to 20: updates of G per iteration
EMA = 0.999               # 0.0 to 0.9999999: decay of the average of G; 0: off
EARLY_STOP = None         # None, or low,high: stop when D(G(z)) lies between
GRID = 10                 # 1 to 64: pictures show GRID x GRID images
SEED = 0                  # 0 to 2147483647; same seed, same run (on a CPU)
OUT = "samples"           # folder of the runs
# A new run with MODEL=dcgan takes these instead; edit them here:
DCGAN = {"Z_SIZE": 64, "CATEGORIES": 1,
         "LEARNING_RATE": 0.0015, "GRADIENT_PENALTY": 0.1}
# fmt: on
# A comment is also the rule for its value: a quoted word, or a number "low to high".
BLOCK = Path(__file__).read_text("utf-8").partition("# fmt: off\n")[2].partition("# fmt: on")[0]
RULES = dict(re.findall(r"^([A-Z]\w*) = [^{\n]*?# (.*)", BLOCK, re.MULTILINE))


# ---- Networks ----
def noise_size():
    """Return the length of G's input: that of z, and a number for each of the CATEGORIES."""
    return Z_SIZE + (CATEGORIES if CATEGORIES > 1 else 0)


def stages(shape):
    """Return the shapes (H, W, C) of a dcgan's stages, from the image's own inwards."""
    shapes = [shape]
    while shape[0] % 2 == shape[1] % 2 == 0 and min(shape[:2]) > 7:
        shape = shape[0] // 2, shape[1] // 2, CHANNELS * 2 ** (len(shapes) - 1)
        shapes.append(shape)
    return shapes


def activate(x, activation, normalize):
    """Return x, the output of a hidden layer, normalized if wanted, then activated."""
    if normalize:
        several = tf.distribute.has_strategy()  # devices, which share their statistics
        x = layers.BatchNormalization(momentum=0.8, synchronized=several)(x)
    leaky = activation == "leaky_relu"
    return layers.LeakyReLU(LEAK)(x) if leaky else layers.Activation(activation)(x)


def build_generator(shape):
    """Return the generator: noise [n, noise_size()] -> images [n, *shape] in OUTPUT's range."""
    noise = keras.Input((noise_size(),))
    x = noise[:, :Z_SIZE]
    if PRIOR == "sphere":  # in here, so that the saved generator takes plain normal noise
        x = layers.Rescaling(math.sqrt(Z_SIZE))(layers.UnitNormalization()(x))
    if CATEGORIES > 1:  # the largest picks a kind, so G draws nothing between (arXiv:2006.04596)
        kind = keras.ops.argmax(noise[:, Z_SIZE:], -1)
        x = layers.Concatenate()([x, 3.0 * keras.ops.one_hot(kind, CATEGORIES)])
    if MODEL == "dcgan":  # of Radford 2015, arXiv:1511.06434: each stage doubles the sides
        *outer, first = stages(shape)
        x = layers.Dense(math.prod(first), kernel_initializer="he_normal")(x)
        x = layers.Reshape(first)(x)
        for _, _, channels in reversed(outer):
            x = activate(x, "relu", BATCH_NORM)
            x = layers.Conv2DTranspose(channels, 5, 2, "same", kernel_initializer="he_normal")(x)
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
        for i, (_, _, channels) in enumerate(stages(shape)[1:]):
            x = layers.Conv2D(channels, 5, 2, "same", kernel_initializer="he_normal")(x)
            x = activate(x, "leaky_relu", normalize and i > 0)  # not where images come in
    x = layers.Flatten()(x)
    if MODEL == "mlp":
        for units in np.atleast_1d(D_HIDDEN).tolist():
            x = activate(layers.Dense(units)(x), ACTIVATION, normalize)
    return keras.Model(images, layers.Dense(1)(x), name="discriminator")


# ---- The GAN ----
EMA_EVERY = 10  # iterations: one averaging takes a tenth of an iteration's time
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
    if LOSS == "minimax":  # minus D's second term, with hardly a gradient while D wins
        return -cross_entropy(0.0, fake_logits)
    return cross_entropy(1.0, fake_logits)


def draw_noise(count, key):
    """Return noise [count, noise_size()] from PRIOR: a function of SEED and key, a whole number."""
    shape, seed = (count, noise_size()), tf.stack([SEED, tf.cast(key, tf.int64)])
    if isinstance(PRIOR, str):
        return tf.random.stateless_normal(shape, seed)
    return tf.random.stateless_uniform(shape, seed, *PRIOR)


def augment(images, key):
    """Return images [n, H, W, C] mirrored, shifted, partly blanked at random (arXiv:2006.10738)."""
    height, width = images.shape[1:3]
    draws = tf.random.stateless_uniform((5, tf.shape(images)[0], 1), (SEED, key))
    down, right, mirror, y, x = tf.unstack(draws)  # [n, 1] each, in 0..1; y, x: of the blank
    rows = tf.range(height) + tf.cast(down * (height // 8 * 2 + 1), tf.int32) - height // 8
    columns = tf.range(width) + tf.cast(right * (width // 8 * 2 + 1), tf.int32) - width // 8
    columns = tf.where(mirror < 0.5, columns, width - 1 - columns)
    # Rows and columns are moved by a product with ones and zeros.
    rows = tf.one_hot(tf.clip_by_value(rows, 0, height - 1), height)
    columns = tf.one_hot(tf.clip_by_value(columns, 0, width - 1), width)
    images = tf.einsum("nyh,nxw,nhwc->nyxc", rows, columns, images)
    y = tf.abs(tf.range(height) / height - tf.cast(y, tf.float64)) < 0.25  # [n, H]
    x = tf.abs(tf.range(width) / width - tf.cast(x, tf.float64)) < 0.25
    return tf.where(y[:, :, None, None] & x[:, None, :, None], to_floats(127.5), images)


def to_floats(pixels):
    """Return pixels of 0..255 as floats in OUTPUT's range."""
    floats = tf.cast(pixels, tf.float32)
    return floats / 127.5 - 1.0 if OUTPUT == "tanh" else floats / 255.0


class FusedAdam(keras.optimizers.Adam):
    """Keras' Adam (arXiv:1412.6980), one fused kernel per variable: a quarter faster in all."""

    def update_step(self, gradient, variable, learning_rate):
        """Move the variable by its gradient, both of one shape."""
        index = self._get_variable_index(variable)
        m, v = (slots[index].value.handle for slots in (self._momentums, self._velocities))
        step = tf.cast(self.iterations + 1, tf.float32)
        rates = {"beta1": self.beta_1, "beta2": self.beta_2, "lr": learning_rate, "epsilon": 1e-7}
        rates |= {"beta1_power": self.beta_1**step, "beta2_power": self.beta_2**step}
        tf.raw_ops.ResourceApplyAdam(var=variable.handle, m=m, v=v, grad=gradient, **rates)


class GAN:
    """Both networks, their optimizers, and the moving average of the generator (EMA)."""

    def __init__(self, images, strategy=None):
        """Build everything for images, uint8 [N, H, W, C], on the devices of the strategy."""
        keras.utils.set_random_seed(SEED)
        self.data_shape, shape = images.shape, images.shape[1:]
        self.iterations = max(100, len(images) // (D_STEPS * BATCH_SIZE))  # of an epoch
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
        self.epoch = self.position = self.step = 0  # epochs; images of the next; iterations
        self.rows = []  # of losses.csv, one for each epoch done
        batches = tf.TensorSpec((None, D_STEPS, BATCH_SIZE, *shape), tf.uint8)
        count = tf.TensorSpec((), tf.int64)
        self.train = tf.function(self.train_batches, input_signature=(batches, count, count))

    def variables(self):
        """Return every variable that training changes: what a checkpoint holds."""
        parts = self.generator, self.average, self.discriminator, self.g_optimizer, self.d_optimizer
        return [self.sums] + [variable for part in parts for variable in part.variables]

    def train_batches(self, batches, step, seen):
        """Do an iteration for each of batches; step, seen: iterations and images before these."""
        total = EPOCHS * self.iterations * D_STEPS * BATCH_SIZE
        for i in tf.range(tf.shape(batches, tf.int64)[0]):
            done = (seen + i * D_STEPS * BATCH_SIZE) / total if LR_DECAY else 0.0
            rate = tf.cast(LEARNING_RATE * tf.maximum(1.0 - done, 0.0), tf.float32)
            self.d_optimizer.learning_rate.assign(rate)
            self.g_optimizer.learning_rate.assign(rate * G_RATE)
            # The penalty doubles D's work, and does as well every few iterations, weighted more.
            if GRADIENT_PENALTY and (step + i) % PENALTY_EVERY == 0:
                self.iterate(batches[i], step + i, GRADIENT_PENALTY / 2 * PENALTY_EVERY)
            else:
                self.iterate(batches[i], step + i, 0.0)
            if EMA and (step + i) % EMA_EVERY == 0:
                # The decay warms up, so that the first, random weights are soon forgotten.
                warm_up = (step + i + 1) / (step + i + 10)
                decay = tf.minimum(tf.cast(warm_up, tf.float32), EMA) ** EMA_EVERY
                for average, value in zip(self.average.variables, self.generator.variables):
                    average.assign_add((1.0 - decay) * (value - average))

    def iterate(self, batches, step, penalty_weight):
        """Do an iteration on every replica and add its metrics to the epoch's sums."""
        metrics = self.strategy.run(self.iterate_replica, (batches, step, penalty_weight))
        metrics = self.strategy.reduce("MEAN", metrics, axis=None)
        self.sums.assign_add(tf.cast(metrics, tf.float64))

    def iterate_replica(self, batches, step, penalty_weight):
        """Do D_STEPS updates of D, then G_STEPS of G; return 1 and the METRICS of the last ones."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        size = BATCH_SIZE // self.replicas  # each replica has its own slice of every batch
        updates = D_STEPS + G_STEPS - 1  # D's last update and G's first one share their fakes
        first = step * updates * self.replicas + tf.cast(replica, tf.int64)
        keys = [first + k * self.replicas for k in range(updates)]  # that no other update has

        for k in range(D_STEPS):
            real = to_floats(batches[k, replica * size : (replica + 1) * size])
            with tf.GradientTape() as tape:  # for G's update, below
                fake = self.generator(draw_noise(size, keys[k]), training=True)
            d_loss, *others = self.update_discriminator(real, fake, 3 * keys[k], penalty_weight)

        for k in range(D_STEPS - 1, updates):
            if k >= D_STEPS:
                with tf.GradientTape() as tape:
                    fake = self.generator(draw_noise(size, keys[k]), training=True)
            with tape:  # records on: the fakes are now judged by the updated D
                g_loss = generator_loss(self.judge(fake, 3 * keys[k] + 2))
            self.descend(tape, g_loss, self.generator, self.g_optimizer)
        return tf.stack((1.0, d_loss, g_loss, *others))

    def judge(self, images, key):
        """Return D's logits [n, 1] for images [n, H, W, C], with AUGMENT for altered ones."""
        return self.discriminator(augment(images, key) if AUGMENT else images, training=True)

    def update_discriminator(self, real, fake, key, penalty_weight):
        """Update D on images [n, H, W, C]; return its loss, D(x), D(G(z)) and accuracy."""
        with tf.GradientTape() as tape:
            # Two passes, so that batch normalisation never mixes real images with fakes.
            real_logits, real_penalty = self.logits_and_penalty(real, key, penalty_weight)
            fake_logits, fake_penalty = self.logits_and_penalty(fake, key + 1, penalty_weight)
            d_loss = discriminator_loss(real_logits, fake_logits)
            loss = d_loss + penalty_weight * (real_penalty + fake_penalty)
        self.descend(tape, loss, self.discriminator, self.d_optimizer)
        correct = tf.concat((real_logits > 0, fake_logits < 0), 0)
        means = tf.sigmoid(real_logits), tf.sigmoid(fake_logits), tf.cast(correct, tf.float32)
        return d_loss, *map(tf.reduce_mean, means)

    def logits_and_penalty(self, images, key, wanted):
        """Return D's logits [n, 1] and, if wanted, their mean squared gradient at the images."""
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = self.judge(images, key)
        if not wanted:
            return logits, 0.0
        slopes = tape.gradient(logits, images)  # small ones keep D smooth (arXiv:1801.04406)
        return logits, tf.reduce_sum(tf.square(slopes)) / tf.cast(len(images), tf.float32)

    def descend(self, tape, loss, network, optimizer):
        """Let the optimizer lower the loss, recorded by tape, by changing the network."""
        variables = network.trainable_variables
        share = tf.constant(1.0 / self.replicas)  # as the optimizer adds up all replicas' gradients
        optimizer.apply_gradients(zip(tape.gradient(loss, variables, share), variables))


# ---- Data: every source becomes one array, uint8 [N, H, W, C], grey (C = 1) or RGB (C = 3) ----
# ruff: noqa: BLE001, SIM115 - damaged files raise nearly anything
MNIST_FILE = "train-images-idx3-ubyte.gz"
MNIST_SHA256 = "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://dataset.bj.bcebos.com/mnist/",  # in Beijing
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
SILENCE = 10  # seconds
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
FORMATS = "PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"  # PostScript would run another program


class Problem(Exception):
    """Bad input, which is told to the user in one line, with exit status 2."""


def tell(message):
    """Print a message to stderr, in one line."""
    print("gan.py:", " ".join(str(message).split()), file=sys.stderr, flush=True)


def show_progress(text):
    """Show text in the terminal's last line, until something else is printed there."""
    if sys.stdout.isatty():
        print(f"{text:78}", end="\r", flush=True)


def load_images():
    """Return (name, images) of DATA, or of "digits" for want of MNIST. Raises Problem."""
    if DATA == "mnist":
        try:
            return DATA, load_mnist()
        except ConnectionError as error:
            print(f"{'!' * 78}\n{error}\nThis run takes DRAWN DIGITS instead.\n{'!' * 78}\n")
            globals().update(DATA="digits")
    if DATA == "digits":
        return DATA, draw_digits(20000)
    path = Path(DATA)
    if not path.exists():
        raise Problem(f'DATA={DATA}: no such file or folder, nor "mnist" or "digits"')
    files = filter(Path.is_file, (path, *sorted(path.glob("*train-images*idx3-ubyte*"))))
    file = next(files, None)
    return path.stem, read_file(file) if file else read_folder(path)


def load_mnist():
    """Return MNIST's images from Keras' cache, else from the web. Raises ConnectionError."""
    home, reasons = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras"), []
    socket.setdefaulttimeout(SILENCE)  # else a silent mirror is waited for
    for source in ("mnist.npz", *MIRRORS):
        file = home / "datasets" / source
        try:
            if source in MIRRORS:
                url = source + MNIST_FILE
                file = keras.utils.get_file(None, url, file_hash=MNIST_SHA256, cache_dir=home)
            return read_file(file)
        except Exception as error:
            reasons.append(f"    {source}: {error}\n")
    advice = f"Put {MNIST_FILE}, from any mirror, into {home / 'datasets'}"
    raise ConnectionError(f"MNIST could not be had:\n{''.join(reasons)}{advice}")


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
            head = file.read(6)
        if head == b"\x93NUMPY":
            return as_images(np.load(path, mmap_mode="r", allow_pickle=False))
        if head[:2] == b"PK":
            with np.load(path, allow_pickle=False) as arrays:
                names = (name for name in ("x_train", "images", *arrays) if name in arrays)
                fitting = (array for array in map(arrays.get, names) if np.ndim(array) in (3, 4))
                return as_images(next(fitting, np.empty(0)))
        with gzip.open(path) if head[:2] == b"\x1f\x8b" else open(path, "rb") as file:
            content = file.read()
        if content[:3] != b"\0\0\x08":  # IDX of unsigned bytes, as MNIST
            raise ValueError("no images in IDX, .npz or .npy form")
        shape = np.frombuffer(content, ">u4", content[3], offset=4)
        return as_images(np.frombuffer(content, np.uint8, offset=4 + shape.nbytes).reshape(shape))
    except Exception as error:
        raise Problem(f"{path} cannot be used: {error}") from None


def as_images(array):
    """Return array [N, H, W], [N, H, W, C] or [N, C, H, W] as images, numbers scaled to 0..255."""
    array = array[..., np.newaxis] if array.ndim == 3 else array
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = np.moveaxis(array, 1, 3)  # PyTorch's order
    if array.ndim != 4 or array.shape[3] not in (1, 3) or array.size == 0:
        raise ValueError(f"its shape is {array.shape}, not [N, H, W], [N, H, W, 1] or [N, H, W, 3]")
    if array.dtype == np.uint8:
        return array
    low, high = np.float64(array.min()), np.float64(array.max())
    if array.dtype.kind in "iu" and low >= 0 and 128 <= high <= 255:
        low, high = 0, 255  # they are pixels already
    if not 0 < high - low < math.inf:
        raise ValueError(f"its numbers reach from {low} to {high}")
    images = np.empty(array.shape, np.uint8)
    for image, numbers in zip(images, array):  # one by one: the file may be large
        image[:] = np.rint((numbers - low) * (255 / (high - low)))
    return images


def read_folder(folder):
    """Return the images below folder, as squares. Raises Problem."""
    runs = {file.parent for file in folder.rglob("epoch-000.png")}  # our own pictures are no data
    files = (file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    files = sorted(file for file in files if file.is_file() and runs.isdisjoint(file.parents))
    images, good = np.empty((len(files), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8), []
    with ThreadPool() as pool:
        for usable in pool.imap(read_picture, zip(files, images), chunksize=10):
            good.append(usable)
            show_progress(f"reading images: {len(good):,} of {len(files):,}")
    if not any(good):
        raise Problem(f"DATA={DATA}: no usable image ({' '.join(PICTURES)}) in this folder")
    images = images if all(good) else images[good]
    grey = all((image == image[..., :1]).all() for image in images)
    return np.ascontiguousarray(images[..., :1]) if grey else images


def read_picture(pair):
    """Read the file of pair = (file, pixels [H, W, 3]) into the pixels; return if that worked."""
    file, pixels = pair
    side = pixels.shape[:2]
    try:
        with Image.open(file, formats=FORMATS) as picture:
            picture.draft("RGB", side)  # a large JPEG is decoded at part size
            picture = ImageOps.exif_transpose(picture)
            if picture.mode[0] == "I":  # 16 bits, which Pillow would clip
                picture = Image.fromarray(np.uint8(np.asarray(picture) // 257))
            if picture.has_transparency_data:
                picture = ImageOps.fit(picture.convert("RGBA"), side)
                picture = Image.alpha_composite(Image.new("RGBA", side, "black"), picture)
            pixels[:] = ImageOps.fit(picture.convert("RGB"), side)
        return True
    except Exception as error:
        tell(f"warning: skipped {file}: {error}")
        return False


# ---- Runs: each has its folder of pictures, figures and checkpoints, from which it can go on ----
CHECKPOINT_SECONDS = 600  # between checkpoints in a long epoch
COLUMNS = "epoch", *METRICS, "spread", "images/s", "seconds"
# What a resumed run cannot change.
FIXED = ["DATA", "IMAGE_SIZE", "SEED", "MODEL", "Z_SIZE", "CATEGORIES", "PRIOR", "G_HIDDEN"]
FIXED += ["D_HIDDEN", "CHANNELS", "OUTPUT", "BATCH_NORM", "GRID"]


def write(path, save):
    """Have save(temporary) write a file, then rename it: a crash leaves path whole, old or new."""
    temporary = path.with_name(f"tmp-{os.getpid()}-{path.name}")
    try:
        save(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
        raise Problem(f"no folder for the run: {error}; try OUT=...") from None


def lock(folder):
    """Return what keeps other processes out of the run until it is closed. Raises Problem."""
    database = sqlite3.connect(folder / "lock", timeout=0)  # its lock ends with the process
    try:
        database.execute("BEGIN EXCLUSIVE")
        return database
    except sqlite3.OperationalError:
        raise Problem(f"{folder} is in use by another process") from None


def open_run(run, out):
    """Return (folder, settings) of the run, or if it is None of the newest one in out."""
    files = [Path(run, "settings.json")] if run else Path(out).glob("*/settings.json")
    file = max(filter(Path.is_file, files), key=os.path.getmtime, default=None)
    if not file:
        raise Problem(f"{run or out}: no run there yet (no settings.json)")
    try:
        saved = {"CATEGORIES": 1} | json.loads(file.read_text())  # early runs had no CATEGORIES
    except (ValueError, TypeError) as error:
        raise Problem(f"{file} cannot be used: {error}") from None
    return file.parent, {name: saved[name] for name in RULES if name in saved}


def save_checkpoint(folder, gan):
    """Write all that training changes to one file in checkpoint/; keep the last three files."""
    values = [variable.numpy() for variable in gan.variables()]
    values += [gan.rows, (gan.epoch, gan.position, gan.step), gan.data_shape]
    file = folder / "checkpoint" / f"step-{gan.step:09}.npz"
    file.parent.mkdir(exist_ok=True)
    write(file, lambda temporary: np.savez(temporary, *values))
    for old in sorted(file.parent.glob("step-*.npz"), key=os.path.getmtime)[:-3]:
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
        if tuple(shape) != gan.data_shape:
            raise Problem(f"DATA={DATA} is now {gan.data_shape}, and was {tuple(shape.tolist())}")
        for variable, value in zip(gan.variables(), values, strict=True):
            variable.assign(value)
        gan.rows, (gan.epoch, gan.position, gan.step) = rows.tolist(), counters.tolist()
        return
    if files:  # else it was stopped before its first one
        raise Problem(f"{folder} has no checkpoint that can be read; start a new run")


# ---- Pictures ----
FONT = ImageFont.load_default(14)


def to_pixels(floats):
    """Return floats in OUTPUT's range as uint8 pixels."""
    floats = (floats + 1.0) * 127.5 if OUTPUT == "tanh" else floats * 255.0
    return np.clip(np.rint(floats), 0, 255).astype(np.uint8)


def generate(generator, noise):
    """Return the generator's uint8 images [n, H, W, C] for noise [n, noise_size()]."""
    n = max(1, min(500, 2**24 // math.prod(generator.output_shape[1:])))  # at a time: 64 MB
    parts = (generator(noise[i : i + n], training=False) for i in range(0, len(noise), n))
    return np.concatenate([to_pixels(part.numpy()) for part in parts])


def tile(images, columns):
    """Return a picture of images, uint8 [n, H, W, C], in rows of columns with thin gaps."""
    _, height, width, channels = images.shape
    gap = max(1, height // 32)
    images = np.pad(images, ((0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=80)
    rows = images.reshape(-1, columns, height + gap, width + gap, channels).swapaxes(1, 2)
    rows = rows.reshape(-1, columns * (width + gap), channels)
    rows = np.pad(rows, ((0, gap), (0, gap), (0, 0)), constant_values=80)
    picture = Image.fromarray(rows[..., 0] if channels == 1 else rows)
    scale = max(1, round(600 / picture.width))  # about 600 pixels, whatever the images' size
    return ImageOps.scale(picture, scale, Image.Resampling.NEAREST)


def plot(rows):
    """Return a chart, 800 x 500, of the rows' losses and, below, of how real D finds images."""
    picture = Image.new("RGB", (800, 500), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((750, 14), "dark lines: D is guessing", "black", FONT, "ra")
    epochs, d_loss, g_loss, real, fake, *_ = np.transpose(rows)
    xs = 60 + 690 * (epochs - epochs[0]) / max(1, epochs[-1] - epochs[0])
    # A few wild losses would flatten all others: what lies above the axis is marked at its end.
    low, high = np.percentile((d_loss, g_loss), (10, 90))
    axis = min(0, math.floor(low)), max(2, math.ceil(high))
    losses = ("D loss", d_loss), ("G loss", g_loss)
    judgements = ("D(x), of real images", real), ("D(G(z)), of fakes", fake)
    guesses = 1.39, -0.69 if LOSS == "minimax" else 0.69
    panels = (40, axis, guesses, losses), (285, (0, 1), (0.5,), judgements)
    step = math.ceil(len(rows) / 12)
    for top, (low, high), guessing, lines in panels:
        for level in (*np.linspace(low, high, 5), *guessing):
            y = top + 180 * (high - level) / (high - low)
            draw.line((60, y, 750, y), "#888888" if level in guessing else "#dddddd")
            x, anchor = (757, "lm") if level in guessing else (52, "rm")
            draw.text((x, y), f"{level:g}", "black", FONT, anchor)
        for x, epoch in zip(xs[step - 1 :: step], epochs[step - 1 :: step]):
            draw.text((x, top + 185), f"{epoch:.0f}", "black", FONT, "ma")
        for (name, line), color, left in zip(lines, ("#1f5fd0", "#d0451f"), (60, 260)):
            draw.text((left, top - 26), name, color, FONT)
            ys = top + 180 * (high - np.clip(line, low, high)) / (high - low)
            draw.line(list(zip(xs, ys)), color, 2, "curve")
            draw.circle((xs[-1], ys[-1]), 3, color)
            for x in xs[line > high]:
                draw.regular_polygon((x, top + 4, 5), 3, fill=color)
    return picture


def save_history(folder):
    """Write training.gif and, of the first rows of some epochs, progress.png."""
    files = sorted(folder.glob("epoch-*.png"), key=lambda file: int(file.stem[6:]))
    files = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, 100, dtype=int))]
    frames, rows, font = [], [], ImageFont.load_default(24)
    for file in files:
        picture = ImageOps.expand(Image.open(file).convert("RGB"), (130, 0, 0, 0), "white")
        ImageDraw.Draw(picture).text((120, 12), f"epoch {int(file.stem[6:])}", 0, font, "ra")
        frames.append(picture.reduce(picture.width // 350).quantize(64))
        rows.append(picture.crop((0, 0, picture.width, picture.height // GRID)))
    some = rows[:: -math.ceil(len(rows) / 11)][::-1]  # with the last one
    times = [max(80, 6000 // len(frames))] * (len(frames) - 1) + [2000]  # milliseconds
    options = {"save_all": True, "append_images": frames[1:], "duration": times, "loop": 0}
    write(folder / "training.gif", lambda temporary: frames[0].save(temporary, **options))
    write(folder / "progress.png", Image.fromarray(np.concatenate(some)).save)


# ---- Training ----
HEADER = " epoch   D loss  G loss   D(x)  D(G(z))  D acc  spread  images/s  seconds"
ROW = "{epoch:4.0f}/{0:<4}{d_loss:6.3f} {g_loss:7.3f}  {D(x):5.3f}   {D(G(z)):6.3f}"
ROW += "   {D accuracy:4.0%}  {spread:6.2f} {images/s:9,.0f} {seconds:8.1f}"
COLLAPSE = "   ! mode collapse, G makes one image again and again: try GRADIENT_PENALTY=1"
OVERPOWERED = "   ! D spots nearly all fakes, so G learns little: try GRADIENT_PENALTY=1"


def pixel_spread(images):
    """Return the mean over the pixels of their standard deviation over the images."""
    rows = (images[:, y] for y in range(images.shape[1]))  # one by one, as floats take memory
    return float(np.mean([np.std(row, axis=0, dtype=np.float64) for row in rows]))


def train(gan, images, folder, signals):
    """Train to the end of EPOCHS; return False if something in the list signals stopped it."""
    noise = draw_noise(max(256, GRID**2), -1)  # -1: a key that no iteration has
    real_spread = pixel_spread(images[:: max(1, len(images) // 1000)]) or 1.0
    installed, said = importlib.util.find_spec("tensorboard"), set()
    board = tf.summary.create_file_writer(str(folder)) if installed else None
    if gan.step == 0:
        some = np.linspace(0, len(images) - 1, GRID**2, dtype=int)
        write(folder / "real.png", tile(images[some], GRID).save)
        write(folder / "epoch-000.png", tile(generate(gan.average, noise)[: GRID**2], GRID).save)
    print(HEADER)
    first, began = gan.epoch + 1, time.perf_counter()
    while gan.epoch < EPOCHS:
        speed = train_epoch(gan, images, folder, signals)
        if not speed:
            return False
        fakes = generate(gan.average, noise)
        iterations, *sums = gan.sums.numpy().tolist()
        means, spread = [total / iterations for total in sums], pixel_spread(fakes) / real_spread
        seconds, began = time.perf_counter() - began, time.perf_counter()
        gan.rows.append([gan.epoch + 1.0, *means, spread, speed, seconds])
        gan.epoch, gan.position = gan.epoch + 1, 0
        gan.sums.assign(tf.zeros_like(gan.sums))
        row, picture = dict(zip(COLUMNS, gan.rows[-1])), tile(fakes[: GRID**2], GRID)
        save_epoch(gan, folder, picture)
        if board:
            with board.as_default(gan.epoch):
                for name in COLUMNS[1:]:
                    tf.summary.scalar(name, row[name])
                tf.summary.image("samples", np.atleast_3d(picture)[np.newaxis])
            board.flush()
        print(ROW.format(EPOCHS, **row))
        if gan.epoch == first < EPOCHS:
            left = (EPOCHS - first) * gan.iterations * D_STEPS * BATCH_SIZE / speed
            print(f"          about {left:,.0f} seconds to go")
        for text, true in ((COLLAPSE, spread < 0.5), (OVERPOWERED, row["D accuracy"] > 0.99)):
            if true and text not in said and gan.step >= 300:  # before that G is just untrained
                said.add(text)
                print(text)
        if EARLY_STOP and EARLY_STOP[0] <= row["D(G(z))"] <= EARLY_STOP[1]:
            return True
    return True


def train_epoch(gan, images, folder, signals):
    """Train on the rest of an epoch; return images per second, or None if signals stopped it."""
    random, stride = np.random.default_rng((SEED, gan.epoch)), D_STEPS * BATCH_SIZE
    length = gan.iterations * stride  # of the epoch, in images
    gan.position = min(gan.position, length - stride)  # a resumed run may have other batches
    passes = math.ceil(length / len(images))
    order = np.concatenate([random.permutation(len(images)) for _ in range(passes)])
    most = max(1, min(100, 2**26 // (stride * images[0].nbytes)))  # iterations in 64 MB
    saved, speeds, n = time.perf_counter(), [], 1
    while n := min(n, (length - gan.position) // stride):
        started = time.perf_counter()
        chosen = order[gan.position : gan.position + n * stride]
        batches = images[chosen].reshape(n, D_STEPS, BATCH_SIZE, *images.shape[1:])
        gan.train(batches, gan.step, gan.epoch * length + gan.position)
        gan.step += n
        gan.position += n * stride
        if not np.isfinite(gan.sums.numpy()).all():
            raise ArithmeticError(f"training diverged by step {gan.step:,}: lower LEARNING_RATE")
        now = time.perf_counter()
        more = gan.position + stride <= length
        if more and (signals or now - saved > CHECKPOINT_SECONDS):
            save_checkpoint(folder, gan)
            saved = now
            if signals:
                return None
        bar = "#" * round(gan.position / length * 30)
        speeds.append(n * stride / (now - started))
        show_progress(f"{gan.epoch + 1:4}/{EPOCHS:<4} [{bar:.<30}] {speeds[-1]:,.0f} images/s")
        # Half a second of work at a time keeps Ctrl-C quick; workers must all do the same.
        n = min(most, 20) if gan.replicas > 1 else max(1, min(most, int(0.5 * n / (now - started))))
    return float(np.median(speeds[1:] or speeds))


def save_epoch(gan, folder, picture):
    """Write all that an epoch leaves; last its checkpoint, so that a crash has it done again."""
    write(folder / f"epoch-{gan.epoch:03}.png", picture.save)
    table = {"fmt": "%.7g", "delimiter": ",", "header": ",".join(COLUMNS), "comments": ""}
    write(folder / "losses.csv", lambda temporary: np.savetxt(temporary, gan.rows, **table))
    write(folder / "losses.png", plot(gan.rows).save)
    write(folder / "generator.keras", gan.average.save)
    write(folder / "discriminator.keras", gan.discriminator.save)
    save_checkpoint(folder, gan)


# ---- Command line ----
def parse_setting(argument):
    """Return (name, value) of NAME=value, whose value is a literal or else a text."""
    name, _, value = argument.partition("=")
    value = os.path.expanduser(value)  # which zsh leaves to us
    if name == "DATA" and value not in ("mnist", "digits", ""):
        value = os.path.abspath(value)  # to resume from anywhere
    try:
        return name, value if name in ("DATA", "OUT") else ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def accepts(name, value):
    """Return whether the setting of that name can have that value, by the rule in its comment."""
    rule, numbers = RULES[name], value if isinstance(value, tuple) else (value,)
    if name in ("DATA", "OUT"):
        return isinstance(value, str) and value != ""
    if str(value) in re.findall(r'(?<=")[\w-]+(?=")|True|False|None', rule):
        return True
    kinds = (int,) if re.match(r"\d+ to", rule) else (int, float)
    if not numbers or not all(type(number) in kinds for number in numbers):
        return False
    if "low,high" in rule:
        return len(numbers) == 2 and numbers[0] < numbers[1]
    low, high = map(float, re.match(r"(\S+) to ([\d.e]+)|", rule).groups("nan"))
    fitting = len(numbers) == 1 or bool(re.search(r"\d,\d", rule))
    return fitting and all(low <= number <= high for number in numbers)


def change_settings(changes):
    """Set the settings to these, and check all of them. Raises Problem for a bad one."""
    if unknown := changes.keys() - RULES:
        raise Problem(f"no setting {', '.join(unknown)}; see --help")
    for name, rule in RULES.items():
        value = changes.get(name, globals()[name])
        value = globals()[name] = tuple(value) if isinstance(value, list) else value
        if not accepts(name, value):
            whole = "a whole number, " if re.match(r"\d+ to", rule) else ""
            raise Problem(f"{name}={value!r} will not do; it takes {whole}{rule}")


def describe(name, images, gan, folder):
    """Print what is going to be trained, on what."""
    count, height, width, channels = images.shape
    kind, gpus = "grey" if channels == 1 else "RGB", len(tf.config.list_logical_devices("GPU"))
    print(f"data           {name}: {count:,} {kind} images, {width} x {height}")
    for network in (gan.generator, gan.discriminator):
        print(f"{network.name:14} {network.count_params():,} parameters")
    print(f"device         {f'{gpus} GPU' if gpus else 'CPU'}, replicas: {gan.replicas}")
    print(f"training       {EPOCHS} epochs of {gan.iterations:,} iterations")
    if channels == 3 and MODEL == "mlp":
        print("note           an mlp blurs photographs; better: python gan.py MODEL=dcgan ...")
    elif channels == 3 and count < 2000 and not AUGMENT:
        print("note           D may memorise so few images; better: AUGMENT=True")
    print(f"run            {folder}\n")


def run(resume, run_folder, changes):
    """Train a new run or go on with one; return the exit status. Raises Problem."""
    if resume:
        folder, settings = open_run(run_folder, changes.get("OUT", OUT))
        change_settings(settings)
        for name in FIXED:
            if changes.get(name, globals()[name]) != globals()[name]:
                raise Problem(f"{name}={globals()[name]!r} is fixed in this run; start a new one")
    elif changes.get("MODEL", MODEL) == "dcgan":
        changes = DCGAN | changes
    change_settings(changes)
    strategy = None
    if "TF_CONFIG" in os.environ:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    elif len(tf.config.list_physical_devices("GPU")) > 1:
        strategy = tf.distribute.MirroredStrategy()
    name, images = load_images()
    count, most = len(images), max(2, len(images) // D_STEPS)
    if BATCH_SIZE > most:
        raise Problem(f"only {count} images, but BATCH_SIZE={BATCH_SIZE}: try BATCH_SIZE={most}")
    gan = GAN(images, strategy)
    if resume:
        restore(gan, folder)
    if not gan.strategy.extended.should_checkpoint:  # another worker keeps the run
        scratch = tempfile.TemporaryDirectory()
        folder, sys.stdout = Path(scratch.name), open(os.devnull, "w")
    elif not resume:
        folder = make_folder(name)
    with contextlib.closing(lock(folder)):
        for leftover in folder.rglob("tmp-*"):  # of a killed process
            leftover.unlink()
        text = json.dumps({name: globals()[name] for name in RULES}, indent=1)
        write(folder / "settings.json", lambda temporary: temporary.write_text(text))
        describe(name, images, gan, folder)
        return train_run(gan, images, folder)


def train_run(gan, images, folder):
    """Train in the run's folder, to the end or until Ctrl-C; return the exit status."""
    signals, began = [], time.perf_counter()
    command = f"python gan.py --resume --run {shlex.quote(folder.as_posix())}"

    def stop(number, _):  # training ends after the chunk at hand, or at a second signal at once
        signals.append(number)
        signal.signal(number, handlers[number])

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        finished = train(gan, images, folder, signals)
        save_history(folder)
        if not finished:
            print(f"\nStopped; nothing is lost. To go on:\n    {command}")
            return 128 + signals[0]
        more = f"EPOCHS={2 * gan.epoch}" if gan.epoch >= EPOCHS else "EARLY_STOP=None"
        seconds = time.perf_counter() - began
        print(f"\nDone in {seconds:.0f} s: see {folder}. To train longer:\n    {command} {more}")
        return 0
    except (MemoryError, tf.errors.ResourceExhaustedError):
        tell(f"out of memory; try a smaller BATCH_SIZE. To go on: {command}")
    except (OSError, ArithmeticError, tf.errors.OpError) as error:
        tell(f"{str(error)[:500]}; what was saved is whole. To go on: {command}")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 1


def sample(count, run_folder, changes):
    """Save count new images of a run's generator; return the exit status. Raises Problem."""
    if count < 1 or changes.keys() - {"SEED", "OUT"}:
        raise Problem("--sample takes a number of images above 0, and no settings but SEED and OUT")
    folder, settings = open_run(run_folder, changes.get("OUT", OUT))
    change_settings(settings | changes)
    file, generated = folder / "generator.keras", folder / "generated"
    try:
        generator = keras.saving.load_model(file, compile=False)
    except Exception as error:
        raise Problem(f"{file} cannot be used: {error}") from None
    generated.mkdir(exist_ok=True)
    for old in generated.glob("*.png"):
        old.unlink()  # of an older call: these do not mix
    for start in range(0, count, 500):
        images = generate(generator, draw_noise(500, -3 - start))[: count - start]
        for i, image in enumerate(images, start):
            Image.fromarray(np.squeeze(image)).save(generated / f"{i:05}.png")
    write(folder / "grid.png", tile(generate(generator, draw_noise(GRID**2, -3)), GRID).save)
    ends = draw_noise(20, -4).numpy().reshape(2, 10, -1)
    kinds = np.arange(10)[:, np.newaxis] % CATEGORIES == np.arange(ends.shape[2] - Z_SIZE)
    ends[:, :, Z_SIZE:] = kinds  # a row walks from one z to another in one kind
    walks = np.linspace(*ends, 10, axis=1).reshape(100, -1)
    write(folder / "interpolation.png", tile(generate(generator, walks), 10).save)
    print(f"{count:,} images in {generated}; see also grid.png and interpolation.png in {folder}")
    return 0


def main(arguments=None):
    """Run the command line, or these words; return the exit status: 2 bad input, 1 broken later."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nsettings, with their defaults:\n\n{BLOCK}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="NAME=value")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--sample", type=int, metavar="N")
    parser.add_argument("--run", metavar="FOLDER")
    options = parser.parse_intermixed_args(arguments)
    defaults = {name: globals()[name] for name in RULES}
    try:
        globals().update([parse_setting(f"DATA={DATA}")])  # as edited above
        changes = dict(map(parse_setting, options.settings))
        if options.sample is not None:
            return sample(options.sample, options.run, changes)
        return run(options.resume or options.run, options.run, changes)
    except Problem as problem:
        tell(problem)
        return 2
    except (OSError, MemoryError, tf.errors.OpError) as error:
        tell(error)
        return 1
    finally:
        globals().update(defaults)  # what was set is for one run


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # before training, Ctrl-C just ends the process
    sys.stdout.reconfigure(line_buffering=True, errors="replace")
    sys.exit(main())
