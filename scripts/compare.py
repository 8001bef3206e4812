"""Compare strategies at equal budget: python scripts/compare.py --strategies grid random hyperband asha --seeds 3

With real training (``--objective train``, the default) at equal epochs, or over a benchmark table at equal simulated
cost, hundreds of seeds in a minute:

    python scripts/compare.py --objective table --space nasbench201 --seeds 500
    python scripts/compare.py --objective table --help
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Literal

import tyro

from _cli import cells, operations, print_table, run
from nas.errors import InputError
from nas.record import is_run
from nas.report.report import write_comparison, write_report
from nas.run import tabular
from nas.run.sweep import SearchOptions, check_strategies, pass_epochs, search, session
from nas.run.tabular import TableOptions
from nas.strategies import StrategyConfig
from search_spaces import spaces_with


@dataclasses.dataclass(frozen=True)
class Config(SearchOptions):
    """Search with several strategies from several seeds, each with the same number of epochs; one table.

    A network that several searches chose is trained to the end once; each counts its seconds.
    With --objective table a benchmark table answers instead, and other options hold (--objective table --help).
    """

    objective: Literal["train"] = "train"
    """train: real trainings; table: what a benchmark table has, with other options"""
    strategies: tuple[str, ...] = ("grid", "random", "hyperband", "asha")
    """strategies to compare"""
    seeds: int = 1
    """searches of each strategy, seeded --seed, --seed + 1, …"""
    out: Path | None = None
    """folder of the comparison, one run folder a search in it; default: runs/compare-SPACE-DATASET"""
    resume: bool = False
    """go on with the comparison in that folder"""


@dataclasses.dataclass(frozen=True)
class TablePlan(StrategyConfig):
    """What strategies are told here: R is an option of its own, and the budget alone ends a search."""

    epochs: tyro.conf.Suppress[int] = 9
    iterations: tyro.conf.Suppress[int | None] = None


@dataclasses.dataclass(frozen=True)
class TableConfig(TableOptions):
    """Search a benchmark table with several strategies from many seeds, each for the same simulated cost.

    Writes the result table, the paired tests, test regret over cost, performance profiles, the
    critical-difference diagram and the probabilities of improvement.
    """

    objective: Literal["table"] = "table"
    """table: what a benchmark table has; train: real trainings, with other options"""
    out: Path | None = None
    """folder of the comparison; default: runs/compare-TABLE-DATASET"""
    resume: bool = False
    """go on with the comparison in that folder"""
    plan: StrategyConfig = dataclasses.field(default_factory=TablePlan)


def main(config: Config | TableConfig) -> None:
    if isinstance(config, TableConfig):
        compare_on_table(config)
    else:
        compare_trainings(config)


def compare_on_table(config: TableConfig) -> None:
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(TableOptions)}
    name = Path(config.table or config.space or "").stem
    default = f"compare-{name}-{config.dataset or 'table'}".replace("/", "_")
    out = config.out or Path("runs") / default
    tabular.compare(TableOptions(**fields), spaces_with, out, resume=config.resume)
    report = write_comparison(out)
    print(report.markdown)
    for note in report.notes:
        print(f"- {note}")
    print()
    for path in report.files:
        print(path)


def compare_trainings(config: Config) -> None:
    check_strategies(config.strategies, config.supernet)
    if not config.strategies or len(set(config.strategies)) < len(config.strategies):
        raise InputError(f"strategies: {' '.join(config.strategies) or 'none'}: each is to be named once")
    if config.seeds < 1:
        raise InputError(f"seeds: {config.seeds} is below 1")
    dataset = config.data.dataset.replace("/", "_")
    out = config.out or Path("runs") / f"compare-{Path(config.space).stem}-{dataset}"
    if not config.resume and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: holds files already; go on with --resume or choose another --out")
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(SearchOptions)}
    if config.total_epochs is None:
        fields["total_epochs"] = pass_epochs(config.plan)
    spaces = spaces_with(config.space)
    runs = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(session(config))
        for k in range(config.seeds):
            for strategy in config.strategies:
                seed = config.plan.seed + k
                fields["plan"] = dataclasses.replace(config.plan, seed=seed)
                folder = out / f"{strategy}-{seed}"
                resume = config.resume and is_run(folder)
                tested = [final for run in runs for final in run.finals]
                options = SearchOptions(**fields)
                runs.append(search(options, strategy, folder, spaces, resume=resume, tested=tested))
    print_table(runs)
    named = {"space_file": config.space if config.space.endswith(".py") else None}
    drawn = {"operations": functools.partial(operations, **named), "cells": functools.partial(cells, **named)}
    for path in write_report([out], out, **drawn).files:
        print(path)
    if not any(result.best for result in runs):
        raise InputError(f"{out}: no trial could be measured; trials.jsonl in its run folders says why")


if __name__ == "__main__":
    run(main, compute=True)
