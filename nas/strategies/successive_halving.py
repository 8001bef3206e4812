"""Successive halving (Jamieson and Talwalkar, AISTATS 2016) and the engine that Hyperband shares with it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self

from nas.space import Architecture, SearchSpace
from nas.strategies.base import (
    Outstanding,
    PlannedBudget,
    Strategy,
    StrategyConfig,
    StrategyRecord,
    check_at_least,
    drawn,
    new_trial,
    promote,
)
from nas.trial import Trial


@dataclasses.dataclass(frozen=True)
class RungConfig(StrategyConfig):
    """For strategies that stop trials early."""

    eta: int = 3
    """one trial in eta goes on from a rung"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("eta", self.eta, 2)


@dataclasses.dataclass(frozen=True)
class HalvingConfig(RungConfig):
    """For strategies that run brackets."""

    iterations: int | None = 1
    """passes over all brackets where trials are not given; None: without end"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("iterations", self.iterations, 1)

    def without_end(self) -> Self:
        return dataclasses.replace(self, iterations=None) if self.trials is None else self


class Rung(NamedTuple):
    """``trials`` of them trained up to ``budget`` units in all."""

    trials: int
    budget: int


class Bracket(NamedTuple):
    """One run of successive halving; ``s`` counts its halvings."""

    s: int
    rungs: tuple[Rung, ...]


def most_halvings(max_budget: int, eta: int) -> int:
    """The largest s with eta**s <= max_budget (Hyperband's s_max), in exact arithmetic."""
    s = 0
    while eta ** (s + 1) <= max_budget:
        s += 1
    return s


def halving(trials: int, s: int, max_budget: int, eta: int) -> Bracket:
    """``trials`` halved ``s`` times.

    Rung k has floor(trials eta^-k) of them, but at least one, trained to floor(R eta^(k-s)) units in all.
    """
    rungs = (Rung(max(1, trials // eta**k), max_budget // eta ** (s - k)) for k in range(s + 1))
    return Bracket(s, tuple(rungs))


def plan(config: HalvingConfig) -> Iterator[Bracket]:
    """The brackets in the order run: one of ``config.trials``, or ``config.iterations`` of eta^s_max each."""
    s = most_halvings(config.epochs, config.eta)
    if config.trials is not None:
        yield halving(config.trials, s, config.epochs, config.eta)
        return
    bracket = halving(config.eta**s, s, config.epochs, config.eta)
    yield from itertools.repeat(bracket) if config.iterations is None else [bracket] * config.iterations


def budget_of(brackets: Iterable[Bracket]) -> PlannedBudget:
    """Trials and epochs of finitely many brackets, promoted trials going on from where they were."""
    trials = epochs = 0
    for bracket in brackets:
        trials += bracket.rungs[0].trials
        reached = [0, *(rung.budget for rung in bracket.rungs)]
        epochs += sum(
            rung.trials * (rung.budget - before) for rung, before in zip(bracket.rungs, reached, strict=False)
        )
    return PlannedBudget(trials, epochs)


def planned_budget(
    plan: Callable[[Any], Iterator[Bracket]],
) -> Callable[[HalvingConfig, SearchSpace], PlannedBudget | None]:
    """For `StrategyRecord`, from the function that lays out the brackets."""

    def budget(config: HalvingConfig, space: SearchSpace) -> PlannedBudget | None:
        endless = config.trials is None and config.iterations is None
        return None if endless else budget_of(plan(config))

    return budget


def random_trials(config: RungConfig, space: SearchSpace) -> float:
    """All where no rung is below the last."""
    return 0 if most_halvings(config.epochs, config.eta) else math.inf


class Halving:
    """Brackets of successive halving, one after the other.

    A rung is decided when all its trials are told, by ``promote``. While workers would have to wait for
    that, the next bracket's trials are given out; ids are dealt in the plan's order, so which trial is in
    which bracket, and who is promoted, does not depend on timing. New trials are drawn at random unless
    ``propose(i)`` gives candidates for trial ``i``; ``observe(trial)`` hears of each told one.
    """

    def __init__(
        self,
        space: SearchSpace,
        config: StrategyConfig,
        brackets: Iterator[Bracket],
        propose: Callable[[int], Iterator[Architecture]] | None = None,
        observe: Callable[[Trial], None] = lambda trial: None,
    ) -> None:
        self._space, self._config = space, config
        self._propose = propose or (lambda i: drawn(space, config.seed, i))
        self._observe = observe
        self._slots = (
            (b, bracket) for b, bracket in enumerate(brackets) for _ in range(bracket.rungs[0].trials)
        )
        self._slot = next(self._slots, None)
        self._asked = 0
        self._outstanding = Outstanding()
        self._open: dict[int, _OpenRung] = {}  # by the bracket's place in the plan
        self._promoted: list[tuple[int, Trial]] = []  # earlier brackets first, then the better

    def ask(self, arch: Architecture | None = None) -> Trial | None:
        if self._promoted:
            return self._outstanding.add(self._promoted.pop(0)[1])
        if arch is not None:
            self._space.validate(arch)
        if self._slot is None:
            return None
        b, bracket = self._slot
        self._slot = next(self._slots, None)
        self._open.setdefault(b, _OpenRung(bracket, 0, bracket.rungs[0].trials, []))
        if arch is None:
            arch = next(self._propose(self._asked))
        trial = new_trial(self._config, self._asked, arch, bracket.rungs[0].budget, bracket=b, rung=0)
        self._asked += 1
        return self._outstanding.add(trial)

    def candidates(self) -> Iterator[Architecture]:
        return iter(()) if self._promoted or self._slot is None else self._propose(self._asked)

    def tell(self, trial: Trial) -> None:
        self._outstanding.remove(trial)
        self._observe(trial)
        b = trial.bracket
        assert b is not None
        bracket, k, expected, told = self._open[b]
        told.append(trial)
        if len(told) < expected:
            return
        del self._open[b]
        if k + 1 == len(bracket.rungs):
            return
        n, budget = bracket.rungs[k + 1]
        best = [t.replace(budget=budget, rung=k + 1, status="running") for t in promote(told, n)]
        if best:
            self._open[b] = _OpenRung(bracket, k + 1, len(best), [])
            self._promoted += [(b, t) for t in best]
            self._promoted.sort(key=lambda promoted: promoted[0])

    @property
    def paused(self) -> frozenset[int]:
        undecided = (
            trial.id
            for bracket, k, _, told in self._open.values()
            if k + 1 < len(bracket.rungs)
            for trial in told
        )
        return frozenset(undecided) | {trial.id for _, trial in self._promoted}


class _OpenRung(NamedTuple):
    bracket: Bracket
    k: int
    expected: int
    told: list[Trial]


def successive_halving(space: SearchSpace, config: HalvingConfig) -> Strategy:
    """Many trials for a short time, the best floor(n / eta) of each rung on with eta times the budget."""
    return Halving(space, config, plan(config))


RECORD = StrategyRecord(successive_halving, HalvingConfig, planned_budget(plan), random_trials)
