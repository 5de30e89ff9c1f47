"""The dcgan, and the systems that people come from: each by settings alone."""

import numpy as np
import pytest

import gan

GREY, COLOUR = (28, 28, 1), (32, 32, 3)
UNIFORM = {"Z_SIZE": 100, "PRIOR": (-1, 1), "G_HIDDEN": 128, "D_HIDDEN": 128}
WIDE = {"Z_SIZE": 200, "PRIOR": (0, 10), "G_HIDDEN": 600, "D_HIDDEN": 600}
DEEP = {"Z_SIZE": 100, "G_HIDDEN": (256, 512, 1024), "D_HIDDEN": (512, 256), "BATCH_NORM": "G"}
TANH = {"ACTIVATION": "tanh"}
LEAKY = {"ACTIVATION": "leaky_relu", "OUTPUT": "tanh"}
RADFORD = {"MODEL": "dcgan", "CHANNELS": 64, "BATCH_NORM": True, "Z_SIZE": 100, "OUTPUT": "tanh"}
RADFORD["KERNEL"] = 5
BETTER = {"MODEL": "dcgan", "CHANNELS": (56, 32), "Z_SIZE": 8}


def conv(inputs, outputs, side=5):
    """Return the number of weights and biases of a convolution."""
    return (side**2 * inputs + 1) * outputs


# The images and settings of each system, and what its author's G and D count: weights, biases
# and, of batch normalisation, four numbers a channel.
SYSTEMS = {
    "selous123": (GREY, UNIFORM | TANH, 101 * 128 + 129 * 784, 785 * 128 + 129),
    "Joe-Han": (GREY, WIDE | TANH, 201 * 600 + 601 * 784, 785 * 600 + 601),
    "Udacity": (GREY, UNIFORM | LEAKY, 101 * 128 + 129 * 784, 785 * 128 + 129),
    "Keras-GAN": (
        GREY,
        DEEP | LEAKY,
        101 * 256 + 257 * 512 + 513 * 1024 + 1025 * 784 + 4 * (256 + 512 + 1024),
        785 * 512 + 513 * 256 + 257,
    ),
    "dcgan": (
        GREY,
        RADFORD,
        101 * 6272 + conv(128, 64) + conv(64, 1) + 4 * (128 + 64),
        conv(1, 64) + conv(64, 128) + 4 * 128 + 6272 + 1,
    ),
    "dcgan of colour images": (
        COLOUR,
        RADFORD,
        101 * 4096 + conv(256, 128) + conv(128, 64) + conv(64, 3) + 4 * (256 + 128 + 64),
        conv(3, 64) + conv(64, 128) + conv(128, 256) + 4 * (128 + 256) + 4096 + 1,
    ),
    "better dcgan": (
        GREY,
        BETTER,
        9 * 49 * 112 + conv(112, 56, 4) + conv(56, 1, 4),
        conv(1, 32, 4) + conv(32, 64, 4) + 3136 + 1,
    ),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_has_its_authors_parameters_and_both_its_networks_move(small, system):
    shape, settings, *expected = SYSTEMS[system]
    small(CATEGORIES=1, BATCH_SIZE=20, **settings)
    images = np.random.default_rng(0).integers(0, 256, (60, *shape), np.uint8)
    model = gan.GAN(images)
    networks = model.generator, model.discriminator
    assert [network.count_params() for network in networks] == expected
    before = [network.get_weights() for network in networks]
    model.train(images.reshape(3, 1, 20, *shape), 0, 0)
    for network, old in zip(networks, before):
        for weight, value in zip(network.weights, old):
            assert not np.array_equal(weight.numpy(), value), weight.path


def test_a_dcgan_is_built_of_strided_convolutions_alone_for_images_of_any_size(small):
    small(MODEL="dcgan", CHANNELS=4, BATCH_NORM=True)
    for shape, stages in (((24, 40, 3), 2), ((28, 28, 1), 2), ((64, 64, 3), 4), ((33, 50, 1), 3)):
        generator, discriminator = gan.build_generator(shape), gan.build_discriminator(shape)
        assert generator.output_shape == discriminator.input_shape == (None, *shape)
        kinds = [type(layer).__name__ for layer in generator.layers]
        assert (kinds.count("Conv2DTranspose"), kinds.count("Dense")) == (stages, 1)
        kinds = [type(layer).__name__ for layer in discriminator.layers]
        assert (kinds.count("Conv2D"), kinds.count("Dense")) == (stages, 1)
        assert kinds.count("BatchNormalization") == max(0, stages - 1)  # none on D's input


def test_a_dcgan_stopped_and_resumed_equals_one_never_stopped(small, tmp_path):
    small(MODEL="dcgan", CHANNELS=2, BATCH_NORM=True, AUGMENT=True, EPOCHS=1, OUT=str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (100, 8, 10, 3), np.uint8)
    ends = []
    for stops in (False, True):
        model, folder = gan.GAN(images), gan.make_folder("dcgan")
        if stops:
            assert not gan.train(model, images, folder, [2]) and 0 < model.step < 100
            model = gan.GAN(images)
            gan.restore(model, folder)
        assert gan.train(model, images, folder, [])
        ends.append([variable.numpy() for variable in model.variables()])
    assert all(np.array_equal(a, b) for a, b in zip(*ends, strict=True))
