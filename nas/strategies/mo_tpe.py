"""TPE for several objectives and constraints (Ozaki et al., "Multiobjective tree-structured Parzen estimator", JAIR
2022; Watanabe and Hutter, "c-TPE", IJCAI 2023, for constraints), by Optuna's multivariate sampler."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nas.space import Architecture, SearchSpace
from nas.strategies.base import FullBudget, Strategy, StrategyRecord, drawn
from nas.strategies.dominance import point
from nas.strategies.tpe import Model, TpeConfig
from nas.trial import Trial


def mo_tpe(space: SearchSpace, config: TpeConfig) -> Strategy:
    """As `nas.strategies.tpe`, the good trials being those of the first fronts, by hypervolume within the last one.

    Trials that violate constraints are worse than all that do not, the more the worse (Optuna's rule), and failed ones
    the worst of all.
    """
    search = _Search(space, config)
    return FullBudget(space, config, search.propose, take=search.take, observe=search.observe)


class _Model(Model):
    def tell(self, number: int, trial: Trial) -> None:
        from optuna.trial import TrialState

        told = point(trial)
        violation = math.inf if told is None else told.violation
        (held,) = (t for t in self._study.get_trials(deepcopy=False)[number : number + 1])
        self._study._storage.set_trial_system_attr(held._trial_id, "constraints", [violation])
        if told is not None and told.violation == 0:
            self._study.tell(number, list(told.gains))
        else:
            self._study.tell(number, state=TrialState.PRUNED)


class _Search:
    """A model as soon as a trial has told how many objectives there are."""

    def __init__(self, space: SearchSpace, config: TpeConfig) -> None:
        self._space, self._config = space, config
        self._model: _Model | None = None
        self._before: list[tuple[bool, Trial]] = []  # until then: whether told, and what

    def propose(self, i: int) -> Iterator[Architecture]:
        return drawn(self._space, self._config.seed, i) if self._model is None else self._model.propose(i)

    def take(self, trial: Trial) -> None:
        self._hear(False, trial)

    def observe(self, trial: Trial) -> None:
        told = point(trial)
        if self._model is None and told is not None:
            self._model = _Model(self._space, self._config, len(told.gains))
            for was_told, earlier in self._before:
                self._hear(was_told, earlier)
        self._hear(True, trial)

    def _hear(self, was_told: bool, trial: Trial) -> None:
        if self._model is None:
            self._before.append((was_told, trial))
        elif was_told:
            self._model.observe(trial)
        else:
            self._model.take(trial)


RECORD = StrategyRecord(
    mo_tpe, TpeConfig, random_trials=lambda config, space: config.startup, objectives="several"
)
