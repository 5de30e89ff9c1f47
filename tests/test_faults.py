"""What the world does to gan.py: kills, full disks, damage, bad networks and hostile input.

The slow tests, half an hour's worth of faults in some minutes, run with: python -m pytest -m slow
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import ROOT, TINY, arguments, start
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data import PIXELS, changed, idx, npy, npy_header, npz, png, save
from test_run import assert_equal_runs, rows, wait_for

import gan

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such thing")
TINY4 = TINY | {"EPOCHS": 4}
traced = {}


def traced_gan(images, strategy=None, make=gan.GAN):
    """Return a new gan.GAN, whose graph is traced once only: that takes most of a small run."""
    key = images.shape, *(getattr(gan, name) for name in gan.SETTINGS if name not in "DATA OUT")
    if key not in traced:
        model = make(images, strategy)
        traced[key] = model, [variable.numpy() for variable in model.variables()]
    model, values = traced[key]
    for variable, value in zip(model.variables(), values):
        variable.assign(value)
    model.epoch, model.position, model.step, model.rows = 0, 0, 0, []
    return model


@pytest.fixture
def main(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command line in this process: (status, stdout, stderr)."""
    defaults = {name: getattr(gan, name) for name in gan.SETTINGS}
    for name, value in defaults.items():  # main() sets them
        monkeypatch.setattr(gan, name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(gan, "GAN", traced_gan)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)

    def main(*args, **changes):
        vars(gan).update(defaults)
        command = ["gan.py", *map(str, args), *arguments(**changes)]
        monkeypatch.setattr(sys, "argv", command)
        try:
            status = gan.main()
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return main


@pytest.fixture
def whole(main, data, tmp_path):
    """Return the folder of an undisturbed run of four epochs, less its lock."""
    assert main(DATA=data, OUT="whole", **TINY4)[0] == 0
    return tmp_path / "whole" / "dots-001"


def assert_good(folder):
    """Check that nothing temporary is left in a run's folder, and every file can be read."""
    assert not list(folder.rglob("tmp-*"))
    for path in folder.rglob("*"):
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                assert all(np.isfinite(arrays[name]).all() for name in arrays)
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".keras":
            assert zipfile.ZipFile(path).testzip() is None
        elif path.suffix == ".json":
            assert set(json.loads(path.read_text())) == set(gan.SETTINGS)
        elif path.suffix == ".csv":
            assert len(path.read_text().splitlines()) > 1


# Killed -----------------------------------------------------------------------------------------
def test_a_run_goes_on_exactly_from_what_a_kill_leaves_at_any_instant(
    main, data, tmp_path, monkeypatch
):
    assert main(DATA=data, OUT="whole", **TINY)[0] == 0
    whole, folder = (tmp_path / out / "dots-001" for out in ("whole", "killed"))
    left = []  # copies of the folder: each is what a kill at some instant would leave

    def instant(part=None):
        if folder.exists():
            left.append(tmp_path / "left" / f"{len(left)}")
            shutil.copytree(folder, left[-1])
            for file in left[-1].rglob("tmp-*") if part is not None else ():
                file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])

    def watch(patch, module, name):
        original = getattr(module, name)

        def watched(*args, **kwargs):
            for part in (0, 0.5, None) if name == "replace" else (None,):
                instant(part)
            result = original(*args, **kwargs)
            instant()
            return result

        patch.setattr(module, name, watched)

    with monkeypatch.context() as patch:
        patch.setattr(gan, "CHECKPOINT_SECONDS", -1)  # saves in the middle of epochs, too
        for module, name in ((os, "replace"), (Path, "unlink"), (Path, "mkdir")):
            watch(patch, module, name)
        assert main(DATA=data, OUT="killed", **TINY)[0] == 0
    begun = {}  # without those that are like another one
    for copy in left:
        if (copy / "settings.json").exists():
            files = sorted(path for path in copy.rglob("*") if path.is_file())
            key = [(str(path.relative_to(copy)), path.read_bytes()) for path in files]
            begun[hashlib.sha256(repr(key).encode()).digest()] = copy
    assert len(begun) > 30
    assert any(len(list(copy.glob("checkpoint/step-*"))) > 3 for copy in begun.values())
    for copy in begun.values():
        status, _, err = main("--resume", "--run", copy)
        assert status == 0 and err == "", err
        assert_equal_runs(whole, copy)
        assert_good(copy)


