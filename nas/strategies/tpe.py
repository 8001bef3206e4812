"""The tree-structured Parzen estimator (Bergstra et al., "Algorithms for hyper-parameter optimization",
NeurIPS 2011, section 4), by Optuna's multivariate sampler (Watanabe, arXiv 2304.11127)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.errors import InputError
from nas.space import Architecture, Categorical, Choice, Integer, LogUniform, SearchSpace
from nas.strategies.base import (
    FullBudget,
    Strategy,
    StrategyConfig,
    StrategyRecord,
    check_at_least,
    drawn,
    exists,
    rung_score,
)
from nas.trial import Trial

if TYPE_CHECKING:  # where it is used it is imported: whoever only names this strategy does not wait for it
    import optuna
    from optuna.distributions import BaseDistribution

PROPOSALS = 20  # how often the model may propose what the constraints forbid before a random draw is taken


@dataclasses.dataclass(frozen=True)
class TpeConfig(StrategyConfig):
    startup: int = 10
    """finished random trials before the model proposes"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("startup", self.startup, 1)


def tpe(space: SearchSpace, config: TpeConfig) -> Strategy:
    """Random trials until ``config.startup`` are told, then what the model holds most promising.

    Choices that always exist are modelled jointly, conditional ones each from the trials that have them.
    Outstanding trials count as bad ones, so that parallel workers spread out; failed ones as worse than
    all others, without a score of their own. Trial i depends on which trials were asked and told before
    it, not on their order. Without end unless ``config.trials`` is set.
    """
    model = Model(space, config)
    return FullBudget(space, config, model.propose, take=model.take, observe=model.observe)


class Model:
    """An Optuna study that holds our trials in the order of their ids, and a scratch trial to sample for."""

    def __init__(self, space: SearchSpace, config: TpeConfig, objectives: int = 1) -> None:
        import optuna

        self._space, self._config = space, config
        self._distributions = {name: _distribution(choice) for name, choice in space.choices.items()}
        # In Optuna's order, which the random numbers follow.
        self._joint = {
            name: self._distributions[name]
            for name in sorted(self._distributions)
            if name not in space.conditions and not self._distributions[name].single()
        }
        self._told = 0
        self._numbers: dict[int, int] = {}  # Optuna's number of each outstanding trial
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every new study
        maximize = optuna.study.StudyDirection.MAXIMIZE
        self._study = optuna.create_study(directions=[maximize] * objectives)
        optuna.logging.set_verbosity(verbosity)
        # To add a trial for every proposal would take longer than the proposal. It is running and without
        # values, and as the one that is sampled for not among the data.
        self._scratch = self._study.ask()
        self._size = 1

    def propose(self, i: int) -> Iterator[Architecture]:
        import optuna

        at_random = drawn(self._space, self._config.seed, i)
        if self._told < self._config.startup:
            yield from at_random
            return
        for k in itertools.count():
            key = np.random.SeedSequence(self._config.seed, spawn_key=(i, 0, k) if k else (i, 0))
            sampler = optuna.samplers.TPESampler(
                seed=int(key.generate_state(1)[0]),
                n_startup_trials=1,
                multivariate=True,
                constant_liar=True,
            )
            suggested = (self._suggested(sampler) for _ in range(PROPOSALS))
            yield next(filter(self._holds, suggested), None) or next(at_random)

    def _holds(self, arch: Architecture) -> bool:
        try:
            self._space.validate(arch)
        except InputError:
            return False
        return True

    def _suggested(self, sampler: optuna.samplers.TPESampler) -> Architecture:
        # As Optuna's own ask would; but that looks at every proposal for what is common to all trials.
        def sample(distributions: dict[str, BaseDistribution]) -> dict[str, Any]:
            return sampler.sample_relative(self._study, trial, distributions)

        trial = self._study.get_trials(deepcopy=False)[0]
        joint = sample(self._joint)
        values: dict[str, Any] = {}
        for name, choice in self._space.choices.items():
            if not exists(self._space, name, values):
                continue
            distribution = self._distributions[name]
            if distribution.single():
                values[name] = choice.default
            else:
                values[name] = joint[name] if name in joint else sample({name: distribution})[name]
                if not isinstance(choice, Categorical | Integer):  # a value that the space itself would draw
                    values[name] = choice.nearest(choice.to_unit(values[name]))
        return Architecture(values)

    def take(self, trial: Trial) -> None:
        import optuna

        arch = self._space.canonical(trial.arch)
        distributions = {name: self._distributions[name] for name in arch}
        held = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING, params=dict(arch), distributions=distributions
        )
        self._study.add_trial(held)
        self._numbers[trial.id] = self._size
        self._size += 1

    def observe(self, trial: Trial) -> None:
        self.tell(self._numbers.pop(trial.id), trial)
        self._told += 1

    def tell(self, number: int, trial: Trial) -> None:
        """``number`` is Optuna's."""
        from optuna.trial import TrialState

        score = rung_score(trial)
        if score > -math.inf:
            self._study.tell(number, score)
        else:  # pruned without a value: Optuna ranks it below every other
            self._study.tell(number, state=TrialState.PRUNED)


def _distribution(choice: Choice) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(choice, Categorical):
        return CategoricalDistribution(choice.values)
    if isinstance(choice, Integer):
        return IntDistribution(choice.low, choice.high)
    return FloatDistribution(choice.low, choice.high, log=isinstance(choice, LogUniform))


RECORD = StrategyRecord(tpe, TpeConfig, random_trials=lambda config, space: config.startup)
