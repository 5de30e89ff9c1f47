"""Everything that the README tells people to type."""

import re
import shlex
import subprocess
import sys

import numpy as np
from conftest import ROOT, TINY, arguments, run
from PIL import Image

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall("^    (python .*)$", README, re.MULTILINE)
COMMANDS = [command for command in COMMANDS if "Z_SIZE" not in command]  # see test_recipes.py


def test_the_two_commands_that_set_everything_up_are_there():
    assert "python -m pip install -r requirements.txt && python gan.py" in COMMANDS
    assert "python -m pip install -r tests/requirements.txt && python -m pytest" in COMMANDS


def test_every_command_and_the_example_in_python_run(tmp_path):
    (tmp_path / "faces").mkdir()
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "faces" / f"{i}.png")
    (tmp_path / "keras" / "datasets").mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28), np.uint8)
    np.savez(tmp_path / "keras" / "datasets" / "mnist.npz", x_train=images)
    commands = [command.rpartition("&& ")[2] for command in COMMANDS]
    commands = [shlex.split(command)[2:] for command in commands if "python gan.py" in command]
    assert len(commands) >= 5
    for index, words in enumerate(commands):
        small = {} if "--help" in words else TINY | {"EPOCHS": 1}
        if "--resume" in words:  # nor can its networks change
            small = {"EPOCHS": 1 + index}
        if "--sample" in words:
            small = {}
        if words == []:  # the example in Python is about the default's noise
            small.pop("Z_SIZE")
        status, _, err = run(tmp_path, *words, *arguments(**small))
        assert status == 0, (words, err)
    load, pack = re.findall("```python\n(.*?)```", README, re.DOTALL)
    load += "\nassert images.shape == (16, 28, 28, 1) and 0 <= images.numpy().min()\n"
    pack += "\nassert np.load('faces.npy').shape == (20, 64, 64, 3) and np.load('faces.npy').std() > 9\n"
    for example in (load, pack):
        subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True)


def test_the_chinese_readme_has_the_same_commands():
    chinese = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    assert len(README.splitlines()) <= 200
    for command in COMMANDS:
        assert f"    {command}\n" in chinese, command
