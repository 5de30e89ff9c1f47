"""Train a tiny GAN for five steps and save its weights to a file for each way of training it.

python workers.py worker: as one of the workers that TF_CONFIG lists, to worker.npz
python workers.py: on two virtual devices, to mirrored.npz, and as one replica that is given the
noise of two, to one.npz
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tensorflow as tf

import gan

draw = gan.draw_noise


def draw_for_two(count, key):
    """Return the noise that two replicas draw together."""
    return tf.concat([draw(count // 2, 2 * key + replica) for replica in (0, 1)], 0)


if "worker" in sys.argv:
    strategies = {"worker": tf.distribute.MultiWorkerMirroredStrategy()}
else:
    cpu = tf.config.list_physical_devices("CPU")[0]
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    strategies = {"mirrored": mirrored, "one": tf.distribute.get_strategy()}
vars(gan).update(Z_SIZE=8, G_HIDDEN=16, D_HIDDEN=16, BATCH_SIZE=20, BATCH_NORM="G")
gan.choose_defaults((8, 8, 1))
images = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), np.uint8)
for how, strategy in strategies.items():
    gan.draw_noise = draw_for_two if how == "one" else draw
    gan.choose_strategy = lambda strategy=strategy: strategy
    model = gan.GAN(images)
    model.train(images.reshape(5, 1, 20, 8, 8, 1), 0, 0)
    np.savez(f"{how}.npz", *(variable.numpy() for variable in model.variables()))
