"""A generative adversarial network (GAN) in one script (Goodfellow et al. 2014, arXiv:1406.2661).

The generator (G) turns noise into images. The discriminator (D) looks at an image and says
whether it is real (1) or fake (0). Each is trained against the other, in turns, until the fakes
look real.

    python gan.py                       train on MNIST; pictures appear in samples/mnist-001
    python gan.py EPOCHS=5 DATA=faces   the same with other settings, for one run
    python gan.py --resume              go on with the newest run where it stopped
    python gan.py --sample 1000         save 1,000 new images of the newest run
    python gan.py --help                all options and settings
"""

import argparse
import ast
import atexit
import difflib
import gzip
import hashlib
import importlib.util
import io
import itertools
import json
import math
import mmap
import os
import queue
import re
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
import threading
import time
import urllib.request
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # before training, Ctrl-C just ends the process
    while os.open(os.devnull, os.O_RDWR) < 3:  # takes the place of closed inputs and outputs
        pass
    sys.stdout = sys.stdout or open(os.devnull, "w", errors="replace")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", errors="replace")  # noqa: SIM115

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# This sum over all pixels would stop growing in bfloat16 (see PRECISION), so it stays float32.
os.environ["TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_INFERLIST_REMOVE"] = "BiasAddGrad"
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever ~/.keras/keras.json says
stderr = os.dup(2)  # keeps TensorFlow's remarks on missing GPUs off the screen while it loads
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
try:
    import keras
    import tensorflow as tf
    from keras import layers
finally:
    os.dup2(stderr, 2)
keras.config.set_floatx("float32")
keras.config.set_image_data_format("channels_last")

# ------------------------------------------------------------------------------------------------
# Settings: change them here, or for one run on the command line as in EPOCHS=5 G_HIDDEN=256,512
# ------------------------------------------------------------------------------------------------
# fmt: off
DATA = "mnist"            # "mnist", "digits" (drawn, offline), or a path
IMAGE_SIZE = 64           # pixels, 2 to 1024: side of the images of a folder
MODEL = "mlp"             # "mlp", or "dcgan": relu in G, leaky_relu in D
Z_SIZE = 8                # length of the noise vector z, 1 or more
PRIOR = "sphere"          # "normal", "sphere" (normal, one length) or low,high
G_HIDDEN = 1024           # units of G's hidden layer; 256,512 for two of them
D_HIDDEN = 768            # units of D's hidden layer; 512,256 for two of them
ACTIVATION = "relu"       # of hidden layers: "relu", "leaky_relu", "tanh"
LEAK = 0.2                # slope of leaky_relu below 0: 0 to 1
OUTPUT = "sigmoid"        # "sigmoid": pixels 0 to 1, or "tanh": -1 to 1
BATCH_NORM = False        # True, "G" (in G only) or False: in hidden layers
PRECISION = "float32"     # "float32" or "bfloat16" (faster on new CPUs)
LOSS = "non-saturating"   # of G: "non-saturating" or "minimax" (slower)
SMOOTH = 0.0              # 0 to 0.5: real images are labelled 1 - SMOOTH
GRADIENT_PENALTY = 0.1    # weight, 0 or more: keeps D smooth, training stable
PENALTY_EVERY = 8         # iterations from one penalty to the next: 1 to 1000
EPOCHS = 20               # passes over the data, 1 or more
BATCH_SIZE = 100          # images per update, over all devices, 2 or more
LEARNING_RATE = 0.004     # of Adam for D, above 0
G_RATE = 2.0              # G's learning rate is so many times D's: 0.01 to 100
LR_DECAY = True           # True or False: it falls linearly to 0 over EPOCHS
BETA_1 = 0.0              # Adam's decay of the mean gradient: 0 to below 1
BETA_2 = 0.99             # Adam's decay of its mean square: 0 to below 1
D_STEPS = 1               # updates of D per iteration: 1 to 20
G_STEPS = 1               # updates of G per iteration: 1 to 20
EMA = 0.999               # 0 (off) to below 1: decay of the average of G
EARLY_STOP = None         # or low,high: stop when D(G(z)) lies between
GRID = 10                 # pictures show GRID x GRID images: 1 to 64
SEED = 0                  # 0 or more; the same seed gives the same run
OUT = "samples"           # folder of the runs
# fmt: on
SETTINGS = [name for name in globals() if name.isupper()]


# ------------------------------------------------------------------------------------------------
# Networks
# ------------------------------------------------------------------------------------------------
def batch_normalization(momentum=0.8):
    """Return Keras' layer for batch normalisation (arXiv:1502.03167), trained by one fused kernel.

    The DCGAN of 2015 takes a tenth less time with it, in bfloat16 a fifth.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:  # they share their statistics
        return layers.BatchNormalization(momentum=momentum, synchronized=True)
    layer = layers.BatchNormalization(momentum=momentum)
    keras_call = layer.call

    def call(inputs, training=None, mask=None):  # Keras passes all three
        if not training:
            return keras_call(inputs, training=False)
        x = inputs if len(inputs.shape) == 4 else inputs[:, None, None]  # the kernel wants images
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=layer.gamma, offset=layer.beta, mean=[], variance=[], epsilon=layer.epsilon
        )
        count = tf.cast(tf.size(x) / x.shape[-1], tf.float32)
        variance *= 1.0 - 1.0 / count  # Keras divides by count, the kernel by count - 1
        for average, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            average.assign(layer.momentum * average + (1.0 - layer.momentum) * value)
        return tf.reshape(outputs, tf.shape(inputs))

    layer.call = call  # no class of our own: the saved networks must open without gan.py
    return layer


def activate(activation, normalize):
    """Return what follows a hidden layer: batch normalisation where wanted, and its activation."""
    last = layers.LeakyReLU(LEAK) if activation == "leaky_relu" else layers.Activation(activation)
    return [batch_normalization(), last] if normalize else [last]


def hidden_layers(widths, normalize):
    """Return the hidden layers of an MLP; widths is the units of one, or a tuple of several."""
    stack = []
    for units in widths if isinstance(widths, tuple) else (widths,):
        stack += [layers.Dense(units), *activate(ACTIVATION, normalize)]
    return stack


def small_weights():
    """Return the initial weights of a dcgan, as an option of its layers."""
    return {"kernel_initializer": keras.initializers.RandomNormal(0, 0.02)}


def strided(kind, channels, **options):
    """Return a convolution of a dcgan, which halves or (if transposed) doubles both sides."""
    return kind(channels, 5, 2, padding="same", **small_weights(), **options)


def build_generator(shape):
    """Return the generator: noise [n, Z_SIZE] -> images [n, *shape] in OUTPUT's range."""
    stack = [keras.Input((Z_SIZE,))]
    if PRIOR == "sphere":  # in here, so that the saved generator takes plain normal noise
        stack += [layers.UnitNormalization(), layers.Rescaling(math.sqrt(Z_SIZE))]
    if MODEL == "dcgan":  # of Radford 2015, arXiv:1511.06434
        height, width, channels = shape
        first = height >> len(G_HIDDEN), width >> len(G_HIDDEN), G_HIDDEN[0]
        stack += [layers.Dense(math.prod(first), **small_weights())]
        stack += [layers.Reshape(first), *activate("relu", BATCH_NORM)]
        for stage in G_HIDDEN[1:]:
            stack += [strided(layers.Conv2DTranspose, stage), *activate("relu", BATCH_NORM)]
        stack += [strided(layers.Conv2DTranspose, channels, activation=OUTPUT)]
    else:
        stack += hidden_layers(G_HIDDEN, BATCH_NORM)
        stack += [layers.Dense(math.prod(shape), activation=OUTPUT), layers.Reshape(shape)]
    return keras.Sequential(stack, name="generator")


