"""BOHB (Falkner, Klein and Hutter, "BOHB: robust and efficient hyperparameter optimization at scale", ICML 2018,
algorithm 2): Hyperband whose new trials come from a model of the good and the bad ones."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from nas.errors import InputError
from nas.space import Architecture, Categorical, Integer, SearchSpace
from nas.strategies import hyperband
from nas.strategies.base import Strategy, StrategyRecord, drawn, exists, generator, rung_score
from nas.strategies.hyperband import HyperbandConfig
from nas.strategies.successive_halving import Halving, planned_budget
from nas.trial import Trial

GOOD = 0.15  # the part of the trials at a budget that counts as good
SAMPLES = 64  # draws from the density of the good ones, of which the best is taken
WIDER = 3.0  # than the kernels of the density are those that numbers are drawn from
NARROWEST = 1e-3  # bandwidth of a number, as a part of its range; of an integer at least half a step


@dataclasses.dataclass(frozen=True)
class BohbConfig(HyperbandConfig):
    random_fraction: float = 1 / 3
    """the part of the trials drawn at random even where there is a model"""
    pseudo_trials: float = 0.3
    """the bandwidth of a categorical choice is such that each of its values counts as if so many trials more had it"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.random_fraction <= 1:
            raise InputError(f"strategy: random_fraction={self.random_fraction} is not from 0 to 1")
        if not 0 < self.pseudo_trials < math.inf:
            raise InputError(f"strategy: pseudo_trials={self.pseudo_trials} is not above 0")


def bohb(space: SearchSpace, config: BohbConfig) -> Strategy:
    """Hyperband's brackets; a part ``config.random_fraction`` of their trials drawn, the others proposed.

    A proposal is, of 64 draws from a kernel density of the good trials, the one with the highest ratio of
    that to the density of the bad ones. They are told apart at the largest budget where, with d choices,
    d + 3 trials have been told: the best 15 % and the others, but at least d + 1 of each, which overlap
    where there are few. Failed trials are the worst. A kernel is a product over choices: normal for
    numbers; for others, and for whether a conditional choice exists, Aitchison and Aitken's. What trial i is
    depends on which were told before it, not on their order.

    Other than in the authors' code, which takes the places of values in their list for numbers, the bandwidth
    of a categorical choice is such that each of its values counts as if ``config.pseudo_trials`` more had it.
    """
    model = _Model(space, config)
    return Halving(space, config, hyperband.plan(config), propose=model.propose, observe=model.observe)


def open_choices(space: SearchSpace) -> list[str]:
    """The choices that have more than one value."""
    return [
        name
        for name, choice in space.choices.items()
        if not isinstance(choice, Categorical | Integer) or len(choice.options()) > 1
    ]


class _Model:
    """Trials as rows of numbers: for each choice an index or a part of its range, NaN where it does not exist;
    then for each conditional choice whether it does."""

    def __init__(self, space: SearchSpace, config: BohbConfig) -> None:
        self._space, self._config = space, config
        self._names = open_choices(space)
        self._conditional = [k for k, name in enumerate(self._names) if name in space.conditions]
        choices = (space.choices[name] for name in self._names)
        categories = [len(choice.values) if isinstance(choice, Categorical) else 0 for choice in choices]
        self._categories = np.array([*categories, *(2 for _ in self._conditional)])
        steps = [
            c.high - c.low if isinstance(c := space.choices[name], Integer) else 0 for name in self._names
        ]
        self._narrowest = np.array(
            [max(NARROWEST, 0.5 / n if n else 0) for n in steps] + [0.0] * len(self._conditional)
        )
        self._told: dict[
            int, list[tuple[float, int, np.ndarray]]
        ] = {}  # by budget; loss, id, row; best first
        self._fitted: tuple[int, int] = (0, 0)  # the budget and number of trials that the densities are from
        self._good: _Density
        self._bad: _Density

    def observe(self, trial: Trial) -> None:
        told = (-rung_score(trial), trial.id, self._row(trial.arch))
        bisect.insort(self._told.setdefault(trial.budget, []), told, key=lambda t: t[:2])

    def propose(self, i: int) -> Iterator[Architecture]:
        rng = generator(self._config.seed, i)
        if rng.random() >= self._config.random_fraction and self._fit():
            rows = self._existing(self._snapped(self._good.draw(rng, SAMPLES)))
            points = features(rows, self._categories)
            ratio = self._good.log(points) - self._bad.log(points)
            best_first = (self._architecture(rows[k]) for k in np.argsort(-ratio, kind="stable"))
            yield from filter(self._holds, best_first)
        yield from drawn(self._space, self._config.seed, i)

    def _fit(self) -> bool:
        """Brings the densities up to date; False where no budget has trials enough."""
        least = len(self._names) + 1
        budget = max((b for b, told in self._told.items() if len(told) >= least + 2), default=None)
        if budget is None or not self._names:
            return False
        told = self._told[budget]
        if self._fitted != (budget, len(told)):
            self._fitted = budget, len(told)
            rows = np.stack([row for _, _, row in told])
            points = features(rows, self._categories)
            good = max(least, int(GOOD * len(rows)))
            bad = max(least, len(rows) - good)
            given = self._categories, self._narrowest, self._config.pseudo_trials
            self._good = _Density(rows[:good], points[:good], *given)
            self._bad = _Density(rows[-bad:], points[-bad:], *given)
        return True

    def _row(self, arch: Mapping[str, Any]) -> np.ndarray:
        row = np.full(len(self._categories), np.nan)
        for k, name in enumerate(self._names):
            if name in arch:
                choice, value = self._space.choices[name], arch[name]
                row[k] = (
                    choice.values.index(value) if isinstance(choice, Categorical) else choice.to_unit(value)
                )
        row[len(self._names) :] = ~np.isnan(row[self._conditional])
        return row

    def _snapped(self, rows: np.ndarray) -> np.ndarray:
        """Whole numbers where the space has nothing between them."""
        for k, name in enumerate(self._names):
            choice = self._space.choices[name]
            if isinstance(choice, Integer):
                rows[:, k] = np.rint(rows[:, k] * (choice.high - choice.low)) / (choice.high - choice.low)
        return rows

    def _existing(self, rows: np.ndarray) -> np.ndarray:
        """Without the choices that the others rule out."""
        if self._conditional:
            for row in rows:
                values = self._values(row)
                row[: len(self._names)][[name not in values for name in self._names]] = np.nan
            rows[:, len(self._names) :] = ~np.isnan(rows[:, self._conditional])
        return rows

    def _values(self, row: np.ndarray) -> dict[str, Any]:
        numbers = dict(zip(self._names, row.tolist(), strict=False))
        values: dict[str, Any] = {}
        for name, choice in self._space.choices.items():
            if exists(self._space, name, values):
                if name not in numbers:
                    values[name] = choice.default
                elif isinstance(choice, Categorical):
                    values[name] = choice.values[int(numbers[name])]
                else:
                    values[name] = choice.nearest(numbers[name])
        return values

    def _architecture(self, row: np.ndarray) -> Architecture:
        return Architecture(self._values(row))

    def _holds(self, arch: Architecture) -> bool:
        try:
            self._space.validate(arch)
        except InputError:
            return False
        return True


