"""The best of random experiments, against integrals, closed forms and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from scipy.special import ndtr

from nas.report.statistics import accuracy_variance, chances_of_being_best, efficiency_curve, experiments

VALID = np.array([0.90, 0.93, 0.50, 0.92, 0.91, 0.70, 0.925, 0.10])
TEST = np.array([0.89, 0.90, 0.52, 0.93, 0.88, 0.66, 0.91, 0.10])


def test_of_two_the_chances_are_in_closed_form():
    mean, variance = np.array([[0.5, 0.6], [0.7, 0.7]]), np.array([[0.01, 0.03], [0.01, 0.04]])
    first = ndtr((mean[:, 0] - mean[:, 1]) / np.sqrt(variance.sum(axis=1)))
    np.testing.assert_allclose(
        chances_of_being_best(mean, variance), np.stack([first, 1 - first], axis=1), atol=0.015
    )


def test_of_many_the_chances_are_integrals():
    variance = accuracy_variance(VALID, 200)
    np.testing.assert_allclose(variance[0], 0.90 * 0.10 / 199)
    deviation = np.sqrt(variance)

    def density(z: float, k: int) -> float:
        others = np.delete(np.arange(len(VALID)), k)
        below = ndtr((z - VALID[others]) / deviation[others]).prod()
        return float(scipy.stats.norm.pdf(z, VALID[k], deviation[k]) * below)

    exact = [scipy.integrate.quad(density, 0.7, 1.1, args=(k,), limit=200)[0] for k in range(len(VALID))]
    assert math.fsum(exact) == pytest.approx(1, abs=1e-6)
    found = chances_of_being_best(VALID[None], variance[None])[0]
    np.testing.assert_allclose(found, exact, atol=0.015)
    np.testing.assert_allclose(found.sum(), 1)
    assert found[1] < 0.6  # the best by validation is far from certain to be


def test_certain_accuracies_share_a_tie():
    found = chances_of_being_best(np.array([[1.0, 0.4, 1.0]]), np.zeros((1, 3)))
    np.testing.assert_allclose(found, [[0.5, 0, 0.5]])


def test_the_best_of_one_experiment_by_drawing():
    found = experiments(VALID, TEST, valid_images=200, test_images=1000)
    assert (found.size, found.weights.shape) == (8, (1, 8))
    rng = np.random.default_rng(5)
    seen = rng.normal(VALID, np.sqrt(VALID * (1 - VALID) / 199), (200_000, 8))
    best = seen.argmax(axis=1)
    truth = rng.normal(TEST[best], np.sqrt(TEST * (1 - TEST) / 999)[best])
    assert found.mean[0] == pytest.approx(truth.mean(), abs=3e-4)
    assert found.deviation[0] == pytest.approx(truth.std(), rel=0.02)
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    np.testing.assert_allclose(found.quantiles(levels), np.quantile(truth, levels), atol=1e-3)


def test_the_curve_cuts_the_trials_in_their_order():
    curve = efficiency_curve(VALID[:7], TEST[:7], valid_images=10**12, test_images=10**12)
    assert [found.size for found in curve] == [1, 2, 4]
    # As good as exact on so many images: the test accuracy of the best by validation.
    np.testing.assert_allclose(curve[0].mean, TEST[:7], atol=1e-5)
    np.testing.assert_allclose(curve[1].mean, [0.90, 0.93, 0.88], atol=1e-5)  # the seventh is left over
    np.testing.assert_allclose(curve[2].mean, [0.90], atol=1e-5)
    np.testing.assert_allclose(curve[0].quantiles([0.5]), [0.89], atol=1e-4)


def test_a_curve_of_many_trials_follows_order_statistics():
    """With test equal to validation, and both exact, the best of s of even(0, 1) has the mean s / (s + 1)."""
    values = np.random.default_rng(1).random(2**9)
    for found in efficiency_curve(values, values, valid_images=10**12, test_images=10**12)[:7]:
        expected = found.size / (found.size + 1)
        assert found.mean.mean() == pytest.approx(expected, abs=4 * 0.3 / math.sqrt(len(found.mean)))
        if len(found.mean) > 100:
            assert found.quantiles([0.25])[0] == pytest.approx(0.25 ** (1 / found.size), abs=0.08)


def test_more_than_all_trials():
    with pytest.raises(ValueError, match="size=9 is more than the 8 trials"):
        experiments(VALID, TEST, valid_images=10, test_images=10, size=9)
