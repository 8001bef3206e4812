"""Training of an elastic supernet (`nas.oneshot.elastic`): the sandwich rule, in-place distillation (Yu et al. 2020,
"BigNAS", sections 3.1 and 3.2), progressive shrinking and kernel transformation (Cai et al. 2020, section 3.3)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nas.cpu import compiled, register
from nas.ending import listening
from nas.errors import InputError
from nas.oneshot.elastic import Elastic, Path, sub_network
from nas.space import Architecture
from nas.training import augment, optimiser
from nas.training.checkpoint import Checkpoints
from nas.training.config import TrainingConfig
from nas.training.hyper import Hyper, learning_rates
from nas.training.loop import Averages, Data, TrainingFailed, averages, make_batch, tally, tally_padded
from nas.training.network import Noise, Tree, apply_evaluate, apply_train
from nas.training.optimiser import Rates
from nas.training.programs import Batch, mean_loss, timed
from nas.trial import Measurement, measurement_of

register()

ORDER = (("kernel",), ("depth", "blocks"), ("expansion", "width"))  # in which choices are set free


@dataclasses.dataclass(frozen=True)
class Phase:
    """So many epochs in which the choices ``vary`` differ between sub-networks; all others are at their largest."""

    vary: tuple[str, ...]
    epochs: int


@dataclasses.dataclass(frozen=True)
class ElasticSettings:
    """How a supernet is trained. ``random``: sub-networks drawn a step, beside the largest and the smallest; the
    gradients of all are added. ``distil``: all but the largest learn what that says of the images, not the labels.
    Statistics of the normalisation are averages over ``recalibration`` batches."""

    phases: tuple[Phase, ...]
    hyper: Hyper = dataclasses.field(default_factory=Hyper)
    random: int = 2
    distil: bool = True
    kernel_transformation: bool = False
    recalibration: int = 8

    def __post_init__(self) -> None:
        if not self.phases or any(phase.epochs < 1 for phase in self.phases):
            raise InputError("elastic: every phase needs an epoch")
        if self.random < 0:
            raise InputError(f"elastic: random={self.random} is below 0")
        if self.recalibration < 1:
            raise InputError(f"elastic: recalibration={self.recalibration} is below 1")

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    def phase(self, epoch: int) -> Phase:
        """The one that ``epoch`` (from 0) is in; the last one for later ones."""
        for phase in self.phases:
            if epoch < phase.epochs:
                return phase
            epoch -= phase.epochs
        return self.phases[-1]


def shrinking(elastic: Elastic, epochs: int, *, first: int = 1) -> tuple[Phase, ...]:
    """Progressive shrinking: the largest network alone for ``first`` epochs, then kernels vary, then depths too, then
    expansions and widths too; equal parts of ``epochs``, the last the longest. Raises InputError for too few."""
    known = tuple(name for group in ORDER for name in group)
    groups = [tuple(name for name in group if name in elastic.vary) for group in ORDER]
    groups += [tuple(name for name in elastic.vary if name not in known)]
    groups = [group for group in groups if group]
    part = (epochs - first) // len(groups)
    if first < 1 or part < 1:
        raise InputError(f"elastic: {epochs} epochs are less than the {len(groups) + 1} phases of shrinking")
    phases, vary = [Phase((), first)], ()
    for k, group in enumerate(groups):
        vary += group
        phases.append(Phase(vary, part if k + 1 < len(groups) else epochs - first - part * (len(groups) - 1)))
    return tuple(phases)


class State(NamedTuple):
    """``params``: "network", by node, of all classes together, and "transforms" (`Elastic.transforms`)."""

    params: dict[str, dict[str, Tree]]
    opt_state: Tree


class Programs:
    """The compiled programs of one class; the sub-network is an argument of each. ``compilations`` counts them."""

    def __init__(self, network: Any) -> None:
        self.network, self.compilations = network, 0
        self._programs: dict[Any, Callable[..., Any]] = {}

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        key = (
            function.__name__,
            jax.tree.structure(arguments),
            tuple(map(np.shape, jax.tree.leaves(arguments))),
        )
        if key not in self._programs:
            self.compilations += 1
            jitted = jax.jit(functools.partial(function, self.network))
            self._programs[key] = compiled(jitted.lower(*arguments))
        return self._programs[key](*arguments)

    def gradient(
        self, params: Tree, rest: Tree, path: Path, images: Array, target: Array, noise: Noise, before: Tree
    ) -> tuple[Tree, Array, Array]:
        """``before`` plus the gradient by ``params`` of the mean loss against ``target`` [B, classes]; loss; logits."""
        return self._call(gradient, params, rest, path, images, target, noise, before)

    def statistics(self, params: Tree, rest: Tree, path: Path, images: Array) -> Tree:
        """Collections as one training batch leaves them."""
        return self._call(statistics, params, rest, path, images)

    def predict(self, params: Tree, rest: Tree, path: Path, images: Array) -> Array:
        """Logits float32 [B, classes] in evaluation mode."""
        return self._call(predict, params, rest, path, images)


def _variables(params: Tree, rest: Tree, path: Path) -> dict[str, Tree]:
    return {"params": sub_network(params["network"], path, params["transforms"]), **rest}


def gradient(
    network: Any,
    params: Tree,
    rest: Tree,
    path: Path,
    images: Array,
    target: Array,
    noise: Noise,
    before: Tree,
) -> tuple[Tree, Array, Array]:
    """See `Programs.gradient`."""

    def loss_of(params: Tree) -> tuple[Array, tuple[Array, Array]]:
        logits, _, extra = apply_train(network, _variables(params, rest, path), (images,), noise)
        loss = mean_loss(logits, target)
        total = sum(extra.losses, loss)
        for weight, head in extra.auxiliary:
            total += weight * mean_loss(head, target)
        return total, (loss, logits.astype(jnp.float32))

    (_, (loss, logits)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    return jax.tree.map(jnp.add, before, grads), loss, logits


def statistics(network: Any, params: Tree, rest: Tree, path: Path, images: Array) -> Tree:
    """See `Programs.statistics`."""
    noise = Noise(np.float32(0), np.uint32(0))
    return apply_train(network, _variables(params, rest, path), (images,), noise)[1]


def predict(network: Any, params: Tree, rest: Tree, path: Path, images: Array) -> Array:
    """See `Programs.predict`."""
    return apply_evaluate(network, _variables(params, rest, path), (images,)).astype(jnp.float32)


class ElasticTraining:
    """A supernet in training. Raises InputError where its choices are not elastic, or the classes share no weights."""

    def __init__(
        self,
        elastic: Elastic,
        settings: ElasticSettings,
        train: Data,
        config: TrainingConfig,
        *,
        seed: int,
    ) -> None:
        if config.devices > 1:
            raise InputError(f"devices: a supernet's training runs on 1, not {config.devices}")
        if config.dtype != "float32" or config.ema_decay is not None:
            raise InputError("elastic: a supernet trains in float32 and keeps no average of its parameters")
        self.elastic, self.settings, self.config, self.seed = elastic, settings, config, seed
        self.train = train._replace(covariance=None)
        hyper = settings.hyper
        self.steps = config.steps_per_epoch or len(train.labels) // hyper.batch_size
        if not 1 <= self.steps <= len(train.labels) // hyper.batch_size:
            raise InputError(
                f"batch_size: {self.steps or 1} steps of {hyper.batch_size} are more than the "
                f"{len(train.labels)} images"
            )
        for phase in settings.phases:
            elastic.members(phase.vary)
        self.classes = elastic.classes()
        self.programs = {one: Programs(elastic.network(one)) for one in self.classes}
        network: dict[str, Tree] = {}
        transforms: dict[str, Tree] = {}
        for one in self.classes:
            elastic.check(elastic.smallest(one))
            for name, tree in elastic.init(one, seed)["params"].items():
                mine = network.setdefault(name, tree)
                if jax.tree.map(np.shape, mine) != jax.tree.map(np.shape, tree):
                    raise InputError(
                        f"{elastic.space.name}: {name} has other shapes in another class: "
                        "fix a choice that is not elastic"
                    )
            if settings.kernel_transformation:
                transforms |= elastic.transforms(one)
        params = {"network": jax.tree.map(np.array, network), "transforms": transforms}
        own = optimiser.transformation(hyper.optimiser, clip=self._clips)
        self.state = State(params, optimiser.initial_state(own, params))
        self._zeros = jax.tree.map(lambda leaf: jnp.asarray(np.zeros(leaf.shape, np.float32)), params)
        self._update = jax.jit(self._updated)

    @property
    def _clips(self) -> bool:
        return self.config.clip_norm is not None

    def _updated(self, state: State, grads: Tree, rates: Rates) -> State:
        hyper = self.settings.hyper
        return State(
            *optimiser.update(hyper.optimiser, state.params, grads, state.opt_state, rates, clip=self._clips)
        )

    def _own(self, one: Architecture, tree: Tree) -> Tree:
        """The part of the parameters that the class of the largest architecture ``one`` has."""
        known, kernels = self.elastic.shapes(one).params, self.elastic.kernel_sizes(one)
        return {
            "network": {name: tree["network"][name] for name in known},
            "transforms": {name: of for name, of in tree["transforms"].items() if name in kernels},
        }

    def _rest(self, one: Architecture, value: float | None = None) -> dict[str, Tree]:
        """Statistics of the class, zero or as a network begins with them."""
        stats = self.elastic.shapes(one).batch_stats
        if not stats:
            return {}
        return {"batch_stats": jax.tree.map(lambda leaf: np.full(leaf.shape, value or 0, np.float32), stats)}

    # ------------------------------------------------------------------------------------------------ training

    def sandwich(self, epoch: int, rng: np.random.Generator) -> list[Architecture]:
        """The sub-networks of one step, the largest first: of one class, which is drawn."""
        elastic, vary = self.elastic, self.settings.phase(epoch).vary
        largest = self.classes[int(rng.integers(len(self.classes)))]
        if not vary:
            return [largest]
        drawn = [elastic.sample(largest, rng, vary) for _ in range(self.settings.random)]
        return [largest, elastic.smallest(largest, vary), *drawn]

    def gradients(
        self, archs: Sequence[Architecture], batch: Batch, noise: Noise
    ) -> tuple[Tree, Array, Array]:
        """The sum of the gradients of ``archs``, and loss and logits of the first, from which the others learn."""
        one = self.elastic.largest(archs[0])
        params, rest, programs = self._own(one, self.state.params), self._rest(one, 1), self.programs[one]
        total = self._own(one, self._zeros)
        target, shown = batch.target, None
        for arch in archs:
            path = self.elastic.path(arch)
            total, *seen = programs.gradient(params, rest, path, batch.images, target, noise, total)
            if shown is None:
                shown = seen
                if self.settings.distil:
                    target = jax.nn.softmax(seen[1])
        assert shown is not None
        return total, shown[0], shown[1]

    def step(
        self, archs: Sequence[Architecture], batch: Batch, noise: Noise, rates: Rates
    ) -> tuple[Array, Array]:
        """One update by the gradients of ``archs``; loss and logits of the first."""
        grads, loss, logits = self.gradients(archs, batch, noise)
        if len(self.classes) > 1:  # what this class has not
            grads = {kind: {**self._zeros[kind], **grads[kind]} for kind in grads}
        self.state = self._update(self.state, grads, rates)
        return loss, logits

    def train_epoch(self, epoch: int) -> Averages:
        """One pass; averages of the largest network. Raises TrainingFailed when the loss is not finite."""
        hyper, size = self.settings.hyper, self.settings.hyper.batch_size
        rng = np.random.default_rng((self.seed, epoch))
        index = rng.permutation(len(self.train.labels))[: self.steps * size].reshape(self.steps, size)
        shape = self.elastic.image_shape
        plan = {
            "index": index.astype(np.int32),
            **augment.draw(hyper.augmentation, rng, self.steps, size, shape),
        }
        rates = learning_rates(hyper, epoch=epoch, epochs=self.settings.epochs, steps=self.steps)
        seeds = rng.integers(0, 2**32, self.steps, np.uint32)
        decay, clip = np.float32(hyper.weight_decay), np.float32(self.config.clip_norm or math.inf)
        sums: Any = np.zeros(3, np.float32)
        for k in range(self.steps):
            batch = self._batch(self.train, {name: of[k] for name, of in plan.items()}, hyper.label_smoothing)
            noise = Noise(np.float32(hyper.dropout), seeds[k])
            archs = self.sandwich(epoch, rng)
            loss, logits = self.step(archs, batch, noise, Rates(rates[k], decay, clip))
            sums = tally(sums, loss, logits, batch.labels)
        found = averages(sums)
        if not math.isfinite(found.loss):
            raise TrainingFailed(f"loss is {found.loss} in epoch {epoch + 1}")
        return found

    def _batch(self, data: Data, plan: Mapping[str, Any], smoothing: float = 0.0) -> Batch:
        return make_batch(
            data._replace(covariance=None), dict(plan), np.float32(smoothing),
            num_classes=self.elastic.num_classes, dtype="float32",
        )  # fmt: skip

    # ---------------------------------------------------------------------------------------- one sub-network

    def recalibrated(self, arch: Mapping[str, Any]) -> dict[str, Tree]:
        """The statistics of ``arch``, in the places of the largest network's: the mean over the first batches of the
        training images of each batch's own (Cai et al. 2020, authors' code; Yu et al. 2020, section 3.4)."""
        one = self.elastic.largest(arch)
        zero = self._rest(one)
        if not zero:
            return {}
        size = self.settings.hyper.batch_size
        count = min(self.settings.recalibration, len(self.train.labels) // size)
        params, path, programs = (
            self._own(one, self.state.params),
            self.elastic.path(arch),
            self.programs[one],
        )

        def seen(rest: Tree, k: int) -> Tree:
            index = np.arange(k * size, (k + 1) * size, dtype=np.int32)
            images = self._batch(self.train, {"index": index}).images
            return jax.tree.map(np.asarray, programs.statistics(params, rest, path, images))

        # A layer keeps momentum * old + (1 - momentum) * batch: two old values show both parts of it.
        first = seen(zero, 0)
        momentum = jax.tree.map(np.subtract, seen(self._rest(one, 1), 0), first)
        total = jax.tree.map(np.float64, first)
        for k in range(1, count):
            total = jax.tree.map(np.add, total, seen(zero, k))
        return jax.tree.map(
            lambda sums, kept: np.float32(sums / count / (1 - np.float64(np.median(kept)))), total, momentum
        )

    def evaluate(self, arch: Mapping[str, Any], data: Data) -> Averages:
        """Mean loss and accuracy of ``arch`` with the supernet's weights over ``data``, recalibrated."""
        one, rest, path = self.elastic.largest(arch), self.recalibrated(arch), self.elastic.path(arch)
        params, size = self._own(one, self.state.params), self.config.evaluate_batch_size
        size = min(size, len(data.labels))
        sums: Any = np.zeros(3, np.float32)
        for start in range(0, len(data.labels), size):
            index = np.arange(start, min(start + size, len(data.labels)), dtype=np.int32)
            batch = self._batch(data, {"index": np.pad(index, (0, size - len(index)))})
            logits = self.programs[one].predict(params, rest, path, batch.images)
            sums = tally_padded(sums, logits, batch, np.int32(len(index)))
        return averages(sums)

    def cut(self, arch: Mapping[str, Any]) -> dict[str, Tree]:
        """The variables of the network of ``arch`` alone: the supernet's weights, statistics recalibrated."""
        own = self._own(self.elastic.largest(arch), self.state.params)
        params = sub_network(own["network"], self.elastic.path(arch), own["transforms"])
        return self.elastic.cut({"params": params, **self.recalibrated(arch)}, arch)

    # ------------------------------------------------------------------------------------------------ the run

    def restore(self, checkpoints: Checkpoints) -> list[Measurement]:
        """Go back to the newest checkpoint; returns its measurements, none where there is no checkpoint of this
        supernet."""
        if not (found := checkpoints.restore(self.state)):
            return []
        _, state, meta = found
        self.state = State(*jax.device_put(state))
        return [measurement_of(fields) for fields in meta["measurements"]]

    def run(
        self, valid: Data, *, until: int | None = None, checkpoints: Checkpoints | None = None
    ) -> Generator[Measurement, None, None]:
        """Train up to epoch ``until`` (default: all), yielding an epoch's measurement of the largest network.

        A checkpoint is written behind every epoch and gone on from, with its measurements yielded again.
        """
        until = self.settings.epochs if until is None else until
        known = [] if checkpoints is None else self.restore(checkpoints)
        yield from known[:until]
        for epoch in range(len(known), until):
            with listening() if checkpoints else contextlib.nullcontext():
                shown, train_seconds = timed(functools.partial(self.train_epoch, epoch))
                checked, seconds = timed(functools.partial(self.evaluate, self.classes[0], valid))
                measurement = Measurement(
                    budget=epoch + 1,
                    valid_accuracy=checked.accuracy,
                    valid_loss=checked.loss,
                    train_accuracy=shown.accuracy,
                    train_loss=shown.loss,
                    train_seconds=train_seconds,
                    evaluate_seconds=seconds,
                )
                known.append(measurement)
                if checkpoints is not None:
                    checkpoints.save(epoch + 1, self.state, {"measurements": [m.fields() for m in known]})
                    checkpoints.wait()
            yield measurement
