"""The record of a comparison over a table: many short searches in one append-only file, with their incumbents.

A search over a table takes milliseconds, so it is recorded whole, when it has ended: ``searches.jsonl`` holds one
JSON object a search, in the order planned (all strategies from the first seed, then from the next):

- ``strategy, seed``; ``trials`` begun; ``units`` of budget measured; ``cost_seconds`` of them, simulated.
- ``incumbents``: ``cost_seconds, valid_accuracy, test_accuracy, arch``, a list each: the cost at
  which an architecture became the incumbent (best validation accuracy so far), its accuracies and its text.
- On a simulated cluster also ``cluster``: the fields of `ClusterUse`, seconds on the simulated clock.

``config.json`` says what was compared, on which table, and the best test accuracy there is. See
`nas.record.files` for how the file is written.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from nas.errors import InputError
from nas.record.fields import integer, number, seconds_of
from nas.record.files import CONFIG, RecordFile, holds, read

SEARCHES = "searches.jsonl"


class Trace(NamedTuple):
    """The incumbent of one run: ``valid`` and ``test`` [k] from ``cost`` [k] on, each time until the next."""

    cost: np.ndarray
    valid: np.ndarray
    test: np.ndarray


class Job(NamedTuple):
    """The key of a search within its comparison."""

    seed: int
    strategy: str


class AnySearch(Protocol):
    """What the searches of all comparisons have in common."""

    @property
    def seed(self) -> int: ...
    @property
    def job(self) -> Job: ...
    def to_json(self) -> str: ...


S = TypeVar("S", bound=AnySearch)


@dataclasses.dataclass(frozen=True)
class ClusterUse:
    """What a search took on a simulated cluster, and how it went there.

    ``wall_seconds``: from its start to the end of the last unit. ``lost_seconds``: worker-seconds of units cut off by
    failures and preemptions. ``stragglers``: pieces of work that were slower. ``incumbents_wall_seconds``: when
    each incumbent of the search was found.
    """

    wall_seconds: float
    lost_seconds: float
    stragglers: int
    failures: int
    preemptions: int
    incumbents_wall_seconds: tuple[float, ...]

    @classmethod
    def of(cls, line: Any) -> ClusterUse:
        """From what JSON gives; raises KeyError, TypeError or ValueError."""
        counts = {name: integer(line, name, 0) for name in ("stragglers", "failures", "preemptions")}
        seconds = {name: seconds_of(line, name) for name in ("wall_seconds", "lost_seconds")}
        found = (
            seconds_of({"wall_seconds": value}, "wall_seconds") for value in line["incumbents_wall_seconds"]
        )
        return cls(**seconds, **counts, incumbents_wall_seconds=tuple(found))


@dataclasses.dataclass(frozen=True)
class Search:
    """One search from its start to the end of its budget; accuracies are fractions in [0, 1].

    Four are of its incumbents, in order: the cost at which each was found, its validation accuracy as the
    search saw it, its test accuracy and its text. ``cluster``: None where one worker did everything and nothing
    went wrong, so that its seconds are the cost.
    """

    strategy: str
    seed: int
    trials: int
    units: int
    cost_seconds: float
    costs_seconds: tuple[float, ...]
    valid_accuracies: tuple[float, ...]
    test_accuracies: tuple[float, ...]
    archs: tuple[str, ...]
    cluster: ClusterUse | None = None

    @property
    def job(self) -> Job:
        return Job(self.seed, self.strategy)

    @property
    def trace(self) -> Trace:
        """The incumbents as arrays."""
        return Trace(*map(np.array, (self.costs_seconds, self.valid_accuracies, self.test_accuracies)))

    @property
    def wall_seconds(self) -> float:
        """From its start to the end of its last unit, on the simulated clock."""
        return self.cost_seconds if self.cluster is None else self.cluster.wall_seconds

    @property
    def wall_trace(self) -> Trace:
        """As `trace`, with the time on the simulated clock in place of the cost."""
        if self.cluster is None:
            return self.trace
        return self.trace._replace(cost=np.array(self.cluster.incumbents_wall_seconds))

    def to_json(self) -> str:
        """Its line of ``searches.jsonl``."""
        held = {name: getattr(self, name) for name in ("strategy", "seed", "trials", "units", "cost_seconds")}
        held["incumbents"] = {key: getattr(self, name) for key, name in _INCUMBENTS.items()}
        if self.cluster is not None:
            held["cluster"] = dataclasses.asdict(self.cluster)
        return json.dumps(held, allow_nan=False)

    @classmethod
    def of(cls, line: Any) -> Search:
        """Inverse of ``to_json``, from what JSON gives; raises ValueError."""
        try:
            lists = {name: line["incumbents"][key] for key, name in _INCUMBENTS.items()}
            incumbents: dict[str, Any] = {"archs": tuple(map(str, lists.pop("archs")))}
            for key, name in list(_INCUMBENTS.items())[:-1]:
                read = seconds_of if key.endswith("_seconds") else number
                incumbents[name] = tuple(read({key: value}, key) for value in lists[name])
            search = cls(
                strategy=str(line["strategy"]),
                seed=integer(line, "seed"),
                trials=integer(line, "trials", 0),
                units=integer(line, "units", 0),
                cost_seconds=seconds_of(line, "cost_seconds"),
                **incumbents,
                cluster=ClusterUse.of(line["cluster"]) if "cluster" in line else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a search ({type(error).__name__}: {error})") from error
        if len(set(map(len, incumbents.values()))) > 1 or not search.archs:
            raise ValueError("not a search (its incumbents are not as many as their costs, or none)")
        if search.cluster and len(search.cluster.incumbents_wall_seconds) != len(search.archs):
            raise ValueError("not a search (its incumbents are not as many as their times)")
        return search


_INCUMBENTS = {
    "cost_seconds": "costs_seconds",
    "valid_accuracy": "valid_accuracies",
    "test_accuracy": "test_accuracies",
    "arch": "archs",
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The content of a comparison's folder."""

    folder: Path
    config: Mapping[str, Any]
    env: Mapping[str, Any]
    searches: tuple[Search, ...]

    @property
    def strategies(self) -> tuple[str, ...]:
        return tuple(self.config["strategies"])

    @property
    def budget_seconds(self) -> float:
        return float(self.config["budget_seconds"])

    @property
    def workers(self) -> int:
        """Of its simulated cluster; one where it had none."""
        return int(self.config.get("workers", 1))

    @property
    def optimum(self) -> float:
        """The best test accuracy of the space."""
        return float(self.config["optimum_test_accuracy"])

    @property
    def planned(self) -> tuple[Job, ...]:
        """Every search of the comparison, in order."""
        return planned(self.strategies, self.config["seed"], self.config["seeds"])

    def complete(self) -> dict[str, tuple[Search, ...]]:
        """See `complete`."""
        return complete(self.searches, self.strategies)


