"""gan.py as its user runs it: what it prints and leaves, and how a run stops and goes on."""

import csv
import io
import json
import os
import random
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, TINY, arguments, run, start
from PIL import Image

import gan

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals or limits")
LONGER = TINY | {"LR_DECAY": False, "CATEGORIES": 1}  # whose graph does not depend on EPOCHS
traced = {}


def traced_gan(images, make=gan.GAN):
    """Return a new gan.GAN, whose graph is traced once only: that takes most of a small run."""
    same = {"DATA", "OUT", "EARLY_STOP"} | (set() if gan.LR_DECAY else {"EPOCHS"})
    key = (
        images.shape,
        gan.EPOCH_IMAGES,
        *(getattr(gan, name) for name in gan.SETTINGS if name not in same),
    )
    if key not in traced:
        model = make(images)
        traced[key] = model, [variable.numpy() for variable in model.variables()]
    model, values = traced[key]
    for variable, value in zip(model.variables(), values):
        variable.assign(value)
    model.epoch, model.position, model.step, model.rows, model.stop = 0, 0, 0, [], None
    return model


@pytest.fixture(name="main")
def main_in_process(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command line in tmp_path: (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(gan, "GAN", traced_gan)

    def main(*words, **settings):
        status = gan.main([*map(str, words), *arguments(**settings)])
        return status, *capsys.readouterr()

    return main


def rows(folder):
    """Return the rows of losses.csv without the columns that no two runs share."""
    with open(folder / "losses.csv", newline="", encoding="utf-8") as lines:
        table = list(csv.DictReader(lines))
    return [{k: v for k, v in row.items() if k not in ("images/s", "seconds")} for row in table]


def checkpoint(folder):
    """Return the arrays of a run's checkpoint, less the rows, which hold times."""
    with np.load(folder / "checkpoint.npz") as arrays:
        *values, _, counters = arrays.values()
    return [*values, counters]


def assert_equal_runs(first, second):
    """Check that two runs left the same weights, numbers and pictures, bit for bit."""
    assert rows(first) == rows(second)
    pictures = sorted(path.name for path in first.glob("epoch-*.png"))
    assert pictures == sorted(path.name for path in second.glob("epoch-*.png"))
    for name in pictures:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    for a, b in zip(checkpoint(first), checkpoint(second), strict=True):
        assert np.array_equal(a, b)


def files(folder):
    """Return the bytes of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def printed_command(text):
    """Return the words after python gan.py of the command that a run ends with."""
    python, script, *words = shlex.split(re.search(r"python .*--resume .*", text)[0])
    assert python == "python" and Path.cwd() / script == ROOT / "gan.py"
    return words


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
    assert err == "" and "\r" not in out  # progress is for terminals
    *lines, last = out.splitlines()
    assert all(len(line) <= 79 for line in lines)
    start = [line.replace("\\", "/") for line in lines[:5]]
    assert start == [
        "data      dots: 100 images of 8 x 8 x 1",
        "networks  G 1,232 weights, D 1,057; replicas: 1",
        "noise     8 numbers, no categories",
        "epochs    2, of 100 iterations",
        "run       samples/dots-001: open its index.html in a browser",
    ]
    table = [line.split() for line in lines if re.match(r" +\d+/", line)]
    assert [row[0] for row in table] == ["1/2", "2/2"]
    assert {len(row) for row in table} == {len(re.split("  +", gan.HEADER.strip()))}
    assert re.search(r"Epochs done: 2. See samples.dots-001", out)
    assert printed_command(last)[1:] == ["--run", str(Path("samples", "dots-001")), "EPOCHS=4"]


def test_a_run_leaves_pictures_numbers_networks_settings_and_a_checkpoint(finished):
    folder, _, _ = finished
    names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    pictures = {f"epoch-00{i}.png" for i in range(3)} | {"real.png", "losses.png"}
    pictures |= {"epoch-000-00050.png", "epoch-000-00100.png", "training.gif"}
    others = {"settings.json", "losses.csv", "index.html", "checkpoint.npz"}
    assert names == pictures | others | {"generator.keras", "discriminator.keras"}
    for name in pictures:
        Image.open(folder / name).load()
    settings = json.loads((folder / "settings.json").read_text())
    assert list(settings.pop("constants")) == list(settings) == gan.SETTINGS
    assert settings["Z_SIZE"] == TINY["Z_SIZE"]
    assert Path(settings["DATA"]) == folder.parent.parent / "dots.npy"
    assert [float(row["epoch"]) for row in rows(folder)] == [1, 2]
    assert all(np.isfinite(array).all() for array in checkpoint(folder))


def test_a_new_run_gets_the_next_number_and_overwrites_nothing(main, data, tmp_path):
    (tmp_path / "samples" / "dots-001").mkdir(parents=True)
    assert main(DATA=data, **LONGER)[0] == 0
    before = files(tmp_path / "samples")
    assert {path.parent.name for path in before} == {"dots-002"}
    assert main(DATA=data, **LONGER)[0] == 0
    after = files(tmp_path / "samples")
    assert tmp_path / "samples" / "dots-003" / "epoch-001.png" in after
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
    assert "edited" not in out
    (tmp_path / "digits").mkdir()  # which is not what the run was trained on
    status, out, _ = main("--run", "digits-001")
    assert status == 0 and "the drawn digits; those here: DATA=./digits" in out

    status, _, err = main("--resume", "--run", "real/mnist-001", EPOCHS=3)
    assert status == 2 and len(err.splitlines()) == 1 and "MNIST failed to load" in err


def test_collapse_is_told_but_not_of_a_generator_that_is_just_untrained(main, data):
    # So slow a generator goes on making grey images.
    hopeless = {"G_RATE": 0.01, "LEARNING_RATE": 0.001, "GRADIENT_PENALTY": 0, "D_HIDDEN": 256}
    status, out, _ = main(DATA=data, **LONGER | hopeless | {"EPOCHS": 5})
    assert status == 0
    assert out.count("mode collapse") == 3 and " 3/5 " in out[: out.index("mode collapse")]
    assert all(len(line) <= 79 for line in out.splitlines()[:-1])


def test_a_new_dcgan_takes_its_own_settings_and_a_resumed_one_keeps_what_it_was_given(
    data, main, monkeypatch
):
    monkeypatch.setattr(gan, "MODEL", "dcgan")  # as edited at the top of the script
    monkeypatch.setattr(gan, "DATA", data.name)
    assert main(Z_SIZE=5, CHANNELS=1, GRID=2, EPOCHS=1)[::2] == (0, "")
    assert main("--resume", MODEL="dcgan", EPOCHS=2)[0] == 0
    settings = json.loads((data.parent / "samples" / "dots-001" / "settings.json").read_text())
    expected = {name: for_small for name, (_, for_small, _) in gan.DEFAULTS.items()}
    expected |= {"Z_SIZE": 5, "CHANNELS": 1, "EPOCHS": 2, "DATA": str(data)}  # from anywhere
    assert settings.items() >= expected.items()
    # Few or grey images of up to 32 pixels are learned better without skips.
    colour, grey, large = (32, 32, 3), (28, 28, 1), (40, 33, 1)
    cases = (colour, False, True), (colour, True, False), (grey, False, False), (large, True, True)
    for shape, few, skips in cases:
        for name in ("SKIPS", *gan.DEFAULTS):
            monkeypatch.setattr(gan, name, None)
        monkeypatch.setattr(gan, "AUGMENT", few)
        gan.choose_defaults(shape)
        assert gan.SKIPS is skips
    assert all(getattr(gan, name) == large for name, (_, _, large) in gan.DEFAULTS.items())


# How a run stops and goes on
def stop_soon(model, images, folder):
    """Train until a signal comes in the first chunk of iterations."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan, "show_progress", lambda text: setattr(model, "stop", signal.SIGINT))
        assert not gan.train(model, images, folder)


def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_exactly(small, images, tmp_path, capsys):
    small(BATCH_NORM=True, AUGMENT=True, CATEGORIES=3)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    assert gan.train(traced_gan(images), images, whole)
    stop_soon(traced_gan(images), images, stopped)
    model = gan.GAN(images)  # that has seen nothing of the others
    gan.restore(model, stopped)
    assert (model.epoch, model.position, model.step) == (0, 5000, 50)
    gan.describe(images, model, stopped, {})
    assert "resumed   after 0 epochs, 50 iterations" in capsys.readouterr().out
    assert gan.train(model, images, stopped)
    assert_equal_runs(whole, stopped)


@posix
def test_one_signal_stops_with_a_checkpoint_a_second_ends_at_once_and_nohup_counts():
    model, hang_up = SimpleNamespace(stop=None), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with gan.stoppable(model):
        signal.raise_signal(signal.SIGHUP)  # which nohup has ignored
        assert model.stop is None
        signal.raise_signal(signal.SIGINT)
        assert model.stop == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGHUP, hang_up)


@posix
def test_a_run_killed_and_stopped_at_random_moments_ends_like_one_left_alone(main, tmp_path):
    dots = np.random.default_rng(0).integers(0, 256, (6000, 8, 8), np.uint8)
    np.save(tmp_path / "dots.npy", dots)
    settings = TINY | {"DATA": tmp_path / "dots.npy", "GRADIENT_PENALTY": 0, "EPOCHS": 16}
    chance, command = random.Random(0), arguments(**settings)
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        process = start(tmp_path, *command)
        while not re.match(" +[0-9]+/", process.stdout.readline()):  # an epoch is done
            assert process.poll() is None, process.communicate()
        time.sleep(chance.uniform(0, 0.2))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert err == ""
        command = ["--resume"]
        if number != signal.SIGKILL:
            assert process.returncode == 128 + number and "nothing is lost" in out
            command = printed_command(out)
            assert command == ["--resume", "--run", "samples/dots-001"]
    status, out, err = main(*command)
    assert status == 0 and err == "" and "16/16" in out
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
    status, out, _ = main("--run", "dots-001", OUT="whole")  # in OUT, and without --resume
    assert status == 0 and "Epochs done: 2" in out
    assert printed_command(out)[-2:] == [str(Path("whole", "dots-001")), "EPOCHS=4"]


def test_constants_edited_since_a_run_began_are_named_with_the_words_that_change_it(
    main, data, monkeypatch
):
    monkeypatch.setattr(gan, "EPOCHS", 1)  # as edited at the top of the script
    status, out, _ = main(DATA=data, **{k: v for k, v in LONGER.items() if k != "EPOCHS"})
    assert status == 0 and "edited" not in out
    for name, value in (("EPOCHS", 2), ("PRIOR", (-1, 1)), ("GRID", 4)):
        monkeypatch.setattr(gan, name, value)
    status, out, _ = main("--resume")
    assert status == 0 and "Epochs done: 1" in out
    words = printed_command(out[out.index("constants were edited; to use them here: ") :])
    assert set(words[3:]) == {"EPOCHS=2", "PRIOR=-1,1", "GRID=4"}  # no words of before
    status, out, _ = main(*words)
    assert status == 0 and " 2/2" in out and "edited" not in out


def test_early_stop_ends_a_run_which_goes_on_by_the_command_that_it_prints(main, data):
    status, out, _ = main(DATA=data, EARLY_STOP=(0, 1), **LONGER)
    assert status == 0 and " 1/2" in out and " 2/2" not in out
    status, out, err = main(*printed_command(out))
    assert status == 0 and err == "" and " 2/2" in out


@pytest.mark.parametrize("size", [50, 200])  # of 100 images
def test_batches_and_learning_rate_can_change_within_an_epoch(small, images, tmp_path, size):
    small(**LONGER)
    model = traced_gan(images)
    stop_soon(model, images, tmp_path)
    model.position, model.step = 7500, 75  # of 10,000 images, as if it had been stopped there
    gan.save_checkpoint(model, tmp_path)
    small(BATCH_SIZE=size, LEARNING_RATE=1e-6)
    model = traced_gan(images)
    gan.restore(model, tmp_path)
    assert gan.train(model, images, tmp_path)
    assert model.epoch == 2 and model.step == 75 + (2500 + 10000) // size
    assert float(model.d_optimizer.learning_rate) == pytest.approx(1e-6)
    epochs = 2500 // size * size, 10000  # images
    for trained, (*numbers, speed, seconds) in zip(epochs, model.rows, strict=True):
        assert np.isfinite(numbers).all() and trained / speed == pytest.approx(seconds)


def test_progress_fits_the_terminal_and_is_shown_in_a_terminal_only(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", shell := io.StringIO())  # IDLE's, which claims to be one
        shell.isatty = lambda: True
        gan.show_progress("half done")
        assert shell.getvalue() == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for columns, length in ((60, 59), (200, 100)):
        size = os.terminal_size((columns, 24))
        monkeypatch.setattr(os, "get_terminal_size", lambda size=size: size)
        gan.show_progress("x" * 100)
        assert capsys.readouterr().out == "x" * length + "\r"
