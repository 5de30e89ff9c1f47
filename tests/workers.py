"""Train a tiny GAN for an epoch and save its weights: python workers.py HOW FILE.npz.

HOW is "mirrored" (two virtual devices of one process), "worker" (TF_CONFIG says which) or "one"
(one replica that is given the noise of two).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tensorflow as tf

import gan

how, file = sys.argv[1:]
vars(gan).update(Z_SIZE=8, G_HIDDEN=16, D_HIDDEN=16, BATCH_SIZE=20, EPOCHS=1)
images = np.random.default_rng(0).integers(0, 256, (600, 8, 8, 1), np.uint8)
batches = images.reshape(30, 1, 20, 8, 8, 1)
if how == "mirrored":
    cpu = tf.config.list_physical_devices("CPU")[0]
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
else:
    strategy = gan.choose_strategy()[0]
if how == "one":
    draw = gan.draw_noise
    gan.draw_noise = lambda count, key: tf.concat(
        [draw(count // 2, 2 * key), draw(count // 2, 2 * key + 1)], 0
    )
weights = {}
for gan.BATCH_NORM in (False, True):
    model = gan.GAN(images, strategy)
    if model.replicas > 1:
        gan.check_workers(model, images)
    for first, last in ((0, 5), (5, 30)):  # the first few steps, then the rest of the epoch
        model.train(batches[first:last], first, first * 20)
        values = [variable.numpy() for variable in model.variables()]
        weights |= {f"{gan.BATCH_NORM} {last} {i}": value for i, value in enumerate(values)}
np.savez(file, **weights)
