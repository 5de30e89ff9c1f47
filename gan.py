"""A generative adversarial network (GAN) in one script (Goodfellow et al. 2014, arXiv:1406.2661).

    python gan.py                     train on MNIST; pictures appear in samples/mnist-001/
    python gan.py EPOCHS=5 DATA=faces/       change any of the settings below for one run
    python gan.py --resume            go on with the newest run, or --run FOLDER
    python gan.py --help              all options and settings

The generator turns noise into images. The discriminator looks at an image and says whether it
is real (1) or fake (0). Each is trained against the other until the fakes look real.
"""

import argparse
import ast
import csv
import difflib
import gzip
import hashlib
import io
import json
import math
import os
import queue
import re
import signal
import sys
import textwrap
import threading
import time
import urllib.request
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
stderr = os.dup(2)  # while TensorFlow is imported, keep its remarks on missing GPUs off the screen
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
try:
    import keras
    import tensorflow as tf
    from keras import layers
finally:
    os.dup2(stderr, 2)

# ------------------------------------------------------------------------------------------------
# Settings: change them here, or for one run on the command line as in EPOCHS=5 G_HIDDEN=256,512
# ------------------------------------------------------------------------------------------------
# fmt: off
DATA = "mnist"            # "mnist", "digits" (drawn, offline), or a path: a folder
                          # of images, or an IDX, .npz or .npy file of them
IMAGE_SIZE = 64           # pixels, 2 to 1024: side of the squares made of a folder's
                          # images
MODEL = "mlp"             # "mlp" (the dcgan is not there yet)
Z_SIZE = 32               # numbers of noise per image, 1 or more
PRIOR = "sphere"          # noise: "normal", "sphere" (normal, of fixed length), or
                          # low,high of a uniform one
G_HIDDEN = 1024           # units of the generator's hidden layer; 256,512 makes two
D_HIDDEN = 512            # the same for the discriminator
ACTIVATION = "leaky_relu" # of hidden layers: "leaky_relu", "relu" or "tanh"
LEAK = 0.2                # slope of leaky_relu below zero, 0 to 1
OUTPUT = "tanh"           # pixels in [-1, 1], or "sigmoid": in [0, 1]
BATCH_NORM = False        # True or False: batch normalisation of hidden layers
LOSS = "non-saturating"   # the generator's: "non-saturating" or "minimax"
SMOOTH = 0.0              # 0 to 0.5: real images are labelled 1 - SMOOTH
GRADIENT_PENALTY = 0.3    # 0 (off) or more: keeps the discriminator's slope small at
                          # real and fake images, which keeps training stable
EPOCHS = 14               # passes over the data, 1 or more
BATCH_SIZE = 100          # images per update, over all devices together, 2 or more
LEARNING_RATE = 0.002     # of Adam, above 0
LR_DECAY = True           # True: it falls linearly to 0 over EPOCHS; or False
BETA_1 = 0.0              # Adam's decay of the mean gradient, 0 to below 1
BETA_2 = 0.99             # Adam's decay of its square, 0 to below 1
D_STEPS = 1               # discriminator updates per iteration, 1 to 100
G_STEPS = 1               # generator updates per iteration, 1 to 100
EMA = 0.999               # 0 (off) to below 1: decay of the running average of the
                          # generator's weights that makes the pictures
EARLY_STOP = None         # or low,high: stop when an epoch's D(G(z)) lies between
GRID = 10                 # pictures show GRID x GRID images, 1 to 64
SEED = 0                  # 0 or more; the same seed gives the same run
OUT = "samples"           # folder of the runs
# fmt: on
SETTINGS = [name for name in globals() if name.isupper()]


# ------------------------------------------------------------------------------------------------
# Networks
# ------------------------------------------------------------------------------------------------
def hidden_layers(widths):
    """Return the hidden layers of an MLP: widths is one number, or a tuple of them."""
    stack = []
    for width in widths if isinstance(widths, tuple) else (widths,):
        stack.append(layers.Dense(width))
        if BATCH_NORM:
            stack.append(layers.BatchNormalization(momentum=0.8))
        if ACTIVATION == "leaky_relu":
            stack.append(layers.LeakyReLU(negative_slope=LEAK))
        else:
            stack.append(layers.Activation(ACTIVATION))
    return stack


def build_generator(shape):
    """Return the generator: noise [n, Z_SIZE] -> images [n, *shape] in OUTPUT's range."""
    stack = [keras.Input((Z_SIZE,))]
    if PRIOR == "sphere":  # done in here, so that the saved generator takes plain normal noise
        stack += [layers.UnitNormalization(), layers.Rescaling(math.sqrt(Z_SIZE))]
    stack += hidden_layers(G_HIDDEN)
    stack += [layers.Dense(math.prod(shape), activation=OUTPUT), layers.Reshape(shape)]
    return keras.Sequential(stack, name="generator")


def build_discriminator(shape):
    """Return the discriminator: images [n, *shape] -> logits [n, 1], above 0 for "real"."""
    stack = [keras.Input(shape), layers.Flatten(), *hidden_layers(D_HIDDEN), layers.Dense(1)]
    return keras.Sequential(stack, name="discriminator")


# ------------------------------------------------------------------------------------------------
# The GAN
# ------------------------------------------------------------------------------------------------
def cross_entropy(label, logits):
    """Return the mean sigmoid cross-entropy of logits [n, 1] against one label for all of them."""
    labels = tf.fill(tf.shape(logits), label)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))


