"""The engine in this process: one trial after the other, for debugging, for tables and for small machines."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

from nas.objectives.base import Objective, Together, TrialFailed
from nas.record import Record, Run
from nas.run.ahead import CompileAhead
from nas.run.driver import Listener, SearchState, evaluate
from nas.strategies.base import Strategy
from nas.trial import Trial


def execute(
    strategy: Strategy,
    objective: Objective,
    record: Record,
    *,
    epochs: int,
    total_epochs: int | None = None,
    trials_per_program: int = 1,
    on_event: Listener | None = None,
    choosing_seconds: Callable[[], float] = lambda: 0.0,
) -> Run:
    """Run ``strategy`` (fresh) over ``objective`` to its end, or to the end of the budget.

    With a resumed record, what it holds is not computed again: the search goes on behind it, and the
    finished record equals, times aside, that of a run never interrupted. A trial whose objective raises
    is failed, with the reason, and the search goes on. KeyboardInterrupt passes; the record can be resumed.

    Args:
        epochs: R, the most units that ``strategy`` gives one trial; with so many it is completed.
        total_epochs: units that all trials together may spend; the one under way is then stopped.
        trials_per_program: so many trials are asked for before any is told, and those among them that can be
            trained as one program are, where ``objective`` is `Together`; the next program compiles meanwhile.
        on_event: hears of every start, measurement and end.
        choosing_seconds: what ``strategy`` took to choose, see `SearchState`.

    Returns:
        The whole run. Whether more belongs to it (final trainings), and so its ``done``, is the caller's.

    Raises:
        InputError: the record cannot be written, holds another search, or nothing but failures come.
    """
    state = SearchState(
        record,
        epochs=epochs,
        total_epochs=total_epochs,
        on_event=on_event,
        choosing_seconds=choosing_seconds,
    )
    under_way = state.replay(strategy)
    while not state.full:
        asked: list[Trial] = []
        while len(asked) < trials_per_program:
            trial = under_way.popleft() if under_way else strategy.ask()
            if trial is None:
                break
            state.start(trial)
            asked.append(trial)
        if not asked:
            break
        outstanding = {trial.id for trial in (*asked, *under_way)}
        groups, ahead = _groups(objective, asked), CompileAhead(objective)
        for group, following in itertools.zip_longest(groups, groups[1:]):
            hidden = ahead.hidden_seconds() / len(group)
            if following:
                ahead.start(following)
            for trial in _measured(state, objective, group, hidden):
                outstanding.discard(trial.id)
                if not state.full:
                    strategy.tell(trial)
                    state.end(state.running - strategy.paused - outstanding)
    state.close()
    return record.run()


def _groups(objective: Objective, asked: Sequence[Trial]) -> Sequence[Sequence[Trial]]:
    """Trials that share a program; each alone where that cannot be said: what is wrong with one is its own failure."""
    if len(asked) > 1 and isinstance(objective, Together):
        with contextlib.suppress(Exception):
            return objective.grouped(asked)
    return [[trial] for trial in asked]


def _measured(
    state: SearchState, objective: Objective, group: Sequence[Trial], hidden: float
) -> Iterator[Trial]:
    """Each trial of ``group`` when it is over, none where the whole budget is; what is measured is recorded.

    ``hidden``: of each, the seconds of compiling that nobody waited for.
    """
    begun: set[int] = set()
    with contextlib.ExitStack() as stack:
        members: Sequence[Objective] = [objective]
        if len(group) > 1 and isinstance(objective, Together):
            members = stack.enter_context(objective.together(group))
        running = {
            trial.id: (trial, stack.enter_context(contextlib.closing(evaluate(member, trial))))
            for trial, member in zip(group, members, strict=True)
        }
        while running and not state.full:
            for trial, units in tuple(running.values()):
                try:
                    measured = next(units, None)
                except TrialFailed as failure:
                    state.fail(trial.id, failure)
                    over = trial.replace(status="failed", error=str(failure))
                else:
                    if measured is not None:
                        if hidden and trial.id not in begun:
                            begun.add(trial.id)
                            measured = _with_hidden(measured, hidden)
                        state.measure(measured)
                        running[trial.id] = measured, units
                        if state.full:
                            return
                        continue
                    over = trial
                del running[trial.id]
                units.close()
                yield over


def _with_hidden(trial: Trial, seconds: float) -> Trial:
    """``trial`` whose last measurement says so."""
    *before, last = trial.measurements
    return trial.replace(measurements=(*before, dataclasses.replace(last, hidden_compile_seconds=seconds)))
