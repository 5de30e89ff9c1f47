"""The settings and the command line, and where people run them."""

import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import DEFAULTS, ROOT, TINY, arguments

import gan

SOURCE = (ROOT / "gan.py").read_text("utf-8")
BLOCK = SOURCE.partition("# fmt: off\n")[2].partition("# fmt: on")[0]


def test_every_constant_of_the_block_is_a_setting_with_an_accepted_default(small):
    names = re.findall(r"^([A-Z]\w*) = ", BLOCK, re.MULTILINE)
    assert sorted(names) == sorted(gan.SETTINGS)
    gan.change_settings(DEFAULTS)
    assert all(gan.accepts(*item) for item in gan.current_settings().items())


def test_help_shows_the_options_and_settings_in_80_columns(capsys):
    assert gan.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert BLOCK in out
    assert all(option in out for option in ("--resume", "--sample 1000", "--run FOLDER"))
    assert all(len(line) <= 80 for line in out.splitlines())


def test_a_changed_comment_changes_nothing_and_a_changed_constant_wins(
    data, tmp_path, monkeypatch, capsys
):
    tiny = {"G_HIDDEN": 4, "D_HIDDEN": 4, "CHANNELS": 1, "EPOCHS": 1, "BATCH_SIZE": 50, "GRID": 2}
    edits = {"Z_SIZE": 5, "CATEGORIES": 3, "LEARNING_RATE": 0.002}
    edits |= {"GRADIENT_PENALTY": 0.7, "BETA_2": 0.8, "WARM_UP": 9}
    block = re.sub(r"#.*", "# x", BLOCK)
    for name, value in {**tiny, **edits, "DATA": data.name, "MODEL": "dcgan", "OUT": "~/r"}.items():
        block = re.sub(rf"^{name} = \S+", f"{name} = {value!r}", block, flags=re.MULTILINE)
    copy = tmp_path / "copy.py"
    copy.write_text(SOURCE.replace(BLOCK, block), encoding="utf-8")

    def script(*words):
        monkeypatch.setattr(sys, "argv", ["copy.py", *words])
        runpy.run_path(str(copy), run_name="__main__")
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert "EPOCHS = 1 " in script("--help")
    out = script()
    assert "D 0.002, G 0.004; penalty 0.7" in out and "5 numbers, categories: 3" in out
    assert " 2/2 " in script("--resume", "EPOCHS=2")
    saved = json.loads((tmp_path / "r" / "dots-001" / "settings.json").read_text())
    expected = tiny | edits | {"EPOCHS": 2, "DATA": str(data), "MODEL": "dcgan"}
    assert saved.items() >= expected.items() and list(saved) == gan.SETTINGS


@pytest.mark.parametrize(
    "words, value",
    [
        ("EPOCHS=5", 5),
        ("LEARNING_RATE=1e-3", 0.001),
        ("G_HIDDEN=256,512", (256, 512)),
        ("G_HIDDEN=[256, 512]", (256, 512)),
        ("IMAGE_SIZE=64,48", (64, 48)),
        ("PRIOR=-1,1", (-1, 1)),
        ("MODEL=dcgan", "dcgan"),
        ("BATCH_NORM=G", "G"),
        ("EARLY_STOP=None", None),
        ("OUT=1,2", "1,2"),
        ("OUT=a=b", "a=b"),
    ],
)
def test_values_are_taken_as_they_are_written(small, words, value):
    name, _, _ = words.partition("=")
    gan.change_settings(dict([gan.parse_setting(words)]))
    assert getattr(gan, name) == value


