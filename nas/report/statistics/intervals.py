"""Means with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy.special


class Interval(NamedTuple):
    """A mean of ``n`` values with its confidence interval; NaN where there are too few values."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


FEWEST = 5
"""So many values have an interval. That of two or three is as wide as the whole scale, which says nothing: what stands
for it then is their number, and the values themselves where there is room."""


def mean_interval(
    values: Iterable[float],
    level: float = 0.95,
    *,
    within: tuple[float, float] = (-math.inf, math.inf),
    fewest: int = FEWEST,
) -> Interval:
    """Mean and Student's t interval; NaN values are left out, and fewer than ``fewest`` have no interval.

    The t interval holds its level for a handful of seeds, where bootstrap intervals are too narrow. It is cut to
    ``within``, the values that are possible: then it is not symmetric.
    """
    kept = np.asarray([value for value in values if not math.isnan(value)], dtype=float)
    if not len(kept):
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(kept.mean())
    if len(kept) < max(2, fewest):
        return Interval(mean, math.nan, math.nan, len(kept))
    half = float(
        scipy.special.stdtrit(len(kept) - 1, (1 + level) / 2) * kept.std(ddof=1) / math.sqrt(len(kept))
    )
    low, high = within
    return Interval(mean, max(low, mean - half), min(high, mean + half), len(kept))


FRACTION = (0.0, 1.0)
"""Where an accuracy is."""
