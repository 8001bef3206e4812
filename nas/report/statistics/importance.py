"""Which choices of a space explain the differences in accuracy."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple, TypeGuard

import numpy as np
import scipy.special

from nas.trial import Trial


class Importance(NamedTuple):
    """How much of the variance of validation accuracy a choice explains by itself.

    ``share`` is the sum of squares between the choice's values over the whole sum of squares.
    ``chance_share`` is what a choice without any effect stays below in 95 of 100 cases.
    """

    choice: str
    share: float
    chance_share: float


class Attribution(NamedTuple):
    """`Importance` by choice, largest first, from ``trials`` trials compared at ``budget``."""

    budget: int
    trials: int
    choices: tuple[Importance, ...]


def which_choices_mattered(trials: Iterable[Trial], *, fewest: int = 8) -> Attribution | None:
    """Variance of validation accuracy explained by each choice alone (one-way, eta squared).

    Trials are compared at one budget, the largest that at least half of them reached, for an accuracy
    after one epoch says nothing beside one after nine. A choice is judged among the trials in which it is
    active, so that ``width_3`` does not take the credit for there being a third block. Numeric choices
    with more than six values are cut into four groups of equal size. Choices with one value are left out.

    What it cannot say: interactions are not seen; choices that a search set together share the credit; a
    search that adapts looks at good regions more closely, which hides what keeps the bad ones bad. With
    few trials and many values the share is large by chance: hence ``chance_share``, from the distribution
    of eta squared without an effect, Beta((k - 1) / 2, (n - k) / 2) for k groups of n normal values.

    Returns None with fewer than ``fewest`` trials to compare, or when their accuracies are all equal.
    """
    measured = [trial for trial in trials if math.isfinite(trial.score)]
    if not measured:
        return None
    budget = sorted((trial.spent for trial in measured), reverse=True)[(len(measured) - 1) // 2]
    compared = [
        (trial.arch, accuracy) for trial in measured if math.isfinite(accuracy := _accuracy_at(trial, budget))
    ]
    whole = _squares(np.asarray([accuracy for _, accuracy in compared]))
    if len(compared) < fewest or not whole:
        return None
    importances = []
    for choice in dict.fromkeys(name for arch, _ in compared for name in arch):
        active = [(arch[choice], accuracy) for arch, accuracy in compared if choice in arch]
        groups = _groups([value for value, _ in active])
        accuracies = np.asarray([accuracy for _, accuracy in active])
        count, within = int(groups.max()) + 1, len(groups) - int(groups.max()) - 1
        if count == 1 or not within:
            continue
        inside = sum(_squares(accuracies[groups == group]) for group in range(count))
        chance = float(scipy.special.betaincinv((count - 1) / 2, within / 2, 0.95))
        squares = _squares(accuracies)
        importances.append(Importance(choice, (squares - inside) / whole, chance * squares / whole))
    ranked = sorted(importances, key=lambda importance: (-importance.share, importance.choice))
    return Attribution(budget, len(compared), tuple(ranked))


def _squares(values: np.ndarray) -> float:
    return float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0


def _accuracy_at(trial: Trial, budget: int) -> float:
    """NaN for a trial that did not come as far."""
    if trial.spent < budget:
        return math.nan
    return next((m.valid_accuracy for m in reversed(trial.measurements) if m.budget <= budget), math.nan)


def _is_number(value: Hashable) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _groups(values: Sequence[Hashable]) -> np.ndarray:
    """A group number for each value, counting from 0 without gaps."""
    numbers = [value for value in values if _is_number(value)]
    if len(set(numbers)) > 6:
        quartiles = np.quantile(numbers, [0.25, 0.5, 0.75])
        values = [int(np.searchsorted(quartiles, value)) if _is_number(value) else value for value in values]
    numbered = {value: number for number, value in enumerate(dict.fromkeys(map(repr, values)))}
    return np.asarray([numbered[repr(value)] for value in values])
