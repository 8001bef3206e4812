"""Does a neuron that has seen no label know what a cat is? python experiments/cat_neuron_2012.py --scale smoke

Le et al. 2012 trained a sparse deep autoencoder on frames of videos and found single neurons that tell faces,
bodies and cats from everything else. Here one is trained on CIFAR-10's training images. Then, on images held
out from it (CIFAR-10's test images), labels are used for the first time:

* A *neuron* is one output of one stage, at one place of one map. It *detects* a class when its response is
  above a threshold, or below it. Neuron, threshold and direction are those with the best balanced accuracy on
  one part of the held-out images, of all neurons and, as in the paper, 20 equally spaced thresholds between a
  neuron's smallest and largest response.
* What is reported is the *balanced accuracy* of that choice on the other part: the mean of the share of the
  class's images above the threshold and the share of all others below. It is 50 % for any neuron that does not
  respond to the class, and needs no base rate (the paper's plain accuracy has one of 64.8 % for faces).
* Controls, chosen and reported in the same way: the best neuron of the same network with the random weights
  that training began from, and the best of as many linear filters as there are neurons: patches of training
  images (whole images, halves and quarters of their sides, at the place where they were cut), mean removed.
* Intervals are 95 % bootstrap intervals over the reported images, drawn within each class, the choices held
  fixed: they do not hold what another training or another draw of random weights or filters would change.
* The network's fields, sparsity and learning rate were picked in nine trials of up to 720 steps, with an eye
  on labels of the first 6,000 test images. The cpu scale chooses on those, and reports on the 4,000 others.

The training is `train.py`'s, so that it is recorded and can be killed and resumed. It uses labels for one thing,
a linear readout of the last stage from which no gradient reaches the filters (tests/unit/test_autoencoder.py);
nothing here reads it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _experiment import (
    Claim,
    ExperimentConfig,
    Interval,
    Number,
    recorded_training,
    result_folder,
    run,
    write_results,
)
from jax import Array
from matplotlib.figure import Figure
from scipy.stats import rankdata

from nas.data import load_test
from nas.data.config import DataConfig
from nas.errors import InputError
from nas.objectives.base import trial_folder
from nas.objectives.train import TrainSetup, build
from nas.training.checkpoint import Checkpoints
from nas.training.config import TrainingConfig
from search_spaces.autoencoder import NAMED, SPACE

CLAIM = Claim(
    experiment="cat_neuron_2012",
    paper="Le, Ranzato, Monga, Devin, Chen, Corrado, Dean, Ng: Building high-level features using large scale "
    "unsupervised learning, ICML 2012",
    where="section 4",
    says="without labels, the best single neuron tells faces from distractors with 81.7 % accuracy (base rate "
    "64.8 %) and cats with 74.8 %; networks with random weights and linear filters do worse",
    hardware_hours="1,000 machines (16,000 cores), 3 days: 10 million 200x200 images of videos, 1 billion weights",
    past="--scale cpu (CIFAR-10, 25 epochs of 30,000 images, one seed): mean over classes of the best neuron's "
    "balanced accuracy 59.8 % learned, 57.3 % with random weights, 66.6 % for the best linear filter; cat 54.9, 54.7 "
    "and 59.5 %; two AVX-512 cores shared with other work, 9 minutes. --scale paper: not run",
    numbers=(
        Number("cat", "best single neuron for cats, balanced accuracy, %", 74.8, 1),
        Number("over_random", "mean of the classes: learned less random weights, points", side="above"),
        Number("over_linear", "mean of the classes: learned less linear filters, points", side="above"),
    ),
)

THRESHOLDS = 20  # a neuron, equally spaced between its smallest and largest response (section 4.2)
RESAMPLES = 2000
BATCH = 250
STARTS = 4  # random images that each optimal stimulus is sought from
CANDIDATES = ("learned neuron", "random-weight neuron", "linear filter")


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of it: the network, its images, how long; how many held-out images."""

    network: str
    data: DataConfig
    epochs: int
    choose_on: int
    """held-out images that detectors are chosen on, the first ones"""
    report_on: int
    """held-out images that they are reported on, the next ones"""
    stimulus_steps: int


