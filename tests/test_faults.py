"""What the world does to a run: kills, full disks, damage, other settings, data and folders."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from conftest import TINY, arguments, start
from test_run import (
    LONGER,
    assert_equal_runs,
    files,
    in_process,
    newest_checkpoint,
    posix,
    printed_command,
    rows,
    start_saving,
)

import gan


@pytest.fixture
def main(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command line in tmp_path."""
    return in_process(tmp_path, monkeypatch, capsys)


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
def test_what_a_kill_leaves_at_any_instant_goes_on_exactly(
    main, data, finished, tmp_path, monkeypatch
):
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
        assert_equal_runs(finished, copy)
        assert not list(copy.rglob("tmp-*"))


@posix
def test_a_disk_full_at_any_write_gets_one_line_and_loses_nothing(
    main, data, tmp_path, monkeypatch
):
    import resource

    write, most = gan.write, resource.getrlimit(resource.RLIMIT_FSIZE)
    names, before, full = [], {}, 0

    def limited(path, save):
        """Write a file; the one with the number full has room for half of it only."""
        names.append(path.name)
        if len(names) != full:
            return write(path, save)
        before.update(files(path.parent))
        save(tmp_path / path.name)  # elsewhere, to know how much it writes
        half = (tmp_path / path.name).stat().st_size // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, most[1]))
        try:
            return write(path, save)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)

    while len(names) >= full:
        names, before, full = [], {}, full + 1
        with monkeypatch.context() as patch:
            patch.setattr(gan, "write", limited)
            patch.setattr(gan, "CHECKPOINT_SECONDS", -1)
            end = main(DATA=data, OUT=full, **LONGER | {"EPOCHS": 1})
        if len(names) < full:
            break
        assert {path: path.read_bytes() for path in before} == before
        assert not list((tmp_path / str(full)).rglob("tmp-*"))
        if names == ["settings.json"]:
            assert_told(end, 1, "File too large")  # there is no run yet
        else:
            command = ["--resume", "--run", f"{full}/dots-001"]
            assert_told(end, 1, "File too large", *command)
            assert main(*command)[0] == 0
            assert len(rows(tmp_path / str(full) / "dots-001")) == 1
    assert {"losses.csv", "generator.keras", "step-000000100.npz", "training.gif"} < set(names)


def test_divergence_ends_in_one_line_and_a_lower_rate_goes_on_from_before_it(main, finished):
    wild = {"LEARNING_RATE": 1e12, "ACTIVATION": "leaky_relu", "GRADIENT_PENALTY": 1}
    end = main("--resume", EPOCHS=4, **wild)
    assert_told(end, 1, "diverged", "LEARNING_RATE", "--resume --run samples/dots-001")
    assert all(np.isfinite(array).all() for array in newest_checkpoint(finished))
    assert main("--resume", EPOCHS=3, LEARNING_RATE=0.001)[0] == 0
    assert len(rows(finished)) == 3


@posix
def test_a_run_whose_reader_is_gone_says_in_one_line_how_to_go_on(main, data, tmp_path):
    process = start(tmp_path, DATA=data, **LONGER)
    while not process.stdout.readline().startswith(" epoch"):
        assert process.poll() is None
    process.stdout.close()  # as of a tee that Ctrl-C has ended
    err = process.stderr.read()
    assert_told((process.wait(60), "", err), 1, "--resume --run samples/dots-001")
    assert main(*printed_command(err))[0] == 0


