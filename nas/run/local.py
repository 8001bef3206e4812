"""The engine in this process: one trial after the other, for debugging, for tables and for small machines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from nas.objectives.base import Objective
from nas.record import Record, Run
from nas.run.driver import Listener, SearchState
from nas.run.together import units
from nas.strategies.base import Strategy


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
        asked = [under_way.popleft() for _ in range(min(trials_per_program, len(under_way)))]
        if not asked or state.asking:  # else those under way are told first, as without an interruption
            while len(asked) < trials_per_program and (trial := strategy.ask()) is not None:
                asked.append(trial)
        state.asking = False
        for trial in asked:
            state.start(trial)
        if not asked:
            break
        outstanding = {trial.id for trial in (*asked, *under_way)}
        with contextlib.closing(units(objective, asked)) as work:
            for unit in work:
                trial = unit.trial
                if unit.failure is not None:
                    state.fail(trial.id, unit.failure)
                    trial = trial.replace(status="failed", error=str(unit.failure))
                else:
                    state.measure(trial)
                if state.full:
                    break
                if unit.over:
                    outstanding.discard(trial.id)
                    strategy.tell(trial)
                    state.end(state.running - strategy.paused - outstanding)
    state.close()
    return record.run()
