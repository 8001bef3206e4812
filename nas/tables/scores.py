"""Training-free scores of a space's architectures in a CSV file, and as what a search is filtered by.

The file has a line an architecture: ``architecture`` (the space's text), a column for each score, the higher the
better, and beside a column ``NAME``, if it is there, ``NAME_seconds``: what it took to score that architecture.
A cell is empty where a score could not be had.
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

ARCHITECTURE = "architecture"
SECONDS = "_seconds"


class Score(NamedTuple):
    """One score: of each architecture its value, NaN where there is none, and what it cost to compute."""

    values: Mapping[Architecture, float]
    seconds: Mapping[Architecture, float]


def read_scores(path: str | os.PathLike[str], space: SearchSpace) -> dict[str, Score]:
    """The scores in a file, by name. Raises InputError, which names the line."""
    path = Path(path)
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    except FileNotFoundError as error:
        raise InputError(f"scores: there is no file {path}") from error
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"scores: cannot read {path} ({error})") from error
    if not rows or rows[0][:1] != [ARCHITECTURE] or len(set(rows[0])) < len(rows[0]):
        raise InputError(f"scores: {path}: its first line is not {ARCHITECTURE},SCORE,… with each name once")
    names = rows[0][1:]
    columns: dict[str, dict[Architecture, float]] = {name: {} for name in names}
    for number, row in enumerate(rows[1:], 2):
        try:
            text, *cells = row
            arch = space.from_string(text)
            for name, cell in zip(names, cells, strict=True):
                if arch in columns[name]:
                    raise InputError(f"{text} is there twice")
                columns[name][arch] = float(cell) if cell.strip() else math.nan
        except ValueError as error:  # InputError is one too
            raise InputError(f"scores: {path}:{number}: {error}") from None
    return {
        name: Score(values, columns.get(f"{name}{SECONDS}", {}))
        for name, values in columns.items()
        if not (name.endswith(SECONDS) and name.removesuffix(SECONDS) in columns)
    }


def write_scores(
    path: str | os.PathLike[str],
    space: SearchSpace,
    archs: Iterable[Architecture],
    columns: Mapping[str, Sequence[float]],
) -> None:
    """Write such a file; NaN becomes an empty cell. InputError where it cannot be written."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([ARCHITECTURE, *columns])
    for arch, *values in zip(archs, *columns.values(), strict=True):
        cells = ("" if math.isnan(value) else repr(float(value)) for value in values)
        writer.writerow([space.to_string(arch), *cells])
    try:
        Path(path).write_text(lines.getvalue(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"scores: cannot write {path} ({error.strerror or error})") from error
