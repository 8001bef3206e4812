"""BANANAS (White, Neiswanger and Savani, "BANANAS: Bayesian optimization with neural architectures for neural
architecture search", AAAI 2021, algorithm 1): an ensemble of small networks predicts what is worth training."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from nas.errors import one_of
from nas.space import Architecture, SearchSpace
from nas.strategies.base import (
    FullBudget,
    Strategy,
    StrategyConfig,
    StrategyRecord,
    check_at_least,
    drawn,
    generator,
    rung_score,
)
from nas.trial import INFEASIBLE, Trial

Features: TypeAlias = Callable[[Architecture], np.ndarray]

WIDTH = 20  # of the two hidden layers of each network
STEPS, RATE = 60, 0.02  # of Adam on all the data
DECAYS, SMALL = (0.9, 0.999), 1e-8  # Adam's
PARENTS = 10  # the best so far, which the candidates are mutants of
TRIES = 10  # mutations for each candidate wanted, before those there are must do


@dataclasses.dataclass(frozen=True)
class BananasConfig(StrategyConfig):
    startup: int = 10
    """finished random trials before the model proposes"""
    ensemble: int = 5
    """how many networks predict the accuracy"""
    candidates: int = 100
    """mutants of the best that the networks choose from"""
    refit: int = 10
    """so many more trials told, and the networks are trained again"""
    targets: str = "normal_scores"
    """what the networks predict: normal_scores of the accuracies' ranks, or standardised accuracies"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("startup", "ensemble", "candidates", "refit"):
            check_at_least(name, getattr(self, name), 1)
        if self.targets not in TARGETS:
            raise one_of("strategy: targets", self.targets, TARGETS)


def bananas(space: SearchSpace, config: BananasConfig, features: Features | None = None) -> Strategy:
    """Random trials until ``config.startup`` are told, then what an ensemble of networks draws as best.

    At every ``config.refit`` trials told, ``config.ensemble`` networks are trained to predict accuracy from
    ``features`` of an architecture (those of the space, else ``space.encode``, unless given). Of
    ``config.candidates`` new mutants of the best, those come first whose draw from a normal distribution is
    highest, with mean and deviation those of the networks (independent Thompson sampling).

    Other than in the paper the networks have two hidden layers instead of ten, and predict ``config.targets``: unless
    told otherwise the normal score of an accuracy's rank, which no diverged trial can distort. Failed trials are the
    worst. The data are the
    trials with the lowest ids, so what trial i is depends on which were asked and told before it, not on
    their order. Without end unless ``config.trials`` is set.
    """
    search = _Search(space, config, features or space.features or space.encode)
    return FullBudget(space, config, search.propose, take=search.take, observe=search.observe)


class _Search:
    def __init__(self, space: SearchSpace, config: BananasConfig, features: Features) -> None:
        self._space, self._config, self._features = space, config, features
        self._asked: set[Architecture] = set()
        self._told: list[tuple[Trial, float, np.ndarray]] = []  # by id
        self._data: tuple[int, ...] = ()  # ids of what the ranking is made from
        self._ranking: list[Architecture] = []

    def propose(self, i: int) -> Iterator[Architecture]:
        if len(self._told) >= self._config.startup:
            rounds = (len(self._told) - self._config.startup) // self._config.refit
            data = self._told[: self._config.startup + rounds * self._config.refit]
            ids = tuple(trial.id for trial, _, _ in data)
            if ids != self._data:
                self._data, self._ranking = ids, self._ranked(data)
            yield from (arch for arch in self._ranking if arch not in self._asked)
        yield from drawn(self._space, self._config.seed, i)

    def take(self, trial: Trial) -> None:
        self._asked.add(trial.arch)

    def observe(self, trial: Trial) -> None:
        told = (trial, rung_score(trial), self._features(trial.arch))
        bisect.insort(self._told, told, key=lambda t: t[0].id)

    def _ranked(self, data: Sequence[tuple[Trial, float, np.ndarray]]) -> list[Architecture]:
        """The candidates, the most promising first."""
        scores = np.asarray([score for _, score, _ in data])
        if scores.max() == -math.inf:
            return []
        rng = generator(self._config.seed, len(data), 1)
        best = sorted((t for t in data if t[1] > -math.inf), key=lambda t: (-t[1], t[0].id))
        parents = [trial.arch for trial, _, _ in best[:PARENTS]]
        known = {trial.arch for trial, _, _ in data}
        candidates = mutants(self._space, parents, known, self._config.candidates, rng)
        if not candidates:
            return []
        inputs = np.stack([features for _, _, features in data])
        predict = fit(inputs, TARGETS[self._config.targets](scores), self._config.ensemble, rng)
        predicted = predict(np.stack([self._features(arch) for arch in candidates]))
        draws = rng.normal(predicted.mean(axis=0), predicted.std(axis=0))
        return [candidates[k] for k in np.argsort(-draws, kind="stable")]


