"""Fronts over a benchmark table beside Optuna's own NSGA-II: the same budget and seeds, quality and seconds.

    python scripts/bench_fronts.py --space nasbench201 --objective valid_accuracy latency_ms:edgegpu --seeds 50

Every search runs in this process, one after the other. Optuna suggests each choice (``suggest_categorical``), with the
same population; what it proposes again costs what the table says again, as it does for ours.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from nas.errors import InputError
from nas.run.command_line import run

if TYPE_CHECKING:
    from nas.record.fronts import FrontSearch
    from nas.run.simulated_fronts import FrontBenchmark

OPTUNA = "optuna's NSGAIISampler"


@dataclasses.dataclass(frozen=True)
class Config:
    """Fronts over a benchmark table beside Optuna's own NSGA-II: the same budget and seeds, quality and seconds."""

    space: str = "nasbench201"
    """name of the search space"""
    table: str | None = None
    """a published table or a file NAME.npz; default: the one named as the space"""
    dataset: str | None = None
    """which of the table's data sets; default: its usual one"""
    data_dir: str | None = None
    """folder of benchmark files; default: NAS_BENCH_DIR"""
    objective: tuple[str, ...] = ("valid_accuracy", "latency_ms:edgegpu")
    """the objectives"""
    strategies: tuple[str, ...] = ("nsga2", "random")
    """ours to compare with"""
    seeds: int = 20
    """searches of each"""
    population: int = 10
    """of both NSGA-II"""


def main(config: Config) -> None:
    from nas.record.comparison import Job
    from nas.report import front, result_table
    from nas.run.simulated import TableOptions
    from nas.run.simulated_fronts import FrontOptions, front_benchmark, reference_of
    from nas.strategies import STRATEGIES
    from nas.strategies.nsga2 import Nsga2Config
    from search_spaces import spaces_with

    if config.seeds < 1:
        raise InputError(f"seeds: {config.seeds} is below 1")
    options = TableOptions(
        space=config.space,
        table=config.table,
        dataset=config.dataset,
        data_dir=config.data_dir,
        plan=Nsga2Config(population=config.population),
    )
    made = front_benchmark(options, FrontOptions(config.objective), spaces_with)
    goals = {goal.name: goal.sign for goal in made.objective.goals.objectives}
    scale = front.Scale(goals, reference_of(made.objective, ()), made.objective.front)
    searches: dict[str, Callable[[int], FrontSearch]] = {
        OPTUNA: lambda seed: optunas(made, seed, config.population)
    }
    for name in config.strategies:
        if name not in STRATEGIES:
            raise InputError(f"strategies: there is none named {name}")
        searches[name] = lambda seed, name=name: made.search(Job(seed, name))
    found: dict[str, list[FrontSearch]] = {}
    seconds: dict[str, float] = {}
    for name, search in searches.items():
        search(config.seeds)  # imports and caches are nobody's time
        start = time.perf_counter()
        found[name] = [search(seed) for seed in range(config.seeds)]
        seconds[name] = (time.perf_counter() - start) / config.seeds
    rows = front.rows(found, scale)
    lines = front.cells(rows, judged="test")
    lines[0].append("s a search")
    for row, line in zip(rows, lines[1:], strict=True):
        line.append(f"{seconds[row.strategy]:.3f}")
    print(result_table.markdown(lines))
    print(f"- {front.scale_note(scale, made.objective.front_of)}")


def optunas(made: FrontBenchmark, seed: int, population: int) -> FrontSearch:
    """A search by Optuna's sampler until the budget is spent."""
    import warnings

    import optuna

    from nas.objectives.base import TrialFailed
    from nas.record.fronts import FrontSearch
    from nas.run.simulated_fronts import Archive
    from nas.space import Architecture
    from nas.strategies import trial_seed
    from nas.trial import Trial

    objective, shared = made.objective, made.shared
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    sampler = optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
    maximize = optuna.study.StudyDirection.MAXIMIZE
    study = optuna.create_study(directions=[maximize] * len(objective.goals.objectives), sampler=sampler)
    archive, spent, units = Archive(objective), 0.0, 0
    choices = {name: choice.options() for name, choice in objective.space.choices.items()}
    for i in range(10**6):
        asked = study.ask()
        values = {name: asked.suggest_categorical(name, options) for name, options in choices.items()}
        trial = Trial(i, Architecture(values), shared.epochs, trial_seed(seed, i))
        try:
            objective.space.validate(trial.arch)
            measurements = objective.measurements(trial.arch, trial.seed)
        except (InputError, TrialFailed):
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
            continue
        cost = sum(m.seconds for m in measurements[: shared.epochs])
        if spent + cost > shared.budget_seconds:
            return FrontSearch(
                OPTUNA,
                seed,
                i,
                units,
                spent,
                tuple(archive.costs),
                tuple(archive.gains),
                tuple(archive.tested),
                tuple(archive.archs),
            )
        for measurement in measurements[: shared.epochs]:
            spent += measurement.seconds
            units += 1
            archive(trial, measurement, spent)
        study.tell(asked, list(measurements[shared.epochs - 1].gains))
    raise InputError("search: a million trials did not spend the budget")


if __name__ == "__main__":
    run(main)
