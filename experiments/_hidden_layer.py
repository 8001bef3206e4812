"""Networks with one hidden layer as Bergstra and Bengio 2012 train them: an objective for the search engine.

A trial is plain gradient descent on mini-batches in a fixed order, the rate divided by max(1, t / t0) at update t.
Hidden weights are uniform over (-1, 1) or normal, times m / sqrt(inputs), m uniform over (0.2, 2), or times
sqrt(6 / (inputs + units)); output weights and biases begin at 0. The L2 penalty is on both weight matrices. This
follows the paper and, where that is silent, the authors' later code (hyperopt's ``hpnnet``).

Networks are padded to one of `WIDTHS`, the units beyond their own masked out, so that few programs are compiled;
all hyperparameters but the width and the batch size are arguments of these programs.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nas.data import Split, load_test
from nas.data.config import DataConfig
from nas.objectives.base import TrialFailed
from nas.space import Architecture, Categorical, LogUniform, SearchSpace, Uniform, When
from nas.training.programs import timed
from nas.trial import Final, Measurement, Trial

SPACE = SearchSpace(
    name="one_hidden_layer",
    choices={
        "preprocessing": Categorical(("raw", "normalised", "components"), changes_program=False),
        "energy": Uniform(0.5, 1.0, changes_program=False),  # share of the variance that components keep
        "hidden": LogUniform(18, 1024),  # units, to be rounded
        "activation": Categorical(("tanh", "sigmoid"), changes_program=False),
        "weights": Categorical(("uniform", "normal"), changes_program=False),
        "scale": Categorical(("both_fans", "fan_in"), changes_program=False),
        "multiplier": Uniform(0.2, 2.0, changes_program=False),
        "batch_size": Categorical((20, 100)),
        "learning_rate": LogUniform(1e-3, 10, changes_program=False),
        "anneal_start": LogUniform(300, 30_000, changes_program=False),  # updates
        "penalty": Categorical((False, True), changes_program=False),
        "l2": LogUniform(3.1e-7, 3.1e-5, changes_program=False),
    },
    conditions={
        "energy": When("preprocessing", values=("components",)),
        "multiplier": When("scale", values=("fan_in",)),
        "l2": When("penalty", values=(True,)),
    },
)
WIDTHS = (64, 128, 256, 512, 1024)
TEST_CHUNK = 10_000  # images

Numbers: TypeAlias = Array | np.ndarray


# -------------------------------------------------------------------------------------------- the network


class Params(NamedTuple):
    """float32; ``hidden`` [inputs, width], ``output`` [width, classes]."""

    hidden: Numbers
    hidden_bias: Numbers
    output: Numbers
    output_bias: Numbers


class Hyper(NamedTuple):
    """What a program takes beside data; units beyond a network's own are masked. ``squash``: see `activate`."""

    learning_rate: Numbers
    anneal_start: Numbers
    l2: Numbers
    squash: Numbers  # [2]
    inputs: Numbers  # [inputs], 1 for those in use
    units: Numbers  # [width]


def activate(x: Array, hyper: Hyper) -> Array:
    """tanh(x), or the logistic sigmoid, which is (1 + tanh(x / 2)) / 2: a tanh(b x) + 1 - a for squash (a, b)."""
    a, b = hyper.squash
    return hyper.units * (a * jnp.tanh(b * x) + 1 - a)


def logits_of(params: Params, x: Array, hyper: Hyper) -> Array:
    hidden = activate((x * hyper.inputs) @ params.hidden + params.hidden_bias, hyper)
    return hidden @ params.output + params.output_bias


def loss_of(params: Params, x: Array, labels: Array, hyper: Hyper) -> tuple[Array, Array]:
    """Mean cross-entropy, and the number of images classified correctly."""
    logits = logits_of(params, x, hyper)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -picked.mean(), (logits.argmax(axis=1) == labels).sum()


