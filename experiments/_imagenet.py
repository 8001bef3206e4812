"""What the experiments with ImageNet's networks share: networks and scales as data, trainings, table and curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from _experiment import (
    NO_VALUE,
    Claim,
    ExperimentConfig,
    Interval,
    describe_images,
    of_images,
    only_planned,
    recorded_training,
    result_folder,
    style,
    whole_numbers,
    write_results,
)
from _plan import Work
from matplotlib.figure import Figure

from nas.data import load_test
from nas.data.config import DataConfig
from nas.record import Run
from nas.space import Architecture
from nas.training.config import TrainingConfig
from search_spaces import SPACES
from search_spaces.zoo import ZOO

# TFDS's imagenet2012: its validation split is tested on, for the labels of its test split are secret.
IMAGENET = DataConfig("imagenet2012", resize=256, image_size=224)
IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000
# Szegedy et al. 2015's crops, mirrored; read from the files as training goes on.
CROPS = "augmentation=resized_crop+flip"


def enlarged(pixels: int, subset: int | None = None) -> DataConfig:
    """CIFAR-10 as ImageNet is read: from its files, the side scaled to 8/7 of the ``pixels`` that are seen."""
    return DataConfig("cifar10", resize=round(pixels * 8 / 7), image_size=pixels, subset=subset)


@dataclasses.dataclass(frozen=True)
class Network:
    """One training: a network of the zoo with some choices changed, and the published errors in %."""

    key: str
    """of its folder and its numbers"""
    label: str
    name: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    top1: float | None = None
    top5: float | None = None
    hyper: tuple[str, ...] = (CROPS,)

    def arch(self, also: Mapping[str, Any]) -> Architecture:
        return ZOO[self.name].arch.set(**{**self.changes, **also})


@dataclasses.dataclass(frozen=True)
class Scale:
    """Which networks, with what ``changes`` to all of them, on which images, how long."""

    networks: tuple[Network, ...]
    data: DataConfig
    epochs: int
    hyper: tuple[str, ...] = ()
    """over those of each network"""
    evaluation: str = "centre"
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def training(self) -> TrainingConfig:
        return TrainingConfig(evaluation=self.evaluation)


class Trained(NamedTuple):
    """A network with the record of its training; ``top1`` and ``top5`` are its errors, over the test images."""

    network: Network
    run: Run
    top1: Interval
    top5: Interval


Numbers = Callable[[Mapping[str, Trained]], dict[str, Interval]]


def train_all(
    config: ExperimentConfig, script: str, claim: Claim, scale: Scale, numbers: Numbers, seed: int
) -> None:
    """Train the networks of ``scale`` one after another, each resumable, and write what came of it.

    ``numbers`` makes those of the claim of the trained networks, by key.
    """
    if only_planned(config, script, lambda: works(scale)):
        return
    out = result_folder(config, claim.experiment)
    done: dict[str, Trained] = {}
    data = dataclasses.replace(scale.data, data_dir=config.data_dir)
    for network in scale.networks:
        run = recorded_training(
            config,
            SPACES[ZOO[network.name].space],
            network.arch(scale.changes),
            scale.data,
            out / network.key,
            training=scale.training,
            epochs=scale.epochs,
            seeds=[seed],
            hyper=(*network.hyper, *scale.hyper),
        )
        images = len(load_test(**data.arguments()))
        final = run.finals[0]
        errors = (of_images(1 - of, images) for of in (final.test_accuracy, final.test_top5_accuracy))
        done[network.key] = Trained(network, run, *errors)
    write_results(
        out,
        table(scale, list(done.values())),
        {"curves.png": draw(list(done.values()))},
        config=config,
        claim=claim,
        numbers=numbers(done),
        seeds=1,
    )


def works(scale: Scale) -> list[Work]:
    """The trainings for --plan and --rehearse, which need no ImageNet: rehearsed on CIFAR-10 enlarged."""
    more: dict[str, Any] = {}
    if scale.data.dataset == IMAGENET.dataset:
        side = scale.data.image_size or 224
        more = {
            "images": IMAGENET_IMAGES,
            "image_shape": (side, side, 3),
            "num_classes": IMAGENET_CLASSES,
            "rehearsal": dataclasses.replace(scale.data, dataset="cifar10", subset=2000),
        }
    return [
        Work(
            network.label,
            SPACES[ZOO[network.name].space],
            network.arch(scale.changes),
            scale.data,
            scale.epochs,
            hyper=(*network.hyper, *scale.hyper),
            training=scale.training,
            **more,
        )
        for network in scale.networks
    ]


def table(scale: Scale, done: Sequence[Trained]) -> str:
    """Errors after the last epoch beside the paper's."""
    rows = [
        "| Network | Params | Train error % | Top-1 error % | Top-5 error % | Paper: top-1 | top-5 | Train s |",
        "| ------- | -----: | ------------: | ------------: | ------------: | -----------: | ----: | ------: |",
    ]
    for network, run, top1, top5 in done:
        final = run.finals[0]
        published = (NO_VALUE if of is None else f"{of:.2f}" for of in (network.top1, network.top5))
        rows.append(
            f"| {network.label} | {final.params:,} | {train_errors(run)[-1]:.2f} | {top1.mean:.2f} | {top5.mean:.2f} "
            f"| {' | '.join(published)} | {final.train_seconds:.0f} |"
        )
    views = "ten crops" if scale.evaluation == "ten_crop" else "the centre"
    note = f"one seed, {scale.epochs} epochs of {describe_images(scale.data)}, tested on {views}"
    return "\n".join([*rows, "", f"- {note}"])


def train_errors(run: Run) -> np.ndarray:
    """Percent, an epoch each, of the images as they are trained on."""
    return np.array([100 * (1 - point.train_accuracy) for point in run.trials[0].measurements])


def draw(done: Sequence[Trained]) -> Figure:
    """Training error over epochs, and the test error at the end as a point."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, (network, run, top1, _) in enumerate(done):
        errors, colour = train_errors(run), f"C{number}"
        epochs = np.arange(1, len(errors) + 1)
        axes.plot(epochs, errors, "--", color=colour, linewidth=1.2, label=f"{network.label}, training")
        axes.plot(epochs[-1:], [top1.mean], "o", color=colour, label=f"{network.label}, test")
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 error (%)")
    axes.set_ylim(bottom=0)
    style(axes)
    whole_numbers(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure
