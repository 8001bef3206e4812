"""Real training as an objective: one measurement an epoch, resumable from checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nas import cpu
from nas.data import Split, load_test
from nas.data.config import DataConfig
from nas.data.encoded import Encoded
from nas.errors import InputError
from nas.nn.bridge import build
from nas.objectives.base import Trained, TrialFailed, trial_folder
from nas.space import Architecture, SearchSpace
from nas.training import processes
from nas.training.batches import Streamed, streamed
from nas.training.checkpoint import Checkpoints
from nas.training.config import TrainingConfig
from nas.training.hyper import Hyper, hyper_of
from nas.training.loop import (
    Data,
    Training,
    TrainingFailed,
    on_device,
    train,
)
from nas.training.network import outline
from nas.training.own_augment import AUGMENTS, Augment, load_named
from nas.training.population import Event, compile_together, streams, train_together
from nas.training.programs import mesh_size, timed
from nas.training.stored import use_compilation_cache
from nas.trial import Final, Measurement, Trial


class Size(NamedTuple):
    """What a network costs whatever its training: parameters, and multiply-adds of one image's forward pass."""

    params: int
    macs_per_image: int


class FinalJob(NamedTuple):
    """The arguments of `TrainObjective.final`."""

    arch: Architecture
    seed: int
    epochs: int


@dataclasses.dataclass(frozen=True)
class TrainSetup:
    """What a worker needs to build a `TrainObjective`: settings, no data; called with the checkpoint folder.

    ``defaults`` are hyperparameters (`Hyper` fields) for what an architecture leaves open, ``overrides``
    those that hold whatever it says. ``augments`` are own augmentations, filled in with those that are known here: a
    worker knows none.
    """

    space: SearchSpace
    data: DataConfig
    training: TrainingConfig
    epochs: int
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    augments: Mapping[str, Augment] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        choice = self.space.choices.get("augmentation")
        for named in getattr(choice, "values", ()):  # a space of the user's may name functions in files
            load_named(str(named))
        object.__setattr__(self, "augments", {**AUGMENTS, **self.augments})

    def __call__(self, checkpoints: Path | None) -> TrainObjective:
        return TrainObjective(self, checkpoints)


class TrainObjective:
    """Trains a trial's network, and a chosen one to the end.

    A trial's learning-rate schedule is laid out for ``setup.epochs``; its checkpoints are kept below
    ``checkpoints`` (None: none are written).
    """

    def __init__(self, setup: TrainSetup, checkpoints: Path | None) -> None:
        self.setup, self.checkpoints = setup, checkpoints
        self.space, self.config = setup.space, setup.training
        AUGMENTS.update(setup.augments)
        use_compilation_cache()
        check_devices(setup.training)
        cpu.native_status()  # builds the native kernels, where nobody has, before any time is taken
        self.dataset = setup.data.load()
        self.streams = streams_input(setup.training, self.dataset.train.images)

    @functools.cached_property
    def train_data(self) -> Data:
        return self._on_device(self.dataset.train)

    @functools.cached_property
    def valid_data(self) -> Data:
        return self._on_device(self.dataset.valid)

    @functools.cached_property
    def all_data(self) -> Data:
        """Train and validation images together, with the statistics of train."""
        if jax.process_count() == 1:
            return join(self.train_data, self.valid_data)
        a, b = self.dataset.train, self.dataset.valid
        images = np.concatenate([a.images[:], b.images[:]])
        labels = np.concatenate([a.labels, b.labels])
        return self._on_device(Split(images, labels))

    def _on_device(self, split: Any) -> Data:
        if self.streams:
            return streamed(split, self.dataset.mean, self.dataset.std)
        return on_device(split, self.dataset.mean, self.dataset.std, mesh_size(self.config.devices))

    def hyper(self, arch: Architecture) -> Hyper:
        return hyper_of({**arch, **self.setup.overrides}, **self.setup.defaults)

    def describe(self, trial: Trial) -> Size:
        return size_of(build(self.space, trial.arch, self.dataset.num_classes), self.dataset.image_shape)

    def __call__(self, trial: Trial) -> Iterator[Measurement]:
        checkpoints = None
        if self.checkpoints is not None:
            checkpoints = Checkpoints(
                trial_folder(self.checkpoints, trial.id), self.config.checkpoint_minutes
            )
        try:
            training = self.training(trial.arch, self.train_data, seed=trial.seed, epochs=self.setup.epochs)
            yield from train(
                training,
                self.valid_data,
                until=trial.budget,
                checkpoints=checkpoints,
                measured=trial.measurements,
            )
        except (TrainingFailed, InputError, jax.errors.JaxRuntimeError) as error:
            processes.check(error)
            raise TrialFailed(reason(error)) from None
        finally:
            if checkpoints is not None:
                checkpoints.close()

    def grouped(self, trials: Sequence[Trial]) -> list[list[Trial]]:
        """``trials`` in groups that `together` can train as one program, as large as memory has room for."""
        if self.streams:
            return [[trial] for trial in trials]
        groups: dict[Any, list[Trial]] = {}
        room: dict[Any, int] = {}
        for trial in trials:
            network, hyper = build(self.space, trial.arch, self.dataset.num_classes), self.hyper(trial.arch)
            own = tuple(module for module, _ in hyper.own_weight_decay)
            program = (network, hyper.batch_size, hyper.optimiser, own, hyper.augmentation)
            key = (program, trial.spent, trial.budget)
            groups.setdefault(key, []).append(trial)
            needed = outline(network, self.dataset.image_shape).training_bytes(hyper.batch_size)
            room[key] = max(1, free_memory() // needed)
        return [of[k : k + room[key]] for key, of in groups.items() for k in range(0, len(of), room[key])]

    def compile(self, trials: Sequence[Trial]) -> None:
        """See `nas.objectives.base.Together`."""
        first = trials[0]
        training = self.training(first.arch, self.train_data, seed=first.seed, epochs=self.setup.epochs)
        if len(trials) == 1:
            training.compile()
        else:
            compile_together(training, len(trials))

    @contextlib.contextmanager
    def together(self, trials: Sequence[Trial]) -> Iterator[list[Member]]:
        """Each of these, which are `grouped`, as an objective of its own; they train as one program."""
        keepers: list[Checkpoints | None] = [None] * len(trials)
        if self.checkpoints is not None:
            folders = [trial_folder(self.checkpoints, trial.id) for trial in trials]
            keepers = [Checkpoints(folder, self.config.checkpoint_minutes) for folder in folders]
        try:

            def events() -> Iterator[Event]:
                members = [
                    self.training(trial.arch, self.train_data, seed=trial.seed, epochs=self.setup.epochs)
                    for trial in trials
                ]
                known = [trial.measurements for trial in trials]
                yield from train_together(
                    members, self.valid_data, until=trials[0].budget, checkpoints=keepers, measured=known
                )

            yield [Member(self, *of) for of in zip(streams(events(), len(trials)), keepers, strict=True)]
        finally:
            for keeper in keepers:
                if keeper is not None:
                    keeper.close()

    def training(self, arch: Architecture, data: Data, *, seed: int, epochs: int) -> Training:
        """A network of ``arch`` ready to train; raises TrainingFailed where memory cannot hold it."""
        network, hyper = build(self.space, arch, self.dataset.num_classes), self.hyper(arch)
        needed = outline(network, self.dataset.image_shape).training_bytes(hyper.batch_size)
        free = free_memory()
        if needed > free:
            raise TrainingFailed(
                f"needs about {needed / 2**30:.1f} GiB at batch size {hyper.batch_size}, "
                f"{free / 2**30:.1f} GiB are free"
            )
        if (
            "pca" in hyper.augmentation
        ):  # of the training images alone, also where validation ones are in data
            data = data._replace(covariance=self.dataset.covariance)
        return Training(network, hyper, data, self.dataset.num_classes, self.config, seed=seed, epochs=epochs)

    def final(self, arch: Architecture, seed: int, epochs: int) -> Final:
        """Train ``arch`` to the end and test it; see `final_training`. Interrupted, it goes on from its checkpoint."""
        if self.checkpoints is None:
            return _drained(self.final_training(arch, seed, epochs)).final
        name = hashlib.sha256(f"{arch.to_json()} {seed} {epochs}".encode()).hexdigest()[:16]
        folder = self.checkpoints / f"final-{name}"
        final = _drained(self.final_training(arch, seed, epochs, checkpoints=folder)).final
        if processes.is_writer():
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # others are under way
                self.checkpoints.rmdir()
        return final

    def trained(self, arch: Architecture, seed: int, epochs: int) -> Trained:
        """Train ``arch`` to the end on the training images, measuring validation every epoch, and test it."""
        return _drained(self.final_training(arch, seed, epochs, validate=True))

    def final_training(
        self,
        arch: Architecture,
        seed: int,
        epochs: int,
        *,
        validate: bool = False,
        test_curve: bool = False,
        checkpoints: Path | None = None,
        measured: tuple[Measurement, ...] = (),
    ) -> Generator[Measurement, None, Final]:
        """Train ``arch`` for ``epochs``, yielding a measurement each, and test it, once, at the end.

        On train and validation images together, or with ``validate`` on train alone, validation being
        measured every epoch; with ``test_curve`` tested every epoch too (see `MeasurementWithTest`): nothing
        may be chosen by that. Goes on behind ``measured`` from the checkpoint in ``checkpoints``. A training
        that fails returns a `Final` with an ``error``.
        """
        dataset = self.dataset
        size = size_of(build(self.space, arch, dataset.num_classes), dataset.image_shape)
        final = Final(
            arch=arch, seed=seed, epochs=epochs, evaluation=self.config.evaluation, **size._asdict()
        )
        test = self._on_device(load_test(**self.setup.data.arguments()))
        keeper = Checkpoints(checkpoints, self.config.checkpoint_minutes) if checkpoints else None
        seen = list(measured)
        try:
            training = self.training(
                arch, self.train_data if validate else self.all_data, seed=seed, epochs=epochs
            )
            valid = self.valid_data if validate else None
            for measurement in train(
                training,
                valid,
                until=epochs,
                test=test if test_curve else None,
                checkpoints=keeper,
                measured=measured,
            ):
                seen.append(measurement)
                yield measurement
            tested, test_seconds = timed(lambda: training.test(test))
        except (TrainingFailed, InputError, jax.errors.JaxRuntimeError) as error:
            processes.check(error)
            return dataclasses.replace(final, error=reason(error))
        finally:
            if keeper is not None:
                keeper.close()
        return dataclasses.replace(
            final,
            test_accuracy=tested.accuracy,
            test_loss=tested.loss,
            test_top5_accuracy=tested.top5_accuracy,
            valid_accuracy=seen[-1].valid_accuracy,
            valid_loss=seen[-1].valid_loss,
            compile_seconds=sum(m.compile_seconds for m in seen),
            train_seconds=sum(m.train_seconds for m in seen),
            evaluate_seconds=sum(m.evaluate_seconds for m in seen) + test_seconds,
        )


class Member(NamedTuple):
    """A trial of several that train as one program, as an objective."""

    of: TrainObjective
    measurements: Iterator[Measurement]
    checkpoints: Checkpoints | None

    def describe(self, trial: Trial) -> Size:
        return self.of.describe(trial)

    def __call__(self, trial: Trial) -> Iterator[Measurement]:
        try:
            yield from self.measurements
        except (TrainingFailed, InputError, jax.errors.JaxRuntimeError) as error:
            processes.check(error)
            raise TrialFailed(reason(error)) from None
        finally:  # whoever hears of its end may remove its folder
            if self.checkpoints is not None:
                self.checkpoints.wait()


def _drained(training: Generator[Measurement, None, Final]) -> Trained:
    measurements = []
    while True:
        try:
            measurements.append(next(training))
        except StopIteration as end:
            return Trained(tuple(measurements), end.value)


def check_devices(training: TrainingConfig) -> None:
    """Raises InputError where this process has fewer devices than ``training`` wants."""
    if training.devices > jax.local_device_count():
        raise InputError(
            f"devices: {training.devices} is more than the {jax.local_device_count()} local ones"
        )


def streams_input(training: TrainingConfig, images: np.ndarray | Encoded) -> bool:
    """Whether the images stay on the host: as ``training`` says, else where an accelerator has no room for them, and
    where they are in files."""
    if isinstance(images, Encoded):
        if training.input == "device" or jax.process_count() > 1:
            raise InputError("input: with resize images stay in their files: one process, and input=stream")
        return True
    if jax.process_count() > 1:  # each process has its share on its devices
        if training.input == "stream":
            raise InputError("input: stream works in one process; several keep their shares on the devices")
        return False
    if training.input is not None:
        return training.input == "stream"
    return jax.default_backend() != "cpu" and images.nbytes > free_memory() // 2


def join(a: Data, b: Data) -> Data:
    """Both splits as one, with the statistics of ``a``."""
    if isinstance(a.images, Encoded):
        return a._replace(images=a.images + b.images, labels=np.concatenate([a.labels, b.labels]))  # pyright: ignore[reportArgumentType]
    if isinstance(a.images, Streamed):
        labels: Any = np.concatenate([a.labels, b.labels])
        return a._replace(images=Streamed((*a.images.parts, *b.images.parts)), labels=labels)
    images = np.concatenate([np.asarray(a.images), np.asarray(b.images)])
    labels = np.concatenate([np.asarray(a.labels), np.asarray(b.labels)])
    images, labels = jax.device_put((images, labels), a.images.sharding)
    return Data(images, labels, a.mean, a.std)


def size_of(network: Any, image_shape: tuple[int, int, int]) -> Size:
    """Parameters and multiply-adds of ``network`` for one image, from shapes alone."""
    found = outline(network, image_shape)
    return Size(found.params, found.macs_per_image)


def free_memory() -> int:
    """Bytes that a training may still take: of the first local accelerator, else of this machine."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def reason(error: Exception) -> str:
    """An exception in one line."""
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"out of memory: {line}" if "RESOURCE_EXHAUSTED" in line else line
