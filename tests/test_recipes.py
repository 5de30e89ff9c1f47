"""The dcgan, and the systems that people come from: each by settings alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gan

UNIFORM = {"Z_SIZE": 100, "PRIOR": (-1, 1), "G_HIDDEN": 128, "D_HIDDEN": 128}
WIDE = {"Z_SIZE": 200, "PRIOR": (0, 10), "G_HIDDEN": 600, "D_HIDDEN": 600}
DEEP = {"Z_SIZE": 100, "G_HIDDEN": (256, 512, 1024), "D_HIDDEN": (512, 256), "BATCH_NORM": "G"}
TANH = {"ACTIVATION": "tanh"}
LEAKY = {"ACTIVATION": "leaky_relu", "OUTPUT": "tanh"}
RADFORD = {"MODEL": "dcgan", "SKIPS": False, "CHANNELS": 64, "BATCH_NORM": True, "Z_SIZE": 100}
RADFORD |= {"OUTPUT": "tanh", "KERNEL": 5}
BETTER = {"MODEL": "dcgan", "SKIPS": True, "CHANNELS": (56, 32), "Z_SIZE": 8}


# The settings of each system, and what its author's G and D count: weights, biases
# and, of batch normalisation, four numbers a channel. The last one is gan.py's own, with skips.
SYSTEMS = {
    "selous123": (UNIFORM | TANH, 114_064, 100_609),
    "Joe-Han": (WIDE | TANH, 591_784, 471_601),
    "Udacity": (UNIFORM | LEAKY, 114_064, 100_609),
    "Keras-GAN": (DEEP | LEAKY, 1_493_520, 533_505),
    "dcgan": (RADFORD, 840_705, 213_377),
    "better dcgan": (BETTER, 150_867, 36_513),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_has_its_authors_number_of_parameters(small, system):
    settings, *expected = SYSTEMS[system]
    small(CATEGORIES=1, **settings)
    networks = gan.build_generator((28, 28, 1)), gan.build_discriminator((28, 28, 1))
    assert [network.count_params() for network in networks] == expected


def test_a_dcgan_is_built_of_strided_convolutions_alone_for_images_of_any_size(small):
    small(MODEL="dcgan", CHANNELS=4, BATCH_NORM=True, SKIPS=False)
    for shape, stages in (((24, 40, 3), 2), ((28, 28, 1), 2), ((64, 64, 3), 4), ((33, 50, 1), 3)):
        generator, discriminator = gan.build_generator(shape), gan.build_discriminator(shape)
        assert generator.output_shape == discriminator.input_shape == (None, *shape)
        kinds = [type(layer).__name__ for layer in generator.layers]
        assert (kinds.count("Conv2DTranspose"), kinds.count("Dense")) == (stages, 1)
        kinds = [type(layer).__name__ for layer in discriminator.layers]
        assert (kinds.count("Conv2D"), kinds.count("Dense")) == (stages, 1)
        assert kinds.count("BatchNormalization") == max(0, stages - 1)  # none on D's input


def test_a_dcgan_with_skips_begins_as_one_without_them(small):
    noise, fakes = np.random.default_rng(0).normal(size=(5, 8)), []
    for skips in (True, False):
        small(MODEL="dcgan", CHANNELS=4, SKIPS=skips, LEAK=0)  # as ReLU
        fakes.append(gan.GAN(np.zeros((9, 33, 50, 3), np.uint8)).generator(noise).numpy())
    assert np.array_equal(*fakes)


def test_a_dcgan_stopped_and_resumed_equals_one_never_stopped_and_converts(
    small, tmp_path, monkeypatch
):
    small(MODEL="dcgan", CHANNELS=2, BATCH_NORM=True, EPOCHS=1, OUT=str(tmp_path))
    small(SKIPS=True, AUGMENT=True)
    images = np.random.default_rng(0).integers(0, 256, (100, 8, 10, 3), np.uint8)
    whole = gan.GAN(images)
    assert gan.train(whole, images, gan.make_folder())
    stopped, folder = gan.GAN(images), gan.make_folder()
    with monkeypatch.context() as patch:
        patch.setattr(gan, "show_progress", lambda text: setattr(stopped, "stop", 2))
        assert not gan.train(stopped, images, folder) and 0 < stopped.step < 100
    resumed = gan.GAN(images)
    gan.restore(resumed, folder)
    assert gan.train(resumed, images, folder)
    for variable, expected in zip(resumed.variables(), whole.variables(), strict=True):
        assert np.array_equal(variable.numpy(), expected.numpy())
    saved, noise = keras.saving.load_model(folder / "generator.keras"), gan.draw_noise(5, 0)
    assert np.allclose(saved(noise), resumed.average(noise), atol=1e-6)
    assert len(tf.lite.TFLiteConverter.from_keras_model(saved).convert()) > 1000
