"""The measures of benchmark.py, where their value is known."""

import argparse
import math

import benchmark
import numpy as np
import pytest
from benchmark import frechet, multiplications, parzen, precision_recall


def normal(count, width):
    return np.random.default_rng(0).normal(size=(count, width))


@pytest.mark.parametrize("shift", [np.zeros(8), np.arange(8)])
def test_frechet_distance_of_a_shifted_set_is_the_shifts_square(shift):
    rows = normal(500, 8) @ np.diag(range(1, 9))
    assert frechet(rows, rows + shift) == pytest.approx(np.square(shift).sum(), abs=1e-9)


def test_parzen_with_one_sample_is_a_gaussian():
    test = normal(300, 5) * 0.2
    found, sigma = parzen(np.zeros((1, 5)), test, test)
    assert sigma == pytest.approx(0.2, rel=0.1)
    expected = -np.square(test).sum(1).mean() / (2 * sigma**2)
    assert found == pytest.approx(expected - 5 / 2 * math.log(2 * math.pi * sigma**2))


def test_precision_and_recall_are_shares_of_what_lies_near():
    rows = normal(600, 4)
    assert precision_recall(rows, rows, chunk=70) == (1, 1)
    assert precision_recall(rows, rows + 100) == (0, 0)
    rows[:300] += 100
    precision, recall = precision_recall(rows, rows[:300] + 1e-6)  # one of two modes
    assert precision == 1 and recall == pytest.approx(0.5, abs=0.01)


def test_multiplications_of_an_iteration_are_counted_by_hand():
    # Z = 2, Hg = 3, P = 5, Hd = 7: g = 6 + 15, d = 35 + 7
    plain, penalty = 2 * (42 + 42 + 7) + 21 + 42 + 42 + 21 + 15, 2 * (42 + 42 + 35)
    assert multiplications(2, 3, 7, 5, 0) == plain
    assert multiplications(2, 3, 7, 5, 0.25) == plain + penalty / 4


def test_a_whole_run_is_measured_and_all_recipes_are_found(small, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "median_seconds", lambda *_: 1.0)  # TensorFlow's own start
    settings = ["DATA=digits", "EPOCHS=1", "G_HIDDEN=8", "D_HIDDEN=8"]
    benchmark.overhead(argparse.Namespace(settings=settings))
    assert "epochs: 1;" in capsys.readouterr().out
    assert len(benchmark.recipe_settings()) == 6
