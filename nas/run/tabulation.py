"""A space trained completely: every architecture from several seeds, recorded, and the table made of the record."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas import cpu
from nas.data.embedded import EMBEDDED, version_of
from nas.errors import InputError
from nas.objectives.base import Trained
from nas.objectives.train import FinalJob, TrainSetup
from nas.record import Record, Run, is_run
from nas.run.driver import Ended, Measured, Started
from nas.run.progress import Progress
from nas.space import Architecture, Categorical, Integer, SearchSpace
from nas.strategies.base import MOST_SEEDS
from nas.tables.table import Column, Cost, Curve, Size, Table, Task
from nas.training.hyper import Hyper
from nas.trial import Measurement, Trial

LARGEST = 100_000  # a space beyond this is more likely a slip than a wish
CURVES = ("valid_accuracy", "valid_loss", "train_accuracy", "train_loss")


def listed(space: SearchSpace) -> tuple[Architecture, ...]:
    """Every architecture of ``space`` in its order; InputError where there is no end of them."""
    for name, choice in space.choices.items():
        if not isinstance(choice, Categorical | Integer):
            raise InputError(
                f"space {space.name}: {name} is continuous: --fix {name}=… or --narrow {name}=…,… it"
            )
    size = space.size()
    if size.value > LARGEST:
        raise InputError(
            f"space {space.name}: {size} architectures are more than {LARGEST:,}; --fix and --narrow it"
        )
    return tuple(space.enumerate())


def narrowing(whole: SearchSpace, part: SearchSpace) -> tuple[str, ...]:
    """The assignments (`SearchSpace.restrict`'s ``narrow``) by which the finite ``part`` of ``whole`` differs."""
    return tuple(
        f"{name}={','.join(map(str, choice.options()))}"
        for name, choice in part.choices.items()
        if choice != whole.choices[name]
    )


def tabulate(
    setup: TrainSetup,
    out: Path,
    *,
    seeds: int,
    cluster: Mapping[str, Any] | None,
    resume: bool = False,
) -> Run:
    """Train every architecture of ``setup.space`` from seeds 0 to ``seeds - 1``, one trial each, and test it.

    All of one seed first; a record that is resumed may be given more seeds. What is killed loses the trainings
    under way. ``cluster`` are the arguments of `nas.run.tune.Cluster`, None for one training after the
    other in this process. Raises InputError.
    """
    if seeds < 1:
        raise InputError(f"seeds: {seeds} is below 1")
    if seeds > MOST_SEEDS:
        raise InputError(f"seeds: {seeds} is above {MOST_SEEDS}")
    if setup.epochs < 1:
        raise InputError(f"epochs: {setup.epochs} is below 1")
    space, epochs = setup.space, setup.epochs
    archs = listed(space)
    setup.data.load()  # what is wrong with the data is said now
    cpu.native_status()
    hyper = dataclasses.asdict(Hyper(**setup.defaults))
    config = {
        "space": space.name,
        "choices": {name: choice.summary for name, choice in space.choices.items()},
        "epochs": epochs,
        "hyper": {name: value for name, value in hyper.items() if name not in space.choices},
        **dataclasses.asdict(setup.data),
        **dataclasses.asdict(setup.training),
    }
    trials = [
        Trial(id=seed * len(archs) + k, arch=arch, budget=epochs, seed=seed)
        for seed in range(seeds)
        for k, arch in enumerate(archs)
    ]
    with contextlib.ExitStack() as stack:
        if cluster is not None and not resume and not is_run(out):
            from nas.run import tune  # 2 s of imports that one process does without

            # What is wrong with it is said before anything is written.
            stack.enter_context(tune.session(tune.Cluster(**cluster)))
        opened = (
            Record.resume(out, config, may_differ=("data_dir", "checkpoint_minutes"))
            if resume
            else Record.create(out, config)
        )
        record = stack.enter_context(opened)
        view = stack.enter_context(Progress("tabulating", planned_epochs=len(trials) * epochs))
        for trial in record.trials.values():
            if trial.status != "running":
                view(Started(trial, replayed=True))
                view(Measured(trial, replayed=True))
                view(Ended(trial, replayed=True))
        ended = {trial.id for trial in record.trials.values() if trial.status != "running"}
        open_ = [trial for trial in trials if trial.id not in ended]
        jobs = [FinalJob(trial.arch, trial.seed, epochs) for trial in open_]
        for i, trained in _trained(setup, out, jobs, cluster):
            _write(record, open_[i], trained)
            trial = record.trials[open_[i].id]
            view(Started(trial))
            view(Measured(trial))
            view(Ended(trial))
        return record.run()


def _trained(
    setup: TrainSetup, out: Path, jobs: Sequence[FinalJob], cluster: Mapping[str, Any] | None
) -> Iterator[tuple[int, Trained]]:
    if not jobs:
        return
    if cluster is None:
        objective = setup(None)
        yield from ((i, objective.trained(*job)) for i, job in enumerate(jobs))
        return
    from nas.run import tune  # 2 s of imports that one process does without

    yield from tune.trainings(setup, out / "checkpoints", jobs, cluster=tune.Cluster(**cluster))


def _write(record: Record, trial: Trial, trained: Trained) -> None:
    """All of one training; what a killed process had written of it already is left as it is."""
    final = trained.final
    record.start(trial)
    for measurement in trained.measurements[record.trials[trial.id].spent :]:
        record.measure(trial.id, measurement, params=final.params, macs_per_image=final.macs_per_image)
    if not any(known.arch == trial.arch and known.seed == trial.seed for known in record.finals):
        record.final(final)
    record.end(trial.id, "failed" if final.error else "completed", final.error)


# ------------------------------------------------------------------------------------------------- the table


def table_of(
    run: Run, space: SearchSpace, *, name: str, seeds: int, within: tuple[str, ...], notes: Mapping[str, str]
) -> Table:
    """The table ``name`` of a tabulation of ``space``, which ``within`` made of a larger one.

    InputError where trainings are still to come.

    Seconds are the median over the epochs of one training; compiling is not among them. A training that failed
    is NaN throughout.
    """
    config = run.config
    epochs, dataset = int(config["epochs"]), str(config["dataset"])
    archs = listed(space)
    trials = [trial for trial in run.trials.values() if trial.status != "running" and trial.seed < seeds]
    if (done := len(trials)) < len(archs) * seeds:
        raise InputError(
            f"{run.folder}: {done:,} of {len(archs) * seeds:,} trainings are done; go on with --resume"
        )
    shape = (len(archs), seeds)
    curves = {quantity: np.full((*shape, epochs), np.nan, np.float32) for quantity in CURVES}
    tests = {
        quantity: np.full((*shape, 1), np.nan, np.float32) for quantity in ("test_accuracy", "test_loss")
    }
    cost = Cost(np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32))
    size = Size(np.zeros(len(archs), np.int64), np.zeros(len(archs), np.int64))
    finals = {(final.arch, final.seed): final for final in run.finals}
    for trial in trials:
        row, seed = trial.id % len(archs), trial.seed
        final = finals[trial.arch, seed]
        for values, known in zip(size, (final.params, final.macs_per_image), strict=True):
            values[row] = known or values[row]  # one whose worker died does not know
        if final.error:
            continue
        for quantity, values in curves.items():
            values[row, seed] = [getattr(m, quantity) for m in trial.measurements]
        for quantity, values in tests.items():
            values[row, seed, 0] = getattr(final, quantity)
        for field, seconds in cost._asdict().items():
            seconds[row, seed] = median(trial.measurements, field)
    every = tuple(range(1, epochs + 1))
    columns = {
        **{Column(dataset, epochs, quantity): Curve(every, values) for quantity, values in curves.items()},
        **{Column(dataset, epochs, quantity): Curve((epochs,), values) for quantity, values in tests.items()},
    }
    task = Task(Column(dataset, epochs, "valid_accuracy"), Column(dataset, epochs, "test_accuracy"))
    return Table(
        name=name,
        space=space.name,
        archs=tuple(map(space.to_string, archs)),
        columns=columns,
        sizes={dataset: size},
        costs={(dataset, epochs): cost},
        tasks={dataset: task},
        within=within,
        notes=notes,
    )


def median(measurements: Iterable[Measurement], field: str) -> float:
    """Of a cost over the epochs of one training: other work on the machine disturbs some epochs, not most."""
    return float(np.median([getattr(m, field) for m in measurements]))


def notes_of(run: Run, command: str) -> dict[str, str]:
    """What a reader must know to make the table again: ``command``, data, hyperparameters, machine, versions."""
    config, env = run.config, run.env
    data = ("dataset", "split_seed", "valid_fraction", "test_fraction", "subset", "image_size")
    versions = dict(env["packages"])
    if config["dataset"] in EMBEDDED:
        versions[EMBEDDED[config["dataset"]].package] = version_of(config["dataset"])
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return {
        "command": command,
        "data": ", ".join(f"{name}={config[name]}" for name in data),
        "hyperparameters": json.dumps(config["hyper"]),
        "hardware": f"{env['cpu']}, {env['cpu_count']} cores",
        "versions": f"Python {env['python']}, {packages}",
        "wall_seconds": f"{run.wall_seconds:.0f}",
        "seconds": "median over the epochs of one training, on one core; compiling is not among them",
    }
