"""What training asks of a Flax network, from shapes alone where it can: variables, calls, sizes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core
from jax.typing import ArrayLike

from nas.cpu.function import plain
from nas.errors import InputError
from nas.nn.call import keywords
from nas.nn.count import macs_of_jaxpr

Tree = Any


class Noise(NamedTuple):
    """What layers draw and scale by in one step: seed (uint32) and probabilities (float32)."""

    dropout: ArrayLike
    seed: ArrayLike
    drop_path: ArrayLike = np.float32(0)


def abstract(shape: tuple[int, ...], dtype: str = "float32") -> Any:
    """An array by its shape alone, for tracing."""
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def abstract_noise() -> Noise:
    return Noise(abstract(()), abstract((), "uint32"), abstract(()))


def computing(variables: Mapping[str, Tree], inputs: Sequence[Array]) -> dict[str, Tree]:
    """``variables`` with parameters in the inputs' dtype where that is a half precision: layers then compute in it.

    Flax's own layers compute in the widest dtype of inputs and parameters. Running statistics stay as they are.
    """
    dtype = inputs[0].dtype
    if dtype not in (jnp.bfloat16, jnp.float16):
        return dict(variables)
    return {**variables, "params": jax.tree.map(lambda leaf: leaf.astype(dtype), variables.get("params", {}))}


class Extra(NamedTuple):
    """What a network sows in training beside its output, for the loss; nothing of it is kept.

    ``losses``: scalars of collection "losses" (a reconstruction cost), which are added to the loss.
    ``auxiliary``: of collection "auxiliary", pairs of a weight and the logits [B, classes] of a further
    classifier, whose weighted cross-entropy is added (Szegedy et al. 2014, section 5).
    """

    losses: list[Array]
    auxiliary: list[tuple[ArrayLike, Array]]


def apply_train(
    network: Any, variables: dict[str, Tree], inputs: Sequence[Array], noise: Noise, **further: Any
) -> tuple[Array, dict[str, Tree], Extra]:
    """The network's output in training mode, its updated collections (running statistics), what it sowed.

    It is called with what it takes of ``noise``, and with ``further``.
    """
    given = keywords(network, train=True, **noise._asdict()) | further
    mutable = [*(name for name in variables if name != "params"), *Extra._fields]
    key = jax.random.key(noise.seed)  # for modules that use Flax's own dropout
    output, updated = network.apply(
        computing(variables, inputs), *inputs, mutable=mutable, rngs={"dropout": key}, **given
    )
    updated = dict(updated)
    sown = {name: updated.pop(name, {}) for name in Extra._fields}
    heads = jax.tree.leaves(sown["auxiliary"], is_leaf=_is_head)
    return output, updated, Extra(jax.tree.leaves(sown["losses"]), heads)


def _is_head(value: Any) -> bool:
    """Whether it is one sown (weight, logits); what `sow` collects is a tuple of those."""
    return isinstance(value, tuple) and len(value) == 2 and not isinstance(value[0], tuple)


def sows(network: Any, image_shape: tuple[int, ...]) -> bool:
    """Whether ``network`` has losses or classifiers beside its output; traced, nothing is computed."""
    variables = outline(network, image_shape).variables
    noise = abstract_noise()
    extra = jax.eval_shape(
        lambda variables, image, noise: apply_train(network, variables, (image,), Noise(*noise))[2],
        variables,
        abstract((2, *image_shape)),
        tuple(noise),
    )
    return bool(extra.losses or extra.auxiliary)


def apply_evaluate(network: Any, variables: Mapping[str, Tree], inputs: Sequence[Array]) -> Array:
    return network.apply(computing(variables, inputs), *inputs, **keywords(network, train=False))


def initialise(network: Any, seed: int, image_shape: tuple[int, ...], dtype: str) -> dict[str, Tree]:
    """A network's variables, drawn from ``seed`` without running or compiling it."""
    image = abstract((1, *image_shape), dtype)
    key = jax.random.key(seed)
    return _kept(network.lazy_init(streams(key), image, **keywords(network, train=False)))


def once(intermediates: Tree) -> Tree:
    """Of each module its last output: one that shares its variables with an inner one has both outputs."""
    return jax.tree.map(lambda outputs: outputs[-1], intermediates, is_leaf=lambda x: isinstance(x, tuple))


def streams(key: Array) -> dict[str, Array]:
    """The random streams that a module may ask for when its variables are drawn."""
    return {"params": key, "dropout": key}


def _kept(variables: Mapping[str, Tree]) -> dict[str, Tree]:
    return {name: tree for name, tree in variables.items() if name not in Extra._fields}


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
    """Trace ``network``, on one image; nothing is allocated or compiled. Raises as `check_maps` does."""
    image = abstract((1, *image_shape))

    def build(key: Array, image: Array) -> tuple[Array, dict[str, Tree]]:
        return network.init_with_output(
            streams(key), image, capture_intermediates=True, **keywords(network, train=False)
        )

    with plain():  # a native kernel does not show what it multiplies
        program, (_, made) = jax.make_jaxpr(build, return_shape=True)(
            jax.eval_shape(lambda: jax.random.key(0)), image
        )
        check_maps(program.jaxpr, image_shape)
        made = _kept(made)
        kept = once(made.pop("intermediates", {}))
        if getattr(network, "auxiliary", ()):  # which are initialised, but no part of a forward pass
            program = jax.make_jaxpr(lambda variables, x: apply_evaluate(network, variables, (x,)))(
                made, image
            )

    def size(tree: Tree) -> int:
        return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(tree))

    return Outline(made, size(made["params"]), macs_of_jaxpr(program.jaxpr), 4 * size(kept))


def check_maps(jaxpr: Any, image_shape: tuple[int, ...], inside: str = "") -> None:
    """Raises InputError where feature maps of a traced network have no pixels, whose mean is not a number."""
    for equation in jaxpr.eqns:
        layer = "/".join(part for part in (inside, str(equation.source_info.name_stack)) if part)
        for shape in (getattr(value.aval, "shape", ()) for value in equation.outvars):
            if len(shape) == 4 and 0 in shape[1:3]:
                size = "x".join(map(str, image_shape))
                raise InputError(
                    f"{layer or 'network'}: leaves no pixels of an image of {size}: {list(shape[1:])}"
                )
        for inner in core.jaxprs_in_params(equation.params):
            check_maps(inner, image_shape, layer)
