"""LeNet-5 and its modern form on MNIST: python experiments/lenet_1998.py --scale smoke

LeCun et al. 1998 report the test error of LeNet-5 after 20 passes over the 60,000 images, with and without
distorted copies of them, and plot training and test error over the passes (figure 5). Here three networks are
trained one after the other, from one seed each, recorded in folders of their own that can be killed and resumed:
LeNet-5 as published (60,000 parameters), the same on images moved at random by up to 4 pixels (the nearest that
the input pipeline has to the paper's distortions), and the dense form (61,706: full connections, max pooling,
ReLU, dense output) with the recipe that its name has in the zoo.

Everything is fixed beforehand: all training images are trained on, the test images are read after every epoch
for the curve, and nothing is chosen by it; the final figures are those of the last epoch. (The recipes were
chosen on validation images.) Training error is that of the images as they are trained on, averaged over the
epoch, so early in training it lags behind.

Different from the paper: plain gradient descent on batches (momentum and batches of 32 at ``cpu``; batches of 1
at ``paper``) instead of stochastic diagonal Levenberg-Marquardt; the discriminative loss without its constant;
the margin around an image is the mean pixel, not background; only translations for the distortions, new ones
every epoch instead of 540,000 fixed ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
from matplotlib.figure import Figure

from nas.data import load_test
from nas.data.config import DataConfig
from nas.record import Run
from nas.trial import MeasurementWithTest
from search_spaces.lenet import NAMED, SPACE, connections

CLAIM = Claim(
    experiment="lenet_1998",
    paper="LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, "
    "Proceedings of the IEEE 86(11), 1998",
    where="section III.B, figures 5 and 9",
    says="MNIST test error of LeNet-5 after 20 passes: 0.95 %; 0.8 % with distorted training images",
    hardware_hours="two to three days for 20 passes on one processor of a Silicon Graphics Origin 2000",
    past="--scale cpu (20 epochs, one seed): LeNet-5 0.99 %, on moved images 1.20 %, the dense form on moved images "
    "0.57 %; two AVX-512 cores shared with other work, 9 minutes. --scale paper: not run",
    numbers=(
        Number("lenet5", "LeNet-5, MNIST test error, %", 0.95),
        Number("moved", "LeNet-5 on distorted images, MNIST test error, %", 0.8, 1),
        Number("moved_gain", "distorted less plain images, points", side="below"),
    ),
)


@dataclasses.dataclass(frozen=True)
class Network:
    """One of the three: a name in the zoo, hyperparameters over its own, the paper's test error in %."""

    label: str
    folder: str
    name: str
    hyper: tuple[str, ...] = ()
    published: float | None = None


@dataclasses.dataclass(frozen=True)
class Scale:
    """Which images, how long, and the hyperparameters of both trainings of LeNet-5."""

    data: DataConfig
    epochs: int
    hyper: tuple[str, ...] = ()


SCALES = {
    "smoke": Scale(DataConfig("mnist5k", subset=2000), 4),
    "cpu": Scale(DataConfig("mnist"), 20),
    # 1.2 million steps of one image. The paper's rates fall from 5e-4 to 1e-5 before they are divided by each
    # weight's curvature, which makes them 7e-5 to 0.016 in the first pass.
    "paper": Scale(
        DataConfig("mnist"), 20, ("optimiser=sgd", "batch_size=1", "learning_rate=0.002", "schedule=step")
    ),
}


