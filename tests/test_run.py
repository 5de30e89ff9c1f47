"""gan.py as its user runs it: what it prints, what it leaves, and how it ends and goes on."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, arguments, run, start
from PIL import Image

import gan

TIMING = {"images/s", "seconds"}


def rows(folder):
    """Return the rows of losses.csv without the columns that no two runs share."""
    with open(folder / "losses.csv", newline="", encoding="utf-8") as lines:
        return [{k: v for k, v in row.items() if k not in TIMING} for row in csv.DictReader(lines)]


def newest_checkpoint(folder):
    """Return the arrays of the newest checkpoint, less the rows, which hold times."""
    with np.load(max((folder / "checkpoint").iterdir())) as arrays:
        return [arrays[f"arr_{i}"] for i in range(len(arrays)) if i != len(arrays) - 3]


def assert_equal_runs(first, second):
    """Check that two runs left the same weights, figures and pictures, bit for bit."""
    assert rows(first) == rows(second)
    pictures = sorted(path.name for path in first.glob("epoch-*.png"))
    assert pictures == sorted(path.name for path in second.glob("epoch-*.png"))
    for name in pictures:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    pairs = zip(newest_checkpoint(first), newest_checkpoint(second), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def wait_for(path, process):
    """Wait until path is there, while the process runs."""
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise TimeoutError(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return (folder, stdout, stderr) of a run of two epochs on 100 grey images of 8 x 8."""
    folder = tmp_path_factory.mktemp("a run")
    np.save(folder / "dots.npy", np.random.default_rng(0).integers(0, 256, (100, 8, 8), np.uint8))
    status, out, err = run(folder, DATA="dots.npy", **TINY)
    assert status == 0, err
    return folder / "samples" / "dots-001", out, err


def test_a_run_prints_its_data_networks_device_folder_and_a_row_for_each_epoch(finished):
    _, out, err = finished
    assert err == ""
    lines = out.splitlines()
    assert all(len(line) <= 79 for line in lines)
    assert "\r" not in out  # the progress bar is for terminals
    start = "\n".join(lines[:5])
    assert "100 grey images, 8 x 8" in start
    assert "8-16-64: 1,232 parameters" in start and "64-16-1: 1,057 parameters" in start
    assert "CPU" in start and "samples/dots-001" in start.replace("\\", "/")
    header = next(i for i, line in enumerate(lines) if line.startswith(" epoch"))
    table = [line for line in lines[header + 1 :] if re.match(" +[0-9]+/", line)]
    assert [line.split()[0] for line in table] == ["1/2", "2/2"]
    assert len(table[0].split()) == len(lines[header].replace("D loss", "D").split()) - 2
    assert "python gan.py --resume --run" in out and "EPOCHS=4" in out


def test_a_run_leaves_pictures_figures_checkpoints_settings_and_the_generator(finished):
    folder, _, _ = finished
    names = {path.name for path in folder.iterdir()}
    assert {"epoch-000.png", "epoch-001.png", "epoch-002.png", "losses.csv"} <= names
    assert {"settings.json", "generator.keras", "checkpoint"} <= names
    assert not [name for name in names if name.startswith("tmp")]
    settings = json.loads((folder / "settings.json").read_text())
    assert set(settings) == set(gan.SETTINGS)
    assert (
        Path(settings["DATA"]) == folder.parent.parent / "dots.npy"
        and settings["Z_SIZE"] == TINY["Z_SIZE"]
    )
    table = rows(folder)
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert 0 < float(table[0]["D(x)"]) < 1 and float(table[1]["d_loss"]) > 0


def test_pictures_show_grid_by_grid_images_that_change_with_training(finished):
    folder, _, _ = finished
    pictures = [np.asarray(Image.open(folder / f"epoch-00{i}.png")) for i in range(3)]
    side = TINY["GRID"] * (8 + 1) + 1
    scale = 600 // side
    assert pictures[0].shape == (side * scale, side * scale)
    assert (pictures[0][:scale] == 80).all()  # the gap at the top
    assert not np.array_equal(pictures[0], pictures[2])


