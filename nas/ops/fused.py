"""What a training step does beside convolution and pooling, one call each: channels last, float32.

Normalisation with its activation and shortcut, dense layers, the loss, the optimiser over all leaves, and the
input pipeline. On CPU each is one native kernel, which costs XLA no code generation and reads its memory as few
times as it can; on other platforms, for other dtypes and where there is no compiler it is plain ``jnp``. Both
differentiate to any order, in forward and reverse mode, and can be vmapped.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray, Tracer
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from nas.errors import InputError, one_of
import os
from nas.cpu import native
from nas.ops import noise
from nas.ops.conv import Convolution, conv2d, conv_dw_p, conv_dx_p, conv_p
from nas.ops.geometry import Padding, Pair, Windows, windows

OFF = os.environ.get("NAS_ABLATE", "").split(",")


def off(name):
    return "all" in OFF and "+" + name not in OFF or name in OFF


def _geometry(value):
    return value.numbers()


Tree = Any
Results = Sequence[Array]
Avals = Sequence[Any]

# ---- activations ----------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {  # in the order of with_activation in fused.cc
    "identity": lambda z: z,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "hard_swish": jax.nn.hard_swish,
}
_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}

# d activation(z) / dz as a function of activation(z), where there is one: z need not be kept for the gradient.
_SLOPES: dict[str, Callable[[Array], Array]] = {
    "identity": jnp.ones_like,
    "relu": lambda y: jnp.where(y > 0, 1.0, 0.0),
    "relu6": lambda y: jnp.where((y > 0) & (y < 6), 1.0, 0.0),
    "leaky_relu": lambda y: jnp.where(y < 0, 0.01, 1.0),
    "elu": lambda y: jnp.where(y > 0, 1.0, y + 1),
    "tanh": lambda y: 1 - y * y,
    "sigmoid": lambda y: y * (1 - y),
}


def _activation(place: str, activation: str) -> str:
    if activation == "swish":
        return "silu"
    if activation not in ACTIVATIONS:
        raise one_of(f"{place}: activation", activation, (*ACTIVATIONS, "swish"))
    return activation


# ---- primitives -----------------------------------------------------------------------------------------------


def _use_native(*arrays: Any) -> bool:
    """Whether to bind the primitives: float32 only, and only where no program spans several devices."""
    floating = all(array.dtype == jnp.float32 for array in arrays)
    return floating and all(array.size for array in arrays) and jax.device_count() == 1


def _primitive(
    name: str,
    reference: Callable[..., Results],
    results: Callable[..., Sequence[Any]],
    *,
    aliases: Callable[..., dict[int, int]] = lambda *_, **__: {},
    rows: Callable[..., Sequence[int]] = lambda count, **_: (),
    native_kernel: bool = True,
    tangents: Callable[..., Results | None] = lambda *_, **__: None,
) -> core.Primitive:
    """A primitive of arrays and hashable parameters, which are the native kernel's attributes.

    ``reference(*arrays, **parameters)`` is its meaning: what other platforms run and what its derivatives are
    taken of. ``results(*avals, **parameters)`` gives shapes and dtypes; ``aliases(*avals, **parameters)`` the
    results (values) that may take an argument's (key's) memory; ``rows(number of arrays, …)`` the arguments whose
    leading axes are a batch of independent rows, so that vmap may add one there. ``tangents(primals, dots,
    **parameters)``, dots being None where there is none, gives all results' tangents by other primitives, which
    keeps XLA from generating the reference's; None where it cannot.
    """
    new = core.Primitive(name)
    new.multiple_results = True
    portable = mlir.lower_fun(reference, multiple_results=True)

    def abstract(*avals: Any, **parameters: Any) -> list[Any]:
        return [ShapedArray(one.shape, one.dtype) for one in results(*avals, **parameters)]

    def on_cpu(context: Any, *arrays: Any, **parameters: Any) -> Any:
        if not native.available() or off(name):
            return portable(context, *arrays, **parameters)
        call = jax.ffi.ffi_lowering(name, operand_output_aliases=aliases(*context.avals_in, **parameters))
        return call(context, *arrays, **{key: _attribute(key, value) for key, value in parameters.items()})

    def jvp(primals: Results, given: Any, **parameters: Any) -> Any:
        outs = new.bind(*primals, **parameters)
        found = tangents(primals, _dots(given), **parameters)
        if found is not None:
            return outs, list(found)
        varying, merge = _varying(primals, given)
        changed = jax.jvp(lambda *some: tuple(reference(*merge(some), **parameters)), *varying)[1]
        return outs, list(changed)

    def batch(arrays: Results, dims: Sequence[Any], **parameters: Any) -> Any:
        size = next(a.shape[d] for a, d in zip(arrays, dims, strict=True) if d is not None)
        along = rows(len(arrays), **parameters)
        if all(dim is None or i in along for i, dim in enumerate(dims)):
            whole = [
                batching.bdim_at_front(a, d, size) if i in along else a
                for i, (a, d) in enumerate(zip(arrays, dims, strict=True))
            ]
            outs = new.bind(*whole, **parameters)
        else:
            moving = [i for i, dim in enumerate(dims) if dim is not None]

            def one(members: Results) -> Results:
                merged = list(arrays)
                for i, member in zip(moving, members, strict=True):
                    merged[i] = member
                return new.bind(*merged, **parameters)

            outs = jax.lax.map(one, [jnp.moveaxis(arrays[i], dims[i], 0) for i in moving])
        return outs, [0] * len(outs)

    _implement(new)
    new.def_abstract_eval(abstract)
    mlir.register_lowering(new, portable)
    if native_kernel:
        mlir.register_lowering(new, on_cpu, platform="cpu")
    ad.primitive_jvps[new] = jvp
    batching.primitive_batchers[new] = batch
    return new


def _implement(new: core.Primitive) -> None:
    @functools.cache
    def compiled(**parameters: Any) -> Callable[..., Results]:
        return jax.jit(functools.partial(new.bind, **parameters))

    new.def_impl(lambda *arrays, **parameters: compiled(**parameters)(*arrays))


def _attribute(key: str, value: Any) -> Any:
    if key == "activation":
        return np.int64(_CODES[value])
    if isinstance(value, Windows):
        return value_numbers(value)
    if isinstance(value, tuple):
        return np.array(value, np.int64)
    return np.float64(value) if isinstance(value, float) else np.int64(value)


def value_numbers(v):
    from nas.cpu.geometry import Windows as W
    return W(v.image, v.kernel, v.strides, v.padding, v.dilation).numbers()


def _dots(tangents: Any) -> list[Array | None]:
    return [None if type(one) is ad.Zero else one for one in tangents]


def _varying(primals: Results, tangents: Any) -> tuple[tuple[Any, Any], Callable[[Any], list[Any]]]:
    """The primals and tangents that change, and a function that puts changing primals back among the others."""
    places = [i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

    def merge(some: Any) -> list[Any]:
        merged = list(primals)
        for i, one in zip(places, some, strict=True):
            merged[i] = one
        return merged

    return (tuple(primals[i] for i in places), tuple(tangents[i] for i in places)), merge


def _differentiate(
    new: core.Primitive,
    reference: Callable[..., Results],
    gradient: Callable[..., Sequence[Array | None]],
    quick: Callable[..., Array | None] = lambda *_, **__: None,
    selective: bool = False,
) -> None:
    """Reverse mode of the first result through ``gradient(primals, results, cotangent, **parameters)``.

    ``selective``: it also takes ``asked``, a flag for each primal, and gives None where that is not set.

    The other results do not depend on anything as far as derivatives go. The tangent of the first is a primitive
    of its own, linear in the tangents, whose transpose is ``gradient``. ``quick(primals, results, dots,
    **parameters)``, dots being None where there is none, is what it lowers to on CPU; None where it is not.
    """
    tangent_p = core.Primitive(f"{new.name}_tangent")

    def split(arrays: Sequence[Any], given: tuple[bool, ...]) -> tuple[Any, Any, Any]:
        return arrays[: len(given)], arrays[len(given) : -sum(given)], arrays[-sum(given) :]

    def tangent(*arrays: Array, given: tuple[bool, ...], **parameters: Any) -> Array:
        primals, _, dots = split(arrays, given)
        places = [i for i, one in enumerate(given) if one]

        def of(*some: Array) -> Array:
            merged = list(primals)
            for i, one in zip(places, some, strict=True):
                merged[i] = one
            return reference(*merged, **parameters)[0]

        return jax.jvp(of, tuple(primals[i] for i in places), tuple(dots))[1]

    def jvp(primals: Results, tangents: Any, **parameters: Any) -> Any:
        outs = new.bind(*primals, **parameters)
        given = tuple(type(one) is not ad.Zero for one in tangents)
        dots = [one for one in tangents if type(one) is not ad.Zero]
        changed = tangent_p.bind(*primals, *outs, *dots, given=given, **parameters)
        return outs, [changed, *(ad.Zero(jax.typeof(out)) for out in outs[1:])]

    def transpose(cotangent: Any, *arrays: Any, given: tuple[bool, ...], **parameters: Any) -> Any:
        primals, outs, dots = split(arrays, given)
        if type(cotangent) is ad.Zero:
            return [None] * len(arrays)
        found = gradient(primals, outs, cotangent, **({"asked": given} if selective else {}), **parameters)
        wanted = [one for one, has in zip(found, given, strict=True) if has]
        asked = [one if ad.is_undefined_primal(dot) else None for one, dot in zip(wanted, dots, strict=True)]
        return [None] * (len(primals) + len(outs)) + asked

    def tangent_jvp(primals: Results, tangents: Any, **parameters: Any) -> Any:
        out = tangent_p.bind(*primals, **parameters)
        given, merge = _varying(primals, tangents)
        return out, jax.jvp(lambda *some: tangent(*merge(some), **parameters), *given)[1]

    def batch(arrays: Results, dims: Sequence[Any], **parameters: Any) -> Any:
        return jax.vmap(functools.partial(tangent, **parameters), in_axes=tuple(dims))(*arrays), 0

    @functools.cache
    def compiled(**parameters: Any) -> Callable[..., Array]:
        return jax.jit(functools.partial(tangent_p.bind, **parameters))

    def on_cpu(context: Any, *arrays: Any, given: tuple[bool, ...], **parameters: Any) -> Any:
        def run(*arrays: Array) -> Array:
            primals, outs, some = split(arrays, given)
            rest = list(some)
            dots = [rest.pop(0) if one else None for one in given]
            found = quick(primals, outs, dots, **parameters) if native.available() and not off(new.name) else None
            return tangent(*arrays, given=given, **parameters) if found is None else found

        return mlir.lower_fun(run, multiple_results=False)(context, *arrays)

    tangent_p.def_impl(lambda *arrays, **parameters: compiled(**parameters)(*arrays))
    tangent_p.def_abstract_eval(
        lambda *avals, given, **_: ShapedArray(avals[len(given)].shape, avals[len(given)].dtype)
    )
    mlir.register_lowering(tangent_p, mlir.lower_fun(tangent, multiple_results=False))
    mlir.register_lowering(tangent_p, on_cpu, platform="cpu")
    ad.primitive_jvps[new] = jvp
    ad.primitive_jvps[tangent_p] = tangent_jvp
    ad.primitive_transposes[tangent_p] = transpose
    batching.primitive_batchers[tangent_p] = batch


def _transposable(new: core.Primitive, reference: Callable[..., Results]) -> None:
    """The transpose of a primitive in those of its arrays in which it is linear together."""

    def transpose(cotangents: Any, *arrays: Any, **parameters: Any) -> Any:
        if all(type(one) is ad.Zero for one in cotangents):
            return [None] * len(arrays)
        asked = [i for i, array in enumerate(arrays) if ad.is_undefined_primal(array)]

        def of(*some: Array) -> tuple[Array, ...]:
            merged = list(arrays)
            for i, one in zip(asked, some, strict=True):
                merged[i] = one
            return tuple(reference(*merged, **parameters))

        shapes = [jax.ShapeDtypeStruct(arrays[i].aval.shape, arrays[i].aval.dtype) for i in asked]
        found = jax.linear_transpose(of, *shapes)(tuple(map(ad.instantiate_zeros, cotangents)))
        by_place = dict(zip(asked, found, strict=True))
        return [by_place.get(i) for i in range(len(arrays))]

    ad.primitive_transposes[new] = transpose


def _like(*arguments: int) -> Callable[..., Sequence[Any]]:
    """Results shaped as these arguments."""
    return lambda *avals, **_: [avals[i] for i in arguments]


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _wide(array: Array) -> Array:
    """At least float32, for sums."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _through(dy: Array, z: Callable[[], Array], kept: Sequence[Array], activation: str) -> Array:
    """The gradient before the activation; ``kept`` is its output where the slope follows from it, else added to z."""
    if kept and activation in _SLOPES:
        return dy * _SLOPES[activation](kept[0])
    before = sum(kept, start=z())
    return jax.vjp(ACTIVATIONS[activation], before)[1](dy)[0]


