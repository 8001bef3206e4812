"""What every strategy must do, whatever it searches and however many workers it has."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nas.check.base import Check, require
from nas.errors import InputError
from nas.space import Architecture, SearchSpace
from nas.strategies import Strategy, StrategyConfig, StrategyRecord, recorded, trial_seed
from nas.trial import Measurement, Trial

TRIALS, EPOCHS = 12, 9

Make = Callable[[StrategyConfig], Strategy]
Call = tuple[str, Any]
"""What was called, and a trial, or None where it was asked in vain."""


def any_score(arch: Architecture) -> float:
    """A number that any architecture has, from what its choices are."""
    numbers = [value for value in arch.values() if isinstance(value, int | float)]
    return round(0.5 + 0.1 * math.sin(sum(numbers) * 1000 + len(str(dict(arch)))), 6)


def some_fail(trial: Trial) -> bool:
    """Every fourth trial from the start, every seventh when it comes back."""
    return trial.id % 4 == 1 or (trial.spent > 0 and trial.id % 7 == 2)


def outcome(
    score: Callable[[Architecture], float], fails: Callable[[Trial], bool] = lambda trial: False
) -> Callable[[Trial], Trial]:
    """From a trial to how it went: accuracies that near ``score`` with every epoch, or a failure."""

    def run(trial: Trial) -> Trial:
        if fails(trial):
            return trial.replace(status="failed", error="loss is nan")
        for epoch in range(trial.spent + 1, trial.budget + 1):
            accuracy = score(trial.arch) * (1 - 0.5**epoch)
            trial = trial.add(Measurement(epoch, accuracy, 0.0, 0.0, 0.0))
        return trial.replace(status="completed")

    return run


def drive(
    strategy: Strategy, run: Callable[[Trial], Trial], workers: int = 1, order: int = 0, limit: int = 10_000
) -> list[Call]:
    """The calls made, ("ask", answer) and ("tell", trial), of a search run to its end.

    ``workers`` trials at a time, told in an order drawn from ``order``. Raises CheckFailed where there is no end.
    """
    rng = np.random.default_rng(order)
    outstanding: list[Trial] = []
    calls: list[Call] = []
    while len(calls) < limit:
        while len(outstanding) < workers:
            trial = strategy.ask()
            calls.append(("ask", trial))
            if trial is None:
                break
            outstanding.append(trial)
        if not outstanding:
            return calls
        told = run(outstanding.pop(rng.integers(len(outstanding))))
        strategy.tell(told)
        calls.append(("tell", told))
    require(False, f"the search does not end within {limit} calls")
    raise AssertionError


def asked(calls: list[Call]) -> list[Trial]:
    return [trial for kind, trial in calls if kind == "ask" and trial is not None]


def trials_are_well_formed(make: Make, space: SearchSpace, config: StrategyConfig, workers: int = 1) -> None:
    last: dict[int, Trial] = {}
    for trial in asked(drive(make(config), outcome(any_score, some_fail), workers)):
        try:
            space.validate(trial.arch)
        except InputError as error:
            require(False, f"trial {trial.id}: {error}")
        require(trial.status == "running", f"trial {trial.id} is asked as {trial.status}")
        seed = trial_seed(config.seed, trial.id)
        require(trial.seed == seed, f"trial {trial.id} has the seed {trial.seed}, not trial_seed(…), {seed}")
        require(
            trial.spent < trial.budget <= config.epochs,
            f"trial {trial.id} has spent {trial.spent} and has the budget {trial.budget} of {config.epochs}",
        )
        if trial.id not in last:
            require(
                trial.id == len(last), f"trial {trial.id} comes after {len(last)} trials: ids count from 0"
            )
            require(not trial.measurements, f"trial {trial.id} is new and has measurements")
        last[trial.id] = trial
    require(last, "it asks for nothing")
    if config.trials is not None:
        require(len(last) <= config.trials, f"{len(last)} trials, where config.trials is {config.trials}")


def promoted_trials_are_themselves(make: Make, space: SearchSpace, config: StrategyConfig) -> None:
    before: dict[int, Trial] = {}
    for kind, trial in drive(make(config), outcome(any_score), workers=3):
        if trial is None:
            continue
        if kind == "tell":
            before[trial.id] = trial
        elif trial.id in before:
            earlier = before[trial.id]
            require(trial.budget > earlier.budget, f"trial {trial.id} comes back with no larger budget")
            unchanged: dict[str, Any] = {"budget": 0, "rung": 0, "status": "running"}
            same = trial.replace(**unchanged) == earlier.replace(**unchanged)
            require(same, f"trial {trial.id} comes back changed")


def the_seed_decides(make: Make, space: SearchSpace, config: StrategyConfig) -> None:
    def run() -> list[Call]:
        return drive(make(config), outcome(any_score, some_fail), workers=3)

    require(run() == run(), "the same seed gives two searches")


def calls_are_replayed(make: Make, space: SearchSpace, config: StrategyConfig, workers: int = 1) -> None:
    """At every point of the search, so that it can be picked up there."""
    strategy = make(config)
    for kind, trial in drive(make(config), outcome(any_score, some_fail), workers):
        if kind == "ask":
            again = strategy.ask()
            require(again == trial, f"told the same, it asks for {again}, not {trial}")
        elif trial is not None:
            strategy.tell(trial)


def it_ends(make: Make, space: SearchSpace, config: StrategyConfig, workers: int = 1) -> None:
    """None with nothing outstanding, and None ever after; nothing is left paused."""
    strategy = make(config)
    drive(strategy, outcome(any_score, some_fail), workers)
    require(strategy.paused == frozenset(), f"trials {sorted(strategy.paused)} are paused at the end")
    require([strategy.ask() for _ in range(3)] == [None] * 3, "it goes on after its end")


def failures_are_over(make: Make, space: SearchSpace, config: StrategyConfig) -> None:
    over: set[int] = set()
    for kind, trial in drive(make(config), outcome(any_score, some_fail), workers=3):
        if trial is not None and kind == "tell" and trial.status == "failed":
            over.add(trial.id)
        elif trial is not None and kind == "ask":
            require(trial.id not in over, f"trial {trial.id} failed and comes back")
    drive(make(config), outcome(any_score, lambda trial: True), workers=3)


def a_record_is_picked_up(make: Make, space: SearchSpace, config: StrategyConfig, after: int = 5) -> None:
    """With one worker the trials recorded are given, the others come out as they would have."""
    run = outcome(any_score, some_fail)
    calls = drive(make(config), run)
    archs = {trial.id: trial.arch for trial in asked(calls) if trial.id < after}
    again = drive(recorded(make(config), archs), run)
    require(again == calls, f"picked up after {after} trials it goes on otherwise: does ask(arch) take arch?")


def candidates_come_first(make: Make, space: SearchSpace, config: StrategyConfig) -> None:
    """The first candidate is what is asked for, and looking changes nothing."""
    watched, alone = make(config), make(config)
    run, seen = outcome(any_score, some_fail), set()
    for _ in range(1000):
        first = next(iter(watched.candidates()), None)
        trial = watched.ask()
        require(alone.ask() == trial, "looking at candidates changes what is asked for")
        if trial is None:
            return
        if trial.id not in seen:
            require(first == trial.arch, f"trial {trial.id} is not the first of its candidates")
        seen.add(trial.id)
        told = run(trial)
        watched.tell(told)
        alone.tell(told)
    require(False, "the search does not end within 1000 trials")


def checks(record: StrategyRecord, space: SearchSpace) -> Iterator[Check]:
    """All checks of a user's strategy, on ``space``."""
    config = record.own(StrategyConfig(seed=1, trials=TRIALS, epochs=EPOCHS))
    given = (functools.partial(record, space), space, config)
    for sentence, check in (
        ("trials are valid and well formed", trials_are_well_formed),
        ("it ends, and stays so", it_ends),
        ("the seed decides everything", the_seed_decides),
        ("told the same it asks for the same, so that --resume goes on", calls_are_replayed),
        ("a record is picked up where it ends", a_record_is_picked_up),
        ("promoted trials are themselves with more budget", promoted_trials_are_themselves),
        ("failed trials never come back", failures_are_over),
        ("the first candidate is what is asked for", candidates_come_first),
    ):
        yield Check(sentence, functools.partial(check, *given))
    for check in (trials_are_well_formed, calls_are_replayed):
        yield Check(
            f"the same with 4 workers ({check.__name__})", functools.partial(check, *given, workers=4)
        )
