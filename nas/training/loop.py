"""The training loop: one network, its hyperparameters and a data set in; one measurement an epoch out."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from nas.data.encoded import Encoded
from nas.ending import listening
from nas.errors import InputError, one_of
from nas.nn.graph import run_as
from nas.training import augment
from nas.training.batches import (
    Averages,
    Data,
    ahead,
    averages,
    blank,
    count_top5,
    fetched,
    in_order,
    make_batch,
    mean_probabilities,
    on_device,
    tally,
    tally_padded,
)
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
    data_mesh,
    mesh_size,
    paced,
    place,
    timed,
)
from nas.training.steps import Steps, compiled_steps, default_steps, part
from nas.trial import Measurement, MeasurementWithTest, measurement_of

__all__ = [
    "Averages", "Data", "Training", "TrainingFailed", "averages", "make_batch", "mean_probabilities",
    "on_device", "tally", "tally_padded", "train",
]  # fmt: skip

Tree = Any
TOP5_CLASSES = 10  # of so many the five best say something
NAN_CHECK_STEPS = 100  # a lost run is noticed within so many steps, and the device seldom waits for the host


class TrainingFailed(Exception):
    """Training cannot go on; the message is the one-line reason."""


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
        devices = mesh_size(config.devices)
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
        self.steps_per_call = min(config.steps_per_call or default_steps(), self.steps)
        self.components = None
        if "pca" in hyper.augmentation.split("+"):
            if train.covariance is None:
                raise InputError("augmentation: pca needs the covariance of the training pixels")
            self.components = augment.principal_components(train.covariance)
        if "resized_crop" in hyper.augmentation.split("+") and not isinstance(train.images, Encoded):
            raise InputError(
                "augmentation: resized_crop is made of images in their files: resize=256, image_size=224"
            )
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
        self.runner = Runner(run_as(network, {"scan_blocks": config.scan_blocks}), self.shape)
        self.state: State = self.runner.init(seed)
        for module in self.shape.own_weight_decay:
            if module not in self.state.variables["params"]:
                raise one_of("weight_decay: module", module, self.state.variables["params"])

    def compile(self) -> None:
        """Compile all that training and evaluation run, on shapes alone; the state stays as it is."""
        self.runner.compile(step=self.steps_per_call == 1)
        train = blank(self.train)
        if self.steps_per_call > 1:
            steps = part(self.steps_of(0), 0, self.steps_per_call)
            data, plan = fetched(train, steps.plan)
            self._program(self._zero(), data, steps._replace(plan=plan))
        learning_rates(self.hyper, epoch=0, epochs=self.epochs, steps=self.steps)
        plan = self._plan(np.random.default_rng(0), 1, np.arange(self.hyper.batch_size))
        zero = np.float32(0)
        batch = self._batch(*fetched(train, {name: values[0] for name, values in plan.items()}), zero)
        padded = fetched(train, {"index": np.zeros(self.shape.evaluate_batch_size, np.int32)})
        padded = self._batch(*padded, zero)
        # Targets stand for logits: they have their shape.
        sums = tally(self._zero(), zero, batch.target, batch.labels)
        jax.block_until_ready(tally_padded(sums, padded.target, padded, np.int32(0)))
        if self.num_classes >= TOP5_CLASSES:
            jax.block_until_ready(count_top5(padded.target, padded.labels, np.int32(0)) + np.float32(0))
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
        steps, size = self.steps_of(epoch), self.steps_per_call
        done, sums = begun or UnderWay(0, self._zero())
        sums = place(sums, self.mesh)
        calls = range(done, self.steps, size)
        # The images are fetched while the device is at the steps before.
        for first, (data, plan) in zip(calls, ahead(self.train, steps.plan, done, size), strict=True):
            last = min(first + size, self.steps)
            chosen = part(steps, first, size)._replace(plan=plan)
            if size > 1:
                program = self._program(sums, data, chosen)
                self.state, sums = paced(
                    program(self.state, sums, data, chosen, np.int32(last - first)), self.mesh
                )
            else:
                sums = self._step(data, chosen, sums)
            if last // NAN_CHECK_STEPS > first // NAN_CHECK_STEPS or last == self.steps:
                total = float(np.asarray(sums)[0])
                if not math.isfinite(total):
                    raise TrainingFailed(f"loss is {total} by step {last} of epoch {epoch + 1}")
            after_step(UnderWay(last, sums))
        return averages(sums)

    def _step(self, data: Data, steps: Steps, sums: Array) -> Array:
        """The one step of ``steps``: ``sums`` with its."""
        plan = {name: values[0] for name, values in steps.plan.items()}
        batch = self._batch(data, plan, steps.smoothing)
        noise = Noise(steps.dropout, steps.seeds[0], steps.drop_path)
        now = Rates(steps.learning_rates[0], steps.weight_decay, steps.clip_norm, steps.own_weight_decay)
        self.state, loss, logits = self.runner.step(self.state, batch, noise, now, steps.ema_decay)
        return tally(sums, loss, logits, batch.labels)

    def _program(self, sums: Array, data: Data, steps: Steps) -> Any:
        """The program of as many steps."""
        return compiled_steps(self.runner.network, self.shape, self.state, sums, data, steps)

    def steps_of(self, epoch: int) -> Steps:
        """All steps of an epoch, as (seed, epoch) fix them: numpy arrays."""
        hyper = self.hyper
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.train.labels))
        if self.epochs_per_pass > 1:  # all parts of a pass share one order
            number, nth = divmod(epoch, self.epochs_per_pass)
            whole = np.random.default_rng((self.seed, number, 1)).permutation(len(order))
            order = whole[nth * self.steps * hyper.batch_size :]
        plan = self._plan(rng, self.steps, order)
        rates = learning_rates(hyper, epoch=epoch, epochs=self.epochs, steps=self.steps)
        return Steps(
            plan=plan,
            seeds=rng.integers(0, 2**32, self.steps, np.uint32),
            learning_rates=rates,
            smoothing=np.float32(hyper.label_smoothing),
            dropout=np.float32(hyper.dropout),
            # Liu et al. 2019, authors' code: paths drop more and more, from none at all.
            drop_path=np.float32(hyper.drop_path * epoch / self.epochs),
            weight_decay=np.float32(hyper.weight_decay),
            clip_norm=np.float32(self.config.clip_norm or math.inf),
            own_weight_decay=tuple(np.float32(number) for _, number in hyper.own_weight_decay),
            ema_decay=np.float32(self.config.ema_decay or 0),
        )

    def test(self, data: Data) -> Averages:
        """`evaluate`, with the views of each image that ``config.evaluation`` says, and of 10 classes or more top-5."""
        return self.evaluate(data, self._test_views(), top5=self.num_classes >= TOP5_CLASSES)

    def evaluate(
        self, data: Data, views: Sequence[dict[str, np.ndarray]] = (), *, top5: bool = False
    ) -> Averages:
        """Mean loss and accuracy over ``data``, with averaged parameters where they are kept; ``top5`` on request.

        With ``views`` (plans of `augment.ten_crop`) an image's class probabilities are their mean over these.
        """
        data = data._replace(covariance=None)
        variables = dict(self.state.variables)
        if self.state.ema is not None:
            variables["params"] = self.state.ema
        sums, top = self._zero(), np.float32(0)
        for count, given in in_order(data, self.shape.evaluate_batch_size, views):
            batches = [self._batch(*of, np.float32(0)) for of in given]
            seen = [self.runner.predict(variables, batch.images) for batch in batches]
            logits = mean_probabilities(seen) if views else seen[0]
            sums = tally_padded(sums, logits, batches[0], np.int32(count))
            if top5:
                top = top + count_top5(logits, batches[0].labels, np.int32(count))
        found = averages(sums)
        return found._replace(top5_accuracy=float(top) / len(data.labels)) if top5 else found

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
        return place(np.zeros(3, np.float32), self.mesh)


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