def _kept(activation: str, residual: Sequence[Array], y: Array) -> Sequence[Array]:
    """What ``_through`` needs when there was a residual."""
    if not residual or activation == "identity":
        return ()
    return (y,) if activation in _SLOPES else tuple(residual)


def _check_channels(place: str, x: Array, residual: Array | None, **parameters: Array | None) -> None:
    if x.ndim < 1:
        raise InputError(f"{place}: x {x.shape} has no channel axis")
    for name, value in parameters.items():
        if value is not None and value.shape != x.shape[-1:]:
            raise InputError(
                f"{place}: {name} {value.shape} is not one value for each of x's {x.shape[-1]} channels"
            )
    if residual is not None and residual.shape != x.shape:
        raise InputError(f"{place}: residual {residual.shape} is not shaped like x {x.shape}")


def _present(*arrays: Array | None) -> list[Array]:
    return [array for array in arrays if array is not None]


# ---- batch normalisation --------------------------------------------------------------------------------------


def batch_norm_act(
    x: Array,
    scale: Array,
    bias: Array,
    residual: Array | None = None,
    *,
    activation: str = "identity",
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """``activation((x - mean) / sqrt(var + eps) * scale + bias [+ residual])``, mean and var (Ioffe, Szegedy 2015).

    ``x`` and ``residual`` [..., C]; ``scale``, ``bias``, and the batch's ``mean`` and biased ``var`` [C]. Gradients
    flow through the first result alone: mean and var are there for running statistics. ``InputError`` for an
    unknown activation or shapes that disagree.
    """
    if os.environ.get("NAS_SPLIT") and (activation != "identity" or residual is not None):
        y, mean, var = batch_norm_act(x, scale, bias, eps=eps)
        return ACTIVATIONS[activation](y if residual is None else y + residual), mean, var
    activation = _activation("batch_norm_act", activation)
    _check_channels("batch_norm_act", x, residual, scale=scale, bias=bias)
    arrays = _present(x, scale, bias, residual)
    if _use_native(*arrays):
        y, mean, var = batch_norm_p.bind(*arrays, activation=activation, eps=float(eps))
        return y, mean, var
    y, mean, var = _batch_norm(*arrays, activation=activation, eps=eps)
    return y, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var)


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel of x [..., C]; no gradient flows through them."""
    if _use_native(x):
        mean, var = moments_p.bind(x)
        return mean, var
    mean, var = _statistics(_wide(x))
    return jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var)


def batch_norm_inference(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    var: Array,
    residual: Array | None = None,
    *,
    activation: str = "identity",
    eps: float = 1e-5,
) -> Array:
    """``batch_norm_act``'s first result with given statistics, such as running ones."""
    if os.environ.get("NAS_SPLIT"):
        return _batch_norm_inference(x, scale, bias, mean, var, *_present(residual), activation=activation, eps=eps)[0]
    activation = _activation("batch_norm_inference", activation)
    _check_channels("batch_norm_inference", x, residual, scale=scale, bias=bias, mean=mean, var=var)
    arrays = _present(x, scale, bias, mean, var, residual)
    if _use_native(*arrays):
        return batch_norm_inference_p.bind(*arrays, activation=activation, eps=float(eps))[0]
    return _batch_norm_inference(*arrays, activation=activation, eps=eps)[0]


def _statistics(x: Array) -> tuple[Array, Array]:
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.square(x - mean).mean(axes)


def _batch_norm(
    x: Array, scale: Array, bias: Array, *residual: Array, activation: str, eps: float
) -> Results:
    mean, var = _statistics(_wide(x))
    y = _batch_norm_inference(x, scale, bias, mean, var, *residual, activation=activation, eps=eps)[0]
    return y, mean, var


def _batch_norm_inference(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    var: Array,
    *residual: Array,
    activation: str,
    eps: float,
) -> Results:
    y = (x - mean) * (scale * jax.lax.rsqrt(var + eps)) + bias
    return [ACTIVATIONS[activation](sum(residual, start=y)).astype(x.dtype)]


def _batch_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    scale: Array,
    bias: Array,
    *kept: Array,
    activation: str,
    eps: float,
) -> Results:
    # From x again rather than from mean and var, so that derivatives of this see all that depends on x.
    del mean, var
    z, backward = jax.vjp(lambda *args: _batch_norm(*args, activation="identity", eps=eps)[0], x, scale, bias)
    g = _through(dy, lambda: z, kept, activation)
    return [*backward(g), *([g] if kept else [])]


