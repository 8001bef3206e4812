"""Local search (White, Nolen and Savani, "Exploring the loss landscape in neural architecture search", UAI
2021, algorithm 1; in its first version, of 2020, "Local search is state of the art for NAS benchmarks")."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

from nas.errors import one_of
from nas.space import Architecture, SearchSpace
from nas.strategies.base import (
    FullBudget,
    Strategy,
    StrategyConfig,
    StrategyRecord,
    drawn,
    generator,
    rung_score,
)
from nas.trial import Trial

STARTS = 100  # draws for a start that is new, before one that is not is taken


@dataclasses.dataclass(frozen=True)
class LocalSearchConfig(StrategyConfig):
    climb: Literal["first", "best"] = "first"
    """go to the first neighbour found better, or see them all and go to the best"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.climb not in ("first", "best"):
            raise one_of("strategy: climb", self.climb, ("first", "best"))


def local_search(space: SearchSpace, config: LocalSearchConfig) -> Strategy:
    """Climbs over ``space.neighbours`` from random starts, each until no neighbour is better.

    Neighbours are tried in random order. With ``config.climb="best"`` all of them before the climb goes to
    the best, as in the paper; with ``"first"`` it goes to the first that is better, as in the authors' code
    by default. What has been tried is remembered, not tried again. Idle workers try the neighbours that
    may come next and begin further climbs, but where a climb goes does not depend on timing. Without end
    unless ``config.trials`` is set.
    """
    search = _Search(space, config)
    return FullBudget(space, config, search.propose, take=search.take, observe=search.observe)


class _Climb:
    """One climb: the best it has seen, and what it wants to see next: first its start, then neighbours."""

    def __init__(self, number: int, start: Architecture) -> None:
        self.number = number
        self.here: Architecture | None = None  # whose neighbours are wanted
        self.wanted: tuple[Architecture, ...] = (start,)  # in the order tried
        self.seen = 0  # so many of these are told
        self.best, self.best_score = start, -math.inf
        self.steps = 0


class _Search:
    def __init__(self, space: SearchSpace, config: LocalSearchConfig) -> None:
        self._space, self._config = space, config
        self._tried: dict[Architecture, int] = {}  # with the id of the first trial that had it
        self._scores: dict[Architecture, float] = {}  # of those told
        self._around: set[Architecture] = set()  # wherever a climb has come
        self._open: list[_Climb] = []
        self._climbs = 0

    def propose(self, i: int) -> Iterator[Architecture]:
        for climb in self._open:
            yield from (arch for arch in climb.wanted[climb.seen :] if arch not in self._tried)
        rng = generator(self._config.seed, i, 1)
        starts = (self._space.sample(rng) for _ in range(STARTS))
        yield from (arch for arch in starts if arch not in self._tried and arch not in self._around)
        others = (self._space.sample(rng) for _ in range(STARTS))  # around an earlier climb, perhaps
        yield from (arch for arch in others if arch not in self._tried)
        yield from drawn(self._space, self._config.seed, i)

    def take(self, trial: Trial) -> None:
        """A new architecture that is not around any climb is the start of another."""
        if trial.arch not in self._tried and trial.arch not in self._around:
            self._open.append(_Climb(self._climbs, trial.arch))
            self._climbs += 1
        self._tried.setdefault(trial.arch, trial.id)

    def observe(self, trial: Trial) -> None:
        if self._tried[trial.arch] == trial.id:
            self._scores[trial.arch] = rung_score(trial)
            self._open = [climb for climb in self._open if not self._ended(climb)]

    def _ended(self, climb: _Climb) -> bool:
        """Takes ``climb`` as far as what has been told goes; whether that is its end."""
        while climb.seen < len(climb.wanted):
            arch = climb.wanted[climb.seen]
            if arch not in self._scores:
                return False
            climb.seen += 1
            if self._scores[arch] > climb.best_score:
                climb.best, climb.best_score = arch, self._scores[arch]
            better = climb.best_score > -math.inf and climb.best != climb.here
            if better and (self._config.climb == "first" or climb.seen == len(climb.wanted)):
                self._go(climb)
        return True

    def _go(self, climb: _Climb) -> None:
        """To the best seen."""
        neighbours = self._space.neighbours(climb.best)
        self._around.update(neighbours)
        order = generator(self._config.seed, climb.number, 2, climb.steps).permutation(len(neighbours))
        climb.here, climb.wanted, climb.seen = climb.best, tuple(neighbours[k] for k in order), 0
        climb.steps += 1


RECORD = StrategyRecord(local_search, LocalSearchConfig)