# The paper's own protocol is the network `cat_neuron_1b`, 10 million 200x200 images and minibatches of 100; a set
# of such images that TFDS knows is trained on by data=DataConfig(NAME, image_size=200) in place of CIFAR-10.
SCALES = {
    "smoke": Scale("cat_neuron", DataConfig("cifar10", subset=600), 1, 300, 300, 30),
    "cpu": Scale("cat_neuron", DataConfig("cifar10", subset=30_000), 25, 6_000, 4_000, 300),
    "paper": Scale("cat_neuron", DataConfig("cifar10"), 200, 6_000, 4_000, 1000),
}


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """Train the autoencoder without labels, then find each class's best neuron; table.md and neurons.png."""

    seed: int = 0
    """of the weights, of the order of the images, and of the linear filters"""


class Detector(NamedTuple):
    """A response, a threshold and a direction (+1: the class is above it) that tell one class from the rest."""

    neuron: int
    threshold: float
    direction: int

    def detects(self, responses: np.ndarray) -> np.ndarray:
        """bool [n] of the responses [n, neurons]."""
        return self.direction * responses[:, self.neuron] > self.direction * self.threshold


class Reading(NamedTuple):
    """Balanced accuracies in [0, 1] on the reported images; one column a candidate (see `CANDIDATES`)."""

    accuracy: np.ndarray  # [classes + 1, candidates], the last row the mean over classes
    resampled: np.ndarray  # [resamples, classes + 1, candidates]
    area: np.ndarray  # [classes + 1, candidates], under the ROC curve


def main(config: Config) -> None:
    scale = SCALES[config.scale]
    out = result_folder(config, "cat_neuron_2012")
    data = dataclasses.replace(scale.data, data_dir=config.data_dir)
    arch, epochs = NAMED[scale.network].arch, scale.epochs
    recorded_training(config, SPACE, arch, data, out, epochs=epochs, seeds=[config.seed], validate=True)
    objective = TrainSetup(SPACE, data, TrainingConfig(), epochs=epochs)(None)
    begun = objective.training(arch, objective.train_data, seed=config.seed, epochs=epochs)
    params = {"learned": trained(out, begun.state), "random": begun.state.variables["params"]}
    dataset = objective.dataset
    network = build(SPACE, arch, dataset.num_classes)

    test = load_test(**data.arguments())
    held_out = scale.choose_on + scale.report_on  # of an order shuffled once
    pixels, labels = test.images[:held_out], test.labels[:held_out]
    images = (pixels / np.float32(255) - dataset.mean) / dataset.std
    rng = np.random.default_rng(config.seed)
    learned, random = (responses(network, params[kind], images) for kind in ("learned", "random"))
    filters = patches(dataset.train.images, learned.shape[1], rng, dataset.mean, dataset.std)
    candidates = (learned, random, images.reshape(len(images), -1) @ filters.T)
    first, rest = slice(scale.choose_on), slice(scale.choose_on, None)
    found = [choose(answers[first], labels[first], dataset.num_classes) for answers in candidates]
    reading = report([answers[rest] for answers in candidates], found, labels[rest], rng)

    table = to_markdown(reading, dataset.class_names)
    places = [place(network, dataset.image_shape, detector.neuron) for detector in found[0]]
    errors = {kind: unexplained(network, params[kind], images[:BATCH]) for kind in params}
    notes = [
        f"{learned.shape[1]} neurons, and as many linear filters; chosen on {scale.choose_on} images, "
        f"reported on {scale.report_on}; chance is 50 %.",
        f"Area under the ROC curve, mean over classes: "
        f"{', '.join(f'{n} {a:.3f}' for n, a in zip(CANDIDATES, reading.area[-1], strict=True))}.",
        f"Squares that the reconstruction leaves, stage by stage: "
        f"{', '.join(f'{a:.3f} (random weights {b:.2g})' for a, b in zip(*errors.values(), strict=True))}.",
        *(f"{name}: {where}" for name, where in zip(dataset.class_names, places, strict=True)),
    ]
    text = "\n".join([table, "", *(f"- {note}" for note in notes)])
    values = {
        "columns": CANDIDATES,
        "rows": [*dataset.class_names, "mean"],
        "balanced_accuracy": reading.accuracy.tolist(),
        "area_under_roc": reading.area.tolist(),
        "detectors": [[detector._asdict() for detector in of_class] for of_class in zip(*found, strict=True)],
        "unexplained": errors,
    }
    (out / "table.json").write_text(json.dumps(values, indent=1) + "\n")
    norm = float(np.linalg.norm(images.reshape(len(images), -1), axis=1).mean())
    stimuli = optimal_stimuli(
        network, params["learned"], found[0], dataset.image_shape, norm, scale.stimulus_steps, rng
    )
    titles = [
        f"{name}\n{100 * value:.1f} %"
        for name, value in zip(dataset.class_names, reading.accuracy[:, 0], strict=False)
    ]
    figure = draw(pixels[rest], labels[rest], learned[rest], found[0], stimuli, titles)
    write_results(
        out,
        text,
        {"neurons.png": figure},
        ["table.json"],
        config=config,
        claim=CLAIM,
        numbers=numbers(reading, dataset.class_names),
        seeds=1,
    )


