"""Finding, reading and comparing run folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nas.errors import InputError
from nas.record.events import TRIALS, replay
from nas.record.fields import integer
from nas.record.files import CONFIG, holds, parse_lines, read
from nas.record.run import Run


def is_run(folder: str | Path) -> bool:
    """Whether ``folder`` holds a run, finished or not."""
    return holds(folder, TRIALS)


def read_run(folder: str | Path) -> Run:
    """Read a run folder; a run still being written is read up to its last whole line.

    Raises:
        InputError: not a run folder, or damaged (names file and line).
    """
    folder = Path(folder)
    config, env, lines = read(folder, TRIALS)
    try:
        if config.get("seed") is not None:
            integer(config, "seed")
    except ValueError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    return replay(folder / TRIALS, lines).run(folder, config, env)


def find_runs(paths: Iterable[str | Path]) -> tuple[Path, ...]:
    """The run folders among ``paths``: each is one, or is searched for some at any depth; sorted, no doubles.

    A folder whose run was killed before its first line is left out.

    Raises:
        InputError: a path does not exist or has no run in it.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise InputError(f"{path}: no such folder")
        runs = list(_runs_below(path))
        if not runs:
            raise InputError(f"{path}: no run folder in it (one holds {CONFIG} and {TRIALS})")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return tuple(found.values())


def _runs_below(path: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(path):
        # One with trials but no config is damaged: it counts, so that `read_run` names it.
        if TRIALS in files and (CONFIG in files or (Path(folder) / TRIALS).stat().st_size):
            subfolders.clear()  # checkpoints may lie below, many files of them
            yield Path(folder)
        subfolders.sort()


def without_times(value: Any) -> Any:
    """``value`` (JSON) without the keys that end in ``_seconds``, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_times(inner) for key, inner in value.items() if not key.endswith("_seconds")}
    if isinstance(value, list | tuple):
        return [without_times(inner) for inner in value]
    return value


def record_difference(a: str | Path, b: str | Path) -> str | None:
    """Where the ``trials.jsonl`` of two run folders first differ, times aside; None if nowhere."""
    texts = [
        [json.dumps(without_times(event)) for event in parse_lines((Path(folder) / TRIALS).read_bytes())[0]]
        for folder in (a, b)
    ]
    for number, (left, right) in enumerate(zip(*texts, strict=False), 1):
        if left != right:
            return f"line {number}: {left} != {right}"
    if len(texts[0]) != len(texts[1]):
        return f"{len(texts[0])} lines != {len(texts[1])} lines"
    return None


def same_record(a: str | Path, b: str | Path) -> bool:
    """Whether two run folders have the same ``trials.jsonl``, times aside."""
    return record_difference(a, b) is None
