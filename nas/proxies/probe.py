"""What scores are computed from: one network, its variables and images; each pass is made once, when asked for."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nas.proxies import passes
from nas.proxies.passes import TRAINING, Backward, Cut, Forward, Mode, Tree, leaf_name
from nas.proxies.watching import ScoreError
from nas.training.programs import Batch, mean_loss


class Weight(NamedTuple):
    """A weight of a layer beside what belongs to it: by name, in the order of the network."""

    name: str
    value: np.ndarray
    of: np.ndarray  # its gradient or such, of the same shape


@jax.jit
def loss_and_cotangent(logits: Array, target: Array) -> tuple[Array, Array]:
    """The mean cross-entropy, and its gradient by the logits."""
    return jax.value_and_grad(mean_loss)(logits, target)


class Probe:
    """A network at ``variables`` on ``batches`` (`nas.training.programs.Batch`), as scores see it.

    Networks are run in training mode, normalised by the batch, without dropout; batch k is ``batches[k]``.
    ``seed``: of what a score draws itself. ``whole`` runs a graph as one program too.
    """

    def __init__(
        self,
        network: Any,
        variables: Mapping[str, Tree],
        image_shape: Sequence[int],
        batches: Sequence[Batch] = (),
        *,
        seed: int = 0,
        whole: bool = False,
    ) -> None:
        self.network, self.variables, self.batches, self.seed = network, variables, batches, seed
        self.image_shape = tuple(image_shape)
        self.whole = whole
        self._gradients: dict[int, Backward] = {}

    @functools.cached_property
    def cut(self) -> Cut:
        return passes.cut(self.network, self.image_shape, whole=self.whole)

    def batch(self, k: int = 0) -> Batch:
        """Batch ``k``; ScoreError where there are not so many."""
        if k >= len(self.batches):
            raise ScoreError(f"batches: {k + 1} are needed, {len(self.batches)} given")
        return self.batches[k]

    # ------------------------------------------------------------------------------------------------ passes

    def forward(self, k: int = 0, mode: Mode = TRAINING, **differentiate: bool) -> Forward:
        """A forward pass on batch ``k``, see `passes.forward`."""
        return passes.forward(self.cut, self.variables, self.batch(k).images, mode, **differentiate)

    @functools.cached_property
    def differentiated(self) -> Forward:
        """A forward pass on the first batch, to be pulled back through."""
        return self.forward(differentiate=True)

    def gradient(self, k: int = 0) -> Backward:
        """The gradient of the mean cross-entropy of batch ``k``."""
        if k not in self._gradients:
            passed = self.differentiated if k == 0 else self.forward(k, differentiate=True)
            _, cotangent = loss_and_cotangent(passed.output, self.batch(k).target)
            self._gradients[k] = passes.backward(passed, cotangent)
        return self._gradients[k]

    @functools.cached_property
    def image_gradients(self) -> np.ndarray | None:
        """Of each example of the first batch, the gradient of the sum of all outputs by its image: float64 [B, inputs].

        None where the output does not depend on the images.
        """
        passed = self.forward(differentiate=True, images_too=True)
        found = passes.backward(passed, np.ones(passed.output.shape, np.float32)).images
        return None if found is None else np.asarray(found, np.float64).reshape(len(found), -1)

    @functools.cached_property
    def gates(self) -> list[list[np.ndarray]]:
        """Piece by piece, of each layer: the loss's gradient by a factor of each example's channels, float64 [B, C].

        The factor multiplies the layer's output before its bias: what comes is the sum over pixels of a dL/da.
        """
        passed = self.forward(mode=Mode(watch="gates"), differentiate=True)
        _, cotangent = loss_and_cotangent(passed.output, self.batch().target)
        found = passes.backward(passed, cotangent).gates
        return [[np.asarray(gate, np.float64) for gate in gates] for gates in found]

    def rectified(self, k: int = 0) -> Iterator[np.ndarray]:
        """The outputs of all rectifiers on batch ``k``, each [B, …], in the order of the network."""
        passed = self.forward(k, Mode(watch="rectifiers"))
        found = [x for seen in passed.watched for x in seen]
        if not found:
            raise ScoreError("rectifiers: the network has none")
        return (np.asarray(x) for x in found)

    def weights(self, tree: Mapping[str, Tree]) -> Iterator[Weight]:
        """The weights (parameters of two axes or more) that ``tree``, shaped like "params", says something of."""
        own = dict(_named(self.variables["params"]))
        for name, of in _named(tree):
            if of.ndim >= 2:
                yield Weight(name, np.asarray(own[name]), np.asarray(of))


def _named(tree: Mapping[str, Tree], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by path, in the order of the mappings rather than of their names."""
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else str(name)
        if isinstance(value, Mapping):
            yield from _named(value, path)
        else:
            yield path, value


def map_weights(tree: Tree, weight: Callable[[Any], Any], other: Callable[[str, Any], Any]) -> Tree:
    """A tree of parameters, ``weight`` applied to those of two axes or more, ``other`` with its name to the rest."""
    return jax.tree.map_with_path(
        lambda path, leaf: weight(leaf) if leaf.ndim >= 2 else other(leaf_name(path), leaf), tree
    )


def finite(score: str, value: float | np.floating) -> float:
    """``value``, which may be -inf where the score says so; ScoreError where it is NaN, or inf by overflow."""
    if not value < math.inf:
        raise ScoreError(f"{score}: is {value}")
    return float(value)


def zeros_like(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jnp.asarray(np.zeros(leaf.shape, leaf.dtype)), tree)