def mutants(
    space: SearchSpace,
    parents: Sequence[Architecture],
    known: set[Architecture],
    many: int,
    rng: np.random.Generator,
) -> list[Architecture]:
    """One edit from a parent, two with chance 1/2, three with 1/4 and so on; each once and not ``known``."""
    found: dict[Architecture, None] = {}
    for k in range(TRIES * many):
        arch = space.mutate(parents[k % len(parents)], rng)
        while rng.random() < 0.5:
            arch = space.mutate(arch, rng)
        if arch not in known:
            found[arch] = None
        if len(found) == many:
            break
    return list(found)


def normal_scores(values: np.ndarray) -> np.ndarray:
    """What a normal sample would have at the ranks of ``values`` (Blom's formula); equal values share theirs."""
    _, place, many = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(many) - (many - 1) / 2)[place]
    from scipy.special import ndtri  # here: it takes a fifth of a second

    return ndtri((ranks - 0.375) / (len(values) + 0.25))


def standardised(values: np.ndarray) -> np.ndarray:
    """Less their mean, over their deviation; what failed or violates a constraint counts as the least of the others."""
    scored = np.isfinite(values) & (values > INFEASIBLE)
    finite = np.where(scored, values, values[scored].min() if scored.any() else 0.0)
    return (finite - finite.mean()) / max(finite.std(), 1e-12)


TARGETS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "normal_scores": normal_scores,
    "standardised": standardised,
}


def fit(
    inputs: np.ndarray, targets: np.ndarray, members: int, rng: np.random.Generator
) -> Callable[[np.ndarray], np.ndarray]:
    """Networks trained from ``inputs`` [n, features] to ``targets`` [n], all side by side in one array.

    Returns their predictions [members, m] for inputs [m, features]. Squared error, ReLU, float32.
    """
    x, y = inputs.astype(np.float32), targets.astype(np.float32)[:, None]
    sizes = (x.shape[1], WIDTH, WIDTH, 1)
    shapes = [shape for a, b in itertools.pairwise(sizes) for shape in ((members, a, b), (members, 1, b))]
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    theta, gradient = np.zeros(ends[-1], np.float32), np.zeros(ends[-1], np.float32)

    def parts(vector: np.ndarray) -> list[np.ndarray]:
        pieces = np.split(vector, ends[:-1])
        return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    parameters, gradients = parts(theta), parts(gradient)
    weights, biases = parameters[::2], parameters[1::2]
    for w in weights:
        w[...] = rng.standard_normal(w.shape, np.float32) * math.sqrt(2 / w.shape[1])

    def forward(x: np.ndarray) -> list[np.ndarray]:
        layers = [x]
        for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
            layer = layers[-1] @ w
            layer += b
            layers.append(np.maximum(layer, 0, out=layer) if k < len(weights) - 1 else layer)
        return layers

    mean, square = np.zeros_like(theta), np.zeros_like(theta)
    for step in range(1, STEPS + 1):
        *layers, out = forward(x)
        error = (out - y) * np.float32(2 / len(x))
        for k in reversed(range(len(weights))):
            np.matmul(np.swapaxes(layers[k], -1, -2), error, out=gradients[2 * k])
            error.sum(axis=1, keepdims=True, out=gradients[2 * k + 1])
            if k:
                error = error @ np.swapaxes(weights[k], -1, -2)
                error *= layers[k] > 0
        mean += (gradient - mean) * np.float32(1 - DECAYS[0])
        square += (gradient * gradient - square) * np.float32(1 - DECAYS[1])
        rate = RATE / (1 - DECAYS[0] ** step)
        theta -= rate * mean / (np.sqrt(square * (1 / (1 - DECAYS[1] ** step))) + SMALL)
    return lambda x: forward(x.astype(np.float32))[-1][..., 0]


RECORD = StrategyRecord(bananas, BananasConfig, random_trials=lambda config, space: config.startup)
