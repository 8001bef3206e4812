"""Where a sequence of layers repeats itself: the equal consecutive blocks that most networks are made of."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np


class Repeat(NamedTuple):
    """Layers ``start`` to ``start + period * times``, of which every ``period`` are alike."""

    start: int
    period: int
    times: int
    dense: bool = False  # one layer after another, each reading all before it (Huang et al. 2017)

    @property
    def end(self) -> int:
        return self.start + self.period * self.times


def repeats(keys: Sequence[Hashable], inputs: Sequence[Sequence[int]], longest: int = 64) -> list[Repeat]:
    """Splits layers into runs of repeated parts, each as long as can be; ``times`` 1 where nothing repeats.

    Alike are layers of equal ``keys``. ``inputs`` are the numbers of the values each layer reads, i being the output
    of the i-th layer, from 1: of a part only the last layer is read outside it. Periods are at most ``longest``.
    """
    numbers: dict[Hashable, int] = {}
    signature = np.array([numbers.setdefault(key, len(numbers)) for key in keys], int)
    n = len(signature)
    runs = {}  # by period, how many layers from each position on equal those a period later
    for period in range(1, min(longest, n // 2) + 1):
        differ = np.flatnonzero(signature[:-period] != signature[period:])
        ends = np.append(differ, n - period)
        runs[period] = ends[np.searchsorted(ends, np.arange(n - period))] - np.arange(n - period)
    last_reader = np.arange(n)
    for k, read in enumerate(inputs):
        for i in read:
            if i:
                last_reader[i - 1] = k

    @functools.cache
    def best_at(start: int) -> Repeat:
        best = Repeat(start, 1, 1)
        for period, run in runs.items():
            times = 1 + int(run[start]) // period if start < len(run) else 1
            if times * period <= best.period * best.times or times == 1:
                continue
            inner = last_reader[start : start + period - 1]
            if inner.max(initial=0) < start + period:
                best = Repeat(start, period, times)
        return best

    found, start = [], 0
    while start < n:
        best = best_at(start)
        # A stem of the same layers as the blocks behind it is no part of them.
        length = best.end - start
        if any(r.end - r.start > length for r in map(best_at, range(start + 1, min(best.end, n)))):
            best = Repeat(start, 1, 1)
        if best.times == 1 and found and found[-1].times == 1:
            found[-1] = found[-1]._replace(period=found[-1].period + 1)
        else:
            found.append(best)
        start = best.end
    return found
