"""The training loop: one network, its hyperparameters and a data set in; one measurement an epoch out."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from nas.data import Split
from nas.ending import listening
from nas.errors import InputError, one_of
from nas.training import augment
from nas.training.checkpoint import Checkpoints
from nas.training.config import TrainingConfig
from nas.training.hyper import Hyper, learning_rates
from nas.training.network import Noise
from nas.training.optimiser import Rates
from nas.training.programs import (
    Batch,
    Runner,
    Shape,
    State,
    count_correct,
    data_mesh,
    place,
    timed,
)
from nas.trial import Measurement, MeasurementWithTest, measurement_of

Tree = Any
NAN_CHECK_STEPS = 100  # a lost run is noticed within so many steps, and the device seldom waits for the host


class TrainingFailed(Exception):
    """Training cannot go on; the message is the one-line reason."""


class Data(NamedTuple):
    """One split on the devices, with what turns its pixels into inputs."""

    images: Array  # uint8 [n, H, W, C]
    labels: Array  # int32 [n]
    mean: Array  # float32 [C]
    std: Array  # float32 [C]
    covariance: np.ndarray | None = None  # [C, C] of the training pixels, for the augmentation pca


def on_device(split: Split, mean: np.ndarray, std: np.ndarray, devices: int = 1) -> Data:
    """``split`` where training reads it, whole on each device; on CPU the memory map itself if it can be."""
    mesh = data_mesh(devices)
    where = NamedSharding(mesh, PartitionSpec()) if mesh else None
    values = (split.images, split.labels, np.asarray(mean), np.asarray(std))
    return Data(*(jax.device_put(value, where, may_alias=True) for value in values))


@functools.partial(jax.jit, static_argnames=("num_classes", "dtype", "mesh"))
def make_batch(
    data: Data,
    plan: dict[str, Array],
    smoothing: Array | float,
    *,
    num_classes: int,
    dtype: str,
    mesh: Any = None,
) -> Batch:
    """The batch that ``plan`` (one step of `augment.draw`, and ``index`` int32 [B]) describes.

    Targets are one-hot, smoothed by Szegedy et al. 2016 (``smoothing`` spread over all classes).
    """
    given = (data.images, plan["index"], data.mean, data.std)
    if "shift" in plan:
        images = augment.gather_augmented(*given, plan["shift"], plan["flip"], plan["cutout"])
    else:
        images = augment.gather_images(*given)
    if "colour" in plan:
        images = augment.adjust_colour(images, plan["colour"], data.mean, data.std)
    if "offset" in plan:
        images = images + (plan["offset"] / data.std)[:, None, None, :]
    labels, target = augment.gather_targets(data.labels, plan["index"], num_classes, smoothing)
    if "mix" in plan:
        images, target = (plan["mix"] * a + (1 - plan["mix"]) * a[::-1] for a in (images, target))
        labels = jnp.where(plan["mix"] < 0.5, labels[::-1], labels)  # of the image that is most to be seen
    batch = Batch(images.astype(dtype), target, labels)
    if mesh is None:
        return batch
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("data")))


@jax.jit
def tally(sums: Array, loss: Array, logits: Array, labels: Array) -> Array:
    """``sums`` float32 [3] (of losses, correct, images) plus those of a training batch."""
    count = jnp.float32(len(labels))
    return sums + jnp.stack([loss * count, count_correct(logits, labels), count])


@jax.jit
def tally_padded(sums: Array, logits: Array, batch: Batch, count: Array) -> Array:
    """``sums`` plus those of an evaluation batch of which the first ``count`` images count."""
    real = jnp.arange(len(batch.labels)) < count
    losses = optax.softmax_cross_entropy(logits, batch.target)
    correct = count_correct(logits, jnp.where(real, batch.labels, -1))
    return sums + jnp.stack([jnp.sum(jnp.where(real, losses, 0)), correct, count.astype(jnp.float32)])


@jax.jit
def mean_probabilities(logits: list[Array]) -> Array:
    """Logits [B, classes] whose softmax is the mean of the softmaxes of ``logits``."""
    return jax.nn.logsumexp(jax.nn.log_softmax(jnp.stack(logits)), axis=0)


class Averages(NamedTuple):
    loss: float
    accuracy: float


def averages(sums: Array | np.ndarray) -> Averages:
    loss, correct, count = np.asarray(sums, np.float64).tolist()
    return Averages(loss / count, correct / count)


class UnderWay(NamedTuple):
    """How far an epoch is: the steps done, and `tally`'s sums of them."""

    steps: int
    sums: Array | np.ndarray