def discriminator_loss(real_logits, fake_logits):
    """Return D's loss: it wants to call real images real (1) and fake ones fake (0)."""
    return cross_entropy(1.0 - SMOOTH, real_logits) + cross_entropy(0.0, fake_logits)


def generator_loss(fake_logits):
    """Return G's loss: it wants its fakes to be called real.

    "minimax" is the exact opposite of D's loss; its gradient vanishes while D still wins, so
    "non-saturating" (Goodfellow 2014, section 3) is the usual choice.
    """
    if LOSS == "minimax":
        return -cross_entropy(0.0, fake_logits)
    return cross_entropy(1.0, fake_logits)


def logits_and_penalty(discriminator, images):
    """Return D's logits [n, 1] and the mean squared length of their gradient at images."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = discriminator(images, training=True)
    slope = tape.gradient(logits, images)
    return logits, tf.reduce_sum(tf.square(slope)) / tf.cast(len(images), tf.float32)


def draw_noise(count, key):
    """Return noise [count, Z_SIZE] from PRIOR, a function of SEED and the whole number key."""
    shape, seed = (count, Z_SIZE), tf.stack([tf.cast(SEED, tf.int64), tf.cast(key, tf.int64)])
    if isinstance(PRIOR, str):
        return tf.random.stateless_normal(shape, seed)
    low, high = PRIOR
    return tf.random.stateless_uniform(shape, seed, low, high)


def to_floats(pixels):
    """Return uint8 pixels as floats in OUTPUT's range."""
    floats = tf.cast(pixels, tf.float32)
    return floats / 127.5 - 1.0 if OUTPUT == "tanh" else floats / 255.0


def to_pixels(floats):
    """Return floats in OUTPUT's range as uint8 pixels."""
    floats = (floats + 1.0) * 127.5 if OUTPUT == "tanh" else floats * 255.0
    return np.clip(np.rint(floats), 0, 255).astype(np.uint8)


METRICS = "d_loss", "g_loss", "D(x)", "D(G(z))", "D accuracy"


