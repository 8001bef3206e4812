"""Random scalarisations (Knowles, "ParEGO: a hybrid algorithm with on-line landscape approximation for expensive
multiobjective optimization problems", IEEE Transactions on Evolutionary Computation 2006): each trial is proposed by
a model for one objective, made of all of them by weights drawn for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from nas.errors import one_of
from nas.pareto import scaled
from nas.space import Architecture, SearchSpace
from nas.strategies.bananas import PARENTS, BananasConfig, fit, mutants, normal_scores
from nas.strategies.base import FullBudget, Strategy, StrategyRecord, drawn, generator
from nas.strategies.dominance import Point, best, insert, point
from nas.strategies.tpe import Model, TpeConfig
from nas.trial import INFEASIBLE, Measurement, Trial

AUGMENTED = 0.05  # rho, the weight of the sum beside the largest weighted loss (Knowles 2006, equation 2)
MODELS = ("bananas", "tpe")


@dataclasses.dataclass(frozen=True)
class ParegoConfig(BananasConfig):
    model: Literal["bananas", "tpe"] = "bananas"
    """what proposes for the weights drawn: bananas, an ensemble that predicts each objective; tpe"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model not in MODELS:
            raise one_of("strategy: model", self.model, MODELS)


def parego(space: SearchSpace, config: ParegoConfig) -> Strategy:
    """Random trials until ``config.startup`` are told, then what a model proposes for weights drawn for each trial.

    Weights are even over the simplex. A trial's loss is the largest of its weighted objectives' losses and a little
    of their sum, the objectives scaled to [0, 1] over what was told; one that violates a constraint ranks below all
    that do not, the lower the more it does, and a failed one lowest.

    With ``config.model="bananas"`` the ensemble of `nas.strategies.bananas` predicts the normal score of each
    objective's rank; candidates are mutants of the best by fronts, and each trial's is the one whose draw from the
    predictions has the least loss. With ``"tpe"`` it is Optuna's TPE, told the losses anew for each trial's weights,
    which takes a tenth of a second at a hundred trials.
    """
    kind = _Tpe if config.model == "tpe" else _Ensemble
    search = kind(space, config)
    return FullBudget(space, config, search.propose, take=search.take, observe=search.observe)


def scalarised(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float [n]: the augmented Tchebycheff norm of ``losses`` [n, objectives] in [0, 1]; less is better."""
    weighted = losses * weights
    return weighted.max(axis=1) + AUGMENTED * weighted.sum(axis=1)


def drawn_weights(seed: int, i: int, objectives: int) -> np.ndarray:
    """Those of trial ``i``, which add up to 1."""
    return generator(seed, i, 2).dirichlet(np.ones(objectives))


class _Ensemble:
    def __init__(self, space: SearchSpace, config: ParegoConfig) -> None:
        self._space, self._config = space, config
        self._features = space.features or space.encode
        self._asked: set[Architecture] = set()
        self._told: list[tuple[int, Architecture, Point | None]] = []  # by id
        self._data: tuple[int, ...] = ()  # ids of what the predictions are made from
        self._candidates: list[Architecture] = []
        self._predicted = np.empty((0, 0, 0))  # normal scores [objective, network, candidate]

    def propose(self, i: int) -> Iterator[Architecture]:
        seed = self._config.seed
        if len(self._told) >= self._config.startup:
            rounds = (len(self._told) - self._config.startup) // self._config.refit
            data = self._told[: self._config.startup + rounds * self._config.refit]
            ids = tuple(held[0] for held in data)
            if ids != self._data:
                self._data = ids
                self._predict(data)
            if self._candidates:
                from scipy.special import ndtr

                rng, predicted = generator(seed, i), self._predicted
                draws = rng.normal(predicted.mean(axis=1), predicted.std(axis=1))
                weights = drawn_weights(seed, i, len(predicted))
                order = np.argsort(scalarised(1 - ndtr(draws.T), weights), kind="stable")
                yield from (self._candidates[k] for k in order if self._candidates[k] not in self._asked)
        yield from drawn(self._space, seed, i)

    def take(self, trial: Trial) -> None:
        self._asked.add(trial.arch)

    def observe(self, trial: Trial) -> None:
        self._told.append((trial.id, trial.arch, point(trial)))
        self._told.sort(key=lambda held: held[0])

    def _predict(self, data: Sequence[tuple[int, Architecture, Point | None]]) -> None:
        measured = [held for _, _, held in data if held is not None]
        self._candidates = []
        if not measured:
            return
        rng = generator(self._config.seed, len(data), 1)
        parents = [held.arch for held in best(measured, PARENTS)]
        known = {arch for _, arch, _ in data}
        self._candidates = mutants(self._space, parents, known, self._config.candidates, rng)
        if not self._candidates:
            return
        objectives = len(measured[0].gains)
        targets = np.array([_targets(held, objectives) for _, _, held in data])
        inputs = np.stack([self._features(arch) for _, arch, _ in data])
        wanted = np.stack([self._features(arch) for arch in self._candidates])
        self._predicted = np.stack(
            [fit(inputs, normal_scores(column), self._config.ensemble, rng)(wanted) for column in targets.T]
        )


def _targets(held: Point | None, objectives: int) -> tuple[float, ...]:
    """What each objective's ranks are of."""
    if held is None:
        return (-np.inf,) * objectives
    return held.gains if held.violation == 0 else (INFEASIBLE * (1 + held.violation),) * objectives


class _Tpe:
    def __init__(self, space: SearchSpace, config: ParegoConfig) -> None:
        self._space, self._config = space, config
        self._taken: dict[int, Trial] = {}
        self._told: dict[int, Trial] = {}
        self._points: list[Point] = []  # by id

    def propose(self, i: int) -> Iterator[Architecture]:
        kept = [held for held in self._points if held.violation == 0]
        if len(self._told) < self._config.startup or not self._points:
            yield from drawn(self._space, self._config.seed, i)
            return
        scores = {held.id: INFEASIBLE * (1 + held.violation) for held in self._points}
        if kept:
            gains = scaled(np.array([held.gains for held in kept], float))
            losses = scalarised(1 - gains, drawn_weights(self._config.seed, i, gains.shape[1]))
            scores |= {held.id: -loss for held, loss in zip(kept, losses.tolist(), strict=True)}
        config = TpeConfig(self._config.seed, self._config.trials, self._config.epochs, self._config.startup)
        model = Model(self._space, config)
        for trial in sorted(self._taken.values(), key=lambda trial: trial.id):
            model.take(trial)
        for trial in sorted(self._told.values(), key=lambda trial: trial.id):
            score = scores.get(trial.id)
            told = (Measurement(trial.budget, score, 0.0, 0.0, 0.0),) if score is not None else ()
            model.observe(trial.replace(measurements=told))
        yield from model.propose(i)

    def take(self, trial: Trial) -> None:
        self._taken[trial.id] = trial

    def observe(self, trial: Trial) -> None:
        self._told[trial.id] = trial
        new = point(trial)
        if new is not None:
            insert(self._points, new)


RECORD = StrategyRecord(
    parego, ParegoConfig, random_trials=lambda config, space: config.startup, objectives="several"
)