def test_the_saved_generator_opens_in_keras_without_gan_py(finished):
    folder, _, _ = finished
    code = """if True:
        import keras, numpy as np, sys
        generator = keras.saving.load_model(sys.argv[1])
        images = generator(np.random.normal(size=(5, 8)).astype("float32")).numpy()
        assert images.shape == (5, 8, 8, 1) and 0 <= images.min() < images.max() <= 1
        assert "gan" not in sys.modules
    """
    command = [sys.executable, "-c", code, str(folder / "generator.keras")]
    subprocess.run(command, check=True, cwd=folder)


def test_a_finished_run_says_so_and_trains_longer_with_more_epochs(finished, tmp_path):
    folder, _, _ = finished
    status, out, err = run(folder.parent.parent, "--resume")
    assert status == 0 and "has finished its 2 epochs" in out and "EPOCHS=4" in out, err
    before = (folder / "epoch-002.png").read_bytes()
    status, out, err = run(folder.parent.parent, "--resume", "--run", folder, EPOCHS=3)
    assert status == 0 and " 3/3" in out, err
    assert (folder / "epoch-002.png").read_bytes() == before
    assert [row["epoch"] for row in rows(folder)] == ["1", "2", "3"]


def test_a_new_run_gets_the_next_number_and_overwrites_nothing(data, tmp_path):
    (tmp_path / "samples" / "dots-007").mkdir(parents=True)
    status, _, err = run(tmp_path, DATA=data, **TINY | {"EPOCHS": 1})
    assert status == 0, err
    assert (tmp_path / "samples" / "dots-008" / "epoch-001.png").exists()
    assert not list((tmp_path / "samples" / "dots-007").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")
def test_a_run_stopped_by_ctrl_c_and_by_sigterm_equals_one_never_stopped(tmp_path):
    many = np.random.default_rng(0).integers(0, 256, (80000, 8, 8, 1), np.uint8)
    np.save(tmp_path / "dots.npy", many)
    settings = TINY | {"DATA": "dots.npy", "EPOCHS": 3}
    assert run(tmp_path, OUT="whole", **settings)[0] == 0
    process = start(tmp_path, OUT="stopped", **settings)
    folder = tmp_path / "stopped" / "dots-001"
    for epoch, number, status in ((1, signal.SIGINT, 130), (2, signal.SIGTERM, 143)):
        wait_for(folder / f"epoch-00{epoch}.png", process)
        time.sleep(0.3)  # so that the next epoch, seconds long, is in its middle
        asked = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - asked < 10  # far less on an idle machine: a chunk and the files
        assert process.returncode == status and err == ""
        command = re.search(r"python gan.py (--resume --run \S+)", out)[1].split()
        assert not (folder / f"epoch-00{epoch + 1}.png").exists()
        process = start(tmp_path, *command)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert_equal_runs(tmp_path / "whole" / "dots-001", folder)


@pytest.mark.parametrize(
    "batch_norm, precision", [(False, "float32"), (True, "float32"), (True, "bfloat16")]
)
def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_exactly(
    small, images, tmp_path, batch_norm, precision
):
    small(BATCH_NORM=batch_norm, PRECISION=precision, EPOCHS=2)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    assert gan.train(gan.GAN(images), images, tmp_path / "whole", [])
    for epoch, position in ((0, 20), (0, 40), (0, 60)):  # a signal after each first chunk
        model = gan.GAN(images)
        if position > 20:
            gan.restore(model, gan.read_checkpoint(tmp_path / "stopped"))
        assert not gan.train(model, images, tmp_path / "stopped", [signal.SIGINT])
        assert (model.epoch, model.position) == (epoch, position)
    model = gan.GAN(images)
    gan.restore(model, gan.read_checkpoint(tmp_path / "stopped"))
    assert gan.train(model, images, tmp_path / "stopped", [])
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_that_ended_with_an_epoch_goes_on_exactly(small, images, tmp_path):
    small(EPOCHS=3, LR_DECAY=False)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    assert gan.train(gan.GAN(images), images, tmp_path / "whole", [])
    small(EPOCHS=1)
    assert gan.train(gan.GAN(images), images, tmp_path / "stopped", [])
    small(EPOCHS=3)
    model = gan.GAN(images)
    gan.restore(model, gan.read_checkpoint(tmp_path / "stopped"))
    assert gan.train(model, images, tmp_path / "stopped", [])
    assert_equal_runs(tmp_path / "whole", tmp_path / "stopped")


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    small, images, tmp_path, capsys
):
    small(EPOCHS=2)
    (tmp_path / "run").mkdir()
    gan.train(gan.GAN(images), images, tmp_path / "run", [])
    first, newest = sorted((tmp_path / "run" / "checkpoint").iterdir())
    content = bytearray(newest.read_bytes())
    for damage in (content[:-100], content[:5000] + b"damaged" + content[5007:], b""):
        newest.write_bytes(damage)
        *_, counters, _ = gan.read_checkpoint(tmp_path / "run")
        assert counters.tolist() == [1, 0, 5]
        assert newest.name in capsys.readouterr().err
    first.write_bytes(b"")
    with pytest.raises(gan.Problem, match="no checkpoint that can be read"):
        gan.read_checkpoint(tmp_path / "run")


