"""Famous networks as points of spaces; every family has its own in ``NAMED``, `search_spaces.zoo` has all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from nas.space import Architecture


@dataclasses.dataclass(frozen=True)
class Named:
    """One published network.

    ``arch`` holds every choice of ``space`` (a name in ``SPACES``) that is active, the training
    hyperparameters being the published recipe as near as the choices come to it. ``image_shape`` and
    ``num_classes`` are those it was published for. ``params`` are its trainable parameters there, by
    ``source``: the paper and table, or how they were derived.
    """

    space: str
    arch: Architecture
    image_shape: tuple[int, int, int]
    num_classes: int
    params: int
    source: str

    @classmethod
    def of(
        cls,
        space: str,
        image_shape: tuple[int, int, int],
        num_classes: int,
        params: int,
        source: str,
        **choices: Any,
    ) -> Named:
        return cls(space, Architecture(choices), image_shape, num_classes, params, source)


def variants(base: Named, params: int, **changes: Any) -> Named:
    """``base`` with some choices changed, and the parameters that come of it."""
    arch: Mapping[str, Any] = base.arch.set(**changes)
    return dataclasses.replace(base, arch=Architecture(arch), params=params)
