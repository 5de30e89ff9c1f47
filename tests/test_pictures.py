"""The pictures of a run's past, new images from its generator, and TensorBoard's curves."""

import importlib.util
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import TINY, run
from PIL import Image

import gan

ROWS = [[i + 1, 1.2, 0.8 + i / 10, 0.6, 0.4, 0.7, 0.9, 5000.0, 2.0] for i in range(5)]


def colors(picture):
    return {color for _, color in picture.convert("RGB").getcolors(100000)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder in which a tiny run was trained, and the run's folder."""
    home = tmp_path_factory.mktemp("home with space")
    images = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), np.uint8)
    np.save(home / "dots.npy", images)
    assert run(home, DATA="dots.npy", **TINY)[0] == 0
    return home, home / "samples" / "dots-001"


def test_the_chart_of_the_losses_has_two_lines_in_each_of_two_panels():
    picture = gan.plot(ROWS)
    assert picture.size == (800, 500)
    for panel in (picture.crop((0, 0, 800, 240)), picture.crop((0, 240, 800, 500))):
        assert {(0x1F, 0x5F, 0xD0), (0xD0, 0x45, 0x1F), (0, 0, 0)} <= colors(panel)


def test_a_line_of_the_chart_is_where_its_axis_says():
    picture = np.asarray(gan.plot([[i, 1.0, 0.5, 1.0, 0.0, 0.5, 1, 1, 1] for i in (1, 2)]))
    blue = np.all(picture == (0x1F, 0x5F, 0xD0), axis=2)[:, 100:700].all(1)
    red = np.all(picture == (0xD0, 0x45, 0x1F), axis=2)[:, 100:700].all(1)
    assert abs(np.flatnonzero(blue).mean() - np.mean([35, 275])) <= 1.5  # 1 of 0 to 1, twice
    assert abs(np.flatnonzero(red).mean() - np.mean([125, 455])) <= 1.5  # 0.5, and 0


@pytest.mark.parametrize("scale", [1e-30, -3.0, 1e30])
def test_the_chart_of_any_losses_can_be_drawn(scale):
    rows = [[row[0], scale * row[1], scale * row[2], *row[3:]] for row in ROWS]
    for count in (1, 2, 5):
        assert gan.plot(rows[:count]).size == (800, 500)


def test_ticks_are_round_and_few():
    assert np.allclose(gan.ticks(0, 1, 5, 0.001), [0, 0.5, 1])
    assert np.allclose(gan.ticks(-3.1, 1.2, 5, 0.001), [-3, -2, -1, 0, 1])
    assert np.allclose(gan.ticks(1, 137, 13, 1), np.arange(20, 121, 20))
    assert gan.ticks(1, 1, 13, 1) == [1]


def test_a_run_leaves_a_chart_an_animation_and_its_progress(trained):
    folder = trained[1]
    assert Image.open(folder / "losses.png").size == (800, 500)
    with Image.open(folder / "training.gif") as movie:
        assert movie.size == (400, 400)
        movie.seek(movie.n_frames - 1)
        assert movie.info["duration"] >= 2000  # more where the frames before it are the same
    with (
        Image.open(folder / "progress.png") as progress,
        Image.open(folder / "epoch-002.png") as last,
    ):
        row = progress.height // 3
        assert progress.width == last.width and last.height // 3 <= row < last.height // 2
        top = np.asarray(last)[:row]
        assert np.array_equal(np.asarray(progress)[2 * row :], top)


def test_a_long_history_is_thinned_to_a_hundred_frames_and_eleven_rows(small, tmp_path):
    small(GRID=2)
    rng = np.random.default_rng(0)
    for i in range(130):
        pixels = np.full((4, 28, 28, 3), i, np.uint8)
        if i % 3 == 0:
            pixels = rng.integers(0, 256, pixels.shape, np.uint8)  # noise: nothing packs worse
        gan.tile(pixels, 2).save(tmp_path / f"epoch-{i:03}.png")
    (tmp_path / "epoch-007.png").write_bytes(b"damaged")
    gan.save_history(tmp_path, (28, 28, 3))
    with Image.open(tmp_path / "training.gif") as movie:
        assert movie.n_frames in (99, 100)  # one of those chosen may be the damaged one
    assert (tmp_path / "training.gif").stat().st_size < 3e6
    with Image.open(tmp_path / "progress.png") as progress:
        assert progress.height == 11 * gan.tile(pixels[:2], 2).height


