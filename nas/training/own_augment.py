"""Augmentations of a user's own: functions of a batch of images and a key, by the names that they are searched by."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
from jax import Array
from jaxtyping import Float

from nas.errors import InputError
from nas.own_file import named_in_file, value_named

Augment = Callable[
    [Float[Array, "batch height width channel"], Array], Float[Array, "batch height width channel"]
]
"""From images with pixels in [0, 1] and a key to images of the same shape; it is compiled by jax."""

AUGMENTS: dict[str, Augment] = {}
"""Of programs, by name; ``FILE.py:NAME`` where a command line or a space names it."""

_PLAN = "own:"


def load_named(augmentation: str) -> None:
    """Make known what ``crop+my.py:NAME`` names in files. Raises InputError."""
    for part in augmentation.split("+"):
        if named_in_file(part) is not None:
            found: Any = value_named(part, "augmentation")
            if not callable(found):
                raise InputError(f"augmentation: {part} is a {type(found).__name__}, not a function")
            AUGMENTS[part] = cast(Augment, found)


def used(augmentation: str) -> Mapping[str, str]:
    """The own ones among ``augmentation``: each with its name in a plan, which changes with its code."""
    return {
        part: f"{_PLAN}{part}#{_code(AUGMENTS[part])}" for part in augmentation.split("+") if part in AUGMENTS
    }


def _code(function: Augment) -> str:
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):  # made without a file, or come to a worker by value
        text = repr(getattr(getattr(function, "__code__", None), "co_code", function))
    return f"{zlib.crc32(text.encode()):08x}"


def apply(images: Array, plan: Mapping[str, Any], mean: Array, std: Array) -> Array:
    """``images``, normalised, with the own augmentations of ``plan``, one step's seeds by name."""
    for name, seed in plan.items():
        if name.startswith(_PLAN):
            part = name.removeprefix(_PLAN).rpartition("#")[0]
            changed = AUGMENTS[part](images * std + mean, jax.random.key(seed))
            if changed.shape != images.shape:
                raise InputError(f"augmentation: {part} makes {changed.shape} of images of {images.shape}")
            images = (changed - mean) / std
    return images
