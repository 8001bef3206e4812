"""An elastic supernet beside networks trained alone: python experiments/ofa_2020.py --scale smoke

Cai, Gan, Wang, Zhang and Han (2020) train one network whose sub-networks, of all depths, kernels and expansions, are
as accurate as networks trained alone; a network for each of many devices is then found without training. Here, in a
space of `search_spaces.mbconv` (`nas.oneshot.elastic_training`: sandwich rule, in-place distillation, shrinking,
kernel transformation):

1. The supernet is trained. Networks drawn from the space are trained alone, each recorded like any training. Of each:
   validation accuracy with inherited weights, statistics recalibrated, against that of the training alone; Kendall's
   tau with a bootstrap interval over networks.
2. For each of three limits evolution searches the supernet's sub-networks; what it finds is cut out, fine-tuned and
   tested. Random search at equal cost: of the networks trained alone, in the order drawn, as many as take the seconds
   of the supernet, its searches and its fine-tuning; the best by validation within each limit, tested. (Nothing beside
   those trainings: random search shares them between the limits, as the supernet is shared.)

Different from the paper, at every scale but `paper`: small images and networks, no resolutions, and the teacher is the
largest network at that step, not one trained before. `paper` keeps the published space and epochs; ImageNet is read
whole into memory, which takes a machine that has it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from _experiment import (
    NO_VALUE,
    Claim,
    ExperimentConfig,
    Interval,
    Number,
    describe_images,
    mean_interval,
    only_planned,
    recorded_training,
    result_folder,
    run,
    style,
    write_results,
)
from _plan import Work
from matplotlib.figure import Figure

from nas.data import load_test
from nas.data.config import DataConfig
from nas.errors import InputError
from nas.goals import Goals, parse_goals
from nas.nn.bridge import build
from nas.objectives.elastic import ElasticObjective, ElasticSetup
from nas.objectives.quantities import QuantitiesSetup, sign_of
from nas.oneshot.elastic import Elastic
from nas.oneshot.elastic_training import ElasticSettings, ElasticTraining, Phase, shrinking
from nas.record import Run
from nas.report.result_table import markdown
from nas.report.statistics import kendall
from nas.run.elastic import best, told
from nas.space import Architecture, SearchSpace
from nas.strategies import STRATEGIES
from nas.strategies.evolution import EvolutionConfig
from nas.training.checkpoint import Checkpoints
from nas.training.config import TrainingConfig
from nas.training.hyper import Hyper, hyper_of
from nas.training.loop import Data, Training, on_device
from nas.training.programs import copied, place
from search_spaces.mbconv import SPACE
from search_spaces.mbconv.published import SUBSPACES

CLAIM = Claim(
    experiment="ofa_2020",
    paper="Cai, Gan, Wang, Zhang, Han: Once-for-all: train one network and specialize it for efficient deployment, "
    "ICLR 2020",
    where="abstract; section 4.1",
    says="sub-networks of one once-for-all network keep the accuracy of networks trained independently, whatever the "
    "limit they are chosen for",
    hardware_hours="about 1,200 GPU hours on V100",
    numbers=(
        Number(
            "gap",
            "validation accuracy with inherited weights less that of a training alone, mean over networks, points",
            side="above",
            bound=-1,
        ),
        Number(
            "kendall_tau", "of inherited with stand-alone validation accuracy over networks", side="above"
        ),
        Number(
            "gain",
            "test accuracy, fine-tuned for a limit less random search at equal cost, mean of three limits, points",
            side="above",
        ),
    ),
    covers=("nas/oneshot/elastic.py", "nas/oneshot/elastic_training.py", "nas/objectives/elastic.py"),
)
VARY = ("kernel", "depth", "expansion")
TRAINED_BY = (
    "dropout=0",
    "schedule=cosine",
    "label_smoothing=0",
    "optimiser=nesterov",
    "weight_decay=0.0001",
)


def small_space(widths: Sequence[int], *more: str) -> tuple[str, ...]:
    """Assignments of the subspace with these stages, the first of one block; the others of one or two."""
    stages = range(1, len(widths) + 1)
    return (
        *(f"{name}=0" for name in ("resolution", "relu_stages", "head_dense")),
        *("activation=relu6", "se_form=efficientnet", "expand_at_1=False", "epsilon=0.00001", "se=False"),
        *("granularity=stage", "stem_stride=1", f"stem_width={widths[0]}", f"head_width={2 * widths[-1]}"),
        f"stages={len(widths)}",
        *(f"width_{i}={widths[i - 1]}" for i in stages),
        *(f"stride_{i}={1 if i == 1 else 2}" for i in stages),
        *(f"depth_{i}={'1' if i == 1 else '1..2'}" for i in stages),
        *TRAINED_BY,
        *more,
    )


@dataclasses.dataclass(frozen=True)
class Scale:
    data: DataConfig
    within: tuple[str, ...]
    """assignments that make the space: the elastic choices stay open, hyperparameters are those of all trainings"""
    epochs: int
    """of the supernet; equal parts for the phases"""
    networks: int
    """trained alone"""
    alone_epochs: int
    trials: int
    """sub-networks that evolution looks at for each limit"""
    tuned_epochs: int
    random: int = 2
    """sub-networks drawn a step"""
    phases: tuple[int, ...] = ()
    """their epochs, where they are not equal parts"""


SCALES = {
    "smoke": Scale(
        DataConfig("digits"),
        small_space(
            (8, 16), "kernel=3,5", "expansion=3,6", "learning_rate=0.05", "batch_size=64", "augmentation=none"
        ),
        epochs=4,
        networks=4,
        alone_epochs=2,
        trials=8,
        tuned_epochs=1,
    ),
    # 256 networks of 8,000 training images at 16 pixels.
    "cpu": Scale(
        DataConfig("cifar10", image_size=16, subset=10_000, valid_fraction=0.2),
        small_space(
            (8, 16, 32),
            *("kernel=3,5", "expansion=3,6", "learning_rate=0.05", "batch_size=64", "augmentation=crop+flip"),
        ),
        epochs=30,
        networks=32,
        alone_epochs=12,
        trials=60,
        tuned_epochs=6,
    ),
    "paper": Scale(
        DataConfig("imagenet2012", image_size=224),
        (
            *SUBSPACES["ofa"],
            *TRAINED_BY[1:],
            *(
                "resolution=0",
                "epsilon=0.00001",
                "dropout=0.1",
                "learning_rate=2.6",
                "batch_size=2048",
                "augmentation=crop+flip+colour",
            ),
        ),
        epochs=605,
        networks=30,
        alone_epochs=180,
        trials=1000,
        tuned_epochs=25,
        phases=(180, 125, 150, 150),
    ),
}


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Train a supernet and networks alone; table.md, inherited.png, limits.png."""

    quantity: Literal["macs_per_image", "params", "latency_ms"] = "macs_per_image"
    """what the three limits are of; latency_ms is measured here"""
    seed: int = 0
    """of weights, order of images, drawn networks and searches"""