@pytest.mark.parametrize(
    "words, told",
    [
        ("EPOCHS=two", "EPOCHS=two: it must be a whole number, 1 to 1000000"),
        ("EPOCHS=2.0", "EPOCHS=2.0: it must be a whole number"),
        ("EPOCHS=5,", "EPOCHS=5,: it must be a whole number"),
        ("EPOCHS=open('made', 'w')", "a whole number, "),
        ("EPOCHS=1+1", "EPOCHS=1+1"),
        ("EPOCHS = 5", "no spaces around ="),
        ("AUGMENT=1", "AUGMENT=1: it must be True or False"),
        ("LEARNING_RATE=nan", "LEARNING_RATE=nan: it must be a number, 1e-12 to"),
        ("MODEL=vae", "MODEL=vae: it must be mlp or dcgan"),
        ("G_HIDDEN=16,x", "G_HIDDEN=16,x: it must be a whole number, "),
        ("EPOCHS=1,2", "EPOCHS=1,2"),
        ("IMAGE_SIZE=8,8,3", "IMAGE_SIZE=8,8,3: it must be a whole number, 2 to 1024 or width,"),
        ("PRIOR=1,-1", "PRIOR=1,-1: it must be normal or sphere or low,high"),
        ("DATA=", "DATA="),
        ("EPOCHES=2", "no setting EPOCHES; see --help"),
        ("5", "no spaces around ="),
    ],
)
def test_a_bad_setting_is_told_in_one_line_and_nothing_of_it_runs(
    tmp_path, monkeypatch, capsys, words, told
):
    monkeypatch.chdir(tmp_path)
    assert gan.main(["DATA=digits", *(words.split(" ") if " = " in words else [words])]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and told in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, value", [("AUGMENT", "False"), ("EARLY_STOP", "None")])
def test_a_bad_constant_is_told_as_a_bad_word_is(small, capsys, monkeypatch, name, value):
    monkeypatch.setattr(gan, name, value)  # as edited, or set in a notebook
    assert gan.main(["DATA=digits"]) == 2
    assert f"{name}={value!r}: it must be" in capsys.readouterr().err


def test_a_notebook_can_train_and_go_on_and_gets_its_settings_and_signals_back(
    data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # which has no reconfigure()
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    numbers = signal.SIGINT, signal.SIGTERM
    before = gan.current_settings(), [*map(signal.getsignal, numbers)]
    settings = arguments(DATA=data, **TINY | {"GRADIENT_PENALTY": 0})
    for words in [*settings, "EPOCHS=1"], ["--resume", "EPOCHS=2"]:
        assert gan.main(words) == 0
        assert (gan.current_settings(), [*map(signal.getsignal, numbers)]) == before
    assert " 1/1 " in sys.stdout.getvalue() and " 2/2 " in sys.stdout.getvalue()
    assert gan.main(["EPOCHS=0"]) == 2


@pytest.mark.parametrize("how", ["%run", "closed stdout", "pasted into a cell"])
def test_the_script_runs_where_people_run_it(tmp_path, monkeypatch, how):
    np.save(tmp_path / "dots.npy", np.random.default_rng(0).integers(0, 256, (100, 8, 8), np.uint8))
    words = arguments(DATA="dots.npy", **TINY | {"EPOCHS": 1})
    if how == "pasted into a cell":
        source = SOURCE
        for word in words:
            name, _, value = word.partition("=")
            value = repr(value) if name == "DATA" else value
            source = re.sub(rf"^{name} = \S+", f"{name} = {value}", source, flags=re.MULTILINE)
        # With the words of the notebook itself:
        monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", None if how == "closed stdout" else io.StringIO())
    if how == "pasted into a cell":
        exec(compile(source, "<cell>", "exec"), {"__name__": "__main__"})  # noqa: S102
    else:
        monkeypatch.setattr(sys, "argv", ["gan.py", *words])
        runpy.run_path(str(ROOT / "gan.py"), run_name="__main__")
    assert (tmp_path / "samples" / "dots-001" / "epoch-001.png").exists()


def test_a_keras_that_is_set_up_otherwise_changes_nothing(tmp_path):
    (tmp_path / "keras").mkdir()
    theirs = {"image_data_format": "channels_first", "floatx": "float16", "backend": "jax"}
    (tmp_path / "keras" / "keras.json").write_text(json.dumps(theirs))
    code = "import gan; gan.change_settings({'MODEL': 'dcgan'}); g = gan.build_generator((8, 8, 1))"
    code += "; assert g.output_shape == (None, 8, 8, 1) and g.dtype == g.outputs[0].dtype"
    code += " == 'float32'; import keras; assert keras.config.floatx() == 'float32'"
    environment = os.environ | {"KERAS_HOME": str(tmp_path / "keras")}
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)


@pytest.mark.parametrize("end", ["os.abort()", "raise ImportError('a wrong protobuf')"])
def test_what_tensorflow_says_when_it_fails_to_load_reaches_the_screen(tmp_path, end):
    (tmp_path / "tensorflow").mkdir()
    words = f"import os; os.write(2, b'compiled to use AVX'); {end}"
    (tmp_path / "tensorflow" / "__init__.py").write_text(words)
    command = [sys.executable, str(ROOT / "gan.py"), "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert ended.returncode != 0 and "compiled to use AVX" in ended.stderr
