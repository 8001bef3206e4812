"""Multiply-adds of a traced program."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count_macs(function: Callable[..., Any], *args: Any) -> int:
    """Multiply-adds of the convolutions and dense layers in ``function(*args)``; arguments may be shapes.

    Counted as published tables do: normalisation, pooling, activations and biases are free, taps that fall
    on padding count (also in ``local2d``: one multiply-add for each weight and image). Of a ``cond``'s
    branches the most expensive counts, a ``scan``'s body once a step, and a while loop's body once, its
    length being unknown.
    """
    return macs_of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def macs_of_jaxpr(jaxpr: Any) -> int:
    """`count_macs` of a program that is traced already."""
    return sum(macs_of_equation(equation) for equation in jaxpr.eqns)


def macs_of_equation(equation: Any) -> int:
    """`count_macs` of one equation of a traced program."""
    name, params = equation.primitive.name, equation.params
    shapes: list[Any] = [getattr(value.aval, "shape", ()) for value in equation.invars]
    if name == "nas_conv":
        return math.prod(equation.outvars[0].aval.shape) * _taps(params["at"]) * shapes[1][2]
    if name == "nas_conv_dx":
        return math.prod(shapes[0]) * _taps(params["at"]) * shapes[1][2]
    if name == "nas_conv_dw":
        return math.prod(shapes[1]) * _taps(params["at"]) * equation.outvars[0].aval.shape[2]
    if name.startswith("nas_separable"):
        return _of_separable(name, shapes, params)
    if name in ("nas_local", "nas_local_dx"):  # each weight once for each image of its member
        return shapes[0][0] * math.prod(shapes[1]) // params["at"].members
    if name == "nas_local_dw":
        return shapes[0][0] * math.prod(equation.outvars[0].aval.shape) // params["at"].members
    if name == "nas_dense":
        return shapes[0][0] * math.prod(shapes[1])
    if name == "nas_dense_backward":  # dy, x, w: the gradients of x and of w
        return 2 * shapes[1][0] * math.prod(shapes[2])
    if name == "conv_general_dilated":
        return _of_lax_conv(shapes[1], equation.outvars[0].aval.shape, params)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][axis] for axis in contracted)
    if name == "cond":
        return max(macs_of_jaxpr(branch.jaxpr) for branch in params["branches"])
    inner = sum(macs_of_jaxpr(jaxpr) for jaxpr in core.jaxprs_in_params(params))
    return inner * params["length"] if name == "scan" else inner


def _taps(at: Any) -> int:
    return math.prod(at.windows.kernel)


def _of_lax_conv(kernel: tuple[int, ...], out: tuple[int, ...], params: Any) -> int:
    """Output values times the taps and inputs of each; zeros between dilated inputs are not multiplied."""
    features, inputs, *taps = (kernel[axis] for axis in params["dimension_numbers"].rhs_spec)
    del features
    return math.prod(out) * inputs * math.prod(taps) // math.prod(params["lhs_dilation"])


def _of_separable(name: str, shapes: list[Any], params: dict[str, Any]) -> int:
    """Both convolutions; in a gradient the first one again, and of each what is asked for."""
    x, depthwise, pointwise = shapes[-3:]
    pixels = x[0] * math.prod(params["at"].output)
    first, second = pixels * math.prod(depthwise), pixels * math.prod(pointwise)
    if name == "nas_separable":
        return first + second
    asked = params["asked"]
    through = second if asked & 3 else 0
    of_x, of_depthwise = (first if asked & bit else 0 for bit in (1, 2))
    return through + of_x + of_depthwise + (first + second if asked & 4 else 0)
