"""How a lowering is put in front of the one that JAX has; the one file that uses private parts of JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import mlir

from nas.cpu import native

Function = Callable[..., jax.Array]

_KINDS = ("float32", "bfloat16", "float16")  # computed in float32, as XLA does on CPU


Choose = Callable[..., Function | None]


def original_rule(primitive: Any) -> Callable[..., Any]:
    """JAX's own lowering of ``primitive`` on CPU."""
    entry = mlir._platform_specific_lowerings["cpu"].get(primitive) or mlir._lowerings[primitive]
    return entry.rule


def one_device(context: mlir.LoweringRuleContext) -> bool:
    """Whether the program runs on one device: XLA cannot partition a custom call over several."""
    axes = context.module_context.axis_context
    return isinstance(axes, mlir.ShardingContext) and axes.num_devices == 1


def register(primitive: Any, choose: Choose, name: str) -> None:
    """Lower ``primitive`` on CPU to the function of float32 arrays that ``choose(*avals, **parameters)`` returns.

    Where that is None it is lowered as before. ``name`` as in `native.enabled`.
    """
    before = original_rule(primitive)

    def rule(context: mlir.LoweringRuleContext, *operands: Any, **parameters: Any) -> Any:
        avals: list[Any] = [*context.avals_in, *context.avals_out]
        small = all(one.dtype.name in _KINDS and one.size for one in avals)
        use = small and one_device(context) and native.enabled(name)
        found = choose(*context.avals_in, **parameters) if use else None
        if found is None:
            return before(context, *operands, **parameters)
        dtype = context.avals_out[0].dtype

        def run(*arrays: jax.Array) -> jax.Array:
            return found(*(array.astype(jnp.float32) for array in arrays)).astype(dtype)

        return mlir.lower_fun(run, multiple_results=False)(context, *operands)

    mlir.register_lowering(primitive, rule, platform="cpu")
