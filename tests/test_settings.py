"""The settings and the command line; and that gan.py stays a script that is read in one go."""

import io
import re
import signal
import sys

import pytest
from conftest import ROOT, TINY, arguments

import gan


def test_every_setting_has_a_line_with_a_comment_and_an_accepted_default():
    lines, dcgan = gan.BLOCK.split("# A new run with MODEL=dcgan")
    lines = lines.splitlines()
    assert [re.match(r"([A-Z]\w*) = .* # \S", line)[1] for line in lines] == list(gan.RULES)
    assert "DCGAN = {" in dcgan and all(gan.accepts(*item) for item in gan.DCGAN.items())
    assert all(gan.accepts(name, getattr(gan, name)) for name in gan.RULES)


def test_help_shows_the_options_and_settings_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        gan.main(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and gan.BLOCK in out
    assert all(option in out for option in ("--resume", "--sample N", "--run FOLDER"))
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize(
    "words, value",
    [
        ("EPOCHS=5", 5),
        ("LEARNING_RATE=1e-3", 0.001),
        ("G_HIDDEN=256,512", (256, 512)),
        ("G_HIDDEN=[256, 512]", (256, 512)),
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
    "word, told",
    [
        ("EPOCHS=two", "EPOCHS='two' will not do; it takes a whole number, 1 to 1000000"),
        ("EPOCHS='two'", "EPOCHS='two' will not do"),
        ("EPOCHS=2.0", "EPOCHS=2.0 will not do; it takes a whole number, "),
        ("EPOCHS=open('made', 'w')", "a whole number, "),
        ("EPOCHS=1+1", "EPOCHS='1+1'"),
        ("AUGMENT=1", "AUGMENT=1 will not do; it takes True or False"),
        ("LEARNING_RATE=nan", "LEARNING_RATE='nan' will not do; it takes 1e-12 to 1e12"),
        ("MODEL=vae", 'MODEL=\'vae\' will not do; it takes "mlp", or "dcgan"'),
        ("G_HIDDEN=16,x", "G_HIDDEN='16,x' will not do; it takes a whole number, "),
        ("EPOCHS=1,2", "EPOCHS=(1, 2)"),
        ("PRIOR=1,-1", "PRIOR=(1, -1)"),
        ("DATA=", "DATA=''"),
        ("EPOCHES=2", "no setting EPOCHES; see --help"),
        ("5", "no setting 5; see --help"),
    ],
)
def test_what_will_not_do_is_told_in_one_line_and_nothing_of_it_runs(
    tmp_path, monkeypatch, capsys, word, told
):
    monkeypatch.chdir(tmp_path)
    assert gan.main(["DATA=digits", word]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and told in err
    assert not list(tmp_path.iterdir())


def test_a_range_includes_its_ends_and_nothing_beyond():
    ranges = 0
    for name, rule in gan.RULES.items():
        for low, high in re.findall(r"^([\d.e-]+) to ([\d.e]+)", rule):
            ranges += 1
            number = float if not re.match(r"\d+ to", rule) else int
            low, high = number(low), number(high)
            assert gan.accepts(name, low) and gan.accepts(name, high), name
            assert not gan.accepts(name, low - 1) and not gan.accepts(name, 2 * high), name
    assert ranges > 20


def test_a_notebook_can_train_and_go_on_and_gets_its_settings_and_signals_back(
    data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # which has no reconfigure()
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    numbers = signal.SIGINT, signal.SIGTERM
    before = [getattr(gan, name) for name in gan.RULES], [*map(signal.getsignal, numbers)]
    settings = arguments(DATA=data, **TINY | {"GRADIENT_PENALTY": 0})
    for words in [*settings, "EPOCHS=1"], ["--resume", "EPOCHS=2"]:
        assert gan.main(words) == 0
        after = [getattr(gan, name) for name in gan.RULES], [*map(signal.getsignal, numbers)]
        assert after == before
    assert " 1/1 " in sys.stdout.getvalue() and " 2/2 " in sys.stdout.getvalue()
    assert gan.main(["EPOCHS=0"]) == 2


def test_the_script_has_at_most_950_lines_of_at_most_100_characters():
    lines = (ROOT / "gan.py").read_text("utf-8").splitlines()
    assert len(lines) <= 950 and max(map(len, lines)) <= 100
