"""The simulated engine: whole searches over a benchmark table, hundreds a second, at equal simulated cost."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from nas.cores import local_cores
from nas.errors import InputError, one_of
from nas.objectives.surrogate import table_objective
from nas.objectives.table import TableObjective
from nas.own_file import named_in_file
from nas.record.comparison import (
    Comparison,
    Job,
    Search,
    Searches,
    is_comparison,
    planned,
    read_comparison,
)
from nas.run.methods import foreign_options, search_named
from nas.run.serving import Serving
from nas.run.simulated_cluster import MOST_WORKERS, PLAIN, AccumulatedScore, SimulatedCluster, execute
from nas.space import SearchSpace
from nas.strategies import STRATEGIES, StrategyConfig, combined_config, converted, filtered
from nas.strategies.base import MOST_SEEDS
from nas.tables import TABLES, load_table
from nas.tables.scores import Score, read_scores

TRAININGS = 50.0  # a search's budget, in whole trainings, where nobody has published one
SEARCHES_A_PROCESS = 50  # fewer are not worth another process, which takes seconds to start
# What a resumed comparison may be given anew: where it runs, not what it computes.
MAY_DIFFER = ("data_dir", "processes")
# Several of these side by side with several threads each would be slower, and sums might be in another order.
_ONE_THREAD: dict[str, str] = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """What a comparison over a table is told."""

    space: str | None = None
    """name of the search space; default: the table's"""
    table: str | None = None
    """a published table (nasbench201) or a file NAME.npz; default: the one named as the space"""
    dataset: str | None = None
    """which of the table's data sets; default: its usual one"""
    data_dir: str | None = None
    """folder of benchmark files; default: NAS_BENCH_DIR"""
    fix: tuple[str, ...] = ()
    """choices with one value: depth=3"""
    narrow: tuple[str, ...] = ()
    """choices with fewer values: width=16,32"""
    strategies: tuple[str, ...] = ()
    """to compare, as NAME or NAME+SCORE; default: all that make sense here"""
    seeds: int = 500
    """searches of each strategy, seeded --seed, --seed + 1, …"""
    budget_seconds: float | None = None
    """simulated seconds of each search; default: the benchmark's own, else 50 trainings"""
    budget_trainings: float | None = None
    """the same, in trainings of a whole budget of mean cost"""
    steps: tuple[int, ...] = ()
    """epochs of the table at which a trial is validated, the units of its budget; default: all that it has"""
    epochs: int | None = None
    """R, the most budget of one trial, in units (an epoch where the table has every epoch); default: all"""
    scores: Path | None = None
    """training-free scores: the folder that score.py wrote, or a CSV file of architecture,NAME,NAME_seconds in which
    higher is better"""
    filter_candidates: int = 10
    """STRATEGY+SCORE: how many of the strategy's candidates a trial is chosen from"""
    processes: int | None = None
    """searches side by side; default: one a CPU core where there are many searches"""
    workers: tuple[int, ...] = (1,)
    """simulated workers; several numbers are compared with each other: 1 16 256"""
    cluster: SimulatedCluster = dataclasses.field(default_factory=SimulatedCluster)
    plan: StrategyConfig = dataclasses.field(default_factory=StrategyConfig)

    @property
    def plain(self) -> bool:
        """Whether a search is one worker's, on which nothing goes wrong: its cost is its time."""
        return self.workers == (1,) and self.cluster == PLAIN

    def __post_init__(self) -> None:
        for workers in self.workers:
            if not 1 <= workers <= MOST_WORKERS:
                raise InputError(f"workers: {workers} is not from 1 to {MOST_WORKERS:,}")
        if not self.workers or len(set(self.workers)) < len(self.workers):
            raise InputError(f"workers: {' '.join(map(str, self.workers)) or 'none'}: say each number once")
        for name in ("seeds", "epochs", "filter_candidates", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: {value} is below 1")
        if self.seeds > MOST_SEEDS:
            raise InputError(f"seeds: {self.seeds} is above {MOST_SEEDS}")
        for name in ("budget_seconds", "budget_trainings"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name}: {value} is not a number above 0")
        if self.budget_seconds is not None and self.budget_trainings is not None:
            raise InputError("budget_seconds and budget_trainings: say one of them")
        if len(set(self.strategies)) < len(self.strategies):
            raise InputError(f"strategies: {' '.join(self.strategies)}: each is to be named once")
        if self.table is None and self.space is None:
            raise InputError("table: say --table or --space")


Spaces = Callable[[str], Mapping[str, SearchSpace]]
"""The search spaces there are, and the one in a file: `search_spaces.spaces_with`."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What every search of a comparison has in common."""

    objective: TableObjective
    scores: Mapping[str, Score]
    budget_seconds: float
    epochs: int
    filter_candidates: int
    plan: StrategyConfig
    workers: int = 1
    cluster: SimulatedCluster = PLAIN

    def search(self, job: Job) -> Search:
        """One search, from its start to the end of its budget."""
        name, _, score = job.strategy.partition("+")
        record = search_named(name)  # one of a user's file is run again in each process
        config = record.own(dataclasses.replace(self.plan, seed=job.seed, epochs=self.epochs))
        strategy = record(self.objective.space, config.without_end())
        scoring = None
        if score:
            scoring = AccumulatedScore(self.scores[score])
            strategy = filtered(strategy, scoring, self.filter_candidates)
        found = execute(
            strategy,
            self.objective,
            job,
            self.budget_seconds,
            scoring,
            workers=self.workers,
            cluster=self.cluster,
        )
        plain = self.workers == 1 and self.cluster == PLAIN
        return dataclasses.replace(found, cluster=None) if plain else found


# ------------------------------------------------------------------------------------------------ a comparison


def benchmark(options: TableOptions, spaces: Spaces) -> Benchmark:
    """The table, its space and the scores that the options mean. Raises InputError."""
    name = options.table or options.space
    assert name is not None  # TableOptions says so
    if options.table is None and name not in TABLES:
        raise InputError(f"table: there is none named {name}, only {', '.join(TABLES)}; say --table NAME.npz")
    table = load_table(name, options.data_dir)
    wanted = options.space or table.space
    known = spaces(wanted)
    if wanted not in known:
        raise one_of("space", wanted, known)
    space = known[wanted].restrict(narrow=table.within).restrict(options.fix, options.narrow)
    objective = table_objective(space, table, options.dataset, epochs=options.steps or None)
    epochs = options.epochs or objective.units
    if epochs > objective.units:
        raise InputError(f"epochs: {epochs} is more than the {objective.units} units of {objective.valid}")
    untested = sum(
        bool(np.isnan(objective.test_accuracies[objective.row(arch)])) for arch in objective.architectures
    )
    if untested:
        raise InputError(f"table {table.name}: {objective.test} of {untested:,} architectures is not known")
    mean_seconds = objective.mean_training_seconds
    if not mean_seconds > 0:
        raise InputError(f"table {table.name}: its trainings have no cost to compare at")
    budget = options.budget_seconds or table.task(options.dataset).budget_seconds
    if options.budget_trainings is not None or budget is None:
        budget = (options.budget_trainings or TRAININGS) * mean_seconds
    scored = {score for label in options.strategies for _, plus, score in [label.partition("+")] if plus}
    return Benchmark(
        objective,
        _scores(objective, options.scores, scored),
        budget,
        epochs,
        options.filter_candidates,
        options.plan,
        options.workers[0],
        options.cluster,
    )


def _scores(objective: TableObjective, path: Path | None, wanted: set[str]) -> dict[str, Score]:
    """The ``wanted`` ones, each for every architecture that a search may meet. Raises InputError."""
    archs = objective.architectures
    found = {} if path is None else read_scores(path, objective.space)
    for k, name in enumerate(("params", "macs_per_image")):
        if name in wanted and objective.size(archs[0])[k] is not None:
            sizes = ((arch, objective.size(arch)[k]) for arch in archs)
            found[name] = Score({arch: float(size) for arch, size in sizes if size is not None}, {})
    for name in sorted(wanted):
        if name not in found:
            raise one_of("strategies: score", name, dict.fromkeys(("params", "macs_per_image", *found)))
        missing = [arch for arch in archs if arch not in found[name].values]
        if missing:
            raise InputError(
                f"scores: {path} has no {name} of {len(missing):,} of the {len(archs):,} architectures, "
                f"{objective.space.to_string(missing[0])} among them"
            )
    return {name: found[name] for name in wanted}


def sensible(space: SearchSpace, plan: StrategyConfig) -> tuple[str, ...]:
    """The strategies that are not merely random search with trials of up to ``plan.epochs`` units.

    Without a rung below the last, successive halving, Hyperband and ASHA are. (BOHB is then its model alone, as
    in NAS-Bench-201's comparison.)
    """
    return tuple(
        name
        for name, record in STRATEGIES.items()
        if record.random_trials(record.own(plan), space) < math.inf
    )


def compared(options: TableOptions, shared: Benchmark) -> tuple[str, ...]:
    """The strategies that the options mean. Raises InputError where one is unknown or makes no sense here."""
    plan = dataclasses.replace(shared.plan, epochs=shared.epochs)
    kept = sensible(shared.objective.space, plan)
    for label in options.strategies:
        name = label.partition("+")[0]
        own = named_in_file(name) is not None
        if own:
            search_named(name, "strategies")
        elif name not in STRATEGIES:
            raise one_of("strategies", name, STRATEGIES)
        if name not in kept and not own:
            raise InputError(
                f"strategies: {name} with trials of at most {shared.epochs} of the table's units "
                f"({shared.objective.valid}) has no rung to stop at: it would be random search"
            )
    return options.strategies or tuple(name for name in kept if STRATEGIES[name].objectives != "several")


def compare(options: TableOptions, spaces: Spaces, out: Path, *, resume: bool = False) -> Comparison:
    """Search with every strategy from every seed; all of it recorded in ``out``.

    A kill loses the searches under way; ``resume`` goes on to the same bytes. Raises InputError before
    anything is written where an option cannot be meant, also more than one number of workers: `compare_workers`.
    """
    if len(options.workers) > 1:
        raise InputError(f"workers: {' '.join(map(str, options.workers))}: one number for one comparison")
    shared = benchmark(options, spaces)
    strategies = compared(options, shared)
    jobs = planned(strategies, options.plan.seed, options.seeds)
    left_out = () if options.strategies else tuple(name for name in STRATEGIES if name not in strategies)
    names = [label.partition("+")[0] for label in strategies]
    config = config_of(options, shared, names) | {"strategies": strategies, "left_out": left_out}
    if resume:
        # Earlier versions recorded the options of all strategies.
        opened = Searches.resume(out, config, may_differ=(*MAY_DIFFER, *foreign_options(names)))
    else:
        opened = Searches.create(out, config)
    carry_out(jobs, opened, functools.partial(benchmark, options, spaces), shared, out, options.processes)
    return read_comparison(out)


def carry_out(
    jobs: tuple[Job, ...], opened: Any, make: Callable[[], Any], made: Any, out: Path, processes: int | None
) -> None:
    """Search what of ``jobs`` the record ``opened`` lacks, and record it; see `searched` for ``make`` and ``made``."""
    with opened as record:
        done = tuple(search.job for search in record.done)
        if done != jobs[: len(done)]:
            raise InputError(f"{out}: its searches are not in the order planned; choose another --out")
        left = jobs[len(done) :]
        if processes is None:
            processes = min(len(local_cores()), -(-len(left) // SEARCHES_A_PROCESS))
        with (
            progress(len(jobs), len(done)) as advance,
            contextlib.closing(searched(make, made, left, processes)) as found,
        ):
            for search in found:
                record.add(search)
                advance()


def compare_workers(
    options: TableOptions, spaces: Spaces, out: Path, *, resume: bool = False
) -> tuple[Comparison, ...]:
    """`compare` for each number of workers, in ``out / workers-N``; in ``out`` itself where one has no cluster.

    With ``resume`` further numbers may be given. Raises InputError.
    """
    if options.plain:
        return (compare(options, spaces, out, resume=resume),)
    folders = {workers: out / f"workers-{workers}" for workers in options.workers}
    if is_comparison(out):
        raise InputError(f"{out}: holds a comparison without a cluster; choose another --out")
    there = [folder for folder in folders.values() if is_comparison(folder)]
    if resume and not there:
        raise InputError(f"{out}: no comparison of workers to resume there; start it without --resume")
    if not resume and there:
        raise InputError(f"{there[0]}: holds a run already; go on with --resume or choose another --out")
    return tuple(
        compare(
            dataclasses.replace(options, workers=(workers,)),
            spaces,
            folder,
            resume=resume and is_comparison(folder),
        )
        for workers, folder in folders.items()
    )


def config_of(options: TableOptions, shared: Benchmark, names: Iterable[str]) -> dict[str, Any]:
    """What was compared, on what: what ``config.json`` holds and a resumption must repeat."""
    objective, table = shared.objective, shared.objective.table
    plan = converted(shared.plan, combined_config(search_named(name) for name in names))
    return {
        "objective": "table",
        "space": objective.space.name,
        "fix": options.fix,
        "narrow": options.narrow,
        "table": table.name,
        "table_checksum": table.checksum,
        "table_seconds": table.notes.get("seconds", ""),
        "valid": str(objective.valid),
        "test": f"{objective.test}@{objective.final_epochs}",
        "architectures": len(objective.architectures),
        "optimum_test_accuracy": objective.optimum,
        "steps": objective.epochs,
        "budget_seconds": shared.budget_seconds,
        "mean_training_seconds": objective.mean_training_seconds,
        "seeds": options.seeds,
        "scores": None if options.scores is None else options.scores.name,
        "filter_candidates": shared.filter_candidates,
        "data_dir": options.data_dir,
        "processes": options.processes,
        **({} if options.plain else {"workers": shared.workers, **dataclasses.asdict(shared.cluster)}),
        **dataclasses.asdict(dataclasses.replace(plan, epochs=shared.epochs).without_end()),
    }


@contextlib.contextmanager
def progress(jobs: int, done: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("searches", total=jobs, completed=done)
        yield lambda: bar.advance(task)


def searched(
    make: Callable[[], Any], shared: Any, jobs: Sequence[Job], processes: int
) -> Generator[Any, None, None]:
    """``shared.search(job)`` of each job in order; with several processes each has a ``make()`` of its own."""
    if processes > 1:
        return _in_processes(make, jobs, processes)
    return (shared.search(job) for job in jobs)


def _in_processes(make: Callable[[], Any], jobs: Sequence[Job], processes: int) -> Generator[Any, None, None]:
    """The searches, in the order of ``jobs``, from ``processes`` new processes."""
    serving = Serving(functools.partial(_search_of, make), _ONE_THREAD, processes)
    try:
        answers = collections.deque(serving.submit(job) for job in jobs)
        while answers:  # one that is given is kept no longer
            yield answers.popleft().result()
    except BrokenProcessPool as error:
        raise InputError("search: a process ended unexpectedly (out of memory?); --resume goes on") from error
    finally:
        serving.close()


def _search_of(make: Callable[[], Any]) -> Callable[[Job], Any]:
    return make().search