class _Density:
    """A kernel density of ``rows`` [trials, choices], whose `features` are ``points``; ``categories`` [choices]
    counts the values of each, 0 for numbers in [0, 1].

    Bandwidths of numbers by the normal reference rule, 1.06 deviation n^(-1 / (4 + choices)), but at least
    ``narrowest`` [choices]; of others such that, taken alone, each value counts as if ``pseudo_trials`` more had it.
    Where a choice exists on one side only, its kernel is 1.
    """

    def __init__(
        self,
        rows: np.ndarray,
        points: np.ndarray,
        categories: np.ndarray,
        narrowest: np.ndarray,
        pseudo_trials: float = 1.0,
    ) -> None:
        self._rows, self._categories = rows, categories
        trials, choices = rows.shape
        self._bandwidths = pseudo_trials * (categories - 1) / (trials + pseudo_trials * categories)
        for k in np.flatnonzero(categories == 0):
            there = rows[~np.isnan(rows[:, k]), k]
            deviation = there.std() if len(there) else 0.0
            self._bandwidths[k] = max(1.06 * deviation * trials ** (-1 / (4 + choices)), narrowest[k])
        self._weighted = self._form() @ points.T

    def _form(self) -> np.ndarray:
        """The logarithm of the kernel as a symmetric bilinear form of `features`."""
        form, at = np.zeros((sum(map(_width, self._categories)),) * 2), 0
        for width, categories in zip(self._bandwidths, self._categories, strict=True):
            here = at + np.arange(_width(categories))
            if categories:
                other = math.log(width / (categories - 1))
                form[here[:-1], here[:-1]] = math.log(1 - width) - other
                form[here[-1], here[-1]] = other
            else:  # -(x - y)^2 / 2 w^2 - log w
                square, first, there = here
                form[square, there] = form[there, square] = -0.5 / width**2
                form[first, first] = 1 / width**2
                form[there, there] = -math.log(width)
            at = here[-1] + 1
        return form

    def log(self, points: np.ndarray) -> np.ndarray:
        """The logarithm of the density at points given by their `features`, up to what all densities share."""
        kernels = points @ self._weighted
        most = kernels.max(axis=1)
        return most + np.log(np.exp(kernels - most[:, None]).mean(axis=1))

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """``n`` points, each near a random row; numbers from wider kernels, what is not there evenly."""
        from scipy.special import ndtr, ndtri  # here: it takes a fifth of a second

        points = self._rows[rng.integers(len(self._rows), size=n)]
        units, moved = rng.random(points.shape), rng.random(points.shape) < self._bandwidths
        numbers = self._categories == 0
        absent = np.isnan(points)
        moved[:, numbers] = False
        points = np.where(absent | moved, np.floor(units * np.where(numbers, 1, self._categories)), points)
        if numbers.any():
            centre, wide = points[:, numbers], WIDER * self._bandwidths[numbers]
            low, high = ndtr(-centre / wide), ndtr((1 - centre) / wide)
            near = centre + wide * ndtri(low + units[:, numbers] * (high - low))
            points[:, numbers] = np.where(absent[:, numbers], units[:, numbers], np.clip(near, 0, 1))
        return points


def features(rows: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """What the kernels are made of: one-hot or square and value, then whether it exists; 0 where it does not."""
    parts = []
    for x, many in zip(rows.T, categories, strict=True):
        there = ~np.isnan(x)
        x = np.where(there, x, 0.0)
        parts.append(
            (x[:, None] == np.arange(many)) & there[:, None] if many else np.stack([x**2, x], axis=1)
        )
        parts.append(there[:, None])
    return np.concatenate(parts, axis=1, dtype=np.float64)


def _width(categories: int) -> int:
    return categories + 1 if categories else 3


RECORD = StrategyRecord(
    bohb,
    BohbConfig,
    planned_budget(hyperband.plan),
    random_trials=lambda config, space: len(open_choices(space)) + 3,
)
