"""Multiply-adds of a traced program."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from nas.cpu.function import plain

FREE = ("local_response_norm", "resize_images")
"""Jitted functions that are normalisations and compute their sums by a product."""


def count_macs(function: Callable[..., Any], *args: Any) -> int:
    """Multiply-adds of the convolutions and dense layers in ``function(*args)``; arguments may be shapes.

    Counted as published tables do: normalisation, pooling, activations and biases are free, taps that fall
    on padding count. Of a ``cond``'s branches the most expensive counts, a ``scan``'s body once a step, and a while
    loop's body once, its length being unknown.
    """
    with plain():  # a native kernel does not show what it multiplies
        return macs_of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def macs_of_jaxpr(jaxpr: Any) -> int:
    """`count_macs` of a program that is traced already."""
    return sum(macs_of_equation(equation) for equation in jaxpr.eqns)


def macs_of_equation(equation: Any) -> int:
    """`count_macs` of one equation of a traced program."""
    name, params = equation.primitive.name, equation.params
    shapes: list[Any] = [getattr(value.aval, "shape", ()) for value in equation.invars]
    if name == "conv_general_dilated":
        return _of_lax_conv(shapes[1], equation.outvars[0].aval.shape, params)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][axis] for axis in contracted)
    if name == "cond":
        return max(macs_of_jaxpr(branch.jaxpr) for branch in params["branches"])
    if params.get("name") in FREE:
        return 0
    inner = sum(macs_of_jaxpr(jaxpr) for jaxpr in core.jaxprs_in_params(params))
    return inner * params["length"] if name == "scan" else inner


def _of_lax_conv(kernel: tuple[int, ...], out: tuple[int, ...], params: Any) -> int:
    """Output values times the taps and inputs of each; zeros between dilated inputs are not multiplied."""
    features, inputs, *taps = (kernel[axis] for axis in params["dimension_numbers"].rhs_spec)
    del features
    return math.prod(out) * inputs * math.prod(taps) // math.prod(params["lhs_dilation"])