def test_a_long_epoch_is_saved_in_its_middle(small, images, tmp_path, monkeypatch):
    small(EPOCHS=1)
    monkeypatch.setattr(gan, "CHECKPOINT_SECONDS", -1)
    gan.train(gan.GAN(images), images, tmp_path, [])
    steps = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert len(steps) == 3 and steps[-1] == "step-000000005.npz" and "000000" not in steps[0][-8:]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"Z_SIZE": 9}, ["Z_SIZE=9", "Z_SIZE=8"]),
        ({"DATA": "digits"}, ["DATA='digits'", "dots.npy"]),
        ({"G_HIDDEN": (16, 16)}, ["G_HIDDEN=(16, 16)", "G_HIDDEN=16"]),
    ],
)
def test_a_resumed_run_refuses_other_data_or_networks(finished, small, change, said):
    with pytest.raises(gan.Problem) as problem:
        gan.open_run(finished[0], change)
    assert all(part in str(problem.value) for part in said)


def test_a_resumed_run_takes_other_settings(finished, small):
    small(OUT="elsewhere", **{name: getattr(gan, name) for name in gan.SETTINGS if name != "OUT"})
    gan.open_run(finished[0], {"LEARNING_RATE": 0.5, "PRECISION": "bfloat16", "Z_SIZE": 8})
    assert (gan.LEARNING_RATE, gan.PRECISION) == (0.5, "bfloat16")
    assert gan.DATA.endswith("dots.npy")
    assert gan.OUT == str(finished[0].parent)


