"""Fields of what a record's JSON says; each function raises ValueError with the name, the value and what it must be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

MOST_SECONDS = 1e12  # 30,000 years: a longer time is damage, and sums of such stay finite


def integer(event: Mapping[str, Any], name: str, low: int | None = None) -> int:
    """An integer, at least ``low``."""
    value = event.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is not an integer")
    if low is not None and value < low:
        raise ValueError(f"{name}={value} is below {low}")
    return value


def integer_or_none(event: Mapping[str, Any], name: str) -> int | None:
    """A count, or None where it is null or absent."""
    return None if event.get(name) is None else integer(event, name, 0)


def numbers(event: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """Floats by name; those that are called ``*_seconds`` are times."""
    return {
        name: seconds_of(event, name) if name.endswith("_seconds") else number(event, name) for name in names
    }


def number(event: Mapping[str, Any], name: str) -> float:
    """A float, NaN where it is null; one that is called ``*accuracy`` is a fraction."""
    value = event.get(name, "missing")
    if value is None:
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is not a number")
    if name.endswith("accuracy") and not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r} is not between 0 and 1")
    return float(value)


def seconds_of(event: Mapping[str, Any], name: str) -> float:
    """Times may be absent (`without_times`); an unknown one counts as none, so that sums stay numbers."""
    value = 0.0 if event.get(name) is None else number(event, name)
    if not 0 <= value <= MOST_SECONDS:
        raise ValueError(f"{name}={event[name]!r} is not between 0 and {MOST_SECONDS:.0e}")
    return value