def test_a_new_grid_leaves_the_pictures_of_the_old_one_alone(small, images, tmp_path):
    small(GRID=4)
    gan.tile(images[:16], 4).save(tmp_path / "epoch-000.png")
    small(GRID=3)
    gan.save_history(tmp_path, images.shape[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-000.png"]
    gan.tile(images[:9], 3).save(tmp_path / "epoch-001.png")
    gan.save_history(tmp_path, images.shape[1:])
    with Image.open(tmp_path / "progress.png") as progress:
        assert progress.size == gan.tile(images[:3], 3).size


def test_samples_are_new_for_another_seed_and_the_same_for_the_same(trained):
    home, folder = trained

    def sample(count, **settings):
        status, out, err = run(home, "--sample", count, **settings)
        assert (status, err) == (0, "") and "generated" in out
        return {file.name: file.read_bytes() for file in (folder / "generated").iterdir()}

    first, more, other, again = sample(3), sample(5), sample(5, SEED=1), sample(5)
    assert sorted(first) == ["00000.png", "00001.png", "00002.png"]
    assert len(more) == len(other) == 5 and more == again and more.items() >= first.items()
    assert not set(more.values()) & set(other.values())
    mine = ["20240101.png", "2024-best.png", "00001-good.png", "7.png", "notes.txt"]
    for name in mine:
        (folder / "generated" / name).write_text("mine")
    (folder / "tmp-generated-x").mkdir()  # left by a process that was killed
    assert sorted(sample(1)) == sorted(["00000.png", *mine])
    for name in ("grid.png", "interpolation.png"):
        assert Image.open(folder / name).width > 0
    assert not list(folder.glob("tmp-*"))


def test_two_processes_do_not_draw_samples_of_a_run_at_once(trained, small):
    home, folder = trained
    small(OUT=str(home / "samples"))
    held = gan.lock(folder, "sample.lock")
    with pytest.raises(gan.Problem, match="in use by another process"):
        gan.sample(3, None, {})
    held.close()
    assert gan.sample(3, None, {}) == 0


def test_samples_come_from_the_generator_of_the_run(trained, small, capsys):
    home, folder = trained
    small(OUT=str(home / "samples"))
    assert gan.sample(600, None, {}) == 0  # more than one batch
    generator = gan.keras.saving.load_model(folder / "generator.keras")
    for start in (0, 500):
        expected = gan.generate(generator, gan.draw_noise(500, -3 - start))
        for i in (0, 99):
            with Image.open(folder / "generated" / f"{start + i:05}.png") as picture:
                assert np.array_equal(np.asarray(picture), expected[i, ..., 0])


def test_an_interpolation_walks_on_the_sphere_from_end_to_end(small):
    small(PRIOR="sphere")
    ends = np.random.default_rng(0).normal(size=(2, 8))
    ends /= np.linalg.norm(ends, axis=1, keepdims=True)
    steps = gan.walk(*ends, 10)
    assert np.allclose(steps[[0, -1]], ends) and np.allclose(np.linalg.norm(steps, axis=1), 1)
    small(PRIOR=(-1.0, 1.0))
    assert np.allclose(gan.walk(*ends, 3)[1], ends.mean(0))
    small(PRIOR="normal")
    assert np.isfinite(gan.walk(ends[0], -ends[0], 5)).all()


@pytest.mark.parametrize(
    "words", [["--sample", "0"], ["--sample", "x"], ["--sample", "2", "GRID=3"]]
)
def test_a_bad_request_for_samples_gets_one_line(small, monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["gan.py", *words])
    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)
    try:
        status = gan.main()
    except SystemExit as end:
        status = end.code
    assert status == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_a_damaged_generator_gets_one_line_and_nothing_is_lost(trained, small):
    home, folder = trained
    whole = (folder / "generator.keras").read_bytes()
    small(OUT=str(home / "samples"))
    gan.sample(2, None, {})
    before = sorted((folder / "generated").iterdir())
    try:
        for damaged in (b"", whole[:1000], whole[:3000] + b"\1\2\3\4" + whole[3004:]):
            (folder / "generator.keras").write_bytes(damaged)
            with pytest.raises(gan.Problem, match="generator.keras cannot be used"):
                gan.sample(3, None, {})
    finally:
        (folder / "generator.keras").write_bytes(whole)
    assert sorted((folder / "generated").iterdir()) == before


def test_both_saved_networks_open_in_a_process_without_gan_py(trained):
    folder = trained[1]
    code = (
        "import keras, sys, numpy as np\n"
        "g, d = (keras.saving.load_model(f'{sys.argv[1]}/{n}.keras') for n in sys.argv[2:])\n"
        "images = g(np.random.normal(size=(5, 8)))\n"
        "assert images.shape == (5, 8, 8, 1) and d(images).shape == (5, 1)\n"
        "assert 'gan' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(folder), "generator", "discriminator"]
    subprocess.run(command, check=True)


tensorboard = pytest.mark.skipif(
    not importlib.util.find_spec("tensorboard"), reason="tensorboard is not installed"
)


@tensorboard
def test_tensorboard_shows_each_epoch_once_also_of_a_resumed_run(trained, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    home = shutil.copytree(trained[0], tmp_path / "copy")
    folder = home / "samples" / "dots-001"
    assert run(home, "--resume", EPOCHS=3, OUT="samples")[0] == 0
    events = EventAccumulator(str(folder), {"tensors": 0, "images": 0})
    events.Reload()
    assert {"settings", "samples", *gan.COLUMNS[1:]} <= set(events.Tags()["tensors"])
    for name in (*gan.COLUMNS[1:], "samples"):
        assert [event.step for event in events.Tensors(name)] == [1, 2, 3]


def test_without_tensorboard_one_line_says_how_to_get_it(
    small, images, tmp_path, monkeypatch, capsys
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name)
    )
    model = gan.GAN(images)
    gan.describe("dots", images, model, tmp_path)
    assert capsys.readouterr().out.count("pip install tensorboard") == 1
    gan.tensorboard(tmp_path, [])(ROWS[0])
    assert not list(tmp_path.glob("*tfevents*"))
