"""The record of a comparison over a table by several objectives: ``fronts.jsonl``, a JSON object a search.

- ``strategy, seed``; ``trials`` begun; ``units`` of budget measured; ``cost_seconds`` of them, simulated.
- ``points``: ``cost_seconds, gains, tested, arch``, a list each: what each network that no earlier one dominated, and
  that keeps the constraints, had cost by the time it was measured, its objectives as the search saw them, as they are
  judged (with the test accuracy), all turned so that more is better, and its text.

``config.json`` says what was compared, the objectives with their directions (``goals``), the reference point of
hypervolumes and the true front of the table, both in tested gains. See `nas.record.files`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nas.errors import InputError
from nas.record.comparison import Job, SearchesFile, complete, planned
from nas.record.fields import integer, number, seconds_of
from nas.record.files import CONFIG, holds, read

FRONTS = "fronts.jsonl"


@dataclasses.dataclass(frozen=True)
class FrontSearch:
    """One search; the last four are of its points, see the module."""

    strategy: str
    seed: int
    trials: int
    units: int
    cost_seconds: float
    costs_seconds: tuple[float, ...]
    gains: tuple[tuple[float, ...], ...]
    tested: tuple[tuple[float, ...], ...]
    archs: tuple[str, ...]

    @property
    def job(self) -> Job:
        return Job(self.seed, self.strategy)

    def to_json(self) -> str:
        """Its line of ``fronts.jsonl``."""
        held = {name: getattr(self, name) for name in ("strategy", "seed", "trials", "units", "cost_seconds")}
        points = {"cost_seconds": self.costs_seconds, "gains": self.gains, "tested": self.tested}
        return json.dumps(held | {"points": {**points, "arch": self.archs}}, allow_nan=False)

    @classmethod
    def of(cls, line: Any) -> FrontSearch:
        """Inverse of ``to_json``, from what JSON gives; raises ValueError."""
        try:
            points = line["points"]
            search = cls(
                strategy=str(line["strategy"]),
                seed=integer(line, "seed"),
                trials=integer(line, "trials", 0),
                units=integer(line, "units", 0),
                cost_seconds=seconds_of(line, "cost_seconds"),
                costs_seconds=tuple(
                    seconds_of({"cost_seconds": c}, "cost_seconds") for c in points["cost_seconds"]
                ),
                gains=_rows(points["gains"]),
                tested=_rows(points["tested"]),
                archs=tuple(map(str, points["arch"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a search ({type(error).__name__}: {error})") from error
        if len({len(search.costs_seconds), len(search.gains), len(search.tested), len(search.archs)}) > 1:
            raise ValueError("not a search (its points are not as many as their costs)")
        return search


def _rows(rows: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(number({"gains": value}, "gains") for value in row) for row in rows)


@dataclasses.dataclass(frozen=True)
class FrontComparison:
    """The content of such a folder."""

    folder: Path
    config: Mapping[str, Any]
    env: Mapping[str, Any]
    searches: tuple[FrontSearch, ...]

    @property
    def strategies(self) -> tuple[str, ...]:
        return tuple(self.config["strategies"])

    @property
    def goals(self) -> Mapping[str, int]:
        """The objectives by name, with their signs."""
        return self.config["goals"]

    @property
    def reference(self) -> np.ndarray:
        return np.array(self.config["reference"], float)

    @property
    def front(self) -> np.ndarray:
        return np.array(self.config["front"], float)

    def complete(self) -> dict[str, tuple[FrontSearch, ...]]:
        """See `nas.record.comparison.complete`."""
        return complete(self.searches, self.strategies)

    @property
    def missing(self) -> int:
        """How many searches are to come."""
        return len(planned(self.strategies, self.config["seed"], self.config["seeds"])) - len(self.searches)


class FrontSearches(SearchesFile[FrontSearch]):
    """Of searches by several objectives."""

    file = FRONTS
    of = FrontSearch.of


def is_front_comparison(folder: str | Path) -> bool:
    """Whether ``folder`` holds a comparison by several objectives, finished or not."""
    return holds(folder, FRONTS)


def read_fronts(folder: str | Path) -> FrontComparison:
    """Read such a folder, also while it is written. InputError: it is none, or damaged (names file and line)."""
    folder = Path(folder)
    config, env, lines = read(folder, FRONTS)
    try:
        names = config.get("strategies")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"strategies={names!r} are not names of strategies")
        goals = config.get("goals")
        if not isinstance(goals, dict) or not goals or not set(goals.values()) <= {1, -1}:
            raise ValueError(f"goals={goals!r} are not objectives with their signs")
        for name in ("seed", "seeds"):
            integer(config, name)
        for name, shape in (("reference", (len(goals),)), ("front", (-1, len(goals)))):
            found = np.array(config.get(name), float)
            if found.shape != np.empty(found.size).reshape(shape).shape or not np.isfinite(found).all():
                raise ValueError(f"{name} is not of {len(goals)} numbers each")
        if not seconds_of(config, "budget_seconds"):
            raise ValueError("budget_seconds is no time")
    except (ValueError, TypeError) as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    searches = FrontSearches.read(folder, lines)
    for place, search in enumerate(searches, 1):
        if any(len(row) != len(goals) for rows in (search.gains, search.tested) for row in rows):
            raise InputError(f"{folder / FRONTS}:{place}: its points are not of {len(goals)} objectives")
    return FrontComparison(folder, config, env, tuple(searches))
