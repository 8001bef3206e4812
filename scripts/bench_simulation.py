"""How fast searches on simulated clusters are: python scripts/bench_simulation.py --data-dir FOLDER

Three parts, each in CPU seconds of one process, so that other work on the machine matters little:

``search``: one random search of 50 trainings with 16 workers over a table, beside Syne Tune's simulator on the same
table in turns, where Syne Tune can be imported (it needs packages of its own: install it into a folder of its own with
`pip install --no-deps --target FOLDER syne-tune dill sortedcontainers statsmodels patsy "huggingface_hub<1"` and name
that in PYTHONPATH).
``strategies``: milliseconds a training of every strategy by the number of workers, each worker four trainings' budget:
what the strategy takes to think, and that it does not grow out of hand.
``comparison``: 8 strategies x 200 searches x 256 workers with the budget that the table has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import logging
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nas.errors import InputError, one_of
from nas.run.command_line import run

PARTS = ("search", "strategies", "comparison")


@dataclasses.dataclass(frozen=True)
class Config:
    """Time searches on simulated clusters."""

    parts: tuple[str, ...] = PARTS
    """what to time: search, strategies, comparison"""
    table: str = "nasbench201"
    """a published table or a file NAME.npz"""
    data_dir: str | None = None
    """folder of benchmark files; default: NAS_BENCH_DIR"""
    trainings: int = 50
    """search: of one search"""
    workers: int = 16
    """search: of one search"""
    rounds: int = 5
    """search: how often each simulator is timed"""
    by_workers: tuple[int, ...] = (1, 16, 64, 256)
    """strategies: numbers of workers"""
    most_seconds: float = 20.0
    """strategies: a strategy that has taken longer is not tried with more workers"""
    seeds: int = 200
    """comparison: searches of each strategy"""


def main(config: Config) -> None:
    for part in config.parts:
        if part not in PARTS:
            raise one_of("parts", part, PARTS)
    for name in ("trainings", "workers", "rounds", "seeds"):
        if getattr(config, name) < 1:
            raise InputError(f"{name}: {getattr(config, name)} is below 1")
    parts = {"search": time_search, "strategies": time_strategies, "comparison": time_comparison}
    for part in config.parts:
        parts[part](config)


def shared_of(config: Config, **more: Any) -> Any:
    """What all searches over the table have in common."""
    from nas.run.simulated import TableOptions, benchmark
    from search_spaces import spaces_with

    return benchmark(TableOptions(table=config.table, data_dir=config.data_dir, **more), spaces_with)


# ------------------------------------------------------------------------------------------------ one search


def time_search(config: Config) -> None:
    shared = shared_of(config)
    simulators: dict[str, Callable[[int], float]] = {"here": lambda seed: our_search(shared, config, seed)}
    try:
        simulators["Syne Tune"] = syne_tune_search(shared.objective, config)
    except ImportError as error:
        print(f"Syne Tune cannot be imported ({error}): its time is not measured")
    taken: dict[str, list[float]] = {name: [] for name in simulators}
    ended: dict[str, list[float]] = {name: [] for name in simulators}
    for seed in range(config.rounds):
        for name, search in simulators.items():
            began = time.process_time()
            ended[name].append(search(seed))
            taken[name].append(time.process_time() - began)
    print(
        f"one random search of {config.trainings} trainings with {config.workers} workers on {config.table}:"
    )
    for name, seconds in taken.items():
        print(
            f"  {name}: {1000 * statistics.median(seconds):.2f} ms ({1000 * min(seconds):.2f} to "
            f"{1000 * max(seconds):.2f}), simulated time {statistics.mean(ended[name]):,.0f} s"
        )
    if len(taken) > 1:
        ratio = statistics.median(taken["Syne Tune"]) / statistics.median(taken["here"])
        print(f"  times faster here: {ratio:.0f}")


def our_search(shared: Any, config: Config, seed: int) -> float:
    """The simulated seconds of a search of so many trainings, started anew."""
    from nas.record.comparison import Job
    from nas.run.simulated_cluster import execute
    from nas.strategies import STRATEGIES, StrategyConfig

    plan = StrategyConfig(seed=seed, trials=config.trainings, epochs=shared.epochs)
    strategy = STRATEGIES["random"](shared.objective.space, plan)
    found = execute(strategy, shared.objective, Job(seed, "random"), 1e12, workers=config.workers)
    if found.trials != config.trainings:
        raise InputError(f"table: {found.trials} of {config.trainings} trainings could be looked up")
    return found.wall_seconds


def syne_tune_search(objective: Any, config: Config) -> Callable[[int], float]:
    """The same by Syne Tune, told to write nothing and to say nothing. Raises ImportError where it is not there."""
    tune = importlib.import_module("syne_tune")
    backends = importlib.import_module("syne_tune.blackbox_repository.simulated_tabular_backend")
    tabular = importlib.import_module("syne_tune.blackbox_repository.blackbox_tabular")
    callbacks = importlib.import_module("syne_tune.backend.simulator_backend.simulator_callback")
    baselines = importlib.import_module("syne_tune.optimizer.baselines")
    spaces = importlib.import_module("syne_tune.config_space")
    pandas = importlib.import_module("pandas")
    logging.getLogger("syne_tune").setLevel(logging.ERROR)
    os.environ["SYNETUNE_FOLDER"] = tempfile.mkdtemp()
    archs = objective.architectures
    names = list(archs[0])
    if any(list(arch) != names for arch in archs):
        raise InputError("table: its space has conditions; choose one without for this comparison")
    values = np.empty((len(archs), 1, objective.units, 2))
    for k, arch in enumerate(archs):
        measured = objective.measurements(arch, 0)
        values[k, 0, :, 0] = [1 - m.valid_accuracy for m in measured]
        values[k, 0, :, 1] = np.cumsum([m.seconds for m in measured])
    choices = {name: spaces.choice(sorted({arch[name] for arch in archs})) for name in names}
    blackbox = tabular.BlackboxTabular(
        hyperparameters=pandas.DataFrame([dict(arch) for arch in archs]),
        configuration_space=choices,
        fidelity_space={"epoch": spaces.randint(1, max(2, objective.units))},
        objectives_evaluations=values,
        fidelity_values=np.arange(1, objective.units + 1),
        objectives_names=["error", "elapsed_time"],
    )

    def search(seed: int) -> float:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            callback = callbacks.SimulatorCallback()
            tuner = tune.Tuner(
                trial_backend=backends.UserBlackboxBackend(
                    blackbox=blackbox, elapsed_time_attr="elapsed_time", seed=0
                ),
                scheduler=baselines.RandomSearch(choices, metrics=["error"], random_seed=seed),
                stop_criterion=tune.StoppingCriterion(max_num_trials_started=config.trainings),
                n_workers=config.workers,
                sleep_time=0,
                results_update_interval=1e9,
                print_update_interval=1e9,
                wait_trial_completion_when_stopping=True,
                save_tuner=False,
                callbacks=[callback],
            )
            tuner.run()
        return float(callback.dataframe()["st_tuner_time"].max())

    return search


# -------------------------------------------------------------------------------------------- every strategy


def time_strategies(config: Config) -> None:
    from nas.record.comparison import Job
    from nas.run.simulated import compared

    shared = shared_of(config)
    mean = shared.objective.mean_training_seconds
    names = compared(options_of(config), shared)
    print(f"ms a training (trainings in brackets) on {config.table}, by the number of workers:")
    for name in names:
        texts = []
        for workers in config.by_workers:
            budget = mean * max(4 * workers, 50)
            one = dataclasses.replace(shared, workers=workers, budget_seconds=budget)
            began = time.process_time()
            found = one.search(Job(0, name))
            seconds = time.process_time() - began
            texts.append(f"{workers}: {1000 * seconds / found.trials:.2f} ({found.trials})")
            if seconds > config.most_seconds:
                texts.append("more not tried")
                break
        print(f"  {name}: {', '.join(texts)}", flush=True)


def options_of(config: Config) -> Any:
    from nas.run.simulated import TableOptions

    return TableOptions(table=config.table, data_dir=config.data_dir)


# -------------------------------------------------------------------------------------------- a comparison

EIGHT = ("random", "grid", "evolution", "reinforce", "bohb", "local_search", "tpe", "bananas")


def time_comparison(config: Config) -> None:
    from nas.run.simulated import TableOptions, compare
    from search_spaces import spaces_with

    told = TableOptions(
        table=config.table, data_dir=config.data_dir, strategies=EIGHT, seeds=config.seeds, workers=(256,)
    )
    began, before = time.perf_counter(), cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(told, spaces_with, Path(folder) / "comparison")
    trials = sum(search.trials for search in found.searches)
    print(
        f"{len(EIGHT)} strategies x {config.seeds} searches x 256 workers on {config.table}, {trials:,} trainings: "
        f"{time.perf_counter() - began:.0f} s, {cpu_seconds() - before:.0f} CPU seconds of all processes"
    )


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    run(main)
