"""DARTS from search to test, beside random search and random cells: python experiments/darts_2019.py --scale smoke

Liu et al. 2019 search the cells of an image classifier with a supernet of 8 cells, build a network of 20 of what it
derives, and train that anew. They set beside it a random search that costs as much: cells drawn at random, each
trained for a while, the best by validation kept. Here, all in records that can be killed and resumed:

- ``search-SEED``: the supernet, from one or several seeds; the genotype is what each derives at its end.
- ``select-SEED`` (several seeds only): each genotype's network trained for a while; the best by validation counts.
- ``random``: random search. Of its trials those count that ended before it had spent the compute seconds that the
  above took; the best of them by validation counts.
- ``train-…``: what DARTS and random search chose, and further cells drawn at random and not chosen by anything, each
  trained to the end on all training images from several seeds and tested once.

All networks are the paper's evaluation network (cells, channels, recipe: ``fix`` of a scale), so that the rows differ
in the cells alone; test images are read behind the last epoch of ``train-…`` only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _experiment import (
    NO_VALUE,
    Claim,
    ExperimentConfig,
    Interval,
    Number,
    describe_images,
    difference,
    of_images,
    only_planned,
    recorded_training,
    result_folder,
    resumes,
    run,
    style,
    write_results,
)
from _plan import Work
from matplotlib.figure import Figure

from nas.data import load_test
from nas.data.config import DataConfig
from nas.errors import InputError
from nas.record import Run
from nas.report.result_table import format_percent, format_seconds
from nas.report.statistics import mean_interval
from nas.run.methods import SupernetConfig
from nas.run.options import SearchOptions, narrowed
from nas.run.search import search
from nas.run.training import train_to_end
from nas.space import Architecture
from nas.strategies.base import sample_architecture
from nas.training.config import TrainingConfig
from nas.trial import Trial
from search_spaces.darts import SPACE, genotype_of

CLAIM = Claim(
    experiment="darts_2019",
    paper="Liu, Simonyan, Yang: DARTS: differentiable architecture search, ICLR 2019 (arXiv 1806.09055)",
    where="table 1",
    says="CIFAR-10 test error 3.00±0.14 % (first order) and 2.76±0.09 % (second order), 3.3 M parameters; random "
    "search at equal cost 3.29±0.15 %",
    hardware_hours="1.5 (first order) and 4 GPU days (second) for the searches, four runs and their selection",
    past="--scale cpu (6,000 images at 16 pixels to search, 20,000 to train 8 epochs, one seed; 14 minutes on two "
    "cores; the same figures twice): test error DARTS first order 44.38 %, random search 43.13, three random cells "
    "44.65 ± 2.96: no difference at this scale. --scale smoke: 47 s for all of it, nothing compiled before, native "
    "kernels not either. --scale paper: not run",
    numbers=(
        Number("darts", "DARTS, CIFAR-10 test error, %", 2.76, 2, 0.09, 4),
        Number("random", "random search at equal cost, CIFAR-10 test error, %", 3.29, 2, 0.15),
        Number("gain", "DARTS less random search, test error, points", side="below"),
    ),
    covers=("nas/oneshot", "search_spaces/darts"),
)
PUBLISHED = {"darts_first": "3.00 ± 0.14", "darts": "2.76 ± 0.09", "random": "3.29 ± 0.15"}  # test error, %
NAMES = {"darts_first": "DARTS, first order", "darts": "DARTS, second order"}


@dataclasses.dataclass(frozen=True)
class Scale:
    """What is searched with which data and how long; what is trained of it, on which data, and how long.

    ``fix`` are the choices of the evaluation network but for its cells. ``trials`` of random search are drawn, for
    ``short_epochs`` each, of which as many count as cost what the search did; ``samples`` cells are trained unchosen.
    """

    strategy: str
    search_data: DataConfig
    search_epochs: int
    search_seeds: int
    supernet: tuple[str, ...]
    short_epochs: int
    trials: int
    fix: tuple[str, ...]
    data: DataConfig
    final_epochs: int
    final_seeds: int
    samples: int
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)


RECIPE = ("optimiser=momentum", "schedule=cosine", "weight_decay=3e-4", "learning_rate=0.025")
SCALES = {
    "smoke": Scale(
        strategy="darts_first",
        search_data=DataConfig("mnist5k", subset=1500, image_size=14),
        search_epochs=2,
        search_seeds=1,
        supernet=("channels=4", "cells=3", "eigenvalue=false", "alpha_learning_rate=0.01", "augmentation=none"),
        short_epochs=1,
        trials=2,
        fix=(*RECIPE, "cells=3", "channels=4", "auxiliary=false", "drop_path=0", "batch_size=64", "augmentation=none"),
        data=DataConfig("mnist5k", subset=1500, image_size=14),
        final_epochs=2,
        final_seeds=1,
        samples=1,
    ),
    "cpu": Scale(
        strategy="darts_first",
        search_data=DataConfig("cifar10", subset=6000, image_size=16),
        search_epochs=20,
        search_seeds=1,
        supernet=("channels=4", "cells=4", "eigenvalue=false", "alpha_learning_rate=0.01"),
        short_epochs=6,
        trials=16,
        fix=(*RECIPE, "cells=4", "channels=8", "auxiliary=false", "drop_path=0", "batch_size=64",
             "augmentation=crop+flip"),
        data=DataConfig("cifar10", subset=20_000, image_size=16),
        final_epochs=8,
        final_seeds=1,
        samples=3,
    ),
    "paper": Scale(
        strategy="darts",
        search_data=DataConfig("cifar10", valid_fraction=0.01),
        search_epochs=50,
        search_seeds=4,
        supernet=("eigenvalue=false",),
        short_epochs=100,
        trials=24,
        fix=(*RECIPE, "cells=20", "channels=36", "auxiliary=true", "drop_path=0.2", "batch_size=96",
             "augmentation=crop+flip+cutout"),
        data=DataConfig("cifar10"),
        final_epochs=600,
        final_seeds=10,
        samples=4,
        training=TrainingConfig(clip_norm=5.0),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Search cells with DARTS and at random, train what was found; errors in table.md and errors.png."""

    search_only: bool = False
    """stop once the genotype is there"""


