"""A generative adversarial network (GAN) in one script (arXiv:1406.2661).

The generator (G) turns noise into images. The discriminator (D) says whether
an image is real (1) or fake (0). They are trained against each other, in turns,
until the fakes look real.

    python gan.py                       train on MNIST: see samples/mnist-001
    python gan.py EPOCHS=5 BETA_1=0.5   the same with other settings
    python gan.py --resume              continue the newest run, or --run FOLDER
    python gan.py --sample 1000         save 1,000 new images of the newest run
    python gan.py --sample 9 --category 7    images of category 7 alone
    python gan.py --help                show this, and all settings
"""

# ruff: noqa: BLE001 - damaged files raise anything
import argparse
import ast
import contextlib
import difflib
import glob
import gzip
import hashlib
import io
import json
import math
import os
import signal
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections import Counter
from multiprocessing.pool import ThreadPool
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # fatal errors only
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # leaves room for a second run
os.environ["KERAS_BACKEND"] = "tensorflow"
if __name__ == "__main__" and sys.stdout and sys.stdout.isatty():
    print("loading TensorFlow ...")
if sys.__stderr__:  # hides TensorFlow's remarks while it loads
    stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
try:
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers
    from PIL import Image, ImageDraw, ImageFont, ImageOps
except KeyboardInterrupt:
    sys.exit("gan.py: stopped before it began")
finally:
    if sys.__stderr__:
        os.dup2(stderr, 2)
if sys.version_info < (3, 10) or tuple(map(int, tf.__version__.split(".")[:2])) < (2, 18):
    this = f"this is Python {sys.version.split()[0]} with TensorFlow {tf.__version__}"
    sys.exit(f"gan.py needs Python 3.10 and TensorFlow 2.18, or later; {this}")

# ---- Settings: edit them here, or for one run: python gan.py EPOCHS=5 "G_HIDDEN=256,512" ----
# fmt: off
# Data
DATA = "mnist"            # "mnist", "digits" (drawn, offline), or a path, with /
IMAGE_SIZE = 64           # of a folder's pictures: pixels, or width,height
AUGMENT = False           # for few photos: D sees them mirrored, moved, blanked
SEED = 0                  # same seed, same run (on a CPU)
# Networks
MODEL = "mlp"             # "mlp": fully connected; "dcgan": convolutions
Z_SIZE = None             # length of the noise z; None: 14, dcgan: 64
CATEGORIES = None         # latent categories that G learns by itself; 1: off; None: 28, dcgan: 1
PRIOR = "sphere"          # of z: "normal", "sphere" (normal, of one length), or low,high: uniform
G_HIDDEN = 1024           # mlp: units of the hidden layer; two layers: 256,512
D_HIDDEN = 768            # D's; more of both: sharper, slower
CHANNELS = None           # dcgan: filters of G,D, then doubled; None: 56,32, above 32 px 28,32
KERNEL = 4                # dcgan: side of a filter; odd ones leave a fine grid
SKIPS = None              # dcgan: all stages of G draw; None: not up to 32 px if grey or AUGMENT
ACTIVATION = "relu"       # mlp: "relu", "leaky_relu", "tanh"
LEAK = 0.2                # slope of leaky_relu below 0
OUTPUT = "sigmoid"        # "sigmoid": pixels in 0..1, or "tanh": in -1..1
BATCH_NORM = False        # in hidden layers: True, "G" (only there) or False
# Losses
LOSS = "non-saturating"   # of G: "non-saturating", or "minimax" (learns slower)
SMOOTH = 0.0              # label smoothing: real images count as 1 - SMOOTH
GRADIENT_PENALTY = None   # R1 + R2; more: steadier, blurrier; None: 0.05; dcgan above 32 px: 0.2
PENALTY_EVERY = 8         # it acts every 8th iteration, 8 times as strong
# Training
EPOCHS = 19               # passes over the data, at least 10,000 images each
BATCH_SIZE = None         # images a step; None: 100; dcgan: 50, above 32 px 25
LEARNING_RATE = None      # of D; None: 0.004; dcgan: 0.003, above 32 px 0.0015
G_RATE = 2.0              # G's learning rate is this times D's
WARM_UP = None            # iterations of rising rates; None: 1, dcgan: 300
LR_DECAY = True           # learning rates fall to 0 over EPOCHS
BETA_1 = 0.0              # Adam's decay of the mean gradient
BETA_2 = None             # of the mean square; None: 0.99, dcgan: 0.9
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
    """Return the length of G's input: z and, for each of the CATEGORIES, a score."""
    return Z_SIZE + (CATEGORIES if CATEGORIES > 1 else 0)


def stages(shape, channels):
    """Return the shapes (H, W, C) of a dcgan: the image, then each half as large, to 7 or fewer."""
    shapes = [shape]
    while min(shape[:2]) > 7:  # halve the sides, rounded up
        shape = math.ceil(shape[0] / 2), math.ceil(shape[1] / 2), channels
        shapes.append(shape)
        channels *= 2
    return shapes


def activate(x, activation, normalize):
    """Return a hidden layer's output x normalized, if wanted, and activated."""
    if normalize:
        x = layers.BatchNormalization(momentum=0.8, synchronized=tf.distribute.has_strategy())(x)
    leaky = activation == "leaky_relu"
    return layers.LeakyReLU(LEAK)(x) if leaky else layers.Activation(activation)(x)


def build_generator(shape):
    """Return the generator: noise [n, noise_size()] -> images [n, *shape] in OUTPUT's range."""
    noise = keras.Input((noise_size(),))
    x = noise[:, :Z_SIZE]  # z
    if PRIOR == "sphere":  # here, so that the saved generator takes normal noise
        x = layers.Rescaling(math.sqrt(Z_SIZE))(layers.UnitNormalization()(x))
    if CATEGORIES > 1:  # so G need not draw what lies between two kinds (arXiv:2006.04596)
        scores = noise[:, Z_SIZE:]
        # The largest becomes 3 (learned faster than 1), the rest 0; TFLite lacks Keras' argmax.
        category = keras.ops.equal(scores, keras.ops.max(scores, -1, keepdims=True))
        x = layers.Concatenate()([x, 3.0 * keras.ops.cast(category, "float32")])
    if MODEL == "dcgan":  # of Radford 2015, arXiv:1511.06434: each stage doubles the sides
        *larger, smallest = stages(shape, numbers(CHANNELS)[0])
        x = layers.Dense(math.prod(smallest), kernel_initializer="he_normal")(x)
        x = layers.Reshape(smallest)(x)
        picture = 0.0
        # With SKIPS, leaky ReLU suits large images; with small ones D may win at once.
        activation = "leaky_relu" if SKIPS and max(shape[:2]) > 32 else "relu"
        for height, width, channels in reversed(larger):
            x = activate(x, activation, BATCH_NORM)
            if SKIPS:  # each stage adds to the image, at first nothing (arXiv:1912.04958)
                picture = picture + layers.Conv2D(shape[2], 1, kernel_initializer="zeros")(x)
                picture = layers.UpSampling2D(2, interpolation="bilinear")(picture)
                picture = picture[:, :height, :width]
            up = layers.Conv2DTranspose(channels, KERNEL, 2, "same", kernel_initializer="he_normal")
            x = up(x)[:, :height, :width]  # odd sides were rounded up
        images = layers.Activation(OUTPUT)(x + picture)
    else:
        for units in numbers(G_HIDDEN):
            x = activate(layers.Dense(units)(x), ACTIVATION, BATCH_NORM)
        images = layers.Reshape(shape)(layers.Dense(math.prod(shape), activation=OUTPUT)(x))
    return keras.Model(noise, images, name="generator")