def train_epoch(
    batch_size: int,
    params: Params,
    train: tuple[Array, Array],
    valid: tuple[Array, Array],
    hyper: Hyper,
    t: Any,
) -> tuple[Params, Array]:
    """One pass in the order given, update ``t`` first; returns mean loss and accuracy of train and valid: [4]."""
    steps = len(train[1]) // batch_size
    x, labels = (part[: steps * batch_size].reshape(steps, batch_size, *part.shape[1:]) for part in train)

    def step(params: Params, given: tuple[Array, Array, Array]) -> tuple[Params, tuple[Array, Array]]:
        x, labels, t = given
        (loss, correct), grads = jax.value_and_grad(loss_of, has_aux=True)(params, x, labels, hyper)
        rate = hyper.learning_rate * hyper.anneal_start / jnp.maximum(t, hyper.anneal_start)
        decay = [2 * hyper.l2 * (leaf.ndim - 1) for leaf in params]  # of matrices
        moved = (p - rate * (g + d * p) for p, g, d in zip(params, grads, decay, strict=True))
        return Params(*moved), (loss, correct)

    params, (losses, correct) = jax.lax.scan(
        step, params, (x, labels, t + jnp.arange(steps, dtype=jnp.float32))
    )
    loss, right = loss_of(params, *valid, hyper)
    averages = [losses.mean(), correct.sum() / (steps * batch_size), loss, right / len(valid[1])]
    return params, jnp.stack(averages)


@functools.lru_cache(maxsize=256)
def compiled(function: Callable[..., Any], shapes: Any) -> Any:
    """``function`` of arguments of these shapes, compiled: kept for the life of the process, and on disk."""
    leaves, tree = shapes
    return jax.jit(function).lower(*jax.tree.unflatten(tree, leaves)).compile()


@functools.cache
def epoch_of(batch_size: int) -> Callable[..., Any]:
    return functools.partial(train_epoch, batch_size)


def program(function: Callable[..., Any], *arguments: Any) -> Any:
    leaves, tree = jax.tree.flatten(arguments)
    return compiled(function, (tuple(jax.ShapeDtypeStruct(np.shape(a), a.dtype) for a in leaves), tree))


# ----------------------------------------------------------------------------------------------- the data


class Inputs(NamedTuple):
    """What one preprocessing makes of pixels: [n, H, W, C] -> float32 [n, inputs].

    ``energy`` [inputs]: the share of the variance that the first components keep, None where it has none.
    """

    mean: np.ndarray
    matrix: np.ndarray  # [inputs, inputs], or [inputs] where each is scaled by itself
    energy: np.ndarray | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        pixels = flat(images) - self.mean
        return pixels @ self.matrix if self.matrix.ndim == 2 else pixels * self.matrix


