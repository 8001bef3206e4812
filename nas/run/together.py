"""What one process does with the trials that it has: those that can be train as one program, and while that trains the
next program compiles, on a host that would have nothing to do."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Generator, Sequence
from typing import NamedTuple

from nas.objectives.base import Objective, Together, TrialFailed
from nas.run.driver import evaluate
from nas.training import processes
from nas.trial import Trial


class Unit(NamedTuple):
    """``trial`` has one measurement more, or it failed; ``over``: that is all of it."""

    trial: Trial
    over: bool
    failure: TrialFailed | None = None


def units(objective: Objective, trials: Sequence[Trial]) -> Generator[Unit, None, None]:
    """``trials`` unit by unit, each to its budget, in turns where several train as one program.

    The caller may close this at any unit. Raises OSError where the disk is full, as `evaluate` does.
    """
    groups, ahead = _groups(objective, trials), CompileAhead(objective)
    alone = not processes.joined()  # programs of several processes have to start in one order
    for group, following in itertools.zip_longest(groups, groups[1:]):
        hidden = ahead.hidden_seconds() / len(group)
        if following and alone:
            ahead.start(following)
        yield from _units(objective, group, hidden)


def _groups(objective: Objective, trials: Sequence[Trial]) -> Sequence[Sequence[Trial]]:
    """Trials that share a program; each alone where that cannot be said: what is wrong with one is its own failure."""
    # Several processes may have room for groups of different sizes.
    if len(trials) > 1 and isinstance(objective, Together) and not processes.joined():
        with contextlib.suppress(Exception):
            return objective.grouped(trials)
    return [[trial] for trial in trials]


def _units(objective: Objective, group: Sequence[Trial], hidden: float) -> Generator[Unit, None, None]:
    """``hidden``: of each, the seconds of compiling that nobody waited for."""
    with contextlib.ExitStack() as stack:
        members: Sequence[Objective] = [objective]
        if len(group) > 1 and isinstance(objective, Together):
            members = stack.enter_context(objective.together(group))
        running = {
            trial.id: (trial, stack.enter_context(contextlib.closing(evaluate(member, trial))))
            for trial, member in zip(group, members, strict=True)
        }
        fresh = set(running) if hidden else set()
        while running:
            for trial, measured in tuple(running.values()):
                try:
                    trial = next(measured)
                except TrialFailed as failure:
                    unit = Unit(trial, True, failure)
                else:
                    if trial.id in fresh:
                        fresh.discard(trial.id)
                        trial = _with_hidden(trial, hidden)
                    unit = Unit(trial, trial.spent >= trial.budget or trial.ended)
                running[trial.id] = trial, measured
                if unit.over:
                    del running[trial.id]
                    measured.close()
                yield unit


def _with_hidden(trial: Trial, seconds: float) -> Trial:
    """``trial`` whose last measurement says so."""
    *before, last = trial.measurements
    return trial.replace(measurements=(*before, dataclasses.replace(last, hidden_compile_seconds=seconds)))


class CompileAhead:
    """Compiles a group's programs in another thread; nothing where ``objective`` is not `Together`."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._thread: threading.Thread | None = None
        self._seconds = 0.0

    def start(self, group: Sequence[Trial]) -> None:
        """Begin with ``group``, which is trained next."""
        if isinstance(self._objective, Together):
            self._thread = threading.Thread(target=self._compile, args=(self._objective, group), daemon=True)
            self._thread.start()

    def hidden_seconds(self) -> float:
        """Wait for what was begun; of its seconds those that nobody waited."""
        if self._thread is None:
            return 0.0
        start = time.perf_counter()
        self._thread.join()
        self._thread = None
        return max(0.0, self._seconds - (time.perf_counter() - start))

    def _compile(self, objective: Together, group: Sequence[Trial]) -> None:
        start = time.perf_counter()
        with contextlib.suppress(Exception):  # what is wrong with a network, its own training says
            objective.compile(group)
        self._seconds = time.perf_counter() - start