def build_discriminator(shape):
    """Return the discriminator: images [n, *shape] -> logits [n, 1], above 0 for "real"."""
    x = images = keras.Input(shape)
    normalize = BATCH_NORM is True  # not if it is "G"
    if MODEL == "dcgan":  # each stage halves the sides
        for i, (_, _, channels) in enumerate(stages(shape, numbers(CHANNELS)[-1])[1:]):
            x = layers.Conv2D(channels, KERNEL, 2, "same", kernel_initializer="he_normal")(x)
            x = activate(x, "leaky_relu", normalize and i > 0)  # not in the first stage
    x = layers.Flatten()(x)
    if MODEL == "mlp":
        for units in numbers(D_HIDDEN):
            x = activate(layers.Dense(units)(x), ACTIVATION, normalize)
    return keras.Model(images, layers.Dense(1)(x), name="discriminator")


# ---- The GAN ----
EPOCH_IMAGES = 10_000  # at least: a pass over a few photographs would teach nothing
EMA_EVERY = 10  # iterations, as averaging takes time
METRICS = "d_loss", "g_loss", "D(x)", "D(G(z))", "D accuracy"
REAL, FAKE, FAKE_FOR_G = range(3)  # augment alters each in its own way


def cross_entropy(label, logits):
    """Return the mean sigmoid cross-entropy of logits [n, 1] against one label."""
    labels = tf.fill(tf.shape(logits), label)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))


def discriminator_loss(real_logits, fake_logits):
    """Return D's loss: it wants to call the real real (1), the fake fake (0)."""
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


def to_floats(pixels):
    """Return pixels of 0..255 as floats in OUTPUT's range."""
    floats = tf.cast(pixels, tf.float32)
    return floats / 127.5 - 1.0 if OUTPUT == "tanh" else floats / 255.0


