"""How a lowering is put in front of the one that JAX has; the one file that uses private parts of JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import mlir

from nas.cpu import native

Function = Callable[..., jax.Array]

_KINDS = ("float32", "bfloat16", "float16")  # computed in float32, as XLA does on CPU


@dataclasses.dataclass(frozen=True)
class Lowering:
    """What a primitive's equation becomes: ``function`` of its operands, which are float32.

    ``unreversed``: operands that are given as they are before the ``lax.rev`` that made them, by their number, with
    the axes that must be reversed.
    """

    function: Function
    unreversed: tuple[tuple[int, tuple[int, ...]], ...] = ()


Choose = Callable[..., Lowering | None]


def original_rule(primitive: Any) -> Callable[..., Any]:
    """JAX's own lowering of ``primitive`` on CPU."""
    entry = mlir._platform_specific_lowerings["cpu"].get(primitive) or mlir._lowerings[primitive]
    return entry.rule


def one_device(context: mlir.LoweringRuleContext) -> bool:
    """Whether the program runs on one device: XLA cannot partition a custom call over several."""
    axes = context.module_context.axis_context
    return isinstance(axes, mlir.ShardingContext) and axes.num_devices == 1


def before_reverse(value: Any, axes: Sequence[int]) -> Any | None:
    """The operand of the ``stablehlo.reverse`` over ``axes`` that ``value`` is the result of; else None."""
    owner = value.owner
    if getattr(owner, "name", None) != "stablehlo.reverse":
        return None
    return owner.operands[0] if sorted(owner.opview.dimensions) == sorted(axes) else None


def register(primitive: Any, choose: Choose, name: str) -> None:
    """Lower ``primitive`` on CPU to what ``choose(*avals, **parameters)`` says; where that is None, as before.

    ``name`` as in `native.enabled`.
    """
    before = original_rule(primitive)

    def rule(context: mlir.LoweringRuleContext, *operands: Any, **parameters: Any) -> Any:
        avals = context.avals_in
        small = all(one.dtype.name in _KINDS and one.size for one in (*avals, *context.avals_out))
        found = (
            choose(*avals, **parameters) if small and one_device(context) and native.enabled(name) else None
        )
        if found is None:
            return before(context, *operands, **parameters)
        given = list(operands)
        turned = []
        for number, axes in found.unreversed:
            unreversed = before_reverse(operands[number], axes)
            if unreversed is None:
                turned.append((number, axes))
            else:
                given[number] = unreversed
        dtype = context.avals_out[0].dtype

        def run(*arrays: jax.Array) -> jax.Array:
            wide = [array.astype(jnp.float32) for array in arrays]
            for number, axes in turned:
                wide[number] = jax.lax.rev(wide[number], axes)
            return found.function(*wide).astype(dtype)

        return mlir.lower_fun(run, multiple_results=False)(context, *given)

    mlir.register_lowering(primitive, rule, platform="cpu", cacheable=False)