def test_divergence_ends_with_a_clear_line_and_a_good_checkpoint(data, tmp_path):
    status, _, err = run(tmp_path, DATA=data, **TINY | {"LEARNING_RATE": 1e9, "EPOCHS": 50})
    assert status == 1
    assert len(err.splitlines()) == 1 and "diverged" in err and "--resume" in err
    for checkpoint in (tmp_path / "samples" / "dots-001" / "checkpoint").glob("*"):
        with np.load(checkpoint) as arrays:
            assert all(np.isfinite(arrays[name]).all() for name in arrays)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["EPOCHS=0"], "EPOCHS=0"),
        (["EPOCHS=two"], "EPOCHS=two"),
        (["EPOCHS=__import__('os')"], "EPOCHS="),
        (["EPOCHES=2"], "is EPOCHS meant?"),
        (["LEARNING_RATE=nan"], "LEARNING_RATE=nan"),
        (["PRIOR=1,-1"], "PRIOR=(1, -1)"),
        (["DATA=no such file"], "no such file"),
        (["5"], "'5'"),
        (["--run", "nowhere", "--resume"], "nowhere"),
        (["--resume"], "no run there yet"),
        (["--fast"], "--fast"),
        (["DATA=dots.npy", "BATCH_SIZE=101"], "100 images, but BATCH_SIZE=101"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(data, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gan.py", *arguments])
    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)
    for name in gan.SETTINGS:  # main() sets them
        monkeypatch.setattr(gan, name, getattr(gan, name))
    try:
        status = gan.main()
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert status == 2 and out == ""
    assert len(err.splitlines()) == 1 and said in err
    assert not (tmp_path / "samples").exists()


def test_every_setting_has_a_line_a_comment_and_an_accepted_default():
    block = gan.settings_block()
    assert re.findall(r"^([A-Z0-9_]+) = .*? # .", block, re.MULTILINE) == gan.SETTINGS
    assert all(len(line) < 80 for line in block.splitlines())
    for name in gan.SETTINGS:
        assert gan.accepts(name, getattr(gan, name)), name


def test_help_shows_options_and_settings_in_80_columns(tmp_path):
    status, out, err = run(tmp_path, "--help")
    assert status == 0 and err == ""
    assert "--resume" in out and gan.settings_block() in out
    assert all(len(line) < 80 for line in out.splitlines())


def test_an_out_that_is_a_file_gets_one_line_and_status_1(data, tmp_path):
    (tmp_path / "taken").write_text("mine")
    status, _, err = run(tmp_path, DATA=data, OUT="taken", **TINY)
    assert status == 1 and len(err.splitlines()) == 1 and "taken" in err
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_gets_one_line_and_leaves_whole_files_to_go_on_from(data, tmp_path):
    # No file can grow beyond 20 kB: settings and picture fit, the checkpoint does not.
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        f"sys.path.insert(0, {str(ROOT)!r}); import gan; sys.exit(gan.main())"
    )
    settings = [f"{name}={value}" for name, value in TINY.items()]
    command = [sys.executable, "-c", code, f"DATA={data}", *settings]
    full = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    folder = tmp_path / "samples" / "dots-001"
    assert full.returncode == 1
    assert len(full.stderr.splitlines()) == 1 and "File too large" in full.stderr
    assert not list(folder.rglob("tmp-*"))
    Image.open(folder / "epoch-000.png").load()
    status, _, err = run(tmp_path, "--resume")
    assert status == 0, err
    assert len(rows(folder)) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps folders in use")
def test_a_folder_deleted_meanwhile_gets_one_line_and_status_1(small, images, tmp_path):
    process = start(tmp_path, DATA="digits", **TINY | {"EPOCHS": 1000})
    folder = tmp_path / "samples" / "digits-001"
    wait_for(folder / "epoch-001.png", process)
    folder.rename(tmp_path / "gone")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(err.splitlines()) == 1 and "digits-001" in err


def test_early_stop_ends_training_once_the_discriminator_is_fooled(small, images, tmp_path, capsys):
    small(EARLY_STOP=(0.0, 1.0), EPOCHS=5)
    assert gan.train(gan.GAN(images), images, tmp_path, [])
    assert "EARLY_STOP" in capsys.readouterr().out
    assert len(rows(tmp_path)) == 1


def test_collapse_and_an_overpowered_discriminator_are_said_once_in_plain_words(capsys):
    row = {"spread": 0.4, "D accuracy": 0.995}
    said = gan.explain(row, {})
    out = capsys.readouterr().out
    assert "mode collapse" in out and "G learns little" in out
    assert all(len(line) < 80 for line in out.splitlines())
    said = gan.explain(row, said)
    assert capsys.readouterr().out == ""
    gan.explain({"spread": 0.4, "D accuracy": 0.5}, gan.explain({"spread": 1, "D accuracy": 1}, {}))
    assert "mode collapse" in capsys.readouterr().out


def test_a_checkpoint_with_a_damaged_header_is_passed_over(small, images, tmp_path):
    small(EPOCHS=2)
    gan.train(gan.GAN(images), images, tmp_path, [])
    newest = max((tmp_path / "checkpoint").iterdir())
    # A bracket lost in an array's header: NumPy raises tokenize.TokenError for it.
    newest.write_bytes(newest.read_bytes().replace(b"'shape': (3,)", b"'shape': (3, "))
    assert gan.read_checkpoint(tmp_path)[-2].tolist() == [1, 0, 5]


