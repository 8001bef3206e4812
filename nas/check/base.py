"""A check: a sentence that holds of something, and the function that raises `CheckFailed` where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class CheckFailed(AssertionError):
    """The message is one line: what was found instead."""


class Check(NamedTuple):
    """``holds()`` raises where ``sentence`` is not true."""

    sentence: str
    holds: Callable[[], None]


def require(condition: object, said: str) -> None:
    """Raises `CheckFailed` with what is ``said`` unless the condition is true."""
    if not condition:
        raise CheckFailed(said)
