"""Several searches over the sub-networks of one trained supernet, one a limit."""

from __future__ import annotations

from nas.objectives.base import Objective, TrialFailed
from nas.run.driver import evaluate
from nas.strategies.base import Strategy
from nas.trial import Trial


def told(strategy: Strategy, objective: Objective) -> list[Trial]:
    """The trials of ``strategy``, one after the other, until it ends; a failed one is told as that.

    Nothing is recorded: a supernet's evaluation takes less than a second. ``objective`` may be shared by searches.
    """
    done: list[Trial] = []
    while (trial := strategy.ask()) is not None:
        try:
            for shown in evaluate(objective, trial):
                trial = shown
            trial = trial.replace(status="completed")
        except TrialFailed as failure:
            trial = trial.replace(status="failed", error=str(failure))
        strategy.tell(trial)
        done.append(trial)
    return done


def best(trials: list[Trial]) -> Trial | None:
    """The best of ``trials`` that keeps all constraints; of equals the first. None where none does."""
    return max((trial for trial in trials if trial.feasible), key=lambda t: (t.score, -t.id), default=None)
