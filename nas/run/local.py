"""The engine in this process: one trial after the other, for debugging, for tables and for small machines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from nas.objectives.base import Objective, TrialFailed
from nas.record import Record, Run
from nas.run.driver import Listener, SearchState, evaluate
from nas.strategies.base import Strategy


def execute(
    strategy: Strategy,
    objective: Objective,
    record: Record,
    *,
    epochs: int,
    total_epochs: int | None = None,
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
        trial = under_way.popleft() if under_way else strategy.ask()
        if trial is None:
            break
        state.start(trial)
        try:
            with contextlib.closing(evaluate(objective, trial)) as units:
                for trial in units:
                    state.measure(trial)
                    if state.full:
                        break
        except TrialFailed as failure:
            state.fail(trial.id, failure)
            trial = trial.replace(status="failed", error=str(failure))
        if not state.full:
            strategy.tell(trial)
            state.end(state.running - strategy.paused)
    state.close()
    return record.run()