def kill_and_resume(folder, wanted, chance, **settings):
    """Start a run, kill it and resume it at random moments; return how often, at the run's end.

    Each third time it is not killed, but gets Ctrl-C again and again until it ends.
    """
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import gan; gan.CHECKPOINT_SECONDS = 0"
    command = [sys.executable, "-c", code + "; sys.exit(gan.main())"]  # saves all the time
    kills = 0
    more = arguments(**settings)
    while True:
        process = subprocess.Popen(
            [*command, *more], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        more = ["--resume"]
        lines = iter(process.stdout.readline, "")
        if kills < wanted:
            assert any(line.startswith(" epoch") for line in lines), process.stderr.read()
            time.sleep(chance.uniform(0, 1.2))  # of which tracing takes half
            if kills % 3 == 2 and sys.platform != "win32":
                asked = time.monotonic()
                while process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    time.sleep(0.02)
                    assert time.monotonic() - asked < 5
            process.kill()
        _, err = process.communicate(timeout=120)
        assert err == ""
        if process.returncode == 0:
            return kills
        kills += 1


@pytest.mark.parametrize("wanted", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_a_run_killed_or_stopped_at_random_moments_ends_like_an_undisturbed_one(
    main, tmp_path, wanted
):
    many = np.random.default_rng(0).integers(0, 256, (4000, 8, 8, 1), np.uint8)
    np.save(tmp_path / "dots.npy", many)
    settings = TINY | {"DATA": tmp_path / "dots.npy", "EPOCHS": 8 * wanted}
    assert main(OUT="whole", **settings)[0] == 0
    kills = kill_and_resume(tmp_path, wanted, random.Random(wanted), OUT="samples", **settings)
    folder = tmp_path / "samples" / "dots-001"
    print(f"{kills} kills survived")
    assert kills >= wanted - 1, "the run ended too early: give it more epochs"
    assert_equal_runs(tmp_path / "whole" / "dots-001", folder)
    assert_good(folder)


# Full disk --------------------------------------------------------------------------------------
@posix
@pytest.mark.parametrize("part", [0, 0.5, 0.98])
def test_a_disk_full_at_any_write_gets_one_line_and_leaves_whole_files_to_go_on_from(
    main, data, tmp_path, monkeypatch, part
):
    import resource

    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    write, calls, before = gan.write, [], {}

    def wrapped(path, save):
        calls.append(path)
        if len(calls) != full:
            return write(path, save)
        before.update({file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()})
        save(tmp_path / path.name)  # elsewhere, to know how much it writes
        size = int(part * (tmp_path / path.name).stat().st_size)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most[1]))
        try:
            return write(path, save)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)

    names = set()
    for full in range(1, 100):
        calls.clear()
        before.clear()
        with monkeypatch.context() as patch:
            patch.setattr(gan, "write", wrapped)
            patch.setattr(gan, "CHECKPOINT_SECONDS", -1)  # saves in the middle of epochs, too
            status, _, err = main(DATA=data, OUT=full, **TINY | {"EPOCHS": 1})
        if len(calls) < full:
            break
        names.add(calls[-1].name)
        folder = tmp_path / str(full) / "dots-001"
        assert status == 1 and "File too large" in err, (calls[full - 1].name, err)
        assert len(err.splitlines()) == 1, err
        assert {file: file.read_bytes() for file in before} == before
        if full == 1:  # there is no run yet
            continue
        assert_good(folder)
        status, _, err = main("--resume", "--run", folder, EPOCHS=2)
        assert status == 0 and err == "", err
        assert_good(folder)
        assert len(rows(folder)) == 2
    assert {"settings.json", "epoch-000.png", "losses.csv", "generator.keras"} < names
    assert full > 7


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_under_the_output_gets_one_line_and_status_1(data, tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, str(ROOT / "gan.py"), f"DATA={data}", *arguments(**TINY)]
        process = subprocess.run(
            command, check=False, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert process.returncode == 1
    assert len(process.stderr.splitlines()) == 1 and "No space left" in process.stderr


# Damaged run folders ----------------------------------------------------------------------------
DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "flipped": lambda content: content and changed(content, len(content) // 2),
    "emptied": lambda content: b"",
    "noise": lambda content: random.Random(0).randbytes(len(content)),
    "missing": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_of_a_run_is_named_or_does_no_harm(main, whole, tmp_path, damage):
    def resumed(*damaged):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        for name in damaged:
            if DAMAGE[damage]:
                (copy / name).write_bytes(DAMAGE[damage]((whole / name).read_bytes()))
            else:
                (copy / name).unlink()
        return copy, *main("--resume", "--run", copy, EPOCHS=5)

    reference = tmp_path / "reference"
    shutil.move(resumed()[0], reference)
    checkpoints = sorted(path.relative_to(whole) for path in whole.glob("checkpoint/*"))
    harmless = ["losses.csv", "generator.keras", "epoch-004.png", "lock", *checkpoints[:-1]]
    for name in harmless:
        copy, status, _, err = resumed(name)
        assert status == 0 and err == "", err
        assert rows(copy) == rows(reference)
        assert (copy / "epoch-005.png").read_bytes() == (reference / "epoch-005.png").read_bytes()
        assert zipfile.ZipFile(copy / "generator.keras").testzip() is None
    newest = checkpoints[-1]
    copy, status, _, err = resumed(newest)
    assert status == 0
    assert err == "" if damage == "missing" else newest.name in err and len(err.splitlines()) == 1
    assert_good(copy)
    assert len(rows(copy)) == 5  # LR_DECAY changes with EPOCHS, so epoch 4 is another one
    copy, status, _, err = resumed(*checkpoints)
    assert status == 2 and "no checkpoint that can be read" in err.splitlines()[-1]
    assert len(err.splitlines()) == (1 if damage == "missing" else 4)
    copy, status, _, err = resumed("settings.json")
    if status or damage != "flipped":  # a flipped bit may still be a setting
        assert status == 2 and len(err.splitlines()) == 1 and "settings.json" in err, err


def test_a_checkpoint_with_a_flipped_bit_anywhere_is_whole_or_passed_over(main, whole):
    newest = max(whole.glob("checkpoint/*"))
    good = [gan.read_checkpoint(whole)]
    content = newest.read_bytes()
    newest.unlink()
    good.append(gan.read_checkpoint(whole))
    chance = random.Random(0)
    for _ in range(100):
        place = chance.randrange(len(content))
        newest.write_bytes(changed(content, place, content[place] ^ 1 << chance.randrange(8)))
        arrays = gan.read_checkpoint(whole)
        assert any(
            len(arrays) == len(others) and all(map(np.array_equal, arrays, others))
            for others in good
        )


NONSENSE = {
    "list of names": json.dumps(gan.SETTINGS),
    "text": '"x"',
    "number": "1",
    "nothing": "null",
    "deep": "[" * 100000,
    "long number": "1" * 6000,
    "odd name": '{"a\\nb\\u001b[31m": 1}',
    "not utf-8": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_a_settings_file_that_is_nonsense_is_named_in_one_line(main, whole, kind):
    content = NONSENSE[kind]
    file = whole / "settings.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, out, err = main("--resume", "--run", whole)
    assert status == 2 and out == "" and len(err.splitlines()) == 1 and str(file) in err
    assert err.strip().isprintable()


WRONG = {
    "GRID": ({"a": [1]}, float("nan"), "a\nb", None, [], 3.0, True),
    "G_HIDDEN": ([], [[16]], [16, "16"], 0, 16.0),
    "SEED": (-1, 2**70, "__import__('os')", [[0]]),
    "DATA": (5, "", "no such file", "a\0b", None, ["mnist"]),
    "PRIOR": ([1, 0], [0, float("inf")], {}, "Normal", 1),
    "Z_SIZE": (9,),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_setting_edited_to_nonsense_is_named_in_one_line(main, whole, name):
    file = whole / "settings.json"
    good = json.loads(file.read_text())
    for value in WRONG[name]:
        file.write_text(json.dumps(good | {name: value}))
        status, out, err = main("--resume", "--run", whole, EPOCHS=5)
        assert status == 2 and out == "" and len(err.splitlines()) == 1, (value, err)
        assert name in err or "networks in the run's settings.json" in err


# What is left alone -----------------------------------------------------------------------------
def test_pruning_and_cleaning_up_leave_files_of_the_user(main, whole):
    mine = [whole / "checkpoint" / f"step-{i}.npz" for i in ("best", "000000005-copy", "1")]
    mine += [whole / "tmp-notes.txt", whole / "checkpoint" / "tmp", whole / "epoch-best.png"]
    for path in mine:
        path.write_text("mine")
    (whole / "tmp-123-losses.csv").write_text("left by a killed process")
    (whole / "tmp-123-mine").mkdir()
    assert main("--resume", "--run", whole, EPOCHS=8)[0] == 0
    assert all(path.read_text() == "mine" for path in mine)
    assert not (whole / "tmp-123-losses.csv").exists() and (whole / "tmp-123-mine").exists()


@posix
def test_links_in_a_run_are_not_followed_out_of_it(main, whole, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("step-000000001.npz", "step-000000002.npz", "step-000000003.npz", "tmp-1-x", "a"):
        (other / name).write_text("mine")
    for name in ("epoch-005.png", "losses.csv", "generator.keras", "tmp-1-x", "lock"):
        (whole / name).unlink(missing_ok=True)
        (whole / name).symlink_to(other / "a")
    assert main("--resume", "--run", whole, EPOCHS=5)[0] == 0
    shutil.rmtree(whole / "checkpoint")
    (whole / "checkpoint").symlink_to(other, target_is_directory=True)
    status, _, err = main("--resume", "--run", whole, EPOCHS=6)
    assert status == 2 and len(err.splitlines()) == 1 and "link" in err
    assert all(path.read_text() == "mine" for path in other.iterdir())
    assert len(list(other.iterdir())) == 5


# Network ----------------------------------------------------------------------------------------
MANY = np.random.default_rng(2).integers(0, 256, (100, 28, 28), np.uint8)
CONTENT = gzip.compress(idx(MANY))


@pytest.fixture
def server():
    """Return the address of a server whose folders each have their own way of sending MNIST."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(OSError):  # the client is gone
                getattr(self, self.path.split("/")[1])()

        def answer(self, content, *, status=200, **headers):
            self.send_response(status)
            for name, value in ({"Content-Length": len(content)} | headers).items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(content)

        def good(self):
            self.answer(CONTENT)

        def redirect(self):
            self.answer(b"", status=302, Location=f"/good/{gan.MNIST_FILE}")

        def circle(self):
            self.answer(b"", status=302, Location=self.path)

        def elsewhere(self):
            self.answer(b"", status=302, Location="file:///etc/hostname")

        def drip(self):  # slow, but never silent for long
            self.send_response(200)
            self.end_headers()
            for i in range(0, len(CONTENT), len(CONTENT) // 5):
                self.wfile.write(CONTENT[i : i + len(CONTENT) // 5])
                over.wait(0.1)

        def forbidden(self):
            self.answer(CONTENT, status=403)

        def error(self):
            self.answer(CONTENT, status=500)

        def html(self):  # as of the log-in page of a hotel
            self.answer(b"<html>Log in</html>")

        def longer(self):
            self.answer(CONTENT + b"\0")

        def headers_without_end(self):
            self.wfile.write(b"HTTP/1.0 200 OK\r\n")
            while not over.is_set():
                self.wfile.write(b"X-A: " + b"a" * 1000 + b"\r\n")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def mirrors(server, small, tmp_path, monkeypatch):
    """Return a function that sets the mirrors to folders of the server; the cache is empty."""
    small(DATA="mnist")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(gan, "MNIST_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(gan, "SILENCE", 2)

    def choose(*names):
        monkeypatch.setattr(gan, "MIRRORS", tuple(f"{server}/{name}/" for name in names))

    return choose


def cached(folder):
    """Return the files in the cache."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("way", ["redirect", "drip"])
def test_a_mirror_that_takes_its_time_or_sends_elsewhere_is_used(mirrors, tmp_path, way):
    mirrors(way)
    assert np.array_equal(gan.load_images()[1][..., 0], MANY)
    assert cached(tmp_path / "keras") == {gan.MNIST_FILE: CONTENT}


BAD_WAYS = ["circle", "elsewhere", "forbidden", "error", "html", "longer", "headers_without_end"]


@pytest.mark.parametrize("way", BAD_WAYS)
def test_a_mirror_that_misbehaves_is_given_up_for_the_next(mirrors, tmp_path, way):
    mirrors(way)
    with pytest.raises(gan.NoMnist):
        gan.load_images()
    assert not (tmp_path / "keras").exists()
    mirrors(way, "good")
    assert np.array_equal(gan.load_images()[1][..., 0], MANY)
    assert cached(tmp_path / "keras") == {gan.MNIST_FILE: CONTENT}


@posix
def test_a_pipe_in_the_cache_is_not_waited_for(mirrors, tmp_path):
    mirrors("good")
    (tmp_path / "keras" / "datasets").mkdir(parents=True)
    os.mkfifo(tmp_path / "keras" / "datasets" / "mnist.npz")
    loaded = []
    thread = threading.Thread(target=lambda: loaded.append(gan.load_images()), daemon=True)
    thread.start()
    thread.join(10)
    assert loaded


def listing(folder):
    """Return what every file below folder holds and when it was changed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_two_runs_at_once_download_well_and_write_only_to_their_folders_and_the_cache(
    server, tmp_path
):
    for name in ("check out", "home", "tmp", "here"):
        (tmp_path / name).mkdir()
    script = shutil.copy(ROOT / "gan.py", tmp_path / "check out")
    os.chmod(script, 0o444)
    os.chmod(tmp_path / "check out", 0o555)
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(tmp_path / "check out")!r})
        import gan
        gan.MIRRORS = ({server + "/drip/"!r},)
        gan.MNIST_SHA256 = {hashlib.sha256(CONTENT).hexdigest()!r}
        sys.exit(gan.main())
    """
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_HOME"}
    environment |= {"no_proxy": "*", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= dict.fromkeys(("HOME", "USERPROFILE"), str(tmp_path / "home"))
    environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(tmp_path / "tmp"))
    before = listing(tmp_path)
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", code, f"OUT={tmp_path / 'out'}", *arguments(**TINY)]
    pair = [
        subprocess.Popen(command, cwd=tmp_path / "here", env=environment, text=True, **pipes)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in pair]
    os.chmod(tmp_path / "check out", 0o755)
    assert [process.returncode for process in pair] == [0, 0], said
    assert not any(err for _, err in said)
    runs = [tmp_path / "out" / f"mnist-00{i}" for i in (1, 2)]
    assert sorted((tmp_path / "out").iterdir()) == runs
    assert_equal_runs(*runs)
    assert cached(tmp_path / "home" / ".keras" / "datasets") == {gan.MNIST_FILE: CONTENT}
    after = listing(tmp_path)
    assert {path: after.pop(path) for path in before} == before
    allowed = {*runs, tmp_path / "home" / ".keras"}
    assert all(allowed & set(path.parents) for path in after)


# Data files -------------------------------------------------------------------------------------
def outcome(path):
    """Load the images at path; return them, or the text of the Problem, which is checked."""
    began = time.monotonic()
    with mock.patch.multiple(gan, DATA=str(path), IMAGE_SIZE=8), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as main() does
        try:
            images = gan.load_images()[1]
        except gan.Problem as problem:
            assert problem.status == 2
            return str(problem)
        finally:
            assert time.monotonic() - began < 20
    assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3)
    assert images.size
    np.array(images[:1]).sum()
    return images


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder for the generated files, which overwrite each other."""
    return tmp_path_factory.mktemp("generated files")


def generated(cases):
    """Return the decorator of a test of so many generated cases, always the same ones."""
    return settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def damaged(draw, seeds):
    """Return one of the seeds with some bytes overwritten, cut out, doubled, or put in."""
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, draw(st.sampled_from((20, 150, len(content))))))
        end = at + draw(st.integers(0, 40))
        new = draw(st.one_of(st.binary(max_size=8), st.just(content[at:end] * 2)))
        content = content[:at] + new + content[draw(st.sampled_from((at + len(new), end))) :]
    return content


SMALL = PIXELS[:3, :7, :5]
SEEDS = [
    idx(SMALL),
    gzip.compress(idx(SMALL)),
    npy(SMALL),
    npy(SMALL / 7),
    npz(SMALL),
    npz(x_train=SMALL, y_train=np.arange(3), save=np.savez_compressed),
]


@generated(500)
@given(content=damaged(SEEDS))
def test_500_damaged_files_each_work_or_get_one_line(place, content):
    (place / "damaged").write_bytes(content)
    outcome(place / "damaged")


@generated(200)
@given(
    magic=st.one_of(st.sampled_from([b"\0\0\x08\x03", b"\0\0\x08\x04"]), st.binary(max_size=4)),
    sizes=st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 5), max_size=5),
    body=st.binary(max_size=200),
    packed=st.booleans(),
)
def test_200_idx_files_of_any_head_each_work_or_get_one_line(place, magic, sizes, body, packed):
    content = magic + struct.pack(f">{len(sizes)}I", *sizes) + body
    (place / "head.idx").write_bytes(gzip.compress(content) if packed else content)
    images = outcome(place / "head.idx")
    if not isinstance(images, str):
        assert images.size == len(body)


TYPES = "?bBhHiIqQefdgFDSUVOmM"


@generated(200)
@given(
    descr=st.one_of(
        st.text(max_size=6),
        st.builds(
            "{}{}{}".format,
            st.sampled_from("<>|="),
            st.sampled_from(TYPES + "uic"),
            st.integers(0, 9),
        ),
        st.lists(st.tuples(st.text(max_size=2), st.sampled_from(["u1", "O"])), max_size=2),
    ),
    order=st.one_of(st.booleans(), st.none()),
    shape=st.lists(st.one_of(st.integers(-1, 5), st.integers()), max_size=5).map(tuple),
    zipped=st.booleans(),
)
def test_200_npy_heads_each_work_or_get_one_line(place, descr, order, shape, zipped):
    content = npy_header(repr({"descr": descr, "fortran_order": order, "shape": shape}))
    if zipped:
        with zipfile.ZipFile(place / "head.npz", "w") as archive:
            archive.writestr("a.npy", content)
    else:
        (place / "head.npz").write_bytes(content)
    outcome(place / "head.npz")


@generated(200)
@given(
    kind=st.sampled_from("?bBhHiIqQefdgFDSUm"),
    shape=st.lists(st.sampled_from((0, 1, 2, 3, 4, 7)), max_size=5),
    order=st.sampled_from("CF"),
    swapped=st.booleans(),
    zipped=st.booleans(),
    body=st.binary(min_size=32, max_size=64),
)
def test_200_arrays_of_any_numbers_each_work_or_get_one_line(
    place, kind, shape, order, swapped, zipped, body
):
    dtype = np.dtype(kind if kind not in "SU" else kind + "2")
    array = np.zeros(shape, dtype, order)
    count = array.size * dtype.itemsize
    if kind not in "SU":
        array = np.frombuffer((body * (count // len(body) + 1))[:count], dtype).reshape(shape)
        array = np.asarray(array, order=order)
    array = array.astype(dtype.newbyteorder()) if swapped else array
    (place / "any").write_bytes(npz(array) if zipped else npy(array))
    images = outcome(place / "any")
    if len(shape) in (3, 4) and kind == "B" and array.size and (*shape, 1)[3] in (1, 3):
        assert np.array_equal(images, array.reshape(images.shape))


def picture(mode, suffix, size=(9, 7), **options):
    """Return the bytes of a picture file, or None where the format has no such mode."""
    file = io.BytesIO()
    try:
        Image.frombytes(
            mode,
            size,
            random.Random(0).randbytes(4 * size[0] * size[1])[
                : len(Image.new(mode, size).tobytes())
            ],
        ).save(file, suffix, **options)
    except (OSError, ValueError, KeyError):
        return None
    return file.getvalue()


MODES = "1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "I", "I;16", "F", "YCbCr", "LAB"
PICTURES = [
    content
    for suffix in ("png", "jpeg", "bmp", "gif", "webp", "tiff")
    for content in (picture(mode, suffix) for mode in MODES)
    if content
]


@generated(200)
@given(
    content=damaged(PICTURES),
    suffix=st.sampled_from(gan.PICTURES),
    name=st.text("a\n \u732b", max_size=5),
)
def test_200_damaged_pictures_each_work_or_are_skipped(place, content, suffix, name):
    folder = place / "pictures"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    name = name if sys.platform != "win32" else "a"
    (folder / f"{name}{suffix}").write_bytes(content)
    outcome(folder)


@pytest.mark.parametrize("size", [(30000, 1), (1, 30000), (1, 1), (1, 2)])
@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "P"])
def test_a_picture_of_any_shape_is_used(tmp_path, size, mode):
    save(tmp_path / "a.png", Image.new(mode, size, 0))
    assert outcome(tmp_path).shape == (1, 8, 8, 1)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_an_animated_picture_the_first_frame_is_used(tmp_path, suffix):
    frames = [Image.new("L", (8, 8), level) for level in (40, 200, 90)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert np.abs(outcome(tmp_path).astype(int) - 40).max() <= 2


@posix
def test_no_picture_starts_another_program(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{tmp_path / 'started'}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # not looked for yet
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    save(tmp_path / "pictures" / "a.png", script)
    with contextlib.suppress(OSError):
        Image.open(tmp_path / "pictures" / "a.png").load()
    assert (tmp_path / "started").exists()  # Pillow alone would start it
    (tmp_path / "started").unlink()
    assert "no usable image" in outcome(tmp_path / "pictures")
    assert not (tmp_path / "started").exists()


def encrypted(content):
    """Return a zip file's bytes with its members marked as encrypted."""
    for magic, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content = changed(content, content.index(magic) + flags, 1)
    return content


def zipped(*members, compression=zipfile.ZIP_STORED):
    """Return the bytes of a zip file of the members (name, content)."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of two members of one name
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


HUGE = b"\0" * 2**22
REFUSED = {
    "encrypted.npz": encrypted(npz(SMALL)),
    "unknown-compression.npz": npz(SMALL).replace(b"\0\0\0\0\0\0!", b"\0\0\x61\0\0\0!"),
    "bomb.npz": zipped(*((f"{i}", HUGE) for i in range(257)), compression=zipfile.ZIP_DEFLATED),
    "bomb.gz": gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2, 28, 28) + HUGE, 1),
    "bomb-of-bombs.gz": gzip.compress(gzip.compress(idx(SMALL))),
    "large-images.npy": npy(np.zeros((2, 1, 1), np.uint8)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_file_gets_one_line(tmp_path, name):
    content = REFUSED[name]
    if name == "unknown-compression.npz":
        content = npz(SMALL)
        for magic, method in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
            content = changed(content, content.index(magic) + method, 97)
    (tmp_path / name).write_bytes(content)
    if name == "large-images.npy":  # a file with a hole, which takes no room
        head = repr({"descr": "<f4", "fortran_order": False, "shape": (1, 32768, 32768)})
        (tmp_path / name).write_bytes(npy_header(head))
        os.truncate(tmp_path / name, 2**32 + 10000)
    said = outcome(tmp_path / name)
    assert isinstance(said, str) and name in said and "\n" not in said


@pytest.mark.parametrize(
    "name", ["../../evil.npy", "/evil.npy", "C:\\evil.npy", "a/../b.npy", ".npy"]
)
def test_names_inside_an_archive_are_never_paths(tmp_path, name):
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    path = tmp_path / "deep" / "deeper" / "a.npz"
    path.write_bytes(zipped((name, npy(SMALL)), ("a.npy", npy(SMALL)), ("a.npy", npy(SMALL))))
    assert np.array_equal(outcome(path)[..., 0], SMALL)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


@posix
def test_what_is_neither_file_nor_folder_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path in (tmp_path / "pipe", tmp_path / "circle", "/dev/zero", "/dev/null"):
        assert "no such file or folder" in outcome(path)


@posix
def test_names_of_pictures_that_are_no_text_are_read_and_warned_of_in_one_line(tmp_path, capsys):
    for name in (b"a\xff.png", b"b\n\x1b[31m.png"):
        path = os.fsencode(tmp_path) + b"/" + name
        with open(path, "wb") as file:
            file.write(b"no image")
    save(tmp_path / "good.png", Image.new("L", (8, 8), 70))
    assert len(outcome(tmp_path)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.isprintable() for line in lines)


@posix
def test_unreadable_files_are_skipped_or_named(tmp_path):
    save(tmp_path / "faces" / "good.png", Image.new("L", (8, 8), 70))
    save(tmp_path / "faces" / "locked.png", Image.new("L", (8, 8), 90))
    (tmp_path / "a.npy").write_bytes(npy(SMALL))
    for path in (tmp_path / "faces" / "locked.png", tmp_path / "a.npy"):
        path.chmod(0)
    if os.access(tmp_path / "a.npy", os.R_OK):
        pytest.skip("this user reads files whatever their permissions")
    assert len(outcome(tmp_path / "faces")) == 1
    assert "a.npy" in outcome(tmp_path / "a.npy")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.slow
def test_no_file_takes_more_than_2_gb_of_memory(tmp_path):
    """The worst that are still accepted; they may take over 20 s, being half a gigabyte."""
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        import gan
        gan.DATA = sys.argv[1]
        try:
            print(gan.load_images()[1].shape)
        except gan.Problem as problem:
            print(problem)
        status = open("/proc/self/status").read()
        print(status.split("VmHWM:")[1].split()[0], status.split("RssFile:")[1].split()[0])
    """
    flags = np.zeros((2**19, 32, 32), bool)
    flags[0, 0, 0] = True
    np.savez_compressed(tmp_path / "flags.npz", flags)
    np.savez_compressed(tmp_path / "one.npz", flags.reshape(1, 2**15, -1))
    with gzip.open(tmp_path / "pixels.gz", "wb", 1) as file:
        file.write(b"\0\0\x08\x03" + struct.pack(">3I", 2**20, 32, 32))
        for _ in range(2**8):
            file.write(HUGE)
    for mode in ("RGBA", "LA", "I;16", "F", "RGB"):
        suffix = "tif" if mode == "F" else "png"
        save(tmp_path / mode / f"a.{suffix}", Image.new(mode, (9400, 9400)), compress_level=1)
    (tmp_path / "bomb").mkdir()
    (tmp_path / "bomb" / "a.png").write_bytes(png(12000, 12000))
    names = ["flags.npz", "one.npz", "pixels.gz", "RGBA", "LA", "I;16", "F", "RGB", "bomb"]
    for name in names:
        began = time.monotonic()
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        said, figures = out.splitlines()
        print(f"{name}: {said[:60]}, {int(figures.split()[0]) / 2**20:.2f} GB,", end=" ")
        print(f"{time.monotonic() - began:.0f} s")
        assert int(figures.split()[0]) < 2 * 2**20, name


# Settings ---------------------------------------------------------------------------------------
CODE = [
    "__import__('os').abort()",
    "exit()",
    "[].__class__",
    "1+1",
    "lambda: 0",
    "f'{1}'",
    "(1)(2)",
]
CODE += ["1if 2else 3", "'\\d'", "0x", "((((" * 999, "9" * 5000, "-" * 9999 + "1", "1e999", "--1"]
WORDS = st.sampled_from(
    CODE + ["nan", "inf", "-inf", "None", "True", "", " ", "1j", "b'a'", "{}", "()"]
)
VALUES = st.one_of(
    WORDS,
    st.text(max_size=9),
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.integers() | st.floats(), max_size=3).map(lambda v: ",".join(map(str, v))),
    st.text("0123456789.,-+ejx'\"()[]{}:", max_size=9),
)


@generated(1000)
@given(name=st.sampled_from(gan.SETTINGS) | st.text(max_size=5), value=VALUES)
@example("EPOCHS", "1if 2else 3")
def test_1000_settings_are_each_taken_as_a_literal_or_refused(name, value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            settings = dict([gan.parse_setting(f"{name}={value}")])
            gan.check_settings(settings)
        except gan.Problem as problem:
            assert problem.status == 2 and len(str(problem)) < 300 + len(name)
            return
    [(name, result)] = settings.items()
    assert name in gan.SETTINGS
    if name not in ("DATA", "OUT"):
        numbers = result if type(result) is tuple else (result,)
        assert all(isinstance(part, (int, float, str, type(None))) for part in numbers)
        assert all(abs(part) <= 1e12 for part in numbers if isinstance(part, (int, float)))
    assert json.loads(json.dumps(settings)) == {
        name: list(result) if type(result) is tuple else result
    }


BAD_LINES = [
    ["EPOCHS=1if 2else 3"],
    ["EPOCHS=open('samples', 'w')"],
    ["MODEL='\\d'"],
    ["MODEL=a\nb\x1b[31m"],
    ["DATA=no\nsuch\nfile"],
    ["a\nb"],
    ["a\nb=1"],
    ["--a\nb"],
    ["EPOCHS=" + "9" * 5000],
    ["GRID=" + "(" * 9999],
    ["=5"],
    ["EMA=1"],
    ["Z_SIZE=0"],
    ["BATCH_SIZE=1"],
    ["GRID=65"],
    ["D_STEPS=6"],
    ["BETA_1=0.999999999"],
    ["BETA_2=0.999999999"],
    ["G_HIDDEN=()"],
    ["EARLY_STOP=1,0"],
    ["SEED=4294967296"],
    ["IMAGE_SIZE=100000"],
    ["--run", "samples"],
]


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_command_line_gets_one_printable_line_before_any_work(
    main, data, tmp_path, recwarn, line
):
    given = {"DATA": data} | TINY
    status, out, err = main(*arguments(**given), *line)
    assert status == 2 and out == "" and not (tmp_path / "samples").exists()
    assert len(err.splitlines()) == 1 and err.strip().isprintable()
    assert not recwarn.list  # pytest keeps warnings, which are lines too, from stderr


ODD = [
    {"LOSS": "minimax", "GRADIENT_PENALTY": 1, "SMOOTH": 0.5},
    {"PRIOR": (0, 1), "Z_SIZE": 1, "GRID": 64, "LR_DECAY": False},
    {"EMA": 0, "D_STEPS": 3, "G_STEPS": 2, "BATCH_SIZE": 33},
    {"BATCH_SIZE": 100, "EMA": 0.9999999, "BETA_1": 0.9999, "D_HIDDEN": (1, 1, 1)},
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_odd_settings_that_are_accepted_train(main, data, tmp_path, odd):
    status, _, err = main(DATA=data, **TINY | {"EPOCHS": 1} | odd)
    assert status == 0 and err == "", err
    assert_good(tmp_path / "samples" / "dots-001")


# Divergence and long runs -----------------------------------------------------------------------
def test_divergence_of_a_resumed_run_gets_one_line_and_leaves_good_checkpoints(main, whole, images):
    before = {path.name for path in (whole / "checkpoint").iterdir()}
    status, _, err = main("--resume", "--run", whole, EPOCHS=60, LEARNING_RATE=1e9)
    assert status == 1
    assert len(err.splitlines()) == 1 and "diverged" in err and "LEARNING_RATE" in err
    assert_good(whole)
    assert before & {path.name for path in (whole / "checkpoint").iterdir()}
    gan.restore(traced_gan(images), gan.read_checkpoint(whole))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.slow
def test_memory_open_files_and_time_per_epoch_stay_flat_over_500_epochs(data, tmp_path):
    process = start(tmp_path, DATA=data, **TINY | {"EPOCHS": 500})
    lines = iter(process.stdout.readline, "")
    memory, files, times = [], [], []
    for line in lines:
        if line.strip().split("/")[0].isdigit() and process.poll() is None:
            with contextlib.suppress(OSError, IndexError):  # it has just ended
                status = Path(f"/proc/{process.pid}/status").read_text()
                memory.append(int(status.split("RssAnon:")[1].split()[0]))
                files.append(len(os.listdir(f"/proc/{process.pid}/fd")))
                # The processor's time, as other processes do not change it.
                parts = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                times.append((int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK"))
    process.communicate()
    assert process.returncode == 0 and len(times) > 490
    first, last = (times[55] - times[5]) / 50, (times[-2] - times[-52]) / 50
    print(
        f"memory {memory[50] / 1024:.0f} to {memory[-2] / 1024:.0f} MB, open files {files[50]} to"
    )
    print(f"{files[-2]}, epoch {1000 * first:.0f} to {1000 * last:.0f} ms")
    assert memory[-2] < 1.05 * memory[50] + 5000
    assert abs(files[-2] - files[50]) <= 1
    assert last < 1.5 * first


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux' /proc")
def test_an_array_far_larger_than_memory_trains_in_flat_memory(tmp_path):
    count = 20 * 2**30 // 28**2
    np.lib.format.open_memmap(tmp_path / "many.npy", "w+", np.uint8, (count, 28, 28)).flush()
    process = start(tmp_path, DATA="many.npy")
    wait_for(tmp_path / "samples" / "many-001" / "epoch-000.png", process)
    sizes = []
    for _ in range(30):
        time.sleep(1)
        status = Path(f"/proc/{process.pid}/status").read_text()
        sizes.append(int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1e6)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    print(f"memory from {min(sizes[10:]):.2f} to {max(sizes):.2f} GB")
    assert process.returncode == 130, err
    assert max(sizes) < 2 and max(sizes[20:]) < max(sizes[10:20]) + 0.1
    assert list((tmp_path / "samples" / "many-001" / "checkpoint").iterdir())
