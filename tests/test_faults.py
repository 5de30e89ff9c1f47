"""What the world does to a run: kills, full disks, damage, other settings, data and folders."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import test_run
from conftest import TINY
from PIL import Image
from test_run import LONGER, assert_equal_runs, checkpoint, files, posix, printed_command, rows

import gan

main_in_process = test_run.main_in_process  # the fixture main


@pytest.fixture
def finished(main, data, tmp_path):
    """Return the folder of a run of two epochs, whose graph fits more epochs, too."""
    assert main(DATA=data, **LONGER)[0] == 0
    return tmp_path / "samples" / "dots-001"


def assert_told(end, status, *parts):
    """Check that a command's end (status, stdout, stderr) has that status and tells all parts."""
    assert end[0] == status
    assert len(end[2].splitlines()) == 1 and all(str(part) in end[2] for part in parts), end[2]


# Kills, full disks, damage
def test_what_a_kill_leaves_at_any_instant_goes_on_exactly(main, data, tmp_path, monkeypatch):
    monkeypatch.setattr(gan, "EPOCH_IMAGES", 3000)
    assert main(DATA=data, OUT="whole", **LONGER)[0] == 0
    folder, left, replace = tmp_path / "killed" / "dots-001", [], os.replace

    def watched(temporary, path):
        """Keep a copy of the folder as a kill leaves it that comes while temporary is written."""
        left.append(tmp_path / "left" / str(len(left)))
        shutil.copytree(folder, left[-1])
        copy = left[-1] / temporary.relative_to(folder)
        os.truncate(copy, copy.stat().st_size // 2)
        replace(temporary, path)

    with monkeypatch.context() as patch:
        patch.setattr(gan, "CHECKPOINT_SECONDS", -1)  # saves in the middle of epochs, too
        patch.setattr(os, "replace", watched)
        assert main(DATA=data, OUT=tmp_path / "killed", **LONGER)[0] == 0
    assert not (left.pop(0) / "settings.json").exists()  # so there was no run yet
    assert len(left) > 17
    for copy in left:
        status, _, err = main("--resume", "--run", copy)
        assert (status, err) == (0, "")
        assert_equal_runs(tmp_path / "whole" / "dots-001", copy)


@posix
def test_a_disk_full_at_any_write_gets_one_line_and_loses_nothing(
    main, data, tmp_path, monkeypatch
):
    import resource

    write, most = gan.write, resource.getrlimit(resource.RLIMIT_FSIZE)
    full, end = 0, (1, "", "")
    monkeypatch.setattr(gan, "EPOCH_IMAGES", 3000)
    monkeypatch.setattr(gan, "CHECKPOINT_SECONDS", -1)

    def limited(path, save):
        """Write a file; the one with the number full has room for half of it only."""
        names.append(path.name)
        if len(names) != full:
            return write(path, save)
        save(tmp_path / path.name)  # elsewhere, to know how much it writes
        half = (tmp_path / path.name).stat().st_size // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, most[1]))
        try:
            return write(path, save)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)

    while end[0]:  # until all find room
        if full > 1:  # after settings.json there is a run, which goes on
            assert_told(end, 1, "File too large", "files are intact")
            assert main(*printed_command(end[2]))[0] == 0
            assert len(rows(tmp_path / str(full) / "dots-001")) == 1
        names, full = [], full + 1
        with monkeypatch.context() as patch:
            patch.setattr(gan, "write", limited)
            end = main(DATA=data, OUT=full, **LONGER | {"EPOCHS": 1})
        assert not list((tmp_path / str(full)).rglob("tmp-*"))
    assert len(names) == full - 1
    assert {"losses.csv", "generator.keras", "checkpoint.npz", "training.gif"} < set(names)


def test_divergence_ends_with_a_command_of_half_the_rate_which_goes_on_from_before_it(
    main, finished
):
    wild = {"LEARNING_RATE": 1e12, "ACTIVATION": "leaky_relu", "GRADIENT_PENALTY": 1}
    end = main("--resume", EPOCHS=4, **wild)
    assert_told(end, 1, "training diverged")
    assert all(np.isfinite(array).all() for array in checkpoint(finished))
    *command, rate = printed_command(end[2])
    assert rate == "LEARNING_RATE=5e+11"  # which is still too much
    assert main(*command, LEARNING_RATE=0.001)[0] == 0
    assert len(rows(finished)) == 4


def test_numbers_that_are_not_finite_never_become_a_checkpoint(small, images, tmp_path):
    small()
    model = gan.GAN(images)
    gan.save_checkpoint(model, tmp_path)
    before = files(tmp_path)
    model.average.variables[0].assign(model.average.variables[0] * np.nan)
    with pytest.raises(FloatingPointError, match="diverged"):
        gan.save_checkpoint(model, tmp_path)
    assert files(tmp_path) == before


def test_a_damaged_checkpoint_is_named_and_nothing_is_overwritten(main, finished):
    content, half = (file := finished / "checkpoint.npz").read_bytes(), file.stat().st_size // 2
    for damaged in (content[:half], b"", content[:half].ljust(len(content), b"x")):
        file.write_bytes(damaged)
        before = files(finished)
        assert_told(main("--resume"), 2, file.name, "is damaged")
        assert files(finished) == before


