"""Regularised evolution (Real et al., AAAI 2019) whose tournaments are by fronts and crowding (Deb et al. 2002), as
in the multi-objective searches that follow it (Elsken, Metzen and Hutter, "Efficient multi-objective neural
architecture search via Lamarckian evolution", ICLR 2019, has its parents from the front too)."""

from __future__ import annotations

from collections.abc import Iterator

from nas.space import Architecture, SearchSpace
from nas.strategies.base import FullBudget, Strategy, StrategyRecord, drawn, generator
from nas.strategies.dominance import Point, front, insert, keys, point
from nas.strategies.evolution import EvolutionConfig
from nas.trial import Trial

TRIES = 20  # mutations for one that was not asked before, until one that was must do


def mo_evolution(space: SearchSpace, config: EvolutionConfig) -> Strategy:
    """Random trials until ``config.population`` have started, then mutations of tournament winners.

    Those drawn are the ``config.population`` youngest trials told and the front of all, which age does not remove; of
    ``config.tournament`` drawn, with replacement, the one of the first front and least crowded is the parent (ties to
    the lower id). What was asked before is mutated anew, up to `TRIES` times. Which trials were told before trial i
    matters, their order does not. Failed trials have no offspring. Without end unless ``config.trials`` is set.
    """
    told: list[Point] = []  # by id
    asked: set[Architecture] = set()
    alive: list[tuple[tuple[float, float], Point]] = []  # made of `told` when first asked for

    def members() -> list[tuple[tuple[float, float], Point]]:
        if not alive:
            young = told[-config.population :]
            together = {held.id: held for held in (*front(told), *young)}
            points = sorted(together.values(), key=lambda held: held.id)
            alive.extend(zip(keys(points), points, strict=True))
        return alive

    def propose(i: int) -> Iterator[Architecture]:
        if i < config.population or not told:
            yield from drawn(space, config.seed, i)
            return
        rng, drawable = generator(config.seed, i), members()
        while True:
            for _ in range(TRIES):
                entered = [drawable[k] for k in rng.integers(len(drawable), size=config.tournament).tolist()]
                _, parent = min(entered, key=lambda held: (held[0], held[1].id))
                child = space.mutate(parent.arch, rng)
                if child not in asked:
                    break
            yield child

    def take(trial: Trial) -> None:
        asked.add(trial.arch)

    def observe(trial: Trial) -> None:
        new = point(trial)
        if new is not None:
            insert(told, new)
            alive.clear()

    return FullBudget(space, config, propose, take=take, observe=observe)


RECORD = StrategyRecord(
    mo_evolution,
    EvolutionConfig,
    random_trials=lambda config, space: config.population,
    objectives="several",
)
