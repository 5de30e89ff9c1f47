"""The pictures of a run, new images from its generator, and TensorBoard's curves."""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import TINY, arguments
from PIL import Image

import gan

BLUE, RED, GREY = (0x1F, 0x5F, 0xD0), (0xD0, 0x45, 0x1F), (0x88, 0x88, 0x88)
LOSSES, JUDGEMENTS = slice(35, 250), slice(280, 500)  # the chart's panels, without their legends


def chart(d_loss, g_loss, real, fake):
    """Return the pixels of the chart of such columns."""
    epochs = np.arange(len(d_loss)) + 1.0
    columns = np.broadcast_arrays(epochs, d_loss, g_loss, real, fake, 0.7, 0.9, 5000.0, 2.0)
    return np.asarray(gan.plot(np.transpose(columns).tolist()))


def heights(pixels, panel, color):
    return panel.start + np.flatnonzero((pixels[panel, 80:700] == color).all((1, 2)))


@pytest.mark.parametrize("loss, end, guess", [("non-saturating", 0, 0.69), ("minimax", -1, -0.69)])
def test_the_curves_and_the_grey_lines_of_guessing_lie_where_the_axes_say(small, loss, end, guess):
    small(LOSS=loss)
    pixels = chart([2.0, 2.0, 2.0], float(end), 1.0, 0.0)  # the ends of the axes
    panels = (LOSSES, (end, 2), (1.39, guess)), (JUDGEMENTS, (0, 1), (0.5,))
    for panel, (bottom, top), guessing in panels:
        high, low = (heights(pixels, panel, color).mean() for color in (BLUE, RED))
        assert low - high == pytest.approx(180, abs=1)
        expected = [low - 180 * (level - bottom) / (top - bottom) for level in guessing]
        assert heights(pixels, panel, GREY) == pytest.approx(expected, abs=1.5)