def _batch_norm_gradient(
    primals: Results, outs: Results, dy: Array, *, activation: str, eps: float
) -> Sequence[Array]:
    x, scale, bias, *residual = primals
    y, mean, var = outs
    kept = _kept(activation, residual, y)
    found = batch_norm_backward_p.bind(dy, x, mean, var, scale, bias, *kept, activation=activation, eps=eps)
    return found if kept or not residual else [*found, dy]


_PIECEWISE_LINEAR = ("identity", "relu")  # activations without a second derivative


def _batch_norm_tangent(
    primals: Results, outs: Results, dots: Sequence[Array | None], *, activation: str, eps: float
) -> Array | None:
    """Along x alone: the derivative of normalisation is symmetric, so that its gradient is its tangent too."""
    x, scale, bias, *residual = primals
    y, mean, var = outs
    if residual or dots[0] is None or any(dot is not None for dot in dots[1:]):
        return None
    if activation not in _PIECEWISE_LINEAR:
        return None
    arrays = (dots[0], x, mean, var, scale, bias)
    before = batch_norm_backward_p.bind(*arrays, activation="identity", eps=eps)[0]
    return before if activation == "identity" else _masked(before, y, activation)


def _batch_norm_backward_along(
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    scale: Array,
    bias: Array,
    ddy: Array,
    dx: Array,
    *,
    activation: str,
    eps: float,
) -> Results:
    """The tangents of `_batch_norm_backward`'s results along ddy and dx, tangents of dy and x."""

    def along(dy: Array, x: Array) -> tuple[Array, ...]:
        return tuple(_batch_norm_backward(dy, x, mean, var, scale, bias, activation=activation, eps=eps))

    return jax.jvp(along, (dy, x), (ddy, dx))[1]


def _batch_norm_backward_tangents(
    primals: Results, dots: Sequence[Array | None], *, activation: str, eps: float
) -> Results | None:
    # mean and var come with x: what depends on x depends on them, but the derivative by x has that already.
    if len(primals) > 6 or any(dot is not None for dot in dots[4:]) or activation not in _PIECEWISE_LINEAR:
        return None
    along = [jnp.zeros_like(primals[i]) if dots[i] is None else dots[i] for i in (0, 1)]
    return batch_norm_backward_tangent_p.bind(*primals, *along, activation=activation, eps=eps)


moments_p = _primitive(
    "nas_moments",
    lambda x: _statistics(_wide(x)),
    lambda x: [_float32(x.shape[-1])] * 2,
    tangents=lambda primals, dots: [jnp.zeros(primals[0].shape[-1:], jnp.float32)] * 2,
)
batch_norm_p = _primitive("nas_batch_norm", _batch_norm, _like(0, 1, 1))
batch_norm_backward_p = _primitive(
    "nas_batch_norm_backward",
    _batch_norm_backward,
    lambda *avals, **_: [avals[1], avals[4], avals[5], *([avals[1]] if len(avals) == 7 else [])],
    tangents=_batch_norm_backward_tangents,
)
batch_norm_backward_tangent_p = _primitive(
    "nas_batch_norm_backward_tangent", _batch_norm_backward_along, _like(1, 4, 5)
)
_transposable(batch_norm_backward_tangent_p, _batch_norm_backward_along)  # in its last two
batch_norm_inference_p = _primitive(
    "nas_batch_norm_inference",
    _batch_norm_inference,
    _like(0),
    rows=lambda count, **_: (0, 5) if count == 6 else (0,),
)
_differentiate(batch_norm_p, _batch_norm, _batch_norm_gradient, _batch_norm_tangent)


# ---- scale, shift and activation ------------------------------------------------------------------------------


def scale_shift_act(
    x: Array,
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    *,
    activation: str = "identity",
) -> Array:
    """``activation(x * scale + shift + residual)``, what is None left out; [..., C] with scale and shift [C]."""
    activation = _activation("scale_shift_act", activation)
    _check_channels("scale_shift_act", x, residual, scale=scale, shift=shift)
    given = (scale, shift, residual)
    if activation == "identity" and not _present(*given):
        return x
    arrays = _present(x, *given)
    has = _bits(*(one is not None for one in given))
    if _use_native(*arrays):
        return scale_shift_p.bind(*arrays, activation=activation, has=has)[0]
    return _scale_shift(*arrays, activation=activation, has=has)[0]


def activate(x: Array, activation: str) -> Array:
    """``activation(x)`` by its name in ``ACTIVATIONS``; a scalar or any shape."""
    name = _activation("activate", activation)
    return scale_shift_act(x, activation=name) if x.ndim else ACTIVATIONS[name](x)


def _bits(*flags: bool) -> int:
    return sum(1 << place for place, flag in enumerate(flags) if flag)


def _named(has: int, arrays: Sequence[Array]) -> tuple[Array | None, Array | None, Sequence[Array]]:
    """Scale, shift and what follows, out of the arrays that are there."""
    rest = list(arrays)
    scale = rest.pop(0) if has & 1 else None
    shift = rest.pop(0) if has & 2 else None
    return scale, shift, rest


def _affine(x: Array, scale: Array | None, shift: Array | None) -> Array:
    y = x if scale is None else x * scale
    return y if shift is None else y + shift


def _scale_shift(x: Array, *arrays: Array, activation: str, has: int) -> Results:
    scale, shift, residual = _named(has, arrays)
    return [ACTIVATIONS[activation](sum(residual, start=_affine(x, scale, shift))).astype(x.dtype)]


def _scale_shift_backward(
    dy: Array, x: Array, *arrays: Array, activation: str, has: int, asked: int
) -> Results:
    scale, shift, kept = _named(has, arrays)
    g = _through(dy, lambda: _affine(x, scale, shift), kept, activation)
    axes = tuple(range(x.ndim - 1))
    found = [
        lambda: g if scale is None else g * scale,
        lambda: (g * x).sum(axes),
        lambda: g.sum(axes),
        lambda: g,
    ]
    return [one() for place, one in enumerate(found) if asked >> place & 1]


def _scale_shift_gradient(
    primals: Results, outs: Results, dy: Array, *, activation: str, has: int
) -> Sequence[Array]:
    x, *arrays = primals
    scale, shift, residual = _named(has, arrays)
    kept = _kept(activation, residual, outs[0])
    through = activation != "identity"
    asked = _bits(
        scale is not None or through,
        scale is not None,
        shift is not None,
        bool(residual) and scale is not None and through,
    )
    given = _present(scale, shift, *kept)
    has_kept = (has & 3) | (4 if kept else 0)
    found = iter(
        scale_shift_backward_p.bind(dy, x, *given, activation=activation, has=has_kept, asked=asked)
        if asked
        else ()
    )
    dx = next(found) if asked & 1 else dy
    gradients = [dx, *(next(found) for one in (scale, shift) if one is not None)]
    if residual:
        gradients.append(next(found) if asked & 8 else (dx if scale is None else dy))
    return gradients


def _masked(dot: Array, x: Array, activation: str) -> Array:
    """``dot`` times the slope of ``activation`` at x: its gradient and its tangent."""
    return scale_shift_backward_p.bind(dot, x, activation=activation, has=0, asked=1)[0]


def _scale_shift_tangent(
    primals: Results, outs: Results, dots: Sequence[Array | None], *, activation: str, has: int
) -> Array | None:
    """Of an activation alone."""
    del outs
    return None if has or dots[0] is None else _masked(dots[0], primals[0], activation)


def _scale_shift_backward_tangents(
    primals: Results, dots: Sequence[Array | None], *, activation: str, has: int, asked: int
) -> Results | None:
    """Of an activation alone, one whose slope does not change."""
    if has or asked != 1 or activation not in _PIECEWISE_LINEAR:
        return None
    return [jnp.zeros_like(primals[0]) if dots[0] is None else _masked(dots[0], primals[1], activation)]


def _scale_shift_backward_results(
    dy: Any, x: Any, *avals: Any, has: int, asked: int, **_: Any
) -> Sequence[Any]:
    del dy, avals, has
    channels = _float32(x.shape[-1])
    return [one for place, one in enumerate((x, channels, channels, x)) if asked >> place & 1]


scale_shift_p = _primitive(
    "nas_scale_shift",
    _scale_shift,
    _like(0),
    rows=lambda count, has, **_: (0, count - 1) if has & 4 else (0,),
)
scale_shift_backward_p = _primitive(
    "nas_scale_shift_backward",
    _scale_shift_backward,
    _scale_shift_backward_results,
    rows=lambda count, has, asked, **_: () if asked & 6 else ((0, 1, count - 1) if has & 4 else (0, 1)),
    tangents=_scale_shift_backward_tangents,
)
_transposable(scale_shift_backward_p, _scale_shift_backward)  # in dy
_differentiate(scale_shift_p, _scale_shift, _scale_shift_gradient, _scale_shift_tangent)


# ---- normalisation over channels ------------------------------------------------------------------------------


