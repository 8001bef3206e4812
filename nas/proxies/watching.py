"""Looking into a network through its traced program: rectifiers, layers, feature maps, for any Flax module.

A network is its ``init`` and ``apply``; what a score wants of its inside stands in the program that tracing it gives
(with `nas.cpu.function.visible_relu`). `watched` runs such a program equation by equation and returns what was
seen beside its results; it is jitted and differentiated like any function. What lies in a loop or behind a derivative
of a user's own is not looked into: that raises ScoreError where something wanted is in there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core

from nas.cpu.function import visible_relu
from nas.nn.layers import FUNCTIONS


class ScoreError(ValueError):
    """A score that has no value for this network; one line: score, reason."""


RECTIFIERS = ("relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "hard_swish")
"""Activations whose output is above 0 exactly where their input is (in float32, but for gelu's far tail)."""

PRODUCTS = ("conv_general_dilated", "dot_general", "local2d")
"""Primitives, and jitted functions, of the layers that have weights: convolutions and matrix products."""

# Names of jitted functions.
_NORMALISATIONS = ("batch_norm", "batch_norm_inference", "layer_norm", "local_response_norm")
_ALIASES = {"hard_silu": "hard_swish", "swish": "silu"}
_SQUASHING = ("tanh", "logistic")

Visit = Callable[[Any, list[Any]], list[Any] | None]


def watched(function: Callable[..., Any], visit: Visit) -> Callable[..., Any]:
    """``function`` whose equations are given to ``visit(equation, operands)``; its results, or None for its own."""

    def run(*args: Any) -> Any:
        with visible_relu():
            closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
            outs = _evaluate(closed, jax.tree.leaves(args), visit, closed.jaxpr.outvars)
        return jax.tree.unflatten(jax.tree.structure(shape), outs)

    return run


def evaluation(closed: Any, wanted: Sequence[Any], *, eagerly: bool = False) -> Callable[..., list[Any]]:
    """A traced program as a function of its arguments that gives the variables ``wanted``, and no more is run.

    ``eagerly``: to be called on values; callbacks to the host are just called, which need no compiling.
    """

    def visit(equation: Any, operands: list[Any]) -> list[Any] | None:
        if eagerly and equation.primitive.name == "pure_callback":
            return list(equation.params["callback"](*operands))
        return None

    live = live_variables(closed.jaxpr, wanted)
    needed = [equation for equation in closed.jaxpr.eqns if live.intersection(equation.outvars)]

    def evaluate(*args: Any) -> list[Any]:
        return _evaluate(closed, args, visit, wanted, needed)

    return evaluate


def _evaluate(
    closed: Any,
    args: Sequence[Any],
    visit: Visit,
    wanted: Sequence[Any],
    equations: Sequence[Any] | None = None,
) -> list[Any]:
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= zip(jaxpr.invars, args, strict=True)

    def read(var: Any) -> Any:
        return var.val if isinstance(var, core.Literal) else values[var]

    for equation in jaxpr.eqns if equations is None else equations:
        operands = [read(var) for var in equation.invars]
        results = visit(equation, operands)
        if results is None and equation.primitive.name == "jit":
            inner = equation.params["jaxpr"]
            results = _evaluate(inner, operands, visit, inner.jaxpr.outvars)
        if results is None:
            results = bind(equation, operands)
        values |= zip(equation.outvars, results, strict=True)
    return [read(var) for var in wanted]


def bind(equation: Any, operands: Sequence[Any], **changes: Any) -> list[Any]:
    """What the equation gives on ``operands``, with some of its parameters changed."""
    params = equation.primitive.get_bind_params(equation.params | changes)
    out = equation.primitive.bind(*operands, **params)
    return list(out) if equation.primitive.multiple_results else [out]


def name_of(equation: Any) -> str:
    """The name of an equation's primitive, or of the jitted function that it calls."""
    name = equation.primitive.name
    return equation.params["name"] if name == "jit" else name


def activation_of(equation: Any) -> str | None:
    """The activation of `jax.nn` that an equation applies.

    A bare maximum with 0 is none: variances are cut off by it too.
    """
    name = name_of(equation)
    if equation.primitive.name == "jit" and _ALIASES.get(name, name) in FUNCTIONS:
        return _ALIASES.get(name, name)
    if name == "custom_jvp_call":
        inner = equation.params["call_jaxpr"].jaxpr.eqns
        return activation_of(inner[0]) if len(inner) == 1 else None
    return None


def _looked_into(equation: Any) -> bool:
    """Whether the equations inside this one are given to ``visit`` too."""
    return equation.primitive.name == "jit"


def _contains(equation: Any, wanted: Callable[[Any], bool]) -> bool:
    inner = (one for jaxpr in core.jaxprs_in_params(equation.params) for one in jaxpr.eqns)
    return any(wanted(one) or _contains(one, wanted) for one in inner)


def _refuse(score: str, equation: Any, wanted: Callable[[Any], bool]) -> None:
    if not _looked_into(equation) and _contains(equation, wanted):
        raise ScoreError(
            f"{score}: what it counts is inside a {equation.primitive.name}, where it cannot look"
        )


# ---------------------------------------------------------------------------------------------- what is seen


def see_rectifiers(function: Callable[..., Any]) -> Callable[..., tuple[Any, list[Array]]]:
    """``function`` with the outputs of its rectifiers, in their order."""

    def is_rectifier(equation: Any) -> bool:
        return activation_of(equation) in RECTIFIERS

    def run(*args: Any) -> tuple[Any, list[Array]]:
        seen: list[Array] = []

        def visit(equation: Any, operands: list[Any]) -> list[Any] | None:
            if not is_rectifier(equation):
                return _refuse("rectifiers", equation, is_rectifier)
            results = bind(equation, operands)
            seen.append(results[0])
            return results

        return watched(function, visit)(*args), seen

    return run


def see_map(function: Callable[..., Any]) -> Callable[..., tuple[Any, list[Array]]]:
    """``function`` with its last feature map [B, H, W, C] of more than one pixel; an empty list without one."""

    def run(*args: Any) -> tuple[Any, list[Array]]:
        seen: list[Array] = []

        def visit(equation: Any, operands: list[Any]) -> list[Any] | None:
            if _looked_into(equation):
                return None
            results = bind(equation, operands)
            seen[:] = [*seen, *(one for one in results if is_map(one))][-1:]
            return results

        return watched(function, visit)(*args), seen

    return run


def is_map(value: Any) -> bool:
    """Whether it is shaped like feature maps [B, H, W, C] of more than one pixel."""
    return len(value.shape) == 4 and value.shape[1] * value.shape[2] > 1


def _is_product(equation: Any) -> bool:
    return name_of(equation) in PRODUCTS


class Layer(NamedTuple):
    """A layer by the channels of its output and the weights that each of them has (its fan-in)."""

    channels: int
    fan_in: int


def layers(function: Callable[..., Any], *args: Any) -> list[Layer]:
    """``function``'s layers in the order of `with_gates`; traced only."""
    found: list[Layer] = []

    def visit(equation: Any, operands: list[Any]) -> list[Any] | None:
        if _is_product(equation):
            channels = equation.outvars[0].aval.shape[-1]
            found.append(Layer(channels, operands[1].size // channels))
            return bind(equation, operands)
        return bind(equation, operands) if name_of(equation) in _NORMALISATIONS else None

    jax.eval_shape(watched(function, visit), *args)
    return found


def with_gates(function: Callable[..., Any]) -> Callable[..., Any]:
    """``f(gates, *args)``: each layer's output, before its bias, times its gate [B, channels]."""

    def run(gates: Sequence[Array], *args: Any) -> Any:
        closed = iter(gates)

        def visit(equation: Any, operands: list[Any]) -> list[Any] | None:
            if name_of(equation) in _NORMALISATIONS:
                return bind(equation, operands)
            if not _is_product(equation):
                return _refuse("gates", equation, _is_product)
            gate = next(closed)
            (out,) = bind(equation, operands)
            return [out * gate.reshape(gate.shape[0], *(1,) * (out.ndim - 2), gate.shape[1])]

        return watched(function, visit)(*args)

    return run


def without_nonlinearity(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` without its normalisations and activations."""

    def visit(equation: Any, operands: list[Any]) -> list[Any] | None:
        name = name_of(equation)
        if name in _NORMALISATIONS:
            return [operands[0], *(jnp.zeros(var.aval.shape, var.aval.dtype) for var in equation.outvars[1:])]
        if activation_of(equation) is not None or name in _SQUASHING:
            return [x for x in operands if getattr(x, "shape", ()) == equation.outvars[0].aval.shape][:1]
        return None

    return watched(function, visit)


def live_variables(jaxpr: Any, wanted: Sequence[Any]) -> set[Any]:
    """All that the variables ``wanted`` of a traced program depend on."""
    live = {var for var in wanted if isinstance(var, core.Var)}
    for equation in reversed(jaxpr.eqns):
        if live.intersection(equation.outvars):
            live.update(var for var in equation.invars if isinstance(var, core.Var))
    return live


def reads(jaxpr: Any, wanted: Sequence[Any]) -> list[bool]:
    """Of each argument of a traced program, whether a variable ``wanted`` depends on it."""
    live = live_variables(jaxpr, wanted)
    return [var in live for var in jaxpr.invars]
