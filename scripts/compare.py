"""Compare strategies at equal budget: python scripts/compare.py --strategies grid random hyperband asha --seeds 3

With real training (``--objective train``, the default) at equal epochs, or over a benchmark table at equal simulated
cost, hundreds of seeds in a minute:

    python scripts/compare.py --objective table --space nasbench201 --seeds 500
    python scripts/compare.py --objective table valid_accuracy latency_ms:edgegpu --space nasbench201 --seeds 200
    python scripts/compare.py --objective table --help
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from _strategies import strategy_options, values_of

from _cli import cells, operations, print_table
from nas.errors import InputError
from nas.goals import without_direction
from nas.own_file import named_in_file
from nas.run.command_line import config_meant, run
from nas.run.methods import SEARCHES
from nas.run.options import TOPICS, SearchOptions
from nas.run.simulated import TableOptions
from nas.storage import mirrored
from nas.strategies import STRATEGIES

DEFAULT = ("grid", "random", "hyperband", "asha")
ABOUT = """those to compare; STRATEGY+SCORE takes the best by a training-free score of what the strategy would try, such
as random+params (also: macs_per_image, and the columns of --scores); default: all that make sense here, of"""


@dataclasses.dataclass(frozen=True)
class TrainOptions(SearchOptions):
    objective: tuple[str, ...] = ("train",)
    """train: real trainings, also of several objectives as in search.py; table: what a benchmark table has, with other
    options"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Search with several strategies from several seeds, each with the same number of epochs; one table.

    A network that several searches chose is trained to the end once; each counts its seconds.
    With --objective table a benchmark table answers instead, and other options hold (--objective table --help).
    """

    strategies: tuple[str, ...] = DEFAULT
    seeds: int = 1
    """searches of each strategy, seeded --seed, --seed + 1, …"""
    out: Path | None = None
    """folder of the comparison, one run folder a search in it; default: runs/compare-SPACE-DATASET"""
    resume: bool = False
    """go on with the comparison in that folder"""
    options: TrainOptions = dataclasses.field(default_factory=TrainOptions)


@dataclasses.dataclass(frozen=True)
class TableConfig(TableOptions):
    """Search a benchmark table with several strategies from many seeds, each for the same simulated cost.

    Writes the result table, the paired tests, test regret over cost, performance profiles, the
    critical-difference diagram and the probabilities of improvement. With --workers, or with an option of the
    cluster, these for each number of workers, and over all of them test regret over simulated time and over cost,
    speed-ups and utilisation.
    """

    objective: tuple[str, ...] = ("table",)
    """table: what a benchmark table has; behind it several objectives, such as table valid_accuracy latency_ms:edgegpu;
    train: real trainings, with other options"""
    constraint: tuple[str, ...] = ()
    """what networks must keep: "latency_ms:edgegpu<5" (quoted); those that do not rank below all that do"""
    reference: tuple[str, ...] = ()
    """the point that hypervolumes are counted from: valid_accuracy=0.8; default: the worst on the true front"""
    out: Path | None = None
    """folder of the comparison; default: runs/compare-TABLE-DATASET"""
    resume: bool = False
    """go on with the comparison in that folder"""


def config_type(argv: list[str]) -> type:
    """What the objective named wants, with the options of the strategies named."""
    given = values_of(argv, "objective")
    if len(given) < 2:
        config_meant(dict.fromkeys(("train", "table", *known_objectives(given)), Config), "objective", argv)
    if given[:1] != ["table"]:
        return strategy_options(Config, argv, "strategies", DEFAULT, SEARCHES, about="some of")
    # R is an option of its own there, and the budget alone ends a search.
    return strategy_options(
        TableConfig,
        argv,
        "strategies",
        tuple(STRATEGIES),
        STRATEGIES,
        hidden=("epochs", "iterations"),
        about=ABOUT,
    )


def known_objectives(given: list[str]) -> tuple[str, ...]:
    """Those beside train and table, where one is given: to know them takes seconds of imports."""
    if not given or given[0] in ("train", "table"):
        return ()
    from nas.objectives.quantities import KNOWN

    bare = {text: without_direction(text)[0] for text in given}
    return (*KNOWN, *(text for text, name in bare.items() if name in KNOWN or named_in_file(name)))


def main(config: Config | TableConfig) -> None:
    if isinstance(config, TableConfig):
        compare_on_table(config)
    else:
        compare_trainings(config)


def compare_on_table(config: TableConfig) -> None:
    # Here, as below: --help does not wait for jax, the networks and the plots.
    from nas.report.report import write_comparison
    from nas.report.scaling_report import write_workers
    from nas.run import simulated
    from search_spaces import spaces_with

    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(TableOptions)}
    if len(config.objective) > 1 or config.constraint:
        compare_fronts(config, TableOptions(**fields))
        return
    if config.reference:
        raise InputError("reference: is of hypervolumes, which need several objectives")
    name = Path(config.table or config.space or "").stem
    default = f"compare-{name}-{config.dataset or 'table'}".replace("/", "_")
    out = config.out or Path("runs") / default
    with mirrored(out, resume=config.resume) as folder:
        options = TableOptions(**fields)
        compared = simulated.compare_workers(options, spaces_with, folder, resume=config.resume)
        reports = [write_comparison(comparison.folder) for comparison in compared]
        report = reports[0] if compared[0].folder == folder else write_workers(folder)
    print_report(report)


def compare_fronts(config: TableConfig, options: TableOptions) -> None:
    from nas.report.front_report import write_fronts
    from nas.run import simulated_fronts
    from search_spaces import spaces_with

    name = Path(config.table or config.space or "").stem
    out = config.out or Path("runs") / f"compare-{name}-{config.dataset or 'table'}-fronts".replace("/", "_")
    fronts = simulated_fronts.FrontOptions(
        config.objective[1:] or ("valid_accuracy",), config.constraint, config.reference
    )
    with mirrored(out, resume=config.resume) as folder:
        simulated_fronts.compare(options, fronts, spaces_with, folder, resume=config.resume)
        report = write_fronts(folder)
    print_report(report)


def print_report(report: Any) -> None:
    print(report.markdown)
    for note in report.notes:
        print(f"- {note}")
    print()
    for path in report.files:
        print(path)


def compare_trainings(config: Config) -> None:
    from nas.report.report import write_report
    from nas.run.comparing import compare
    from nas.run.several import nothing_found
    from nas.storage import copied
    from search_spaces import spaces_with

    options = config.options
    out = config.out or Path("runs") / f"compare-{Path(options.space).stem}-{options.data.label}"
    spaces = spaces_with(options.space)
    runs = compare(options, config.strategies, out, spaces, seeds=config.seeds, resume=config.resume)
    print_table(runs)
    named = {"space_file": options.space if named_in_file(options.space) else None}
    drawn = {"operations": functools.partial(operations, **named), "cells": functools.partial(cells, **named)}
    folder = copied(out)
    for path in write_report([folder], folder, **drawn).files:
        print(path)
    if not any(result.best for result in runs):
        raise InputError(nothing_found(runs[0]))


if __name__ == "__main__":
    run(main, config_type, compute=True, topics=TOPICS)
