"""Ranks and paired tests of methods on common tasks or seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import scipy  # scipy.stats is imported where it is first used: it takes half a second
import scipy.special

from nas.report.statistics.bootstrap import Values


class CriticalDifference(NamedTuple):
    """What a critical-difference diagram shows (Demšar, JMLR 7, 2006, section 3.2.2 and figure 1).

    ``names`` and ``mean_ranks`` [methods], the best first (rank 1: best on every block). ``statistic`` and
    ``p_value`` are Friedman's, that all are the same. ``difference``: mean ranks this far apart are told
    apart by Nemenyi's test at the level asked for. ``groups``: the largest sets of two or more, next to
    each other in rank, none of which are told apart: the bars of the diagram.
    """

    names: tuple[str, ...]
    mean_ranks: np.ndarray
    blocks: int
    statistic: float
    p_value: float
    difference: float
    groups: tuple[tuple[str, ...], ...]


def critical_difference(
    scores: Mapping[str, Values],
    alpha: float = 0.05,
    test: Literal["nemenyi", "wilcoxon"] = "nemenyi",
) -> CriticalDifference:
    """Ranks methods by their scores on common blocks (tasks, or seeds of one), higher being better.

    With ``test="wilcoxon"`` the groups are of methods that `paired_tests` does not tell apart after Holm's
    correction, which does not depend on which other methods are compared (Benavoli et al., JMLR 17, 2016).
    Friedman's statistic is corrected for ties. Needs two methods and two blocks.
    """
    names = list(scores)
    table = np.stack([np.asarray(scores[name], dtype=float) for name in names], axis=1)
    blocks, methods = table.shape
    if methods < 2 or blocks < 2 or np.isnan(table).any():
        raise ValueError("critical_difference: needs two methods and two blocks, and a score for each")
    ranks = scipy.stats.rankdata(-table, axis=1)
    spread = ((ranks - (methods + 1) / 2) ** 2).sum() / (blocks * (methods - 1))  # less where there are ties
    mean_ranks = ranks.mean(axis=0)
    between = blocks * ((mean_ranks - (methods + 1) / 2) ** 2).sum()
    statistic = between / spread if spread else 0.0
    order = np.argsort(mean_ranks, kind="stable")
    ranked = tuple(names[k] for k in order)
    difference = float(scipy.stats.studentized_range.isf(alpha, methods, math.inf)) * math.sqrt(
        methods * (methods + 1) / (12 * blocks)
    )
    if test == "nemenyi":
        gaps = mean_ranks[order][None, :] - mean_ranks[order][:, None]
        apart = np.abs(gaps) >= difference
    else:
        apart = np.zeros((methods, methods), dtype=bool)
        for pair in paired_tests(scores):
            i, j = ranked.index(pair.first), ranked.index(pair.second)
            apart[i, j] = apart[j, i] = pair.p_holm < alpha
    return CriticalDifference(
        ranked,
        mean_ranks[order],
        blocks,
        float(statistic),
        float(scipy.special.chdtrc(methods - 1, statistic)),
        difference,
        tuple(tuple(ranked[k] for k in range(i, j)) for i, j in _bars(apart)),
    )


def _bars(apart: np.ndarray) -> list[tuple[int, int]]:
    """The longest runs [i, j) of two or more in which no two are ``apart``."""
    bars: list[tuple[int, int]] = []
    for i in range(len(apart)):
        j = i + 1
        while j < len(apart) and not apart[i:j, j].any():
            j += 1
        if j > i + 1 and (not bars or j > bars[-1][1]):
            bars.append((i, j))
    return bars


class PairedTest(NamedTuple):
    """``first`` against ``second`` on common blocks; ``difference`` is the median of first less second."""

    first: str
    second: str
    wins: int
    losses: int
    ties: int
    difference: float
    p: float
    p_holm: float
    """After Holm's correction for all tests made together."""


def paired_tests(
    scores: Mapping[str, Values],
    against: str | None = None,
    test: Literal["wilcoxon", "sign"] = "wilcoxon",
) -> tuple[PairedTest, ...]:
    """Tests, two-sided, that the scores of two methods on common blocks differ.

    Of all pairs, or of every other method with ``against``. Wilcoxon's signed ranks, with the ranks of equal
    scores split evenly (Demšar 2006, section 3.1.3), or the sign test on wins and losses alone.
    """
    if against is not None:
        pairs = [(name, against) for name in scores if name != against]
    else:
        pairs = list(itertools.combinations(scores, 2))
    tests: list[PairedTest] = []
    for first, second in pairs:
        gaps = np.asarray(scores[first], dtype=float) - np.asarray(scores[second], dtype=float)
        wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
        if not wins + losses:
            p = 1.0
        elif test == "sign":
            p = scipy.stats.binomtest(wins, wins + losses).pvalue
        else:
            _, p = scipy.stats.wilcoxon(gaps, zero_method="zsplit")
        ties, difference = len(gaps) - wins - losses, float(np.median(gaps))
        tests.append(PairedTest(first, second, wins, losses, ties, difference, float(p), math.nan))
    corrected = holm([test.p for test in tests])
    return tuple(test._replace(p_holm=p) for test, p in zip(tests, corrected.tolist(), strict=True))


def holm(p_values: Values) -> np.ndarray:
    """P values corrected for being many (Holm 1979): each is significant at a level that it is below."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected
