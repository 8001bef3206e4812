"""Rows of a report compared by pair: the test accuracies of their searches from equal seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from nas.record import Run
from nas.report.result_table import NO_VALUE
from nas.report.statistics import FEWEST, holm, mean_interval, paired_tests

HEAD = ("First", "Second", "Seeds", "Wins", "Losses", "Ties", "Mean difference (points)", "p (Holm)")


def pair_cells(groups: Mapping[str, Sequence[Run]]) -> list[list[str]]:
    """A table of cells, its head first: a line for each two rows of searches on the same images from common seeds.

    A search counts with the mean test accuracy of its final trainings. The p value is Wilcoxon's signed-rank test,
    with Holm's correction for the pairs tested, from `FEWEST` common seeds on.
    """
    tested = {
        label: {run.seed: accuracy for run in runs if not math.isnan(accuracy := _test_accuracy(run))}
        for label, runs in groups.items()
    }
    lines: list[list[str]] = []
    p_values: dict[int, float] = {}
    for first, second in itertools.combinations(tested, 2):
        common = [seed for seed in tested[first] if seed in tested[second]]
        if not common or groups[first][0].images != groups[second][0].images:
            continue
        a, b = (np.asarray([tested[label][seed] for seed in common]) for label in (first, second))
        (test,) = paired_tests({first: a, second: b})
        if len(common) >= FEWEST:
            p_values[len(lines)] = test.p
        counts = [f"{n:,}" for n in (len(common), test.wins, test.losses, test.ties)]
        lines.append([first, second, *counts, f"{100 * float((a - b).mean()):+.2f}", NO_VALUE])
    for line, p in zip(p_values, holm(list(p_values.values())).tolist(), strict=True):
        lines[line][-1] = f"{p:.2g}"
    return [list(HEAD), *lines]


def _test_accuracy(run: Run) -> float:
    return mean_interval(final.test_accuracy for final in run.best_finals if final.error is None).mean