class GAN:
    """Both networks, their optimizers and the running average of the generator."""

    def __init__(self, images):
        """Build everything for uint8 images [N, H, W, C]."""
        shape = images.shape[1:]
        keras.utils.set_random_seed(SEED)
        self.strategy = tf.distribute.get_strategy()
        self.replicas = self.strategy.num_replicas_in_sync
        self.total = EPOCHS * len(images)  # images that the training will see
        self.epoch = self.position = self.step = 0  # epochs done, images into the next, iterations
        with self.strategy.scope():
            self.generator = build_generator(shape)
            self.discriminator = build_discriminator(shape)
            self.average = build_generator(shape)
            self.average.set_weights(self.generator.get_weights())
            self.g_optimizer = keras.optimizers.Adam(LEARNING_RATE, BETA_1, BETA_2)
            self.d_optimizer = keras.optimizers.Adam(LEARNING_RATE, BETA_1, BETA_2)
            self.g_optimizer.build(self.generator.trainable_variables)
            self.d_optimizer.build(self.discriminator.trainable_variables)
        # Sums over the epoch so far: iterations, then the columns of METRICS.
        self.sums = tf.Variable(tf.zeros(1 + len(METRICS), tf.float64))
        batches = tf.TensorSpec((None, D_STEPS, BATCH_SIZE, *shape), tf.uint8)
        number = tf.TensorSpec((), tf.int64)
        self.train = tf.function(self.train_batches, input_signature=(batches, number, number))

    def variables(self):
        """Return every variable that training changes: what a checkpoint holds."""
        parts = self.generator, self.discriminator, self.average
        parts += self.g_optimizer, self.d_optimizer
        return [variable for part in parts for variable in part.variables] + [self.sums]

    def train_batches(self, batches, step, seen):
        """Train on batches, uint8 [n, D_STEPS, BATCH_SIZE, H, W, C], an iteration for each of n.

        step counts the iterations before these, seen the images.
        """
        for i in tf.range(tf.shape(batches, tf.int64)[0]):
            if LR_DECAY:
                done = (seen + i * D_STEPS * BATCH_SIZE) / self.total
                rate = tf.cast(LEARNING_RATE * tf.maximum(1.0 - done, 0.0), tf.float32)
                self.g_optimizer.learning_rate.assign(rate)
                self.d_optimizer.learning_rate.assign(rate)
            metrics = self.strategy.run(self.train_step, args=(batches[i], step + i))
            metrics = self.strategy.reduce("MEAN", metrics, axis=None)
            self.sums.assign_add(tf.cast(tf.concat(([1.0], metrics), 0), tf.float64))
            if EMA:
                warmed_up = (step + i + 1) / (step + i + 10)  # lets the first, random weights fade
                self.update_average(tf.minimum(tf.cast(EMA, tf.float64), warmed_up))
        if not EMA:
            self.update_average(0.0)

    def train_step(self, batches, step):
        """Do D_STEPS updates of D, then G_STEPS of G; return the METRICS of the last ones."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        size = BATCH_SIZE // self.replicas
        updates = D_STEPS + G_STEPS - 1  # D's last one and G's first one share their fakes
        for k in range(updates):
            key = (step * updates + k) * self.replicas + tf.cast(replica, tf.int64)
            with tf.GradientTape() as tape:
                fake = self.generator(draw_noise(size, key), training=True)
                if k < D_STEPS:
                    with tape.stop_recording():
                        real = to_floats(batches[k, replica * size : (replica + 1) * size])
                        metrics = self.update_discriminator(real, fake)
                if k >= D_STEPS - 1:
                    g_loss = generator_loss(self.discriminator(fake, training=True))
            if k >= D_STEPS - 1:
                self.apply(self.g_optimizer, self.generator, tape, g_loss)
        return tf.stack((metrics[0], g_loss, *metrics[1:]))

    def update_discriminator(self, real, fake):
        """Update D once on images [n, H, W, C]; return its loss, D(x), D(G(z)) and accuracy."""
        with tf.GradientTape() as tape:
            # Two passes, so that batch normalisation never mixes real images with fake ones.
            if GRADIENT_PENALTY:
                real_logits, real_penalty = logits_and_penalty(self.discriminator, real)
                fake_logits, fake_penalty = logits_and_penalty(self.discriminator, fake)
                penalty = GRADIENT_PENALTY / 2 * (real_penalty + fake_penalty)
            else:
                real_logits = self.discriminator(real, training=True)
                fake_logits = self.discriminator(fake, training=True)
                penalty = 0.0
            d_loss = discriminator_loss(real_logits, fake_logits)
            penalized_loss = d_loss + penalty
        self.apply(self.d_optimizer, self.discriminator, tape, penalized_loss)
        right = tf.concat((real_logits > 0, fake_logits < 0), 0)
        accuracy = tf.reduce_mean(tf.cast(right, tf.float32))
        d_real, d_fake = (tf.reduce_mean(tf.sigmoid(x)) for x in (real_logits, fake_logits))
        return d_loss, d_real, d_fake, accuracy

    def apply(self, optimizer, network, tape, loss):
        """Let the optimizer lower the loss that the tape has recorded."""
        variables = network.trainable_variables
        # The optimizer adds up the gradients of all replicas; the loss is to be their mean.
        share = tf.constant(1.0 / self.replicas)
        gradients = tape.gradient(loss, variables, output_gradients=share)
        optimizer.apply_gradients(zip(gradients, variables))

    def update_average(self, decay):
        """Move the averaged generator towards the generator, the more the lower decay is."""
        decay = tf.cast(decay, tf.float32)
        for average, value in zip(self.average.variables, self.generator.variables):
            average.assign_add((1.0 - decay) * (value - average))

    def generate(self, noise):
        """Return uint8 images [n, H, W, C] of the averaged generator for noise [n, Z_SIZE]."""
        starts = range(0, len(noise), 500)
        parts = [self.average(noise[i : i + 500], training=False) for i in starts]
        return to_pixels(np.concatenate(parts))


# ------------------------------------------------------------------------------------------------
# Data: every source becomes one array, uint8 [N, H, W, C], grey (C = 1) or RGB (C = 3)
# ------------------------------------------------------------------------------------------------
MNIST_FILE = "train-images-idx3-ubyte.gz"
MNIST_SHA256 = "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://dataset.bj.bcebos.com/mnist/",  # in Beijing
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
SILENCE = 10  # seconds after which a mirror that sends (almost) nothing is given up
LIMIT = 2**30  # bytes of pixels that are read into memory from a file; an .npy can be larger
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
# What NumPy, Pillow, gzip and zipfile raise for damaged or hostile files.
DAMAGED = (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, SyntaxError)
DAMAGED += (MemoryError, OverflowError, RuntimeError, zlib.error, zipfile.BadZipFile)


class Problem(Exception):
    """What the user is told in one line; status is the exit status."""

    def __init__(self, message, status=2):
        super().__init__(message)
        self.status = status


def warn(message):
    """Print a line that does not end the run."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def show_progress(text):
    """Show text in the terminal's current line, to be overwritten; nothing in a file or pipe."""
    if sys.stdout.isatty():
        print("\r" + text.ljust(78)[:78], end="\r", flush=True)


def load_images():
    """Return (name, images) of DATA. Raises Problem when it holds no usable images."""
    if DATA == "digits":
        return DATA, draw_digits(20000)
    if DATA == "mnist":
        return load_mnist()
    path = Path(DATA).expanduser()
    if path.is_dir():
        idx = sorted(path.glob("*train-images*idx3-ubyte*"))
        images = read_file(idx[0]) if idx else read_folder(path)
    elif path.exists():
        images = read_file(path)
    else:
        raise Problem(f'DATA={DATA}: no such file or folder, nor "mnist" or "digits"')
    return re.sub(r"[^A-Za-z0-9]+", "-", path.resolve().name.split(".")[0]).strip("-")[:40], images


def load_mnist():
    """Return (name, images) of MNIST from Keras' cache, else the web, else the drawn digits."""
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    cache = Path(home).expanduser() / "datasets"
    for name in ("mnist.npz", MNIST_FILE, f"gan-{MNIST_FILE}"):
        try:
            if (cache / name).exists():
                return "mnist", read_file(cache / name)
        except Problem as problem:
            warn(f"{problem}; left as it is, not used")
    # The second name is for a cache that holds a damaged file: what others put there stays.
    target = cache / (f"gan-{MNIST_FILE}" if (cache / MNIST_FILE).exists() else MNIST_FILE)
    reasons = []
    for mirror in MIRRORS:
        try:
            content = download(mirror + MNIST_FILE)
        except OSError as error:
            reasons.append(f"    {mirror}: {getattr(error, 'reason', error)}")
            continue
        try:
            cache.mkdir(parents=True, exist_ok=True)
            write(target, lambda temporary: temporary.write_bytes(content))
        except OSError as error:
            warn(f"MNIST was not kept for the next time: {error}")
        return "mnist", as_images(read_gzipped_idx(io.BytesIO(content)))
    rule = "!" * 78
    print(f"{rule}\nMNIST could not be downloaded:", *reasons, sep="\n")
    print("Training on DRAWN DIGITS instead. For MNIST, put the file from any mirror into")
    print(f"    {cache / MNIST_FILE}\nand start again.\n{rule}", flush=True)
    return "digits", draw_digits(20000)


