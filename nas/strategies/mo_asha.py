"""Asynchronous successive halving for several objectives (Schmucker, Donini, Zafar, Salinas and Archambeau,
"Multi-objective asynchronous successive halving", arXiv 2106.12639): rungs are ordered by fronts and an epsilon-net."""

from __future__ import annotations

import numpy as np

from nas.pareto import epsilon_net, ranks
from nas.space import SearchSpace
from nas.strategies.asha import Asha, random_trials
from nas.strategies.base import Strategy, StrategyRecord
from nas.strategies.dominance import Point, insert, point
from nas.strategies.successive_halving import RungConfig
from nas.trial import Trial


class MoAsha(Asha):
    """See ``mo_asha``."""

    def __init__(self, space: SearchSpace, config: RungConfig) -> None:
        super().__init__(space, config)
        self._points: list[list[Point]] = [[] for _ in self._budgets]

    def tell(self, trial: Trial) -> None:
        self._outstanding.remove(trial)
        k, told = trial.rung, point(trial)
        assert k is not None
        if k + 1 == len(self._budgets) or told is None:
            return
        insert(self._points[k], told)
        if place(told, self._points[k]) / len(self._points[k]) <= 1 / self._config.eta:
            self._passed.append(trial.replace(budget=self._budgets[k + 1], rung=k + 1, status="running"))


def place(one: Point, points: list[Point]) -> int:
    """How many of ``points``, of which ``one`` is, come before it.

    Those that violate constraints come last, the more the later; the others by fronts, and within one by the greedy
    epsilon-net that begins with the best by the first objective.
    """
    if one.violation > 0:
        return sum((held.violation, held.id) < (one.violation, one.id) for held in points)
    kept = [held for held in points if held.violation == 0]
    gains = np.array([held.gains for held in kept], float)
    fronts, mine = ranks(gains), kept.index(one)
    here = np.flatnonzero(fronts == fronts[mine])
    net = epsilon_net(gains[here], int(gains[here, 0].argmax()))
    return int((fronts < fronts[mine]).sum()) + int(np.flatnonzero(here[net] == mine)[0])


def mo_asha(space: SearchSpace, config: RungConfig) -> Strategy:
    """Each trial goes on from rung to rung unless it is below the top 1/eta of those that came there so far.

    The stopping variant, as `nas.strategies.asha` (and the authors' code in Syne Tune) has it: the first at a rung
    passes, nobody waits, and a passing trial runs on before a new one starts. Without end unless ``config.trials``
    is set.
    """
    return MoAsha(space, config)


RECORD = StrategyRecord(mo_asha, RungConfig, random_trials=random_trials, objectives="several")
