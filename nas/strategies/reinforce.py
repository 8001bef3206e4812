"""REINFORCE (Williams, "Simple statistical gradient-following algorithms", 1992) over a factorised policy, as
the baseline of NAS-Bench-101 (Ying et al., ICML 2019) and NAS-Bench-201 (Dong and Yang, ICLR 2020)."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from nas.errors import InputError
from nas.space import Architecture, Categorical, Choice, Integer, SearchSpace
from nas.strategies.base import (
    FullBudget,
    Strategy,
    StrategyConfig,
    StrategyRecord,
    drawn,
    exists,
    generator,
    rung_score,
)
from nas.trial import INFEASIBLE, Trial

BINS = 10  # parts of a continuous choice, or of an integer one with more values, that have one logit each
DRAWS = 100  # how often the policy may draw what the constraints forbid before a random draw is taken
DECAYS, SMALL = (0.9, 0.999), 1e-8  # Adam's
KEPT_EVERY = 16  # trials: the policy as it was is kept for trials of parallel workers that are told late


@dataclasses.dataclass(frozen=True)
class ReinforceConfig(StrategyConfig):
    policy_rate: float = 0.1
    """Adam's learning rate for the policy's logits"""
    baseline_decay: float = 0.9
    """how much of the baseline, a moving average of the accuracies, a trial leaves as it was"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.policy_rate < math.inf:
            raise InputError(f"strategy: policy_rate={self.policy_rate} is not above 0")
        if not 0 <= self.baseline_decay < 1:
            raise InputError(f"strategy: baseline_decay={self.baseline_decay} is not from 0 to below 1")


def reinforce(space: SearchSpace, config: ReinforceConfig) -> Strategy:
    """Draws from a policy that makes every choice by itself, given which choices exist.

    A told trial moves the logits of the choices that its architecture has along the gradient of its log
    probability times accuracy less baseline, by Adam (``config.policy_rate``). The baseline is a moving
    average of the accuracies, that of the trial included (``config.baseline_decay``). Of another objective,
    the values over the first one stand for accuracies where that is beyond 1, brought to between -2 and 2; a
    violated constraint gives -2 less the violation. A failed trial counts as the worst told before it. Trials
    are counted in the order of their ids, so what trial i is depends on which trials were told before it, not
    on their order. Without end unless ``config.trials`` is set.
    """
    policy = _Policy(space, config)
    return FullBudget(space, config, policy.propose, observe=policy.observe)


class _Part(NamedTuple):
    """One choice and its logits in the policy's vector."""

    name: str
    choice: Choice
    bins: int
    logits: slice


class _State(NamedTuple):
    """The policy, Adam's moments of its gradient, the moving average of the rewards, the worst of them, and the score
    that is a reward of 1 (NaN: none has been told that violates nothing)."""

    logits: np.ndarray
    mean: np.ndarray
    square: np.ndarray
    steps: int
    total: float
    weight: float
    worst: float
    unit: float


