"""Training one architecture to the end, from several seeds, recorded and resumable like a search."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from nas.data.config import DataConfig
from nas.errors import InputError
from nas.objectives.base import trial_folder
from nas.objectives.train import TrainSetup
from nas.record import Record, Run
from nas.run.driver import Ended, Measured, Started
from nas.run.options import hyperparameters
from nas.run.progress import Progress
from nas.space import Architecture, SearchSpace
from nas.storage import mirrored
from nas.strategies.base import LARGEST_SEED
from nas.training import processes
from nas.training.config import TrainingConfig
from nas.trial import Trial


def train_to_end(
    space: SearchSpace,
    arch: Architecture,
    data: DataConfig,
    training: TrainingConfig,
    out: Path,
    *,
    epochs: int,
    seeds: Iterable[int],
    hyper: tuple[str, ...] = (),
    validate: bool = False,
    test_curve: bool = False,
    resume: bool = False,
) -> Run:
    """One trial a seed and one `Final` each in the record of ``out``; in this process, on all its devices.

    ``hyper`` are hyperparameters over those of the architecture. ``test_curve``: the test images are read
    after every epoch, for the curve of a protocol fixed beforehand; each measurement is a
    `MeasurementWithTest`. Goes on with ``resume`` at the last checkpoint. Raises InputError.
    """
    seeds = tuple(seeds)
    if epochs < 1:
        raise InputError(f"epochs: {epochs} is below 1")
    if not seeds:
        raise InputError("seeds: at least one is needed")
    for seed in seeds:
        if not 0 <= seed <= LARGEST_SEED:
            raise InputError(f"seed: {seed} is not from 0 to {LARGEST_SEED}")
    space.validate(arch)
    setup = TrainSetup(space, data, training, epochs=epochs, overrides=hyperparameters(hyper))
    objective = setup(None)
    config = {
        "space": space.name,
        "arch": space.to_string(arch),
        "epochs": epochs,
        "hyper": hyper,
        "validate": validate,
        "test_curve": test_curve,
        **dataclasses.asdict(data),
        **dataclasses.asdict(training),
    }
    with mirrored(out, resume=resume, writes=processes.is_writer()) as folder:
        out = processes.own_folder(folder)
        opened = (
            Record.resume(
                out,
                config,
                may_differ=("data_dir", "checkpoint_minutes", "steps_per_call", "scan_blocks", "input"),
            )
            if resume
            else Record.create(out, config)
        )
        with opened as record, Progress("training", planned_epochs=epochs * len(seeds)) as view:
            done = {final.seed for final in record.finals}
            for seed in seeds:
                begun = [trial for trial in record.trials.values() if trial.seed == seed]
                trial = begun[0] if begun else Trial(len(record.trials), arch, budget=epochs, seed=seed)
                k = trial.id
                view(Started(trial))
                if seed in done:
                    record.end(k, trial.status if trial.status != "running" else "completed")
                    continue
                kept = trial_folder(out / "checkpoints", k)
                record.start(trial)
                steps = objective.final_training(
                    arch,
                    seed,
                    epochs,
                    validate=validate,
                    test_curve=test_curve,
                    checkpoints=kept,
                    measured=trial.measurements,
                )
                while True:
                    try:
                        measurement = next(steps)
                    except StopIteration as end:
                        final = end.value
                        break
                    trial = trial.add(measurement)
                    record.measure(k, measurement)
                    view(Measured(trial))
                record.final(final)
                record.end(k, "failed" if final.error else "completed", final.error)
                view(Ended(record.trials[k]))
            record.done()
            return record.run()
