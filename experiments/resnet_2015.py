"""Deeper is worse without shortcuts, and better with them: python experiments/resnet_2015.py --scale smoke

He et al. 2015 trained plain networks of 20 and 56 layers on CIFAR-10: the deeper one ends with the larger error,
on the training images already, so it is not overfitting. The same networks with shortcuts around every two
layers (option A: as many parameters) end the other way round.

Here both pairs are trained one after the other by `train.py`'s recipe for them, from one seed, each recorded in a
folder of its own that can be killed and resumed. Everything is fixed beforehand: all training images are trained
on, the test images are read after every epoch for the curve, and nothing is chosen by it; the final figures are
those of the last epoch. Training error is that of the augmented images while they are trained on, averaged over
the epoch, so early in training it lags behind.

Different from the paper: each channel's mean is subtracted (the paper: each pixel's) and divided by its standard
deviation; weight decay leaves biases and normalisation alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from _experiment import (
    NO_VALUE,
    Claim,
    ExperimentConfig,
    Interval,
    Number,
    difference,
    of_images,
    only_planned,
    recorded_training,
    result_folder,
    run,
    style,
    whole_numbers,
    write_results,
)
from _plan import Work
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas.data import load_test
from nas.data.config import DataConfig
from nas.record import Run
from nas.space import Architecture
from nas.trial import MeasurementWithTest
from search_spaces.resnet import NAMED, SPACE

CLAIM = Claim(
    experiment="resnet_2015",
    paper="He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016 (arXiv 1512.03385, 2015)",
    where="figure 6 and table 6",
    says="CIFAR-10 test error of ResNet-20 and ResNet-56: 8.75 % and 6.97 %; of the plain networks with as many "
    "layers, shown as curves only, the deeper one's training and test errors are the larger ones",
    hardware_hours="64,000 steps of 128 images on two GPUs; hours not stated",
    past="--scale cpu (width 8, 8 epochs, one seed): test errors plain 26.97 % (20 layers) and 70.91 % (56), residual "
    "23.91 % and 31.22 %; two AVX-512 cores shared with other work, 38 minutes. --scale paper: not run",
    numbers=(
        Number("residual_20", "ResNet-20, CIFAR-10 test error, %", 8.75),
        Number("residual_56", "ResNet-56, CIFAR-10 test error, %", 6.97),
        Number("plain_depth", "plain networks: 56 layers less 20, test error, points", side="above"),
        Number("residual_depth", "residual networks: 56 layers less 20, test error, points", side="below"),
    ),
)
PAPER = {("residual", 20): 8.75, ("residual", 56): 6.97}  # test error, %; table 6


@dataclasses.dataclass(frozen=True)
class Scale:
    """Which networks (6 ``blocks`` + 2 layers, of ``width``, 2 and 4 ``width`` channels), images, and how long."""

    blocks: tuple[int, int]
    width: int
    data: DataConfig
    epochs: int
    augmentation: str = "crop+flip"


SCALES = {
    "smoke": Scale((1, 2), 8, DataConfig("digits"), 3, augmentation="none"),
    "cpu": Scale((3, 9), 8, DataConfig("cifar10"), 8),
    # 390 steps of 128 of the 50,000 images an epoch: 63,960 steps, the rate divided by 10 at 31,980 and 47,970.
    "paper": Scale((3, 9), 16, DataConfig("cifar10"), 164),
}


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Train plain and residual networks of two depths; their error curves in curves.png, the last in table.md."""

    seed: int = 0
    """of initial weights, order of images and augmentation"""


@dataclasses.dataclass(frozen=True)
class Network:
    """One curve of the figure."""

    connections: str
    layers: int
    run: Run

    @property
    def points(self) -> list[MeasurementWithTest]:
        """Its measurements, an epoch each."""
        return [m for m in self.run.trials[0].measurements if isinstance(m, MeasurementWithTest)]

    def errors(self, of: str) -> np.ndarray:
        """Percent, an epoch each; ``of`` is train or test."""
        return np.array([100 * (1 - getattr(point, f"{of}_accuracy")) for point in self.points])


def architecture(scale: Scale, connections: str, blocks: int) -> Architecture:
    """The network with the published recipe, which is that of the named networks."""
    published = NAMED["plain20" if connections == "plain" else "resnet20"].arch
    depth = {f"blocks_{i}": blocks for i in (1, 2, 3)}
    return published.set(width=scale.width, augmentation=scale.augmentation, **depth)


