"""How the engine calls a Flax module of anybody's: with what its signature names."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import flax.linen as nn

NOISE = ("dropout", "drop_path", "seed")
"""The traced numbers of one step that a module's call may take as keywords; they do not change the program."""
MODES = ("train", "use_running_average", "deterministic")
"""The keywords that say in which mode a module runs: the engine's and Flax's own."""


def keywords(module: Any, *, train: bool, **numbers: Any) -> dict[str, Any]:
    """The keywords to call ``module`` with: those of ``numbers`` that its call names, and in which mode it runs.

    The mode is said by those of `MODES`.
    """
    taken, every = _signature_of(module)
    offered = {"train": train, **numbers}
    if every:
        return offered
    offered |= {"use_running_average": not train, "deterministic": not train}
    return {name: value for name, value in offered.items() if name in taken}


def takes_noise(module: Any) -> tuple[str, ...]:
    """The names in ``NOISE`` that ``module``'s call takes."""
    taken, every = _signature_of(module)
    return tuple(name for name in NOISE if every or name in taken)


def _class(module: Any) -> type:
    """The class whose call counts: of a bridged NNX module (`nas.nn.bridge`) its own."""
    return getattr(module, "nnx_class", type(module))


def _signature_of(module: Any) -> tuple[frozenset[str], bool]:
    """`signature` of what takes the keywords: Flax's `nn.Sequential` hands its own to the first layer."""
    while isinstance(module, nn.Sequential):
        module = module.layers[0] if module.layers else None
    return signature(_class(module)) if isinstance(module, nn.Module) else (frozenset(), False)


@functools.cache
def signature(kind: type) -> tuple[frozenset[str], bool]:
    """The names of a call's arguments, and whether it takes any keyword."""
    parameters = inspect.signature(kind.__call__).parameters
    every = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return frozenset(parameters), every
