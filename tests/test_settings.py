"""The settings and the command line, and where people run them."""

import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading

import pytest
from conftest import DEFAULTS, ROOT, TINY, arguments
from test_run import posix

import gan

SOURCE = (ROOT / "gan.py").read_text("utf-8")
BLOCK = SOURCE.partition("# fmt: off\n")[2].partition("# fmt: on")[0]


def test_every_constant_of_the_block_is_a_setting_with_an_accepted_default():
    names = re.findall(r"^([A-Z]\w*) = ", BLOCK, re.MULTILINE)
    assert sorted(names) == sorted(gan.SETTINGS)
    assert all(gan.check(name, value) == value for name, value in DEFAULTS.items())


def test_help_shows_the_options_and_settings_in_80_columns(capsys):
    assert gan.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} = {value!r}\n" in out for name, value in DEFAULTS.items())
    assert all(option in out for option in ("--resume", "--sample 1000", "--run FOLDER"))
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize(
    "words, value",
    [
        ("EPOCHS=5", 5),
        ("EPOCHS\uff1d5", 5),
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
    name, taken = gan.parse_setting(words)
    assert words.startswith(name) and gan.check(name, taken) == value


@pytest.mark.parametrize(
    "words, told",
    [
        ("EPOCHS=two", "EPOCHS='two': it must be 1 of the whole numbers 1 to 1,000,000"),
        ("EPOCHS=open('made', 'w')", "it must be 1 of the whole numbers"),
        ("AUGMENT=1", "AUGMENT=1: it must be True or False"),
        ("LEARNING_RATE=nan", "LEARNING_RATE='nan': it must be None or 1 of the numbers 0 to"),
        ("MODEL=vae", "MODEL='vae': it must be mlp or dcgan"),
        ("IMAGE_SIZE=8,8,3", "IMAGE_SIZE=(8, 8, 3): it must be 1 or 2 of the whole numbers"),
        ("PRIOR=1", "PRIOR=1: it must be normal or sphere or 2 of the numbers"),
        ("DATA=", "DATA='': it must be a path"),
        ("DATA=https://x.org/a.zip", "it must be a path, not an address"),
        (
            "DATA=My|Pictures",
            'with no spaces, or quoted: "DATA=My Pictures"',
        ),
        ("EPOCHS|=|5", "EPOCHS=value, with no spaces"),
        ("--epochs|5", "--epochs: a setting is written EPOCHS=value"),
        ("epochs=5", "epochs=5: a setting is written EPOCHS=value"),
        ("EPOCS=5", "EPOCS=5: a setting is written EPOCHS=value"),
        ("--resume|a run", "a run: --run FOLDER"),
    ],
)
def test_a_bad_word_is_told_in_one_line_with_what_was_meant_and_nothing_of_it_runs(
    tmp_path, monkeypatch, capsys, words, told
):
    (tmp_path / "a run").mkdir()
    monkeypatch.chdir(tmp_path)
    assert gan.main(["OUT=.", *words.split("|")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and told in err
    assert os.listdir() == ["a run"]


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("AUGMENT", "False", "AUGMENT='False': it must be True or False"),
        ("EARLY_STOP", "None", "EARLY_STOP='None': it must be"),
        (
            "DATA",
            "D:\\data\train",
            "\\train': no such file or folder; in Python write / or r'...' for a \\",
        ),
    ],
)
def test_a_bad_constant_is_told_as_a_bad_word_is(capsys, monkeypatch, name, value, told):
    monkeypatch.setattr(gan, name, value)  # as edited, or set in a notebook
    assert gan.main([]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and told in err


def test_a_notebook_can_train_also_in_a_thread_and_gets_back_what_it_had_set(
    data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # which has no reconfigure()

    def state():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return gan.current_settings(), handlers, gan.keras.config.dtype_policy().name

    settings = arguments(DATA=data, **TINY | {"GRADIENT_PENALTY": 0})
    gan.keras.config.set_dtype_policy("mixed_float16")
    try:
        before, ends = state(), []
        assert gan.main([*settings, "EPOCHS=1"]) == 0
        assert state() == before
        words = ["--resume", "EPOCHS=2"]
        thread = threading.Thread(target=lambda: ends.append(gan.main(words)))
        thread.start()
        thread.join()
        assert ends == [0] and state() == before
        assert gan.main(["EPOCHS=0"]) == 2 and state() == before
    finally:
        gan.keras.config.set_dtype_policy("float32")
    assert " 1/1 " in sys.stdout.getvalue() and " 2/2 " in sys.stdout.getvalue()


@pytest.mark.parametrize("how", ["%run", "no stdout", "pasted cell", "interactive window"])
def test_the_script_runs_where_people_run_it_with_the_constants_as_they_were_edited(
    data, tmp_path, monkeypatch, how
):
    settings = {"DATA": data.name, "OUT": "~/samples", "EPOCHS": 1, "GRID": 2, "MODEL": "dcgan"}
    settings |= {"Z_SIZE": 5, "CATEGORIES": 3, "CHANNELS": 1, "BATCH_SIZE": 100, "WARM_UP": 9}
    settings |= {"LEARNING_RATE": 0.002, "GRADIENT_PENALTY": 0.7, "BETA_2": 0.8}
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", None if how == "no stdout" else io.StringIO())
    if how in ("%run", "no stdout"):  # the latter as in pythonw
        monkeypatch.setattr(sys, "argv", ["gan.py", *arguments(**settings)])
        runpy.run_path(str(ROOT / "gan.py"), run_name="__main__")
    else:  # where the words are the notebook's own; comments are text that nothing reads
        monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
        block = re.sub("#.*", "# x", BLOCK)
        for name, value in settings.items():
            block = re.sub(rf"^{name} = \S+", f"{name} = {value!r}", block, flags=re.MULTILINE)
        cell = compile(SOURCE.replace(BLOCK, block), "<cell>", "exec")
        variables = {"__file__": str(ROOT / "gan.py")} if how == "interactive window" else {}
        exec(cell, variables | {"__name__": "__main__"})  # noqa: S102
    saved = json.loads((tmp_path / "samples" / "dots-001" / "settings.json").read_text())
    expected = settings | {"DATA": str(data), "OUT": str(tmp_path / "samples")}
    assert saved.items() >= expected.items()
    assert (tmp_path / "samples" / "dots-001" / "epoch-001.png").exists()


def test_a_keras_that_is_set_up_for_another_backend_changes_nothing(tmp_path):
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "keras.json").write_text(json.dumps({"backend": "jax"}))
    code = "import gan; assert gan.keras.config.backend() == 'tensorflow'"
    environment = os.environ | {"KERAS_HOME": str(tmp_path / "keras")}
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)


@pytest.mark.parametrize(
    "code, status, told",
    [
        ("os.write(2, b'compiled to use AVX'); sys.exit(7)", 7, ""),
        ("raise ImportError('a wrong protobuf')", 1, "(?s)Traceback.*a wrong protobuf\n"),
        ("raise KeyboardInterrupt", 1, "gan.py: stopped before it began\n"),
        ("__version__ = '2.17.1'", 1, "gan.py needs Python 3.10 and .* this is .* 2.17.1\n"),
        ("__version__ = '2.20.0'; sys.version_info = 3, 9, 1", 1, "gan.py needs .*\n"),
        pytest.param("sys.exit(7)  # without a descriptor 2", 7, "", marks=posix),
    ],
)
def test_of_what_is_said_while_tensorflow_loads_failures_alone_are_shown(
    tmp_path, code, status, told
):
    for name, text in (("tensorflow", f"import os, sys; {code}"), ("keras", "layers = None")):
        (tmp_path / f"{name}.py").write_text(text)
    closed = {"preexec_fn": lambda: os.close(2)} if "descriptor" in code else {}  # as by 2>&-
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "gan.py")]
    pipe = subprocess.PIPE
    ended = subprocess.run(command, check=False, env=environment, stderr=pipe, text=True, **closed)
    assert ended.returncode == status and re.fullmatch(told, ended.stderr), ended.stderr
