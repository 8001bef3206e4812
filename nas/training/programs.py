"""The compiled programs of one training run: a training step and a prediction.

Programs are pure: ``(state, arguments) -> (state, …)``; everything that may differ between two trials without
changing the network is an argument. They are kept for the life of the process, and on disk.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from nas.cpu import compiled, register
from nas.training import optimiser
from nas.training.network import (
    Noise,
    Tree,
    abstract,
    abstract_noise,
    apply_evaluate,
    apply_train,
    initialise,
    outline,
)
from nas.training.optimiser import Rates
from nas.training.stored import stored

register()  # convolution and pooling on CPU are lowered to native kernels


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the programs of a run depend on beside the network; equal values share compiled programs."""

    image_shape: tuple[int, int, int]
    num_classes: int
    batch_size: int
    evaluate_batch_size: int
    optimiser: str
    clip: bool = False
    ema: bool = False
    dtype: str = "float32"
    devices: int = 1
    own_weight_decay: tuple[str, ...] = ()  # the modules that have one


class State(NamedTuple):
    """All that training changes. ``variables`` holds "params" and other Flax collections."""

    variables: dict[str, Tree]
    opt_state: Tree  # optax's
    ema: Tree | None  # the averaged parameters, where they are kept


class Batch(NamedTuple):
    """One step's data."""

    images: Array  # [B, H, W, C] in the compute dtype
    target: Array  # float32 [B, classes], probabilities
    labels: Array  # int32 [B]


def mean_loss(logits: Float[Array, "batch class"], target: Float[Array, "batch class"]) -> Float[Array, ""]:
    """Mean cross-entropy over the batch."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), target).mean()


def count_correct(logits: Float[Array, "batch class"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
    """How many rows of ``logits`` are largest at their label."""
    return (logits.argmax(-1) == labels).sum(dtype=jnp.float32)


def train_step(
    network: Any,
    shape: Shape,
    state: State,
    batch: Batch,
    noise: Noise,
    rates: Rates,
    ema_decay: ArrayLike,
) -> tuple[State, Array, Array]:
    """The whole update as a pure function: the new state, the mean loss and the logits [B, classes].

    The loss is the cross-entropy of the output alone, comparable with an evaluation's; what a network sows
    (`Extra`) adds to the gradient only.
    """
    params = state.variables["params"]
    rest = {name: tree for name, tree in state.variables.items() if name != "params"}

    def loss_of(params: Tree) -> tuple[Array, tuple[Array, Array, dict[str, Tree]]]:
        logits, updated, extra = apply_train(network, {"params": params, **rest}, (batch.images,), noise)
        loss = total = mean_loss(logits, batch.target)
        for weight, head in extra.auxiliary:
            total += weight * mean_loss(head, batch.target)
        return sum(extra.losses, total), (loss, logits, updated)

    (total, (loss, logits, updated)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    params, opt_state = optimiser.update(
        shape.optimiser, params, grads, state.opt_state, rates,
        own=shape.own_weight_decay, clip=shape.clip, loss=total,
    )  # fmt: skip
    ema = None
    if state.ema is not None:
        ema = optax.incremental_update(params, state.ema, 1 - jnp.asarray(ema_decay))
    return State({"params": params, **updated}, opt_state, ema), loss, logits.astype(jnp.float32)


def abstract_arguments(
    network: Any, shape: Shape, mesh: Mesh | None
) -> tuple[State, Batch, Noise, Rates, jax.ShapeDtypeStruct]:
    """Shapes and shardings of `train_step`'s traced arguments: batches split over devices, all else copied."""
    variables = outline(network, shape.image_shape).variables
    opt_state = jax.eval_shape(_optimiser(shape).init, variables["params"])
    state = State(variables, opt_state, variables["params"] if shape.ema else None)
    size = shape.batch_size
    batch = Batch(
        abstract((size, *shape.image_shape), shape.dtype),
        abstract((size, shape.num_classes)),
        abstract((size,), "int32"),
    )
    number = abstract(())
    own = (number,) * len(shape.own_weight_decay)
    rates = Rates(number, number, number, own)
    return on_mesh((state, batch, abstract_noise(), rates, number), mesh)


def on_mesh(arguments: Tree, mesh: Mesh | None) -> Tree:
    """Abstract ``arguments`` with their shardings: a `Batch` is split over the devices, all else on each of them.

    What has a sharding keeps it.
    """
    whole = NamedSharding(mesh, PartitionSpec()) if mesh else None
    split = NamedSharding(mesh, PartitionSpec("data")) if mesh else None

    def placed(part: Tree) -> Tree:
        sharding = split if isinstance(part, Batch) else whole
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding or sharding), part
        )

    return jax.tree.map(placed, arguments, is_leaf=lambda part: isinstance(part, Batch))


def _optimiser(shape: Shape) -> optax.GradientTransformation:
    return optimiser.transformation(shape.optimiser, own=shape.own_weight_decay, clip=shape.clip)