class Training:
    """One network in training: `train_epoch` and `evaluate` over a state that can be saved and restored.

    Raises InputError where the sizes cannot be: fewer training images than one batch, a batch that the
    devices cannot share evenly.
    """

    def __init__(
        self,
        network: Any,
        hyper: Hyper,
        train: Data,
        num_classes: int,
        config: TrainingConfig,
        *,
        seed: int,
        epochs: int,
    ) -> None:
        devices = config.devices or jax.local_device_count()
        evaluate_batch_size = -(-config.evaluate_batch_size // devices) * devices
        if hyper.batch_size % devices:
            raise InputError(f"batch_size: {hyper.batch_size} is not a multiple of devices={devices}")
        self.steps = len(train.labels) // hyper.batch_size
        if not self.steps:
            raise InputError(f"batch_size: {hyper.batch_size} is more than the {len(train.labels)} images")
        if (config.steps_per_epoch or 0) > self.steps:
            raise InputError(
                f"steps_per_epoch: {config.steps_per_epoch} is more than the {self.steps} of a pass over "
                f"{len(train.labels)} images at batch_size={hyper.batch_size}"
            )
        self.epochs_per_pass = self.steps // (config.steps_per_epoch or self.steps)
        self.steps = config.steps_per_epoch or self.steps
        self.components = None
        if "pca" in hyper.augmentation.split("+"):
            if train.covariance is None:
                raise InputError("augmentation: pca needs the covariance of the training pixels")
            self.components = augment.principal_components(train.covariance)
        train = train._replace(covariance=None)
        self.hyper, self.train, self.config, self.seed, self.epochs = hyper, train, config, seed, epochs
        self.num_classes = num_classes
        self.mesh = data_mesh(devices)
        self.shape = Shape(
            image_shape=tuple(train.images.shape[1:]),  # type: ignore[arg-type]
            num_classes=num_classes,
            batch_size=hyper.batch_size,
            evaluate_batch_size=evaluate_batch_size,
            optimiser=hyper.optimiser,
            clip=config.clip_norm is not None,
            ema=config.ema_decay is not None,
            dtype=config.dtype,
            devices=devices,
            own_weight_decay=tuple(module for module, _ in hyper.own_weight_decay),
        )
        self.runner = Runner(network, self.shape)
        self.state: State = self.runner.init(seed)
        for module in self.shape.own_weight_decay:
            if module not in self.state.variables["params"]:
                raise one_of("weight_decay: module", module, self.state.variables["params"])

    def compile(self) -> None:
        """Compile all that training and evaluation run, on shapes alone; the state stays as it is."""
        self.runner.compile()
        learning_rates(self.hyper, epoch=0, epochs=self.epochs, steps=self.steps)
        plan = self._plan(np.random.default_rng(0), 1, np.arange(self.hyper.batch_size))
        zero = np.float32(0)
        batch = self._batch(self.train, {name: values[0] for name, values in plan.items()}, zero)
        padded = self._batch(self.train, {"index": np.zeros(self.shape.evaluate_batch_size, np.int32)}, zero)
        # Targets stand for logits: they have their shape.
        sums = tally(self._zero(), zero, batch.target, batch.labels)
        jax.block_until_ready(tally_padded(sums, padded.target, padded, np.int32(0)))
        if views := self._test_views():
            jax.block_until_ready(mean_probabilities([padded.target] * len(views)))

    def train_epoch(
        self,
        epoch: int,
        begun: UnderWay | None = None,
        after_step: Callable[[UnderWay], None] = lambda under_way: None,
    ) -> Averages:
        """One pass over the training images in an order and with draws that (seed, epoch) fix.

        With ``config.steps_per_epoch``, the next so many steps of a pass. Goes on from what was ``begun``;
        ``after_step`` may keep the state with what it is given. Returns the averages over the steps. Raises
        TrainingFailed when the loss is not finite.
        """
        hyper = self.hyper
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.train.labels))
        if self.epochs_per_pass > 1:  # all parts of a pass share one order
            number, part = divmod(epoch, self.epochs_per_pass)
            whole = np.random.default_rng((self.seed, number, 1)).permutation(len(order))
            order = whole[part * self.steps * hyper.batch_size :]
        plan = self._plan(rng, self.steps, order)
        rates = learning_rates(hyper, epoch=epoch, epochs=self.epochs, steps=self.steps)
        seeds = rng.integers(0, 2**32, self.steps, np.uint32)
        # Liu et al. 2019, authors' code: paths drop more and more, from none at all.
        dropping = hyper.drop_path * epoch / self.epochs
        numbers = [hyper.dropout, dropping, hyper.label_smoothing, hyper.weight_decay]
        dropout, drop_path, smoothing, decay = (np.float32(number) for number in numbers)
        own = tuple(np.float32(number) for _, number in hyper.own_weight_decay)
        clip = np.float32(self.config.clip_norm or math.inf)
        ema_decay = np.float32(self.config.ema_decay or 0)
        done, sums = begun or UnderWay(0, self._zero())
        for k in range(done, self.steps):
            batch = self._batch(self.train, {name: values[k] for name, values in plan.items()}, smoothing)
            noise, now = Noise(dropout, seeds[k], drop_path), Rates(rates[k], decay, clip, own)
            self.state, loss, logits = self.runner.step(self.state, batch, noise, now, ema_decay)
            sums = tally(sums, loss, logits, batch.labels)
            if (k + 1) % NAN_CHECK_STEPS == 0 or k + 1 == self.steps:
                total = float(np.asarray(sums)[0])
                if not math.isfinite(total):
                    raise TrainingFailed(f"loss is {total} by step {k + 1} of epoch {epoch + 1}")
            after_step(UnderWay(k + 1, sums))
        return averages(sums)

    def test(self, data: Data) -> Averages:
        """`evaluate`, with the views of each image that ``config.evaluation`` says."""
        return self.evaluate(data, self._test_views())

    def evaluate(self, data: Data, views: Sequence[dict[str, np.ndarray]] = ()) -> Averages:
        """Mean loss and accuracy over ``data``, with averaged parameters where they are kept.

        With ``views`` (plans of `augment.ten_crop`) an image's class probabilities are their mean over these.
        """
        data = data._replace(covariance=None)
        variables = dict(self.state.variables)
        if self.state.ema is not None:
            variables["params"] = self.state.ema
        size = self.shape.evaluate_batch_size
        sums = self._zero()
        for start in range(0, len(data.labels), size):
            index = np.arange(start, min(start + size, len(data.labels)), dtype=np.int32)
            chosen = {"index": np.pad(index, (0, size - len(index)))}
            seen = []
            for view in views or ({},):
                batch = self._batch(data, chosen | view, np.float32(0))
                seen.append(self.runner.predict(variables, batch.images))
            logits = mean_probabilities(seen) if views else seen[0]
            sums = tally_padded(sums, logits, batch, np.int32(len(index)))
        return averages(sums)

    def _test_views(self) -> list[dict[str, np.ndarray]]:
        if self.config.evaluation == "centre":
            return []
        shape = self.shape
        return augment.ten_crop(shape.evaluate_batch_size, shape.image_shape, self.config.crop_fraction)

    def _plan(self, rng: np.random.Generator, steps: int, order: np.ndarray) -> dict[str, np.ndarray]:
        size = self.hyper.batch_size
        shape = self.shape.image_shape
        plan = augment.draw(self.hyper.augmentation, rng, steps, size, shape, self.components)
        return {"index": order[: steps * size].reshape(steps, size).astype(np.int32), **plan}

    def _batch(self, data: Data, plan: dict[str, Any], smoothing: Any) -> Batch:
        return make_batch(
            data, plan, smoothing, num_classes=self.num_classes, dtype=self.shape.dtype, mesh=self.mesh
        )

    def _zero(self) -> Array:
        return jax.device_put(np.zeros(3, np.float32))