def numbers(reading: Reading, class_names: Sequence[str]) -> dict[str, Interval]:
    """Of one training; intervals over resamples of the reported images."""

    def of(value: np.ndarray, drawn: np.ndarray) -> Interval:
        low, high = np.quantile(drawn, (0.025, 0.975))
        return Interval(100 * float(value), 100 * float(low), 100 * float(high), 1)

    value, drawn = reading.accuracy, reading.resampled
    found = {
        f"over_{name}": of(value[-1, 0] - value[-1, k], drawn[:, -1, 0] - drawn[:, -1, k])
        for k, name in ((1, "random"), (2, "linear"))
    }
    if "cat" in class_names:
        row = list(class_names).index("cat")
        found["cat"] = of(value[row, 0], drawn[:, row, 0])
    return found


def trained(out: Path, like: Any) -> Any:
    """The parameters at the end of the training recorded in ``out``, whose state is shaped ``like``."""
    checkpoints = Checkpoints(trial_folder(out / "checkpoints", 0))
    found = checkpoints.restore(like)
    checkpoints.close()
    if found is None:
        raise InputError(f"{out}: the last checkpoint of the training is gone; choose another --out")
    return found[1].variables["params"]


# ------------------------------------------------------------------------------------------------- responses


def outputs(network: Any, params: Any, images: Array) -> list[Array]:
    """What every stage gives for ``images`` [B, H, W, C]: [B, H', W', maps] each."""
    found = [images]
    for node in network.nodes[:-1]:  # the last one is the readout
        found.append(node.module.apply({"params": params[node.name]}, found[-1]))
    return found[1:]


def flat(stages: Sequence[Array]) -> Array:
    """The neurons of all stages side by side: [B, neurons]."""
    return jnp.concatenate([stage.reshape(stage.shape[0], -1) for stage in stages], axis=1)