def test_a_run_in_training_cannot_be_resumed_by_another_process(main, data, tmp_path):
    process = start_saving(tmp_path, *arguments(DATA=data, **LONGER | {"EPOCHS": 100000}))
    end = main("--resume")
    process.kill()
    process.communicate()
    assert_told(end, 2, "in use by another process")


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "overwritten": lambda content: content[: len(content) // 2].ljust(len(content), b"x"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(main, finished, tmp_path, damage):
    shutil.copytree(finished, tmp_path / "good")
    _, newest = sorted((finished / "checkpoint").iterdir())
    newest.write_bytes(DAMAGE[damage](newest.read_bytes()))
    assert_told(main("--resume"), 0, newest.name, "going back")
    assert_equal_runs(tmp_path / "good", finished)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_gone_on_with(main, finished):
    for path in (finished / "checkpoint").iterdir():
        path.write_bytes(b"")
    status, _, err = main("--resume")
    assert status == 2 and "no checkpoint that can be read" in err.splitlines()[-1]
    assert (finished / "epoch-002.png").exists()


# The run's settings
NONSENSE = (
    b'"x"',
    b"[1]",
    b"null",
    b"{",
    b"\xff\xfe",
    b'{"GRID": null}',
    b'{"G_HIDDEN": [16, "16"]}',
)


@pytest.mark.parametrize("content", NONSENSE)
def test_settings_that_are_nonsense_are_told_in_one_line(main, tmp_path, content):
    (tmp_path / "settings.json").write_bytes(content)
    name = re.search(rb"[A-Z_]+", content)
    told = name[0].decode() if name else "settings.json"
    assert_told(main("--resume", "--run", tmp_path), 2, told)


def test_a_run_of_another_version_with_other_settings_goes_on(main, finished, monkeypatch):
    file = finished / "settings.json"
    saved = json.loads(file.read_text())
    del saved["CATEGORIES"], saved["SMOOTH"]
    file.write_text(json.dumps(saved | {"PRECISION": "float32"}))
    monkeypatch.setattr(gan, "CATEGORIES", 5)  # the default; early runs had none
    monkeypatch.setattr(gan, "SMOOTH", 0.25)
    status, out, err = main("--resume", EPOCHS=3)
    assert status == 0 and err == "" and " 3/3" in out
    saved = json.loads(file.read_text())
    assert (saved["CATEGORIES"], saved["SMOOTH"]) == (1, 0.25)


@pytest.mark.parametrize("change", [{"Z_SIZE": 9}, {"SEED": 1}, {"G_HIDDEN": (16, 16)}])
def test_a_resumed_run_keeps_its_networks_and_seed(main, finished, change):
    before = files(finished)
    [name] = change
    old = json.loads((finished / "settings.json").read_text())[name]
    assert_told(main("--resume", EPOCHS=3, **change), 2, f"{name}={old!r}")
    assert files(finished) == before


def test_a_run_whose_data_moved_or_grew_goes_on_but_not_with_images_of_another_size(
    main, finished, data, tmp_path
):
    images = np.load(data)
    (tmp_path / "there").mkdir()
    data.rename(moved := tmp_path / "there" / "moved.npy")
    assert_told(main("--resume", EPOCHS=3), 2, "DATA", "no such file")
    status, out, err = main("--resume", EPOCHS=3, DATA=moved)
    assert (status, err) == (0, "") and " 3/3" in out
    np.save(moved, np.concatenate([images, images[:1]]))
    assert_told(main("--resume", EPOCHS=4), 0, "DATA", "101 images now, and had 100")
    for shape in ((100, 8, 8, 3), (100, 9, 9, 1)):
        np.save(moved, np.arange(np.prod(shape)).reshape(shape) % 256)
        assert_told(main("--resume", EPOCHS=5), 2, "DATA", shape[1:], "(8, 8, 1)")


# The user's folders and data
@pytest.mark.parametrize("words", [["--resume"], ["--sample", 5], ["--run", "nowhere"]])
def test_without_a_run_there_is_nothing_to_go_on_with_or_to_draw_from(main, tmp_path, words):
    assert_told(main(*words), 2, "no run there yet")
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("out", ["taken", "taken/deeper", pytest.param("/proc/none", marks=posix)])
def test_an_out_that_cannot_be_written_gets_one_line(main, data, tmp_path, out):
    (tmp_path / "taken").write_text("mine")
    assert_told(main(DATA=data, OUT=out, **TINY), 2, out, "try OUT=")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("d_steps", [1, 3])
def test_too_few_images_are_told_with_a_batch_size_that_works(main, data, d_steps):
    settings = TINY | {"DATA": data, "D_STEPS": d_steps, "GRADIENT_PENALTY": 0, "EPOCHS": 1}
    end = main(**settings | {"BATCH_SIZE": 101})
    assert_told(end, 2, "only 100 images")
    most = int(re.search(r"try BATCH_SIZE=(\d+)", end[2])[1])
    assert main(**settings | {"BATCH_SIZE": most})[0] == 0
    assert main(**settings | {"BATCH_SIZE": most + 1})[0] == 2
