"""Regularised evolution (Real et al., "Regularized evolution for image classifier architecture search",
AAAI 2019, algorithm 1)."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator

import numpy as np

from nas.errors import InputError
from nas.space import Architecture, SearchSpace
from nas.strategies.base import (
    FullBudget,
    Strategy,
    StrategyConfig,
    StrategyRecord,
    check_at_least,
    drawn,
    generator,
)
from nas.trial import Trial


@dataclasses.dataclass(frozen=True)
class EvolutionConfig(StrategyConfig):
    population: int = 10
    """how many of the youngest trials may be parents (P)"""
    tournament: int = 3
    """how many of them are drawn, the best of which is mutated (S)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("population", self.population, 1)
        check_at_least("tournament", self.tournament, 1)
        if self.tournament > self.population:
            raise InputError(
                f"strategy: tournament={self.tournament} is more than population={self.population}"
            )


def evolution(space: SearchSpace, config: EvolutionConfig) -> Strategy:
    """Random trials until ``config.population`` have started, then mutations of tournament winners.

    A parent is the best of ``config.tournament`` draws, with replacement, from the ``population`` youngest
    trials told (ties to the lower id). Age goes by id, not by when a trial was told: what trial i is
    depends on which trials were told before it, not on their order. Failed trials have no offspring and
    no place in the population. Without end unless ``config.trials`` is set.
    """
    alive: list[Trial] = []  # by id, oldest first

    def propose(i: int) -> Iterator[Architecture]:
        if i < config.population or not alive:
            yield from drawn(space, config.seed, i)
            return
        rng = generator(config.seed, i)
        while True:
            entered = [alive[k] for k in rng.integers(len(alive), size=config.tournament)]
            parent = max(entered, key=lambda trial: (trial.score, -trial.id))
            yield space.mutate(parent.arch, rng)

    def observe(trial: Trial) -> None:
        if trial.score > -np.inf:
            bisect.insort(alive, trial, key=lambda t: t.id)
            del alive[: -config.population]

    return FullBudget(space, config, propose, observe=observe)


RECORD = StrategyRecord(evolution, EvolutionConfig, random_trials=lambda config, space: config.population)
