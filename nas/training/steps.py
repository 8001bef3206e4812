"""Several training steps as one program, and several trainings as one: what an accelerator wants to be given.

A step of a small network takes an accelerator less time than the host takes to start it. So the data of a pass lie on
the device, the host says which images and draws make up the next steps, and one program carries them out in a loop.
With a leading axis on all that may differ between trainings of one network, `jax.vmap` trains many at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

from nas.training import optimiser
from nas.training.batches import Data, make_batch, tally
from nas.training.network import Noise, Tree
from nas.training.optimiser import Rates
from nas.training.programs import Shape, State, compiled, data_mesh, named, on_mesh, train_step
from nas.training.stored import stored

CALL_STEPS = 50  # of a program on an accelerator, unless told otherwise


class Steps(NamedTuple):
    """What the next steps take beside the data. Of each training the first axis of ``plan`` etc. is the step's."""

    plan: dict[str, Any]  # [K, …]: rows of `nas.training.augment.draw`, and index int32 [K, B]
    seeds: Any  # uint32 [K]
    learning_rates: Any  # float32 [K]
    smoothing: ArrayLike
    dropout: ArrayLike
    drop_path: ArrayLike
    weight_decay: ArrayLike
    clip_norm: ArrayLike
    own_weight_decay: tuple[ArrayLike, ...]
    ema_decay: ArrayLike


def part(steps: Steps, first: int, size: int) -> Steps:
    """``size`` of the steps, from ``first`` on; where they end before, the last again, not to be counted."""
    rows = np.minimum(np.arange(first, first + size), len(np.asarray(steps.seeds)) - 1)
    plan = {name: values[rows] for name, values in steps.plan.items()}
    seeds, rates = np.asarray(steps.seeds)[rows], np.asarray(steps.learning_rates)[rows]
    return steps._replace(plan=plan, seeds=seeds, learning_rates=rates)


def default_steps() -> int:
    """Steps a call on this platform: one on CPU, where convolutions inside a loop are 5 to 20 times slower."""
    return 1 if jax.default_backend() == "cpu" else CALL_STEPS


def train_steps(
    network: Any,
    shape: Shape,
    mesh: Mesh | None,
    state: State,
    sums: Array,
    data: Data,
    steps: Steps,
    count: ArrayLike,
) -> tuple[State, Array]:
    """The first ``count`` of K steps one after another: the new state, and ``sums`` with theirs (`tally`)."""

    def step(k: Array, carried: tuple[State, Array]) -> tuple[State, Array]:
        state, sums = carried
        plan = {name: values[k] for name, values in steps.plan.items()}
        batch = make_batch(
            data, plan, steps.smoothing, num_classes=shape.num_classes, dtype=shape.dtype, mesh=mesh
        )
        noise = Noise(steps.dropout, jnp.asarray(steps.seeds)[k], steps.drop_path)
        rate = jnp.asarray(steps.learning_rates)[k]
        rates = Rates(rate, steps.weight_decay, steps.clip_norm, steps.own_weight_decay)
        state, loss, logits = train_step(network, shape, state, batch, noise, rates, steps.ema_decay)
        return state, tally(sums, loss, logits, batch.labels)

    return jax.lax.fori_loop(0, count, step, (state, sums))


def compiled_steps(
    network: Any,
    shape: Shape,
    state: State,
    sums: Array,
    data: Data,
    steps: Steps,
    members: int | None = None,
) -> Callable[..., tuple[State, Array]]:
    """`train_steps` for arguments shaped like these, compiled; the state is consumed.

    ``members``: of so many trainings at once, everything but the data and ``count`` having their axis first.
    """
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), (state, sums, data, steps)
    )
    leaves, structure = jax.tree.flatten(arguments)
    key = tuple((leaf.shape, leaf.dtype.name) for leaf in leaves)
    return _compiled(network, shape, members, structure, key)


@functools.lru_cache(maxsize=64)
def _compiled(network: Any, shape: Shape, members: int | None, structure: Any, key: tuple[Any, ...]) -> Any:
    leaves = [jax.ShapeDtypeStruct(*leaf) for leaf in key]
    lower = functools.partial(_lower, network, shape, members, structure.unflatten(leaves))
    source = optimiser.source(shape.optimiser)
    if source is None:
        return compiled(lower("train_steps"))
    return stored("train_steps", (shape, source, members, str(structure), key), network, lower)


def _lower(
    network: Any, shape: Shape, members: int | None, arguments: tuple[Any, ...], name: str
) -> jax.stages.Lowered:
    return lower_steps(network, shape, arguments, members=members, name=name)


def lower_steps(
    network: Any,
    shape: Shape,
    arguments: tuple[State, Tree, Data, Steps],
    *,
    members: int | None = None,
    mesh: Mesh | None = None,
    name: str = "train_steps",
) -> jax.stages.Lowered:
    """`train_steps` lowered for abstract ``arguments``, on this platform or the devices of ``mesh``."""
    over = mesh or data_mesh(shape.devices)
    function: Callable[..., Any] = functools.partial(train_steps, network, shape, over)
    if members is not None:
        function = jax.vmap(function, in_axes=(0, 0, None, 0, None))
    count = jax.ShapeDtypeStruct((), jnp.int32)
    placed = on_mesh((*arguments, count), over)
    return jax.jit(named(name, function), donate_argnums=0).lower(*placed)
