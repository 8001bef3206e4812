"""Pickles of numbers, texts and containers, read without running anything that they may ask for."""

from __future__ import annotations

import collections
import io
import pickle
import re
from typing import Any

import numpy as np

from nas.errors import InputError


class _Refused(Exception):
    """A pickle asks for something that no record needs."""


class _DType:
    """What a pickle knows of a NumPy type: a code such as ``f8``, and the byte order in its state."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">", "|": "|"}[state[1]]


def _scalar(kind: Any, content: Any) -> float | int | bool:
    """The number in a pickled NumPy scalar, as Python's."""
    if not isinstance(kind, _DType) or not re.fullmatch(r"[fiub][1248]", kind.code):
        raise _Refused("a NumPy scalar that is no number")
    return np.frombuffer(content, np.dtype(kind.order + kind.code), 1)[0].item()


def _reconstruct(*_: Any) -> _Array:
    return _Array()


class _Array:
    """A pickled array of numbers."""

    def __init__(self, *_: Any) -> None:
        self.values = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _DType) or not re.fullmatch(r"[fiub][1248]", kind.code):
            raise _Refused("an array of what is no number")
        values = np.frombuffer(content, np.dtype(kind.order + kind.code))
        self.values = values.reshape(shape, order="F" if fortran else "C")

    def __iter__(self) -> Any:
        return iter(self.values.tolist())


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


class _Unpickler(pickle.Unpickler):
    """Makes numbers, texts, lists, sets and dictionaries, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object outside the file")


def read_pickle(content: bytes, place: str, largest: int) -> Any:
    """What a pickle holds; InputError, one line that begins with ``place``, where it asks for more than numbers, texts,
    arrays and containers, is longer than ``largest`` bytes, or is damaged."""
    if len(content) > largest:
        raise InputError(f"{place} is larger than the official file")
    try:
        return _Unpickler(io.BytesIO(content)).load()
    except _Refused as error:
        raise InputError(
            f"{place} is refused: it asks for {error}, and a record is numbers and text alone"
        ) from None
    except Exception as error:  # a pickle can raise anything
        what = " ".join(str(error).split())[:100]
        raise InputError(f"{place} cannot be read ({type(error).__name__}: {what})") from error
