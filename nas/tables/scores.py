"""Training-free scores of a space's architectures in a CSV file: what `scripts/score.py` writes, and what a search
over a table is filtered by.

The file has a line an architecture: ``architecture`` (the space's text), a column for each score, the higher the
better, and beside a column ``NAME``, if it is there, ``NAME_seconds``: what it took to score that architecture.
A cell is empty where a score could not be had; a last column ``errors``, if it is there, says why.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nas.errors import InputError
from nas.space import Architecture, SearchSpace

FILE = "scores.csv"
"""Its name in a folder that `scripts/score.py` writes."""
ARCHITECTURE, ERRORS = "architecture", "errors"
SECONDS = "_seconds"


class Score(NamedTuple):
    """One score: of each architecture its value, NaN where there is none, and what it cost to compute."""

    values: Mapping[Architecture, float]
    seconds: Mapping[Architecture, float]


class Columns(NamedTuple):
    """The file as it is: ``archs`` as text, and by name the numbers of each column but the errors."""

    archs: tuple[str, ...]
    numbers: Mapping[str, tuple[float, ...]]


def read_columns(path: str | os.PathLike[str]) -> Columns:
    """The file, or that of a folder that `scripts/score.py` wrote. Raises InputError, which names the line."""
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    except FileNotFoundError as error:
        raise InputError(f"scores: there is no file {path}") from error
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"scores: cannot read {path} ({error})") from error
    if not rows or rows[0][:1] != [ARCHITECTURE] or len(set(rows[0])) < len(rows[0]):
        raise InputError(f"scores: {path}: its first line is not {ARCHITECTURE},SCORE,… with each name once")
    names = rows[0][1:]
    said = names[-1:] == [ERRORS]
    archs: list[str] = []
    numbers: list[list[float]] = []
    for line, row in enumerate(rows[1:], 2):
        try:
            if len(row) != len(rows[0]):
                raise ValueError(f"{len(row)} cells for {len(rows[0])} columns")
            numbers.append([float(x) if x.strip() else math.nan for x in row[1 : len(row) - said]])
        except ValueError as error:
            raise InputError(f"scores: {path}:{line}: {error}") from None
        archs.append(row[0])
    kept = names[: len(names) - said]
    return Columns(tuple(archs), {name: tuple(row[k] for row in numbers) for k, name in enumerate(kept)})


def read_scores(path: str | os.PathLike[str], space: SearchSpace) -> dict[str, Score]:
    """The scores in a file or in a folder of `scripts/score.py`, by name. Raises InputError, which names the line."""
    found = read_columns(path)
    archs: dict[Architecture, None] = {}
    for line, text in enumerate(found.archs, 2):
        try:
            arch = space.from_string(text)
        except InputError as error:
            raise InputError(f"scores: {path}:{line}: {error}") from None
        if arch in archs:
            raise InputError(f"scores: {path}:{line}: {text} is there twice")
        archs[arch] = None
    columns = {name: dict(zip(archs, numbers, strict=True)) for name, numbers in found.numbers.items()}
    return {
        name: Score(values, columns.get(f"{name}{SECONDS}", {}))
        for name, values in columns.items()
        if not (name.endswith(SECONDS) and name.removesuffix(SECONDS) in columns)
    }


def head(names: Sequence[str]) -> str:
    """The first line of a file with these scores, their seconds and the errors, as `line` writes them."""
    return _csv([ARCHITECTURE, *names, *(f"{name}{SECONDS}" for name in names), ERRORS])


def line(arch: str, values: Sequence[float], seconds: Sequence[float], errors: str) -> str:
    """A line of such a file."""
    return _csv([arch, *map(_cell, values), *(f"{spent:.6f}" for spent in seconds), errors])


def write_scores(
    path: str | os.PathLike[str],
    space: SearchSpace,
    archs: Iterable[Architecture],
    columns: Mapping[str, Sequence[float]],
) -> None:
    """Write a file of these columns, without errors. InputError where it cannot be written."""
    rows = zip(archs, *columns.values(), strict=True)
    lines = [_csv([space.to_string(arch), *map(_cell, values)]) for arch, *values in rows]
    try:
        Path(path).write_text(_csv([ARCHITECTURE, *columns]) + "".join(lines), encoding="utf-8")
    except OSError as error:
        raise InputError(f"scores: cannot write {path} ({error.strerror or error})") from error


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))


def _csv(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
