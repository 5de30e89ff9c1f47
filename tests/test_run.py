"""gan.py as its user runs it: what it prints and leaves, and how a run stops and goes on."""

import csv
import json
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, arguments, run
from PIL import Image

import gan

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals or limits")
LONGER = TINY | {"LR_DECAY": False, "CATEGORIES": 1}  # whose graph does not depend on EPOCHS
traced = {}


def traced_gan(images, strategy=None, make=gan.GAN):
    """Return a new gan.GAN, whose graph is traced once only: that takes most of a small run."""
    same = {"DATA", "OUT", "EARLY_STOP"} | (set() if gan.LR_DECAY else {"EPOCHS"})
    key = images.shape, *(getattr(gan, name) for name in gan.SETTINGS if name not in same)
    if key not in traced:
        model = make(images, strategy)
        traced[key] = model, [variable.numpy() for variable in model.variables()]
    model, values = traced[key]
    for variable, value in zip(model.variables(), values):
        variable.assign(value)
    model.epoch, model.position, model.step, model.rows = 0, 0, 0, []
    return model


def in_process(folder, monkeypatch, capsys):
    """Return a function that runs a command line in this process: (status, stdout, stderr)."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KERAS_HOME", str(folder / "keras"))
    monkeypatch.setattr(gan, "GAN", traced_gan)

    def main(*words, **settings):
        status = gan.main([*map(str, words), *arguments(**settings)])
        return status, *capsys.readouterr()

    return main


@pytest.fixture
def main(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command line in tmp_path."""
    return in_process(tmp_path, monkeypatch, capsys)


def rows(folder):
    """Return the rows of losses.csv without the columns that no two runs share."""
    with open(folder / "losses.csv", newline="", encoding="utf-8") as lines:
        table = list(csv.DictReader(lines))
    return [{k: v for k, v in row.items() if k not in ("images/s", "seconds")} for row in table]


def newest_checkpoint(folder):
    """Return the arrays of the newest checkpoint, less the rows, which hold times."""
    with np.load(max((folder / "checkpoint").iterdir())) as arrays:
        *values, _, counters, shape = arrays.values()
    return [*values, counters, shape]


