"""Optax's optimisers by name, with every rate an argument of the compiled update."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import optax.contrib
from jax.extend import core
from jax.typing import ArrayLike

Tree = Any
Factory = Callable[..., optax.GradientTransformation]

# sophia calls the loss function again; noisy_sgd keeps a random key, which a checkpoint cannot hold; the last is
# deprecated.
_LEFT_OUT = ("sophia", "noisy_sgd", "optimistic_adam")


def _factories() -> dict[str, Factory]:
    """The functions of optax, then of optax.contrib, that need a learning rate at most."""
    found: dict[str, Factory] = {}
    for name, function in (*vars(optax).items(), *vars(optax.contrib).items()):
        if not inspect.isfunction(function) or name.startswith("scale_by_") or name in _LEFT_OUT:
            continue
        parameters = inspect.signature(function).parameters
        required = {key for key, one in parameters.items() if one.default is one.empty}
        if "learning_rate" in parameters and required <= {"learning_rate"}:
            found.setdefault(name, function)
    return found


FACTORIES: dict[str, Factory] = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "nesterov": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "rmsprop": optax.rmsprop,
    "adam": optax.adam,
    "adamw": optax.adamw,
    **_factories(),
    "lbfgs": functools.partial(optax.lbfgs, linesearch=None),
}
"""Each is called as ``factory(learning_rate=…)``. An optimiser of your own: ``FACTORIES["mine"] = factory``."""


class Rates(NamedTuple):
    """The traced float32 scalars of one update."""

    learning_rate: ArrayLike
    weight_decay: ArrayLike
    clip_norm: ArrayLike = np.float32(np.inf)
    """the global norm that gradients are scaled down to, where there is clipping"""
    own_weight_decay: tuple[ArrayLike, ...] = ()
    """of the modules that have a weight decay of their own"""


def transformation(
    name: str, rates: Rates | None = None, *, own: Collection[str] = (), clip: bool = False
) -> optax.GradientTransformationExtraArgs:
    """The optimiser ``name`` at ``rates``, which may be traced; without them only its state is of use.

    Weight decay acts on leaves of two or more axes (kernels, not biases or normalisation). It is decoupled
    (Loshchilov and Hutter 2019) where the factory takes ``weight_decay`` with a mask, as `optax.adamw` does, and is
    else added to the gradient (L2). The modules ``own`` (keys of the parameters) have those of
    ``rates.own_weight_decay``.
    """
    at: Any = rates or Rates(1.0, 0.0, own_weight_decay=(0.0,) * len(own))
    factory = FACTORIES[name]
    parameters = inspect.signature(factory).parameters
    mask = next((key for key in ("mask", "weight_decay_mask") if key in parameters), None)
    at_rate = functools.partial(factory, learning_rate=at.learning_rate)
    parts = [optax.clip_by_global_norm(at.clip_norm)] if clip else []
    decays = dict(zip(own, at.own_weight_decay, strict=True))
    if mask is None or "weight_decay" not in parameters:
        others = {"weight_decay": 0.0} if "weight_decay" in parameters else {}
        parts += [optax.add_decayed_weights(at.weight_decay, _kernels_but_of(own))]
        parts += [optax.add_decayed_weights(decay, _kernels_of(module)) for module, decay in decays.items()]
        parts += [at_rate(**others)]
    elif not own:
        parts += [at_rate(weight_decay=at.weight_decay, **{mask: _kernels})]
    else:
        optimisers: dict[Any, optax.GradientTransformation] = {
            module: at_rate(weight_decay=decay, **{mask: _kernels})
            for module, decay in {"": at.weight_decay, **decays}.items()
        }
        parts += [
            optax.partition(optimisers, lambda params: {key: key if key in own else "" for key in params})
        ]
    return optax.with_extra_args_support(optax.chain(*parts))


def _kernels(params: Tree) -> Tree:
    """Which leaves have weight decay."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def _kernels_but_of(modules: Collection[str]) -> Callable[[Tree], Tree]:
    if not modules:
        return _kernels
    return lambda params: {
        key: jax.tree.map(lambda leaf, key=key: leaf.ndim >= 2 and key not in modules, tree)
        for key, tree in params.items()
    }


def _kernels_of(module: str) -> Callable[[Tree], Tree]:
    return lambda params: {
        key: jax.tree.map(lambda leaf, key=key: leaf.ndim >= 2 and key == module, tree)
        for key, tree in params.items()
    }


def update(
    name: str,
    params: Tree,
    grads: Tree,
    state: Tree,
    rates: Rates,
    *,
    own: Collection[str] = (),
    clip: bool = False,
    loss: ArrayLike | None = None,
) -> tuple[Tree, Tree]:
    """One step; returns new ``(params, state)``. ``loss`` is for optimisers that look at it (`optax.contrib.momo`)."""
    chosen = transformation(name, rates, own=own, clip=clip)
    updates, state = chosen.update(grads, state, params, value=loss)
    return optax.apply_updates(params, updates), state


def source(name: str) -> str | None:
    """What an optimiser's values depend on: optax's version, or the text of the file that a user's own is from.

    None where that text is not at hand.
    """
    factory: Any = FACTORIES[name]
    while isinstance(factory, functools.partial):
        factory = factory.func
    module = getattr(factory, "__module__", "")
    if module.partition(".")[0] == "optax":
        return f"optax {optax.__version__}"
    try:
        return f"optax {optax.__version__}\n{inspect.getsource(sys.modules[module])}"
    except (KeyError, OSError, TypeError):
        return None


# ------------------------------------------------------------------------------------------- the first state


def initial_state(optimiser: optax.GradientTransformation, params: Tree) -> Tree:
    """``optimiser.init(params)``, in buffers of its own and without a compiled program.

    Most of a state are arrays of one value. XLA would compile a program for each of their shapes, which takes longer
    than to compile the network's forward pass.
    """
    leaves, structure = jax.tree.flatten(params)
    traced, state = jax.make_jaxpr(
        lambda *leaves: optimiser.init(structure.unflatten(leaves)), return_shape=True
    )(*leaves)
    found = _evaluated(traced.jaxpr, traced.consts, leaves)
    return jax.tree.unflatten(jax.tree.structure(state), [np.array(one) for one in found])


def _evaluated(jaxpr: Any, constants: Any, arguments: Any) -> list[Any]:
    """The results of ``jaxpr``: numpy fills arrays with one value, JAX does everything else."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def value(of: Any) -> Any:
        return of.val if isinstance(of, core.Literal) else values[of]

    for equation in jaxpr.eqns:
        given = [value(one) for one in equation.invars]
        name, parameters = equation.primitive.name, equation.params
        if name == "broadcast_in_dim" and not np.ndim(given[0]):
            results = [np.full(parameters["shape"], given[0], equation.outvars[0].aval.dtype)]
        elif name == "jit":
            inner = parameters["jaxpr"]
            results = _evaluated(inner.jaxpr, inner.consts, given)
        else:
            results = equation.primitive.bind(*given, **parameters)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [value(one) for one in jaxpr.outvars]
