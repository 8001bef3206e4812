"""Networks of `flax.nnx` as Linen modules, which is what the engine trains."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
from flax import nnx

from nas.errors import InputError
from nas.nn.call import MODES, signature
from nas.space import Architecture, SearchSpace


def build(space: SearchSpace, arch: Architecture, num_classes: int) -> Any:
    """The network of ``arch`` as a Linen module. Raises InputError where the space has none."""
    if space.build is None:
        raise InputError(f"space {space.name}: has no networks to build")
    return as_linen(space.build(arch, num_classes))


def as_linen(network: Any) -> nn.Module:
    """What a space's ``build`` returned as a Linen module.

    A Linen module is returned as it is. An NNX network is given as its class, or a `functools.partial` of it, to be
    called with ``rngs``: every trial draws its own weights. Its call may take ``train``, as a Linen module's may; of
    one that names no mode, ``train()`` or ``eval()`` is called first, as in an NNX program.

    Raises:
        InputError: it is neither.
    """
    if isinstance(network, nn.Module):
        return network
    made, args, kwargs = network, (), {}
    if isinstance(network, functools.partial):
        made, args, kwargs = network.func, network.args, network.keywords
    if isinstance(made, type) and issubclass(made, nnx.Module):
        return nnx.bridge.to_linen(_told_its_mode(made), *args, **kwargs)
    if isinstance(network, nnx.Module):
        raise InputError(
            f"build: {type(network).__name__} is an NNX module that has its weights already; "
            f"return its class, or functools.partial({type(network).__name__}, …)"
        )
    raise InputError(f"build: a {type(network).__name__} is no Flax module")


@functools.cache
def _told_its_mode(kind: type[nnx.Module]) -> type[nnx.Module]:
    """``kind``, or where its call names no mode a class of its name that takes ``train`` and passes it on NNX's way."""
    names, every = signature(kind)
    if not names.isdisjoint(MODES) or (every and not issubclass(kind, nnx.Sequential)):
        return kind

    def call(self: Any, x: Any, *, train: bool = False) -> Any:
        (self.train if train else self.eval)()
        return kind.__call__(self, x)  # pyright: ignore[reportCallIssue]

    told: Any = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
    return told
