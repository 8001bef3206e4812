"""Asynchronous successive halving, stopping variant (Li et al., "A system for massively parallel
hyperparameter tuning", MLSys 2020, section 3; the variant and its cutoff are Ray Tune's ASHAScheduler)."""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Iterator, Sequence

from nas.space import Architecture, SearchSpace
from nas.strategies.base import (
    Outstanding,
    Strategy,
    StrategyRecord,
    drawn,
    new_trial,
    rung_score,
)
from nas.strategies.successive_halving import RungConfig, most_halvings
from nas.trial import Trial


def milestones(max_budget: int, eta: int) -> tuple[int, ...]:
    """The budgets at which a trial is judged: 1, eta, eta^2, ... below ``max_budget``; then that itself."""
    powers = (eta**k for k in range(most_halvings(max_budget, eta) + 1))
    return (*(budget for budget in powers if budget < max_budget), max_budget)


def cutoff(scores: Sequence[float], eta: int) -> float | None:
    """The score to reach at a rung where ``scores``, ascending, came before: their (1 - 1/eta) quantile.

    To the last bit NumPy's, which Ray takes and which needs twenty times as long. None for the first.
    """
    if not scores:
        return None
    at = (1 - 1 / eta) * 100 / 100 * (len(scores) - 1)
    below = math.floor(at)
    low, high, part = scores[below], scores[min(below + 1, len(scores) - 1)], at - below
    return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part


def passes(score: float, scores: Sequence[float], eta: int) -> bool:
    """Whether a trial goes on from a rung with ``score``, where ``scores``, ascending, came before it."""
    bar = cutoff(scores, eta)
    return bar is None or score >= bar


class Asha:
    """See ``asha``."""

    def __init__(self, space: SearchSpace, config: RungConfig) -> None:
        self._space, self._config = space, config
        self._budgets = milestones(config.epochs, config.eta)
        self._scores: list[list[float]] = [[] for _ in self._budgets]
        self._asked = 0
        self._outstanding = Outstanding()
        self._passed: deque[Trial] = deque()

    def ask(self, arch: Architecture | None = None) -> Trial | None:
        if self._passed:
            return self._outstanding.add(self._passed.popleft())
        if self._asked == self._config.trials:
            return None
        if arch is None:
            arch = next(drawn(self._space, self._config.seed, self._asked))
        else:
            self._space.validate(arch)
        trial = new_trial(self._config, self._asked, arch, self._budgets[0], bracket=0, rung=0)
        self._asked += 1
        return self._outstanding.add(trial)

    def candidates(self) -> Iterator[Architecture]:
        if self._passed or self._asked == self._config.trials:
            return iter(())
        return drawn(self._space, self._config.seed, self._asked)

    def tell(self, trial: Trial) -> None:
        self._outstanding.remove(trial)
        k, score = trial.rung, rung_score(trial)
        assert k is not None
        if k + 1 == len(self._budgets) or score == -math.inf:
            return
        if passes(score, self._scores[k], self._config.eta):
            self._passed.append(trial.replace(budget=self._budgets[k + 1], rung=k + 1, status="running"))
        bisect.insort(self._scores[k], score)

    @property
    def paused(self) -> frozenset[int]:
        return frozenset(trial.id for trial in self._passed)


def asha(space: SearchSpace, config: RungConfig) -> Strategy:
    """Each trial goes on from rung to rung unless it is below the top 1/eta of those that came there before.

    Without end unless ``config.trials`` is set. Decisions equal those of Ray 2.60's ``ASHAScheduler`` with
    one bracket and a grace period of 1: nobody waits, the first at a rung always passes, and a passing
    trial runs on before a new one starts.
    """
    return Asha(space, config)


def random_trials(config: RungConfig, space: SearchSpace) -> float:
    """All where there is no rung below the last."""
    return 0 if len(milestones(config.epochs, config.eta)) > 1 else math.inf


RECORD = StrategyRecord(asha, RungConfig, random_trials=random_trials)