def responses(network: Any, params: Any, images: np.ndarray) -> np.ndarray:
    """What every neuron answers to every image: float32 [n, neurons]."""
    call = jax.jit(lambda params, batch: flat(outputs(network, params, batch)))
    found = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        padded = np.pad(batch, ((0, BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
        found.append(np.asarray(call(params, padded))[: len(batch)])
    return np.concatenate(found)


def place(network: Any, image_shape: Sequence[int], neuron: int) -> str:
    """Where the neuron of that number stands."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    stages = jax.eval_shape(functools.partial(outputs, network), variables["params"], image)
    for number, stage in enumerate(stages, 1):
        if neuron < stage.size:
            row, column, channel = np.unravel_index(neuron, stage.shape[1:])
            return f"stage {number}, map {channel}, row {row}, column {column}"
        neuron -= stage.size
    raise IndexError(neuron)


def patches(
    images: np.ndarray, count: int, rng: np.random.Generator, mean: np.ndarray, std: np.ndarray
) -> np.ndarray:
    """``count`` linear filters [count, H * W * C]: random patches of ``images`` where they stand, else zero.

    A third each are whole images, halves and quarters of their sides; mean 0 over the patch, norm 1.
    """
    height, width, _ = images.shape[1:]
    filters = np.zeros((count, *images.shape[1:]), np.float32)
    for k, chosen in enumerate(rng.integers(0, len(images), count)):
        rows, columns = max(1, height >> k % 3), max(1, width >> k % 3)
        top, left = rng.integers(0, (height - rows + 1, width - columns + 1))
        at = (slice(top, top + rows), slice(left, left + columns))
        patch = (images[chosen][at] / np.float32(255) - mean) / std
        filters[k][at] = patch - patch.mean()
    filters = filters.reshape(count, -1)
    return filters / np.maximum(np.linalg.norm(filters, axis=1, keepdims=True), 1e-6)


def unexplained(network: Any, params: Any, images: np.ndarray) -> list[float]:
    """The squared error of each stage's reconstruction, as a share of the sum of squares of its input."""
    _, sown = network.apply({"params": params}, images, train=True, mutable=["losses"])
    inputs = [jnp.asarray(images), *outputs(network, params, jnp.asarray(images))]
    errors = [sown["losses"][node.name]["reconstruction"][0] for node in network.nodes[:-1]]
    return [float(error / jnp.mean(jnp.square(x))) for error, x in zip(errors, inputs, strict=False)]


# ------------------------------------------------------------------------------------- choosing and reporting


def choose(responses: np.ndarray, labels: np.ndarray, classes: int) -> list[Detector]:
    """The best `Detector` of each class by balanced accuracy on these responses [n, neurons]."""
    sizes = np.bincount(labels, minlength=classes)
    best = [(-np.inf, Detector(0, 0.0, 1))] * classes
    steps = THRESHOLDS + 1
    for start in range(0, responses.shape[1], 256):
        some = responses[:, start : start + 256]
        low, width = some.min(axis=0), np.ptp(some, axis=0)
        # How many thresholds lie below a response; one that equals a threshold is not above it.
        above = np.ceil((some - low) / np.maximum(width, 1e-30) * steps).astype(np.int64) - 1
        above = np.clip(above, 0, THRESHOLDS)
        cells = (np.arange(some.shape[1]) * classes + labels[:, None]) * steps + above
        counts = np.bincount(cells.ravel(), minlength=some.shape[1] * classes * steps)
        counts = counts.reshape(some.shape[1], classes, steps)
        detected = counts[..., ::-1].cumsum(axis=-1)[..., -2::-1]  # [neurons, classes, thresholds]
        others = detected.sum(axis=1, keepdims=True) - detected
        gain = (detected / sizes[:, None] - others / (len(labels) - sizes)[:, None]) / 2
        for label in range(classes):
            neuron, threshold = np.unravel_index(np.abs(gain[:, label]).argmax(), gain[:, label].shape)
            value = float(gain[neuron, label, threshold])
            if abs(value) > best[label][0]:
                at = float(low[neuron] + width[neuron] * (threshold + 1) / steps)
                best[label] = (abs(value), Detector(start + int(neuron), at, 1 if value > 0 else -1))
    return [detector for _, detector in best]


def report(
    candidates: Sequence[np.ndarray],
    found: Sequence[Sequence[Detector]],
    labels: np.ndarray,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Reading:
    """What the detectors chosen are worth on other images, by candidate: responses [n, neurons] of each."""
    classes = len(found[0])
    tasks = [
        [detector.detects(responses) for responses, detector in zip(candidates, of_class, strict=True)]
        for of_class in zip(*found, strict=True)
    ]
    hits = np.moveaxis(np.asarray(tasks, np.float32), -1, 0)  # [n, classes, candidates]
    sizes = np.bincount(labels, minlength=classes)
    rates, drawn = [], []  # of detections among the images of each class, and in each resample
    for label in range(classes):
        own = hits[labels == label].reshape(sizes[label], -1)
        weights = rng.multinomial(sizes[label], np.full(sizes[label], 1 / sizes[label]), resamples)
        rates.append(own.mean(axis=0, dtype=np.float64).reshape(1, classes, -1))
        drawn.append((weights.astype(np.float32) @ own / sizes[label]).reshape(resamples, classes, -1))

    def balanced(rates: list[np.ndarray]) -> np.ndarray:
        detected = np.stack(
            rates, axis=1
        )  # [resamples, class of the images, class of the detector, candidates]
        own = np.einsum("rccd->rcd", detected)
        others = np.einsum("rkcd,k->rcd", detected, sizes) - own * sizes[:, None]
        values = (1 + own - others / (len(labels) - sizes)[:, None]) / 2
        return np.concatenate([values, values.mean(axis=1, keepdims=True)], axis=1)

    areas = [
        [
            area_under_roc(detector.direction * responses[:, detector.neuron], labels == label)
            for responses, detector in zip(candidates, of_class, strict=True)
        ]
        for label, of_class in enumerate(zip(*found, strict=True))
    ]
    return Reading(balanced(rates)[0], balanced(drawn), np.asarray([*areas, np.mean(areas, axis=0)]))


def area_under_roc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The chance that an image of the class scores above another one, ties counting half (Mann and Whitney)."""
    ranks = rankdata(scores)
    count = int(positive.sum())
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))


# ------------------------------------------------------------------------------------------- table and figure


def to_markdown(reading: Reading, class_names: Sequence[str]) -> str:
    """Balanced accuracies in percent, and by how much the learned neuron differs, with 95 % intervals."""
    learned, *controls = CANDIDATES
    head = ["Class", *(f"{name} %" for name in CANDIDATES), *(f"{learned} - {name}" for name in controls)]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for k, name in enumerate((*class_names, "mean")):
        cells = [f"{100 * value:.1f}" for value in reading.accuracy[k]]
        for control in range(1, len(CANDIDATES)):
            difference = reading.accuracy[k, 0] - reading.accuracy[k, control]
            drawn = reading.resampled[:, k, 0] - reading.resampled[:, k, control]
            low, high = np.percentile(100 * drawn, (2.5, 97.5))
            cells.append(f"{100 * difference:+.1f} [{low:+.1f}, {high:+.1f}]")
        rows.append([name, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def optimal_stimuli(
    network: Any,
    params: Any,
    detectors: Sequence[Detector],
    image_shape: Sequence[int],
    norm: float,
    steps: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """The inputs [detectors, H, W, C] of that norm to which each neuron responds most in its direction.

    Projected gradient ascent from `STARTS` random inputs each, the best kept (section 4.4). The paper's norm is
    1; here it is that of a mean image, because the constants under pooling and normalisation are set for such.
    """
    neurons = np.repeat([detector.neuron for detector in detectors], STARTS)
    directions = jnp.repeat(jnp.asarray([float(detector.direction) for detector in detectors]), STARTS)

    def project(x: Array) -> Array:
        return norm * x / jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2, 3), keepdims=True) + 1e-12)

    def responded(x: Array) -> Array:
        return directions * flat(outputs(network, params, x))[jnp.arange(len(neurons)), neurons]

    @jax.jit
    def ascend(x: Array, rate: Array) -> Array:
        slope = jax.grad(lambda x: jnp.sum(responded(x)))(x)
        return project(x + rate * project(slope))

    x = project(jnp.asarray(rng.standard_normal((len(neurons), *image_shape)), jnp.float32))
    for step in range(steps):
        x = ascend(x, jnp.float32(0.1 * (1 - step / steps)))
    best = np.asarray(jax.jit(responded)(x)).reshape(-1, STARTS).argmax(axis=1)
    found: np.ndarray = np.asarray(x).reshape(-1, STARTS, *image_shape)
    return found[np.arange(len(best)), best]


def draw(
    images: np.ndarray,
    labels: np.ndarray,
    responses: np.ndarray,
    detectors: Sequence[Detector],
    stimuli: np.ndarray,
    titles: Sequence[str],
    columns: int = 12,
) -> Figure:
    """A row a class: its neuron's optimal stimulus, then the images that it answers most to, framed if its own."""
    figure = Figure(figsize=(0.62 * (columns + 3.2), 0.66 * len(detectors) + 0.5), layout="constrained")
    axes = figure.subplots(len(detectors), columns + 1, squeeze=False, width_ratios=[1.15, *[1] * columns])
    for label, detector in enumerate(detectors):
        order = np.argsort(-detector.direction * responses[:, detector.neuron], kind="stable")[:columns]
        stimulus = 0.5 + stimuli[label] / (2 * np.abs(stimuli[label]).max())
        for column, panel in enumerate(axes[label]):
            panel.set_xticks([])
            panel.set_yticks([])
            own = column and labels[order[column - 1]] == label
            for spine in panel.spines.values():
                spine.set(visible=bool(own), color="#009E73", linewidth=2.5)
            shown = images[order[column - 1]] if column else stimulus
            panel.imshow(shown, cmap="gray", interpolation="nearest")
        axes[label, 0].set_ylabel(titles[label], rotation=0, ha="right", va="center", fontsize=8.5)
    axes[0, 0].set_title("optimal\nstimulus", fontsize=8)
    title = "held-out images of the largest response (framed: of the class)"
    note = axes[0, 1].text(0, 1.12, title, fontsize=8, va="bottom", transform=axes[0, 1].transAxes)
    note.set_in_layout(False)  # else its column would be as wide as the text
    return figure


if __name__ == "__main__":
    run(main, compute=True)