class Row(NamedTuple):
    """A line of the table: who chose, at what cost, and the final trainings of each chosen architecture."""

    label: str
    published: str
    search_seconds: float
    trained: tuple[Run, ...]


def main(config: Config) -> None:
    scale = SCALES[config.scale]
    if only_planned(config, __file__, lambda: works(scale, config)):
        return
    out = result_folder(config, "darts_2019")
    searches = [searched(scale, config, out, scale.strategy, seed) for seed in range(scale.search_seeds)]
    chosen, spent = selected(scale, config, out, searches)
    genotype = str(genotype_of(chosen))
    (out / "genotype.txt").write_text(genotype + "\n")
    print(genotype, flush=True)
    if config.search_only:
        return
    drawn = searched(scale, config, out, "random", 0)
    counted = in_time(drawn, spent)
    best = max(counted, key=lambda trial: trial.score).arch
    space = narrowed(options_of(scale, config, "random", 0), {"darts": SPACE})
    samples = [sample_architecture(space, 1, k) for k in range(scale.samples)]
    rows = [
        Row(
            NAMES[scale.strategy],
            PUBLISHED[scale.strategy],
            spent,
            (trained(scale, config, out, chosen, "darts"),),
        ),
        Row(
            "random search",
            PUBLISHED["random"],
            sum(map(seconds_of, counted)),
            (trained(scale, config, out, best, "random"),),
        ),
        Row(
            f"random cells ({scale.samples})",
            NO_VALUE,
            0.0,
            tuple(trained(scale, config, out, arch, f"sample-{k}") for k, arch in enumerate(samples)),
        ),
    ]
    text = table(rows, scale, counted, len(drawn.trials))
    write_results(
        out,
        text,
        {"errors.png": draw(rows)},
        ["genotype.txt"],
        config=config,
        claim=CLAIM,
        numbers=numbers(rows[0], rows[1], len(load_test(**scale.data.arguments()).labels)),
        seeds=scale.search_seeds,
    )


def numbers(darts: Row, random: Row, test_images: int) -> dict[str, Interval]:
    """Over final trainings; of one, the interval is that of the test images."""
    found = {}
    for name, row in (("darts", darts), ("random", random)):
        of = errors(row)
        found[name] = of_images(of[0], test_images) if len(of) == 1 else mean_interval([100 * e for e in of])
    return {**found, "gain": difference(found["darts"], found["random"])}


