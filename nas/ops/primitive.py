"""JAX primitives whose lowering differs on CPU."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend import core
from jax.interpreters import mlir

from nas.cpu import native

Function = Callable[..., jax.Array]


def primitive(
    name: str,
    shape: Callable[..., tuple[int, ...]],
    *,
    elsewhere: Function,
    fast: Function,
    portable: Function,
) -> core.Primitive:
    """A primitive of arrays and one hashable parameter ``at``; its result has the first array's dtype.

    ``shape(*shapes, at)`` is the result's. On CPU it lowers to ``fast`` where the native kernels can be built
    and to ``portable`` otherwise; on other platforms to ``elsewhere``.
    """
    new = core.Primitive(name)

    def abstract(*arrays: Any, at: Any) -> Any:
        return ShapedArray(shape(*(array.shape for array in arrays), at), arrays[0].dtype)

    def on_cpu(context: Any, *arrays: Any, at: Any) -> Any:
        chosen = fast if native.available() else portable
        return mlir.lower_fun(chosen, multiple_results=False)(context, *arrays, at=at)

    @functools.cache
    def compiled(at: Any) -> Callable[..., jax.Array]:
        return jax.jit(functools.partial(new.bind, at=at))

    new.def_abstract_eval(abstract)
    new.def_impl(lambda *arrays, at: compiled(at)(*arrays))
    mlir.register_lowering(new, mlir.lower_fun(elsewhere, multiple_results=False))
    mlir.register_lowering(new, on_cpu, platform="cpu")
    return new


def use_primitives(*arrays: jax.Array) -> bool:
    """Whether to bind the primitives: not for float64, nor where a program may span several devices.

    XLA partitions its own ops over a mesh, but would gather a custom call's operands on every device.
    """
    return False
    small = all(array.dtype in (jax.numpy.float32, jax.numpy.bfloat16, jax.numpy.float16) for array in arrays)
    return small and all(array.size for array in arrays) and jax.device_count() == 1
