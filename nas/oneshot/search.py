"""One search with a supernet, from data to derived architecture: one `SupernetMeasurement` an epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from nas.ending import listening
from nas.errors import InputError
from nas.nn.graph import run_as
from nas.nn.layout import Layout
from nas.nn.supernet import Supernet
from nas.oneshot import monitor
from nas.oneshot.bilevel import Point, Problem, State
from nas.oneshot.programs import Search
from nas.oneshot.relaxation import RELAXATIONS, Levels, entropy, given
from nas.oneshot.schedules import levels_at, rates_at
from nas.oneshot.selection import drawn, evolved
from nas.oneshot.settings import Settings, check_fit
from nas.oneshot.steps import SearchSteps, tally
from nas.space import Architecture
from nas.training import augment
from nas.training.checkpoint import Checkpoints
from nas.training.config import TrainingConfig
from nas.training.loop import (
    Averages,
    Data,
    TrainingFailed,
    averages,
    make_batch,
    tally_padded,
)
from nas.training.network import Noise
from nas.training.programs import Batch, Shape, data_mesh, mesh_size, place, timed
from nas.training.steps import default_steps
from nas.trial import Measurement, SupernetMeasurement, measurement_of

CURVATURE_STEPS = 10  # of Lanczos: products with the second derivatives that an eigenvalue takes
PROBED = 10  # architectures that a selection judges in each epoch but the last
FIRST_BATCHES = 2  # of evaluation, by which a selection judges all; then the best FINALISTS by all images
FINALISTS = 5


class _Stage(NamedTuple):
    """A part of a search in which the network is the same: epochs ``first`` to ``end``, not included."""

    number: int
    first: int
    end: int
    layout: Layout
    search: Search
    initial: State
    """which the first step consumes"""


@dataclasses.dataclass(frozen=True)
class SupernetSearch:
    """What one search is about.

    ``sizes`` are those of the supernet (`nas.nn.supernet.Supernet.sizes`). The training images are halved: weights
    step on one half, alphas on the other (Liu et al. 2019, section 3.1); a selection by accuracy reads the second.
    ``valid`` are images that neither saw. Raises InputError where settings do not fit the space or the data.
    """

    supernet: Supernet
    settings: Settings
    sizes: dict[str, int]
    train: Data
    valid: Data
    num_classes: int
    config: TrainingConfig
    seed: int
    epochs: int

    def __post_init__(self) -> None:
        half = len(self.train.labels) // 2
        check_fit(self.settings, self.config, half, self._devices, self.epochs)
        if self.settings.deeper and "cells" not in self.sizes:
            raise InputError(f"supernet: deeper={self.settings.deeper} needs a supernet made of cells")

    # ------------------------------------------------------------------------------------------------- the loop

    def run(
        self,
        until: int,
        *,
        checkpoints: Checkpoints | None = None,
        measured: Sequence[Measurement] = (),
    ) -> Generator[SupernetMeasurement, None, None]:
        """Search up to epoch ``until``, yielding the measurements that are not in ``measured``.

        A checkpoint is written behind every epoch, and in the middle of one when it is due, and gone on from; without
        one the search begins again, which repeats the same numbers. Raises TrainingFailed where a loss is not finite.
        """
        known = [m for m in measured if isinstance(m, SupernetMeasurement)]
        done = [] if checkpoints is None else checkpoints.epochs()
        epoch = min(done[-1] if done else 0, len(known) + 1)
        state: Any = None  # a State, of the stage under way
        under_way = checkpoints is not None and checkpoints.under_way
        # Where the record is behind, a stage that it does not know yet begins: its checkpoint is passed over.
        at = min(epoch if under_way else max(epoch - 1, 0), len(known))
        stage, compile_seconds = timed(lambda: self._stage(at, known))
        begun: dict[str, Any] = {}  # an epoch that a checkpoint has a part of
        if checkpoints is not None and (epoch or under_way):
            found = checkpoints.restore(stage.initial)
            if found is None:
                epoch = 0
                stage, compile_seconds = timed(lambda: self._stage(0, known))
            else:
                epoch, restored, meta = found
                begun = meta if "steps" in meta else {}
                state = place(restored, self._mesh)
                for fields in meta["measurements"][len(known) : until]:
                    known.append(_restored(fields))
                    yield known[-1]
        repeated: list[SupernetMeasurement] = known[:epoch]  # of this run, from its own first epoch on
        while epoch < until and not (repeated and repeated[-1].last):
            if epoch >= stage.end:
                stage, seconds = timed(functools.partial(self._stage, epoch, repeated))
                compile_seconds, state = compile_seconds + seconds, None
            if state is None:
                state = stage.initial
            with listening() if checkpoints else contextlib.nullcontext():
                began = time.perf_counter() - begun.get("train_seconds", 0.0)
                keep = functools.partial(_keep, checkpoints, epoch, repeated, began)
                state, shown = self._epoch(stage, state, epoch, begun, keep)
                train_seconds, begun = time.perf_counter() - began, {}
                seen, evaluate_seconds = timed(functools.partial(self._look, stage, state, epoch, repeated))
                measurement = dataclasses.replace(
                    seen,
                    train_loss=shown.loss,
                    train_accuracy=shown.accuracy,
                    compile_seconds=compile_seconds,
                    train_seconds=train_seconds,
                    evaluate_seconds=evaluate_seconds,
                )
                compile_seconds = 0.0
                epoch += 1
                if epoch <= len(known):
                    measurement = known[epoch - 1]
                repeated.append(measurement)
                if checkpoints is not None:
                    checkpoints.save(epoch, state, {"measurements": [m.fields() for m in repeated]})
            if epoch > len(known):
                yield measurement

    def _stage(self, epoch: int, measured: Sequence[SupernetMeasurement]) -> _Stage:
        """The stage that ``epoch`` (from 0) is in, compiled; ``measured`` are the epochs before it."""
        settings, kept = self.settings, self.settings.kept
        count = max(1, len(kept))
        bounds = [round(k * self.epochs / count) for k in range(count + 1)]
        number = next(k for k in range(count) if epoch < bounds[k + 1])
        layout = self.supernet.layout(
            partial_channels=settings.partial_channels, edge_weights=settings.edge_weights
        )
        for k in range(number + 1 if kept else 0):
            if k:
                layout = layout.strongest(_vector(layout, measured[bounds[k] - 1]), kept[k])
            elif max(len(of) for _, of in layout.choices) > kept[0]:
                raise InputError(
                    f"supernet: stages={settings.stages} starts with fewer candidates than there are"
                )
        sizes: dict[str, Any] = dict(self.sizes)
        if settings.deeper:
            sizes["cells"] += number * settings.deeper
        if self.supernet.drops_skips and any(settings.skip_dropouts):
            sizes["skip_dropout"] = True
        problem = Problem(
            layout,
            given if settings.selection != "strongest" else RELAXATIONS[settings.relaxation],
            settings.order,
            settings.alpha_scale,
            settings.perturbation_steps,
        )
        size = min(self.config.evaluate_batch_size, len(self.valid.labels))
        size = -(-size // self._devices) * self._devices
        shape = Shape(
            image_shape=tuple(self.train.images.shape[1:]),  # type: ignore[arg-type]
            num_classes=self.num_classes,
            batch_size=settings.batch_size,
            evaluate_batch_size=size,
            optimiser="momentum",
            clip=True,
            dtype=self.config.dtype,
            devices=self._devices,
        )
        ways = {"batched": settings.batched, "remat": settings.remat, "scan_blocks": self.config.scan_blocks}
        network = run_as(self.supernet.build(layout.opened(), self.num_classes, **sizes), ways)
        search = Search(network, problem, shape, "auto" if self._steps_per_call == 1 else "step")
        curvature = ("curvature" if self._exact_curvature else "by_mixing",) if self._curved else ()
        initial = search.prepare(self.seed + number, curvature, step=self._steps_per_call == 1)
        stage = _Stage(number, bounds[number], bounds[number + 1], layout, search, initial)
        if self._steps_per_call > 1:
            self._compile_steps(stage)
        return stage

    def _compile_steps(self, stage: _Stage) -> None:
        """Compile what an epoch of ``stage`` runs, on shapes alone."""
        count, rng = self._steps_per_call, np.random.default_rng(0)
        plans = [self._plan(rng, half, count) for half in self._halves]
        levels = Levels(*np.zeros((3, count), np.float32))
        chosen = SearchSteps(plans[0], plans[1], np.zeros(count, np.uint32), levels)
        if self.settings.selection != "strongest":
            chosen = chosen._replace(alphas=np.zeros((count, stage.layout.size), np.float32))
        sums = place(np.zeros(3, np.float32), self._mesh)
        for learn in {True, self.settings.warmup == 0}:
            rates = rates_at(self.settings, stage.number, 0, stage.end - stage.first)
            stage.search.compile_steps(stage.initial, sums, self._resident, chosen, rates, learn=learn)

    @property
    def _devices(self) -> int:
        return mesh_size(self.config.devices)

    @functools.cached_property
    def _mesh(self) -> Mesh | None:
        return data_mesh(self._devices)

    @property
    def _steps_per_call(self) -> int:
        """Of an epoch's steps, those that are one program."""
        return min(self.config.steps_per_call or default_steps(), self._steps)

    @property
    def _steps(self) -> int:
        """Of an epoch: a pass over the images for weights, or its first ``config.steps_per_epoch``."""
        return self.config.steps_per_epoch or len(self._halves[0]) // self.settings.batch_size

    @property
    def _curved(self) -> bool:
        return self.settings.eigenvalue and self.settings.selection == "strongest"

    @property
    def _exact_curvature(self) -> bool:
        """Differences of gradients in bfloat16 would be rounding."""
        return self.config.dtype != "float32"

    @functools.cached_property
    def _halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Images for weights and for the architecture: int32 [n // 2] each, apart."""
        order = np.random.default_rng(self.seed).permutation(len(self.train.labels)).astype(np.int32)
        half = len(order) // 2
        return order[:half], order[half : 2 * half]

    # -------------------------------------------------------------------------------------------- an epoch

    def _epoch(
        self,
        stage: _Stage,
        state: State,
        epoch: int,
        begun: Mapping[str, Any],
        keep: Callable[[State, int, Array, np.random.Generator], None],
    ) -> tuple[State, Averages]:
        """One pass over the images for weights, the rest of one that was ``begun``; the averages of its batches."""
        settings, rng = self.settings, np.random.default_rng((self.seed, epoch))
        size = settings.batch_size
        steps = self._steps
        plans = [self._plan(rng, half, steps) for half in self._halves]
        seeds = rng.integers(0, 2**32, steps, np.uint32)
        within = (epoch - stage.first) / (stage.end - stage.first)
        learns = within >= settings.warmup
        rates = rates_at(settings, stage.number, epoch - stage.first, stage.end - stage.first)
        sums = place(np.asarray(begun.get("sums", np.zeros(3)), np.float32), self._mesh)
        if begun:
            rng.bit_generator.state = begun["rng"]
        done, at_once = begun.get("steps", 0), self._steps_per_call
        levels = [levels_at(settings, (epoch + k / steps) / self.epochs) for k in range(steps)]
        if at_once > 1:
            every = SearchSteps(plans[0], plans[1], seeds, Levels(*np.asarray(levels, np.float32).T))
            data = self._resident
            for first in range(done, steps, at_once):
                count, chosen = min(at_once, steps - first), every.part(first, at_once)
                if settings.selection != "strongest":
                    drawn = [self._one_hot(stage, self._drawn(stage, rng)) for _ in range(count)]
                    drawn += drawn[-1:] * (at_once - count)
                    chosen = chosen._replace(alphas=np.asarray(drawn, np.float32))
                state, sums = stage.search.steps(state, sums, data, chosen, rates, count, learn=learns)
                keep(state, first + count, sums, rng)
        for k in range(done, steps) if at_once == 1 else ():
            train, valid = (self._batch({name: of[k] for name, of in plan.items()}) for plan in plans)
            if settings.selection != "strongest":
                state = state._replace(alphas=jnp.asarray(self._one_hot(stage, self._drawn(stage, rng))))
            at = rates._replace(**levels[k]._asdict())
            state, metrics = stage.search.step(state, train, valid, at, seeds[k], learn=learns)
            sums = tally(sums, metrics, np.float32(size))
            keep(state, k + 1, sums, rng)
        shown = averages(sums)
        if not math.isfinite(shown.loss):
            raise TrainingFailed(f"loss is {shown.loss} in epoch {epoch + 1}")
        return state, shown

    @property
    def _resident(self) -> Data:
        """The images that steps take theirs from, without what no step of a search reads."""
        return self.train._replace(covariance=None)

    def _plan(self, rng: np.random.Generator, half: np.ndarray, steps: int) -> dict[str, np.ndarray]:
        size = self.settings.batch_size
        index = rng.permutation(half)[: steps * size].reshape(steps, size)
        height, width, channels = self.train.images.shape[1:]
        shape = (height, width, channels)
        return {"index": index, **augment.draw(self.settings.augmentation, rng, steps, size, shape)}

    def _batch(self, plan: dict[str, Any], data: Data | None = None) -> Batch:
        data = (self.train if data is None else data)._replace(covariance=None)
        return make_batch(
            data, plan, np.float32(0), num_classes=self.num_classes, dtype=self.config.dtype, mesh=self._mesh
        )

    # ------------------------------------------------------------------------------------ behind an epoch

    def _look(
        self, stage: _Stage, state: State, epoch: int, before: Sequence[SupernetMeasurement]
    ) -> SupernetMeasurement:
        """What the search has come to: derived architecture, its signs, and accuracy on ``valid``."""
        layout, problem = stage.layout, stage.search.problem
        most = None if self.settings.most_skips < 0 else self.settings.most_skips
        if self.settings.selection == "strongest":
            mixing = jax.jit(problem.relaxation.expected, static_argnums=0)(layout, state.alphas)
            derived = self.supernet.derive(layout, np.asarray(mixing), most_skips=most)
            evenness = float(entropy(layout, mixing))
            judged = mixing
            if problem.relaxation.samples:
                alone = self._one_hot(stage, derived)
                if self.settings.edge_weights:
                    edges = np.asarray(mixing)
                    alone[: layout.candidates] *= edges[layout.edge_of]
                    alone[layout.candidates :] = edges[layout.candidates :]
                judged = jnp.asarray(alone)
        else:
            derived = self._selected(stage, state, epoch)
            mixing = judged = jnp.asarray(self._one_hot(stage, derived))
            evenness = math.nan
        checked = self._accuracy(stage, state, judged, self.valid, np.arange(len(self.valid.labels)))
        skips, eigenvalue = self._skips(derived), math.nan
        if self._curved:
            eigenvalue = self._eigenvalue(stage, state)
        weights = {
            name: {str(value): round(weight, 6) for value, weight in of.items()}
            for name, of in layout.weights(mixing).items()
        }
        if self.settings.edge_weights:
            edges = np.asarray(mixing, np.float64)[layout.candidates :]
            names = itertools.chain(*layout.node_inputs)
            weights["edges"] = {
                name: round(float(weight), 6) for name, weight in zip(names, edges, strict=True)
            }
        signs = [monitor.Epoch(m.skips, m.eigenvalue) for m in before] + [monitor.Epoch(skips, eigenvalue)]
        counts = self.settings.stop_rule(signs)
        if counts is not None and counts < len(before):
            derived, skips = before[counts].derived, before[counts].skips
        return SupernetMeasurement(
            budget=epoch + 1,
            valid_accuracy=checked.accuracy,
            valid_loss=checked.loss,
            train_accuracy=math.nan,
            train_loss=math.nan,
            derived=derived,
            weights=weights,
            entropy=evenness,
            skips=skips,
            eigenvalue=eigenvalue,
            stopped=counts is not None and epoch + 1 < self.epochs,
        )

    def _skips(self, arch: Architecture) -> int:
        supernet = self.supernet
        if supernet.skip is None:
            return 0
        return monitor.count(arch, supernet.skip, next(iter(supernet.cells.values())))

    def _eigenvalue(self, stage: _Stage, state: State) -> float:
        """On the first images of the architecture's half, as they are."""
        index = self._halves[1][: self.settings.batch_size]
        noise = Noise(dropout=np.float32(0), seed=np.uint32(0))
        mixing = jax.device_put(
            np.zeros(stage.layout.size, np.float32)
        )  # the products put theirs in its place
        at = Point(state.params, mixing, state.rest, self._batch({"index": index}), noise)
        product = monitor.hessian_vector(
            stage.search.derivatives(), stage.search.problem, at, state.alphas, exact=self._exact_curvature
        )
        return monitor.dominant_eigenvalue(product, stage.layout.size, steps=CURVATURE_STEPS)

    def _accuracy(
        self,
        stage: _Stage,
        state: State,
        mixing: Array,
        data: Data,
        index: np.ndarray,
        batches: int | None = None,
    ) -> Averages:
        """Of the supernet with ``mixing`` on images ``index`` of ``data``, or so many batches of them.

        Normalised by each batch's own statistics: running ones belong to no one architecture (Guo et al. 2020,
        section 3.4). The last batch is filled up with the first images, which count once.
        """
        size = stage.search.shape.evaluate_batch_size
        sums = place(np.zeros(3, np.float32), self._mesh)
        for start in range(0, len(index), size)[:batches]:
            chosen = index[start : start + size]
            full = np.concatenate([chosen, np.resize(index, size - len(chosen))]).astype(np.int32)
            batch = self._batch({"index": full}, data)
            logits = stage.search.predict(state, mixing, batch.images)
            sums = tally_padded(sums, logits, batch, np.int32(len(chosen)))
        return averages(sums)

    # -------------------------------------------------------------------------------- selection by accuracy

    def _drawn(self, stage: _Stage, rng: np.random.Generator) -> Architecture:
        return self._architecture(stage, rng.random(stage.layout.size))

    def _architecture(self, stage: _Stage, genes: np.ndarray) -> Architecture:
        """The architecture that random numbers, one a candidate, are strongest for."""
        return self.supernet.derive(stage.layout, genes)

    def _one_hot(self, stage: _Stage, arch: Architecture) -> np.ndarray:
        return stage.layout.one_hot(self.supernet.operations(arch))

    def _selected(self, stage: _Stage, state: State, epoch: int) -> Architecture:
        """The best architecture with shared weights, by accuracy on the architecture's half of the images."""
        rng = np.random.default_rng((self.seed, epoch, 1))

        def accuracy(arch: Architecture, batches: int | None) -> float:
            mixing = jnp.asarray(self._one_hot(stage, arch))
            return self._accuracy(stage, state, mixing, self.train, self._halves[1], batches).accuracy

        search, s = drawn, self.settings
        if s.selection == "evolution":
            search = functools.partial(
                evolved, population=s.population, parents=s.parents, mutation=s.mutation
            )
        known = search(
            rng,
            stage.layout,
            functools.partial(self._architecture, stage),
            lambda arch: accuracy(arch, FIRST_BATCHES),
            s.candidates if epoch + 1 == self.epochs else min(PROBED, s.candidates),
        )
        best = sorted(known, key=lambda arch: -known[arch])[:FINALISTS]
        return max(best, key=lambda arch: accuracy(arch, None)) if epoch + 1 == self.epochs else best[0]


# --------------------------------------------------------------------------------------------------- small parts


def _vector(layout: Layout, measurement: SupernetMeasurement) -> np.ndarray:
    """The weights of a measurement as a vector of ``layout``."""
    found = np.zeros(layout.size)
    for name, values in layout.choices:
        first = layout.open(name).first
        for k, value in enumerate(values):
            found[first + k] = measurement.weights[name][str(value)]
    return found


def _keep(
    checkpoints: Checkpoints | None,
    epoch: int,
    measured: Sequence[Measurement],
    began: float,
    state: State,
    steps: int,
    sums: Array,
    rng: np.random.Generator,
) -> None:
    """Keep an epoch that ``began`` then (`time.perf_counter`) after so many steps, where that is due."""
    if checkpoints and checkpoints.due():
        meta = {
            "measurements": [m.fields() for m in measured],
            "steps": steps,
            "sums": np.asarray(sums).tolist(),
            "rng": rng.bit_generator.state,
            "train_seconds": time.perf_counter() - began,
        }
        checkpoints.keep(epoch, state, meta, steps)


def _restored(fields: dict[str, Any]) -> SupernetMeasurement:
    measurement = measurement_of(fields)
    assert isinstance(measurement, SupernetMeasurement)
    return measurement