def train(
    training: Training,
    valid: Data | None,
    *,
    until: int,
    test: Data | None = None,
    checkpoints: Checkpoints | None = None,
    measured: tuple[Measurement, ...] = (),
) -> Iterator[Measurement]:
    """Train up to epoch ``until``, yielding one measurement an epoch after the last of ``measured``.

    A checkpoint is written after every epoch, and in the middle of one when it is due. Training resumes from the newest
    one, with its measurements; without one it begins again from the start, which repeats the same numbers and yields
    only those not in ``measured``. Where the process is asked to end, raises `Terminated` behind a checkpoint.
    Without ``valid`` the validation fields are NaN; with ``test``, which only a final training has, every measurement
    is a `MeasurementWithTest`. Raises TrainingFailed.
    """
    known = list(measured)
    kind = Measurement if test is None else MeasurementWithTest
    _, compile_seconds = timed(training.compile)
    start, begun, begun_seconds = 0, None, 0.0
    found = checkpoints.restore(training.state) if checkpoints else None
    if found:
        start, state, meta = found
        training.state = place(state, training.mesh)
        if "steps" in meta:
            begun = UnderWay(meta["steps"], np.asarray(meta["sums"], np.float32))
            begun_seconds = meta["train_seconds"]
        saved = [measurement_of(fields) for fields in meta["measurements"]]
        for measurement in saved[len(known) : until]:
            known.append(measurement)
            yield measurement
    for epoch in range(start, until):
        # Whatever ends the process does it behind the checkpoint of this epoch, or of its steps so far.
        with listening() if checkpoints else contextlib.nullcontext():
            began = time.perf_counter() - begun_seconds
            keep = functools.partial(_keep, training, checkpoints, epoch, known, began)
            result, train_seconds = timed(functools.partial(training.train_epoch, epoch, begun, keep))
            train_seconds += begun_seconds
            begun, begun_seconds = None, 0.0
            checked, evaluate_seconds = Averages(math.nan, math.nan), 0.0
            if valid is not None:
                checked, evaluate_seconds = timed(functools.partial(training.evaluate, valid))
            if epoch < len(known):
                continue
            tested = {}
            if test is not None:
                seen, test_seconds = timed(functools.partial(training.test, test))
                tested = {"test_accuracy": seen.accuracy, "test_loss": seen.loss}
                evaluate_seconds += test_seconds
            measurement = kind(
                budget=epoch + 1,
                valid_accuracy=checked.accuracy,
                valid_loss=checked.loss,
                train_accuracy=result.accuracy,
                train_loss=result.loss,
                compile_seconds=compile_seconds,
                train_seconds=train_seconds,
                evaluate_seconds=evaluate_seconds,
                **tested,
            )
            compile_seconds = 0.0
            known.append(measurement)
            if checkpoints:
                checkpoints.save(epoch + 1, training.state, {"measurements": [m.fields() for m in known]})
        yield measurement


def _keep(
    training: Training,
    checkpoints: Checkpoints | None,
    epoch: int,
    known: list[Measurement],
    began: float,
    under_way: UnderWay,
) -> None:
    """Keep an epoch that ``began`` then (`time.perf_counter`), where that is due."""
    if checkpoints and checkpoints.due():
        meta = {
            "measurements": [m.fields() for m in known],
            "steps": under_way.steps,
            "sums": np.asarray(under_way.sums).tolist(),
            "train_seconds": time.perf_counter() - began,
        }
        checkpoints.keep(epoch, training.state, meta, under_way.steps)