class Alone(NamedTuple):
    """A network trained alone, beside what it shows with the supernet's weights."""

    arch: Architecture
    quantity: float
    inherited: float
    valid: float
    test: float
    seconds: float


class Limited(NamedTuple):
    """What was found for one limit: test accuracies, NaN where random search has no network within it."""

    limit: float
    arch: Architecture
    quantity: float
    inherited: float
    test: float
    random_test: float


def main(config: Config) -> None:
    scale = SCALES[config.scale]
    space = SPACE.restrict(narrow=scale.within)
    data = dataclasses.replace(scale.data, data_dir=config.data_dir)
    if only_planned(config, __file__, lambda: works(scale, space, config)):
        return
    out = result_folder(config, "ofa_2020")
    quantities = QuantitiesSetup(space, data, (config.quantity,), seed=config.seed)
    setup = ElasticSetup(
        space,
        data,
        settings_of(scale, space, data),
        out / "supernet",
        seed=config.seed,
        vary=VARY,
        quantities=quantities,
    )
    training, valid, seconds = trained(setup)
    measure = ElasticObjective(training, valid, None, quantities())
    archs = drawn(training, scale.networks, config.seed)
    alone = [
        trained_alone(config, scale, space, arch, out / "alone" / str(k), measure, config.quantity)
        for k, arch in enumerate(archs)
    ]
    limits, spent = specialised(config, scale, setup, training, valid, out / "limits.json")
    total = seconds + spent
    within = int(np.searchsorted(np.cumsum([one.seconds for one in alone]), total, side="right"))
    limits = [beside(one, alone[:within]) for one in limits]
    tau = kendall([one.inherited for one in alone], [one.valid for one in alone])
    gaps = mean_interval(100 * (one.inherited - one.valid) for one in alone)
    gains = mean_interval(100 * (one.test - one.random_test) for one in limits)
    numbers = {
        "gap": gaps,
        "kendall_tau": Interval(float(tau.value), float(tau.low), float(tau.high), len(alone)),
        "gain": gains,
    }
    text = "\n\n".join(
        (
            f"{describe_images(scale.data)}; supernet {scale.epochs} epochs, {seconds:.0f} s; "
            f"searches and fine-tuning {spent:.0f} s; random search trained {within} networks for as long",
            f"Inherited less alone: {gaps.mean:.2f} points ({gaps.low:.2f} to {gaps.high:.2f}) over {len(alone)} "
            f"networks; Kendall's tau {tau.value:.2f} ({tau.low:.2f} to {tau.high:.2f})",
            alone_table(alone, config.quantity),
            limits_table(limits, config.quantity),
        )
    )
    figures = {"inherited.png": draw_inherited(alone), "limits.png": draw_limits(limits, config.quantity)}
    write_results(out, text, figures, config=config, claim=CLAIM, numbers=numbers, seeds=1)