def build_discriminator(shape):
    """Return the discriminator: images [n, *shape] -> logits [n, 1], above 0 for "real"."""
    stack, normalize = [keras.Input(shape)], BATCH_NORM is True
    if MODEL == "dcgan":
        for i, stage in enumerate(D_HIDDEN):
            inside = normalize and i > 0  # not where images come in
            stack += [strided(layers.Conv2D, stage), *activate("leaky_relu", inside)]
        stack += [layers.Flatten(), layers.Dense(1, **small_weights())]
    else:
        stack += [layers.Flatten(), *hidden_layers(D_HIDDEN, normalize), layers.Dense(1)]
    return keras.Sequential(stack, name="discriminator")


# ------------------------------------------------------------------------------------------------
# The GAN
# ------------------------------------------------------------------------------------------------
EMA_EVERY = 10  # iterations: averaging all weights takes as long as a tenth of an iteration
METRICS = "d_loss", "g_loss", "D(x)", "D(G(z))", "D accuracy"


def cross_entropy(label, logits):
    """Return the mean sigmoid cross-entropy of logits [n, 1] against one label for all of them."""
    labels = tf.fill(tf.shape(logits), label)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))


def discriminator_loss(real_logits, fake_logits):
    """Return D's loss: it wants to call real images real (1) and fake ones fake (0)."""
    return cross_entropy(1.0 - SMOOTH, real_logits) + cross_entropy(0.0, fake_logits)


def generator_loss(fake_logits):
    """Return G's loss: it wants its fakes to be called real.

    "minimax" is the exact opposite of D's loss, but hardly has a gradient while D wins;
    "non-saturating" always has one (Goodfellow 2014, section 3).
    """
    if LOSS == "minimax":
        return -cross_entropy(0.0, fake_logits)
    return cross_entropy(1.0, fake_logits)


def logits_and_penalty(discriminator, images, wanted=True):
    """Return D's logits [n, 1] and their mean squared gradient at images, or 0 if not wanted."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = discriminator(images, training=True)
    if not wanted:
        return logits, 0.0
    slopes = tape.gradient(logits, images)  # small ones keep D smooth (arXiv:1801.04406)
    return logits, tf.reduce_sum(tf.square(slopes)) / tf.cast(len(images), tf.float32)


def draw_noise(count, key):
    """Return noise [count, Z_SIZE] from PRIOR: a function of SEED and key, a whole number."""
    seed = tf.stack([tf.constant(SEED, tf.int64), tf.cast(key, tf.int64)])
    if isinstance(PRIOR, str):
        return tf.random.stateless_normal((count, Z_SIZE), seed)
    return tf.random.stateless_uniform((count, Z_SIZE), seed, *PRIOR)


def to_floats(pixels):
    """Return uint8 pixels as floats in OUTPUT's range."""
    floats = tf.cast(pixels, tf.float32)
    return floats / 127.5 - 1.0 if OUTPUT == "tanh" else floats / 255.0


def to_pixels(floats):
    """Return floats in OUTPUT's range as uint8 pixels."""
    floats = (floats + 1.0) * 127.5 if OUTPUT == "tanh" else floats * 255.0
    return np.clip(np.rint(floats), 0, 255).astype(np.uint8)


class FusedAdam(keras.optimizers.Adam):
    """Keras' Adam (arXiv:1412.6980), but each update of a variable is one kernel of TensorFlow's.

    An iteration of the default takes a quarter less time with it.
    """

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
            epsilon=self.epsilon,
            grad=gradient,
        )


class GAN:
    """Both networks, their optimizers, and the moving average of the generator (EMA)."""

    def __init__(self, images, strategy=None):
        """Build everything for images, uint8 [N, H, W, C], on the devices of the strategy."""
        keras.utils.set_random_seed(SEED)
        # For products and convolutions: weights, losses and what is saved stay float32.
        tf.config.optimizer.set_experimental_options(
            {"auto_mixed_precision_onednn_bfloat16": PRECISION == "bfloat16"}
        )
        shape = images.shape[1:]
        self.strategy = strategy or tf.distribute.get_strategy()
        self.replicas = self.strategy.num_replicas_in_sync
        with self.strategy.scope():
            self.generator = build_generator(shape)
            self.average = build_generator(shape)
            self.average.set_weights(self.generator.get_weights())
            self.discriminator = build_discriminator(shape)
            self.g_optimizer = FusedAdam(float(LEARNING_RATE * G_RATE), BETA_1, BETA_2)
            self.d_optimizer = FusedAdam(float(LEARNING_RATE), BETA_1, BETA_2)
            self.g_optimizer.build(self.generator.trainable_variables)
            self.d_optimizer.build(self.discriminator.trainable_variables)
        # Over the epoch so far: how many iterations, and the sums of their METRICS.
        self.sums = tf.Variable(tf.zeros(1 + len(METRICS), tf.float64))
        self.images_shape = images.shape
        self.epoch = 0  # epochs done
        self.position = 0  # images of the next epoch that are done
        self.step = 0  # iterations done
        self.rows = []  # of losses.csv, one for each epoch done
        self.total = EPOCHS * len(images)
        batches = tf.TensorSpec((None, D_STEPS, BATCH_SIZE, *shape), tf.uint8)
        count = tf.TensorSpec((), tf.int64)
        self.train = tf.function(self.train_batches, input_signature=(batches, count, count))

    def variables(self):
        """Return every variable that training changes: what a checkpoint holds."""
        parts = self.generator, self.average, self.discriminator, self.g_optimizer, self.d_optimizer
        return [self.sums] + [variable for part in parts for variable in part.variables]

    def set_rate(self, rate):
        """Set D's learning rate, and G's to G_RATE times that."""
        self.d_optimizer.learning_rate.assign(rate)
        self.g_optimizer.learning_rate.assign(rate * G_RATE)

    def train_batches(self, batches, step, seen):
        """Do an iteration for each of batches, uint8 [n, D_STEPS, BATCH_SIZE, H, W, C].

        step counts the iterations before these, and seen the images.
        """
        for i in tf.range(tf.shape(batches, tf.int64)[0]):
            if LR_DECAY:
                done = (seen + i * D_STEPS * BATCH_SIZE) / self.total
                self.set_rate(tf.cast(LEARNING_RATE * tf.maximum(1.0 - done, 0.0), tf.float32))
            # The penalty doubles D's work, and does as well every few iterations, weighted more.
            if GRADIENT_PENALTY and (step + i) % PENALTY_EVERY == 0:
                self.iterate(batches[i], step + i, GRADIENT_PENALTY / 2 * PENALTY_EVERY)
            else:
                self.iterate(batches[i], step + i, 0.0)
            if EMA and (step + i) % EMA_EVERY == 0:
                # The decay warms up, so that the first, random weights are soon forgotten.
                warm_up = (step + i + 1) / (step + i + 10)
                decay = tf.minimum(tf.cast(warm_up, tf.float32), EMA)
                self.update_average(decay**EMA_EVERY)  # as if it were done every time
        if not EMA:
            self.update_average(0.0)  # a copy: the pictures show G itself

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
        for k in range(updates):
            key = (step * updates + k) * self.replicas + tf.cast(replica, tf.int64)
            with tf.GradientTape() as tape:
                fake = self.generator(draw_noise(size, key), training=True)
                if k < D_STEPS:  # with G's tape paused; G is then judged by the updated D
                    with tape.stop_recording():
                        real = to_floats(batches[k, replica * size : (replica + 1) * size])
                        d_loss, *others = self.update_discriminator(real, fake, penalty_weight)
                if k >= D_STEPS - 1:
                    g_loss = generator_loss(self.discriminator(fake, training=True))
            if k >= D_STEPS - 1:
                self.descend(tape, g_loss, self.generator, self.g_optimizer)
        return tf.stack((1.0, d_loss, g_loss, *others))

    def update_discriminator(self, real, fake, penalty_weight):
        """Update D on images [n, H, W, C]; return its loss, D(x), D(G(z)) and accuracy."""
        with tf.GradientTape() as tape:
            # Two passes, so that batch normalisation never mixes real images with fake ones.
            real_logits, real_penalty = logits_and_penalty(self.discriminator, real, penalty_weight)
            fake_logits, fake_penalty = logits_and_penalty(self.discriminator, fake, penalty_weight)
            d_loss = discriminator_loss(real_logits, fake_logits)
            loss = d_loss + penalty_weight * (real_penalty + fake_penalty)
        self.descend(tape, loss, self.discriminator, self.d_optimizer)
        correct = tf.concat((real_logits > 0, fake_logits < 0), 0)
        means = tf.sigmoid(real_logits), tf.sigmoid(fake_logits), tf.cast(correct, tf.float32)
        return d_loss, *map(tf.reduce_mean, means)

    def descend(self, tape, loss, network, optimizer):
        """Let the optimizer lower the loss, recorded by tape, by changing the network."""
        variables = network.trainable_variables
        share = tf.constant(1.0 / self.replicas)  # as the optimizer adds up all replicas' gradients
        optimizer.apply_gradients(zip(tape.gradient(loss, variables, share), variables))

    def update_average(self, decay):
        """Move the averaged generator towards the generator: not at all at a decay of 1."""
        for average, value in zip(self.average.variables, self.generator.variables):
            average.assign_add((1.0 - decay) * (value - average))