def download(url):
    """Return the bytes of MNIST_FILE at url. Raises OSError, also after SILENCE seconds of it."""
    arrived = queue.Queue()

    def fetch():  # in a thread, as looking up a host's address knows no time limit
        try:
            with urllib.request.urlopen(url, timeout=SILENCE) as response:
                while part := response.read(2**16):
                    arrived.put(part)
            arrived.put(b"")
        except Exception as error:  # whatever it is, the next mirror is tried
            arrived.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    content = b""
    try:
        while part := arrived.get(timeout=SILENCE):
            if isinstance(part, Exception):
                raise OSError(getattr(part, "reason", part))
            content += part
            show_progress(f"downloading MNIST: {len(content) / 9912422:4.0%} of 9.9 MB from {url}")
            if len(content) > 9912422:
                break
    except queue.Empty:
        raise OSError(f"silent for {SILENCE} s") from None
    finally:
        show_progress("")
    if hashlib.sha256(content).hexdigest() != MNIST_SHA256:
        raise OSError("sent something else than MNIST")
    return content


def draw_digits(count):
    """Return count drawn digits, uint8 [count, 28, 28, 1], a function of SEED."""
    random = np.random.default_rng(SEED)
    font = ImageFont.load_default(108)  # 4 times too large, so that shrinking smooths the edges
    glyphs = []
    for digit in "0123456789":
        for stroke in range(5):
            glyph = Image.new("L", (144, 144))
            draw = ImageDraw.Draw(glyph)
            draw.text((72, 72), digit, 255, font, anchor="mm", stroke_width=stroke)
            glyphs.append(glyph)
    images = np.empty((count, 28, 28, 1), np.uint8)
    for i in range(count):
        turn, slant = random.normal(0, 0.1), random.normal(0, 0.2)
        rotation = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
        scale = random.uniform((0.8, 0.85), (1.2, 1.1))
        matrix = 4 * np.array([[1, slant], [0, 1]]) @ rotation / scale
        shift = 72 - matrix @ random.uniform(13, 15, 2)
        affine = (*matrix[0], shift[0], *matrix[1], shift[1])
        glyph = glyphs[random.integers(len(glyphs))]
        glyph = glyph.transform((28, 28), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
        images[i, :, :, 0] = glyph.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 0.8)))
    return images


def read_file(path):
    """Return the images of an IDX (.gz or not), .npz or .npy file. Raises Problem."""
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix == ".npz":
            array = read_npz(path)
        else:
            array = read_idx(path)
        return as_images(array)
    except DAMAGED as error:
        raise Problem(f"{path} cannot be used: {error or type(error).__name__}") from None


