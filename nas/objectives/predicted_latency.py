"""Latencies predicted instead of measured: a sum of measured operations, or a regression on measured networks.

The sum adds the latencies of a network's operations, each measured alone (as in ProxylessNAS, Cai et al. 2019, and
nn-Meter, Zhang et al. 2021): what lies between operations, and what a compiler fuses, is not in it. The regression is
kernel ridge regression by the architecture's choices (names one-hot, numbers as they are) and the logarithms of
parameters, multiply-adds and bytes of activations, all standardised. Cross-validation chooses its form: of the latency
or its logarithm, by single features or pairs of them, and the penalty.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nas.goals import PREDICTED_LATENCY, SUMMED_LATENCY
from nas.nn.operations import Operation, operations
from nas.objectives.base import TrialFailed
from nas.objectives.latency import Device, Latency, steady
from nas.training.network import Outline, abstract, outline

FOLDS = 5
FEWEST = 4 * FOLDS  # networks that a regression is fitted to


class MeasuredNetwork(NamedTuple):
    """What a predictor learns from: an architecture with its sizes, operations (names, with counts) and latency."""

    arch: Mapping[str, Any]
    params: int
    macs_per_image: int
    activation_bytes: int
    operations: Mapping[str, int]
    ms: float


@dataclasses.dataclass(frozen=True)
class LatencyPredictor:
    """Answers for any architecture from ``networks`` and ``operations_ms``, the latencies of their operations."""

    networks: tuple[MeasuredNetwork, ...]
    operations_ms: Mapping[str, float]

    @property
    def checksum(self) -> str:
        """12 hexadecimal digits of all that was measured."""
        measured = repr((self.networks, sorted(self.operations_ms.items())))
        return hashlib.sha256(measured.encode()).hexdigest()[:12]

    def predict(
        self, name: str, arch: Mapping[str, Any], network: Any, image_shape: Any, batch: int
    ) -> float:
        """Quantity ``name`` in ms: `PREDICTED_LATENCY` by the regression, `SUMMED_LATENCY` by the sum.

        Raises TrialFailed where the sum has an operation that nobody measured.
        """
        found = outline(network, image_shape)
        if name == PREDICTED_LATENCY:
            return float(self._regression(features(arch, found))[0])
        counts = {operation.name: count for operation, count in operations_of(network, image_shape, batch)}
        if missing := [each for each in counts if each not in self.operations_ms]:
            raise TrialFailed(
                f"{SUMMED_LATENCY}: {missing[0]} was not measured; measure more networks, or use {PREDICTED_LATENCY}"
            )
        return self.summed(counts)

    def summed(self, counts: Mapping[str, int]) -> float:
        return math.fsum(count * self.operations_ms[name] for name, count in counts.items())

    @functools.cached_property
    def _regression(self) -> Any:
        return fitted(
            [features(each.arch, each) for each in self.networks], [each.ms for each in self.networks]
        )

    def held_out(self) -> np.ndarray:
        """The regression's prediction in ms of each network [network], fitted without its fold of `FOLDS`."""
        rows = np.array([features(each.arch, each) for each in self.networks], object)
        ms = np.array([each.ms for each in self.networks])
        found = np.empty(len(ms))
        fold = np.random.default_rng(0).permutation(len(ms)) % FOLDS
        for k in range(FOLDS):
            found[fold == k] = fitted(rows[fold != k], ms[fold != k])(*rows[fold == k])
        return found

    def sums(self) -> np.ndarray:
        """The sum of operations in ms of each network [network]."""
        return np.array([self.summed(each.operations) for each in self.networks])


def features(arch: Mapping[str, Any], size: Outline | MeasuredNetwork) -> dict[str, Any]:
    """What the regression sees of an architecture: its choices, and the logarithms of its sizes."""
    choices = {
        f"choice {name}": value if isinstance(value, int | float) else str(value)
        for name, value in arch.items()
    }
    sizes = {
        name: math.log1p(getattr(size, name)) for name in ("params", "macs_per_image", "activation_bytes")
    }
    return choices | sizes


def fitted(rows: Iterable[Any], ms: Iterable[float]) -> Any:
    """The regression on ``ms`` by ``rows`` of `features`: a function of rows, which returns float64 [row], in ms."""
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import GridSearchCV, KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler
    from threadpoolctl import threadpool_limits

    ridge = make_pipeline(DictVectorizer(sparse=False), StandardScaler(), KernelRidge(kernel="poly", coef0=1))
    forms = {
        "transformer": [
            StandardScaler(),
            make_pipeline(FunctionTransformer(np.log, np.exp), StandardScaler()),
        ],
        "regressor__kernelridge__degree": [1, 2],
        "regressor__kernelridge__alpha": [1e-3, 1e-2, 1e-1, 1.0, 10.0],
    }
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    model = GridSearchCV(
        TransformedTargetRegressor(ridge), forms, cv=folds, scoring="neg_mean_absolute_error"
    )
    with threadpool_limits(1):  # of so few rows, threads take longer to meet than to compute
        model.fit(list(rows), list(ms))
    return lambda *wanted: np.asarray(model.predict(list(wanted)))


def operations_of(network: Any, image_shape: tuple[int, ...], batch: int) -> list[tuple[Operation, int]]:
    """The operations of a forward pass of ``batch`` images, with how often each is in it."""
    return operations(network, outline(network, image_shape).variables, abstract((batch, *image_shape)))


def measure_operation(operation: Operation, *, device: Device, repetitions: int) -> Latency:
    """The latency of one operation alone, compiled, all its numbers zero."""
    module = operation.module
    leaves, structure = jax.tree.flatten((operation.args, operation.keywords))
    at = [k for k, leaf in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]

    def call(method: Any, first: Any, arrays: Sequence[Any]) -> Any:
        every = list(leaves)
        for k, array in zip(at, arrays, strict=True):
            every[k] = array
        args, named = jax.tree.unflatten(structure, every)
        return method(first, *args, **named)

    shapes = [leaves[k] for k in at]
    variables = jax.eval_shape(lambda arrays: call(module.init, jax.random.key(0), arrays), shapes)
    with jax.default_device(device):
        numbers = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (variables, shapes))
        numbers = jax.device_put(numbers, device)
        program = (
            jax.jit(lambda variables, arrays: call(module.apply, variables, arrays)).lower(*numbers).compile()
        )
        return steady(lambda: jax.block_until_ready(program(*numbers)), repetitions)
