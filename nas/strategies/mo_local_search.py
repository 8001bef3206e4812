"""Pareto local search (Paquete, Chiarandini and Stützle, "Pareto local optimum sets in the biobjective traveling
salesman problem: an experimental study", 2004), one neighbour at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

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
from nas.strategies.dominance import Point, front, insert, point
from nas.trial import Trial

STARTS = 100  # draws for one that is new, before one that is not is taken


@dataclasses.dataclass(frozen=True)
class MoLocalSearchConfig(StrategyConfig):
    startup: int = 10
    """finished random trials before the model proposes"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("startup", self.startup, 1)


def mo_local_search(space: SearchSpace, config: MoLocalSearchConfig) -> Strategy:
    """Random trials until ``config.startup`` are told, then untried neighbours of the front.

    Each is one of a random member of the front of all told that has untried ones; other than in the paper, one
    neighbour is tried before the next member is drawn, as what it shows may change the front. Where all have been
    tried, it is a random architecture. Which trials were asked and told before trial i matters, their order does
    not. Without end unless ``config.trials`` is set.
    """
    told: list[Point] = []  # by id
    asked: set[Architecture] = set()
    around: dict[Architecture, tuple[Architecture, ...]] = {}

    def untried(arch: Architecture) -> list[Architecture]:
        if arch not in around:
            around[arch] = space.neighbours(arch)
        return [neighbour for neighbour in around[arch] if neighbour not in asked]

    def propose(i: int) -> Iterator[Architecture]:
        if len(told) >= config.startup:
            rng = generator(config.seed, i)
            given: set[Architecture] = set()
            left = {held.arch: untried(held.arch) for held in front(told)}
            while left := {
                arch: new for arch, them in left.items() if (new := [n for n in them if n not in given])
            }:
                choices = list(left.values())[int(rng.integers(len(left)))]
                chosen = choices[int(rng.integers(len(choices)))]
                given.add(chosen)
                yield chosen
        rng = generator(config.seed, i, 1)
        yield from (arch for arch in (space.sample(rng) for _ in range(STARTS)) if arch not in asked)
        yield from drawn(space, config.seed, i)

    def take(trial: Trial) -> None:
        asked.add(trial.arch)

    def observe(trial: Trial) -> None:
        new = point(trial)
        if new is not None:
            insert(told, new)

    return FullBudget(space, config, propose, take=take, observe=observe)


RECORD = StrategyRecord(
    mo_local_search,
    MoLocalSearchConfig,
    random_trials=lambda config, space: config.startup,
    objectives="several",
)
