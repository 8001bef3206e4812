"""The test accuracy that a random search of a given size comes to (Bergstra and Bengio, JMLR 13, 2012)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.special

from nas.report.statistics.bootstrap import Values

DRAWS = 10_000


class Experiments(NamedTuple):
    """Experiments of ``size`` trials each, the trials of each in a row of its own.

    ``weights`` [experiments, size]: the chance that a trial is the best of its experiment. ``mean`` and
    ``deviation`` [experiments]: of the test accuracy of the best (Bergstra and Bengio, JMLR 13, 2012,
    equations 5 and 6). ``test`` and ``test_deviation`` [experiments, size]: of each trial.
    """

    size: int
    weights: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    test: np.ndarray
    test_deviation: np.ndarray

    def quantiles(self, levels: Values) -> np.ndarray:
        """Of the test accuracy that one such experiment comes to: [levels].

        It is distributed as any trial's true test accuracy with that trial's weight (section 2.1), averaged
        over the experiments (section 2.2).
        """
        center, width = self.test.ravel(), np.maximum(self.test_deviation.ravel(), 1e-12)
        weights = self.weights.ravel() / len(self.weights)
        wanted = np.asarray(levels, dtype=float)
        low = np.full_like(wanted, (center - 9 * width).min())
        high = np.full_like(wanted, (center + 9 * width).max())
        for _ in range(60):
            middle = (low + high) / 2
            below = scipy.special.ndtr((middle[:, None] - center) / width) @ weights < wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2


def accuracy_variance(accuracy: Values, images: int) -> np.ndarray:
    """Of an accuracy measured on so many images, as that of a Bernoulli variable's mean."""
    found = np.asarray(accuracy, dtype=float)
    return found * (1 - found) / (images - 1)


def chances_of_being_best(mean: np.ndarray, variance: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """How likely each of several normal variables is the largest: [experiments, trials], rows adding up to 1.

    Estimated from `DRAWS` draws, as in Bergstra and Bengio 2012, section 2.1; a tie is shared.
    """
    if mean.shape[1] == 1:
        return np.ones(mean.shape)
    draws = np.random.default_rng(seed).standard_normal((DRAWS, mean.shape[1]))
    chances = np.empty(mean.shape)
    for k, (center, width) in enumerate(zip(mean, np.sqrt(variance), strict=True)):
        scores = center + width * draws
        best = scores == scores.max(axis=1, keepdims=True)
        chances[k] = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    return chances


def experiments(
    valid: Values,
    test: Values,
    *,
    valid_images: int,
    test_images: int,
    size: int | None = None,
    seed: int = 0,
) -> Experiments:
    """Independent trials as experiments of ``size`` trials (default: one of all), in the order given.

    Inputs: each trial's accuracy on validation and on test, and on how many images those were measured. What
    the best trial of an experiment is, is as uncertain as the validation accuracies are; its test accuracy is
    therefore a mixture of the trials' (Bergstra and Bengio 2012, section 2.1). Trials left over by ``size``
    are left out.
    """
    size = len(valid) if size is None else size
    count = len(valid) // size
    if count < 1:
        raise ValueError(f"experiments: size={size} is more than the {len(valid)} trials")
    chosen, reported = (
        np.asarray(values, dtype=float)[: count * size].reshape(count, size) for values in (valid, test)
    )
    weights = chances_of_being_best(chosen, accuracy_variance(chosen, valid_images), seed=seed)
    variance = accuracy_variance(reported, test_images)
    mean = (weights * reported).sum(axis=1)
    second = (weights * (reported**2 + variance)).sum(axis=1)
    deviation = np.sqrt(np.maximum(second - mean**2, 0))
    return Experiments(size, weights, mean, deviation, reported, np.sqrt(variance))


def efficiency_curve(
    valid: Values, test: Values, *, valid_images: int, test_images: int, seed: int = 0
) -> tuple[Experiments, ...]:
    """The random-experiment efficiency curve: `experiments` of 1, 2, 4, ... of the same trials, which must be
    independent and identically distributed (Bergstra and Bengio 2012, section 2.2 and figure 2)."""
    sizes = [2**k for k in range(len(valid).bit_length())]
    on = {"valid_images": valid_images, "test_images": test_images, "seed": seed}
    return tuple(experiments(valid, test, size=size, **on) for size in sizes)