@pytest.mark.parametrize("side, width", [(28, 582), (32, 662), (200, 2066)])
def test_a_tiled_picture_has_about_600_pixels_and_every_image_in_its_place(side, width):
    images = np.random.default_rng(0).integers(0, 256, (100, side, side, 3), np.uint8)
    picture, gap = gan.tile(images, 10), max(1, side // 32)
    assert picture.size == (width, width)
    scale = width // (10 * (side + gap) + gap)
    places = np.asarray(picture)[::scale, ::scale][gap:, gap:]
    assert np.array_equal(places[side + gap :, side + gap :][:side, :side], images[11])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a tiny run that ended after one epoch and went on, and its images."""
    home = tmp_path_factory.mktemp("home with space")
    images = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), np.uint8)
    np.save(home / "dots.npy", images)
    settings = TINY | {"DATA": home / "dots.npy", "OUT": home, "CATEGORIES": 3, "AUGMENT": True}
    assert gan.main(arguments(**settings | {"EPOCHS": 1})) == 0
    assert gan.main(["--run", str(home / "dots-001"), "EPOCHS=2"]) == 0
    return home / "dots-001", images


def test_the_movie_has_a_hundred_small_titled_frames_at_most_with_the_last_one(small, tmp_path):
    for i in range(130):  # of one grey each, which tells the epoch
        Image.new("L", (900, 450), i).save(tmp_path / f"epoch-{i:03}.png")
    gan.save_history(tmp_path)
    with Image.open(tmp_path / "training.gif") as movie:
        assert (movie.n_frames, movie.size, movie.info["duration"]) == (100, (450, 255), 100)
        first = movie.convert("L")
        movie.seek(99)
        last = movie.convert("L")
    assert movie.info["duration"] == 2000 and last.getpixel((100, 100)) == 129
    assert (np.asarray(first)[:30] != np.asarray(last)[:30]).any()  # their titles


def test_tensorboard_shows_each_epoch_once_also_of_a_resumed_run(trained):
    board = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = board.EventAccumulator(str(trained[0]), {"tensors": 0})
    events.Reload()
    for name in gan.COLUMNS:
        assert [event.step for event in events.Tensors(name)] == [1, 2]


def test_samples_are_new_for_another_seed_and_may_be_of_one_category(trained, monkeypatch, capsys):
    folder, calls, generate = trained[0], [], gan.generate
    monkeypatch.setattr(gan, "generate", lambda *words: calls.append(words) or generate(*words))

    def sample(count, *words):
        calls.clear()
        assert gan.main(["--sample", str(count), "--run", str(folder), *words]) == 0
        return {file.name: file.read_bytes() for file in (folder / "generated").iterdir()}

    def split(noise):
        return np.reshape(noise, (10, -1, 11))[..., :8], np.reshape(noise, (10, -1, 11))[..., 8:]

    many, other, few = sample(502), sample(3, "SEED=1"), sample(3)
    assert (folder / "grid.png").exists() and sorted(few) == ["00000.png", "00001.png", "00002.png"]
    assert len(set(many.values())) == 502 and few.items() <= many.items()
    assert not set(few.values()) & set(other.values())
    z, categories = split(calls[-1][1])  # of interpolation.png: each row in one category
    assert (categories.argmax(2) == np.linspace(0, 2, 10, dtype=int)[:, np.newaxis]).all()
    assert np.allclose(np.diff(z, 2, axis=1), 0, atol=1e-5)  # straight, from one z to another
    assert np.abs(z[:, 0] - z[:, -1]).max(1).min() > 0.5
    walks = gan.tile(generate(*calls[-1]), 10)
    assert np.array_equal(Image.open(folder / "interpolation.png"), walks)
    sample(3, "--category", "2")
    for _, noise in (calls[0], calls[-1]):
        assert (np.argmax(noise[:, 8:], axis=1) == 2).all()
    for i, image in enumerate(generate(*calls[0])):
        assert np.array_equal(Image.open(folder / "generated" / f"0000{i}.png"), image[..., 0])
    capsys.readouterr()
    assert gan.main(["--sample", "3", "--run", str(folder), "--category", "3"]) == 2
    assert "--category 3: the run has 3 categories, from 0" in capsys.readouterr().err


def test_the_picture_of_categories_has_a_row_for_each_of_the_same_noises(small):
    small(CATEGORIES=3)
    generator = gan.build_generator((8, 8, 1))
    picture = np.asarray(gan.picture_categories(generator))
    noise = gan.draw_noise(10, gan.CATEGORIES_KEY)
    rows = [gan.generate(generator, gan.in_category(noise, [k] * 10)) for k in range(3)]
    assert np.array_equal(picture[:, 50:, 0], gan.tile(np.concatenate(rows), 10))
    margins = np.split(picture[: len(picture) // 3 * 3, :50], 3)
    assert len({margin.tobytes() for margin in margins}) == 3  # each has its number


def test_the_page_of_a_run_has_real_images_and_its_pictures_in_order_and_knows_of_its_end(trained):
    folder, images = trained
    real = gan.tile(images[np.linspace(0, 99, 9, dtype=int)], 3)
    assert np.array_equal(Image.open(folder / "real.png"), real)
    page = (folder / "index.html").read_text("utf-8")
    pictures, training = json.loads(re.search(r"training\] = (.*), last", page)[1])
    early = ["epoch-000", "epoch-000-00050", "epoch-000-00100"]
    assert pictures == [*early, "epoch-001", "epoch-002"]
    shown = ["real.png", "losses.png", "training.gif", "categories.png"]
    assert re.findall(r'src="(.+?)"', page) == shown
    assert all((folder / file).exists() for file in shown)
    assert re.findall(r'src="([^"]+)">', page) == shown[:1]  # others hide until they exist
    assert not training


def test_both_saved_networks_open_without_gan_py_and_do_not_alter_images(trained):
    code = """if True:
        import keras, numpy as np, sys
        g, d = (keras.saving.load_model(f"{name}.keras") for name in ("generator", "discriminator"))
        images = g(np.random.normal(size=(5, 8 + 3))).numpy()
        assert images.shape == (5, 8, 8, 1) and 0 <= images.min() < images.max() <= 1
        first, first_bias, last, last_bias = d.get_weights()
        hidden = np.maximum(images.reshape(5, 64) @ first + first_bias, 0)
        assert np.allclose(d(images), hidden @ last + last_bias, atol=1e-4)
        assert "gan" not in sys.modules
        import tensorflow as tf
        lite = tf.lite.TFLiteConverter.from_keras_model(g).convert()
        assert len(lite) > 1000
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=trained[0])


def test_code_in_a_saved_network_never_runs_and_its_keras_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    noise, trap = keras.Input((8,)), tmp_path / "trap"
    code = keras.layers.Lambda(lambda x: __import__("pathlib").Path("trap").touch() or x)
    keras.Model(noise, code(noise)).save("generator.keras")
    (tmp_path / "settings.json").write_text('{"Z_SIZE": 8, "CATEGORIES": 1}')
    trap.unlink()
    assert gan.main(["--sample", "1", "--run", "."]) == 2 and not trap.exists()
    assert f"it is of Keras {keras.__version__}, this is" in capsys.readouterr().err
    keras.saving.load_model("generator.keras", safe_mode=False)
    assert trap.exists()  # so the trap was a working one
