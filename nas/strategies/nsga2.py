"""NSGA-II (Deb, Pratap, Agarwal and Meyarivan, "A fast and elitist multiobjective genetic algorithm: NSGA-II", IEEE
Transactions on Evolutionary Computation 2002), with its constrained domination (section VI)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

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
from nas.strategies.dominance import Point, best, keys, point
from nas.trial import Trial

TRIES = 20  # children made for one that was not asked before, until one that was must do


@dataclasses.dataclass(frozen=True)
class Nsga2Config(StrategyConfig):
    population: int = 10
    """how many trials a generation has"""
    crossover: float = 0.9
    """how often a child has two parents"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("population", self.population, 1)
        check_at_least("crossover", self.crossover, 0)


def nsga2(space: SearchSpace, config: Nsga2Config) -> Strategy:
    """Generations of ``config.population`` trials; the parents of each are the best of the last parents and children.

    The best are the first fronts, of the last one that finds room the least crowded. A parent wins a tournament of
    two by front, then by crowding. A child mixes two parents' values (uniformly, ``config.crossover`` of the time),
    then each of its choices changes with a chance of one in their number; other than in the paper, one that was
    asked before is made anew, up to `TRIES` times. The first generation is drawn at random. Idle workers
    begin the next generation with what has been told: what trial i is depends on which trials of earlier generations
    were asked and told before it, not on their order. Failed trials have no children. Without end unless
    ``config.trials`` is set.
    """
    search = _Search(space, config)
    return FullBudget(space, config, search.propose, take=search.take, observe=search.observe)


class _Search:
    def __init__(self, space: SearchSpace, config: Nsga2Config) -> None:
        self._space, self._config = space, config
        self._asked: set[Architecture] = set()
        self._told: dict[int, list[Point]] = {}  # by generation
        self._parents: list[list[Point]] = [[]]  # of each generation, as far as they are up to date

    def propose(self, i: int) -> Iterator[Architecture]:
        parents = self._parents_of(i // self._config.population)
        if not parents:
            yield from drawn(self._space, self._config.seed, i)
            return
        rng, rated = generator(self._config.seed, i), keys(parents)
        while True:
            for _ in range(TRIES):
                child = self._child(parents, rated, rng)
                if child not in self._asked:
                    break
            yield child

    def _parents_of(self, generation: int) -> list[Point]:
        while len(self._parents) <= generation:
            last = len(self._parents) - 1
            together = [*self._parents[last], *self._told.get(last, ())]
            self._parents.append(best(sorted(together, key=lambda held: held.id), self._config.population))
        return self._parents[generation]

    def _child(
        self, parents: list[Point], rated: list[tuple[float, float]], rng: np.random.Generator
    ) -> Architecture:
        def chosen() -> Architecture:
            a, b = rng.integers(len(parents), size=2).tolist()
            return parents[a if rated[a] <= rated[b] else b].arch

        child = chosen()
        if rng.random() < self._config.crossover:
            child = self._space.crossover(child, chosen(), rng)
        for _ in range(rng.binomial(len(child), 1 / len(child)) if len(child) else 0):
            child = self._space.mutate(child, rng)
        return child

    def take(self, trial: Trial) -> None:
        self._asked.add(trial.arch)

    def observe(self, trial: Trial) -> None:
        told, generation = point(trial), trial.id // self._config.population
        if told is not None:
            self._told.setdefault(generation, []).append(told)
            del self._parents[generation + 1 :]


RECORD = StrategyRecord(
    nsga2, Nsga2Config, random_trials=lambda config, space: config.population, objectives="several"
)