def flat(images: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1], float32 [n, pixels]."""
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def preprocessing_of(kind: str, images: np.ndarray) -> Inputs:
    """``raw``; ``normalised``: mean 0 and variance 1 of each pixel; ``components``: those of the principal
    components, most variance first. All by the training images alone; what has no variance becomes 0."""
    pixels = flat(images)
    if kind == "raw":
        return Inputs(np.zeros(pixels.shape[1], np.float32), np.ones(pixels.shape[1], np.float32))
    mean = pixels.mean(axis=0, dtype=np.float64)
    if kind == "normalised":
        deviation = pixels.std(axis=0, dtype=np.float64)
        scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 1e-7)
        return Inputs(mean.astype(np.float32), scale.astype(np.float32))
    centred = pixels - mean
    variance, axes = np.linalg.eigh(centred.T @ centred / len(pixels))
    variance, axes = np.maximum(variance[::-1], 0), axes[:, ::-1]
    known = variance > 1e-10 * variance[0]
    scale = np.divide(1, np.sqrt(variance), out=np.zeros_like(variance), where=known)
    energy = np.cumsum(variance) / variance.sum()
    return Inputs(mean.astype(np.float32), (axes * scale).astype(np.float32), energy)


class Problem:
    """One data set on the device, under each preprocessing that is asked for."""

    def __init__(self, data: DataConfig, test_images: int) -> None:
        self.dataset, tested = data.load(), load_test(**data.arguments())
        self.tested = Split(tested.images[:test_images], tested.labels[:test_images])
        self.classes = self.dataset.num_classes
        # Before training all logits are 0, and the class answered is the first.
        self.initial_accuracy = float((np.asarray(self.dataset.valid.labels) == 0).mean())

    @functools.cache  # noqa: B019 (a problem lives as long as its process)
    def inputs(self, kind: str) -> Inputs:
        return preprocessing_of(kind, self.dataset.train.images)

    @functools.cache  # noqa: B019
    def on_device(self, kind: str, split: str) -> tuple[Array, Array]:
        """Inputs float32 [n, inputs] and labels int32 [n]."""
        part: Split = self.tested if split == "test" else getattr(self.dataset, split)
        return jax.device_put((self.inputs(kind)(part.images), np.asarray(part.labels)))

    def inputs_used(self, arch: Architecture) -> int:
        """How many inputs the network has; of components, those that keep its share of the variance."""
        inputs = self.inputs(arch["preprocessing"])
        if inputs.energy is None:
            return len(inputs.mean)
        return min(int(np.searchsorted(inputs.energy, arch["energy"])) + 1, len(inputs.mean))

    def start(self, arch: Architecture, seed: int) -> tuple[Params, Hyper]:
        """First weights, and the hyperparameters."""
        count, kept = len(self.inputs(arch["preprocessing"]).mean), self.inputs_used(arch)
        units = round(arch["hidden"])
        width = next(width for width in WIDTHS if width >= units)
        rng = np.random.default_rng(seed)
        shape = (units, kept)  # so that the first units are the same whatever their number
        drawn = rng.uniform(-1, 1, shape) if arch["weights"] == "uniform" else rng.standard_normal(shape)
        if arch["scale"] == "fan_in":
            drawn *= arch["multiplier"] / math.sqrt(kept)
        else:
            drawn *= math.sqrt(6 / (kept + units))
        hidden = np.zeros((count, width), np.float32)
        hidden[:kept, :units] = drawn.T
        zeros = (np.zeros(size, np.float32) for size in (width, (width, self.classes), self.classes))
        numbers = (arch["learning_rate"], arch["anneal_start"], arch.get("l2", 0.0))
        squash = (1.0, 1.0) if arch["activation"] == "tanh" else (0.5, 0.5)
        hyper = Hyper(
            *(np.asarray(number, np.float32) for number in numbers),
            squash=np.asarray(squash, np.float32),
            inputs=(np.arange(count) < kept).astype(np.float32),
            units=(np.arange(width) < units).astype(np.float32),
        )
        return jax.device_put(Params(hidden, *zeros)), hyper

    def test(self, params: Params, hyper: Hyper, kind: str) -> tuple[float, float]:
        """Loss and accuracy on the test images."""
        x, labels = self.on_device(kind, "test")
        totals = np.zeros(2)
        for start in range(0, len(labels), TEST_CHUNK):
            part = (params, x[start : start + TEST_CHUNK], labels[start : start + TEST_CHUNK], hyper)
            loss, correct = program(loss_of, *part)(*part)
            totals += float(loss) * len(part[2]), int(correct)
        loss, accuracy = (totals / len(labels)).tolist()
        return loss, accuracy

    def compile(self, epoch: Callable[..., Any], params: Params, hyper: Hyper, kind: str) -> Any:
        """The program of `train_epoch`; that of the test is compiled, too."""
        x, labels = self.on_device(kind, "test")
        program(loss_of, params, x[:TEST_CHUNK], labels[:TEST_CHUNK], hyper)
        splits = (self.on_device(kind, split) for split in ("train", "valid"))
        return program(epoch, params, *splits, hyper, np.float32(0))


# ---------------------------------------------------------------------------------------------- the objective


class Best(NamedTuple):
    """The weights with the best validation accuracy so far, and after how many epochs they were reached."""

    epoch: int
    params: Params
    valid_accuracy: float
    valid_loss: float


class HiddenLayerObjective:
    """Validation accuracy over epochs of the networks of `SPACE` on one `Problem`: an `Objective`.

    A training that goes on, and the weights that were best, are kept in memory; where they are not there (after a
    resumption) the same epochs are trained again.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._training: Iterator[Measurement] = iter(())
        self._done: tuple[Architecture, int, int] | None = None  # the network, seed and epochs of `_training`
        self._best: dict[tuple[Architecture, int], Best] = {}

    def __call__(self, trial: Trial) -> Iterator[Measurement]:
        if self._done != (trial.arch, trial.seed, trial.spent):
            self._train(trial.arch, trial.seed, trial.spent)
        for epoch in range(trial.spent + 1, trial.budget + 1):
            measurement = next(self._training)
            self._done = (trial.arch, trial.seed, epoch)
            yield measurement

    def describe(self, trial: Trial) -> tuple[int, int]:
        """Parameters, and multiply-adds an image."""
        inputs, units = self.problem.inputs_used(trial.arch), round(trial.arch["hidden"])
        classes = self.problem.classes
        return (inputs + 1) * units + (units + 1) * classes, (inputs + classes) * units

    def final(self, trial: Trial, epochs: int) -> Final:
        """The test of the weights after ``epochs``, which had the best validation accuracy until then."""
        key = (trial.arch, trial.seed)
        train_seconds = 0.0
        if key not in self._best or self._best[key].epoch != epochs:
            _, train_seconds = timed(lambda: self._train(*key, epochs))
        best = self._best[key]
        _, hyper = self.problem.start(*key)
        kind = trial.arch["preprocessing"]
        (test_loss, test_accuracy), test_seconds = timed(lambda: self.problem.test(best.params, hyper, kind))
        params, macs_per_image = self.describe(trial)
        return Final(
            *key,
            epochs,
            test_accuracy=test_accuracy,
            test_loss=test_loss,
            valid_accuracy=best.valid_accuracy,
            valid_loss=best.valid_loss,
            params=params,
            macs_per_image=macs_per_image,
            train_seconds=train_seconds,
            evaluate_seconds=test_seconds,
        )

    def _train(self, arch: Architecture, seed: int, epochs: int) -> None:
        """Begin a training and bring it to ``epochs``."""
        self._training = self._epochs(arch, seed)
        for _ in range(epochs):
            next(self._training)
        self._done = (arch, seed, epochs)

    def _epochs(self, arch: Architecture, seed: int) -> Iterator[Measurement]:
        """Begin a training; the measurements of its epochs without end. Raises TrialFailed once it diverges."""
        problem, kind, batch_size = self.problem, arch["preprocessing"], arch["batch_size"]
        first, hyper = problem.start(arch, seed)
        self._best[arch, seed] = Best(0, first, problem.initial_accuracy, math.log(problem.classes))
        step, compile_seconds = timed(lambda: problem.compile(epoch_of(batch_size), first, hyper, kind))
        data = problem.on_device(kind, "train"), problem.on_device(kind, "valid")
        updates = len(data[0][1]) // batch_size

        def after(params: Params, epoch: int) -> tuple[Params, Array]:
            return jax.block_until_ready(step(params, *data, hyper, np.float32(epoch * updates)))

        def measurements(params: Params, compile_seconds: float) -> Iterator[Measurement]:
            for k in itertools.count(1):
                (params, averages), seconds = timed(functools.partial(after, params, k - 1))
                loss, accuracy, valid_loss, valid_accuracy = np.asarray(averages, np.float64).tolist()
                if not math.isfinite(loss + valid_loss):
                    raise TrialFailed(
                        f"the loss is not a number after {k} epochs",
                        compile_seconds=compile_seconds,
                        train_seconds=seconds,
                    )
                if valid_accuracy > self._best[arch, seed].valid_accuracy:
                    self._best[arch, seed] = Best(k, params, valid_accuracy, valid_loss)
                yield Measurement(k, valid_accuracy, valid_loss, accuracy, loss, compile_seconds, seconds)
                compile_seconds = 0.0

        return measurements(first, compile_seconds)