def augment(images, key, purpose):
    """Return images [n, H, W, C], with AUGMENT shifted, mirrored, blanked (arXiv:2006.10738)."""
    if not AUGMENT:
        return images
    height, width = images.shape[1:3]
    seed = tf.random.fold_in(tf.stack([SEED, tf.cast(key, tf.int64)]), purpose)
    draws = tf.random.stateless_uniform((5, tf.shape(images)[0], 1), seed)
    down, right, mirror, y, x = tf.unstack(draws)  # [n, 1] each, in 0..1
    # Shifted by up to an eighth of the image; its edge is repeated outside.
    rows = tf.range(height) + tf.cast(down * (height // 8 * 2 + 1), tf.int32) - height // 8
    columns = tf.range(width) + tf.cast(right * (width // 8 * 2 + 1), tf.int32) - width // 8
    columns = tf.where(mirror < 0.5, columns, width - 1 - columns)
    images = tf.gather(images, tf.clip_by_value(rows, 0, height - 1), axis=1, batch_dims=1)
    images = tf.gather(images, tf.clip_by_value(columns, 0, width - 1), axis=2, batch_dims=1)
    # The blank, in middle grey, is half as high and wide, its middle at y, x.
    in_rows = tf.abs(tf.range(height, dtype=tf.float32) / height - y) < 0.25  # [n, H]
    in_columns = tf.abs(tf.range(width, dtype=tf.float32) / width - x) < 0.25
    blank = in_rows[:, :, None, None] & in_columns[:, None, :, None]
    return tf.where(blank, to_floats(127.5), images)


class FusedAdam(keras.optimizers.Adam):
    """Keras' Adam (arXiv:1412.6980), one fused kernel per variable: training is 25 % faster."""

    def update_step(self, gradient, variable, learning_rate):
        """Move the variable by its gradient, both of one shape."""
        index = self._get_variable_index(variable)
        mean, square = self._momentums[index].value, self._velocities[index].value
        step = tf.cast(self.iterations + 1, tf.float32)
        arrays = {"var": variable.handle, "m": mean.handle, "v": square.handle, "grad": gradient}
        rates = {"lr": learning_rate, "beta1": self.beta_1, "beta2": self.beta_2, "epsilon": 1e-7}
        powers = {"beta1_power": self.beta_1**step, "beta2_power": self.beta_2**step}
        tf.raw_ops.ResourceApplyAdam(**arrays, **rates, **powers)


def choose_strategy():
    """Return what shares training among machines, or GPUs."""
    if "TF_CONFIG" in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()  # one device


class GAN:
    """Both networks, their optimizers, and the moving average of the generator (EMA)."""

    def __init__(self, images):
        """Build everything for images, uint8 [N, H, W, C]."""
        keras.utils.set_random_seed(SEED)
        shape = images.shape[1:]
        # An iteration is D_STEPS updates of D, each with its own batch, and G_STEPS of G.
        self.epoch_iterations = max(1, max(EPOCH_IMAGES, len(images)) // (D_STEPS * BATCH_SIZE))
        self.strategy = choose_strategy()
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
        self.epoch = 0  # epochs that are done
        self.position = 0  # images used of the epoch in progress
        self.step = 0  # iterations done, in all
        self.rows = []  # of losses.csv, one for each epoch done
        self.stop = None  # the number of a signal that came
        batches = tf.TensorSpec((None, D_STEPS, BATCH_SIZE, *shape), tf.uint8)
        count = tf.TensorSpec((), tf.int64)
        self.train = tf.function(self.train_batches, input_signature=(batches, count, count))

    def variables(self):
        """Return all variables that training changes, for a checkpoint."""
        # The average first: with EMA=0 it is the generator, whose own weights must win.
        parts = self.average, self.generator, self.discriminator, self.g_optimizer, self.d_optimizer
        return [self.sums] + [variable for part in parts for variable in part.variables]

    def train_batches(self, batches, step, images_used):
        """Do an iteration with each of batches [n, D_STEPS, BATCH_SIZE, H, W, C], compiled."""
        # step and images_used count what is done: both, as a resumed run may change BATCH_SIZE.
        total = EPOCHS * self.epoch_iterations * D_STEPS * BATCH_SIZE
        for i in tf.range(tf.shape(batches, tf.int64)[0]):
            rate = LEARNING_RATE * tf.minimum((step + i + 1) / WARM_UP, 1.0)
            if LR_DECAY:
                rate *= tf.maximum(1.0 - (images_used + i * D_STEPS * BATCH_SIZE) / total, 0.0)
            rate = tf.cast(rate, tf.float32)
            self.d_optimizer.learning_rate.assign(rate)
            self.g_optimizer.learning_rate.assign(rate * G_RATE)
            # Two calls: train_step is compiled with and without the penalty.
            if GRADIENT_PENALTY and (step + i) % PENALTY_EVERY == 0:
                self.step_everywhere(batches[i], step + i, True)
            else:
                self.step_everywhere(batches[i], step + i, False)
            if EMA and (step + i) % EMA_EVERY == 0:
                # From 0.1 up, to forget the first weights; the power is for EMA_EVERY iterations.
                early_decay = (step + i + 1) / (step + i + 10)
                decay = tf.minimum(tf.cast(early_decay, tf.float32), EMA) ** EMA_EVERY
                for average, value in zip(self.average.variables, self.generator.variables):
                    average.assign_add((1.0 - decay) * (value - average))

    def step_everywhere(self, *arguments):
        """Do a train_step on every replica; add its metrics to the sums."""
        metrics = self.strategy.run(self.train_step, arguments)
        metrics = self.strategy.reduce("MEAN", metrics, axis=None)
        self.sums.assign_add(tf.cast(metrics, tf.float64))

    def train_step(self, batches, step, with_penalty):
        """Update D with batches [D_STEPS, BATCH_SIZE, H, W, C], then G; return 1 and METRICS."""
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64)
        size = BATCH_SIZE // self.replicas  # each replica has its own slice of every batch
        draws = D_STEPS + G_STEPS - 1  # of noise: D's last update and G's first share one
        keys = [(step * draws + draw) * self.replicas + replica for draw in range(draws)]

        for draw, key in enumerate(keys[:D_STEPS]):
            real = to_floats(batches[draw, replica * size : (replica + 1) * size])
            with tf.GradientTape() as g_tape:  # for G's update below
                fake = self.generator(draw_noise(size, key), training=True)
            with tf.GradientTape() as d_tape:
                with tf.GradientTape() as slope_tape:  # for the penalty below
                    slope_tape.watch([real, fake])
                    # Two passes: batch normalisation must not mix real images with fakes.
                    real_logits = self.discriminator(augment(real, key, REAL), training=True)
                    fake_logits = self.discriminator(augment(fake, key, FAKE), training=True)
                d_loss = discriminator_loss(real_logits, fake_logits)
                penalty = 0.0  # on how steep D's logits are at the images (arXiv:1801.04406)
                if with_penalty:  # rarely but heavier: it doubles D's work
                    slopes = slope_tape.gradient([real_logits, fake_logits], [real, fake])
                    weight = PENALTY_EVERY * GRADIENT_PENALTY / 2  # half, as in the paper
                    penalty = weight * sum(tf.reduce_sum(s**2) / size for s in slopes)
                penalized_loss = d_loss + penalty
            self.update(self.discriminator, self.d_optimizer, d_tape, penalized_loss)

        for draw, key in enumerate(keys[D_STEPS - 1 :]):
            if draw > 0:  # the first update takes D's last fakes
                with tf.GradientTape() as g_tape:
                    fake = self.generator(draw_noise(size, key), training=True)
            with g_tape:  # resumes recording: the updated D judges the fakes
                logits = self.discriminator(augment(fake, key, FAKE_FOR_G), training=True)
                g_loss = generator_loss(logits)
            self.update(self.generator, self.g_optimizer, g_tape, g_loss)

        correct = tf.cast(tf.concat([real_logits > 0, fake_logits < 0], 0), tf.float32)
        judgements = tf.sigmoid(real_logits), tf.sigmoid(fake_logits), correct
        # The 1 counts iterations: means are sums divided by the sum of ones.
        return tf.stack([1.0, d_loss, g_loss, *map(tf.reduce_mean, judgements)])

    def update(self, network, optimizer, tape, loss):
        """Change the network so that the loss on the tape falls."""
        variables = network.trainable_variables
        share = tf.constant(1.0 / self.replicas)  # as the replicas' gradients are added up
        gradients = tape.gradient(loss, variables, output_gradients=share)
        optimizer.apply_gradients(zip(gradients, variables))


# ---- Training ----
SCALAR = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"})  # for TensorBoard
EARLY = 50, 100, 300  # iterations of the first epoch that leave a picture
CHECKPOINT_SECONDS = 600  # between checkpoints in a long epoch
DIVERGED = "training diverged: its numbers are no longer finite"
COLUMNS = "epoch", *METRICS, "spread", "images/s", "seconds"
HEADER = " epoch   D loss  G loss   D(x)  D(G(z))  D acc  spread  images/s  seconds"
ROW = "{epoch:4.0f}/{epochs:<4}{d_loss:6.3f} {g_loss:7.3f}  {D(x):5.3f}   {D(G(z)):6.3f}"
ROW += "   {D accuracy:4.0%}  {spread:6.2f} {images/s:9,.0f} {seconds:8.1f}"


def train(gan, images, folder):
    """Train to the end of EPOCHS; return False if a signal stopped it."""
    real_spread = pixel_spread(images[:: max(1, len(images) // 1000)]) or 1.0  # 0 if all are alike
    some = np.linspace(0, len(images) - 1, GRID**2, dtype=int)
    write(folder / "real.png", tile(images[some], GRID).save)
    table = {"fmt": "%.7g", "delimiter": ",", "header": ",".join(COLUMNS), "comments": ""}
    board = tf.summary.create_file_writer(str(folder))
    save_page(folder)
    if gan.step == 0:
        save_picture(gan, folder, "epoch-000.png")
    print(HEADER)
    while gan.epoch < EPOCHS:
        began, start = time.perf_counter(), gan.position
        if not train_epoch(gan, images, folder):
            return False
        seconds = time.perf_counter() - began
        speed = (gan.position - start) / seconds
        fakes = save_picture(gan, folder, f"epoch-{gan.epoch + 1:03}.png")
        _, *means = (gan.sums / gan.sums[0]).numpy().tolist()
        spread = pixel_spread(fakes) / real_spread
        gan.epoch, gan.position = gan.epoch + 1, 0
        gan.rows.append([gan.epoch, *means, spread, speed, seconds])
        gan.sums.assign(tf.zeros_like(gan.sums))
        row = dict(zip(COLUMNS, gan.rows[-1]))
        write(folder / "losses.csv", lambda file: np.savetxt(file, gan.rows, **table))
        write(folder / "losses.png", plot(gan.rows).save)
        with board.as_default(gan.epoch):
            for name, number in row.items():
                tf.summary.write(name, number, metadata=SCALAR)
        write(folder / "generator.keras", gan.average.save)
        write(folder / "discriminator.keras", gan.discriminator.save)
        save_checkpoint(gan, folder)  # comes last: after a crash, the epoch is repeated
        print(ROW.format(epochs=EPOCHS, **row))
        if spread < 0.5 and gan.step >= max(300, 2 * WARM_UP):  # before, every G looks like this
            print("   ! mode collapse: try GRADIENT_PENALTY=1, or half the LEARNING_RATE")
        if EARLY_STOP and EARLY_STOP[0] <= row["D(G(z))"] <= EARLY_STOP[1]:
            break
    return True


def train_epoch(gan, images, folder):
    """Train on the rest of an epoch; return False if a signal stopped it."""
    random, stride = np.random.default_rng((SEED, gan.epoch)), D_STEPS * BATCH_SIZE
    length = gan.epoch_iterations * stride  # of the epoch, in images
    passes = math.ceil(length / len(images))
    order = np.concatenate([random.permutation(len(images)) for _ in range(passes)])
    chunk = 50 if MODEL == "mlp" else 5  # iterations at a time, in a second or so
    saved = time.perf_counter()
    while left := max(0, length - gan.position) // stride:  # iterations
        if gan.stop or time.perf_counter() - saved > CHECKPOINT_SECONDS:
            save_checkpoint(gan, folder)
            saved = time.perf_counter()
        if gan.stop:
            return False
        n = min(chunk, left)
        batches = images[order[gan.position : gan.position + n * stride]]
        batches = batches.reshape(n, D_STEPS, BATCH_SIZE, *images.shape[1:])
        gan.train(batches, gan.step, gan.epoch * length + gan.position)
        if not np.isfinite(gan.sums.numpy()).all():
            raise FloatingPointError(DIVERGED)
        gan.step += n
        gan.position += n * stride
        if gan.epoch == 0 and gan.step in EARLY:
            save_picture(gan, folder, f"epoch-000-{gan.step:05}.png")
        show_progress(f"{gan.epoch + 1:4}/{EPOCHS:<4} {gan.position / length:4.0%}")
    return True


# ---- Pictures: the rest is pictures, data, files and the command line ----
FONT = ImageFont.load_default(16)
PICTURES_KEY, SAMPLE_KEY, WALK_KEY, CATEGORIES_KEY = -1, -3, -4, -5  # training's are 0 and up


def generate(generator, noise):
    """Return the generator's uint8 images [n, H, W, C] for noise [n, noise_size()]."""
    parts = np.split(noise, range(100, len(noise), 100))  # as large images take memory
    floats = np.concatenate([generator(part, training=False) for part in parts])
    floats = (floats + 1.0) * 127.5 if OUTPUT == "tanh" else floats * 255.0
    return np.rint(floats).astype(np.uint8)


def pixel_spread(images):
    """Return the pixels' standard deviation over the images, on average."""
    rows = np.moveaxis(images, 1, 0)  # one by one, as floats take memory
    return float(np.mean([np.std(row, axis=0, dtype=np.float64) for row in rows]))


def tile(images, columns):
    """Return a picture of images, uint8 [n, H, W, C], in rows of columns with thin gaps."""
    gap = max(1, images.shape[1] // 32)
    images = np.pad(images, ((0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=80)
    rows = [np.hstack(images[i : i + columns]) for i in range(0, len(images), columns)]
    pixels = np.pad(np.vstack(rows), ((0, gap), (0, gap), (0, 0)), constant_values=80)
    picture = Image.fromarray(np.squeeze(pixels))
    scale = max(1, round(600 / picture.width))
    return ImageOps.scale(picture, scale, Image.Resampling.NEAREST)


def save_picture(gan, folder, name):
    """Write a picture of averaged G's images, always of the same noise; return them."""
    fakes = generate(gan.average, draw_noise(max(256, GRID**2), PICTURES_KEY))
    write(folder / name, tile(fakes[: GRID**2], GRID).save)
    save_page(folder)
    return fakes


def plot(rows):
    """Return a chart, 800 x 500, of the losses and of how real D finds images."""
    picture = Image.new("RGB", (800, 500), "white")
    draw = ImageDraw.Draw(picture)
    d_loss, g_loss, real, fake = np.transpose(rows)[1:5]
    xs = np.linspace(60, 750, len(rows))
    low, high = np.percentile((d_loss, g_loss), (10, 90))  # a few wild losses are cut off
    axis = min(0, math.floor(low)), max(2, math.ceil(high))
    ln2 = math.log(2)  # the loss on a label while D guesses
    losses = ("D loss", d_loss, 2 * ln2), ("G loss", g_loss, -ln2 if LOSS == "minimax" else ln2)
    judgements = ("D(x), of real images", real, 0.5), ("D(G(z)), of fakes", fake, 0.5)
    for top, ends, lines in ((40, axis, losses), (285, (0, 1), judgements)):
        for level, y in zip(np.linspace(*ends, 5), np.linspace(top + 180, top, 5)):
            draw.line((60, y, 750, y), "#dddddd")
            draw.text((52, y), f"{level:g}", 0, FONT, "rm")
        for (name, line, guess), color, left in zip(lines, ("#1f5fd0", "#d0451f"), (60, 260)):
            *ys, y = np.interp([*line, guess], ends, (top + 180, top))
            draw.line((60, y, 750, y), "#888888")
            draw.text((left, top - 26), name, color, FONT)
            draw.line(list(zip(xs, ys)), color, 2)
            draw.circle((xs[-1], ys[-1]), 3, color)
    draw.text((750, 14), "grey: D is guessing; flat is healthy", 0, FONT, "ra")
    draw.text((750, 470), f"epochs 1 to {len(rows)}", 0, FONT, "ra")
    return picture


def in_category(noise, categories):
    """Return noise changed so that G draws one category, or categories [n]; None: unchanged."""
    noise = np.array(noise)
    if categories is not None:
        noise[:, Z_SIZE:] = np.eye(CATEGORIES)[categories]
    return noise


def picture_categories(generator):
    """Return a picture of the first 40 categories, a row each, of the same ten noises."""
    count = min(CATEGORIES, 40)
    noise = np.tile(draw_noise(10, CATEGORIES_KEY), (count, 1))
    picture = tile(generate(generator, in_category(noise, np.repeat(np.arange(count), 10))), 10)
    picture = ImageOps.expand(picture.convert("RGB"), (50, 0, 0, 0), "white")
    for row in range(count):
        place = 40, (row + 0.5) * picture.height / count
        ImageDraw.Draw(picture).text(place, str(row), 0, FONT, "rm")
    return picture


def epoch_pictures(folder):
    """Return the paths of a run's pictures, in the order of training."""
    paths = folder.glob("epoch-*.png")  # by length, then name: epoch-1000 follows epoch-999
    return sorted(paths, key=lambda path: (len(path.stem.split("-")[1]), path.stem))


def save_history(folder):
    """Write training.gif, of the run's pictures or a hundred of them."""
    paths, frames, times = epoch_pictures(folder), [], []
    for i in np.unique(np.linspace(0, len(paths) - 1, 100, dtype=int)):
        frame = Image.open(paths[i]).convert("RGB")
        frame = frame.reduce(math.ceil(frame.width / 600))
        frame = ImageOps.expand(frame, (0, 30, 0, 0), "white")
        ImageDraw.Draw(frame).text((6, 15), paths[i].stem, 0, FONT, "lm")
        frames.append(frame.quantize(64))
        times.append(100 if "epoch-000" in paths[i].stem else 200)  # milliseconds
    times[-1] = 2000
    options = {"save_all": True, "append_images": frames[1:], "duration": times, "loop": 0}
    write(folder / "training.gif", lambda file: frames[0].save(file, **options))


PAGE = """<!DOCTYPE html><meta charset="utf-8"><style>input { width: 60vw }
body { font: 16px sans-serif } img { width: 100% }
figure { display: inline-block; width: 46vw; margin: 4px; vertical-align: top }</style>
<h2 id="heading"></h2><a href="settings.json">settings</a>
<input id="slider" type="range"> drag, or use the arrow keys<br>
<figure>generated: <b id="title"></b><img id="fakes"></figure>
<figure>real<img src="real.png"></figure>
<figure>losses<img src="losses.png" onerror="this.parentNode.remove()"></figure>
<figure>from noise to now<img src="training.gif" onerror="this.parentNode.remove()"></figure>
<figure>categories, a row each<img src="categories.png" onerror="this.parentNode.remove()"></figure>
<script>
const [pictures, training] = RUN, last = pictures.length - 1;
heading.textContent = document.title = decodeURI(location.pathname.split("/").at(-2));
slider.value = slider.max = last;
onload = oninput = () => {
  title.textContent = pictures[slider.value];
  fakes.src = pictures[slider.value] + ".png";
};
slider.focus({ preventScroll: true });
// Whoever looks at an older picture is not disturbed.
if (training) setInterval(() => slider.value == last && location.reload(), 5000);</script>"""


def save_page(folder, training=True):
    """Write index.html, which shows the run in a browser."""
    run = json.dumps([[path.stem for path in epoch_pictures(folder)], training])
    write(folder / "index.html", lambda file: file.write_text(PAGE.replace("RUN", run), "utf-8"))


# ---- Data: one array, uint8 [N, H, W, C], grey (C = 1) or RGB (C = 3) ----
IDX = "train-images-idx3-ubyte.gz"
SHA256 = "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://dataset.bj.bcebos.com/mnist/",  # in Beijing
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
TIMEOUT = 10  # seconds that a mirror may be silent


def load_images(resume=False):
    """Return the images of DATA; drawn digits if MNIST fails to load. Raises Problem."""
    global DATA
    try:
        path = find_mnist() if DATA == "mnist" else Path(DATA)
    except Problem as error:
        if resume:
            raise
        print(f"{error}\n!!! This run takes DRAWN DIGITS instead !!!\n")
        DATA = "digits"
    if DATA == "digits":
        if os.path.exists(DATA):
            print("note      these are the drawn digits; those here: DATA=./digits")
        return draw_digits(20000)
    if not path.exists():
        advice = "" if DATA.isprintable() else "; in Python write / or r'...' for a \\"
        raise Problem(f"DATA={DATA!r}: no such file or folder{advice}")
    return read_file(path) if path.is_file() else read_folder(path)


def find_mnist():
    """Return MNIST's path in Keras' cache, downloaded if missing. Raises Problem."""
    home = os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras"))
    cache = Path(home if os.access(home, os.W_OK) else OUT, "datasets")
    path, npz, reasons = cache / IDX, cache / "mnist.npz", ""
    if path.exists() or npz.exists():
        return npz if npz.exists() else path
    for mirror in MIRRORS:
        print(f"loading   {mirror}")
        try:
            content = urllib.request.urlopen(mirror + IDX, timeout=TIMEOUT).read()
            if hashlib.sha256(content).hexdigest() != SHA256:
                raise ValueError("not MNIST")
            write(path, lambda file, content=content: file.write_bytes(content))
            return path
        except Exception as error:
            reasons += f"    {mirror}: {error}\n"
    raise Problem(f"MNIST failed to load:\n{reasons}Download {IDX} into {cache}")


def draw_digits(count):
    """Return count digits drawn in a font, uint8 [count, 28, 28, 1], the same for one SEED."""
    random, font, glyphs = np.random.default_rng(SEED), ImageFont.load_default(108), []
    for i in range(50):  # five of each digit, from thin to thick
        glyphs.append(Image.new("L", (144, 144)))
        draw = ImageDraw.Draw(glyphs[-1])
        draw.text((72, 72), str(i % 10), 255, font, anchor="mm", stroke_width=i // 10)
    images = np.empty((count, 28, 28, 1), np.uint8)
    for image in images:
        turned = glyphs[random.integers(50)].rotate(random.normal(0, 10))
        box = random.uniform((0, 0, 120, 120), (24, 24, 144, 144))  # left, top, right, bottom
        image[..., 0] = turned.resize((28, 28), box=tuple(box))
    return images


def read_file(path):
    """Return the images of an IDX, .npz or .npy file. Raises Problem."""
    try:
        if path.suffix == ".npy":
            return as_images(np.load(path, mmap_mode="r"))
        if zipfile.is_zipfile(path):  # .npz
            arrays = np.load(path)
            for name in ("x_train", "images", *arrays):
                # Labels, objects and pictures are passed over.
                with contextlib.suppress(KeyError, ValueError, AttributeError):
                    return as_images(arrays[name])
            raise ValueError("no arrays of images; a zip of pictures: unpack it first")
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        if content[:3] != b"\0\0\x08":  # IDX of unsigned bytes, as MNIST
            raise ValueError("no whole IDX, .npz or .npy; pictures: give the folder")
        shape = np.frombuffer(content, ">u4", content[3], offset=4)
        return as_images(np.frombuffer(content, np.uint8, offset=4 + shape.nbytes).reshape(shape))
    except Exception as error:
        raise Problem(f"{path} cannot be used: {error}") from None


def as_images(array):
    """Return array [N, H, W], [N, H, W, C] or [N, C, H, W] as images. Raises ValueError."""
    if array.ndim == 2 and math.isqrt(array.shape[1]) ** 2 == array.shape[1] > 1:  # flat squares
        array = array.reshape(len(array), math.isqrt(array.shape[1]), -1)
    array = array[..., np.newaxis] if array.ndim == 3 else array
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = np.moveaxis(array, 1, 3)  # PyTorch's order
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise ValueError(f"its shape is {array.shape}, not [N, H, W] or [N, H, W, 1 or 3]")
    if array.dtype == np.uint8 and array[:: max(1, len(array) // 1000)].max() >= 128:
        return array
    low, high = np.float64(array.min()), np.float64(array.max())  # will be 0 and 255
    if not 0 < high - low < math.inf:
        raise ValueError(f"its numbers are {low} to {high}")
    scale = 255 / (high - low)
    return np.stack([np.rint((values - low) * scale).astype(np.uint8) for values in array])


def read_folder(folder):
    """Return a folder's pictures, cropped to IMAGE_SIZE, or its IDX file's. Raises Problem."""
    paths = [folder / name for name in sorted(glob.glob("**", root_dir=folder, recursive=True))]
    # Runs' pictures are no data, unless there are no others.
    paths = [path for path in paths if not path.is_relative_to(os.path.abspath(OUT))] or paths
    files = [path for path in paths if path.is_file()]
    for file in files:
        if file.match("*train-images*idx3-ubyte*"):
            return read_file(file)
    width, height = numbers(IMAGE_SIZE)[0], numbers(IMAGE_SIZE)[-1]
    changed = max(path.stat().st_mtime for path in [folder, *paths] if path.exists())
    digest = hashlib.sha256(f"{folder} {IMAGE_SIZE}".encode()).hexdigest()[:12]
    cache = Path(OUT, "cache", f"{folder.name}-{digest}.records")
    record = np.dtype([("file", np.uint32), ("pixels", np.uint8, (height, width, 3))])

    def decode(temporary):
        with ThreadPool() as pool, open(temporary, "wb") as records:
            for i, pixels in enumerate(pool.imap(read_picture, files, chunksize=10)):
                if pixels:
                    records.write(np.uint32(i).tobytes() + pixels)
                show_progress(f"{i + 1:,} of {len(files):,}")

    whole = cache.exists() and cache.stat().st_size % record.itemsize == 0
    if not whole or cache.stat().st_mtime <= changed:
        print(f"reading {len(files):,} files in {folder} ...")
        write(cache, decode)
    if cache.stat().st_size == 0:
        raise Problem(f"DATA={DATA}: no readable picture")
    records = np.memmap(cache, record, "r")
    print(f"{len(records):,} pictures of {len(files):,} files, kept in {cache}")
    if others := sorted({*range(len(files))} - {*records["file"]}):
        print("damaged or no pictures:", *[files[i] for i in others[:5]], sep="\n    ")
    places = Counter(str(file.parent.relative_to(folder)) for file in files)
    if len(places) > 1:  # such as images and masks
        print("files in", dict(places.most_common(9)))
    grey = not any(np.ptp(pixels, axis=2).any() for pixels in records["pixels"])
    return records["pixels"][..., :1] if grey else records["pixels"]


def read_picture(file):
    """Return a picture's RGB pixels, cropped to IMAGE_SIZE, or b"" if it is not one."""
    size = numbers(IMAGE_SIZE)[0], numbers(IMAGE_SIZE)[-1]
    try:
        with Image.open(file) as opened:
            if opened.format == "EPS":  # for which Pillow runs a program
                return b""
            # A large JPEG is decoded at part size; at just the wanted one it is jagged.
            opened.draft("RGB", (2 * size[0], 2 * size[1]))
            picture = ImageOps.exif_transpose(opened)
        if picture.mode[0] in "IF":  # 16 bits or more, which Pillow would clip
            picture = Image.fromarray(as_images(np.asarray(picture)[np.newaxis])[0, ..., 0])
        if picture.has_transparency_data:
            picture = ImageOps.fit(picture.convert("RGBA"), size)
            picture = Image.alpha_composite(Image.new("RGBA", size, "white"), picture)
        return ImageOps.fit(picture.convert("RGB"), size).tobytes()
    except Exception:
        return b""


# ---- Runs: each has a folder ----
def write(path, save):
    """Have save(temporary) write a file, then rename it: path is always whole, old or new."""
    temporary = path.with_name(f"tmp-{os.getpid()}-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except PermissionError as error:
        if not path.exists():
            raise
        tell(f"warning: {path} was not replaced: {error}")  # open in a program, on Windows
    finally:
        temporary.unlink(missing_ok=True)


def make_folder():
    """Return a new folder in OUT, of DATA's name and the next free number."""
    number = 1
    while (folder := Path(OUT, f"{Path(DATA).stem}-{number:03}")).exists():
        number += 1
    folder.mkdir(parents=True)
    return folder


def open_run(run, changes):
    """Take a run's settings, with changes; return (folder, its constants). Raises Problem."""
    if run:
        files = [*Path(OUT, run).glob("settings.json"), *Path(run).glob("settings.json")]
    else:
        files = sorted(Path(OUT).glob("*/settings.json"), key=os.path.getmtime)
    if not files:
        raise Problem(f"{os.path.abspath(run or OUT)}: no run there yet")
    saved = json.loads(files[-1].read_text())
    change_settings({name: saved[name] for name in SETTINGS if name in saved} | changes)
    return files[-1].parent, {n: check(n, v) for n, v in saved.get("constants", {}).items()}


def save_checkpoint(gan, folder):
    """Write all that training changes. Raises FloatingPointError if it is not finite."""
    values = [variable.numpy() for variable in gan.variables()]
    if not all(np.isfinite(value).all() for value in values):
        raise FloatingPointError(DIVERGED)
    values += [gan.rows, (gan.epoch, gan.position, gan.step)]
    write(folder / "checkpoint.npz", lambda file: np.savez(file, *values))


def restore(gan, folder):
    """Bring gan to the run's checkpoint. Raises Problem."""
    file = folder / "checkpoint.npz"
    try:
        with np.load(file) as arrays:
            *values, rows, counters = arrays.values()
        for variable, value in zip(gan.variables(), values, strict=True):
            variable.assign(value)
        gan.rows, (gan.epoch, gan.position, gan.step) = rows.tolist(), counters.tolist()
    except Exception:
        raise Problem(f"{file} is damaged, or of other networks, which need a new run") from None


# ---- Command line ----
# fmt: off
DEFAULTS = {  # what None becomes: mlp, dcgan, dcgan above 32 px
    "Z_SIZE": (14, 64, 64), "CATEGORIES": (28, 1, 1), "BATCH_SIZE": (100, 50, 25),
    "LEARNING_RATE": (0.004, 0.003, 0.0015), "WARM_UP": (1, 300, 300), "BETA_2": (0.99, 0.9, 0.9),
    "CHANNELS": ((56, 32), (56, 32), (28, 32)), "GRADIENT_PENALTY": (0.05, 0.05, 0.2),
}
CHOICES = {
    "MODEL": ("mlp", "dcgan"), "PRIOR": ("normal", "sphere"), "OUTPUT": ("sigmoid", "tanh"),
    "ACTIVATION": ("relu", "leaky_relu", "tanh"), "LOSS": ("non-saturating", "minimax"),
    "BATCH_NORM": (True, "G", False), **dict.fromkeys([*DEFAULTS, "EARLY_STOP"], (None,)),
    **dict.fromkeys(["AUGMENT", "LR_DECAY"], (True, False)), "SKIPS": (None, True, False),
}
WHOLE = ("IMAGE_SIZE", "Z_SIZE", "CATEGORIES", "G_HIDDEN", "D_HIDDEN", "CHANNELS", "KERNEL",
         "PENALTY_EVERY", "EPOCHS", "BATCH_SIZE", "WARM_UP", "D_STEPS", "G_STEPS", "GRID")
LIMITS = {  # least and greatest; whole for whole numbers
    **dict.fromkeys(WHOLE, (1, 10**6)), "SEED": (0, 2**31 - 1), "PRIOR": (-1e9, 1e9),
    **dict.fromkeys(["LEARNING_RATE", "G_RATE", "GRADIENT_PENALTY"], (0.0, 1e12)),
    **dict.fromkeys(["LEAK", "SMOOTH", "BETA_1", "BETA_2", "EMA", "EARLY_STOP"], (0.0, 1.0)),
}
COUNTS = {"PRIOR": [2], "EARLY_STOP": [2], "IMAGE_SIZE": [1, 2], "CHANNELS": [1, 2],
          "G_HIDDEN": [1, 2, 3], "D_HIDDEN": [1, 2, 3]}  # of numbers, where not one
# fmt: on
PATHS = "DATA", "OUT"
SETTINGS = [*PATHS, *(LIMITS | CHOICES)]


class Problem(Exception):
    """Bad input, told in one line, with exit status 2."""


def tell(message):
    """Print a message to stderr, in one line."""
    print("gan.py:", " ".join(str(message).split())[:600], file=sys.stderr)


def show_progress(text):
    """Show text in a terminal's last line."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.isatty():
        print(f"{text:77}"[: os.get_terminal_size().columns - 1], end="\r", flush=True)


def numbers(value):
    """Return a setting that is one number or several as a tuple."""
    return value if isinstance(value, tuple) else (value,)


def check(name, value):
    """Return a setting's value, a list as a tuple. Raises Problem."""
    value = tuple(value) if isinstance(value, list) else value
    choices, counts = CHOICES.get(name, ()), COUNTS.get(name, [1])
    low, high = LIMITS.get(name, (1, 0))  # fits nothing
    fit = [type(each) in (int, type(low)) and low <= each <= high for each in numbers(value)]
    path = name in PATHS and isinstance(value, str) and value and "://" not in value
    # Choices are compared as written, as 1 == True.
    if path or repr(value) in map(repr, choices) or (all(fit) and len(fit) in counts):
        return value
    takes = ["a path, not an address"] if name in PATHS else [str(choice) for choice in choices]
    if name in LIMITS:
        kind = "whole numbers" if isinstance(low, int) else "numbers"
        takes.append(f"{' or '.join(map(str, counts))} of the {kind} {low:g} to {high:,}")
    raise Problem(f"{name}={value!r}: it must be {' or '.join(takes)}")


def parse_setting(word):
    """Return (name, value) of NAME=value, a literal or else text. Raises Problem."""
    name, equals, value = word.replace("\uff1d", "=").partition("=")  # of Chinese keyboards
    if name not in SETTINGS or not equals:
        meant = [*difflib.get_close_matches(name.strip("-").upper(), SETTINGS), "NAME"][0]
        form = f'{meant}=value, with no spaces, or quoted: "DATA=My Pictures"'
        raise Problem(f"{word}: a setting is written {form}; a run: --run FOLDER")
    with contextlib.suppress(ValueError, SyntaxError):
        value = value if name in PATHS else ast.literal_eval(value)
    return name, value


def current_settings():
    """Return every setting's value by name."""
    return {name: globals()[name] for name in SETTINGS}


def change_settings(changes):
    """Set all settings, with these changes. Raises Problem for a bad one."""
    settings = {n: check(n, v) for n, v in (current_settings() | changes).items()}
    settings["OUT"], data = os.path.expanduser(settings["OUT"]), settings["DATA"]
    if data not in ("mnist", "digits"):  # a path, to resume from anywhere
        settings["DATA"] = os.path.abspath(os.path.expanduser(data))
    globals().update(settings)


def choose_defaults(shape):
    """Replace each None by what suits images of shape (H, W, C)."""
    column = 0 if MODEL == "mlp" else 1 if max(shape[:2]) <= 32 else 2
    defaults = DEFAULTS | {"SKIPS": (True, shape[2] == 3 and not AUGMENT, True)}  # as measured
    for name, values in defaults.items():
        if globals()[name] is None:
            globals()[name] = values[column]


def describe(images, gan, folder, edited):
    """Print what is trained on what, and the edited constants."""
    count, height, width, channels = images.shape
    g_size, d_size = gan.generator.count_params(), gan.discriminator.count_params()
    print(f"data      {Path(DATA).stem}: {count:,} images of {width} x {height} x {channels}")
    print(f"networks  G {g_size:,} weights, D {d_size:,}; replicas: {gan.replicas}")
    print(f"noise     {Z_SIZE} numbers, {noise_size() - Z_SIZE or 'no'} categories")
    print(f"epochs    {EPOCHS}, of {gan.epoch_iterations:,} iterations")
    if gan.step:
        print(f"resumed   after {gan.epoch} epochs, {gan.step:,} iterations")
    if channels == 3 and (MODEL == "mlp" or (count < 2000 and not AUGMENT)):
        print("note      photographs: MODEL=dcgan; fewer than 2,000: AUGMENT=True, too")
    if edited:
        print(f"note      constants were edited; to use them here: {edited}")
    print(f"run       {folder}: open its index.html in a browser\n")


def stoppable(gan):
    """Return a context in which Ctrl-C or a kill stops gan."""
    handlers = contextlib.ExitStack()

    def stop(number, _):  # a second signal ends it at once
        gan.stop = number
        handlers.close()

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        with contextlib.suppress(AttributeError, ValueError):  # on Windows; in a thread
            number = getattr(signal, name)
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup ignores SIGHUP
                handlers.callback(signal.signal, number, signal.signal(number, stop))
    return handlers


def run(resume, run_folder, changes):
    """Train a new run, or continue one; return the exit status. Raises Problem."""
    constants = current_settings()
    change_settings(changes)
    folder, then = open_run(run_folder, changes) if resume else (None, constants)
    images = load_images(resume)
    choose_defaults(images.shape[1:])
    gan = GAN(images)
    if resume and (folder / "checkpoint.npz").exists():  # else: not trained yet
        restore(gan, folder)
    if not gan.strategy.extended.should_checkpoint:  # another machine keeps the run
        folder, sys.stdout = Path(tempfile.mkdtemp()), open(os.devnull, "w")  # noqa: SIM115
    folder = folder or make_folder()
    text = json.dumps(current_settings() | {"constants": then}, indent=1)
    write(folder / "settings.json", lambda file: file.write_text(text))
    edited = [
        f'"{name}={",".join(map(str, numbers(value)))}"'
        for name, value in constants.items()
        if value not in (None, then.get(name, value), globals()[name])
    ]
    script = globals().get("__file__", "gan.py")  # a notebook's cell has no file
    script = script.removeprefix(os.getcwd() + os.sep)
    command = f'python "{script}" --resume --run "{folder}"'
    describe(images, gan, folder, edited and " ".join([command, *edited]))
    try:
        with stoppable(gan):
            finished = train(gan, images, folder)
            save_history(folder)
            if CATEGORIES > 1:
                write(folder / "categories.png", picture_categories(gan.average).save)
            save_page(folder, training=False)
    except (OSError, MemoryError, FloatingPointError, tf.errors.OpError) as error:
        if isinstance(error, FloatingPointError):  # it would diverge again
            command += f" LEARNING_RATE={LEARNING_RATE / 2:g}"
        tell(f"{str(error)[:300] or 'out of memory'}; files are intact. To continue: {command}")
        return 1
    if not finished:
        print(f"\nStopped; nothing is lost. To continue:\n    {command}")
        return 128 + gan.stop
    more = f"{command} EPOCHS={max(EPOCHS, 2 * gan.epoch)}"
    print(f"\nEpochs done: {gan.epoch}. See {folder}. To train longer:\n    {more}")
    return 0


def sample(count, run_folder, changes, category=None):
    """Save count new images, or of one category; return the exit status. Raises Problem."""
    change_settings(changes)
    folder, _ = open_run(run_folder, changes)
    categories = noise_size() - Z_SIZE
    if category is not None and category not in range(categories):
        raise Problem(f"--category {category}: the run has {categories or 'no'} categories, from 0")
    file, version, generated = folder / "generator.keras", "?", folder / "generated"
    try:
        with zipfile.ZipFile(file) as saved:
            version = json.loads(saved.read("metadata.json"))["keras_version"]
        generator = keras.saving.load_model(file, compile=False)
    except Exception as error:
        versions = f"it is of Keras {version}, this is {keras.__version__}"
        raise Problem(f"{file} (made by each epoch): {versions}; {error}") from None
    generated.mkdir(exist_ok=True)
    for start in range(0, count, 500):
        noise = in_category(draw_noise(500, SAMPLE_KEY - start), category)[: count - start]
        for i, image in enumerate(generate(generator, noise), start):
            Image.fromarray(np.squeeze(image)).save(generated / f"{i:05}.png")
    for old in sorted(generated.glob("[0-9]" * 5 + ".png"))[count:]:  # of an older call
        old.unlink()
    noise = in_category(draw_noise(GRID**2, SAMPLE_KEY), category)
    write(folder / "grid.png", tile(generate(generator, noise), GRID).save)
    # A row walks from one z to another.
    rows = np.linspace(0, CATEGORIES - 1, 10, dtype=int) if category is None else [category] * 10
    starts, ends = in_category(draw_noise(20, WALK_KEY), [*rows, *rows]).reshape(2, 10, -1)
    walks = np.linspace(starts, ends, 10, axis=1).reshape(100, -1)
    write(folder / "interpolation.png", tile(generate(generator, walks), 10).save)
    print(f"{count:,} images in {generated}; see also grid.png and interpolation.png in {folder}")
    return 0


def main(words=()):
    """Run gan.py with these words; return the exit status: 2 for bad input, 1 for a failure."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--category", type=int)
    parser.add_argument("--run")
    options, settings = parser.parse_known_args(words)
    before, policy = current_settings(), keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # whatever a notebook has chosen
    try:
        if {"-h", "--help"} & {*words}:
            print(__doc__, *(f"{name} = {value!r}" for name, value in before.items()), sep="\n")
            return 0
        changes = dict(map(parse_setting, settings))
        if (options.sample, options.category) != (None, None):
            return sample(max(1, options.sample or 100), options.run, changes, options.category)
        return run(options.resume or options.run, options.run, changes)
    except KeyboardInterrupt:
        tell("stopped")
        return 130
    except (Problem, OSError, MemoryError, tf.errors.OpError) as error:
        tell(error)
        return 2 if isinstance(error, Problem) else 1
    finally:
        globals().update(before)  # settings hold for one run
        keras.config.set_dtype_policy(policy)


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):  # not in a notebook
        sys.stdout.reconfigure(line_buffering=True, errors="replace")
    # The words of a notebook, where argv[0] is another script, are not ours.
    ours = Path(sys.argv[0]).name == Path(globals().get("__file__", "")).name
    if status := main(sys.argv[1:] if ours else []):
        sys.exit(status)