def assert_equal_runs(first, second):
    """Check that two runs left the same weights, figures and pictures, bit for bit."""
    assert rows(first) == rows(second)
    pictures = sorted(path.name for path in first.glob("epoch-*.png"))
    assert pictures == sorted(path.name for path in second.glob("epoch-*.png"))
    for name in pictures:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    pairs = zip(newest_checkpoint(first), newest_checkpoint(second), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def files(folder):
    """Return the bytes of all files below a folder, but a run's lock."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "lock" not in path.name)
    return {path: path.read_bytes() for path in paths}


def printed_command(out):
    """Return the words after python gan.py of the command that a run ends with."""
    return shlex.split(re.search(r"python gan.py (--resume .*)", out)[1])


# What a run prints and leaves
@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return (folder, stdout, stderr) of a run of two epochs on 100 grey images of 8 x 8."""
    folder = tmp_path_factory.mktemp("a run")
    np.save(folder / "dots.npy", np.random.default_rng(0).integers(0, 256, (100, 8, 8), np.uint8))
    status, out, err = run(folder, DATA="dots.npy", CATEGORIES=1, **TINY)
    assert status == 0, err
    return folder / "samples" / "dots-001", out, err


def test_a_run_prints_what_it_trains_and_a_row_for_each_epoch(finished):
    _, out, err = finished
    assert err == ""
    assert "\r" not in out  # the progress bar is for terminals
    lines = out.splitlines()
    assert all(len(line) <= 79 for line in lines)
    start = "\n".join(lines[:8])
    assert "100 grey images, 8 x 8" in start
    assert "1,232 parameters" in start and "1,057 parameters" in start
    assert "CPU, replicas: 1" in start and "2 epochs of 100 iterations" in start
    assert "samples/dots-001" in start.replace("\\", "/")
    header = next(i for i, line in enumerate(lines) if line.startswith(" epoch"))
    table = [line.split() for line in lines[header + 1 :] if re.match(r" +\d+/", line)]
    assert [row[0] for row in table] == ["1/2", "2/2"]
    assert {len(row) for row in table} == {len(re.split("  +", lines[header].strip()))}
    seconds, done = sum(float(row[-1]) for row in table), int(re.search(r"Done in (\d+)", out)[1])
    assert abs(seconds - done) <= 1 + done / 4
    assert printed_command(out)[-1] == "EPOCHS=4"


def test_a_run_leaves_pictures_figures_networks_settings_and_checkpoints(finished):
    folder, _, _ = finished
    names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    pictures = {f"epoch-00{i}.png" for i in range(3)} | {"real.png", "losses.png"}
    pictures |= {"epoch-000-00010.png", "epoch-000-00030.png"}
    others = {"settings.json", "losses.csv", "index.html", "training.gif", "checkpoint", "lock"}
    assert names == pictures | others | {"generator.keras", "discriminator.keras"}
    for name in pictures | {"training.gif"}:
        Image.open(folder / name).load()
    settings = json.loads((folder / "settings.json").read_text())
    assert set(settings) == set(gan.SETTINGS) and settings["Z_SIZE"] == TINY["Z_SIZE"]
    assert Path(settings["DATA"]) == folder.parent.parent / "dots.npy"
    assert [float(row["epoch"]) for row in rows(folder)] == [1, 2]
    assert all(0 < float(row["D(x)"]) < 1 for row in rows(folder))
    with np.load(folder / "checkpoint" / "step-000000200.npz") as arrays:
        assert all(np.isfinite(arrays[name]).all() for name in arrays)


def test_a_new_run_gets_the_next_number_and_overwrites_nothing(main, data, tmp_path):
    (tmp_path / "samples" / "dots-007").mkdir(parents=True)
    assert main(DATA=data, **LONGER)[0] == 0
    before = files(tmp_path / "samples")
    assert {path.parent.name for path in before} == {"dots-008", "checkpoint"}
    assert main(DATA=data, **LONGER)[0] == 0
    after = files(tmp_path / "samples")
    assert tmp_path / "samples" / "dots-009" / "epoch-001.png" in after
    assert {path: after[path] for path in before} == before


def test_without_network_drawn_digits_are_trained_on_and_an_mnist_run_is_not_resumed_with_them(
    main, tmp_path, monkeypatch
):
    draw = gan.draw_digits
    monkeypatch.setattr(gan, "draw_digits", lambda count: draw(count // 100))
    monkeypatch.setattr(gan, "MIRRORS", ("http://127.0.0.1:9/",))
    cache = tmp_path / "keras" / "datasets"
    cache.mkdir(parents=True)
    np.savez(cache / "mnist.npz", x_train=draw(300))
    assert main(**TINY, OUT="real")[0] == 0
    (cache / "mnist.npz").unlink()

    status, out, err = main(**TINY)
    assert status == 0 and err == ""
    assert "DRAWN DIGITS" in out and "http://127.0.0.1:9/" in out and str(cache) in out
    settings = json.loads((tmp_path / "samples" / "digits-001" / "settings.json").read_text())
    assert settings["DATA"] == "digits"

    status, _, err = main("--resume", "--run", "real/mnist-001", EPOCHS=3)
    assert status == 2 and len(err.splitlines()) == 1 and "DATA=mnist failed" in err


def test_collapse_and_an_overpowered_discriminator_are_told_once(main, data):
    # So slow a generator goes on making grey images, and every one of them is spotted.
    hopeless = {"G_RATE": 0.01, "LEARNING_RATE": 0.001, "GRADIENT_PENALTY": 0, "D_HIDDEN": 256}
    status, out, _ = main(DATA=data, **LONGER | hopeless | {"EPOCHS": 5})
    assert status == 0
    for text in ("mode collapse", "D spots nearly all fakes"):
        assert out.count(text) == 1
        assert " 3/5 " in out[: out.index(text)]  # before that G is just untrained
    assert all(len(line) <= 79 for line in out.splitlines())


@pytest.mark.parametrize(
    "settings, advice",
    [
        ({"MODEL": "mlp"}, "MODEL=dcgan"),
        ({"MODEL": "dcgan", "CHANNELS": 1}, "AUGMENT=True"),
        ({"MODEL": "dcgan", "CHANNELS": 1, "AUGMENT": True}, None),
    ],
)
def test_settings_that_do_not_suit_colour_images_get_advice(small, capsys, settings, advice):
    small(**settings)
    images = np.zeros((100, 8, 8, 3), np.uint8)
    images[0] = 255
    gan.describe("faces", images, gan.GAN(images), "samples/faces-001")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert len(notes) == (advice is not None) and all(advice in line for line in notes)


def test_images_that_hardly_differ_from_one_colour_get_a_word_before_training(small, capsys):
    for shade in (20, 30):
        images = np.full((100, 8, 8, 1), 7, np.uint8)
        images[50, 3, 3] += shade
        gan.describe("dark", images, gan.GAN(images), "samples/dark-001")
        assert ("hardly differ" in capsys.readouterr().out) == (shade < 26)


def test_a_new_dcgan_takes_its_own_settings_and_a_resumed_one_keeps_what_it_was_given(
    data, main, monkeypatch
):
    monkeypatch.setattr(gan, "MODEL", "dcgan")  # as edited at the top of the script
    monkeypatch.setattr(gan, "DATA", data.name)
    assert main(Z_SIZE=5, CHANNELS=1, GRID=2, EPOCHS=1)[::2] == (0, "")
    assert main("--resume", MODEL="dcgan", EPOCHS=2)[0] == 0
    settings = json.loads((data.parent / "samples" / "dots-001" / "settings.json").read_text())
    expected = {name: for_dcgan for name, (_, for_dcgan, _) in gan.DEFAULTS.items()}
    expected |= {"Z_SIZE": 5, "CHANNELS": 1, "EPOCHS": 2, "DATA": str(data)}  # from anywhere
    assert settings.items() >= expected.items()
    np.save(data, np.arange(50 * 40 * 33).reshape(50, 40, 33) % 256)
    monkeypatch.setattr(gan, "train_run", lambda *words: 0)
    assert main()[0] == 0
    settings = json.loads((data.parent / "samples" / "dots-002" / "settings.json").read_text())
    assert settings["CHANNELS"] == [28, 32] and settings["LEARNING_RATE"] == 0.0015  # large images


# How a run stops and goes on
def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_exactly(small, images, tmp_path):
    small(BATCH_NORM=True, AUGMENT=True, CATEGORIES=3)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    assert gan.train(traced_gan(images), images, tmp_path / "whole", [])
    assert not gan.train(traced_gan(images), images, tmp_path / "stopped", [signal.SIGINT])
    model = gan.GAN(images)  # that has seen nothing of the others
    gan.restore(model, tmp_path / "stopped")
    assert (model.epoch, model.position, model.step) == (0, gan.BATCH_SIZE, 1)
    assert gan.train(model, images, tmp_path / "stopped", [])
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")


def start_saving(folder, *words):
    """Start gan.py with words such that it saves all the time; return it once it has saved."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import gan; gan.CHECKPOINT_SECONDS = 0"
    command = [sys.executable, "-uc", f"{code}; sys.exit(gan.main(sys.argv[1:]))", *words]
    before = set(folder.glob("samples/*/checkpoint/step*"))
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(command, cwd=folder, text=True, **pipes)
    for _ in range(1200):
        if not before.issuperset(folder.glob("samples/*/checkpoint/step*")):
            return process
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    raise TimeoutError(command)


@posix
def test_a_run_killed_and_stopped_at_random_moments_ends_like_one_left_alone(main, tmp_path):
    dots = np.random.default_rng(0).integers(0, 256, (6000, 8, 8), np.uint8)
    np.save(tmp_path / "dots.npy", dots)
    settings = TINY | {"DATA": tmp_path / "dots.npy", "GRADIENT_PENALTY": 0, "EPOCHS": 7}
    chance, command = random.Random(0), arguments(**settings)
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
        process = start_saving(tmp_path, *command)
        time.sleep(chance.uniform(0, 0.2))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert err == ""
        if number == signal.SIGKILL:
            command = ["--resume"]
        else:
            assert process.returncode == 128 + number and "nothing is lost" in out
            command = printed_command(out)
            assert command == ["--resume", "--run", "samples/dots-001"]
    status, out, err = main(*command)
    assert status == 0 and err == "" and " 7/7" in out
    assert main(OUT="whole", **settings)[0] == 0
    assert_equal_runs(tmp_path / "whole" / "dots-001", tmp_path / "samples" / "dots-001")


def test_a_finished_run_goes_on_exactly_by_the_command_that_it_prints(main, data, tmp_path):
    assert main(DATA=data, OUT="whole", **LONGER)[0] == 0
    status, out, _ = main(DATA=data, OUT="o&(x) $HOME", **LONGER | {"EPOCHS": 1})
    assert status == 0
    command = printed_command(out)
    assert command[-1] == "EPOCHS=2"
    status, out, err = main(*command)
    assert status == 0 and err == "" and " 2/2" in out and " 1/2" not in out
    assert_equal_runs(tmp_path / "whole" / "dots-001", tmp_path / "o&(x) $HOME" / "dots-001")


def test_early_stop_ends_a_run_which_goes_on_by_the_command_that_it_prints(main, data):
    status, out, _ = main(DATA=data, EARLY_STOP=(0, 1), **LONGER)
    assert status == 0 and " 1/2" in out and " 2/2" not in out
    status, out, err = main(*printed_command(out))
    assert status == 0 and err == "" and " 2/2" in out


def test_a_resumed_run_takes_another_learning_rate(small, images, tmp_path):
    small(**LONGER)
    assert not gan.train(traced_gan(images), images, tmp_path, [signal.SIGINT])
    small(LEARNING_RATE=1e-6)
    model = traced_gan(images)
    gan.restore(model, tmp_path)
    assert gan.train(model, images, tmp_path, [])
    assert float(model.d_optimizer.learning_rate) == pytest.approx(1e-6)


@pytest.mark.parametrize("size", [50, 200])
def test_the_batch_size_can_change_in_the_middle_of_an_epoch(small, images, tmp_path, size):
    small(**LONGER)
    model = traced_gan(images)
    assert not gan.train(model, images, tmp_path, [signal.SIGINT])
    model.position, model.step = 7500, 75  # of 10,000 images, as if it had been stopped there
    gan.save_checkpoint(tmp_path, model)
    small(BATCH_SIZE=size)
    model = traced_gan(images)
    gan.restore(model, tmp_path)
    assert gan.train(model, images, tmp_path, [])
    assert model.epoch == 2 and model.step == 75 + (2500 + 10000) // size
    assert all(np.isfinite(row).all() and min(row[-2:]) > 0 for row in model.rows)


def test_progress_fits_the_terminal_and_is_a_line_a_minute_without_one(monkeypatch, capsys):
    monkeypatch.setattr(gan, "last_progress", [gan.time.monotonic() - 61])
    for _ in range(3):
        gan.show_progress("half done")
    assert capsys.readouterr().out == "half done\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for columns, length in (("60", 59), ("200", 78)):
        monkeypatch.setenv("COLUMNS", columns)
        gan.show_progress("x" * 100)
        assert capsys.readouterr().out == "x" * length + "\r"
