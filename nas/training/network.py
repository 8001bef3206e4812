"""What training asks of a Flax network, from shapes alone where it can: variables, calls, sizes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from nas import ops

Tree = Any


class Noise(NamedTuple):
    """What layers draw and scale by in one step: dropout probability (float32) and seed (uint32)."""

    dropout: ArrayLike
    seed: ArrayLike


def abstract(shape: tuple[int, ...], dtype: str = "float32") -> Any:
    """An array by its shape alone, for tracing."""
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def apply_train(
    network: Any, variables: dict[str, Tree], inputs: Sequence[Array], noise: Noise
) -> tuple[Array, dict[str, Tree]]:
    """The network's output in training mode and its updated collections (running statistics)."""
    keywords = {name: getattr(noise, name) for name in ops.noise_taken(network)}
    stateful = [name for name in variables if name != "params"]
    key = jax.random.key(noise.seed)  # for modules that use Flax's own dropout
    output, updated = network.apply(
        variables, *inputs, train=True, mutable=stateful, rngs={"dropout": key}, **keywords
    )
    return output, dict(updated)


def apply_evaluate(network: Any, variables: dict[str, Tree], inputs: Sequence[Array]) -> Array:
    return network.apply(variables, *inputs, train=False)


def initialise(network: Any, seed: int, image_shape: tuple[int, ...], dtype: str) -> dict[str, Tree]:
    """A network's variables, drawn from ``seed`` without running or compiling it."""
    image = abstract((1, *image_shape), dtype)
    return dict(network.lazy_init(jax.random.key(seed), image))


class Outline(NamedTuple):
    """A network by its shapes."""

    variables: dict[str, Tree]  # jax.ShapeDtypeStruct leaves
    params: int
    macs_per_image: int  # multiply-adds of convolutions and dense layers in one forward pass
    activation_bytes: int  # float32 outputs of all its modules for one image

    def training_bytes(self, batch_size: int) -> int:
        """About what a training step holds: every module's output twice, parameters five times.

        (Outputs and their gradients; parameters, gradients, two optimiser slots, an average.)
        """
        return 2 * batch_size * self.activation_bytes + 5 * 4 * self.params


@functools.lru_cache(maxsize=256)
def outline(network: Any, image_shape: tuple[int, ...]) -> Outline:
    """Trace ``network`` once, on one image; nothing is allocated or compiled."""

    def build(key: Array, image: Array) -> tuple[Array, dict[str, Tree]]:
        return network.init_with_output(key, image, train=False, capture_intermediates=True)

    program, (_, made) = jax.make_jaxpr(build, return_shape=True)(
        jax.eval_shape(lambda: jax.random.key(0)), abstract((1, *image_shape))
    )
    made = dict(made)
    kept = made.pop("intermediates", {})

    def size(tree: Tree) -> int:
        return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(tree))

    return Outline(made, size(made["params"]), ops.macs_of_jaxpr(program.jaxpr), 4 * size(kept))