def layer_norm_act(
    x: Array,
    scale: Array,
    bias: Array,
    residual: Array | None = None,
    *,
    activation: str = "identity",
    eps: float = 1e-6,
) -> Array:
    """``activation(normalised x * scale + bias [+ residual])``, each pixel over its channels (Ba et al. 2016).

    ``x``, ``residual`` and the result [..., C]; ``scale`` and ``bias`` [C].
    """
    if os.environ.get("NAS_SPLIT") and (activation != "identity" or residual is not None):
        y = layer_norm_act(x, scale, bias, eps=eps)
        return ACTIVATIONS[activation](y if residual is None else y + residual)
    activation = _activation("layer_norm_act", activation)
    _check_channels("layer_norm_act", x, residual, scale=scale, bias=bias)
    arrays = _present(x, scale, bias, residual)
    if _use_native(*arrays):
        return layer_norm_p.bind(*arrays, activation=activation, eps=float(eps))[0]
    return _layer_norm(*arrays, activation=activation, eps=eps)[0]


def _layer_norm(
    x: Array, scale: Array, bias: Array, *residual: Array, activation: str, eps: float
) -> Results:
    wide = _wide(x)
    mean = wide.mean(-1, keepdims=True)
    var = jnp.square(wide - mean).mean(-1, keepdims=True)
    y = (wide - mean) * jax.lax.rsqrt(var + eps) * scale + bias
    return [ACTIVATIONS[activation](sum(residual, start=y)).astype(x.dtype)]


def _layer_norm_backward(
    dy: Array, x: Array, scale: Array, bias: Array, *kept: Array, activation: str, eps: float
) -> Results:
    z, backward = jax.vjp(lambda *args: _layer_norm(*args, activation="identity", eps=eps)[0], x, scale, bias)
    g = _through(dy, lambda: z, kept, activation)
    return [*backward(g), *([g] if kept else [])]


def _layer_norm_gradient(
    primals: Results, outs: Results, dy: Array, *, activation: str, eps: float
) -> Sequence[Array]:
    x, scale, bias, *residual = primals
    kept = _kept(activation, residual, outs[0])
    found = layer_norm_backward_p.bind(dy, x, scale, bias, *kept, activation=activation, eps=eps)
    return found if kept or not residual else [*found, dy]


layer_norm_p = _primitive(
    "nas_layer_norm", _layer_norm, _like(0), rows=lambda count, **_: (0, 3) if count == 4 else (0,)
)
layer_norm_backward_p = _primitive(
    "nas_layer_norm_backward",
    _layer_norm_backward,
    lambda *avals, **_: [*avals[1:4], *([avals[1]] if len(avals) == 5 else [])],
)
_differentiate(layer_norm_p, _layer_norm, _layer_norm_gradient)


def local_response_norm(
    x: Array, *, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
) -> Array:
    """``x / (k + alpha * sum of squares over size adjacent channels) ** beta``; [..., C].

    Krizhevsky et al. 2012, section 3.3, whose constants are the defaults. (PyTorch divides alpha by size.)
    """
    if size < 1 or not x.ndim:
        raise InputError(f"local_response_norm: size={size} of x {x.shape} is not at least 1 channel")
    parameters = {"size": int(size), "alpha": float(alpha), "beta": float(beta), "k": float(k)}
    if _use_native(x):
        return response_norm_p.bind(x, **parameters)[0]
    return _response_norm(x, **parameters)[0]


def _response_norm(x: Array, *, size: int, alpha: float, beta: float, k: float) -> Results:
    below = (size - 1) // 2
    squares = jnp.pad(jnp.square(x), [(0, 0)] * (x.ndim - 1) + [(below, size - 1 - below)])
    channels = x.shape[-1]
    total = sum((squares[..., i : i + channels] for i in range(1, size)), start=squares[..., :channels])
    return [x * jnp.power(k + alpha * total, -beta)]


def _response_norm_backward(dy: Array, x: Array, **parameters: Any) -> Results:
    return jax.vjp(lambda x: _response_norm(x, **parameters)[0], x)[1](dy)


response_norm_p = _primitive("nas_response_norm", _response_norm, _like(0), rows=lambda count, **_: (0,))
response_norm_backward_p = _primitive(
    "nas_response_norm_backward", _response_norm_backward, _like(1), rows=lambda count, **_: (0, 1)
)
_differentiate(
    response_norm_p,
    _response_norm,
    lambda primals, outs, dy, **parameters: response_norm_backward_p.bind(dy, *primals, **parameters),
)


# ---- where a network's edges meet -----------------------------------------------------------------------------


def add(*arrays: Array) -> Array:
    """The sum of arrays of one shape."""
    if not arrays or any(array.shape != arrays[0].shape for array in arrays):
        raise InputError(
            f"add: shapes {', '.join(str(array.shape) for array in arrays) or 'none'} are not one"
        )
    if len(arrays) == 1:
        return arrays[0]
    return total_p.bind(*arrays)[0] if _use_native(*arrays) else _total(*arrays)[0]


def fork(x: Array, readers: int) -> tuple[Array, ...]:
    """``x`` once for each of its readers; the gradients they send back are added in one native call.

    Reading ``x`` itself several times gives the same numbers, but leaves the additions to XLA to compile.
    """
    if readers < 2 or not _use_native(x):
        return (x,) * readers
    return tuple(fork_p.bind(x, readers=readers))


def _total(*arrays: Array) -> Results:
    return [functools.reduce(jnp.add, arrays)]


def _linear(
    new: core.Primitive,
    transpose: Callable[..., Sequence[Array]],
    sparse: bool = False,
) -> None:
    """Derivatives of a primitive that is linear in all its arrays together."""

    def jvp(primals: Results, tangents: Any, **parameters: Any) -> Any:
        dots = [ad.instantiate_zeros(one) for one in tangents]
        return new.bind(*primals, **parameters), new.bind(*dots, **parameters)

    def transposed(cotangents: Any, *arrays: Any, **parameters: Any) -> Any:
        if all(type(one) is ad.Zero for one in cotangents):
            return [None] * len(arrays)
        found = transpose(
            [one for one in cotangents if not (sparse and type(one) is ad.Zero)], arrays, **parameters
        )
        return [one if ad.is_undefined_primal(a) else None for one, a in zip(found, arrays, strict=True)]

    ad.primitive_jvps[new] = jvp
    ad.primitive_transposes[new] = transposed


def _every_row(count: int, **_: Any) -> Sequence[int]:
    return range(count)


total_p = _primitive("nas_total", _total, _like(0), rows=_every_row)
_linear(total_p, lambda cotangents, arrays: cotangents * len(arrays))

fork_p = _primitive(
    "nas_fork",
    lambda x, readers: [x] * readers,
    lambda x, readers: [x] * readers,
    rows=_every_row,
    native_kernel=False,
)
_linear(fork_p, lambda cotangents, arrays, readers: [add(*cotangents)], sparse=True)


def weighted_sum(weights: Array, arrays: Sequence[Array], positions: Sequence[int]) -> Array:
    """``sum_k weights[positions[k]] * arrays[k]``: float32 ``weights`` [n], arrays of one shape.

    The mixture of a supernet's operations (Liu et al. 2019, equation 2); ``InputError`` for shapes that differ or
    positions that are not in ``weights``.
    """
    _check_mixed(weights, arrays, positions)
    bound = weighted_sum_p.bind if _use_native(weights, *arrays) else _weighted_sum
    return bound(weights, *arrays, positions=tuple(positions))[0]


def _check_mixed(weights: Array, arrays: Sequence[Array], positions: Sequence[int]) -> None:
    if not arrays or any(array.shape != arrays[0].shape for array in arrays):
        raise InputError(
            f"weighted_sum: shapes {', '.join(str(array.shape) for array in arrays) or 'none'} are not one"
        )
    if weights.ndim != 1 or len(positions) != len(arrays):
        raise InputError(
            f"weighted_sum: weights {weights.shape} at {len(positions)} positions for {len(arrays)} arrays"
        )
    if not all(0 <= position < len(weights) for position in positions):
        raise InputError(f"weighted_sum: positions {tuple(positions)} are not all below {len(weights)}")


def _weighted_sum(weights: Array, *arrays: Array, positions: tuple[int, ...]) -> Results:
    terms = [weights[i].astype(array.dtype) * array for i, array in zip(positions, arrays, strict=True)]
    return [functools.reduce(jnp.add, terms)]


def _weighted_sum_backward(dy: Array, weights: Array, *arrays: Array, positions: tuple[int, ...]) -> Results:
    dots = jnp.stack([jnp.sum(_wide(dy) * _wide(array)) for array in arrays])
    of_weights = jnp.zeros_like(weights).at[np.array(positions)].add(dots.astype(weights.dtype))
    return [of_weights, *(weights[i].astype(dy.dtype) * dy for i in positions)]


