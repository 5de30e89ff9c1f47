"""The measures of benchmark.py, where their value is known."""

import math

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


@pytest.mark.parametrize("shift, share", [(0, 1), (100, 0)])
def test_precision_and_recall_are_1_of_the_same_set_and_0_of_sets_far_apart(shift, share):
    rows = normal(300, 6)
    assert precision_recall(rows, rows + shift, chunk=70) == (share, share)


def test_half_of_the_modes_is_full_precision_and_half_recall():
    real = normal(600, 4)
    real[:300] += 100
    precision, recall = precision_recall(real, real[:300] + 1e-6)
    assert precision == 1 and recall == pytest.approx(0.5, abs=0.01)


def test_multiplications_of_an_iteration_are_counted_by_hand():
    # Z = 2, Hg = 3, P = 5, Hd = 7: g = 6 + 15, d = 35 + 7
    discriminator = 2 * (42 + 42 + 7)
    generator = 21 + 42 + 42 + 21 + 15
    assert multiplications(2, 3, 7, 5, 0) == discriminator + generator
    penalty = 2 * (42 + 42 + 35)
    assert multiplications(2, 3, 7, 5, 1) == discriminator + generator + penalty
    assert multiplications(2, 3, 7, 5, 0.25) == discriminator + generator + penalty / 4