def read_npz(path):
    """Return the array x_train or images of an .npz file, else its first."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > LIMIT:
            raise ValueError("it holds over 1 GB; save its images as an .npy file, which may")
    with np.load(path, allow_pickle=False) as arrays:
        for name in ("x_train", "images", *arrays):
            if name in arrays:
                return arrays[name]
    raise ValueError("it holds no array")


def read_idx(path):
    """Return the array of an IDX file, the format of MNIST (memory-mapped when not packed)."""
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            file.seek(0)
            return read_gzipped_idx(file)
        file.seek(0)
        shape = read_idx_shape(file)
        if path.stat().st_size != file.tell() + math.prod(shape):
            raise ValueError(f"its size does not fit its shape {shape}")
        return np.memmap(path, np.uint8, "r", file.tell(), shape)


def read_gzipped_idx(file):
    """Return the array of an open .gz of an IDX file."""
    with gzip.open(file) as unpacked:
        shape = read_idx_shape(unpacked)
        if math.prod(shape) > LIMIT:
            raise ValueError("over 1 GB of pixels; unpack it")
        content = unpacked.read(math.prod(shape) + 1)
    if len(content) != math.prod(shape):
        raise ValueError(f"its size does not fit its shape {shape}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_idx_shape(file):
    """Return the shape of the images in an open IDX file, and leave the file at their start."""
    head = file.read(4)
    if head not in (b"\0\0\x08\x03", b"\0\0\x08\x04"):  # unsigned bytes, 3 or 4 dimensions
        raise ValueError("neither images in IDX form, nor an .npz or .npy file, nor a folder")
    return tuple(np.frombuffer(file.read(4 * head[3]), ">u4").tolist())


def as_images(array):
    """Return array [N, H, W] or [N, H, W, C] as uint8 images; other numbers are scaled to 0..255.

    Raises ValueError.
    """
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise ValueError(f"shape {array.shape}, but images are [N, H, W], [N, H, W, 1] or [.., 3]")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "biuf":
        raise ValueError(f"numbers of type {array.dtype}, but pixels are uint8")
    if array.size > LIMIT:
        raise ValueError(f"over 1 GB of {array.dtype}; save the pixels as uint8")
    parts = range(0, len(array), 1000)  # a part at a time, as the file may be larger than memory
    low = float(min(np.min(array[i : i + 1000]) for i in parts))
    high = float(max(np.max(array[i : i + 1000]) for i in parts))
    if not math.isfinite(low) or not math.isfinite(high) or low == high:
        raise ValueError(f"its numbers reach from {low} to {high}")
    images = np.empty(array.shape, np.uint8)
    for i in parts:
        images[i : i + 1000] = np.rint((array[i : i + 1000] - low) * (255.0 / (high - low)))
    return images


def read_folder(folder):
    """Return the images below folder, cropped square and resized to IMAGE_SIZE; skip bad files."""
    # os.walk follows no links to folders, so it cannot run in a circle.
    files = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    files = sorted(file for file in files if file.suffix.lower() in PICTURES and file.is_file())
    if not files:
        raise Problem(f"DATA={DATA}: no images ({' '.join(sorted(PICTURES))}) in this folder")
    images = np.empty((len(files), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    count, skipped = 0, []
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    pool = ThreadPoolExecutor()
    try:
        for done, (file, picture) in enumerate(zip(files, pool.map(read_picture, files)), 1):
            if isinstance(picture, Exception):
                skipped.append(file)
                if len(skipped) <= 3:
                    warn(f"skipped {str(file)!r}: {str(picture).splitlines()[0]}")
            else:
                images[count] = picture
                count += 1
            if done % 500 == 0:
                show_progress(f"reading images: {done:,} of {len(files):,}")
    finally:  # Ctrl-C must not wait for the files that are still to come
        pool.shutdown(cancel_futures=True)
    show_progress("")
    if len(skipped) > 3:
        warn(f"skipped {len(skipped):,} files in all")
    images = images[:count]
    if not count:
        raise Problem(f"DATA={DATA}: none of its {len(files):,} files is a usable image")
    grey = all(np.all(image == image[..., :1]) for image in images)
    return np.ascontiguousarray(images[..., :1]) if grey else images


def read_picture(file):
    """Return one image as uint8 [IMAGE_SIZE, IMAGE_SIZE, 3], or the exception that it raised."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    try:
        with Image.open(file) as picture:
            picture.draft("RGB", size)  # a large JPEG is decoded at a fraction of its size
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith(("I", "F")):  # 16 bits or floats: Pillow would clip them
                low, high = (0, 65535) if ";16" in picture.mode else picture.getextrema()
                if not math.isfinite(high - low):
                    raise ValueError("its pixels are not finite")
                values = (np.asarray(picture, np.float64) - low) / max(high - low, 1e-9)
                picture = Image.fromarray(np.uint8(values * 255))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
            return ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS)
    except (*DAMAGED, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return error if str(error) else OSError(type(error).__name__)


# ------------------------------------------------------------------------------------------------
# Pictures
# ------------------------------------------------------------------------------------------------
def tile(images, columns):
    """Return a picture of images, uint8 [n, H, W, C], in rows of columns with thin gaps."""
    _, height, width, channels = images.shape
    gap = max(1, height // 32)
    images = np.pad(images, ((0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=80)
    rows = images.reshape(-1, columns, height + gap, width + gap, channels).swapaxes(1, 2)
    rows = rows.reshape(-1, columns * (width + gap), channels)
    rows = np.pad(rows, ((0, gap), (0, gap), (0, 0)), constant_values=80)
    picture = Image.fromarray(rows[..., 0] if channels == 1 else rows)
    return ImageOps.scale(picture, max(1, 600 // picture.width), Image.Resampling.NEAREST)


# ------------------------------------------------------------------------------------------------
# Runs: each has its own folder, and can go on from its newest checkpoint
# ------------------------------------------------------------------------------------------------
CHECKPOINT_SECONDS = 600  # between checkpoints within a long epoch
COLUMNS = "epoch", *METRICS, "spread", "images/s", "seconds"
# What a resumed run cannot change: the data, and the networks' shapes and pixel range.
FIXED = "DATA", "IMAGE_SIZE", "MODEL", "Z_SIZE", "G_HIDDEN", "D_HIDDEN", "BATCH_NORM", "OUTPUT"
FIXED += "SEED", "PRIOR"


def write(path, save):
    """Have save(temporary) write a file, then rename it: a crash leaves path old or new, whole."""
    temporary = path.with_name(f"tmp-{os.getpid()}-{path.name}")
    try:
        save(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_folder(name):
    """Return a new folder OUT/name-NNN with the next free number."""
    out = Path(OUT)
    out.mkdir(parents=True, exist_ok=True)
    taken = (re.fullmatch(re.escape(name) + r"-(\d+)", path.name) for path in out.iterdir())
    number = max((int(match[1]) for match in taken if match), default=0)
    while True:  # another run may take the same number at the same moment
        number += 1
        try:
            folder = out / f"{name}-{number:03}"
            folder.mkdir()
            return folder
        except FileExistsError:
            continue


def find_run(run):
    """Return the folder run, else that of the newest run in OUT. Raises Problem."""
    settings = Path(run, "settings.json") if run else None
    if run and not settings.is_file():
        raise Problem(f"--run {run}: no run there (no settings.json)")
    if not run:
        files = [(path.stat().st_mtime, path) for path in Path(OUT).glob("*/settings.json")]
        if not files:
            raise Problem(f"no run in {OUT} yet; start one without --resume")
        settings = max(files)[1]
    return settings.parent


def save_settings(folder):
    """Write the settings as they are to the run's settings.json."""
    text = json.dumps({name: globals()[name] for name in SETTINGS}, indent=1)
    write(folder / "settings.json", lambda temporary: temporary.write_text(text + "\n"))


def read_settings(folder):
    """Return the settings of a run's settings.json. Raises Problem."""
    try:
        settings = json.loads((folder / "settings.json").read_text())
        if sorted(settings) != sorted(SETTINGS):
            odd = ", ".join(sorted(set(settings) ^ set(SETTINGS)))
            raise ValueError(f"these names are missing or unknown: {odd}")
    except (OSError, ValueError, TypeError) as error:
        raise Problem(f"{folder / 'settings.json'} cannot be used: {error}") from None
    return {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}


def save_checkpoint(folder, gan):
    """Write everything that training changes to a file of checkpoint/; keep the last three."""
    values = [variable.numpy() for variable in gan.variables()]
    if not all(np.isfinite(value).all() for value in values):
        raise Problem(diverged(gan), 1)
    counters = gan.epoch, gan.position, gan.step
    (folder / "checkpoint").mkdir(exist_ok=True)
    path = folder / "checkpoint" / f"step-{gan.step:09}.npz"
    write(path, lambda temporary: np.savez(temporary, *values, counters=counters))
    for old in sorted(path.parent.glob("step-*.npz"))[:-3]:
        old.unlink()


def read_checkpoint(folder):
    """Return (counters, values) of the run's newest readable checkpoint, or None."""
    for path in sorted((folder / "checkpoint").glob("step-*.npz"), reverse=True):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                counters = [int(number) for number in arrays["counters"]]
                return counters, [arrays[f"arr_{i}"] for i in range(len(arrays) - 1)]
        except DAMAGED as error:
            warn(f"{path} is damaged ({error}); going back to the one before")


def restore(gan, checkpoint):
    """Bring gan to where read_checkpoint's result was saved. Raises Problem."""
    counters, values = checkpoint
    variables = gan.variables()
    if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
        raise Problem("the checkpoint does not fit the networks of the run's settings.json")
    gan.epoch, gan.position, gan.step = counters
    for variable, value in zip(variables, values):
        variable.assign(value)


def read_rows(folder, epochs):
    """Return the rows of losses.csv up to the given epoch, as dictionaries of numbers."""
    path = folder / "losses.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [{name: float(row[name]) for name in COLUMNS} for row in csv.DictReader(file)]
        rows = rows[:epochs]
        if [row["epoch"] for row in rows] != list(range(1, epochs + 1)):
            raise ValueError("epochs are missing")
        return rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        if epochs:
            warn(f"{path} cannot be used ({error}); it starts anew after epoch {epochs}")
        return []


def write_rows(folder, rows):
    """Write the epochs' figures to losses.csv."""

    def save(temporary):
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows([f"{row[name]:.7g}" for name in COLUMNS] for row in rows)

    write(folder / "losses.csv", save)


def diverged(gan):
    """Return what to tell about a loss that is no longer a number."""
    step = int(gan.sums[0]) + 1
    return (
        f"training diverged at step {step:,} of epoch {gan.epoch + 1}: a loss or weight is not "
        "finite. The last good checkpoint is kept; go on with --resume and a lower LEARNING_RATE"
    )


def train(gan, images, folder, signals):
    """Train to the end of EPOCHS; return False when signals, a list, got an entry before that."""
    noise = draw_noise(max(GRID**2, 256), -1)  # the same for every picture
    real_spread = float(np.mean(np.std(images[:: max(1, len(images) // 1000)], axis=0)))
    rows = read_rows(folder, gan.epoch)
    complaints = set()

    def save_picture(fakes):
        picture = tile(fakes[: GRID**2], GRID)
        write(folder / f"epoch-{gan.epoch:03}.png", picture.save)

    if not gan.step:
        save_picture(gan.generate(noise))
    print(" epoch   D loss   G loss   D(x) D(G(z))  D acc  spread   images/s  seconds", flush=True)
    while gan.epoch < EPOCHS:
        began, position = time.monotonic(), gan.position
        if not train_epoch(gan, images, folder, signals):
            return False
        fakes = gan.generate(noise)
        steps, *means = (gan.sums / gan.sums[0]).numpy()
        row = dict(zip(METRICS, means), epoch=gan.epoch + 1)
        row["spread"] = float(np.mean(np.std(fakes, axis=0))) / max(real_spread, 1e-9)
        row["seconds"] = time.monotonic() - began
        row["images/s"] = (gan.position - position) / gan.seconds
        gan.epoch, gan.position = gan.epoch + 1, 0
        gan.sums.assign(tf.zeros_like(gan.sums))
        save_picture(fakes)
        rows.append(row)
        write_rows(folder, rows)
        save_checkpoint(folder, gan)
        show_progress("")
        print(
            "{epoch:4}/{0:<4} {d_loss:6.3f}  {g_loss:7.3f}  {D(x):5.3f}  {D(G(z)):6.3f}"
            "  {D accuracy:4.0%}  {spread:6.2f}  {images/s:9,.0f}  {seconds:7.1f}".format(
                EPOCHS, **row
            ),
            flush=True,
        )
        complaints = complain(row, complaints)
        if EARLY_STOP and EARLY_STOP[0] <= row["D(G(z))"] <= EARLY_STOP[1]:
            print(f"EARLY_STOP: D(G(z)) = {row['D(G(z))']:.3f} is in {EARLY_STOP}")
            break
        if signals:
            return gan.epoch == EPOCHS
    return True


def train_epoch(gan, images, folder, signals):
    """Train on the rest of gan's epoch; return False when a signal stopped it before its end."""
    order = np.random.default_rng((SEED, gan.epoch)).permutation(len(images))
    iteration = D_STEPS * BATCH_SIZE  # images
    largest = max(1, min(100, 2**26 // (iteration * images[0].nbytes)))  # at most 64 MB at once
    saved, gan.seconds, steps = time.monotonic(), 1e-9, 1
    while steps := min(steps, (len(images) - gan.position) // iteration):
        began = time.monotonic()
        chosen = order[gan.position : gan.position + steps * iteration]
        batches = images[chosen].reshape(steps, D_STEPS, BATCH_SIZE, *images.shape[1:])
        gan.train(batches, gan.step, gan.epoch * len(images) + gan.position)
        gan.step += steps
        gan.position += len(chosen)
        if not np.isfinite(gan.sums.numpy()).all():
            raise Problem(diverged(gan), 1)
        now = time.monotonic()
        gan.seconds += now - began
        unfinished = gan.position + iteration <= len(images)
        if unfinished and (signals or now - saved > CHECKPOINT_SECONDS):
            save_checkpoint(folder, gan)
            saved = now
            if signals:
                return False
        done = gan.position / len(images)
        bar = "#" * round(30 * done)
        show_progress(f" {gan.epoch + 1:4}/{EPOCHS:<4} [{bar:.<30}] {done:4.0%}")
        # Half a second of work: long enough to be fast, short enough to answer Ctrl-C.
        steps = max(1, min(largest, int(steps * 0.5 / (now - began))))
    return True


def complain(row, before):
    """Say in plain words what an epoch's figures show to go wrong, once; return what was said."""
    now = set()
    if row["spread"] < 0.5:
        now.add(
            "The generator makes nearly the same image again and again (mode collapse): try "
            "GRADIENT_PENALTY=1, a lower LEARNING_RATE, or PRIOR=sphere."
        )
    if row["D accuracy"] > 0.99:
        now.add(
            "The discriminator tells nearly every fake, so the generator learns little: try "
            "a larger GRADIENT_PENALTY, a smaller D_HIDDEN, or SMOOTH=0.1."
        )
    for text in sorted(now - before):
        print(textwrap.fill(text, 78, initial_indent="  ! ", subsequent_indent="    "), flush=True)
    return now


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------
def settings_block():
    """Return the lines of this file that set the settings, for --help and for error messages."""
    source = Path(__file__).read_text(encoding="utf-8")
    return source.partition("# fmt: off\n")[2].partition("# fmt: on\n")[0]


def check_settings(settings):
    """Raise Problem for the first setting that is unknown, or not of a type and range it accepts."""

    def whole(low, high):
        return lambda value: type(value) is int and low <= value <= high

    def number(low, high):
        return lambda value: type(value) in (int, float) and low <= value <= high

    def pair(value):
        return type(value) is tuple and len(value) == 2 and all(map(number(-1e6, 1e6), value))

    def ascending(value):
        return pair(value) and value[0] < value[1]

    def widths(value):
        numbers = value if type(value) is tuple and value else (value,)
        return all(map(whole(1, 65536), numbers))

    def text(value):
        return type(value) is str and value.strip() != "" and "\0" not in value

    def one_of(*values):
        return lambda value: any(value is known or value == known for known in values)

    accepts = {
        "DATA": text, "OUT": text, "IMAGE_SIZE": whole(2, 1024), "MODEL": one_of("mlp"),
        "Z_SIZE": whole(1, 65536), "G_HIDDEN": widths, "D_HIDDEN": widths,
        "PRIOR": lambda value: value in ("normal", "sphere") or ascending(value),
        "ACTIVATION": one_of("leaky_relu", "relu", "tanh"), "LEAK": number(0, 1),
        "OUTPUT": one_of("tanh", "sigmoid"), "BATCH_NORM": lambda value: type(value) is bool,
        "LOSS": one_of("non-saturating", "minimax"), "SMOOTH": number(0, 0.5),
        "GRADIENT_PENALTY": number(0, 1e6), "EPOCHS": whole(1, 10**6),
        "BATCH_SIZE": whole(2, 10**6), "LEARNING_RATE": number(1e-12, 1e12),
        "LR_DECAY": lambda value: type(value) is bool,
        "BETA_1": number(0, 1 - 1e-9), "BETA_2": number(0, 1 - 1e-9), "EMA": number(0, 1 - 1e-9),
        "D_STEPS": whole(1, 100), "G_STEPS": whole(1, 100),
        "EARLY_STOP": lambda value: value is None or ascending(value),
        "GRID": whole(1, 64), "SEED": whole(0, 2**31 - 1),
    }  # fmt: skip
    for name, value in settings.items():
        if name not in accepts:
            near = difflib.get_close_matches(name.upper(), SETTINGS, 1)
            hint = f"; did you mean {near[0]}?" if near else "; --help lists the settings"
            raise Problem(f"{name} is no setting{hint}")
        if not accepts[name](value):
            lines = re.search(rf"^{name} .*?#(.*(?:\n  .*)*)", settings_block(), re.M)[1]
            comment = " ".join(lines.replace("#", " ").split())
            raise Problem(f"{name}={value!r} is not allowed; it is: {comment}"[:400])


def parse_setting(argument):
    """Return (name, value) of an argument NAME=value; the value is a literal, else plain text."""
    name, equals, text = argument.partition("=")
    if not equals:
        raise Problem(f"{argument!r} is neither an option nor NAME=value; see --help")
    try:
        value = ast.literal_eval(text.strip())
        if name in ("DATA", "OUT") and type(value) is not str:
            value = text  # a file may be named 7
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    return name.strip(), value


def resumed_settings(folder, changes):
    """Return the run's settings with the changes. Raises Problem for one that cannot change."""
    settings = read_settings(folder)
    for name in set(changes) & set(FIXED):
        if changes[name] != settings[name]:
            raise Problem(
                f"{name}={changes[name]!r}: the run has {name}={settings[name]!r}, which a resumed "
                "run cannot change; start a new run without --resume"
            )
    return settings | changes | {"OUT": str(folder.parent)}


def command(folder, *more):
    """Return the command that goes on with the run."""
    folder = f'"{folder}"' if " " in str(folder) else folder
    return " ".join(("python gan.py --resume --run", str(folder), *more))


def describe(gan, images, name, folder):
    """Print what is about to be trained, on what."""
    count, height, width, channels = images.shape
    print(
        f"data           {name}: {count:,} images, {width} x {height}, {'grey' if channels == 1 else 'RGB'}"
    )
    for network in (gan.generator, gan.discriminator):
        print(f"{network.name:14} {network.count_params():,} parameters")
    gpus = len(tf.config.list_logical_devices("GPU"))
    print(f"device         {f'{gpus} GPU' if gpus else f'CPU, {os.cpu_count()} cores'}")
    print(f"run folder     {folder}\n", flush=True)


def run(options, changes, signals):
    """Train a new run, or go on with one; return the exit status."""
    checkpoint = None
    check_settings(changes)
    if options.resume:
        folder = find_run(options.run)
        settings = resumed_settings(folder, changes)
        check_settings(settings)
        globals().update(settings)
        for leftover in [*folder.glob("tmp-*"), *folder.glob("checkpoint/tmp-*")]:
            leftover.unlink()  # of a run that was killed while it wrote
        checkpoint = read_checkpoint(folder)
        if checkpoint and checkpoint[0][0] >= EPOCHS:
            print(f"{folder} has finished its {EPOCHS} epochs; to train longer:")
            print(f"    {command(folder, f'EPOCHS={2 * EPOCHS}')}")
            return 0
    else:
        globals().update(changes)
        check_settings({name: globals()[name] for name in SETTINGS})
    name, images = load_images()
    if len(images) < BATCH_SIZE * D_STEPS:
        size = "BATCH_SIZE" if D_STEPS == 1 else "BATCH_SIZE x D_STEPS"
        raise Problem(
            f"DATA={DATA} has {len(images)} images, fewer than {size} = {BATCH_SIZE * D_STEPS}"
        )
    gan = GAN(images)
    if checkpoint:
        restore(gan, checkpoint)
    if not options.resume:
        folder = make_folder(name)
        if name == "digits":  # perhaps in place of MNIST: a resumed run needs the same
            globals().update(DATA=name)
    save_settings(folder)
    describe(gan, images, name, folder)
    for number in (signal.SIGINT, signal.SIGTERM):
        # The first one ends training after the chunk at hand, a second one ends it at once.
        signal.signal(number, lambda n, _: (signals.append(n), signal.signal(n, signal.SIG_DFL)))
    began = time.monotonic()
    finished = train(gan, images, folder, signals)
    if not finished:
        print(f"\nStopped. Go on with: {command(folder)}")
        return 128 + signals[0]
    write(folder / "generator.keras", gan.average.save)
    print(
        f"\nDone in {time.monotonic() - began:.0f} s. The pictures are in {folder}. To train longer:"
    )
    print(f"    {command(folder, f'EPOCHS={2 * EPOCHS}')}")
    return 0


def main():
    """Run the command line and return its exit status: 2 for bad input, 1 for what broke."""
    parser = argparse.ArgumentParser(
        usage="python gan.py [NAME=value ...] [--resume] [--run FOLDER]",
        description="Train a GAN; look at the pictures in the run's folder.",
        epilog="settings, as at the top of gan.py; change one with NAME=value:\n\n"
        + settings_block(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="NAME=value", help="a setting for this run")
    parser.add_argument("--resume", action="store_true", help="go on with a run where it stopped")
    parser.add_argument("--run", metavar="FOLDER", help="the run; default: the newest one")
    signals = []
    try:
        parser.error = lambda message: sys.exit(fail(f"{message}; see --help", 2))
        options = parser.parse_intermixed_args()
        return run(options, dict(map(parse_setting, options.settings)), signals)
    except Problem as problem:
        return fail(problem, problem.status)
    except tf.errors.ResourceExhaustedError:
        return fail("out of memory: try a smaller BATCH_SIZE, G_HIDDEN or D_HIDDEN", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(
            f"{where}{error.strerror or error}; what was saved before is whole: --resume", 1
        )
    except KeyboardInterrupt:
        return fail("stopped before training", 130)


def fail(message, status):
    """Print one line to stderr; return the exit status."""
    print(f"gan.py: {message}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
