"""The dcgan, and the systems that people come from: each by settings alone."""

import ast
import io
import re
import shlex
import signal
import sys

import numpy as np
import pytest
from conftest import ROOT

import gan

RECIPES = re.findall(
    "^ +(python gan.py .*Z_SIZE.*)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
)
# The weights, biases and (for batch normalisation, 4 a channel) statistics of the five systems.
COUNTS = [
    (101 * 128 + 129 * 784, 785 * 128 + 129),
    (201 * 600 + 601 * 784, 785 * 600 + 601),
    (101 * 128 + 129 * 784, 785 * 128 + 129),
    (
        101 * 256 + 257 * 512 + 513 * 1024 + 1025 * 784 + 4 * (256 + 512 + 1024),
        785 * 512 + 513 * 256 + 257,
    ),
    (
        101 * 6272 + 4 * 128 + (25 * 128 + 1) * 64 + 4 * 64 + 25 * 64 + 1,
        26 * 64 + (25 * 64 + 1) * 128 + 4 * 128 + 6272 + 1,
    ),
    (
        101 * 4096
        + (25 * 256 + 1) * 128
        + (25 * 128 + 1) * 64
        + (25 * 64 + 1) * 3
        + 4 * (256 + 128 + 64),
        76 * 64 + (25 * 64 + 1) * 128 + (25 * 128 + 1) * 256 + 4 * (128 + 256) + 4097,
    ),
    (9 * 3136 + (25 * 64 + 1) * 32 + 25 * 32 + 1, 26 * 32 + (25 * 32 + 1) * 64 + 3137),
    (
        65 * 2048 + (25 * 128 + 1) * 64 + (25 * 64 + 1) * 32 + (25 * 32 + 1) * 3,
        76 * 32 + (25 * 32 + 1) * 64 + (25 * 64 + 1) * 128 + 2049,
    ),
]


def test_there_are_recipes_for_the_five_systems_and_a_better_dcgan_also_on_colour_images():
    assert len(RECIPES) == len(COUNTS)


@pytest.mark.parametrize("number", range(len(COUNTS)))
def test_a_recipe_has_the_posts_parameters_and_moves_both_networks(
    small, tmp_path, monkeypatch, number
):
    built = []

    class Recorded(gan.GAN):
        def __init__(self, *args):
            super().__init__(*args)
            self.networks = self.generator, self.discriminator
            self.before = [network.get_weights() for network in self.networks]
            built.append(self)

    lines = re.findall(r"^(\w+) = (.*?) +# ", gan.settings_block(), re.MULTILINE)
    small(**{name: ast.literal_eval(value) for name, value in lines})
    shape = (32, 32, 3) if "IMAGE_SIZE" in RECIPES[number] else (28, 28)
    np.save(
        tmp_path / "few.npy", np.random.default_rng(0).integers(0, 256, (300, *shape), np.uint8)
    )
    monkeypatch.setattr(gan, "GAN", Recorded)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(RECIPES[number])[1:]
    monkeypatch.setattr(sys, "argv", [*words, "DATA=few.npy", "EPOCHS=1"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        assert gan.main() == 0
    finally:
        signal.signal(signal.SIGINT, handlers[0])
        signal.signal(signal.SIGTERM, handlers[1])
    (model,) = built
    assert tuple(network.count_params() for network in model.networks) == COUNTS[number]
    for network, old in zip(model.networks, model.before):
        for weight, value in zip(network.weights, old):
            assert not np.array_equal(weight.numpy(), value), weight.path
    assert (tmp_path / "samples" / "few-001" / "epoch-001.png").exists()


DCGAN = {"MODEL": "dcgan", "G_HIDDEN": (6, 4), "D_HIDDEN": (4, 6), "BATCH_NORM": True}


def test_a_dcgan_is_built_of_strided_convolutions_alone(small):
    small(**DCGAN)
    generator, discriminator = (
        build((12, 20, 3)) for build in (gan.build_generator, gan.build_discriminator)
    )
    kinds = [type(layer).__name__ for layer in generator.layers]
    assert kinds.count("Conv2DTranspose") == 2 and kinds.count("BatchNormalization") == 2
    assert kinds.count("Dense") == 1 and generator.output_shape == (None, 12, 20, 3)
    kinds = [type(layer).__name__ for layer in discriminator.layers]
    assert kinds.count("Conv2D") == 2 and kinds.count("BatchNormalization") == 1
    assert kinds.index("BatchNormalization") > kinds.index("LeakyReLU")  # none on D's input
    assert discriminator.layers[-2].output.shape == (None, 3 * 5 * 6)
    for network in (generator, discriminator):
        kernels = [w.numpy() for w in network.weights if w.path.endswith("kernel")]
        assert all(np.std(kernel) == pytest.approx(0.02, rel=0.3) for kernel in kernels)


def test_a_dcgan_stopped_and_resumed_equals_one_never_stopped(small, tmp_path):
    small(**DCGAN, OUT=str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (100, 12, 20, 3), np.uint8)
    ends = []
    for stops in (False, True):
        model, folder = gan.GAN(images), gan.make_folder("dcgan")
        if stops:
            assert not gan.train(model, images, folder, [2])
            model = gan.GAN(images)
            gan.restore(model, gan.read_checkpoint(folder))
        assert gan.train(model, images, folder, [])
        ends.append([variable.numpy() for variable in model.variables()])
    assert all(np.array_equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"G_HIDDEN": 64}, "G_HIDDEN=128,64"),
        ({"G_HIDDEN": (8, 8, 8)}, "IMAGE_SIZE=24 or 32"),
        ({"D_HIDDEN": (8, 8, 8, 8)}, "IMAGE_SIZE=16 or 32"),
    ],
)
def test_a_dcgan_that_does_not_fit_its_images_names_sizes_that_do(small, settings, said):
    small(**DCGAN | settings)
    with pytest.raises(gan.Problem, match=said):
        gan.check_images(np.zeros((20, 28, 28, 1), np.uint8), 1)
