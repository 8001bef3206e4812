"""The training-free filter of a search: which candidates become trials, and what choosing them cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from nas.objectives.score import ScoreSetup
from nas.space import Architecture


@dataclasses.dataclass(frozen=True)
class Filter:
    """Each new trial is the best, by the score of ``setup``, of the first ``candidates`` of its turn."""

    setup: ScoreSetup
    candidates: int


class TimedScore:
    """A score of architectures that adds up the seconds it took.

    ``score`` gives the value, higher is better and NaN where there is none, and its seconds.
    """

    def __init__(
        self, score: Callable[[Architecture], tuple[float, float]] = lambda arch: (math.nan, 0.0)
    ) -> None:
        self._score, self._seconds = score, 0.0

    def __call__(self, arch: Architecture) -> float:
        value, seconds = self._score(arch)
        self._seconds += seconds
        return value

    def take_seconds(self) -> float:
        """The seconds since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds
