"""What an experiment would take on TPUs (--plan), and whether its programs run at all (--rehearse)."""

from __future__ import annotations

import dataclasses
import functools
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nas.data.config import DataConfig
from nas.errors import InputError
from nas.nn.bridge import build
from nas.objectives.train import TrainObjective, TrainSetup
from nas.run.options import hyperparameters
from nas.space import Architecture, SearchSpace
from nas.tpu.chips import CHIPS
from nas.tpu.compiler import TooLarge, compiled_elsewhere, cost, slice_of
from nas.training.checkpoint import Checkpoints
from nas.training.config import TrainingConfig
from nas.training.loop import train
from nas.training.programs import Shape, lower_step, timed


@dataclasses.dataclass(frozen=True)
class Work:
    """Trainings of one network that an experiment consists of, one a seed."""

    name: str
    space: SearchSpace
    arch: Architecture
    data: DataConfig
    epochs: int
    seeds: int = 1
    hyper: tuple[str, ...] = ()
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    images: int | None = None
    """training images, where the set need not be at hand to plan; then also:"""
    image_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    rehearsal: DataConfig | None = None
    """images to rehearse with; default: the first of ``data``"""

    def setup(self, data: DataConfig, training: TrainingConfig) -> TrainSetup:
        overrides = hyperparameters(self.hyper)
        return TrainSetup(self.space, data, training, epochs=self.epochs, overrides=overrides)


class PlanOptions(NamedTuple):
    """What --plan and --rehearse are told."""

    slice: str
    price: float
    libtpu: Path | None
    data_dir: str | None


def plan(script: str, works: Sequence[Work], options: PlanOptions) -> None:
    """Print steps, FLOPs, chip-hours and dollars of ``works`` on a slice, by the TPU compiler's counts.

    Times are the roofline's at the chip's published peaks, which no program reaches: the least that it can be. Raises
    InputError.
    """
    if options.slice.partition(":")[0] not in CHIPS:
        slice_of(options.slice)  # says which there are, without the compiler
    if options.price < 0:
        raise InputError(f"price: {options.price} is below 0")
    if not compiled_elsewhere(script, options.libtpu):
        print("\n".join(planned(works, options)))


def planned(works: Sequence[Work], options: PlanOptions) -> list[str]:
    whole = slice_of(options.slice)
    lines = [
        "| Training | Trainings | Steps each | Images a step | FLOPs | Least chip-hours | Least hours | Least $ |",
        "| -------- | --------: | ---------: | ------------: | ----: | ---------------: | ----------: | ------: |",
    ]
    notes = []
    totals = np.zeros(4)
    for work in works:
        objective = None
        shape, classes, images = work.image_shape, work.num_classes, work.images
        if shape is None or classes is None or images is None:
            data = dataclasses.replace(work.data, data_dir=options.data_dir)
            objective = work.setup(data, work.training)(None)
            dataset = objective.dataset
            shape, classes = dataset.image_shape, dataset.num_classes
            images = len(dataset.train) + len(dataset.valid)
        network = build(work.space, work.arch, classes)
        hyper = hyper_of(work)
        on = whole
        if hyper.batch_size % on.devices:
            on = slice_of(re.sub(r"\d+(?=x|$)", "1", options.slice))
            notes.append(
                f"{work.name}: {hyper.batch_size} images a step cannot be shared by {options.slice}: one chip"
            )
        program = Shape(
            shape, classes, hyper.batch_size, hyper.batch_size, hyper.optimiser,
            clip=work.training.clip_norm is not None, ema=work.training.ema_decay is not None,
            dtype="bfloat16", devices=on.devices,
        )  # fmt: skip
        steps = work.epochs * (work.training.steps_per_epoch or images // hyper.batch_size)
        try:
            found = cost(functools.partial(lower_step, network, program, mesh=on.mesh))
        except TooLarge as error:
            notes.append(f"{work.name}: {hyper.batch_size} images a step do not fit: {error} of a device")
            lines.append(f"| {work.name} | {work.seeds} | {steps:,} | {hyper.batch_size} | | | | |")
            continue
        hours = work.seeds * steps * found.seconds(on) / 3600
        flops = work.seeds * steps * found.flops * on.devices
        row = np.array([flops, hours * on.chips, hours, hours * on.chips * options.price])
        totals += row
        lines.append(f"| {work.name} | {work.seeds} | {steps:,} | {hyper.batch_size} | {_numbers(row)} |")
    lines.append(f"| all, one after another | | | | {_numbers(totals)} |")
    chip = whole.chip
    peaks = f"{chip.flops_per_second / 1e12:g} TFLOP/s and {chip.bytes_per_second / 1e9:g} GB/s a chip"
    notes.append(
        f"{options.slice} at ${options.price:g} a chip-hour; the roofline of {peaks} ({chip.source}) is a bound from "
        "below, and leaves out evaluation and compilation"
    )
    return [*lines, "", *(f"- {note}" for note in notes)]


def _numbers(row: np.ndarray) -> str:
    return f"{row[0]:.3g} | {row[1]:.3g} | {row[2]:.3g} | {row[3]:.2f}"


def hyper_of(work: Work) -> Any:
    from nas.training import hyper

    return hyper.hyper_of({**work.arch, **hyperparameters(work.hyper)})


def rehearse(works: Sequence[Work], options: PlanOptions) -> None:
    """Run the programs of ``works`` on this machine: a step, saved, resumed; another step and an evaluation.

    Networks, batches and schedules are those of the real training; the images are few. Raises InputError where what
    was resumed is not what was saved, and as training does.
    """
    for work in works:
        print(rehearsed(work, options), flush=True)


def rehearsed(work: Work, options: PlanOptions) -> str:
    batch = hyper_of(work).batch_size
    data = work.rehearsal or dataclasses.replace(work.data, subset=max(4 * batch, 200))
    data = dataclasses.replace(data, data_dir=options.data_dir)
    config = dataclasses.replace(work.training, steps_per_epoch=1)
    objective = work.setup(data, config)(None)
    with tempfile.TemporaryDirectory() as folder:
        seen, seconds, first = [], 0.0, None
        for until in (1, 2):
            keeper = Checkpoints(Path(folder))
            try:
                training = _training(objective, work)
                found = keeper.restore(training.state) if first is not None else None
                if first is not None and (found is None or not _equal(found[1], first)):
                    raise InputError(f"{work.name}: what was resumed is not what was saved")
                known, took = timed(
                    functools.partial(_measured, training, objective, until, keeper, tuple(seen))
                )
                seen, seconds = known, seconds + took
                first = jax.tree.map(np.asarray, training.state)
            finally:
                keeper.close()
    losses = ", ".join(f"{m.train_loss:.4g}" for m in seen)
    return (
        f"{work.name}: two steps of {batch} images, saved and resumed, and an evaluation: losses {losses}; "
        f"{seconds:.1f} s, compilation among them"
    )


def _training(objective: TrainObjective, work: Work) -> Any:
    return objective.training(work.arch, objective.train_data, seed=0, epochs=work.epochs)


def _measured(
    training: Any, objective: Any, until: int, keeper: Checkpoints, known: tuple[Any, ...]
) -> list[Any]:
    valid = objective.valid_data if until == 2 else None
    return [*known, *train(training, valid, until=until, checkpoints=keeper, measured=known)]


def _equal(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