def _weighted_sum_gradient(
    primals: Results, outs: Results, dy: Array, *, positions: tuple[int, ...]
) -> Sequence[Array]:
    return weighted_sum_backward_p.bind(dy, *primals, positions=positions)


def _weighted_sum_tangent(
    primals: Results, outs: Results, dots: Sequence[Array | None], *, positions: tuple[int, ...]
) -> Array:
    """Another weighted sum: of the arrays by the weights' tangents, of the arrays' tangents by the weights."""
    del outs
    weights, *arrays = primals
    terms: list[tuple[int, Array]] = []
    if dots[0] is not None:
        terms += zip(positions, arrays, strict=True)
    moved = [(i + len(weights), dot) for i, dot in zip(positions, dots[1:], strict=True) if dot is not None]
    both = jnp.concatenate([weights if dots[0] is None else dots[0], weights])
    places, maps = zip(*terms, *moved, strict=True)
    return weighted_sum_p.bind(both, *maps, positions=places)[0]


def _weighted_sum_backward_tangents(
    primals: Results, dots: Sequence[Array | None], *, positions: tuple[int, ...]
) -> Results:
    """Bilinear in dy and (weights, arrays)."""
    dy, weights, *arrays = primals
    ddy, dweights, *moved = dots
    found = [] if ddy is None else weighted_sum_backward_p.bind(ddy, weights, *arrays, positions=positions)
    along = [jnp.zeros_like(a) if dot is None else dot for a, dot in zip(arrays, moved, strict=True)]
    if dweights is None and all(dot is None for dot in moved):
        return found
    steady = jnp.zeros_like(weights) if dweights is None else dweights
    more = weighted_sum_backward_p.bind(dy, steady, *along, positions=positions)
    if not found:
        return more
    if dweights is None:  # the gradients by the arrays do not depend on the arrays
        return [found[0] + more[0], *found[1:]]
    return [found[0] + more[0], *(add(a, b) for a, b in zip(found[1:], more[1:], strict=True))]


weighted_sum_p = _primitive("nas_weighted_sum", _weighted_sum, _like(1))
weighted_sum_backward_p = _primitive(
    "nas_weighted_sum_backward",
    _weighted_sum_backward,
    lambda *avals, **_: avals[1:],
    tangents=_weighted_sum_backward_tangents,
)
_transposable(weighted_sum_backward_p, _weighted_sum_backward)  # in dy, or in weights and arrays
_differentiate(weighted_sum_p, _weighted_sum, _weighted_sum_gradient, _weighted_sum_tangent)


class Deferred(NamedTuple):
    """A map [..., C] still to be normalised, by its mean and variance [C] over the batch (`moments`)."""

    map: Array
    mean: Array
    var: Array


def mixture(
    weights: Array, maps: Sequence[Array | Deferred], positions: Sequence[int], *, eps: float = 1e-5
) -> Array:
    """`weighted_sum` of maps of which some are normalised only here: ``(map - mean) / sqrt(var + eps)``.

    Values and gradients are those of `batch_norm_act` and `weighted_sum` one after the other, but no normalised map
    is written to memory or kept for the gradient.
    """
    arrays = [one.map if isinstance(one, Deferred) else one for one in maps]
    normed = tuple(isinstance(one, Deferred) for one in maps)
    statistics = [array for one in maps if isinstance(one, Deferred) for array in one[1:]]
    if not any(normed) or not _use_native(weights, *arrays):
        plain = [_normalised(x, eps) if norm else x for x, norm in zip(arrays, normed, strict=True)]
        return weighted_sum(weights, plain, positions)
    _check_mixed(weights, arrays, positions)
    parameters = {"positions": tuple(positions), "normed": normed, "eps": float(eps)}
    return mixture_p.bind(weights, *arrays, *statistics, **parameters)[0]


def _normalised(x: Array, eps: float) -> Array:
    return batch_norm_act(x, *_identity_affine(x), eps=eps)[0]


def _identity_affine(x: Array) -> tuple[Array, Array]:
    return jnp.asarray(np.ones(x.shape[-1], np.float32)), jnp.asarray(np.zeros(x.shape[-1], np.float32))


def _mixture(
    weights: Array, *arrays: Array, positions: tuple[int, ...], normed: tuple[bool, ...], eps: float
) -> Results:
    # From the maps alone, not from their statistics, so that derivatives of this see all that depends on them.
    pairs = zip(arrays[: len(normed)], normed, strict=True)
    return [weighted_sum(weights, [_normalised(x, eps) if norm else x for x, norm in pairs], positions)]


def _mixture_backward(
    dy: Array,
    weights: Array,
    *arrays: Array,
    positions: tuple[int, ...],
    normed: tuple[bool, ...],
    eps: float,
) -> Results:
    maps = arrays[: len(normed)]
    through = [
        batch_norm_p.bind(x, *_identity_affine(x), activation="identity", eps=eps) if norm else (x,)
        for x, norm in zip(maps, normed, strict=True)
    ]
    seen = [one[0] for one in through]
    of_weights, *of_maps = weighted_sum_backward_p.bind(dy, weights, *seen, positions=positions)
    return [
        of_weights,
        *(
            batch_norm_backward_p.bind(
                given, x, *one[1:], *_identity_affine(x), activation="identity", eps=eps
            )[0]
            if norm
            else given
            for given, x, one, norm in zip(of_maps, maps, through, normed, strict=True)
        ),
    ]


def _mixture_gradient(
    primals: Results, outs: Results, dy: Array, **parameters: Any
) -> Sequence[Array | None]:
    del outs
    found = mixture_backward_p.bind(dy, *primals, **parameters)
    return [*found, *[None] * (len(primals) - len(found))]


mixture_p = _primitive("nas_mixture", _mixture, _like(1))
mixture_backward_p = _primitive(
    "nas_mixture_backward",
    _mixture_backward,
    lambda dy, weights, *avals, normed, **_: [weights, *avals[: len(normed)]],
)
_differentiate(mixture_p, _mixture, _mixture_gradient)


def concatenate(arrays: Sequence[Array]) -> Array:
    """Arrays [..., C_i] side by side along their channels."""
    leading = {array.shape[:-1] for array in arrays}
    if len(leading) != 1:
        raise InputError(
            f"concatenate: shapes {', '.join(str(a.shape) for a in arrays) or 'none'} differ but for channels"
        )
    if len(arrays) == 1:
        return arrays[0]
    return concatenate_p.bind(*arrays)[0] if _use_native(*arrays) else _concatenate(*arrays)[0]


def _concatenate(*arrays: Array) -> Results:
    return [jnp.concatenate(arrays, axis=-1)]


def _split(x: Array, *, channels: tuple[int, ...]) -> Results:
    return jnp.split(x, np.cumsum(channels)[:-1], axis=-1)


concatenate_p = _primitive(
    "nas_concatenate",
    _concatenate,
    lambda *avals: [avals[0].update(shape=(*avals[0].shape[:-1], sum(one.shape[-1] for one in avals)))],
    rows=_every_row,
)
split_p = _primitive(
    "nas_split",
    _split,
    lambda x, channels: [x.update(shape=(*x.shape[:-1], count)) for count in channels],
    rows=_every_row,
)
_linear(
    concatenate_p,
    lambda cotangents, arrays: split_p.bind(
        *cotangents,
        channels=tuple((a.aval if ad.is_undefined_primal(a) else a).shape[-1] for a in arrays),
    ),
)
_linear(
    split_p,
    lambda cotangents, arrays, channels: concatenate_p.bind(*map(ad.instantiate_zeros, cotangents)),
)


def dropout(x: Array, rate: Array | float, seed: Array | int) -> Array:
    """``noise.dropout``, the same mask to the bit; no gradient by ``rate``."""
    rate = jax.lax.stop_gradient(jnp.asarray(rate, jnp.float32))
    if not _use_native(x):
        return noise.dropout(x, rate, seed)
    return dropout_p.bind(x, rate, jnp.asarray(seed, jnp.uint32))[0]


def _dropout(x: Array, rate: Array, seed: Array) -> Results:
    return [noise.dropout(x, rate, seed)]


dropout_p = _primitive("nas_dropout", _dropout, _like(0))
_differentiate(dropout_p, _dropout, lambda primals, outs, dy: [*dropout_p.bind(dy, *primals[1:]), None, None])


# ---- separable convolution ------------------------------------------------------------------------------------