def test_a_start_that_is_interrupted_gets_one_line(main, data, monkeypatch):
    monkeypatch.setattr(gan, "load_images", lambda resume: signal.raise_signal(signal.SIGINT))
    assert_told(main(DATA=data), 130, "stopped")


# The run's settings


def test_a_run_of_another_version_with_other_settings_goes_on(main, finished, monkeypatch):
    file = finished / "settings.json"
    saved = json.loads(file.read_text())
    del saved["SMOOTH"], saved["constants"]
    file.write_text(json.dumps(saved | {"PRECISION": "float32"}))
    monkeypatch.setattr(gan, "SMOOTH", 0.25)
    status, out, err = main("--resume", EPOCHS=3)
    assert status == 0 and err == "" and " 3/3" in out
    assert json.loads(file.read_text())["SMOOTH"] == 0.25


def test_a_resumed_run_takes_other_settings_but_not_networks_of_another_size(main, finished):
    before = files(finished)
    for change in ({"Z_SIZE": 9}, {"G_HIDDEN": (16, 16)}):
        assert_told(main("--resume", EPOCHS=3, **change), 2, "checkpoint.npz", "of other networks")
        assert files(finished) == before
    average, generator = (checkpoint(finished)[i] for i in (1, 5))  # the first weights of each
    assert generator.shape == average.shape and not np.array_equal(generator, average)
    others = {"SEED": 1, "GRID": 2, "EMA": 0, "LEARNING_RATE": 1e-12}
    assert main("--resume", EPOCHS=3, **others)[::2] == (0, "")
    assert len(rows(finished)) == 3  # and without the average, what was trained is kept:
    assert np.allclose(checkpoint(finished)[1], generator, atol=1e-5)


def test_a_run_whose_data_moved_or_grew_goes_on_and_shows_them_but_not_of_another_size(
    main, finished, data, tmp_path
):
    images = np.load(data)
    (tmp_path / "there").mkdir()
    data.rename(moved := tmp_path / "there" / "digits.npy")  # not the digits that are drawn
    assert_told(main("--resume", EPOCHS=3), 2, "DATA", "no such file")
    np.save(moved, np.concatenate([255 - images, images[:1]]))
    status, out, err = main("--resume", EPOCHS=3, DATA=moved)
    assert (status, err) == (0, "") and " 3/3" in out
    shown = np.load(moved)[np.linspace(0, 100, 9, dtype=int)]
    assert np.array_equal(Image.open(finished / "real.png"), gan.tile(shown, 3))
    for shape in ((100, 8, 8, 3), (100, 9, 9, 1)):
        np.save(moved, np.arange(np.prod(shape)).reshape(shape) % 256)
        assert_told(main("--resume", EPOCHS=5), 2, "checkpoint.npz", "of other networks")


# The user's folders and files
@pytest.mark.parametrize("words", [["--resume"], ["--sample", 5], ["--run", "nowhere"]])
def test_without_a_run_the_whole_path_that_was_looked_in_is_told(main, tmp_path, words):
    place = tmp_path / ("nowhere" if "nowhere" in words else "samples")
    assert_told(main(*words), 2, f"{place}: no run there yet")
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("out", ["taken", "taken/deeper", pytest.param("/proc/none", marks=posix)])
def test_an_out_that_cannot_be_written_gets_one_line(main, data, tmp_path, out):
    (tmp_path / "taken").write_text("mine")
    assert_told(main(DATA=data, OUT=out, **TINY), 1, out)
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("name", ["losses.csv", "checkpoint.npz"])
def test_a_file_that_another_program_has_open_is_told_and_written_by_the_next_epoch(
    main, data, tmp_path, monkeypatch, name
):
    assert main(DATA=data, OUT="whole", **LONGER | {"EPOCHS": 4})[0] == 0
    replace, held = os.replace, []

    def hold(temporary, path):
        if path.name == name and path.exists() and len(held) < 2:
            held.append(path.read_bytes())
            raise PermissionError(13, "The process cannot access the file", str(path))
        replace(temporary, path)

    monkeypatch.setattr(os, "replace", hold)
    status, _, err = main(DATA=data, **LONGER | {"EPOCHS": 4})
    assert status == 0 and len(err.splitlines()) == 2 and held[0] == held[1]
    assert all(name in line and "was not replaced" in line for line in err.splitlines())
    assert_equal_runs(tmp_path / "whole" / "dots-001", tmp_path / "samples" / "dots-001")


def test_files_of_the_user_in_a_run_stay_and_never_stop_it(main, finished):
    shutil.copy(finished / "epoch-000.png", finished / "epoch-000 copy.png")
    assert main("--resume", EPOCHS=3)[::2] == (0, "")
    assert main("--sample", 5, GRID=4)[0] == 0
    for name in ("mine.png", "12.png", "00001 copy.png"):
        shutil.copy(finished / "epoch-000.png", finished / "generated" / name)
    assert main("--sample", 2)[0] == 0
    names = {path.name for path in (finished / "generated").iterdir()}
    assert names == {"mine.png", "12.png", "00001 copy.png", "00000.png", "00001.png"}
