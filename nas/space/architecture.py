"""`Architecture`: a point of a search space, an immutable mapping from choice names to plain values."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, TypeAlias

import numpy as np

from nas.errors import InputError
from nas.space.messages import clip, one_line

Scalar: TypeAlias = str | int | float | bool | None


class Architecture(Mapping[str, Any]):
    """A point of a search space: an immutable, hashable mapping from choice names to plain scalars.

    Two architectures are equal when they hold the same names and values, in whatever order. NumPy scalars
    become Python's; anything but a finite number, string, bool or None is an ``InputError``.
    """

    __slots__ = ("_hash", "_values")
    _hash: int | None
    _values: dict[str, Scalar]

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **more: Any) -> None:
        held = {name: scalar(name, value) for name, value in {**dict(values), **more}.items()}
        object.__setattr__(self, "_values", held)
        object.__setattr__(self, "_hash", None)

    @classmethod
    def from_checked(cls, values: dict[str, Scalar]) -> Architecture:
        """Wraps ``values`` unchecked and uncopied: for callers in this package that made or checked them."""
        arch = cls.__new__(cls)
        object.__setattr__(arch, "_values", values)
        object.__setattr__(arch, "_hash", None)
        return arch

    def set(self, **changes: Any) -> Architecture:
        """The same architecture with ``changes`` made; names not held before are added at the end."""
        return Architecture(self._values, **changes)

    def without(self, *names: str) -> Architecture:
        """The same architecture with ``names`` left out (those it does not hold are ignored)."""
        return Architecture.from_checked(
            {name: value for name, value in self._values.items() if name not in names}
        )

    def _repr_html_(self) -> str:
        """How a notebook shows it: drawn, from its choices alone."""
        from nas.space.picture import architecture_html

        return architecture_html(self)

    def to_json(self) -> str:
        """One line of JSON, names sorted, so that equal architectures give equal text."""
        return json.dumps(self._values, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, source: str | bytes | Mapping[str, Any]) -> Architecture:
        """Inverse of ``to_json``; also takes the decoded object. Raises ``InputError``."""
        decoded: Any = source
        if isinstance(source, str | bytes):
            try:
                decoded = json.loads(source, object_pairs_hook=without_duplicates)
            except InputError:
                raise
            except (ValueError, RecursionError) as error:
                raise InputError(f"architecture: {clip(source)} is not JSON ({error})") from None
        if not isinstance(decoded, Mapping):
            raise InputError(f"architecture: {clip(source)} is not a JSON object of names and values")
        return cls(decoded)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def get(self, name: str, default: Any = None) -> Any:
        return self._values.get(name, default)

    def keys(self) -> KeysView[str]:
        return self._values.keys()

    def values(self) -> ValuesView[Any]:
        return self._values.values()

    def items(self) -> ItemsView[str, Any]:
        return self._values.items()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Architecture):
            return self._values == other._values
        return self._values == dict(other) if isinstance(other, Mapping) else NotImplemented

    def __hash__(self) -> int:
        if self._hash is None:
            object.__setattr__(self, "_hash", hash(frozenset(self._values.items())))
        assert self._hash is not None
        return self._hash

    def __repr__(self) -> str:
        return f"Architecture({self._values!r})"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an Architecture is immutable: use .set({name}=…)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an Architecture is immutable: use .without({name!r})")

    def __reduce__(self) -> tuple[type[Architecture], tuple[dict[str, Scalar]]]:
        return Architecture, (self._values,)  # not the hash: strings hash differently in every process


def plain_values(arch: Mapping[str, Any]) -> dict[str, Scalar]:
    """The checked values of ``arch``; an Architecture's own dict, which must not be changed."""
    return (arch if isinstance(arch, Architecture) else Architecture(arch))._values


def scalar(name: object, value: object) -> Scalar:
    """``value`` as a plain Python value; ``name`` is what an error calls it."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(name, str):
        raise InputError(f"architecture: the name {clip(name)} is not a string")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"architecture: {one_line(name)}={value} is not finite")
    if value is None or isinstance(value, bool):
        return value
    for plain in (str, int, float):
        if isinstance(value, plain):
            return value if type(value) is plain else plain(value)  # an enum's member becomes its value
    raise InputError(f"architecture: {one_line(name)}={clip(value)} is not a string, number, bool or None")


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) < len(pairs):
        twice = next(name for name, many in Counter(name for name, _ in pairs).items() if many > 1)
        raise InputError(f"architecture: {one_line(twice)} is given twice")
    return held
