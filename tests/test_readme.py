"""Everything that the README tells people to type."""

import re
import shlex
import subprocess
import sys

import numpy as np
from conftest import DEFAULTS, ROOT
from PIL import Image

import gan

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall("^    (python .*)$", README, re.MULTILINE)


def test_the_two_commands_that_set_everything_up_are_there():
    assert "python -m pip install -r requirements.txt && python gan.py" in COMMANDS
    assert "python -m pip install -r tests/requirements.txt && python -m pytest" in COMMANDS


def test_every_command_and_every_example_runs(small, tmp_path, monkeypatch):
    home, rng = tmp_path / "keras" / "datasets", np.random.default_rng(0)
    for folder in (home, tmp_path / "faces" / "deep"):
        folder.mkdir(parents=True)
    for i in range(20):
        pixels = rng.integers(0, 256, (40, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "faces" / "deep" / f"{i:02}.jpg")
    (tmp_path / "faces" / "damaged.png").write_bytes(b"no picture")
    np.savez(home / "mnist.npz", x_train=rng.integers(0, 256, (60, 28, 28), np.uint8))
    monkeypatch.setenv("KERAS_HOME", str(home.parent))
    monkeypatch.chdir(tmp_path)
    for name, value in DEFAULTS.items():
        monkeypatch.setattr(gan, name, value)
    commands = [shlex.split(command.rpartition("&& ")[2])[2:] for command in COMMANDS]
    commands = [words for words in commands if words[:1] != ["pytest"]]
    assert len(commands) >= 12
    for words in commands:
        shorter = ["BATCH_SIZE=2", "EPOCHS=1", "GRID=2"]
        if "--sample" in words:
            continue  # it is run below, from this one
        if "--resume" in words:
            shorter = ["EPOCHS=2"]
        assert gan.main([*words, *shorter]) == 0, words
    for words in (["SEED=7"], ["--category", "6"]):
        assert gan.main(["--run", "samples/mnist-001", "--sample", "9", *words]) == 0
    [use] = re.findall("```python\n(.*?)```", README, re.DOTALL)
    use = use.replace('["DATA=digits"]', '["DATA=digits", "BATCH_SIZE=200", "G_HIDDEN=4"]')
    use += "\nassert images.shape == (16, 28, 28, 1) and 0 <= images.numpy().min()\n"
    example = f"import sys; sys.path.append({str(ROOT)!r})\n{use}"
    subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True)
    assert (tmp_path / "samples" / "digits-001" / "epoch-001.png").exists()


def test_the_chinese_readme_has_the_same_commands():
    chinese = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"    {command}\n" in chinese, command


def test_the_lines_that_the_readme_names_are_the_heart_of_the_script():
    first, last = map(int, re.search(r"lines\s(\d+) to (\d+) of", README).groups())
    lines = (ROOT / "gan.py").read_text(encoding="utf-8").splitlines()
    assert lines[first - 1].startswith("# ---- Settings")
    assert lines[last + 2].startswith("# ---- Data")
