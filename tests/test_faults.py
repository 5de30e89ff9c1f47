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
        for path, content in before.items():
            if path.name != "index.html":  # the page says that the run has ended
                assert path.read_bytes() == content
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
    assert_told(end, 1, "diverged", "LEARNING_RATE", '--resume --run "samples/dots-001"')
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
    assert_told((process.wait(60), "", err), 1, '--resume --run "samples/dots-001"')
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
    data.rename(moved := tmp_path / "there" / "digits.npy")  # not the digits that are drawn
    assert_told(main("--resume", EPOCHS=3), 2, "DATA", "no such file")
    status, out, err = main("--resume", EPOCHS=3, DATA=moved)
    assert (status, err) == (0, "") and " 3/3" in out
    np.save(moved, np.concatenate([images, images[:1]]))
    assert_told(main("--resume", EPOCHS=4), 0, "DATA", "101 images now; it had 100")
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
    assert_told(end, 2, "BATCH_SIZE=101 does not fit 100 images")
    most = int(re.search(r"try BATCH_SIZE=(\d+)", end[2])[1])
    assert main(**settings | {"BATCH_SIZE": most})[0] == 0
    assert main(**settings | {"BATCH_SIZE": most + 1})[0] == 2


@pytest.fixture
def open_elsewhere(monkeypatch):
    """Return a function that has os.replace fail for files of that name, so many times each."""
    replace = os.replace

    def hold(name, times):
        left = {}

        def held(temporary, path):
            if path.name == name and left.setdefault(path, times) > 0:
                left[path] -= 1
                raise PermissionError(13, "The process cannot access the file", str(path))
            replace(temporary, path)

        monkeypatch.setattr(os, "replace", held)

    return hold


def test_a_file_that_another_program_has_open_is_waited_for(main, data, open_elsewhere):
    open_elsewhere("losses.csv", 1)
    assert main(DATA=data, **LONGER)[::2] == (0, "")
    assert len(rows(data.parent / "samples" / "dots-001")) == 2


def test_a_csv_that_stays_open_is_told_once_and_a_checkpoint_ends_the_run(
    main, data, open_elsewhere, monkeypatch
):
    monkeypatch.setattr(gan.time, "sleep", lambda seconds: None)
    open_elsewhere("losses.csv", 10**9)
    assert_told(main(DATA=data, **LONGER), 0, "losses.csv", "open in another program")
    open_elsewhere("step-000000100.npz", 10**9)
    assert_told(main(DATA=data, **LONGER), 1, "cannot access", '--resume --run "samples/dots-002"')


@posix
@pytest.mark.parametrize("name", ["flock", "open"])
def test_a_run_that_cannot_be_locked_is_trained_and_that_is_said(main, data, monkeypatch, name):
    import fcntl

    def fail(*_):
        raise OSError(37, "No locks available")

    if name == "flock":
        monkeypatch.setattr(fcntl, "flock", fail)
        assert_told(main(DATA=data, **LONGER), 0, "No locks available", "at the same time")
        return
    assert main(DATA=data, **LONGER)[0] == 0
    lock = data.parent / "samples" / "dots-001" / "lock"
    lock.unlink()
    lock.mkdir()  # so it cannot be opened
    assert_told(main("--resume", EPOCHS=3), 0, "lock", "at the same time")


def test_a_run_resumed_without_the_average_keeps_the_network_that_was_trained(main, finished):
    generator, average = (newest_checkpoint(finished)[i] for i in (1, 5))
    assert generator.shape == average.shape and not np.array_equal(generator, average)
    assert main("--resume", EPOCHS=3, EMA=0, LEARNING_RATE=1e-12)[0] == 0
    assert np.allclose(newest_checkpoint(finished)[1], generator, atol=1e-5)


def test_files_of_the_user_in_a_run_stay_and_never_stop_it(main, finished):
    shutil.copy(finished / "epoch-000.png", finished / "epoch-000 copy.png")
    assert main("--resume", EPOCHS=3)[::2] == (0, "")
    assert main("--sample", 5, GRID=4)[0] == 0
    for name in ("mine.png", "12.png", "00001 copy.png"):
        shutil.copy(finished / "epoch-000.png", finished / "generated" / name)
    assert main("--sample", 2)[0] == 0
    names = {path.name for path in (finished / "generated").iterdir()}
    assert names == {"mine.png", "12.png", "00001 copy.png", "00000.png", "00001.png"}


def test_the_last_three_checkpoints_stay_though_a_clock_was_set_back(main, finished):
    for i, path in enumerate(sorted((finished / "checkpoint").iterdir())):
        os.utime(path, (2e9 - i, 2e9 - i))
    assert main("--resume", EPOCHS=5)[0] == 0
    names = sorted(path.name for path in (finished / "checkpoint").iterdir())
    assert names == [f"step-000000{i}00.npz" for i in (3, 4, 5)]
