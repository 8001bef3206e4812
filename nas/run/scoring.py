"""Many architectures by many scores, into a file that a killed process goes on with."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nas.errors import InputError
from nas.objectives.score import Scorer
from nas.proxies import PROXIES
from nas.record.files import write_json
from nas.space import Architecture
from nas.tables.scores import FILE, SECONDS, head, line, read_columns

CONFIG = "config.json"


class ScoreTable(NamedTuple):
    """Scores of ``archs`` (as text): ``values`` and ``seconds`` by score, float64 [architecture] each.

    Values are signed so that higher is better (`nas.proxies.PROXIES` has the signs); NaN where there is none.
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
    """Score ``archs`` in their order into ``out / "scores.csv"`` (`nas.tables.scores`), a line each once it is there.

    Goes on behind what is in the file with ``resume``, where ``config`` (plain JSON values, all that the numbers
    depend on) is what it was begun with. ``on_scored`` hears how many are done. Raises InputError.
    """
    path = out / FILE
    texts = [scorer.space.to_string(arch) for arch in archs]
    written = json.loads(json.dumps({**config, "dataset_checksum": scorer.dataset.checksum}))
    if resume and (out / CONFIG).is_file():
        _check(out, written)
        _cut(path)
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: holds files already; go on with --resume or choose another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / CONFIG, written)
    if not path.is_file() or not path.stat().st_size:
        path.write_text(head(scorer.names))
    done = list(read_score_table(out).archs)
    if done != texts[: len(done)]:
        raise InputError(f"{path}: holds other architectures, in another order or more of them")
    with path.open("a") as file:
        for k in range(len(done), len(archs)):
            found = scorer(archs[k])
            errors = "; ".join(one.error for one in found.values() if one.error)
            values = [PROXIES[name].sign * one.value for name, one in found.items()]
            file.write(line(texts[k], values, [one.seconds for one in found.values()], errors))
            file.flush()
            os.fsync(file.fileno())
            on_scored(k + 1, len(archs))
    return read_score_table(out)


def read_score_table(out: Path) -> ScoreTable:
    """The scores in a folder of `score_architectures`. Raises InputError where there are none, or damaged ones."""
    found = read_columns(out / FILE)
    columns = {name: np.array(numbers, np.float64) for name, numbers in found.numbers.items()}
    names = [name for name in columns if f"{name}{SECONDS}" in columns]
    seconds = {name: columns[f"{name}{SECONDS}"] for name in names}
    return ScoreTable(found.archs, {name: columns[name] for name in names}, seconds)


def mean_seconds(table: ScoreTable, name: str) -> float:
    """Of an architecture; compilations included."""
    return float(table.seconds[name].mean()) if len(table.archs) else math.nan


def _cut(path: Path) -> None:
    """Off what a killed process left of a line."""
    content = path.read_bytes() if path.is_file() else b""
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