def test_without_network_drawn_digits_are_trained_on_and_never_mixed_with_mnist(tmp_path):
    settings = {**TINY, "EPOCHS": 1, "BATCH_SIZE": 1000}
    status, out, err = run(tmp_path, **settings)
    assert status == 0 and err == ""
    assert "DRAWN DIGITS" in out and str(Path("keras", "datasets", gan.MNIST_FILE)) in out
    assert all(mirror in out for mirror in gan.MIRRORS)
    folder = tmp_path / "samples" / "digits-001"
    assert json.loads((folder / "settings.json").read_text())["DATA"] == "digits"
    # A run that was begun on MNIST does not go on with anything else.
    settings = json.loads((folder / "settings.json").read_text()) | {"DATA": "mnist"}
    (folder / "settings.json").write_text(json.dumps(settings))
    status, out, err = run(tmp_path, "--resume", EPOCHS=2)
    assert status == 2 and "MNIST could not be downloaded" in err and "DRAWN" not in out


def test_a_resumed_run_refuses_data_that_changed(small, images, tmp_path):
    small(EPOCHS=1)
    gan.train(gan.GAN(images), images, tmp_path, [])
    with pytest.raises(gan.Problem, match="has changed"):
        gan.restore(gan.GAN(images[:50]), gan.read_checkpoint(tmp_path))


def test_a_checkpoint_made_after_damaged_newer_ones_is_kept(small, images, tmp_path):
    small(EPOCHS=3)
    gan.train(gan.GAN(images), images, tmp_path, [])
    _, *newer = sorted((tmp_path / "checkpoint").iterdir())
    for path in newer:
        path.write_bytes(b"")
    model = gan.GAN(images)
    gan.restore(model, gan.read_checkpoint(tmp_path))
    model.step += 1
    gan.save_checkpoint(tmp_path, model)
    assert (tmp_path / "checkpoint" / f"step-{model.step:09}.npz").exists()


def test_a_second_process_cannot_resume_a_run_in_training(data, tmp_path):
    process = start(tmp_path, DATA=data, **TINY | {"EPOCHS": 10000})
    wait_for(tmp_path / "samples" / "dots-001" / "epoch-001.png", process)
    status, _, err = run(tmp_path, "--resume")
    assert status == 2 and "another process" in err and len(err.splitlines()) == 1
    process.kill()
    process.communicate()
    epochs = len(list((tmp_path / "samples" / "dots-001").glob("epoch-*.png")))
    assert run(tmp_path, "--resume", EPOCHS=epochs + 1)[0] == 0


def test_batch_size_can_change_in_the_middle_of_an_epoch(small, images, tmp_path):
    small(EPOCHS=2)
    assert not gan.train(gan.GAN(images), images, tmp_path, [signal.SIGINT])
    small(BATCH_SIZE=40)
    model = gan.GAN(images)
    gan.restore(model, gan.read_checkpoint(tmp_path))
    assert gan.train(model, images, tmp_path, [])
    assert all(0 <= float(row["D accuracy"]) <= 1 for row in rows(tmp_path))
    assert model.step == 1 + 2 + 2


@pytest.mark.parametrize("decay", [False, True])
def test_a_new_learning_rate_is_used_by_a_resumed_run(small, images, tmp_path, decay):
    small(EPOCHS=1, LR_DECAY=decay)
    gan.train(gan.GAN(images), images, tmp_path, [])
    small(EPOCHS=2, LR_DECAY=False, LEARNING_RATE=1e-12)
    model = gan.GAN(images)
    gan.restore(model, gan.read_checkpoint(tmp_path))
    before = [variable.numpy() for variable in model.generator.trainable_variables]
    gan.train(model, images, tmp_path, [])
    after = [variable.numpy() for variable in model.generator.trainable_variables]
    assert all(np.allclose(a, b, atol=1e-9) for a, b in zip(before, after))


def test_a_new_checkpoint_is_kept_beside_files_from_the_future(small, images, tmp_path):
    small(EPOCHS=3)
    gan.train(gan.GAN(images), images, tmp_path, [])
    for path in (tmp_path / "checkpoint").iterdir():
        os.utime(path, (4e9, 4e9))
    model = gan.GAN(images)
    model.step = 1
    gan.save_checkpoint(tmp_path, model)
    names = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert len(names) == 3 and "step-000000001.npz" in names