def networks(scale: Scale) -> tuple[Network, ...]:
    plain = (*scale.hyper, "augmentation=none")
    moved = (*scale.hyper, "augmentation=crop")
    return (
        Network("LeNet-5", "lenet5", "lenet5", plain, 0.95),
        Network("LeNet-5, moved images", "lenet5-moved", "lenet5", moved, 0.8),
        Network("dense form, moved images", "lenet5_dense", "lenet5_dense"),
    )


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Train LeNet-5, twice, and its dense form; their errors in table.md, over epochs in curves.png."""

    seed: int = 0
    """of initial weights, order of images and augmentation"""


def main(config: Config) -> None:
    scale = SCALES[config.scale]
    if only_planned(config, __file__, lambda: works(scale)):
        return
    out = result_folder(config, "lenet_1998")
    trained = []
    for network in networks(scale):
        done = recorded_training(
            config,
            SPACE,
            NAMED[network.name].arch,
            scale.data,
            out / network.folder,
            epochs=scale.epochs,
            seeds=[config.seed],
            hyper=network.hyper,
            test_curve=True,
        )
        trained.append((network, done))
    write_results(
        out,
        table(trained),
        {"curves.png": draw(trained)},
        config=config,
        claim=CLAIM,
        numbers=numbers(trained, len(load_test(**scale.data.arguments()).labels)),
        seeds=1,
    )


def numbers(trained: Sequence[tuple[Network, Run]], test_images: int) -> dict[str, Interval]:
    """Test errors of one training each."""
    plain, moved = (of_images(float(errors(done, "test")[-1]) / 100, test_images) for _, done in trained[:2])
    return {"lenet5": plain, "moved": moved, "moved_gain": difference(moved, plain)}


def works(scale: Scale) -> list[Work]:
    return [
        Work(of.label, SPACE, NAMED[of.name].arch, scale.data, scale.epochs, hyper=of.hyper)
        for of in networks(scale)
    ]


def errors(done: Run, of: str) -> np.ndarray:
    """Percent, an epoch each; ``of`` is train or test."""
    points = [m for m in done.trials[0].measurements if isinstance(m, MeasurementWithTest)]
    return np.array([100 * (1 - getattr(point, f"{of}_accuracy")) for point in points])


def table(trained: list[tuple[Network, Run]]) -> str:
    """Errors after the last epoch beside the paper's."""
    rows = [
        "| Network | Params | Connections | Train error % | Test error % | Paper's test % | Train s | All s |",
        "| ------- | -----: | ----------: | ------------: | -----------: | -------------: | ------: | ----: |",
    ]
    for network, done in trained:
        final, named = done.finals[0], NAMED[network.name]
        links = sum(connections(named.arch, named.image_shape, named.num_classes).values())
        paper = NO_VALUE if network.published is None else f"{network.published:.2f}"
        rows.append(
            f"| {network.label} | {final.params:,} | {links:,} | {errors(done, 'train')[-1]:.2f} "
            f"| {errors(done, 'test')[-1]:.2f} | {paper} | {final.train_seconds:.0f} | {final.seconds:.0f} |"
        )
    config = trained[0][1].config
    subset = f", {config['subset']} images of it" if config["subset"] else ""
    note = (
        f"one seed ({trained[0][1].finals[0].seed}), {config['epochs']} epochs of {config['dataset']}{subset}"
    )
    return "\n".join([*rows, "", f"- {note}"])


def draw(trained: list[tuple[Network, Run]]) -> Figure:
    """Figure 5: dashed is training error, bold is test error; dotted lines are the paper's test errors."""
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    axes = figure.subplots()
    shown = []
    for (network, done), colour in zip(trained, ("#0072B2", "#D55E00", "#009E73"), strict=True):
        train, test = errors(done, "train"), errors(done, "test")
        epochs = np.arange(1, len(test) + 1)
        axes.plot(epochs, train, "--", color=colour, linewidth=1.0, label=f"{network.label}, training")
        axes.plot(epochs, test, "-", color=colour, linewidth=2.2, label=f"{network.label}, test")
        if network.published is not None:
            label = f"{network.label}, test in the paper"
            axes.axhline(network.published, color=colour, linestyle=":", linewidth=1.2, label=label)
        shown.append(test[len(test) // 10 :].max())
    axes.set_xlabel("passes over the training images")
    axes.set_ylabel("error (%)")
    axes.set_ylim(0, 1.5 * max(shown))
    style(axes)
    whole_numbers(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8.5)
    return figure


if __name__ == "__main__":
    run(main, compute=True)
