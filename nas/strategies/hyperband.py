"""Hyperband (Li et al., JMLR 18, 2018, algorithm 1)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Literal

from nas.errors import InputError, one_of
from nas.space import SearchSpace
from nas.strategies.base import Strategy, StrategyRecord
from nas.strategies.successive_halving import (
    Bracket,
    Halving,
    HalvingConfig,
    halving,
    most_halvings,
    planned_budget,
    random_trials,
)


@dataclasses.dataclass(frozen=True)
class HyperbandConfig(HalvingConfig):
    rounding: Literal["ceil", "floor"] = "ceil"
    """bracket sizes as in the paper's pseudocode (ceil) or as in its table (floor)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounding not in ("ceil", "floor"):
            raise one_of("strategy: rounding", self.rounding, ("ceil", "floor"))


def brackets(max_budget: int, eta: int, rounding: Literal["ceil", "floor"] = "ceil") -> tuple[Bracket, ...]:
    """Hyperband's brackets for R = ``max_budget``, the one with most halvings (s = s_max) first.

    Trials that start in bracket s: ``ceil`` is the paper's pseudocode, ceil((s_max + 1) eta^s / (s + 1));
    ``floor`` is its table 1, floor((s_max + 1) / (s + 1)) eta^s. Then floor(n eta^-k) at rung k, where a
    trial has had floor(R eta^(k - s)) units in all (the paper leaves budgets unrounded).
    """
    if max_budget < 1:
        raise InputError(f"hyperband: max_budget={max_budget} is less than 1")
    if eta < 2:
        raise InputError(f"hyperband: eta={eta} is less than 2")
    if rounding not in ("ceil", "floor"):
        raise one_of("hyperband: rounding", rounding, ("ceil", "floor"))
    s_max = most_halvings(max_budget, eta)

    def first_rung(s: int) -> int:
        if rounding == "floor":
            return (s_max + 1) // (s + 1) * eta**s
        return -(-(s_max + 1) * eta**s // (s + 1))

    return tuple(halving(first_rung(s), s, max_budget, eta) for s in reversed(range(s_max + 1)))


def plan(config: HyperbandConfig) -> Iterator[Bracket]:
    """The brackets in the order run, without end if ``config`` sets none; ids are dealt along them.

    With ``config.trials`` they repeat until so many trials have started, and the last is cut to what is
    left; else they are run ``config.iterations`` times.
    """
    whole = brackets(config.epochs, config.eta, config.rounding)
    if config.trials is None:
        passes = itertools.count() if config.iterations is None else range(config.iterations)
        yield from (bracket for _ in passes for bracket in whole)
        return
    left = config.trials
    for bracket in itertools.cycle(whole):
        n = min(left, bracket.rungs[0].trials)
        if n == 0:
            return
        yield halving(n, bracket.s, config.epochs, config.eta)
        left -= n


def hyperband(space: SearchSpace, config: HyperbandConfig) -> Strategy:
    """Successive halving at every trade-off between many short trials and few long ones."""
    return Halving(space, config, plan(config))


RECORD = StrategyRecord(hyperband, HyperbandConfig, planned_budget(plan), random_trials)