def main(config: Config) -> None:
    scale = SCALES[config.scale]
    if only_planned(config, __file__, lambda: works(scale)):
        return
    out = result_folder(config, "resnet_2015")
    networks = []
    for connections in ("plain", "residual"):
        for blocks in scale.blocks:
            layers = 6 * blocks + 2
            done = recorded_training(
                config,
                SPACE,
                architecture(scale, connections, blocks),
                scale.data,
                out / f"{connections}-{layers}",
                epochs=scale.epochs,
                seeds=[config.seed],
                test_curve=True,
            )
            networks.append(Network(connections, layers, done))
    write_results(
        out,
        table(networks),
        {"curves.png": draw(networks)},
        config=config,
        claim=CLAIM,
        numbers=numbers(networks, len(load_test(**scale.data.arguments()).labels)),
        seeds=1,
    )


def numbers(networks: Sequence[Network], test_images: int) -> dict[str, Interval]:
    """Test errors of one training each, and what the deeper network of a pair has more."""
    found = {
        (one.connections, one.layers): of_images(float(one.errors("test")[-1]) / 100, test_images)
        for one in networks
    }
    depths = sorted({layers for _, layers in found})
    named = {f"residual_{layers}": found["residual", layers] for layers in depths if layers in (20, 56)}
    if depths != [20, 56]:
        return named
    for connections in ("plain", "residual"):
        shallow, deep = (found[connections, layers] for layers in depths)
        named[f"{connections}_depth"] = difference(deep, shallow)
    return named


def works(scale: Scale) -> list[Work]:
    return [
        Work(
            f"{connections}-{6 * blocks + 2}",
            SPACE,
            architecture(scale, connections, blocks),
            scale.data,
            scale.epochs,
        )
        for connections in ("plain", "residual")
        for blocks in scale.blocks
    ]


def table(networks: list[Network]) -> str:
    """Errors after the last epoch, and what depth did to each pair."""
    rows = [
        "| Network | Params | Train error % | Test error % | Paper's test % | Train s | All s |",
        "| ------- | -----: | ------------: | -----------: | -------------: | ------: | ----: |",
    ]
    last: dict[str, list[tuple[float, float]]] = {}
    for network in networks:
        final = network.run.finals[0]
        train, test = network.errors("train")[-1], network.errors("test")[-1]
        last.setdefault(network.connections, []).append((train, test))
        published = PAPER.get((network.connections, network.layers))
        rows.append(
            f"| {network.connections}-{network.layers} | {final.params:,} | {train:.2f} | {test:.2f} "
            f"| {NO_VALUE if published is None else published} | {final.train_seconds:.0f} | {final.seconds:.0f} |"
        )
    return "\n".join([*rows, "", *(f"- {line}" for line in effects(networks, last))])


def effects(networks: list[Network], last: Mapping[str, list[tuple[float, float]]]) -> list[str]:
    """The claim in a line a pair: points of error that the deeper network has more than the other."""
    shallow, deep = (network.layers for network in networks[:2])
    lines = []
    for connections, ((train, test), (deep_train, deep_test)) in last.items():
        lines.append(
            f"{connections}: {deep} layers instead of {shallow} change the training error by "
            f"{deep_train - train:+.2f} points, the test error by {deep_test - test:+.2f}"
        )
    config = networks[0].run.config
    lines.append(
        f"one seed ({networks[0].run.finals[0].seed}), {config['epochs']} epochs of {config['dataset']}, "
        f"first stage {networks[0].run.finals[0].arch['width']} channels wide"
    )
    return lines


def draw(networks: list[Network]) -> Figure:
    """Figure 6: plain on the left, residual on the right; dashed is training error, bold is test error."""
    colours = dict(zip(sorted({network.layers for network in networks}), ("#D55E00", "#0072B2"), strict=True))
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    both = figure.subplots(1, 2, sharex=True, sharey=True)
    panels: dict[str, Axes] = dict(zip(("plain", "residual"), both, strict=True))
    for network in networks:
        axes, colour = panels[network.connections], colours[network.layers]
        name = f"{network.connections}-{network.layers}"
        epochs = [point.budget for point in network.points]
        axes.plot(
            epochs, network.errors("train"), "--", color=colour, linewidth=1.0, label=f"{name}, training"
        )
        axes.plot(epochs, network.errors("test"), "-", color=colour, linewidth=2.4, label=f"{name}, test")
    for name, axes in panels.items():
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("epoch")
        style(axes)
        whole_numbers(axes)
        axes.legend(frameon=False, fontsize=8.5)
    panels["plain"].set_ylabel("error (%)")
    # The first tenth of a long training would flatten what tells the networks apart in the end.
    shown = [n.errors(of)[len(n.points) // 10 :].max() for n in networks for of in ("train", "test")]
    panels["plain"].set_ylim(0, 1.05 * max(shown))
    return figure


if __name__ == "__main__":
    run(main, compute=True)
