"""The tree-structured Parzen estimator (Bergstra et al., "Algorithms for hyper-parameter optimization",
NeurIPS 2011, section 4), by Optuna's multivariate sampler (Watanabe, arXiv 2304.11127)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from nas.errors import InputError
from nas.space import Architecture, Categorical, Choice, Integer, LogUniform, SearchSpace, When
from nas.strategies.base import FullBudget, Strategy, StrategyConfig, rung_score, sample_architecture
from nas.trial import Trial

PROPOSALS = 20  # how often the model may propose what the constraints forbid before a random draw is taken


def tpe(space: SearchSpace, config: StrategyConfig) -> Strategy:
    """Random trials until ``config.startup`` are told, then what the model holds most promising.

    Choices that always exist are modelled jointly, conditional ones each from the trials that have them.
    Outstanding trials count as bad ones, so that parallel workers spread out; failed ones as worse than
    all others, without a score of their own. Trial i depends on which trials were asked and told before
    it, not on their order. Without end unless ``config.trials`` is set.
    """
    model = _Model(space, config)
    return FullBudget(space, config, model.propose, take=model.take, observe=model.observe)


class _Model:
    """An Optuna study that holds our trials in the order of their ids; proposals leave only failed ones."""

    def __init__(self, space: SearchSpace, config: StrategyConfig) -> None:
        self._space, self._config = space, config
        self._distributions = {name: _distribution(choice) for name, choice in space.choices.items()}
        self._told = 0
        self._numbers: dict[int, int] = {}  # Optuna's number of each outstanding trial
        self._size = 0
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every new study
        self._study = optuna.create_study(direction="maximize")
        optuna.logging.set_verbosity(verbosity)

    def propose(self, i: int) -> Architecture:
        if self._told >= self._config.startup:
            seed = np.random.SeedSequence(self._config.seed, spawn_key=(i, 0)).generate_state(1)[0]
            self._study.sampler = optuna.samplers.TPESampler(
                seed=int(seed), n_startup_trials=1, multivariate=True, constant_liar=True
            )
            for _ in range(PROPOSALS):
                arch = self._suggested()
                try:
                    self._space.validate(arch)
                except InputError:
                    continue
                return arch
        return sample_architecture(self._space, self._config.seed, i)

    def _suggested(self) -> Architecture:
        trial = self._study.ask()
        self._size += 1
        values: dict[str, Any] = {}
        for name, choice in self._space.choices.items():
            whens = self._space.conditions.get(name, ())
            whens = (whens,) if isinstance(whens, When) else whens
            if all(when.choice in values and values[when.choice] in when for when in whens):
                values[name] = _suggest(trial, name, choice)
        self._study.tell(trial, state=TrialState.FAIL)
        return Architecture(values)

    def take(self, trial: Trial) -> None:
        arch = self._space.canonical(trial.arch)
        distributions = {name: self._distributions[name] for name in arch}
        held = optuna.trial.create_trial(
            state=TrialState.RUNNING, params=dict(arch), distributions=distributions
        )
        self._study.add_trial(held)
        self._numbers[trial.id] = self._size
        self._size += 1

    def observe(self, trial: Trial) -> None:
        number, score = self._numbers.pop(trial.id), rung_score(trial)
        if score > -math.inf:
            self._study.tell(number, score)
        else:  # pruned without a value: Optuna ranks it below every other
            self._study.tell(number, state=TrialState.PRUNED)
        self._told += 1


def _distribution(choice: Choice) -> BaseDistribution:
    if isinstance(choice, Categorical):
        return CategoricalDistribution(choice.values)
    if isinstance(choice, Integer):
        return IntDistribution(choice.low, choice.high)
    return FloatDistribution(choice.low, choice.high, log=isinstance(choice, LogUniform))


def _suggest(trial: optuna.Trial, name: str, choice: Choice) -> Any:
    if isinstance(choice, Categorical):
        return trial.suggest_categorical(name, choice.values)
    if isinstance(choice, Integer):
        return trial.suggest_int(name, choice.low, choice.high)
    value = trial.suggest_float(name, choice.low, choice.high, log=isinstance(choice, LogUniform))
    return choice.nearest(choice.to_unit(value))  # one of the values that the space itself would draw