def generate(generator, noise):
    """Return the generator's uint8 images [n, H, W, C] for noise [n, Z_SIZE]."""
    n = max(1, min(500, 2**24 // math.prod(generator.output_shape[1:])))  # at a time: 64 MB
    parts = (generator(noise[i : i + n], training=False) for i in range(0, len(noise), n))
    return np.concatenate([to_pixels(part.numpy()) for part in parts])


# ------------------------------------------------------------------------------------------------
# Data: every source becomes one array, uint8 [N, H, W, C], grey (C = 1) or RGB (C = 3)
# ------------------------------------------------------------------------------------------------
MNIST_FILE = "train-images-idx3-ubyte.gz"
MNIST_BYTES = 9912422
MNIST_SHA256 = "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://dataset.bj.bcebos.com/mnist/",  # in Beijing
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
SILENCE = 10  # seconds without 64 kB after which a mirror is given up
LIMIT = 2**30  # bytes of pixels unpacked or converted in memory; an .npy of uint8 may be larger
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
# Pillow knows more formats, whatever a file's name: for PostScript it runs another program.
FORMATS = "PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"


class Problem(Exception):
    """What is told to the user in one line; status is the exit status."""

    def __init__(self, message, status=2):
        super().__init__(message)
        self.status = status


class NoMnist(Problem):
    """Tells, in several lines, why MNIST could not be had and where to put it by hand."""


def first_line(error):
    """Return the first line of what an exception says, or its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def warn(message):
    """Print a line about something that does not end the run."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def show_progress(text):
    """Show text in the terminal's last line, to be overwritten by the next; never in a file."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(text[:width].ljust(width), end="\r", flush=True)


def load_images():
    """Return (name, images) of DATA. Raises Problem if there are none."""
    if DATA == "digits":
        return DATA, draw_digits(20000)
    if DATA == "mnist":
        return DATA, load_mnist()
    path = Path(os.path.expanduser(DATA))
    if not os.path.isdir(path) and not os.path.isfile(path):
        raise Problem(f'DATA={DATA}: no such file or folder, nor "mnist" or "digits"')
    name = re.sub(r"[^A-Za-z0-9]+", "-", path.resolve().name.split(".")[0]).strip("-")[:40]
    files = [path] if path.is_file() else sorted(path.glob("*train-images*idx3-ubyte*"))
    file = next(filter(Path.is_file, files), None)
    return name or "images", read_file(file) if file else read_folder(path)


def load_mnist():
    """Return MNIST's images from Keras' cache, else from the web. Raises NoMnist."""
    cache = Path(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")) / "datasets"
    ours = cache / f"gan-{MNIST_FILE}"  # only used where a damaged file has the usual name
    for file in (cache / "mnist.npz", cache / MNIST_FILE, ours):
        try:
            if os.path.isfile(file):
                return read_file(file)
        except Problem as problem:
            warn(f"{problem}; left as it is, and not used")
    # Looked up before the download, as another process may end the same download meanwhile.
    target = ours if os.path.exists(cache / MNIST_FILE) else cache / MNIST_FILE
    reasons = []
    for mirror in MIRRORS:
        try:
            content = download(mirror + MNIST_FILE)
        except OSError as error:
            reasons.append(f"    {mirror}\n        {error}")
            continue
        try:
            cache.mkdir(parents=True, exist_ok=True)
            write(target, lambda temporary, content=content: temporary.write_bytes(content))
        except OSError as error:
            warn(f"MNIST could not be kept for the next time: {error}")
        return np.frombuffer(gzip.decompress(content), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    advice = f"Put the file, from any mirror, at {cache / MNIST_FILE}"
    raise NoMnist("\n".join(("MNIST could not be downloaded:", *reasons, advice)))


def download(url):
    """Return the bytes of MNIST_FILE at url. Raises OSError, also after SILENCE."""
    arrived = queue.Queue(4)  # of parts; what is sent after that has to wait

    def fetch():  # in a thread, because looking up a host's address knows no time limit
        try:
            with urllib.request.urlopen(url, timeout=SILENCE) as response:
                while part := response.read(2**16):
                    arrived.put(part)
            arrived.put(b"")
        except Exception as error:  # noqa: BLE001 - whatever it is, the next mirror is tried
            arrived.put(OSError(getattr(error, "reason", error)))

    threading.Thread(target=fetch, daemon=True).start()
    content = b""
    try:
        while len(content) <= MNIST_BYTES and (part := arrived.get(timeout=SILENCE)):
            if isinstance(part, OSError):
                raise part
            content += part
            show_progress(f"downloading MNIST: {len(content) / MNIST_BYTES:4.0%} from {url}")
    except queue.Empty:
        raise OSError(f"silent for {SILENCE} seconds") from None
    finally:
        show_progress("")
    if hashlib.sha256(content).hexdigest() != MNIST_SHA256:
        raise OSError("what it sent is not MNIST")
    return content


def draw_digits(count):
    """Return count digits drawn in a font, uint8 [count, 28, 28, 1]: a function of SEED."""
    random = np.random.default_rng(SEED)
    font = ImageFont.load_default(108)  # four times too large: shrinking smooths the edges
    glyphs = []
    for digit, thickness in itertools.product("0123456789", range(5)):
        glyphs.append(Image.new("L", (144, 144)))
        draw = ImageDraw.Draw(glyphs[-1])
        draw.text((72, 72), digit, 255, font, anchor="mm", stroke_width=thickness)
    images = np.empty((count, 28, 28, 1), np.uint8)
    for image in images:
        turn, slant = random.normal(0, 0.1), random.normal(0, 0.2)
        turned = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
        matrix = 4 * np.array([[1, slant], [0, 1]]) @ turned / random.uniform(0.8, 1.15, 2)
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
        return as_images(read_npz(path) if head[:2] == b"PK" else read_idx(path, head))
    except Exception as error:  # noqa: BLE001 - damaged files raise nearly anything
        raise Problem(f"{path} cannot be used: {first_line(error)}") from None


def read_npz(path):
    """Return the array x_train or images of an .npz file, else its first one."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > LIMIT:
            raise ValueError("over 1 GB; save its images as an .npy file")
    with np.load(path, allow_pickle=False) as arrays:
        for name in ("x_train", "images", *arrays):
            if name in arrays and isinstance(array := arrays[name], np.ndarray):
                return array
    raise ValueError("it holds no array")


def read_idx(path, head):
    """Return the array of an IDX file, MNIST's format; memory-mapped where it is not packed."""
    packed = head[:2] == b"\x1f\x8b"
    with gzip.open(path) if packed else open(path, "rb") as file:
        head = file.read(4)
        if head not in (b"\0\0\x08\x03", b"\0\0\x08\x04"):  # unsigned bytes in 3 or 4 dimensions
            raise ValueError("no images in IDX, .npz or .npy form")
        shape = tuple(np.frombuffer(file.read(4 * head[3]), ">u4").tolist())
        size, start = math.prod(shape), 4 + 4 * head[3]
        if packed and size <= LIMIT:
            content = file.read(size + 1)
            if len(content) == size:
                return np.frombuffer(content, np.uint8).reshape(shape)
        elif packed:
            raise ValueError("over 1 GB; unpack it")
        elif path.stat().st_size == start + size:
            return np.memmap(path, np.uint8, "r", start, shape)
    raise ValueError(f"its length does not fit its shape {shape}")


def as_images(array):
    """Return array [N, H, W] or [N, H, W, C] as uint8 images, other numbers scaled to 0..255.

    Raises ValueError.
    """
    array = array[..., np.newaxis] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[3] not in (1, 3) or array.size == 0:
        raise ValueError(f"its shape is {array.shape}, not [N, H, W], [N, H, W, 1] or [N, H, W, 3]")
    size = math.prod(array.shape[1:])
    if size > 2**24:
        raise ValueError(f"images of shape {array.shape[1:]} are too large")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "biuf":
        raise ValueError(f"its numbers are {array.dtype}, not uint8")
    if array.size > LIMIT // 2:
        raise ValueError(f"over 500 MB of pixels as {array.dtype}; save them as uint8")
    n = max(1, 2**18 // size)  # images at a time, as it may be a large file
    parts = [slice(i, i + n) for i in range(0, len(array), n)]
    low = float(np.min([array[part].min() for part in parts]))
    high = float(np.max([array[part].max() for part in parts]))
    if array.dtype.kind in "iu" and low >= 0 and 128 <= high <= 255:
        return array.astype(np.uint8)
    if not 0 < high - low < math.inf:
        raise ValueError(f"its numbers reach from {low} to {high}")
    images = np.empty(array.shape, np.uint8)
    for part in parts:
        images[part] = np.rint((array[part].astype(np.float64) - low) * (255 / (high - low)))
    return images


def read_folder(folder):
    """Return the images below folder, IMAGE_SIZE squares, without bad ones. Raises Problem."""
    files = []
    for root, folders, names in os.walk(folder):  # no links to folders, so not in a circle
        if {"settings.json", "epoch-000.png"} <= {*names}:
            folders.clear()  # it is a run of ours
        else:
            files += sorted(Path(root, n) for n in names if Path(n).suffix.lower() in PICTURES)
        folders.sort()
    try:
        images = np.empty((len(files), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    except MemoryError as error:
        raise Problem(f"{first_line(error)}; try a smaller IMAGE_SIZE") from None
    count = 0  # of usable images

    def read(start):  # 100 files, as with one at a time the threads mostly wait for each other
        return list(map(read_picture, files[start : start + 100], images[start:]))

    pool = ThreadPoolExecutor()
    try:
        problems = itertools.chain.from_iterable(pool.map(read, range(0, len(files), 100)))
        for done, problem in enumerate(problems):
            if not problem:
                images[count] = images[done]  # closes the gaps that skipped files left
                count += 1
            elif done - count < 3:
                warn(f"skipped {str(files[done])!r}: {first_line(problem)}")
            if done % 500 == 0:
                show_progress(f"reading images: {done:,} of {len(files):,}")
    finally:  # Ctrl-C does not wait for the files that are still to come
        pool.shutdown(cancel_futures=True)
        show_progress("")
    if len(files) - count > 3:
        warn(f"skipped {len(files) - count:,} files of {len(files):,} in all")
    if not count:
        raise Problem(f"DATA={DATA}: no usable image ({' '.join(PICTURES)}) in this folder")
    images = images[:count]
    grey = all((image == image[..., :1]).all() for image in images)
    return np.ascontiguousarray(images[..., :1]) if grey else images


def read_picture(file, image):
    """Put a file's picture into image, uint8 [IMAGE_SIZE, IMAGE_SIZE, 3]; return what failed."""
    side = IMAGE_SIZE, IMAGE_SIZE
    try:
        if not os.path.isfile(file):  # a pipe, say
            raise OSError("it is no file, or must not be read")
        with Image.open(file, formats=FORMATS) as picture:
            if math.prod(picture.size) > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"it has {math.prod(picture.size):,} pixels, too many")
            picture.draft("RGB", side)  # a large JPEG is decoded at part size
            ImageOps.exif_transpose(picture, in_place=True)
            if picture.mode[0] in "IF":  # 16 bits or floats, which Pillow would clip
                values = np.asarray(picture, np.float64)
                if not np.isfinite(values).all():
                    raise ValueError("its pixels are not finite")
                low, high = (0, 65535) if ";16" in picture.mode else (values.min(), values.max())
                values -= low  # in place, as there may be 700 MB of them
                values *= 255 / max(high - low, 1e-9)
                picture = Image.fromarray(np.rint(values, out=values).astype(np.uint8))
            if picture.has_transparency_data:
                picture = ImageOps.fit(picture.convert("RGBA"), side)
                picture = Image.alpha_composite(Image.new("RGBA", side, "black"), picture)
            picture = picture if picture.mode == "L" else picture.convert("RGB")
            image[:] = ImageOps.fit(picture, side).convert("RGB")
    except Exception as error:  # noqa: BLE001 - damaged files raise nearly anything
        return error


# ------------------------------------------------------------------------------------------------
# Runs: each has its folder of pictures, figures and checkpoints, from which it can go on
# ------------------------------------------------------------------------------------------------
CHECKPOINT_SECONDS = 600  # between checkpoints inside a long epoch
CHECKPOINTS = f"step-{9 * '[0-9]'}.npz"  # files of other names are the user's: never deleted
COLUMNS = "epoch", *METRICS, "spread", "images/s", "seconds"
HEADER = " epoch   D loss  G loss   D(x)  D(G(z))  D acc  spread  images/s  seconds"
ROW = "{epoch:4.0f}/{0:<4}{d_loss:6.3f} {g_loss:7.3f}  {D(x):5.3f}   {D(G(z)):6.3f}"
ROW += "   {D accuracy:4.0%}  {spread:6.2f} {images/s:9,.0f} {seconds:8.1f}"
# What a resumed run cannot change: its data, and the networks' shapes and range of pixels.
FIXED = "DATA", "IMAGE_SIZE", "SEED", "MODEL", "Z_SIZE", "PRIOR", "G_HIDDEN", "D_HIDDEN"
FIXED += "OUTPUT", "BATCH_NORM"


def write(path, save):
    """Have save(temporary) write a file, then rename it: a crash leaves path whole, old or new."""
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
    numbers = (re.fullmatch(rf"{name}-(\d+)", path.name) for path in out.iterdir())
    highest = max((int(match[1]) for match in numbers if match), default=0)
    for number in itertools.count(highest + 1):
        folder = out / f"{name}-{number:03}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # another run took this number just now
            continue


def find_run(run, out):
    """Return the folder run, or that of the newest run in out if run is None. Raises Problem."""
    if run:
        if not Path(run, "settings.json").is_file():
            raise Problem(f"--run {run}: this is no run's folder (it has no settings.json)")
        return Path(run)
    runs = [file for file in Path(out).glob("*/settings.json") if file.is_file()]
    if not runs:
        raise Problem(f"OUT={out}: no run there yet; start one with: python gan.py")
    return max(runs, key=os.path.getmtime).parent


def lock(folder, name="lock"):
    """Keep other processes that ask for this lock out until this one ends. Raises Problem."""
    file = open(folder / name, "a")  # noqa: SIM115 - it stays open as long as the process lives
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise Problem(f"{folder} is in use by another process") from None
    except OSError as error:
        warn(f"{folder} cannot be locked ({error}); do not use it twice at once")
    return file


def save_settings(folder):
    """Write the settings to the run's settings.json."""
    text = json.dumps({name: globals()[name] for name in SETTINGS}, indent=1) + "\n"
    write(folder / "settings.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_settings(folder):
    """Return the settings of the run's settings.json. Raises Problem."""
    file = folder / "settings.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        odd = sorted(settings.keys() ^ set(SETTINGS))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise Problem(f"{file} cannot be used: {error}") from None
    if odd:
        raise Problem(f"{file} cannot be used: missing or unknown in it: {', '.join(odd)}")
    return {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}


def check_finite(gan):
    """Raise Problem if training has gone astray: where a sum of losses or a weight is no number."""
    if not all(np.isfinite(variable.numpy()).all() for variable in gan.variables()):
        raise Problem(
            f"training diverged in epoch {gan.epoch + 1}, by step {gan.step:,}: a loss or a weight "
            "is no finite number. Go on from the checkpoint before with --resume and a lower "
            "LEARNING_RATE",
            status=1,
        )


def save_checkpoint(folder, gan):
    """Write all that training changes to one file in checkpoint/; keep the last three files."""
    check_finite(gan)
    values = [variable.numpy() for variable in gan.variables()]
    values += [gan.rows, (gan.epoch, gan.position, gan.step), gan.images_shape]
    file = folder / "checkpoint" / f"step-{gan.step:09}.npz"
    file.parent.mkdir(exist_ok=True)
    write(file, lambda temporary: np.savez(temporary, *values))
    others = [other for other in file.parent.glob(CHECKPOINTS) if other != file]
    for old in sorted(others, key=os.path.getmtime)[:-2]:
        old.unlink()


def read_checkpoint(folder):
    """Return the arrays of the run's newest readable checkpoint. Raises Problem if all are bad."""
    files = sorted((folder / "checkpoint").glob(CHECKPOINTS), reverse=True)
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                checkpoint = [arrays[f"arr_{i}"] for i in range(len(arrays))]
            if len(checkpoint) < 4 or [a.shape for a in checkpoint[-2:]] != [(3,), (4,)]:
                raise ValueError("it is no checkpoint")
            return checkpoint
        except Exception as error:  # noqa: BLE001 - damaged files raise nearly anything
            warn(f"{file} is damaged ({first_line(error)}); going back to the one before")
    if files or (folder / "epoch-002.png").exists():
        raise Problem(f"{folder} has no checkpoint that can be read; start a new run")
    return None  # it ended before its first one


def restore(gan, checkpoint):
    """Bring gan to where read_checkpoint's arrays were saved. Raises Problem."""
    *values, rows, counters, shape = checkpoint
    if tuple(shape) != gan.images_shape:
        raise Problem(
            f"DATA={DATA} has changed: it holds images {list(gan.images_shape)} now, and held "
            f"{shape.tolist()} when the run was started"
        )
    variables = gan.variables()
    if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
        raise Problem("the checkpoint does not fit the networks in the run's settings.json")
    gan.rows = rows.tolist()
    gan.epoch, gan.position, gan.step = counters.tolist()
    for variable, value in zip(variables, values):
        variable.assign(value)
    gan.set_rate(float(LEARNING_RATE))  # which may be a new one


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


def ticks(low, high, most, finest):
    """Return round numbers from low to high: at most that many, finest or more apart."""
    steps = (n * 10.0**power for power in range(-3, 40) for n in (1, 2, 5))
    step = next(step for step in steps if step >= finest and (high - low) / step < most)
    return np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step


def plot(rows):
    """Return a chart, 800 x 500, of rows: the losses, and below them how real D finds images."""
    picture, font = Image.new("RGB", (800, 500), "white"), ImageFont.load_default(14)
    draw = ImageDraw.Draw(picture)
    epochs, d_loss, g_loss, real, fake, *_ = np.transpose(rows)
    xs = 60 + 710 * (epochs - 1) / max(1, epochs[-1] - 1)
    losses = min(0, g_loss.min()), max(1, d_loss.max(), g_loss.max())
    judgements = ("D(x): of real images", real), ("D(G(z)): of fakes, 0.5 is a draw", fake)
    panels = ((35, losses, (("D loss", d_loss), ("G loss", g_loss))), (275, (0, 1), judgements))
    for top, (low, high), lines in panels:
        for tick in ticks(low, high, 5, 0.001):
            y = top + 180 * (high - tick) / (high - low)
            draw.line((60, y, 770, y), "#888888" if top == 275 and tick == 0.5 else "#dddddd")
            draw.text((52, y), f"{tick:g}", "black", font, anchor="rm")
        for epoch in ticks(1, epochs[-1], 13, 1):
            x = np.interp(epoch, epochs, xs)
            draw.text((x, top + 185), f"{epoch:.0f}", "black", font, anchor="ma")
        for (name, line), color, left in zip(lines, ("#1f5fd0", "#d0451f"), (60, 260)):
            draw.text((left, top - 25), name, color, font)
            points = list(zip(xs, top + 180 * (high - line) / (high - low)))
            draw.line(points, color, 2, joint="curve")
            for x, y in points if len(points) < 40 else ():
                draw.ellipse((x - 2, y - 2, x + 2, y + 2), color)
    draw.text((415, 477), "epoch", "black", font, anchor="ma")
    return picture


def save_history(folder, shape):
    """Write training.gif and progress.png of the run's epochs; shape is that of an image."""
    row = tile(np.zeros((GRID, *shape), np.uint8), GRID)
    files = [file for file in folder.glob("epoch-*.png") if file.stem[6:].isdecimal()]
    files.sort(key=lambda file: int(file.stem[6:]))

    def load(count, change):
        chosen = sorted({*np.linspace(0, len(files) - 1, count, dtype=int)}) if files else ()
        pictures = (open_picture(files[i]) for i in chosen)  # one by one: they may be large
        # GRID may have been another one before.
        return [change(p) for p in pictures if p and p.width == row.width]

    side = min(400, row.width)
    # The first rows of the beginning and of each tenth.
    rows = load(11, lambda p: p.convert(row.mode).crop((0, 0, *row.size)))
    frames = load(100, lambda p: ImageOps.contain(p.convert("RGB"), (side, side)))
    if not (rows and frames):
        return
    write(folder / "progress.png", Image.fromarray(np.concatenate(rows)).save)
    times = [max(80, 6000 // len(frames))] * (len(frames) - 1) + [2000]  # milliseconds
    while True:
        small = [ImageOps.contain(frame, (side, side)).quantize(32) for frame in frames]
        movie = io.BytesIO()
        small[0].save(movie, "gif", save_all=True, append_images=small[1:], duration=times, loop=0)
        if movie.tell() < 3e6 or side < 100:
            break
        side = side * 3 // 4
    write(folder / "training.gif", lambda temporary: temporary.write_bytes(movie.getvalue()))


def open_picture(file):
    """Return the picture in file, or None where it is damaged or missing."""
    try:
        with Image.open(file) as picture:
            picture.load()
            return picture
    except Exception:  # noqa: BLE001 - damaged files raise nearly anything
        return None


def tensorboard(folder, rows):
    """Return a function that adds an epoch's row to TensorBoard's curves; show it the rows."""
    if not importlib.util.find_spec("tensorboard"):
        return lambda row: None
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()  # all epochs are written anew, so that none is there twice
    writer = tf.summary.create_file_writer(os.fsencode(folder))

    def show(row):
        with writer.as_default(int(row[0])):
            for name, value in zip(COLUMNS[1:], row[1:]):
                tf.summary.scalar(name, value)
            if picture := open_picture(folder / f"epoch-{row[0]:03.0f}.png"):
                tf.summary.image("samples", np.atleast_3d(picture)[np.newaxis])
        writer.flush()

    with writer.as_default(0):
        text = "\n".join(f"    {name} = {globals()[name]!r}" for name in SETTINGS)
        tf.summary.text("settings", text)
    for row in rows:
        show(row)
    return show


# ------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------
def write_rows(folder, rows):
    """Write the rows, one for each epoch, to losses.csv, and draw them in losses.png."""
    lines = [COLUMNS, *([f"{value:.7g}" for value in row] for row in rows)]
    text = "".join(",".join(line) + "\r\n" for line in lines)
    write(folder / "losses.csv", lambda temporary: temporary.write_bytes(text.encode()))
    write(folder / "losses.png", plot(rows).save)


def pixel_spread(images):
    """Return the mean over the pixels of their standard deviation over the images."""
    rows = (images[:, y] for y in range(images.shape[1]))  # one by one, as floats take memory
    return float(np.mean([np.std(row, axis=0, dtype=np.float64) for row in rows]))


def train(gan, images, folder, signals):
    """Train to the end of EPOCHS; return False if something in the list signals stopped it."""
    noise = draw_noise(max(256, GRID**2), -1)  # -1: a key that no iteration has
    some = images[:: max(1, len(images) // 1000)]
    real_spread = pixel_spread(some)
    if some.max() < 32:
        warn(f"the images are nearly black: their pixels reach {some.max()} of 255")
    said = {}
    if gan.step == 0:
        write(folder / "epoch-000.png", tile(generate(gan.average, noise)[: GRID**2], GRID).save)
    show = tensorboard(folder, gan.rows)
    print(HEADER)
    while gan.epoch < EPOCHS:
        row = train_epoch(gan, images, folder, signals)
        if not row:
            return False
        check_finite(gan)
        fakes = generate(gan.average, noise)
        iterations, *sums = gan.sums.numpy()
        row |= {name: total / max(iterations, 1) for name, total in zip(METRICS, sums)}
        row |= {"epoch": gan.epoch + 1, "spread": pixel_spread(fakes) / (real_spread or 1.0)}
        gan.rows.append([float(row[name]) for name in COLUMNS])
        gan.epoch, gan.position = gan.epoch + 1, 0
        gan.sums.assign(tf.zeros_like(gan.sums))
        # The checkpoint comes last: after a crash before it, the epoch is done once more.
        write(folder / f"epoch-{gan.epoch:03}.png", tile(fakes[: GRID**2], GRID).save)
        write_rows(folder, gan.rows)
        write(folder / "generator.keras", gan.average.save)
        write(folder / "discriminator.keras", gan.discriminator.save)
        save_checkpoint(folder, gan)
        show(gan.rows[-1])
        show_progress("")
        print(ROW.format(EPOCHS, **row))
        if gan.step >= 300:  # before that G is just untrained
            said = explain(row, said)
        if EARLY_STOP and EARLY_STOP[0] <= row["D(G(z))"] <= EARLY_STOP[1]:
            print("EARLY_STOP: D(G(z)) is where you wanted it.")
            return True
        if signals and gan.epoch < EPOCHS:
            return False
    return True


def train_epoch(gan, images, folder, signals):
    """Train on the rest of an epoch; return its speed and time, or None if signals stopped it."""
    order = np.random.default_rng((SEED, gan.epoch)).permutation(len(images))
    iteration = D_STEPS * BATCH_SIZE  # images
    most = max(1, min(100, 2**26 // (iteration * images[0].nbytes)))  # iterations in 64 MB
    began = saved = time.perf_counter()
    trained, seconds, n = 0, 0, 1
    while n := min(n, (len(images) - gan.position) // iteration):
        started = time.perf_counter()
        chosen = order[gan.position : gan.position + n * iteration]
        batches = images[chosen].reshape(n, D_STEPS, BATCH_SIZE, *images.shape[1:])
        gan.train(batches, gan.step, gan.epoch * len(images) + gan.position)
        gan.step += n
        gan.position += n * iteration
        if not np.isfinite(gan.sums.numpy()).all():
            check_finite(gan)
        if isinstance(images, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
            images._mmap.madvise(mmap.MADV_DONTNEED)  # else a large file fills the memory
        now = time.perf_counter()
        trained, seconds = trained + n * iteration, seconds + now - started
        more = gan.position + iteration <= len(images)
        if more and (signals or now - saved > CHECKPOINT_SECONDS):
            save_checkpoint(folder, gan)
            saved = now
            if signals:
                return None
        bar = "#" * round(gan.position / len(images) * 30)
        speed = f"{trained / seconds:,.0f} images/s"
        show_progress(f"{gan.epoch + 1:4}/{EPOCHS:<4} [{bar:.<30}] {speed}")
        # Half a second of work at a time keeps the overhead low and Ctrl-C quick. Several workers
        # must all do the same at a time, whatever their speed, or they wait for each other.
        n = min(most, 20) if gan.replicas > 1 else max(1, min(most, int(0.5 * n / (now - started))))
    return {"images/s": trained / max(seconds, 1e-9), "seconds": time.perf_counter() - began}


COLLAPSE = (
    "G makes nearly the same image again and again (mode collapse). Try GRADIENT_PENALTY=1 or a "
    "lower LEARNING_RATE."
)
OVERPOWERED = (
    "D tells nearly all fakes from real images, and G learns little from it. Try a larger "
    "GRADIENT_PENALTY, a smaller D_HIDDEN, or SMOOTH=0.1."
)


def explain(row, said):
    """Say in plain words what goes wrong by an epoch's row, once; return what has been said."""
    now = {COLLAPSE: row["spread"] < 0.5, OVERPOWERED: row["D accuracy"] > 0.99}
    for text, true in now.items():
        if true and not said.get(text):
            print(textwrap.fill(text, 78, initial_indent="   ! ", subsequent_indent="     "))
    return now


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------
def settings_block():
    """Return the lines at the top of this file that set the settings."""
    source = Path(__file__).read_text(encoding="utf-8")
    return source.partition("# fmt: off\n")[2].partition("# fmt: on\n")[0]


# fmt: off
CHOICES = {
    "MODEL": ("mlp", "dcgan"), "OUTPUT": ("tanh", "sigmoid"), "LOSS": ("non-saturating", "minimax"),
    "ACTIVATION": ("leaky_relu", "relu", "tanh"), "PRIOR": ("normal", "sphere"),
    "EARLY_STOP": (None,), "BATCH_NORM": (True, False, "G"), "LR_DECAY": (True, False),
    "PRECISION": ("float32", "bfloat16"),
}
RANGES = {  # of whole numbers where the limits are, else of any
    "IMAGE_SIZE": (2, 1024), "Z_SIZE": (1, 2**16), "G_HIDDEN": (1, 2**16), "D_HIDDEN": (1, 2**16),
    "LEAK": (0.0, 1.0), "SMOOTH": (0.0, 0.5), "GRADIENT_PENALTY": (0.0, 1e9),
    "PENALTY_EVERY": (1, 1000), "EPOCHS": (1, 10**6), "BATCH_SIZE": (2, 10**6),
    "LEARNING_RATE": (1e-12, 1e12), "G_RATE": (0.01, 100.0), "BETA_1": (0.0, 1 - 1e-6),
    "BETA_2": (0.0, 1 - 1e-6), "D_STEPS": (1, 20), "G_STEPS": (1, 20), "EMA": (0.0, 1 - 1e-9),
    "GRID": (1, 64), "SEED": (0, 2**31 - 1),
}
# fmt: on


def accepts(name, value):
    """Return whether the setting of that name can have that value."""
    if name in ("DATA", "OUT"):
        return type(value) is str and value.strip() != "" and "\0" not in value
    if name in CHOICES and (type(value) is not tuple or name not in ("PRIOR", "EARLY_STOP")):
        return any(type(value) is type(choice) and value == choice for choice in CHOICES[name])
    low, high = RANGES.get(name, (-1e6, 1e6))
    kinds = (int,) if type(low) is int else (int, float)
    values = value if type(value) is tuple else (value,)
    if not values or not all(type(v) in kinds and low <= v <= high for v in values):
        return False
    if name in CHOICES:  # an interval
        return len(values) == 2 and values[0] < values[1]
    return type(value) is not tuple or name in ("G_HIDDEN", "D_HIDDEN")


def check_settings(settings):
    """Raise Problem for a setting that is unknown, or of a value that it does not accept."""
    for name, value in settings.items():
        if name not in SETTINGS:
            near = difflib.get_close_matches(name.upper(), SETTINGS, 1)
            raise Problem(f"no setting {name}; {f'is {near[0]} meant?' if near else 'see --help'}")
        if not accepts(name, value):
            line = re.search(rf"^{name} = .*? # (.*)$", settings_block(), re.MULTILINE)
            hint = f"{name} is: {line[1]}" if line else "see --help"
            if name in RANGES and " to " not in hint:
                hint += " ({:,} to {:,})".format(*RANGES[name])
            raise Problem(f"{name}={str(value)[:99]} will not do; {hint}")


def check_images(images, replicas):
    """Raise Problem where the settings do not fit the images, or not so many replicas."""
    need = f"BATCH_SIZE={BATCH_SIZE}" + (f" times D_STEPS={D_STEPS}" if D_STEPS > 1 else "")
    if len(images) < BATCH_SIZE * D_STEPS:
        raise Problem(f"DATA={DATA} has only {len(images)} images, but {need}")
    if BATCH_SIZE % replicas:
        raise Problem(f"BATCH_SIZE={BATCH_SIZE} cannot be divided among {replicas} replicas")
    side = max(images.shape[1:3])
    if GRID > max(1, 10240 // side):
        raise Problem(
            f"GRID={GRID} makes pictures of {GRID * side:,} pixels a side of images of {side}: "
            f"GRID={max(1, 10240 // side)} is the most"
        )
    if MODEL != "dcgan":
        return
    if not type(G_HIDDEN) is type(D_HIDDEN) is tuple:
        raise Problem("MODEL=dcgan needs channels for each stage: G_HIDDEN=128,64 D_HIDDEN=64,128")
    height, width = images.shape[1:3]
    unit = 2 ** max(len(G_HIDDEN), len(D_HIDDEN))
    if height % unit or width % unit:
        fit = max(1, height // unit) * unit
        raise Problem(
            f"DATA={DATA} has images of {width} x {height}, but G_HIDDEN and D_HIDDEN have "
            f"{int(math.log2(unit))} stages, so sides must be multiples of {unit}: use fewer "
            f"stages, or for a folder of images IMAGE_SIZE={fit} or {fit + unit}"
        )


def parse_setting(argument):
    """Return (name, value) of NAME=value, whose value is a literal or else a text."""
    name, equals, value = argument.partition("=")
    if not equals:
        raise Problem(f"{argument!r} is neither an option nor NAME=value; see --help")
    if name in ("DATA", "OUT"):
        value = os.path.expanduser(value.strip("'\""))
        if name == "DATA" and value not in ("mnist", "digits", ""):
            value = os.path.abspath(value)  # as a run may be resumed from another folder
        return name, value
    try:
        return name, ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return name, value


def open_run(folder, changes, fixed=FIXED):
    """Set the settings to the run's, with the changes. Raises Problem for one it cannot take."""
    settings = read_settings(folder)
    for name in fixed:
        if changes.get(name, settings[name]) != settings[name]:
            raise Problem(
                f"{name}={changes[name]!r} cannot be changed in a run that was started with "
                f"{name}={settings[name]!r}; start a new run, without --resume"
            )
    settings |= changes | {"OUT": str(folder.parent)}
    check_settings(settings)
    globals().update(settings)


def clean_up(folder):
    """Remove what a process that was killed while it wrote has left in a run's folder."""
    if (folder / "checkpoint").is_symlink():  # what is deleted there may belong to another run
        raise Problem(f"{folder / 'checkpoint'} is a link; put the folder itself there")
    for leftover in (*folder.glob("tmp-[0-9]*-*"), *folder.glob("checkpoint/tmp-[0-9]*-*")):
        if not leftover.is_dir():  # such a folder is the user's
            leftover.unlink()


def choose_strategy():
    """Return (strategy, whether this process is the chief, the one that keeps the run).

    TF_CONFIG names this machine's place among several. Raises Problem.
    """
    if "TF_CONFIG" in os.environ:
        try:
            config = json.loads(os.environ["TF_CONFIG"])
            kind, index = config["task"]["type"], int(config["task"]["index"])
            print(f"worker         {kind} {index}, with {config['cluster']}")
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except KeyError as error:
            raise Problem(f"TF_CONFIG has no {error}") from None
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it
            raise Problem(f"TF_CONFIG cannot be used: {first_line(error)}") from None
        return strategy, kind == "chief" or (index == 0 and "chief" not in config["cluster"])
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy(), True
    return tf.distribute.get_strategy(), True


def check_workers(gan, images):
    """Raise Problem where the workers differ in their settings, data or checkpoint."""
    settings = [globals()[name] for name in SETTINGS if name not in ("DATA", "OUT")]
    some = images[:: 1 + len(images) // 100].tobytes()
    mine = float(zlib.crc32(repr((settings, images.shape, gan.step)).encode() + some))

    @tf.function
    def mean():
        values = gan.strategy.run(lambda: tf.constant(mine, tf.float64))
        return gan.strategy.reduce("MEAN", values, axis=None)

    if float(mean()) != mine:
        raise Problem(
            "the workers differ in their settings, data or checkpoint; start all of them with the "
            "same command, and for --resume with an OUT that all of them see"
        )


def describe(name, images, gan, folder):
    """Print what is going to be trained, on what."""
    count, height, width, channels = images.shape
    kind = "grey" if channels == 1 else "RGB"
    gpus = len(tf.config.list_logical_devices("GPU"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"data           {name}: {count:,} {kind} images, {width} x {height}")
    for network in (gan.generator, gan.discriminator):
        sizes = [math.prod(network.input_shape[1:])]
        sizes += [vars(x).get("units") or vars(x).get("filters") for x in network.layers]
        units = "-".join(str(n) for n in sizes if n)
        print(f"{network.name:14} {units}: {network.count_params():,} parameters")
    replicas = f", {gan.replicas} replicas" if gan.replicas > 1 else ""
    print(f"device         {f'{gpus} GPU' if gpus else f'CPU, cores: {cores}'}{replicas}")
    if not importlib.util.find_spec("tensorboard"):
        print("tensorboard    not installed; for curves of all runs: pip install tensorboard")
    print(f"run            {folder}\n")


def resume_command(folder, *settings):
    """Return the command that goes on with the run in folder."""
    folder = f'"{folder}"' if os.name == "nt" else shlex.quote(str(folder))
    return " ".join(("python gan.py --resume --run", folder, *settings))


def load_images_or_digits():
    """Return (name, images) of DATA, or drawn digits where MNIST is not to be had."""
    try:
        return load_images()
    except NoMnist as problem:
        rule = "!" * 78
        print(f"{rule}\n{problem}\nThis run trains on DRAWN DIGITS instead.\n{rule}\n")
        globals().update(DATA="digits")
        return load_images()


def run(resume, run_folder, changes, signals):
    """Train a new run or go on with one; return the exit status. Raises Problem."""
    check_settings(changes)
    strategy, chief = choose_strategy()
    if not chief:  # it trains as the chief does, but what it prints and writes is of no use
        sys.stdout = open(os.devnull, "w", errors="replace")  # noqa: SIM115 - until it ends
    checkpoint = locked = None
    if resume:
        folder = find_run(run_folder, changes.get("OUT", OUT))
        if chief:
            locked = lock(folder)
            clean_up(folder)
        open_run(folder, changes)
        checkpoint = read_checkpoint(folder)
        done = int(checkpoint[-2][0]) if checkpoint else 0
        if done >= EPOCHS:
            print(f"{folder} has finished its {done} epochs. To train it longer:")
            print(f"    {resume_command(folder, f'EPOCHS={2 * done}')}")
            return 0
        name, images = load_images()
    else:
        if run_folder:
            raise Problem("--run goes with --resume; a new run makes its own folder")
        globals().update(changes)
        check_settings({name: globals()[name] for name in SETTINGS})
        name, images = load_images_or_digits()
    check_images(images, strategy.num_replicas_in_sync)
    gan = GAN(images, strategy)
    if checkpoint:
        restore(gan, checkpoint)
    if gan.replicas > 1:
        check_workers(gan, images)
    if not chief:
        globals().update(OUT=tempfile.mkdtemp())
        atexit.register(shutil.rmtree, OUT, ignore_errors=True)
    if not (resume and chief):
        folder = make_folder(name)
        locked = lock(folder)  # noqa: F841 - until the process ends
    save_settings(folder)
    describe(name, images, gan, folder)

    def stop(number, _):  # training ends after the chunk at hand, or at a second signal at once
        signals.append(number)
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    began = time.perf_counter()
    finished = train(gan, images, folder, signals)
    show_progress("")
    if finished:
        print(f"\nDone in {time.perf_counter() - began:.0f} s: see {folder}. To train longer:")
        more = f"EPOCHS={2 * EPOCHS}" if gan.epoch == EPOCHS else "EARLY_STOP=None"
        print(f"    {resume_command(folder, more)}")
    else:
        print(f"\nStopped; nothing is lost. To go on:\n    {resume_command(folder)}")
    save_history(folder, images.shape[1:])
    return 0 if finished else 128 + signals[0]


def sample(count, run_folder, changes):
    """Save count new images of a run's generator; return the exit status. Raises Problem."""
    check_settings(changes)
    for name in set(changes) - {"SEED", "OUT"}:
        raise Problem(f"{name} cannot be set with --sample, only SEED and OUT")
    folder = find_run(run_folder, changes.get("OUT", OUT))
    open_run(folder, changes, fixed=())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # so that nothing temporary is left
    generated, file = folder / "generated", folder / "generator.keras"
    if generated.is_symlink():
        raise Problem(f"{generated} is a link; remove it, as images in it would be replaced")
    locked = lock(folder, "sample.lock")  # noqa: F841 - until the process ends
    try:
        generator = keras.saving.load_model(file, compile=False)  # safe: it runs no stored code
        first = generate(generator, draw_noise(500, -3))[:count]
    except Exception as error:  # noqa: BLE001 - damaged files raise nearly anything
        reason = first_line(error) if file.exists() else "the run has not finished an epoch"
        raise Problem(f"{file} cannot be used: {reason}") from None
    generated.mkdir(exist_ok=True)
    for leftover in folder.glob("tmp-generated-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix="tmp-generated-", dir=folder))
    try:
        for start in range(0, count, 500):
            show_progress(f"drawing images: {start:,} of {count:,}")
            images = generate(generator, draw_noise(500, -3 - start)) if start else first
            for i, image in enumerate(images[: count - start], start):
                image = image[..., 0] if image.shape[2] == 1 else image
                Image.fromarray(image).save(fresh / f"{i:05}.png")
        for old in generated.glob("*.png"):
            if re.fullmatch("[0-9]{5,6}", old.stem):
                old.unlink()  # of an older call: these do not mix
        for file in fresh.iterdir():
            file.rename(generated / file.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        show_progress("")
    columns = min(GRID, len(first))
    shown = columns * min(GRID, len(first) // columns)
    write(folder / "grid.png", tile(first[:shown], columns).save)
    ends = draw_noise(16, -4).numpy().reshape(8, 2, Z_SIZE)
    latents = np.concatenate([walk(*pair, 10) for pair in ends])
    write(folder / "interpolation.png", tile(generate(generator, latents), 10).save)
    print(f"{count:,} images: {generated / '00000.png'} and so on")
    print(f"the first {shown} in one picture: {folder / 'grid.png'}")
    print(f"walks from one noise vector to another, a row each: {folder / 'interpolation.png'}")
    return 0


def walk(start, end, steps):
    """Return noise vectors [steps, Z_SIZE] from start to end: on a sphere, as normal noise is."""
    t = np.linspace(0, 1, steps, dtype=np.float32)[:, np.newaxis]
    cosine = start @ end / (np.linalg.norm(start) * np.linalg.norm(end))
    angle = np.arccos(np.clip(cosine, -1, 1))
    if not isinstance(PRIOR, str) or np.sin(angle) < 1e-3:
        return (1 - t) * start + t * end
    return (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle)


def fail(message, status):
    """Print one line to stderr (several of NoMnist); return the exit status."""
    if not isinstance(message, NoMnist):  # a name may have line breaks and worse in it
        message = "".join(c if c.isprintable() else "?" for c in str(message))
    print(f"gan.py: {message}", file=sys.stderr)
    return status


def main():
    """Run the command line; return its exit status: 2 for bad input, 1 for what broke later."""
    sys.stdout.reconfigure(line_buffering=True, errors="replace")
    warnings.simplefilter("ignore")  # of libraries: what is wrong is said in one line
    parser = argparse.ArgumentParser(
        usage="python gan.py [NAME=value ...] [--resume | --sample N] [--run FOLDER]",
        description="Trains a GAN; look at the pictures that it saves after each epoch.",
        epilog="settings, with their defaults, for NAME=value:\n\n" + settings_block(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("settings", nargs="*", metavar="NAME=value", help="a setting of this run")
    parser.add_argument("--resume", action="store_true", help="go on with a run where it stopped")
    parser.add_argument("--sample", type=int, metavar="N", help="save N new images of a run")
    parser.add_argument("--run", metavar="FOLDER", help="the run (default: the newest one)")
    parser.error = lambda message: sys.exit(fail(f"{message}; see --help", 2))
    options = parser.parse_intermixed_args()
    try:
        globals().update(parse_setting(f"{name}={globals()[name]}") for name in ("DATA", "OUT"))
        changes = dict(map(parse_setting, options.settings))
        if options.sample is None:
            return run(options.resume, options.run, changes, [])
        if options.resume or not 0 < options.sample <= 10**6:
            raise Problem("--sample takes a number of images from 1 to 1,000,000, and no --resume")
        return sample(options.sample, options.run, changes)
    except Problem as problem:
        return fail(problem, problem.status)
    except (MemoryError, tf.errors.ResourceExhaustedError):
        return fail("out of memory; try a smaller BATCH_SIZE or smaller networks", 1)
    except KeyboardInterrupt:
        return 130
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError):
        return fail("another worker is gone; start all of them again, with --resume", 1)
    except tf.errors.OpError as error:
        return fail(f"TensorFlow failed: {str(error).strip().splitlines()[-1][:300]}", 1)
    except BrokenPipeError:  # Ctrl-C ends a tee, too
        return fail("nobody reads its output any more; to go on: python gan.py --resume", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}; what was saved before is whole", 1)


if __name__ == "__main__":
    sys.exit(main())
