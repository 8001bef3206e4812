"""Models fitted to a table's rows, which answer for architectures that are none of them.

Boosted trees (scikit-learn's histogram-based ones), a model a column: fitted to 0.8 of the rows, stopped by 0.1, and
judged by their rank correlation on the 0.1 that neither saw, as Accel-NASBench's authors do. A model is fitted when
its column is first asked for, some seconds, and kept in the cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nas.cache import cache_folder, is_safe
from nas.errors import one_of

FIT, STOP = 0.8, 0.9
TREES = 2_000
LEAVES = 4
RATE = 0.1
_VERSION = 1  # of the models in the cache


@dataclasses.dataclass(frozen=True)
class Trees:
    """The sum of regression trees: ``base`` plus the value of the leaf that each of ``roots`` leads to.

    Arrays are by node; a leaf's ``left`` and ``right`` are itself. ``kendall_tau`` is of the held-out rows.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    roots: np.ndarray
    base: float
    kendall_tau: float

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """float64 [row] of ``numbers`` [row, feature]."""
        found = np.empty(len(numbers))
        for k, row in enumerate(numbers):
            node = self.roots
            while True:
                following = np.where(
                    row[self.feature[node]] <= self.threshold[node], self.left[node], self.right[node]
                )
                if (following == node).all():
                    break
                node = following
            found[k] = self.base + self.value[node].sum()
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Surrogate:
    """Models of ``targets``, by name float64 [row], NaN where nobody measured, from ``numbers`` [row, feature].

    ``features`` are the choices that the numbers are; ``checksum`` that of the rows; ``authors_tau`` what the
    benchmark's authors print of their own models.
    """

    features: tuple[str, ...]
    numbers: np.ndarray
    targets: Mapping[str, np.ndarray]
    checksum: str
    authors_tau: Mapping[str, float] = dataclasses.field(default_factory=dict)
    _models: dict[str, Trees] = dataclasses.field(default_factory=dict, repr=False)

    def model(self, target: str) -> Trees:
        """That of ``target``, fitted or from the cache. InputError for one that there is not."""
        if target not in self.targets:
            raise one_of("surrogate: column", target, self.targets)
        if target not in self._models:
            path = cache_folder("surrogates") / f"{self.checksum}-{target.replace(':', '-')}-{_VERSION}.npz"
            found = None
            if is_safe(path):
                with contextlib.suppress(Exception):  # whatever is wrong with it, it can be made again
                    held = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
                    values: Any = {name: held[name] for name in held.files}
                    values |= {name: float(values[name]) for name in ("base", "kendall_tau")}
                    found = Trees(**values)
            if found is None:
                found = fitted(self.numbers, self.targets[target])
                with contextlib.suppress(OSError):
                    partial = path.with_name(f".{os.getpid()}-{path.name}")
                    np.savez(partial, **dataclasses.asdict(found))
                    partial.replace(path)
            self._models[target] = found
        return self._models[target]

    def predict(self, target: str, architectures: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """float64 [architecture]."""
        numbers = [[float(arch[name]) for name in self.features] for arch in architectures]
        return self.model(target)(np.array(numbers))


def fitted(numbers: np.ndarray, target: np.ndarray, seed: int = 0) -> Trees:
    """The model of one column; the split is drawn by ``seed``."""
    from scipy.stats import kendalltau
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    known = np.flatnonzero(~np.isnan(target))
    order = np.random.default_rng(seed).permutation(known)
    fit, stop, held = np.split(order, [int(FIT * len(order)), int(STOP * len(order))])
    regressor: Any = HistGradientBoostingRegressor
    model = regressor(
        max_iter=TREES, max_leaf_nodes=LEAVES, learning_rate=RATE, l2_regularization=1.0, early_stopping=False
    )
    with threadpool_limits(1):  # of so few rows, threads take longer to meet than to compute
        model.fit(numbers[fit], target[fit])
        errors = [np.square(p - target[stop]).mean() for p in model.staged_predict(numbers[stop])]
    nodes = [stage[0].nodes for stage in model._predictors[: int(np.argmin(errors)) + 1]]
    starts = np.cumsum([0, *map(len, nodes)])
    joined = np.concatenate(nodes)
    own = np.arange(len(joined))
    offset = np.repeat(starts[:-1], np.diff(starts))
    leaf = joined["is_leaf"].astype(bool)
    trees = Trees(
        joined["feature_idx"].astype(np.int64),
        joined["num_threshold"],
        np.where(leaf, own, joined["left"] + offset),
        np.where(leaf, own, joined["right"] + offset),
        joined["value"],
        starts[:-1],
        float(np.ravel(model._baseline_prediction)[0]),
        0.0,
    )
    agreement: Any = kendalltau(trees(numbers[held]), target[held])
    tau = float(agreement.statistic)
    return dataclasses.replace(trees, kendall_tau=tau)
