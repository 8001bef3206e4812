"""Many architectures by many scores, into a file that a killed process goes on with."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nas.errors import InputError
from nas.objectives.score import Scorer
from nas.space import Architecture

CONFIG, SCORES = "config.json", "scores.csv"


class ScoreTable(NamedTuple):
    """Scores of ``archs`` (as text): ``values`` and ``seconds`` by score, float64 [architecture] each.

    Values are unsigned, as the scores give them (`nas.proxies.PROXIES` has the signs); NaN where there is none.
    """

    archs: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    seconds: Mapping[str, np.ndarray]


def score_architectures(
    scorer: Scorer,
    archs: Sequence[Architecture],
    out: Path,
    config: Mapping[str, Any],
    *,
    resume: bool = False,
    on_scored: Callable[[int, int], None] = lambda done, total: None,
) -> ScoreTable:
    """Score ``archs`` in their order into ``out / "scores.csv"``, a line each as soon as it is there.

    Goes on behind what is in the file with ``resume``, where ``config`` (plain JSON values, all that the numbers
    depend on) is what it was begun with. ``on_scored`` hears how many are done. Raises InputError.
    """
    path = out / SCORES
    texts = [scorer.space.to_string(arch) for arch in archs]
    written = json.loads(json.dumps({**config, "dataset_checksum": scorer.dataset.checksum}))
    if resume and (out / CONFIG).is_file():
        _check(out, written)
        _cut(path)
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: holds files already; go on with --resume or choose another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(_line(_head(scorer.names)))
        (out / CONFIG).write_text(json.dumps(written, indent=1) + "\n")
    done = list(read_scores(out).archs)
    if done != texts[: len(done)]:
        raise InputError(f"{path}: holds other architectures, in another order or more of them")
    with path.open("a") as file:
        for k in range(len(done), len(archs)):
            found = scorer(archs[k])
            errors = "; ".join(one.error for one in found.values() if one.error)
            values = [f"{one.value!r}" for one in found.values()]
            seconds = [f"{one.seconds:.6f}" for one in found.values()]
            file.write(_line([texts[k], *values, *seconds, errors]))
            file.flush()
            os.fsync(file.fileno())
            on_scored(k + 1, len(archs))
    return read_scores(out)


def read_scores(out: Path) -> ScoreTable:
    """The scores in a folder of `score_architectures`. Raises InputError where there are none, or damaged ones."""
    path = out / SCORES
    try:
        head, *rows = csv.reader(io.StringIO(path.read_text()))
        names = head[1 : 1 + (len(head) - 2) // 2]
        if head != _head(names):
            raise ValueError
        numbers = np.array([[float(cell) for cell in row[1:-1]] for row in rows], np.float64)
        numbers = numbers.reshape(len(rows), 2 * len(names))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except ValueError:
        raise InputError(f"{path}: is not a table of scores, or damaged") from None
    values, seconds = numbers[:, : len(names)].T, numbers[:, len(names) :].T
    return ScoreTable(
        tuple(row[0] for row in rows),
        dict(zip(names, values, strict=True)),
        dict(zip(names, seconds, strict=True)),
    )


def mean_seconds(table: ScoreTable, name: str) -> float:
    """Of an architecture; compilations included."""
    return float(table.seconds[name].mean()) if len(table.archs) else math.nan


def _head(names: Sequence[str]) -> list[str]:
    return ["arch", *names, *(f"{name}_seconds" for name in names), "errors"]


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _cut(path: Path) -> None:
    """Off what a killed process left of a line."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _check(out: Path, config: Mapping[str, Any]) -> None:
    try:
        found = json.loads((out / CONFIG).read_text())
    except ValueError:
        raise InputError(f"{out / CONFIG}: is damaged") from None
    for name in sorted({*found, *config}):
        if found.get(name) != config.get(name):
            raise InputError(f"{out}: was begun with {name}={found.get(name)!r}, not {config.get(name)!r}")
