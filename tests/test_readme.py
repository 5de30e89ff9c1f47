"""Everything that the README tells people to type."""

import re
import shlex
import subprocess
import sys

import numpy as np
from conftest import DEFAULTS, ROOT
from PIL import Image

import gan


def commands(name):
    """Return a README's text, and the commands in it, each as one line."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return text, re.findall(r"^ {4,8}(python .*)$", re.sub(r" \\\n +", " ", text), re.MULTILINE)


README, COMMANDS = commands("README.md")


def test_every_command_and_every_example_runs(small, tmp_path, monkeypatch):
    home, rng = tmp_path / "keras" / "datasets", np.random.default_rng(0)
    for folder in (home, tmp_path / "faces" / "deep"):
        folder.mkdir(parents=True)
    for i in range(100):
        pixels = rng.integers(0, 256, (40, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "faces" / "deep" / f"{i:03}.jpg")
    (tmp_path / "faces" / "damaged.png").write_bytes(b"no picture")
    np.savez(home / "mnist.npz", x_train=rng.integers(0, 256, (100, 28, 28), np.uint8))
    monkeypatch.setenv("KERAS_HOME", str(home.parent))
    monkeypatch.chdir(tmp_path)
    for name, value in (DEFAULTS | {"EPOCH_IMAGES": 500}).items():
        monkeypatch.setattr(gan, name, value)
    assert "python -m pip install -r requirements.txt && python gan.py" in COMMANDS
    assert "python -m pip install -r tests/requirements.txt && python -m pytest" in COMMANDS
    ours = [command.rpartition("&& ")[2] for command in COMMANDS]
    ours = [shlex.split(command)[2:] for command in ours if command.startswith("python gan.py")]
    assert len(ours) >= 12
    for words in ours:
        shorter = ["BATCH_SIZE=100", "EPOCHS=1", "GRID=2"]
        if "--sample" in words:
            continue  # it is run below, from this one
        if "--resume" in words:
            shorter = ["EPOCHS=2"]
        assert gan.main([*words, *shorter]) == 0, words
    for words in (["SEED=7"], ["--category", "20"]):
        assert gan.main(["--run", "samples/mnist-001", "--sample", "9", *words]) == 0
    [train] = re.findall(r"`(import gan; gan.main.*?)`", README)
    [use] = re.findall("```python\n(.*?)```", README, re.DOTALL)
    [convert] = re.findall(r"`(np.save\(.*?)`", README)
    (tmp_path / "train.csv").write_text("label,pixels\n" + "5,0,0,99,255\n" * 3)
    train = train.replace('"EPOCHS=5"', '"DATA=digits", "EPOCHS=1", "BATCH_SIZE=200", "G_HIDDEN=4"')
    use = f"{train}\n{use}\n{convert}\n".replace("keras.utils.array", "shown = keras.utils.array")
    use += "assert images.shape == (16, 28, 28, 1) and 0 <= images.numpy().min()\n"
    use += "assert np.allclose(shown, 255 * images[0, ..., 0], atol=1)\n"
    example = f"import sys; sys.path.append({str(ROOT)!r})\n{use}"
    subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True)
    assert (tmp_path / "samples" / "digits-001" / "epoch-001.png").exists()
    assert gan.read_file(tmp_path / "kaggle.npy").tolist() == [[[[0], [0]], [[99], [255]]]] * 3


def test_the_chinese_readme_has_the_same_commands():
    assert commands("README.zh-CN.md")[1] == COMMANDS


def test_the_functions_and_pictures_that_the_readmes_name_are_there():
    for name in ("README.md", "README.zh-CN.md"):
        text, _ = commands(name)
        for function in re.findall(r"`(build_\w+|\w+_loss)`", text):
            assert callable(getattr(gan, function))
        assert "`GAN.train_step`" in text and callable(gan.GAN.train_step)
        pictures = re.findall(r"samples/[\w-]+\.(?:png|gif)", text)
        assert len(pictures) >= 6 and all((ROOT / picture).exists() for picture in pictures)
