"""The compiled programs of one training run, in two formulations with the same values.

``program``: a training step is one XLA program. ``pieces`` (`nas.training.pieces`): a network that is a
graph of modules (`network.nodes`, see `search_spaces.graph`) is run node by node, each node a few small
programs which every network with an equal node at equal shapes shares. Programs are pure: ``(state,
arguments) -> (state, …)``; everything that may differ between two trials without changing the network is an
argument. They are kept for the life of the process, and on disk.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from nas import ops
from nas.errors import InputError
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
    sows,
)
from nas.training.optimiser import Rates
from nas.training.stored import stored


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
    slots: Tree
    ema: Tree | None  # the averaged parameters, where they are kept


class Batch(NamedTuple):
    """One step's data."""

    images: Array  # [B, H, W, C] in the compute dtype
    target: Array  # float32 [B, classes], probabilities
    labels: Array  # int32 [B]


class Runner(Protocol):
    """A network compiled for training: what `nas.training.loop` calls."""

    def init(self, seed: int) -> State: ...

    def compile(self) -> None:
        """Compile everything that training and evaluation call, so that no later call compiles."""
        ...

    def step(
        self, state: State, batch: Batch, noise: Noise, rates: Rates, ema_decay: ArrayLike
    ) -> tuple[State, Array, Array]:
        """One update; ``state`` is consumed. Returns it with the mean loss and the logits [B, classes].

        The loss is the cross-entropy of the output alone, comparable with an evaluation's; what a network
        sows (`Extra`) adds to the gradient only.
        """
        ...

    def predict(self, variables: dict[str, Tree], images: Array) -> Array:
        """Logits float32 [B, classes] in evaluation mode."""
        ...


def mean_loss(logits: Array, target: Array) -> Array:
    """Mean cross-entropy over the batch."""
    return ops.softmax_cross_entropy(logits.astype(jnp.float32), target, mean=True)


# ------------------------------------------------------------------------------------------ one program


def train_step(
    network: Any,
    shape: Shape,
    state: State,
    batch: Batch,
    noise: Noise,
    rates: Rates,
    ema_decay: ArrayLike,
) -> tuple[State, Array, Array]:
    """The whole update as a pure function; see `Runner.step`."""
    params = state.variables["params"]
    rest = {name: tree for name, tree in state.variables.items() if name != "params"}

    def loss_of(params: Tree) -> tuple[Array, tuple[Array, Array, dict[str, Tree]]]:
        logits, updated, extra = apply_train(network, {"params": params, **rest}, (batch.images,), noise)
        loss = total = mean_loss(logits, batch.target)
        for weight, head in extra.auxiliary:
            total += weight * mean_loss(head, batch.target)
        return sum(extra.losses, total), (loss, logits, updated)

    (_, (loss, logits, updated)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    scale = ops.clip_scale(grads, jnp.asarray(rates.clip_norm))[1] if shape.clip else 1.0
    params, slots = optimiser.update(
        shape.optimiser, params, grads, state.slots, rates, scale, shape.own_weight_decay
    )
    ema = ops.ema_update(state.ema, params, jnp.asarray(ema_decay)) if shape.ema else None
    return State({"params": params, **updated}, slots, ema), loss, logits.astype(jnp.float32)


def abstract_arguments(
    network: Any, shape: Shape, mesh: Mesh | None
) -> tuple[State, Batch, Noise, Rates, jax.ShapeDtypeStruct]:
    """Shapes and shardings of `train_step`'s traced arguments: batches split over devices, all else copied."""
    whole = NamedSharding(mesh, PartitionSpec()) if mesh else None
    split = NamedSharding(mesh, PartitionSpec("data")) if mesh else None

    def placed(tree: Tree, sharding: NamedSharding | None) -> Tree:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)

    variables = outline(network, shape.image_shape).variables
    slots = jax.eval_shape(functools.partial(optimiser.init, shape.optimiser), variables["params"])
    state = State(variables, slots, variables["params"] if shape.ema else None)
    size = shape.batch_size
    batch = Batch(
        abstract((size, *shape.image_shape), shape.dtype),
        abstract((size, shape.num_classes)),
        abstract((size,), "int32"),
    )
    number = abstract(())
    own = (number,) * len(shape.own_weight_decay)
    rates = Rates(number, number, number, abstract((), "int32"), own)
    return placed(state, whole), placed(batch, split), *placed((abstract_noise(), rates, number), whole)