def separable_conv2d(
    x: Array,
    depthwise: Array,
    pointwise: Array,
    *,
    strides: int | Pair = (1, 1),
    padding: Padding = "SAME",
    dilation: int | Pair = (1, 1),
) -> Array:
    """A depthwise convolution of x [B, H, W, C] and then a 1x1 convolution: [B, H', W', O].

    ``depthwise`` [kh, kw, 1, C], ``pointwise`` [1, 1, C, O]; the rest as for `conv2d`. ``InputError`` for shapes
    that disagree.
    """

    def apart() -> Array:
        between = conv2d(
            x, depthwise, strides=strides, padding=padding, dilation=dilation, groups=x.shape[-1]
        )
        return conv2d(between, pointwise)

    if x.ndim != 4 or depthwise.ndim != 4 or pointwise.ndim != 4:
        return apart()
    channels, features = pointwise.shape[2:]
    whole = features in (4, 8) or features % 16 == 0  # the kernels write whole vectors
    shaped = (
        depthwise.shape[2:] == (1, channels) and pointwise.shape[:2] == (1, 1) and channels == x.shape[-1] > 1
    )
    if not whole or not shaped or not _use_native(x, depthwise, pointwise):
        return apart()
    at = windows("separable_conv2d", x.shape[1:3], depthwise.shape[:2], strides, padding, dilation)
    return separable_p.bind(x, depthwise, pointwise, at=at)[0]


def _depthwise(at: Windows, channels: int) -> Convolution:
    return Convolution(at, groups=channels)


def _pointwise(at: Windows) -> Convolution:
    return Convolution(Windows(at.output, (1, 1), (1, 1), ((0, 0), (0, 0))))


def _separable(x: Array, depthwise: Array, pointwise: Array, *, at: Windows) -> Results:
    between = conv_p.bind(x, depthwise, at=_depthwise(at, x.shape[-1]))
    return [conv_p.bind(between, pointwise, at=_pointwise(at))]


def _separable_backward(
    dy: Array, x: Array, depthwise: Array, pointwise: Array, *, at: Windows, asked: int
) -> Results:
    first, second = _depthwise(at, x.shape[-1]), _pointwise(at)
    found: list[Array] = []
    if asked & 3:
        given = conv_dx_p.bind(dy, pointwise, at=second)
        found += [conv_dx_p.bind(given, depthwise, at=first)] if asked & 1 else []
        found += [conv_dw_p.bind(x, given, at=first)] if asked & 2 else []
    if asked & 4:
        found.append(conv_dw_p.bind(conv_p.bind(x, depthwise, at=first), dy, at=second))
    return found


def _separable_backward_tangents(
    primals: Results, dots: Sequence[Array | None], *, at: Windows, asked: int
) -> Results:
    """By the rule of the product at each convolution; sums are native calls too."""
    dy, x, depthwise, pointwise = primals
    ddy, dx, ddepthwise, dpointwise = dots
    first, second = _depthwise(at, x.shape[-1]), _pointwise(at)

    def along(
        bound: core.Primitive, a: Array, b: Array, da: Array | None, db: Array | None, of: Convolution
    ) -> Array | None:
        terms = [bound.bind(da, b, at=of)] if da is not None else []
        terms += [bound.bind(a, db, at=of)] if db is not None else []
        return add(*terms) if terms else None

    found: list[tuple[Array | None, Any]] = []
    if asked & 3:
        given = conv_dx_p.bind(dy, pointwise, at=second)
        dgiven = along(conv_dx_p, dy, pointwise, ddy, dpointwise, second)
        if asked & 1:
            found.append((along(conv_dx_p, given, depthwise, dgiven, ddepthwise, first), x))
        if asked & 2:
            found.append((along(conv_dw_p, x, given, dx, dgiven, first), depthwise))
    if asked & 4:
        between = conv_p.bind(x, depthwise, at=first)
        dbetween = along(conv_p, x, depthwise, dx, ddepthwise, first)
        found.append((along(conv_dw_p, between, dy, dbetween, ddy, second), pointwise))
    return [jnp.zeros_like(like) if one is None else one for one, like in found]


def _separable_gradient(
    primals: Results, outs: Results, dy: Array, *, at: Windows, asked: Sequence[bool]
) -> Sequence[Array | None]:
    del outs
    found = iter(separable_backward_p.bind(dy, *primals, at=at, asked=_bits(*asked)))
    return [next(found) if one else None for one in asked]


def _separable_tangent(
    primals: Results, outs: Results, dots: Sequence[Array | None], *, at: Windows
) -> Array:
    """Linear in each array."""
    del outs
    terms = [
        separable_p.bind(*primals[:i], dot, *primals[i + 1 :], at=at)[0]
        for i, dot in enumerate(dots)
        if dot is not None
    ]
    return add(*terms)


separable_p = _primitive(
    "nas_separable",
    _separable,
    lambda x, depthwise, pointwise, at: [_float32(x.shape[0], *at.output, pointwise.shape[3])],
)
separable_backward_p = _primitive(
    "nas_separable_backward",
    _separable_backward,
    lambda dy, *avals, asked, **_: [aval for place, aval in enumerate(avals) if asked >> place & 1],
    tangents=_separable_backward_tangents,
)
_differentiate(separable_p, _separable, _separable_gradient, _separable_tangent, selective=True)


# ---- dense layers ---------------------------------------------------------------------------------------------


def dense(x: Array, w: Array, b: Array | None = None, *, activation: str = "identity") -> Array:
    """``activation(x @ w + b)``: x [B, I], w [I, O], b [O] or None, result [B, O]."""
    activation = _activation("dense", activation)
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0]:
        raise InputError(f"dense: x {x.shape} and w {w.shape} are not [B, I] and [I, O]")
    if b is not None and b.shape != w.shape[1:]:
        raise InputError(f"dense: b {b.shape} is not one value for each of w's {w.shape[1]} outputs")
    arrays = _present(x, w, b)
    if not _use_native(*arrays):
        return _dense(*arrays, activation=activation)[0]
    if w.size > _SMALL:
        return scale_shift_act(x @ w, None, b, activation=activation)
    if activation in _SLOPES:
        return dense_p.bind(*arrays, activation=activation)[0]
    return activate(dense_p.bind(*arrays, activation="identity")[0], activation)


# Above as many weights XLA's own product is as fast or faster, and compiles no slower.
_SMALL = 1 << 17


def _dense(x: Array, w: Array, *b: Array, activation: str) -> Results:
    return [ACTIVATIONS[activation](sum(b, start=x @ w))]


def _dense_backward(dy: Array, x: Array, w: Array, *y: Array, activation: str, has: int) -> Results:
    g = dy * _SLOPES[activation](y[0]) if y else dy
    return [g @ w.T, x.T @ g, *([g.sum(0)] if has else [])]


def _dense_gradient(primals: Results, outs: Results, dy: Array, *, activation: str) -> Sequence[Array]:
    x, w, *b = primals
    y = () if activation == "identity" else outs
    return dense_backward_p.bind(dy, x, w, *y, activation=activation, has=len(b))


dense_p = _primitive("nas_dense", _dense, lambda x, w, *_, **__: [_float32(x.shape[0], w.shape[1])])
dense_backward_p = _primitive(
    "nas_dense_backward",
    _dense_backward,
    lambda dy, x, w, *_, has, **__: [x, w, *([_float32(w.shape[1])] if has else [])],
)
_differentiate(dense_p, _dense, _dense_gradient)


# ---- the loss -------------------------------------------------------------------------------------------------


def softmax_cross_entropy(logits: Array, targets: Array, *, mean: bool = False) -> Array:
    """``-sum(targets * log_softmax(logits))`` over classes: [B, K] and [B, K] probabilities to [B].

    With ``mean`` its mean over the batch, a scalar. Both arguments have gradients.
    """
    if logits.shape != targets.shape or logits.ndim < 1:
        raise InputError(f"softmax_cross_entropy: logits {logits.shape} and targets {targets.shape} differ")
    if _use_native(logits, targets):
        return cross_entropy_p.bind(logits, targets, mean=mean)[0]
    return _cross_entropy(logits, targets, mean=mean)[0]


def _cross_entropy(logits: Array, targets: Array, *, mean: bool) -> Results:
    loss = -(targets * jax.nn.log_softmax(logits)).sum(-1)
    return [loss.mean() if mean else loss]


def _cross_entropy_backward(dloss: Array, logits: Array, targets: Array, *, mean: bool) -> Results:
    return jax.vjp(lambda *args: _cross_entropy(*args, mean=mean)[0], logits, targets)[1](dloss)


def _loss_rows(count: int, *, mean: bool) -> Sequence[int]:
    return () if mean else range(count)


cross_entropy_p = _primitive(
    "nas_cross_entropy",
    _cross_entropy,
    lambda logits, targets, mean: [_float32(*(() if mean else logits.shape[:-1]))],
    rows=_loss_rows,
)
cross_entropy_backward_p = _primitive(
    "nas_cross_entropy_backward", _cross_entropy_backward, _like(1, 2), rows=_loss_rows
)
_differentiate(
    cross_entropy_p,
    _cross_entropy,
    lambda primals, outs, dloss, **parameters: cross_entropy_backward_p.bind(dloss, *primals, **parameters),
)


