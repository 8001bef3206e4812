"""What a network computes, taken apart: the calls of those of its modules that call no others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from nas.nn.call import keywords


class Operation(NamedTuple):
    """A module of a network that calls no other, by what it is and the shapes of what it is given."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    """`jax.ShapeDtypeStruct`s in the place of arrays"""
    keywords: Mapping[str, Any]


def operations(
    network: nn.Module, variables: Any, images: jax.ShapeDtypeStruct
) -> list[tuple[Operation, int]]:
    """The operations of a forward pass in evaluation mode, with how often each is in it; only traced."""
    found: dict[str, Operation] = {}
    counts: dict[str, int] = {}
    calls_within = [0]

    def note(call: Any, args: tuple[Any, ...], given: dict[str, Any], context: Any) -> Any:
        if context.method_name != "__call__":
            return call(*args, **given)
        calls_within.append(0)
        output = call(*args, **given)
        if not calls_within.pop():
            shapes, of_keywords = jax.tree.map(_shape, (args, given))
            name = f"{_described(context.module)} of {' and '.join(map(_text, jax.tree.leaves((shapes, of_keywords))))}"
            found[name] = Operation(name, context.module.clone(parent=None, name=None), shapes, of_keywords)
            counts[name] = counts.get(name, 0) + 1
        calls_within[-1] += 1
        return output

    with nn.intercept_methods(note):
        given = keywords(network, train=False)
        jax.eval_shape(lambda variables, x: network.apply(variables, x, **given), variables, images)
    return [(operation, counts[name]) for name, operation in found.items()]


def _shape(value: Any) -> Any:
    return jax.ShapeDtypeStruct(value.shape, value.dtype) if hasattr(value, "shape") else value


def _text(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, jax.ShapeDtypeStruct) else str(value)


def _described(module: nn.Module) -> str:
    """A module's class and those of its fields that change what is computed and are not at their defaults."""
    told = []
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if (
            field.name not in ("parent", "name")
            and not field.name.endswith("_init")
            and value != field.default
        ):
            told.append(f"{field.name}={getattr(value, '__qualname__', value)}")
    return f"{type(module).__name__}({', '.join(told)})"
