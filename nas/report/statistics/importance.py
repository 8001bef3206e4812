"""Which choices of a space explain the differences in accuracy: functional analysis of variance by Optuna."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeGuard

import numpy as np

from nas.space import Architecture
from nas.trial import Trial

TREES = 24
CHANCE_TREES = 12
FEWEST_TRIALS = 8
TRUSTED_TRIALS = 50
"""With fewer trials a forest explains noise about as well as it explains choices."""
MOST_TRIALS = 300  # a forest takes longer with more of them, and its shares change little
FEW_VALUES = 6


class Importance(NamedTuple):
    """How much of the variance of validation accuracy a choice explains by itself.

    ``share``: the mean of `TREES` trees, each grown on a resample of the trials; ``low`` and ``high`` are what 90 % of
    them lie between. ``chance_share``: what a shuffled copy of the choice, put beside all choices, stays below in
    95 % of `CHANCE_TREES` trees (the shadow attributes of Kursa and Rudnicki, "Feature selection with the Boruta
    package", 2010).
    """

    choice: str
    share: float
    low: float
    high: float
    chance_share: float


class Attribution(NamedTuple):
    """`Importance` by choice, largest first, from ``trials`` trials compared at ``budget``."""

    budget: int
    trials: int
    choices: tuple[Importance, ...]

    @property
    def warning(self) -> str | None:
        """One sentence where there are fewer than `TRUSTED_TRIALS`."""
        if self.trials >= TRUSTED_TRIALS:
            return None
        return (
            f"Only {self.trials} trials: below {TRUSTED_TRIALS} these shares say little, and a choice is not to be "
            "dropped for a small one."
        )


def which_choices_mattered(trials: Iterable[Trial], *, fewest: int = FEWEST_TRIALS) -> Attribution | None:
    """The part of the variance of validation accuracy that each choice explains alone (Hutter, Hoos and Leyton-Brown,
    "An efficient approach for assessing hyperparameter importance", ICML 2014): fANOVA as Optuna has it.

    Trials are compared at one budget, the largest that at least half of them reached, for an accuracy
    after one epoch says nothing beside one after nine. A choice is judged among the trials in which it is
    active, so that ``width_3`` does not take the credit for there being a third block. The values of a choice count
    alike where they are few; where there are more than `FEW_VALUES` numbers, each part of the range counts by
    the trials in it. Of more than `MOST_TRIALS` trials so many are drawn. Choices with one value are left out.

    What it cannot say: interactions are in nobody's share; a search that adapts looks at good regions more
    closely, which hides what keeps the bad ones bad.

    Returns None with fewer than ``fewest`` trials to compare, or when their accuracies are all equal.
    """
    # What was not trained, as a constraint was violated, has no accuracy.
    measured = [
        trial for trial in trials if math.isfinite(trial.score) and math.isfinite(_accuracy_at(trial, 1))
    ]
    if not measured:
        return None
    budget = sorted((trial.spent for trial in measured), reverse=True)[(len(measured) - 1) // 2]
    compared = [
        (trial.arch, accuracy) for trial in measured if math.isfinite(accuracy := _accuracy_at(trial, budget))
    ]
    many = len(compared)
    if many > MOST_TRIALS:
        drawn = np.random.default_rng(0).choice(many, MOST_TRIALS, replace=False)
        compared = [compared[k] for k in sorted(drawn)]
    whole = _squares([accuracy for _, accuracy in compared])
    if many < fewest or not whole:
        return None
    found: list[Importance] = []
    for active, names in _together([arch for arch, _ in compared]).items():
        rows = [compared[k] for k in active]
        accuracies = [accuracy for _, accuracy in rows]
        part = _squares(accuracies) / whole
        if len(rows) < fewest or not part:
            continue
        present = set.intersection(*(set(arch) for arch, _ in rows))
        values = {name: [arch[name] for arch, _ in rows] for name in rows[0][0] if name in present}
        found += [
            one._replace(
                **{name: part * getattr(one, name) for name in ("share", "low", "high", "chance_share")}
            )
            for one in _fanova(values, accuracies, names)
        ]
    ranked = sorted(found, key=lambda importance: (-importance.share, importance.choice))
    return Attribution(budget, many, tuple(ranked))


def _together(archs: Sequence[Architecture]) -> dict[tuple[int, ...], list[str]]:
    """Choices by the architectures in which they are active, without those that have one value."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in dict.fromkeys(name for arch in archs for name in arch):
        active = tuple(k for k, arch in enumerate(archs) if name in arch)
        if len({repr(archs[k][name]) for k in active}) > 1:
            groups.setdefault(active, []).append(name)
    return groups


def _fanova(
    values: Mapping[str, Sequence[Hashable]], accuracies: Sequence[float], names: Sequence[str]
) -> list[Importance]:
    """The importance of ``names`` among all choices of ``values``, each a column of the trials."""
    import optuna  # it takes a second
    from optuna.distributions import BaseDistribution, FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator

    columns: dict[str, Sequence[float]] = {}
    distributions: dict[str, BaseDistribution] = {}
    for name, of in values.items():
        column, few = _numbered(of)
        if len(set(column)) > 1:
            columns[name] = column
            # Half a step beyond the first and the last of few values: then a tree's parts weigh them alike.
            distributions[name] = (
                FloatDistribution(-0.5, max(column) + 0.5) if few else FloatDistribution(0, 1)
            )

    def shadow(name: str) -> str:
        return f"shuffled {name}"

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def shares(trees: int) -> dict[str, np.ndarray]:
        study = optuna.create_study(direction="maximize")
        study.add_trials(
            [
                optuna.create_trial(
                    params={name: column[k] for name, column in columns.items()},
                    distributions=distributions,
                    value=value,
                )
                for k, value in enumerate(accuracies)
            ]
        )
        # A forest of one tree each time: its shares differ from tree to tree, which a forest's mean hides.
        found: dict[str, list[float]] = {name: [] for name in columns}
        for seed in range(trees):
            with contextlib.suppress(RuntimeError):  # all accuracies of its resample are equal
                tree = FanovaImportanceEvaluator(n_trees=1, seed=seed).evaluate(study, params=list(columns))
                for name, share in tree.items():
                    found[name].append(float(share))
        return {name: np.nan_to_num(of or [0.0]) for name, of in found.items()}

    grown = shares(TREES)
    rng = np.random.default_rng(1)
    for name in names:
        columns[shadow(name)] = rng.permutation(np.asarray(columns[name])).tolist()
        distributions[shadow(name)] = distributions[name]
    by_chance = shares(CHANCE_TREES)
    found = []
    for name in names:
        low, high = np.quantile(grown[name], [0.05, 0.95])
        chance = float(np.quantile(by_chance[shadow(name)], 0.95))
        found.append(Importance(name, float(grown[name].mean()), float(low), float(high), chance))
    return found


def _numbered(values: Sequence[Hashable]) -> tuple[list[float], bool]:
    """A number for each value, and whether they are few, counted from 0: else ranks in [0, 1]."""
    numbers = [value for value in values if _is_number(value)]
    distinct = set(map(repr, values))
    if len(numbers) == len(values) and len(distinct) > FEW_VALUES:
        ordered = np.sort(numbers)
        below = np.searchsorted(ordered, numbers) + np.searchsorted(ordered, numbers, side="right")
        return (below / (2 * len(numbers))).tolist(), False
    order = sorted(set(numbers)) if len(numbers) == len(values) else list(dict.fromkeys(map(repr, values)))
    places = {repr(value) if len(numbers) == len(values) else value: k for k, value in enumerate(order)}
    return [places[repr(value)] for value in values], True


def _squares(values: Sequence[float]) -> float:
    if len(set(values)) < 2:  # their mean may differ from them in the last bit
        return 0.0
    array = np.asarray(values)
    return float(((array - array.mean()) ** 2).sum())


def _accuracy_at(trial: Trial, budget: int) -> float:
    """NaN for a trial that did not come as far."""
    if trial.spent < budget:
        return math.nan
    return next((m.valid_accuracy for m in reversed(trial.measurements) if m.budget <= budget), math.nan)


def _is_number(value: Hashable) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