def complete(searches: Sequence[S], strategies: Sequence[str]) -> dict[str, tuple[S, ...]]:
    """By strategy, the searches from those seeds that every strategy has been searched from."""
    found = {search.job: search for search in searches}
    seeds = dict.fromkeys(search.seed for search in searches)
    common = [seed for seed in seeds if all(Job(seed, name) in found for name in strategies)]
    return {name: tuple(found[Job(seed, name)] for seed in common) for name in strategies}


def planned(strategies: Sequence[str], seed: int, seeds: int) -> tuple[Job, ...]:
    """The searches of a comparison in order: ``seeds`` of them for each strategy, from ``seed`` on."""
    return tuple(Job(seed + k, name) for k in range(seeds) for name in strategies)


class SearchesFile(Generic[S]):
    """The writer of a comparison's folder; made by `create` or `resume`, closed by ``with``."""

    file: ClassVar[str]
    of: ClassVar[Callable[[Any], Any]]  # a search of its line; raises ValueError

    def __init__(self, lines: RecordFile, done: list[S]) -> None:
        self._lines, self._done = lines, done

    @classmethod
    def create(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """Raises InputError: the folder holds a comparison or a run already, or cannot be written."""
        # No fsync: a kill loses nothing of what was written, and a power cut milliseconds of work a line.
        return cls(RecordFile.create(folder, cls.file, config, fsync=False), [])

    @classmethod
    def resume(cls, folder: Path, config: Mapping[str, Any], *, may_differ: Sequence[str] = ()) -> Self:
        """Raises InputError: no comparison there, another config, damaged, in use, or not writable."""
        done: list[S] = []

        def accept(lines: Sequence[Any]) -> None:
            done.extend(cls.read(folder, lines))

        lines = RecordFile.resume(folder, cls.file, config, accept, may_differ=may_differ, fsync=False)
        return cls(lines, done)

    @classmethod
    def read(cls, folder: Path, lines: Sequence[Any]) -> list[S]:
        """The searches of the file's lines; raises InputError, which names the line."""
        searches: list[S] = []
        for place, line in enumerate(lines, 1):
            try:
                if isinstance(line, ValueError):
                    raise line
                searches.append(cls.of(line))
            except ValueError as error:
                raise InputError(f"{folder / cls.file}:{place}: {error}") from error
        return searches

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()

    @property
    def done(self) -> tuple[S, ...]:
        """The searches recorded so far."""
        return tuple(self._done)

    def add(self, search: S) -> None:
        """Record a search; InputError where it cannot be written."""
        self._lines.append(search.to_json(), lambda: f"{len(self._done):,} searches")
        self._done.append(search)


class Searches(SearchesFile[Search]):
    """Of searches by one objective."""

    file = SEARCHES
    of = Search.of


def is_comparison(folder: str | Path) -> bool:
    """Whether ``folder`` holds a comparison, finished or not."""
    return holds(folder, SEARCHES)


def read_comparison(folder: str | Path) -> Comparison:
    """Read a comparison's folder, also while it is written.

    Raises InputError: it is none, or damaged (names file and line).
    """
    folder = Path(folder)
    config, env, lines = read(folder, SEARCHES)
    try:
        _check_config(config)
    except ValueError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from error
    return Comparison(folder, config, env, tuple(Searches.read(folder, lines)))


def worker_folders(folder: str | Path) -> tuple[Path, ...]:
    """The comparisons in ``folder``, one for each number of workers, by rising number; none where it has no such."""
    found = {name.name.removeprefix("workers-"): name for name in Path(folder).glob("workers-*")}
    numbers = sorted(int(number) for number in found if number.isascii() and number.isdigit())
    return tuple(found[str(number)] for number in numbers if is_comparison(found[str(number)]))


def read_workers(folder: str | Path) -> tuple[Comparison, ...]:
    """The comparisons in ``folder`` of the same strategies on the same table by several numbers of workers.

    Raises InputError: there is none, one is damaged, or they differ in more than that.
    """
    comparisons = tuple(read_comparison(one) for one in worker_folders(folder))
    if not comparisons:
        raise InputError(f"{folder}: holds no comparison of workers")
    first = comparisons[0]
    for other in comparisons[1:]:
        for name in sorted(first.config.keys() | other.config.keys()):
            if name not in first.config or name not in other.config or name in _OF_ONE_FOLDER:
                continue  # one worker has no cluster where nothing goes wrong
            if first.config[name] != other.config[name]:
                raise InputError(
                    f"{folder}: {first.folder.name} and {other.folder.name} differ in {name}, so they are not compared"
                )
    return comparisons


_OF_ONE_FOLDER = ("workers", "processes", "data_dir", "seeds")
MOST_SEEDS = 10_000_000


def _check_config(config: Mapping[str, Any]) -> None:
    """Raises ValueError where a value that a report computes with is missing or impossible."""
    names = config.get("strategies")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"strategies={names!r} are not names of strategies")
    integer(config, "seed")
    for name, low in (("seeds", 1), ("architectures", 1), ("epochs", 1)):
        integer(config, name, low)
    if config["seeds"] > MOST_SEEDS:
        raise ValueError(f"seeds={config['seeds']} is above {MOST_SEEDS:,}")
    number(config, "optimum_test_accuracy")
    if "workers" in config:
        integer(config, "workers", 1)
    for name in ("budget_seconds", "mean_training_seconds"):
        if not seconds_of(config, name):
            raise ValueError(f"{name}={config.get(name)!r} is no time")
    for name in ("table", "valid", "test", "table_seconds", "left_out"):
        if name not in config:
            raise ValueError(f"{name} is missing")
    if not isinstance(config["left_out"], list):
        raise ValueError(f"left_out={config['left_out']!r} is not a list")
