"""A CSV file as columns."""

from __future__ import annotations

import csv
import io

import numpy as np

from nas.errors import InputError, one_of


class Rows:
    """The columns of a CSV file, as texts or numbers; InputError, which begins with ``place``, where it lacks one."""

    def __init__(self, place: str, content: bytes) -> None:
        self._place = place
        try:
            header, *rows = csv.reader(io.StringIO(content.decode()))
            self._columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        except ValueError as error:
            raise InputError(f"{place} is not a table ({error})") from error
        self.count = len(rows)

    def __iter__(self):
        return iter(self._columns)

    def texts(self, name: str) -> tuple[str, ...]:
        if name not in self._columns:
            raise one_of(f"{self._place}: column", name, self._columns)
        return self._columns[name]

    def numbers(self, name: str) -> np.ndarray:
        """float64 [row]; NaN where the file has nothing."""
        try:
            return np.array([float(text or "nan") for text in self.texts(name)])
        except ValueError as error:
            raise InputError(f"{self._place}: {name}: {error}") from None