def count_correct(logits: Array, labels: Array) -> Array:
    """How many rows of ``logits`` [B, K] are largest at their label (int32 [B]), as a float32 scalar; no gradient."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise InputError(
            f"count_correct: logits {logits.shape} and labels {labels.shape} are not [B, K] and [B]"
        )
    logits = jax.lax.stop_gradient(logits)
    if _use_native(logits) and labels.dtype == jnp.int32:
        return count_correct_p.bind(logits, labels)[0]
    return _count_correct(logits, labels)[0]


def _count_correct(logits: Array, labels: Array) -> Results:
    return [(logits.argmax(-1) == labels).sum(dtype=jnp.float32)]


count_correct_p = _primitive("nas_count_correct", _count_correct, lambda *_: [_float32()])


# ---- optimisers -----------------------------------------------------------------------------------------------

_SLOT_COUNTS = {
    "sgd": 0,
    "momentum": 1,
    "nesterov": 1,
    "rmsprop": 1,
    "adam": 2,
    "adamw": 2,
}  # fused.cc's order
OPTIMISERS = tuple(_SLOT_COUNTS)
SCALARS = {  # defaults; in the order of optimiser in fused.cc
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "grad_scale": 1.0,
    "momentum": 0.9,
    "b1": 0.9,
    "b2": 0.999,
    "decay": 0.9,
    "eps": 1e-8,
    "step": 0,
}


def optimiser_slots(kind: str, params: Tree) -> tuple[Tree, ...]:
    """What ``fused_update`` of this kind remembers, before the first update: zero trees shaped like ``params``.

    sgd: none; momentum, nesterov: (trace,); rmsprop: (square,); adam, adamw: (mean, square).
    """
    if kind not in _SLOT_COUNTS:
        raise one_of("optimiser", kind, OPTIMISERS)
    return tuple(jax.tree.map(_zeros_like, params) for _ in range(_SLOT_COUNTS[kind]))


def _zeros_like(leaf: Array) -> Array:
    """Zeros without a program to compile for each shape, where that is possible."""
    if isinstance(leaf, Tracer) or not _use_native(leaf):
        return jnp.zeros_like(leaf)
    return jax.device_put(np.zeros(leaf.shape, leaf.dtype))


def fused_update(
    kind: str,
    params: Tree,
    grads: Tree,
    slots: tuple[Tree, ...],
    scalars: Mapping[str, Array | float],
    decay_mask: Tree | None = None,
) -> tuple[Tree, tuple[Tree, ...]]:
    """One step of an optimiser on every leaf: new params and slots, equal to optax's of the same name.

    ``scalars`` may be traced and do not change the program; defaults are in ``SCALARS``: ``learning_rate``,
    ``weight_decay``, ``grad_scale`` (gradients are first multiplied by it: ``clip_scale``'s second result clips
    by global norm), ``momentum`` (momentum, nesterov), ``b1``, ``b2`` (adam, adamw), ``decay`` (rmsprop), ``eps``
    (rmsprop, under its root as in optax; adam, adamw) and ``step``, an int32 count of the updates made before
    this one, for Adam's bias correction. Weight decay is L2 added to the gradient, except in adamw, where it is
    decoupled; it touches leaves of two axes or more, or those true in ``decay_mask``, a tree of bools.
    ``InputError`` for an unknown kind, scalar or number of slots.
    """
    if kind not in _SLOT_COUNTS:
        raise one_of("optimiser", kind, OPTIMISERS)
    if len(slots) != _SLOT_COUNTS[kind]:
        raise InputError(f"optimiser: {kind} has {_SLOT_COUNTS[kind]} slots, not {len(slots)}")
    for name in scalars:
        if name not in SCALARS:
            raise one_of("optimiser: scalar", name, SCALARS)
    leaves, structure = jax.tree.flatten(params)
    given = [structure.flatten_up_to(tree) for tree in (grads, *slots)]
    decayed = (
        [leaf.ndim >= 2 for leaf in leaves] if decay_mask is None else structure.flatten_up_to(decay_mask)
    )
    if not leaves:
        return params, slots
    numbers = [
        jnp.asarray(scalars.get(name, default), jnp.int32 if name == "step" else jnp.float32)
        for name, default in SCALARS.items()
    ]
    arrays = [*leaves, *(leaf for tree in given for leaf in tree)]
    parameters = {"kind": OPTIMISERS.index(kind), "leaves": len(leaves), "decayed": tuple(map(int, decayed))}
    bound = optimiser_p.bind if _use_native(*arrays) else _optimiser
    found = bound(*numbers, *arrays, **parameters)
    trees = [
        jax.tree.unflatten(structure, found[i : i + len(leaves)]) for i in range(0, len(found), len(leaves))
    ]
    return trees[0], tuple(trees[1:])


def _optimiser(*arrays: Array, kind: int, leaves: int, decayed: tuple[int, ...]) -> Results:
    scalars = dict(zip(SCALARS, arrays, strict=False))
    rest = arrays[len(SCALARS) :]
    trees = [rest[i : i + leaves] for i in range(0, len(rest), leaves)]
    found = [
        _update(OPTIMISERS[kind], scalars, bool(has), *leaf)
        for has, *leaf in zip(decayed, *trees, strict=True)
    ]
    return [
        leaf.astype(tree[i].dtype)
        for tree, of in zip((trees[0], *trees[2:]), zip(*found, strict=True), strict=True)
        for i, leaf in enumerate(of)
    ]


def _update(
    kind: str, scalars: Mapping[str, Array], decayed: bool, p: Array, g: Array, *slots: Array
) -> Results:
    """One leaf and its slots after an update."""
    b1, b2, eps = scalars["b1"], scalars["b2"], scalars["eps"]
    g = g * scalars["grad_scale"]
    if decayed and kind != "adamw":
        g = g + scalars["weight_decay"] * p
    if kind == "sgd":
        update, new = g, []
    elif kind in ("momentum", "nesterov"):
        trace = g + scalars["momentum"] * slots[0]
        update, new = (g + scalars["momentum"] * trace if kind == "nesterov" else trace), [trace]
    elif kind == "rmsprop":
        square = (1 - scalars["decay"]) * g * g + scalars["decay"] * slots[0]
        update, new = g * jax.lax.rsqrt(square + eps), [square]
    else:
        count = (scalars["step"] + 1).astype(jnp.float32)
        mean = (1 - b1) * g + b1 * slots[0]
        square = (1 - b2) * g * g + b2 * slots[1]
        # 1 - b ** count, without losing its digits where b ** count is near 1
        unbiased, spread = mean / -jnp.expm1(count * jnp.log(b1)), square / -jnp.expm1(count * jnp.log(b2))
        update, new = unbiased / (jnp.sqrt(spread) + eps), [mean, square]
        if decayed and kind == "adamw":
            update = update + scalars["weight_decay"] * p
    return [p - scalars["learning_rate"] * update, *new]


_IN_PLACE = 48  # XLA's compile time grows with the square of a call's aliases


def _in_place(avals: Avals, places: Sequence[int]) -> dict[int, int]:
    """Results 0, 1, … in the memory of the arguments at ``places``: the largest of them."""
    chosen = sorted(range(len(places)), key=lambda result: (-avals[places[result]].size, result))[:_IN_PLACE]
    return {places[result]: result for result in sorted(chosen)}


def _optimiser_aliases(*avals: Any, leaves: int, **_: Any) -> dict[int, int]:
    first = len(SCALARS)
    return _in_place(avals, [*range(first, first + leaves), *range(first + 2 * leaves, len(avals))])


optimiser_p = _primitive(
    "nas_optimiser",
    _optimiser,
    lambda *avals, leaves, **_: [
        *avals[len(SCALARS) : len(SCALARS) + leaves],
        *avals[len(SCALARS) + 2 * leaves :],
    ],
    aliases=_optimiser_aliases,
)


def global_norm(tree: Tree) -> Array:
    """The square root of the sum of all squares in a tree; a float32 scalar."""
    return clip_scale(tree, math.inf)[0]


def clip_scale(tree: Tree, largest: Array | float) -> tuple[Array, Array]:
    """A tree's global norm, and what to multiply it by so that its norm is at most ``largest`` (may be traced).

    The factor is 1 below ``largest``, as in ``optax.clip_by_global_norm``.
    """
    leaves = jax.tree.leaves(tree)
    bound = global_norm_p.bind if _use_native(*leaves) else _global_norm
    norm, factor = bound(jnp.asarray(largest, jnp.float32), *leaves)
    return norm, factor


def _global_norm(largest: Array, *leaves: Array) -> Results:
    total = sum((jnp.square(_wide(leaf)).sum() for leaf in leaves), start=jnp.zeros((), jnp.float32))
    norm = jnp.sqrt(total)
    return [norm, jnp.where(norm < largest, 1.0, largest / norm)]


global_norm_p = _primitive("nas_global_norm", _global_norm, lambda *_: [_float32(), _float32()])


def lerp(old: Tree, new: Tree, weight: Array | float) -> Tree:
    """``(1 - weight) * old + weight * new`` on every leaf of two trees; ``weight`` may be traced."""
    return _lerp_trees(old, new, weight, keeps=False)


def ema_update(average: Tree, new: Tree, decay: Array | float) -> Tree:
    """``decay * average + (1 - decay) * new`` on every leaf: running statistics, averaged weights."""
    return _lerp_trees(average, new, decay, keeps=True)


def _lerp_trees(old: Tree, new: Tree, weight: Array | float, *, keeps: bool) -> Tree:
    leaves, structure = jax.tree.flatten(old)
    arrays = [*leaves, *structure.flatten_up_to(new)]
    if not leaves:
        return old
    bound = lerp_p.bind if _use_native(*arrays) else _lerp
    return jax.tree.unflatten(structure, bound(jnp.asarray(weight, jnp.float32), *arrays, keeps=keeps))


def _lerp(weight: Array, *arrays: Array, keeps: bool) -> Results:
    half = len(arrays) // 2
    of_old, of_new = (weight, 1 - weight) if keeps else (1 - weight, weight)
    return [
        (of_old * old + of_new * new).astype(old.dtype)
        for old, new in zip(arrays[:half], arrays[half:], strict=True)
    ]


lerp_p = _primitive(
    "nas_lerp",
    _lerp,
    lambda *avals, **_: avals[1 : 1 + len(avals) // 2],
    aliases=lambda *avals, **_: _in_place(avals, range(1, 1 + len(avals) // 2)),
)


# ---- recomputation --------------------------------------------------------------------------------------------


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(waiting, *inputs)``, which keeps its arguments alone for the gradient and computes all else anew.

    Elsewhere than on CPU it is `jax.checkpoint`, whose barriers are gone on CPU when XLA merges equal
    computations: measured, not a byte is saved. There, the second time ``waiting`` waits for a cotangent, which XLA
    cannot know to change nothing; what needs ``inputs`` alone is kept, and it has no forward mode.
    """

    @jax.custom_vjp
    def run(waiting: Tree, *inputs: Any) -> Any:
        return function(waiting, *inputs)

    def forward(waiting: Tree, *inputs: Any) -> tuple[Any, Any]:
        return function(waiting, *inputs), (waiting, inputs)

    def backward(kept: Any, cotangents: Any) -> Any:
        waiting, inputs = kept
        return jax.vjp(function, _after(waiting, jax.tree.leaves(cotangents)[0]), *inputs)[1](cotangents)

    run.defvjp(forward, backward)

    def call(waiting: Tree, *inputs: Any) -> Any:
        return (run if jax.default_backend() == "cpu" else jax.checkpoint(function))(waiting, *inputs)

    return call