def test_settings_of_keras_for_all_programs_do_not_matter(data, tmp_path, monkeypatch):
    (tmp_path / "keras").mkdir()
    file = {"backend": "jax", "image_data_format": "channels_first", "floatx": "float64"}
    (tmp_path / "keras" / "keras.json").write_text(json.dumps(file))
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    net = {"MODEL": "dcgan", "G_HIDDEN": "4,4", "D_HIDDEN": "4,4", "EPOCHS": 1}
    status, _, err = run(tmp_path, DATA=data, **TINY | net)
    assert (status, err) == (0, "")


def test_the_spread_of_many_images_is_found_in_little_memory():
    images = np.random.default_rng(0).integers(0, 256, (1000, 64, 64, 1), np.uint8)
    tracemalloc.start()
    spread = gan.pixel_spread(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert spread == pytest.approx(images.std(axis=0).mean())
    assert peak < images.nbytes


@pytest.mark.parametrize("closed", [[1], [2], [0, 1, 2]])
@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell of Unix")
def test_a_run_whose_input_or_output_is_closed_trains(data, tmp_path, closed):
    code = f"import os, sys; [*map(os.close, {closed})]; os.execv(sys.argv[1], sys.argv[1:])"
    words = [sys.executable, str(ROOT / "gan.py"), f"DATA={data}", *arguments(**TINY)]
    command = [sys.executable, "-c", code, *words]
    assert subprocess.run(command, check=False, cwd=tmp_path, timeout=100).returncode == 0
    assert (tmp_path / "samples" / "dots-001" / "training.gif").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are other things on Windows")
def test_a_run_whose_reader_is_gone_says_how_to_go_on(data, tmp_path):
    process = start(tmp_path, DATA=data, **TINY)
    process.stdout.readline()
    process.stdout.close()  # as of a tee that Ctrl-C has ended
    err = process.stderr.read()
    assert process.wait(60) == 1 and "python gan.py --resume" in err and err.count("\n") == 1
    assert run(tmp_path, "--resume")[0] == 0


def test_early_stop_says_how_to_go_on_and_that_does(data, tmp_path):
    status, out, _ = run(tmp_path, DATA=data, **TINY | {"EARLY_STOP": "0,1", "OUT": "o&(x) $HOME"})
    assert status == 0 and " 1/2" in out and " 2/2" not in out
    command = shlex.split(out.splitlines()[-1])[2:]  # also with a folder's odd name
    status, out, err = run(tmp_path, *command)
    assert status == 0 and " 2/2" in out, err


def test_pictures_that_no_program_would_open_are_refused(small):
    small(GRID=64)
    with pytest.raises(gan.Problem, match="GRID=40 is the most"):
        gan.check_images(np.zeros((20, 8, 256, 3), np.uint8), 1)


def test_nearly_black_images_are_said_to_be(small, tmp_path, capsys):
    small(EPOCHS=1)
    images = np.random.default_rng(0).integers(0, 2, (100, 8, 8, 1), np.uint8)
    gan.train(gan.GAN(images), images, tmp_path, [])
    assert "nearly black" in capsys.readouterr().err


def test_a_file_that_is_no_checkpoint_is_passed_over(small, images, tmp_path):
    small(EPOCHS=2)
    gan.train(gan.GAN(images), images, tmp_path, [])
    newest = max((tmp_path / "checkpoint").iterdir())
    for arrays in ((), (np.zeros(3),), (np.zeros(3), np.zeros(4))):
        np.savez(newest, *arrays)
        assert gan.read_checkpoint(tmp_path)[-2].tolist() == [1, 0, 5]
    np.savez(newest, np.zeros(3), np.zeros(3), np.zeros(3), images.shape)
    with pytest.raises(gan.Problem, match="does not fit the networks"):
        gan.restore(gan.GAN(images), gan.read_checkpoint(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of files that are any bytes")
def test_a_folder_whose_name_is_not_unicode_takes_a_run(data, tmp_path):
    status, _, err = run(tmp_path, DATA=data, **TINY | {"OUT": os.fsdecode(b"b\xffd")})
    assert (status, err) == (0, "")
