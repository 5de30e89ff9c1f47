"""What all tests share: gan.py in this process, gan.py as its user runs it, and small data."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
HOME = tempfile.TemporaryDirectory()
os.environ["KERAS_HOME"] = HOME.name  # no test reads or changes the user's own

import gan

DEFAULTS = gan.current_settings()
# Networks so small that an epoch, which has 10,000 images, takes a moment.
TINY = {"Z_SIZE": 8, "G_HIDDEN": 16, "D_HIDDEN": 16, "BATCH_SIZE": 100, "EPOCHS": 2, "GRID": 3}
PIPES = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)


@pytest.fixture
def small(monkeypatch):
    """Return a function that sets settings until the test ends; TINY is set at once."""
    given = DEFAULTS | TINY
    for name in gan.SETTINGS:
        monkeypatch.setattr(gan, name, given[name])

    def change(**settings):
        given.update(settings)
        gan.change_settings(given)
        gan.choose_defaults((28, 28, 1))

    change()
    return change


@pytest.fixture
def images():
    """Return 100 grey images of 8 x 8."""
    return np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), np.uint8)


@pytest.fixture
def data(images, tmp_path):
    """Return the path of an .npy file of the images."""
    np.save(tmp_path / "dots.npy", images)
    return tmp_path / "dots.npy"


def arguments(**settings):
    """Return settings as a user writes them."""

    def text(value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return [f"{name}={text(value)}" for name, value in settings.items()]


def start(folder, *args, **settings):
    """Start python gan.py in folder as a user does; there is no network and an empty cache."""
    command = [sys.executable, str(ROOT / "gan.py"), *map(str, args), *arguments(**settings)]
    environment = os.environ | {"KERAS_HOME": str(folder / "keras"), "https_proxy": "127.0.0.1:9"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdin=subprocess.DEVNULL, **PIPES
    )


def run(folder, *args, **settings):
    """Run python gan.py in folder to its end; return (exit status, stdout, stderr)."""
    process = start(folder, *args, **settings)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err
