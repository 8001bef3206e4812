"""Rank correlations with bootstrap intervals."""

from __future__ import annotations

import math

import numpy as np
import scipy  # scipy.stats is imported where it is first used: it takes half a second

from nas.report.statistics.bootstrap import RESAMPLES, Estimate, Values, resample_counts, with_interval

_BY_PAIRS = 3000  # items up to which Kendall's resamples are products with all their pairs


def kendall(
    x: Values,
    y: Values,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Kendall's tau-b with a bootstrap interval over items; pairs with a NaN are left out.

    NaN where one side has a single value. Where that is so in a resample it is left out of the interval.
    """
    a, b = _known(x, y)
    if len(a) < 2:
        return Estimate(*np.full(3, math.nan))
    value, _ = scipy.stats.kendalltau(a, b)
    rng = np.random.default_rng(seed)
    if len(a) > _BY_PAIRS:
        chosen = (rng.integers(len(a), size=len(a)) for _ in range(resamples))
        drawn = np.array([scipy.stats.kendalltau(a[k], b[k])[0] for k in chosen])
    else:
        # In a resample that has item i c_i times, the pairs that agree less those that do not are c S c / 2,
        # where S_ij is 1, 0 or -1; and so on for the pairs that are not tied on one side.
        counts = resample_counts(rng, len(a), resamples).astype(np.float32)
        signs = [np.sign(v[:, None] - v[None, :]).astype(np.float32) for v in (a, b)]
        agree, *untied = (
            np.einsum("rj,rj->r", counts @ s, counts, dtype=float)
            for s in (signs[0] * signs[1], *map(abs, signs))
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = agree / np.sqrt(untied[0] * untied[1])
    return _correlation(value, drawn, level)


def spearman(
    x: Values,
    y: Values,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Spearman's rank correlation, its interval and special cases as for `kendall`."""
    a, b = _known(x, y)
    if len(a) < 2:
        return Estimate(*np.full(3, math.nan))
    value, _ = scipy.stats.spearmanr(a, b) if np.ptp(a) and np.ptp(b) else (math.nan, 0)
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, resamples, step := max(1, 2**22 // len(a))):
        counts = resample_counts(rng, len(a), min(step, resamples - start))
        ranks = [_ranks(counts, v) for v in (a, b)]
        both, *each = (
            np.einsum("ri,ri,ri->r", counts, u, v) for u, v in (ranks, ranks[:1] * 2, ranks[1:] * 2)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn.append(both / np.sqrt(each[0] * each[1]))
    return _correlation(value, np.concatenate(drawn), level)


def _ranks(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The rank, from the middle, of each item in each resample: as ``counts``, [resamples, items]."""
    _, first, place = np.unique(np.sort(values), return_index=True, return_inverse=True)
    order = np.argsort(values, kind="stable")
    equal = np.add.reduceat(counts[:, order], first, axis=1)
    middle = np.cumsum(equal, axis=1) - equal / 2 - len(values) / 2
    back = np.empty(len(values), dtype=int)
    back[order] = place
    return middle[:, back]


def _known(x: Values, y: Values) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    known = ~(np.isnan(a) | np.isnan(b))
    return a[known], b[known]


def _correlation(value: float, drawn: np.ndarray, level: float) -> Estimate:
    if math.isnan(value):
        return Estimate(*np.full(3, math.nan))
    known = drawn[~np.isnan(drawn)]
    return with_interval(np.array([value]), known[:, None], level, (), known=True)
