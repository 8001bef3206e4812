"""Many trainings of one network as one program: `jax.vmap` over all in which they differ.

Trials that share a network and its shapes differ in seeds, rates and what they draw, all of which are arguments of the
program (Lim et al. 2020 and others train populations so). A small network leaves most of an accelerator idle, and a
program of sixteen compiles about as long as one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nas.training.batches import Averages, Data, averages, make_batch, tally_padded
from nas.training.checkpoint import Checkpoints
from nas.training.loop import Training, TrainingFailed, train
from nas.training.network import Tree, apply_evaluate
from nas.training.programs import State, paced, place, timed
from nas.training.steps import compiled_steps, part
from nas.trial import Measurement, measurement_of

CALL_STEPS = 50  # of all members
MEMBERS = 16  # of a program on an accelerator, unless told otherwise


def default_trials() -> int:
    """Trials a program on this platform: one on CPU, where a convolution of many kernels is slower than many."""
    return 1 if jax.default_backend() == "cpu" else MEMBERS


class Population:
    """Trainings of one network, one `Shape` and epochs of one length, advanced together; their states are stacked."""

    def __init__(self, members: Sequence[Training]) -> None:
        self.members, first = tuple(members), members[0]
        self.network, self.shape, self.train, self.mesh = (
            first.runner.network, first.shape, first.train, first.mesh,
        )  # fmt: skip
        self.size = _call_steps(first)
        self.state: State = stacked([member.state for member in members])

    def __len__(self) -> int:
        return len(self.members)

    @functools.cached_property
    def program(self) -> Any:
        """The steps, compiled: no later call compiles but the first evaluation's."""
        return compile_together(self.members[0], len(self))

    def train_epoch(self, epoch: int) -> list[Averages]:
        """The epoch of every member, as `Training.train_epoch` has it; a loss may be no number."""
        steps = [member.steps_of(epoch) for member in self.members]
        sums = self._zero()
        total = self.members[0].steps
        for first in range(0, total, self.size):
            now = jax.tree.map(
                lambda *leaves: np.stack(leaves), *(part(of, first, self.size) for of in steps)
            )
            count = np.int32(min(self.size, total - first))
            self.state, sums = paced(self.program(self.state, sums, self.train, now, count), self.mesh)
        return [averages(of) for of in np.asarray(sums)]

    def evaluate(self, data: Data) -> list[Averages]:
        """`Training.evaluate` of every member on the same batches."""
        data, size = data._replace(covariance=None), self.shape.evaluate_batch_size
        variables = dict(self.state.variables)
        if self.state.ema is not None:
            variables["params"] = self.state.ema
        sums = self._zero()
        for start in range(0, len(data.labels), size):
            index = np.arange(start, min(start + size, len(data.labels)), dtype=np.int32)
            batch = make_batch(
                data,
                {"index": np.pad(index, (0, size - len(index)))},
                np.float32(0),
                num_classes=self.shape.num_classes,
                dtype=self.shape.dtype,
                mesh=self.mesh,
            )
            sums = _tally_members(self.network, sums, variables, batch, np.int32(len(index)))
        return [averages(of) for of in np.asarray(sums)]

    def member(self, k: int) -> State:
        """The state of one, as numpy arrays."""
        return jax.tree.map(lambda leaf: np.asarray(leaf[k]), self.state)

    def _zero(self) -> Array:
        return place(np.zeros((len(self), 3), np.float32), self.mesh)


def compile_together(member: Training, count: int) -> Any:
    """The program of as many steps of ``count`` trainings like ``member``, compiled from shapes alone."""
    of_one = member.state, np.zeros(3, np.float32), part(member.steps_of(0), 0, _call_steps(member))
    state, sums, steps = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((count, *np.shape(leaf)), leaf.dtype), of_one
    )
    runner = member.runner
    return compiled_steps(runner.network, member.shape, state, sums, member.train, steps, members=count)


def _call_steps(member: Training) -> int:
    return min(member.config.steps_per_call or CALL_STEPS, member.steps)