def _after(tree: Tree, cotangent: Array) -> Tree:
    """``tree`` unchanged, but not before ``cotangent`` is there."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = (*leaves, cotangent)
    return jax.tree.unflatten(structure, (after_p.bind if _use_native(*arrays) else _later)(*arrays))


def _later(*arrays: Array) -> Results:
    """The arrays but for the last, each with a zero added that follows from it."""
    *leaves, last = arrays
    zero = jnp.minimum(jnp.abs(last[(0,) * last.ndim]), 0)
    return [one + zero.astype(one.dtype) for one in leaves]


after_p = _primitive("nas_after", _later, lambda *avals: avals[:-1])


# ---- the input pipeline ---------------------------------------------------------------------------------------


def gather_normalise(images: Array, index: Array, mean: Array, inv_std: Array) -> Array:
    """``(images[index] / 255 - mean) * inv_std``: uint8 [N, H, W, C], int32 [B], [C], [C] to float32 [B, H, W, C].

    An index beyond the images takes the last one.
    """
    return _gather(images, index, mean, inv_std)


def gather_augmented(
    images: Array, index: Array, mean: Array, inv_std: Array, shift: Array, flip: Array, cutout: Array
) -> Array:
    """``gather_normalise`` with each image moved, mirrored and cut out as its row of the parameters says.

    First moved: pixel (i, j) of the result is (i + dy, j + dx) of the image, for ``shift`` = (dy, dx) int32
    [B, 2]; beyond its edges pixels are 0, before normalisation: (0 - mean) * inv_std after it. (Padding by p and
    cropping at random is dy and dx uniform on -p..p.) Then mirrored left to right where ``flip`` (bool [B]). Then
    the square ``cutout`` = (top, left, size) int32 [B, 3], clipped by the edges, is set to 0 after normalisation,
    the mean colour (DeVries and Taylor 2017); size 0 cuts nothing.
    """
    return _gather(images, index, mean, inv_std, shift, flip, cutout)


def _gather(images: Array, index: Array, mean: Array, inv_std: Array, *augmentation: Array) -> Array:
    if images.ndim != 4 or index.ndim != 1 or not images.size:
        raise InputError(
            f"gather_normalise: images {images.shape} and index {index.shape} are not [N, H, W, C] and [B]"
        )
    wanted = {"mean": images.shape[3:], "inv_std": images.shape[3:]}
    batch = index.shape[0]
    wanted |= (
        dict(zip(("shift", "flip", "cutout"), ((batch, 2), (batch,), (batch, 3)), strict=True))
        if augmentation
        else {}
    )
    for (name, shape), array in zip(wanted.items(), (mean, inv_std, *augmentation), strict=True):
        if array.shape != shape:
            raise InputError(f"gather_normalise: {name} {array.shape} is not {shape}")
    dtypes = [array.dtype for array in (images, index, *augmentation)]
    expected = [jnp.uint8, jnp.int32, *([jnp.int32, jnp.bool_, jnp.int32] if augmentation else [])]
    arrays = (images, index, mean, inv_std, *augmentation)
    if _use_native(mean, inv_std) and dtypes == expected and batch:
        return gather_images_p.bind(*arrays)[0]
    return _gather_images(*arrays)[0]


def _gather_images(images: Array, index: Array, mean: Array, inv_std: Array, *augmentation: Array) -> Results:
    def normalise(pixels: Array) -> Array:
        return (pixels.astype(mean.dtype) / 255 - mean) * inv_std

    chosen = images.at[index].get(mode="clip")
    if not augmentation:
        return [normalise(chosen)]
    shift, flip, cutout = augmentation
    _, height, width, _ = images.shape
    row, column = jnp.arange(height), jnp.arange(width)
    rows = row + shift[:, :1]
    columns = jnp.where(flip[:, None], column[::-1], column) + shift[:, 1:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    place = jnp.arange(index.shape[0])[:, None, None]
    moved = chosen.at[place, rows[:, :, None], columns[:, None, :]].get(mode="clip")
    out = normalise(jnp.where(inside[..., None], moved, jnp.zeros((), moved.dtype)))

    def within(position: Array, first: Array) -> Array:
        return (position >= first[:, None]) & (position < (first + cutout[:, 2])[:, None])

    cut = within(row, cutout[:, 0])[:, :, None] & within(column, cutout[:, 1])[:, None, :]
    return [jnp.where(cut[..., None], jnp.zeros((), out.dtype), out)]


gather_images_p = _primitive(
    "nas_gather_images",
    _gather_images,
    lambda images, index, *_: [_float32(index.shape[0], *images.shape[1:])],
)


def gather_targets(
    labels: Array, index: Array, num_classes: int, smoothing: Array | float = 0.0
) -> tuple[Array, Array]:
    """The labels at ``index`` (int32 [N] and [B] to [B]) and their target probabilities, float32 [B, num_classes].

    A label's class gets ``1 - smoothing + smoothing / num_classes``, every other ``smoothing / num_classes``
    (Szegedy et al. 2016, section 7); ``smoothing`` may be traced. An index beyond the labels takes the last one.
    """
    if labels.ndim != 1 or index.ndim != 1 or not labels.size:
        raise InputError(f"gather_targets: labels {labels.shape} and index {index.shape} are not [N] and [B]")
    arrays = labels, index, jnp.asarray(smoothing, jnp.float32)
    fits = labels.dtype == index.dtype == jnp.int32 and index.size and _use_native()
    chosen, targets = (gather_targets_p.bind if fits else _gather_targets)(*arrays, classes=int(num_classes))
    return chosen, targets


def _gather_targets(labels: Array, index: Array, smoothing: Array, *, classes: int) -> Results:
    chosen = labels.at[index].get(mode="clip")
    low = smoothing / classes
    return [chosen, jnp.where(chosen[:, None] == jnp.arange(classes), 1 - smoothing + low, low)]


gather_targets_p = _primitive(
    "nas_gather_targets",
    _gather_targets,
    lambda labels, index, smoothing, classes: [
        jax.ShapeDtypeStruct(index.shape, labels.dtype),
        _float32(index.shape[0], classes),
    ],
)