def works(scale: Scale, config: Config) -> list[Work]:
    """Its trainings from scratch, each of a random cell's network; the supernets are not among them."""
    space = narrowed(options_of(scale, config, "random", 0), {"darts": SPACE})
    arch = sample_architecture(space, 1, 0)
    short = scale.trials + (scale.search_seeds if scale.search_seeds > 1 else 0)
    return [
        Work("cells of the searches", SPACE, arch, scale.search_data, scale.short_epochs, short,
             training=scale.training),
        Work("final", SPACE, arch, scale.data, scale.final_epochs, (2 + scale.samples) * scale.final_seeds,
             training=scale.training),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------- searching


def options_of(scale: Scale, config: Config, strategy: str, seed: int) -> SearchOptions:
    random = strategy == "random"
    return SearchOptions(
        space="darts",
        fix=scale.fix,
        engine="local",
        test_seeds=0,
        data=dataclasses.replace(scale.search_data, data_dir=config.data_dir),
        training=scale.training
        if random
        else TrainingConfig(),  # a supernet's clipping is among its settings
        plan=SupernetConfig(
            supernet=() if random else scale.supernet,
            seed=seed,
            trials=scale.trials if random else None,
            epochs=scale.short_epochs if random else scale.search_epochs,
        ),
    )


def searched(scale: Scale, config: Config, out: Path, strategy: str, seed: int) -> Run:
    """One search with its record. Raises InputError where nothing could be measured."""
    folder = out / (strategy if strategy == "random" else f"search-{seed}")
    options = options_of(scale, config, strategy, seed)
    done = search(options, strategy, folder, {"darts": SPACE}, resume=resumes(config, folder))
    if done.best is None:
        raise InputError(f"{folder}: {next(iter(done.trials.values())).error}")
    return done


def selected(scale: Scale, config: Config, out: Path, searches: Sequence[Run]) -> tuple[Architecture, float]:
    """The genotype that counts, and the seconds until it was known.

    Of several seeds the one whose network, trained shortly from scratch, has the best validation accuracy.
    """
    spent = sum(run.seconds for run in searches)
    found = [best_of(run).chosen for run in searches]
    if len(found) == 1:
        return found[0], spent
    accuracies = []
    for seed, arch in enumerate(found):
        folder = out / f"select-{seed}"
        done = train_to_end(
            SPACE,
            arch,
            dataclasses.replace(scale.search_data, data_dir=config.data_dir),
            scale.training,
            folder,
            epochs=scale.short_epochs,
            seeds=[0],
            validate=True,
            resume=resumes(config, folder),
        )
        accuracies.append(done.finals[0].valid_accuracy)
        spent += done.finals[0].seconds
    return found[int(np.nanargmax(accuracies))], spent


def best_of(run: Run) -> Trial:
    assert run.best is not None  # `searched` has seen to it
    return run.best


def in_time(run: Run, seconds: float) -> list[Trial]:
    """The trials that ended within so many compute seconds; the first one counts whatever it cost."""
    found: list[Trial] = []
    spent = 0.0
    for trial in run.trials.values():
        spent += seconds_of(trial)
        if found and spent > seconds:
            break
        found.append(trial)
    return found


def seconds_of(trial: Trial) -> float:
    return sum(measurement.seconds for measurement in trial.measurements)


# ------------------------------------------------------------------------------------------- training and telling


def trained(scale: Scale, config: Config, out: Path, arch: Architecture, name: str) -> Run:
    """``arch`` trained to the end on all training images, from every seed, and tested."""
    return recorded_training(
        config,
        SPACE,
        arch,
        scale.data,
        out / f"train-{name}",
        training=scale.training,
        epochs=scale.final_epochs,
        seeds=range(scale.final_seeds),
    )


def errors(row: Row) -> list[float]:
    """Test errors, as fractions: of one architecture each training's, of several each one's mean."""
    each = [[1 - final.test_accuracy for final in done.finals] for done in row.trained]
    return each[0] if len(each) == 1 else [float(np.mean(of)) for of in each]


def table(rows: Sequence[Row], scale: Scale, counted: Sequence[Trial], drawn: int) -> str:
    """Test errors beside the paper's, what each search cost, and what a reader must know."""
    lines = [
        "| Cells | Test error % | Paper's | Params | Search s | Final training s |",
        "| ----- | -----------: | ------: | -----: | -------: | ---------------: |",
    ]
    for row in rows:
        finals = [final for done in row.trained for final in done.finals]
        params = sorted({final.params or 0 for final in finals})
        sizes = f"{params[0]:,}" if len(params) == 1 else f"{params[0]:,} to {params[-1]:,}"
        lines.append(
            f"| {row.label} | {format_percent(mean_interval(errors(row)))} | {row.published} | {sizes} "
            f"| {format_seconds(row.search_seconds)} | {format_seconds(float(np.mean([f.seconds for f in finals])))} |"
        )
    notes = [
        f"searched on {describe_images(scale.search_data)}: {scale.search_seeds} x {scale.search_epochs} epochs of the "
        f"supernet ({' '.join(scale.supernet)}); random search: epochs a cell: {scale.short_epochs}",
        f"random search: {len(counted)} of {drawn} cells ended within the seconds that DARTS took",
        f"trained on {describe_images(scale.data)}, {scale.final_epochs} epochs, seeds: {scale.final_seeds}; ± is the "
        "95 % t interval over trainings of one architecture, or over architectures",
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)])


def draw(rows: Sequence[Row]) -> Figure:
    """The table's test errors: a point a training, or an architecture; bars are means."""
    figure = Figure(figsize=(5.2, 2.2), layout="constrained")
    axes = figure.subplots()
    for place, (row, colour) in enumerate(zip(rows, ("#0072B2", "#D55E00", "0.45"), strict=True)):
        values = [100 * error for error in errors(row)]
        axes.scatter(values, [place] * len(values), 26, color=colour, zorder=3)
        axes.plot([np.mean(values)] * 2, [place - 0.25, place + 0.25], color=colour, linewidth=2)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("test error (%)")
    style(axes, "x")
    axes.spines["left"].set_visible(False)
    return figure


if __name__ == "__main__":
    run(main, compute=True)