class _Policy:
    def __init__(self, space: SearchSpace, config: ReinforceConfig) -> None:
        self._space, self._config = space, config
        bins = {name: _bins(choice) for name, choice in space.choices.items()}
        ends = list(itertools.accumulate(bins.values()))
        self._parts = [
            _Part(name, space.choices[name], bins[name], slice(end - bins[name], end))
            for name, end in zip(bins, ends, strict=True)
        ]
        self._width = ends[-1]
        self._told: list[tuple[int, Architecture, float]] = []  # by id
        nothing = np.zeros(self._width)
        self._state = _State(nothing, nothing, nothing, 0, 0.0, 0.0, math.inf, math.nan)
        self._kept = [self._state]  # after each KEPT_EVERY of them

    @property
    def _logits(self) -> np.ndarray:
        return self._state.logits

    def propose(self, i: int) -> Iterator[Architecture]:
        rng = generator(self._config.seed, i)
        at_random = drawn(self._space, self._config.seed, i)
        chances = [_chances(self._logits[part.logits]).cumsum() for part in self._parts]
        while True:
            own = (self._draw(rng, chances) for _ in range(DRAWS))
            yield next(filter(self._holds, own), None) or next(at_random)

    def _draw(self, rng: np.random.Generator, chances: list[np.ndarray]) -> Architecture:
        values: dict[str, Any] = {}
        for part, upto in zip(self._parts, chances, strict=True):
            if exists(self._space, part.name, values):
                k = min(int(upto.searchsorted(rng.random(), side="right")), part.bins - 1)
                values[part.name] = _value(part, k, rng)
        return Architecture(values)

    def _holds(self, arch: Architecture) -> bool:
        if not self._space.constraints:
            return True
        try:
            self._space.validate(arch)
        except InputError:
            return False
        return True

    def observe(self, trial: Trial) -> None:
        told = (trial.id, trial.arch, rung_score(trial))
        bisect.insort(self._told, told, key=lambda t: t[0])
        place = bisect.bisect_left(self._told, trial.id, key=lambda t: t[0])
        if place + 1 < len(self._told):  # of parallel workers: those behind it once more, in their order
            del self._kept[place // KEPT_EVERY + 1 :]
            self._state = self._kept[-1]
            place = place // KEPT_EVERY * KEPT_EVERY
        for k in range(place, len(self._told)):
            self._state = self._learned(self._state, *self._told[k][1:])
            if (k + 1) % KEPT_EVERY == 0:
                self._kept.append(self._state)

    def _learned(self, state: _State, arch: Architecture, score: float) -> _State:
        """The policy after one trial more."""
        unit = state.unit
        if math.isnan(unit) and score > INFEASIBLE:
            unit = max(1.0, abs(score))
        reward = _reward(score, unit) if score > -math.inf else state.worst
        if reward == math.inf:
            return state
        decay = self._config.baseline_decay
        total = decay * state.total + (1 - decay) * reward
        weight = decay * state.weight + (1 - decay)
        advantage = reward - total / weight
        gradient = np.zeros(self._width)
        for part in self._parts:
            if part.name in arch:
                gradient[part.logits] = -_chances(state.logits[part.logits])
                gradient[part.logits.start + _bin(part, arch[part.name])] += 1
        gradient *= advantage
        steps = state.steps + 1
        mean = state.mean + (1 - DECAYS[0]) * (gradient - state.mean)
        square = state.square + (1 - DECAYS[1]) * (gradient**2 - state.square)
        corrected = mean / (1 - DECAYS[0] ** steps)
        deviation = np.sqrt(square / (1 - DECAYS[1] ** steps))
        logits = state.logits + self._config.policy_rate * corrected / (deviation + SMALL)
        return _State(logits, mean, square, steps, total, weight, min(state.worst, reward), unit)


def _chances(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max())
    return odds / odds.sum()


def _reward(score: float, unit: float) -> float:
    """An accuracy as it is; beyond 1 of ``unit`` slower and slower, up to 2, so that every value has a reward above
    those of violated constraints, from -2 to -3."""
    if score <= INFEASIBLE:
        return -2 - min(score / INFEASIBLE - 1, 1.0)
    scaled = score / unit
    return scaled if abs(scaled) <= 1 else math.copysign(2 - 1 / abs(scaled), scaled)


def _bins(choice: Choice) -> int:
    if isinstance(choice, Categorical):
        return len(choice.values)
    return min(BINS, choice.high - choice.low + 1) if isinstance(choice, Integer) else BINS


def _value(part: _Part, k: int, rng: np.random.Generator) -> Any:
    """A value from bin ``k``, even over it."""
    choice = part.choice
    if isinstance(choice, Categorical):
        return choice.values[k]
    if isinstance(choice, Integer):
        values = choice.high - choice.low + 1
        first, end = -(-k * values // part.bins), -(-(k + 1) * values // part.bins)
        return choice.low + int(rng.integers(first, end))
    return choice.from_unit((k + rng.random()) / part.bins)


def _bin(part: _Part, value: Any) -> int:
    """Inverse of ``_value``."""
    choice = part.choice
    if isinstance(choice, Categorical):
        return choice.values.index(value)
    if isinstance(choice, Integer):
        return (value - choice.low) * part.bins // (choice.high - choice.low + 1)
    return min(int(choice.to_unit(value) * part.bins), part.bins - 1)


RECORD = StrategyRecord(reinforce, ReinforceConfig)