def init_state(network: Any, shape: Shape, seed: int) -> State:
    variables = initialise(network, seed, shape.image_shape, shape.dtype)
    slots = optimiser.init(shape.optimiser, variables["params"])
    return State(variables, slots, copied(variables["params"]) if shape.ema else None)


def copied(tree: Tree) -> Tree:
    """``tree`` in buffers of its own: state is donated, and a buffer can be donated once."""
    return jax.tree.map(np.array, tree)


def data_mesh(devices: int) -> Mesh | None:
    return Mesh(np.array(jax.local_devices()[:devices]), ("data",)) if devices > 1 else None


def place(state: Tree, mesh: Mesh | None) -> Tree:
    """``state`` on the device, or a copy on each device of ``mesh``."""
    return jax.device_put(state, NamedSharding(mesh, PartitionSpec()) if mesh else None)


class WholeProgram:
    """`Runner` whose step is one XLA program, data-parallel over ``shape.devices`` local devices."""

    def __init__(self, network: Any, shape: Shape) -> None:
        self.network, self.shape, self.mesh = network, shape, data_mesh(shape.devices)

    def init(self, seed: int) -> State:
        return place(init_state(self.network, self.shape, seed), self.mesh)

    def compile(self) -> None:
        self._step, self._predict = _whole(self.network, self.shape)

    def step(self, state, batch, noise, rates, ema_decay):
        return self._step(state, batch, noise, rates, ema_decay)

    def predict(self, variables, images):
        return self._predict(variables, images)


@functools.lru_cache(maxsize=256)
def _whole(network: Any, shape: Shape) -> tuple[Callable[..., Any], Callable[..., Any]]:
    step = stored("train_step", shape, network, functools.partial(lower_step, network, shape))
    return step, stored("predict", shape, network, functools.partial(lower_predict, network, shape))


def lower_step(network: Any, shape: Shape, name: str = "train_step") -> jax.stages.Lowered:
    """`train_step` lowered for this platform; ``.compile()`` it, or read its cost and memory analyses."""
    arguments = abstract_arguments(network, shape, data_mesh(shape.devices))
    return step_function(network, shape, name).lower(*arguments)


def lower_predict(network: Any, shape: Shape, name: str = "predict") -> jax.stages.Lowered:
    """The network in evaluation mode, lowered for this platform at the evaluation's batch size."""
    state, batch, *_ = abstract_arguments(network, shape, data_mesh(shape.devices))
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


# --------------------------------------------------------------------------------------------- choosing

FORMULATIONS = ("auto", "program", "pieces")


def make_runner(network: Any, shape: Shape, formulation: str = "auto") -> Runner:
    """The network's runner. ``auto`` is ``program``; on a CPU without native kernels, ``pieces`` of a graph.

    With native kernels a whole program is little more than calls, and compiles faster than its pieces; where
    XLA has to generate all code, pieces are compiled once for many networks. Raises InputError for ``pieces``
    of a network that is not a graph or has more losses than that of its output, or over several devices.
    """
    graph = hasattr(network, "nodes")
    if formulation == "auto":
        slow = jax.default_backend() == "cpu" and not ops.native_available()
        pieces = graph and slow and shape.devices == 1 and not sows(network, shape.image_shape)
        formulation = "pieces" if pieces else "program"
    if formulation == "program":
        return WholeProgram(network, shape)
    if not graph:
        raise InputError(f"formulation: {type(network).__name__} is not a graph of modules: it has no pieces")
    if shape.devices > 1:
        raise InputError("formulation: the pieces formulation runs on one device")
    if sows(network, shape.image_shape):
        raise InputError("formulation: a network with further losses or auxiliary classifiers has no pieces")
    from nas.training.pieces import Pieces  # which needs this module

    return Pieces(network, shape)


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """``function()`` and the seconds it took."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start