def works(scale: Scale, space: SearchSpace, config: Config) -> list[Work]:
    """Its trainings alone, each of the largest network; the supernet is not among them."""
    elastic = Elastic(space, (32, 32, 3), 10, VARY)
    return [Work("alone", space, elastic.classes()[0], scale.data, scale.alone_epochs, seeds=scale.networks)]


def settings_of(scale: Scale, space: SearchSpace, data: DataConfig) -> ElasticSettings:
    dataset = data.load()
    elastic = Elastic(space, dataset.image_shape, dataset.num_classes, VARY)
    phases = shrinking(elastic, scale.epochs, first=max(1, scale.epochs // 4))
    if scale.phases:
        phases = tuple(Phase(one.vary, n) for one, n in zip(phases, scale.phases, strict=True))
    return ElasticSettings(
        phases, hyper_of(elastic.classes()[0]), random=scale.random, kernel_transformation=True
    )


def trained(setup: ElasticSetup) -> tuple[ElasticTraining, Data, float]:
    """The supernet, from its checkpoint as far as that goes; the validation images; the seconds of its training."""
    training, valid = setup.fresh()
    keeper = Checkpoints(setup.supernet)
    seconds = 0.0
    try:
        for one in training.run(valid, checkpoints=keeper):
            seconds += one.seconds
            accuracies = f"train {one.train_accuracy:.3f}, validation {one.valid_accuracy:.3f}"
            print(f"supernet, epoch {one.budget} of {setup.settings.epochs}: {accuracies}", flush=True)
    finally:
        keeper.close()
    return training, valid, seconds


def drawn(training: ElasticTraining, count: int, seed: int) -> list[Architecture]:
    """``count`` sub-networks, all different."""
    elastic, rng = training.elastic, np.random.default_rng((seed, 1))
    found: dict[Architecture, None] = {}
    for _ in range(100 * count):
        if len(found) < count:
            found[elastic.sample(training.classes[0], rng)] = None
    return list(found)


def trained_alone(
    config: Config,
    scale: Scale,
    space: SearchSpace,
    arch: Architecture,
    folder: Path,
    measure: ElasticObjective,
    quantity: str,
) -> Alone:
    done: Run = recorded_training(
        config,
        space,
        arch,
        scale.data,
        folder,
        epochs=scale.alone_epochs,
        seeds=[config.seed],
        validate=True,
    )
    final = done.finals[0]
    shown = measure.training.evaluate(arch, measure.valid)
    seconds = final.compile_seconds + final.train_seconds + final.evaluate_seconds
    return Alone(
        arch,
        known(measure, arch, quantity),
        shown.accuracy,
        final.valid_accuracy,
        final.test_accuracy,
        seconds,
    )


def known(measure: ElasticObjective, arch: Architecture, quantity: str) -> float:
    assert measure.quantities is not None
    return float(measure.quantities(arch).values[quantity])


# ------------------------------------------------------------------------------------------------ three limits


def specialised(
    config: Config, scale: Scale, setup: ElasticSetup, training: ElasticTraining, valid: Data, file: Path
) -> tuple[list[Limited], float]:
    """What evolution finds for each limit, fine-tuned and tested, from ``file`` as far as it is there; seconds."""
    assert setup.quantities is not None
    quantities = setup.quantities()
    elastic, quantity = training.elastic, config.quantity
    largest = training.classes[0]
    low, high = (float(quantities(arch).values[quantity]) for arch in (elastic.smallest(largest), largest))
    saved: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    for k, share in enumerate((0.25, 0.5, 0.75)):
        if k < len(saved):
            continue
        start = time.perf_counter()
        limit = saved[0]["ends"][0] + share * (saved[0]["ends"][1] - saved[0]["ends"][0]) if saved else 0.0
        limit = limit or low + share * (high - low)
        goals: Goals = parse_goals(["valid_accuracy"], [f"{quantity}<={limit!r}"], sign_of)
        objective = ElasticObjective(training, valid, goals, quantities)
        strategy = STRATEGIES["evolution"](
            setup.space, EvolutionConfig(seed=config.seed + k, trials=scale.trials, epochs=1)
        )
        found = best(told(strategy, objective))
        if found is None:
            raise InputError(f"{quantity}: none of {scale.trials} sub-networks keeps {limit:.4g}")
        arch = found.arch
        test = fine_tuned(scale, setup, training, arch)
        saved.append(
            {
                "ends": [low, high],
                "limit": limit,
                "arch": dict(arch),
                "quantity": float(quantities(arch).values[quantity]),
                "inherited": found.score,
                "test": test,
                "seconds": time.perf_counter() - start,
            }
        )
        file.write_text(json.dumps(saved, indent=1) + "\n")
        print(
            f"{quantity} <= {limit:.4g}: inherited {found.score:.3f}, fine-tuned test {test:.3f}", flush=True
        )
    rows = [
        Limited(
            one["limit"], Architecture(one["arch"]), one["quantity"], one["inherited"], one["test"], np.nan
        )
        for one in saved
    ]
    return rows, sum(one["seconds"] for one in saved)


def fine_tuned(scale: Scale, setup: ElasticSetup, training: ElasticTraining, arch: Architecture) -> float:
    """Test accuracy of ``arch``, cut out and trained on at a tenth of the learning rate."""
    dataset = setup.data.load()
    hyper: Hyper = dataclasses.replace(
        setup.settings.hyper, learning_rate=setup.settings.hyper.learning_rate / 10
    )
    train = on_device(dataset.train, dataset.mean, dataset.std)
    tuned = Training(
        build(setup.space, arch, dataset.num_classes), hyper, train, dataset.num_classes, TrainingConfig(),
        seed=setup.seed, epochs=scale.tuned_epochs,
    )  # fmt: skip
    tuned.compile()
    tuned.state = tuned.state._replace(variables=place(copied(training.cut(arch)), None))
    for epoch in range(scale.tuned_epochs):
        tuned.train_epoch(epoch)
    test = load_test(**setup.data.arguments())
    return tuned.test(on_device(test, dataset.mean, dataset.std)).accuracy


def beside(one: Limited, alone: Sequence[Alone]) -> Limited:
    """With the test accuracy of the network within the limit that is best by validation."""
    kept = [other for other in alone if other.quantity <= one.limit]
    return one._replace(random_test=max(kept, key=lambda other: other.valid).test) if kept else one


# ------------------------------------------------------------------------------------------------ tables, figures


def percent(share: float) -> str:
    return NO_VALUE if np.isnan(share) else f"{100 * share:.2f}"


def alone_table(alone: Sequence[Alone], quantity: str) -> str:
    lines = [["Network", quantity, "Inherited %", "Alone %", "Test %", "Seconds alone"]]
    for one in sorted(alone, key=lambda one: one.quantity):
        accuracies = map(percent, (one.inherited, one.valid, one.test))
        lines.append([short(one.arch), f"{one.quantity:.6g}", *accuracies, f"{one.seconds:.0f}"])
    return markdown(lines)


def limits_table(limits: Sequence[Limited], quantity: str) -> str:
    lines = [
        [f"{quantity} at most", "Network", quantity, "Inherited %", "Fine-tuned test %", "Random search %"]
    ]
    for one in limits:
        accuracies = map(percent, (one.inherited, one.test, one.random_test))
        lines.append([f"{one.limit:.6g}", short(one.arch), f"{one.quantity:.6g}", *accuracies])
    return markdown(lines)


def short(arch: Mapping[str, Any]) -> str:
    """``d1 k3 e6, …``: depth, kernel and expansion of each stage, of its first block where blocks differ."""
    stages = [k for k in range(1, 8) if f"depth_{k}" in arch]
    return ", ".join(
        " ".join(
            f"{name[0]}{arch.get(f'{name}_{k}', arch.get(f'{name}_{k}_1'))}"
            for name in ("depth", "kernel", "expansion")
        )
        for k in stages
    )


def draw_inherited(alone: Sequence[Alone]) -> Figure:
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.scatter([100 * one.valid for one in alone], [100 * one.inherited for one in alone], s=22)
    ends = [100 * f(one) for one in alone for f in (lambda o: o.valid, lambda o: o.inherited)]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="0.6", linewidth=1, label="equal")
    axes.set_xlabel("validation accuracy, trained alone (%)")
    axes.set_ylabel("with inherited weights (%)")
    axes.legend(frameon=False)
    style(axes)
    return figure


def draw_limits(limits: Sequence[Limited], quantity: str) -> Figure:
    figure = Figure(figsize=(5, 3.8), layout="constrained")
    axes = figure.subplots()
    at = [one.limit for one in limits]
    for label, values in (
        ("one supernet, fine-tuned", [one.test for one in limits]),
        ("random search at equal cost", [one.random_test for one in limits]),
    ):
        axes.plot(at, [100 * value for value in values], marker="o", label=label)
    axes.set_xlabel(f"limit: {quantity}")
    axes.set_ylabel("test accuracy (%)")
    axes.legend(frameon=False)
    style(axes)
    return figure


if __name__ == "__main__":
    run(main, compute=True)