def stacked(states: Sequence[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@functools.partial(jax.jit, static_argnums=0)
def _tally_members(network: Any, sums: Array, variables: Tree, batch: Any, count: Array) -> Array:
    def one(sums: Array, variables: Tree) -> Array:
        logits = apply_evaluate(network, variables, (batch.images,)).astype(jnp.float32)
        return tally_padded(sums, logits, batch, count)

    return jax.vmap(one)(sums, variables)


Event = tuple[int, Measurement | TrainingFailed]


def train_together(
    members: Sequence[Training],
    valid: Data,
    *,
    until: int,
    checkpoints: Sequence[Checkpoints | None],
    measured: Sequence[tuple[Measurement, ...]],
) -> Iterator[Event]:
    """`nas.training.loop.train` of all ``members`` up to epoch ``until``: pairs of a member and what it comes to.

    Members whose checkpoints are not equally far, or in the middle of an epoch, are trained in groups that are. Seconds
    are a member's share. One whose loss is not finite fails, and the others go on.
    """
    starts: list[Hashable] = []
    known = [list(of) for of in measured]
    for k, (member, keeper) in enumerate(zip(members, checkpoints, strict=True)):
        found = keeper.restore(member.state) if keeper else None
        start: Hashable = 0
        if found:
            epoch, state, meta = found
            start = ("alone", k) if "steps" in meta else epoch
            if start == epoch:
                member.state = place(state, member.mesh)
                for fields in meta["measurements"][len(known[k]) : until]:
                    known[k].append(measurement_of(fields))
                    yield k, known[k][-1]
        starts.append(start)
    for start in dict.fromkeys(starts):
        group = [k for k, of in enumerate(starts) if of == start]
        if isinstance(start, int) and len(group) > 1:
            yield from _from(start, group, members, valid, until, checkpoints, known)
            continue
        for k in group:
            try:
                for measurement in train(
                    members[k], valid, until=until, checkpoints=checkpoints[k], measured=tuple(known[k])
                ):
                    yield k, measurement
            except TrainingFailed as failure:
                yield k, failure


def _from(
    start: int,
    group: Sequence[int],
    members: Sequence[Training],
    valid: Data,
    until: int,
    checkpoints: Sequence[Checkpoints | None],
    measured: Sequence[Sequence[Measurement]],
) -> Iterator[Event]:
    """Those of ``group``, all behind epoch ``start``."""
    population = Population([members[k] for k in group])
    known = [list(measured[k]) for k in group]
    lost: set[int] = set()
    _, compile_seconds = timed(lambda: population.program)
    for epoch in range(start, until):
        results, train_seconds = timed(functools.partial(population.train_epoch, epoch))
        checked, evaluate_seconds = timed(functools.partial(population.evaluate, valid))
        share = [seconds / len(group) for seconds in (compile_seconds, train_seconds, evaluate_seconds)]
        compile_seconds = 0.0
        for place_in, (k, result, seen) in enumerate(zip(group, results, checked, strict=True)):
            if k in lost:
                continue
            if not math.isfinite(result.loss):
                lost.add(k)
                yield k, TrainingFailed(f"loss is {result.loss} in epoch {epoch + 1}")
                continue
            new = epoch >= len(known[place_in])
            if new:
                known[place_in].append(
                    Measurement(epoch + 1, seen.accuracy, seen.loss, result.accuracy, result.loss, *share)
                )
            if keeper := checkpoints[k]:
                fields = [m.fields() for m in known[place_in]]
                keeper.save(epoch + 1, population.member(place_in), {"measurements": fields})
            if new:
                yield k, known[place_in][-1]
        if len(lost) == len(group):
            return


def streams(events: Iterator[Event], count: int) -> list[Iterator[Measurement]]:
    """Each member's own measurements out of those of all, drawing on ``events`` as far as it needs.

    A stream raises its member's `TrainingFailed`; all of them raise what ``events`` raises.
    """
    waiting: list[list[Measurement | TrainingFailed]] = [[] for _ in range(count)]
    raised: list[Exception] = []

    def stream(k: int) -> Iterator[Measurement]:
        while True:
            while not waiting[k]:
                if raised:
                    raise raised[0]
                try:
                    member, event = next(events)
                except StopIteration:
                    return
                except Exception as error:
                    raised.append(error)
                    raise
                waiting[member].append(event)
            found = waiting[k].pop(0)
            if isinstance(found, TrainingFailed):
                raise found
            yield found

    return [stream(k) for k in range(count)]