def init_state(network: Any, shape: Shape, seed: int) -> State:
    variables = initialise(network, seed, shape.image_shape, shape.dtype)
    params = variables["params"]
    opt_state = optimiser.initial_state(_optimiser(shape), params)
    return State(variables, opt_state, copied(params) if shape.ema else None)


def copied(tree: Tree) -> Tree:
    """``tree`` in buffers of its own: state is donated, and a buffer can be donated once."""
    return jax.tree.map(np.array, tree)


def mesh_size(devices: int) -> int:
    """Devices of all processes, of which each has so many; 0: all that it has."""
    return (devices or jax.local_device_count()) * jax.process_count()


def data_mesh(devices: int) -> Mesh | None:
    """Of so many devices, equally many of each process; None of one."""
    if devices == 1:
        return None
    each = devices // jax.process_count()
    chosen = [of for k in range(jax.process_count()) for of in jax.local_devices(process_index=k)[:each]]
    return Mesh(np.array(chosen), ("data",))


def place(state: Tree, mesh: Mesh | None) -> Tree:
    """``state`` on the device, or a copy on each device of ``mesh``."""
    if mesh is None or jax.process_count() == 1:
        return jax.device_put(state, NamedSharding(mesh, PartitionSpec()) if mesh else None)
    return jax.tree.map(lambda leaf: spread(np.asarray(leaf), mesh, PartitionSpec()), state)


def spread(values: np.ndarray, mesh: Mesh, spec: PartitionSpec) -> Array:
    """``values``, which all processes have, over the devices of all of them: each reads what its own need."""
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def paced(result: Tree, mesh: Mesh | None) -> Tree:
    """``result``, waited for where several devices of ``mesh`` are this process's CPU.

    They share as many threads as there are cores. One thread that waits in an all-reduce and one that waits to launch
    another program, of which 32 may be under way on a device, would leave none for the rest of that all-reduce.
    """
    if mesh is not None and jax.default_backend() == "cpu" and len(mesh.local_devices) > 1:
        jax.block_until_ready(result)
    return result


class Runner:
    """A network compiled for training, data-parallel over ``shape.devices`` local devices."""

    def __init__(self, network: Any, shape: Shape) -> None:
        self.network, self.shape, self.mesh = network, shape, data_mesh(shape.devices)

    def init(self, seed: int) -> State:
        return place(init_state(self.network, self.shape, seed), self.mesh)

    def compile(self, *, step: bool = True) -> None:
        """Compile the prediction and, unless others step, the step, so that no later call compiles."""
        if step:
            self._step = _compiled(self.network, self.shape, "train_step")
        self._predict = _compiled(self.network, self.shape, "predict")

    def step(
        self, state: State, batch: Batch, noise: Noise, rates: Rates, ema_decay: ArrayLike
    ) -> tuple[State, Array, Array]:
        """`train_step`; ``state`` is consumed."""
        return paced(self._step(state, batch, noise, rates, ema_decay), self.mesh)

    def predict(self, variables: dict[str, Tree], images: Array) -> Array:
        """Logits float32 [B, classes] in evaluation mode."""
        return paced(self._predict(variables, images), self.mesh)


@functools.lru_cache(maxsize=512)
def _compiled(network: Any, shape: Shape, what: str) -> Callable[..., Any]:
    """``what``: predict, or train_step, which is found on disk by the optimiser's source too."""
    if what == "predict":
        return stored(what, shape, network, functools.partial(lower_predict, network, shape))
    lower, source = functools.partial(lower_step, network, shape), optimiser.source(shape.optimiser)
    return stored(what, (shape, source), network, lower) if source else compiled(lower())


def lower_step(
    network: Any, shape: Shape, name: str = "train_step", *, mesh: Mesh | None = None
) -> jax.stages.Lowered:
    """`train_step` lowered for this platform, or the devices of ``mesh``; ``.compile()`` it, or read its analyses."""
    arguments = abstract_arguments(network, shape, mesh or data_mesh(shape.devices))
    return step_function(network, shape, name).lower(*arguments)


def lower_predict(
    network: Any, shape: Shape, name: str = "predict", *, mesh: Mesh | None = None
) -> jax.stages.Lowered:
    """The network in evaluation mode at the evaluation's batch size, lowered as `lower_step` is."""
    state, batch, *_ = abstract_arguments(network, shape, mesh or data_mesh(shape.devices))
    size = (shape.evaluate_batch_size, *shape.image_shape)
    images = jax.ShapeDtypeStruct(size, batch.images.dtype, sharding=batch.images.sharding)
    return jax.jit(named(name, functools.partial(_predict, network))).lower(state.variables, images)


def step_function(network: Any, shape: Shape, name: str = "train_step") -> Any:
    """`train_step` of one network, jitted, its state donated."""
    return jax.jit(named(name, functools.partial(train_step, network, shape)), donate_argnums=0)


def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` under a name of its own, which is the compiled program's."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    call.__name__ = name
    return call


def _predict(network: Any, variables: dict[str, Tree], images: Array) -> Array:
    return apply_evaluate(network, variables, (images,)).astype(jnp.float32)


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """``function()`` and the seconds it took."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start
