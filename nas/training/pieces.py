"""The ``pieces`` formulation: a graph network run node by node, each node a few small shared programs.

A node's programs are jitted functions kept by module and by what is differentiated; jit itself keeps one
compiled program a shape, so equal nodes of different networks meet here. The gradient is each node's
vector-Jacobian product, called in reverse order.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nas import ops
from nas.training import optimiser
from nas.training.network import Noise, Tree, apply_evaluate, apply_train, initialise
from nas.training.optimiser import Rates
from nas.training.programs import Batch, Shape, State, copied, mean_loss, place


@functools.lru_cache(maxsize=4096)
def _piece_forward(module: Any, wanted: tuple[bool, ...]) -> Any:
    """``(variables, inputs, noise) -> output, updated collections, vjp`` of one node."""

    def forward(variables, inputs, noise):
        params, rest = variables.get("params", {}), {k: v for k, v in variables.items() if k != "params"}
        fixed = [None if want else x for want, x in zip(wanted, inputs, strict=True)]

        def call(params, moving):
            merged = [m if f is None else f for m, f in zip(moving, fixed, strict=True)]
            return apply_train(module, {"params": params, **rest}, merged, noise)[:2]

        moving = [x if want else None for want, x in zip(wanted, inputs, strict=True)]
        output, vjp, updated = jax.vjp(call, params, moving, has_aux=True)
        return output, updated, vjp

    return jax.jit(forward)


@jax.jit
def _piece_backward(vjp: Any, cotangent: Array) -> Any:
    return vjp(cotangent)


@functools.lru_cache(maxsize=4096)
def _piece_evaluate(module: Any) -> Any:
    return jax.jit(functools.partial(apply_evaluate, module))


@functools.lru_cache(maxsize=64)
def _piece_update(kind: str, ema: bool) -> Any:
    def update(params, grads, slots, average, rates, scale, ema_decay):
        params, slots = optimiser.update(kind, params, grads, slots, rates, scale)
        return params, slots, ops.ema_update(average, params, ema_decay) if ema else None

    return jax.jit(update, donate_argnums=(0, 2, 3))


@jax.jit
def _loss_and_cotangent(logits: Array, target: Array) -> tuple[Array, Array, Array]:
    loss, cotangent = jax.value_and_grad(mean_loss)(logits, target)
    return loss, cotangent, logits.astype(jnp.float32)


@jax.jit
def _norm(grads: Tree) -> Array:
    return ops.global_norm(grads)


@jax.jit
def _clip_scale(norms: list[Array], clip_norm: Array) -> Array:
    return ops.clip_scale(norms, clip_norm)[1]


@jax.jit
def _sum(cotangents: list[Array]) -> Array:
    return ops.add(*cotangents)


class Pieces:
    """`Runner` that runs a graph network node by node; one device."""

    def __init__(self, network: Any, shape: Shape) -> None:
        self.network, self.shape = network, shape
        self.nodes = network.nodes
        readers = [0] * (len(self.nodes) + 1)
        for node in self.nodes:
            for i in node.inputs:
                readers[i] += 1
        if readers[-1] or 0 in readers[1:-1]:
            unread = [node.name for node, n in zip(self.nodes[:-1], readers[1:-1], strict=True) if not n]
            raise ValueError(f"a network's last node must be its output and every other one read: {unread}")

    def init(self, seed: int) -> State:
        variables = initialise(self.network, seed, self.shape.image_shape, self.shape.dtype)
        params = variables["params"]
        slots = {name: optimiser.init(self.shape.optimiser, tree) for name, tree in params.items()}
        ema = copied(params) if self.shape.ema else None
        return place(State(variables, slots, ema), None)

    def compile(self) -> None:
        """Run one step and one prediction on zeros: shapes alone decide what is compiled."""
        compile_pieces(self.network, self.shape)

    def step(self, state, batch, noise, rates, ema_decay):
        values: list[Array] = [batch.images]
        vjps, updates = [], {}
        for k, node in enumerate(self.nodes):
            wanted = tuple(i > 0 for i in node.inputs)
            own = node_variables(state.variables, node.name)
            shifted = noise._replace(seed=ops.node_seed(noise.seed, k))
            inputs = [values[i] for i in node.inputs]
            output, updated, vjp = _piece_forward(node.module, wanted)(own, inputs, shifted)
            values.append(output)
            vjps.append(vjp)
            updates[node.name] = updated
        loss, cotangent, logits = _loss_and_cotangent(values[-1], batch.target)
        del values
        waiting: dict[int, list[Array]] = {len(self.nodes): [cotangent]}
        grads = {}
        for k in range(len(self.nodes), 0, -1):
            node, parts = self.nodes[k - 1], waiting.pop(k)
            total = parts[0] if len(parts) == 1 else _sum(parts)
            grads[node.name], moving = _piece_backward(vjps.pop(), total)
            for i, cotangent in zip(node.inputs, moving, strict=True):
                if i:
                    waiting.setdefault(i, []).append(cotangent)
        params = state.variables["params"]
        scale = np.float32(1)
        if self.shape.clip:
            scale = _clip_scale([_norm(grads[name]) for name in params], rates.clip_norm)
        update = _piece_update(self.shape.optimiser, self.shape.ema)
        decays = dict(zip(self.shape.own_weight_decay, rates.own_weight_decay, strict=True))
        common = rates._replace(own_weight_decay=())
        new_params, slots, ema = {}, {}, {}
        for name, own in params.items():
            average = state.ema[name] if state.ema is not None else None
            its = common._replace(weight_decay=decays.get(name, rates.weight_decay))
            new_params[name], slots[name], ema[name] = update(
                own, grads[name], state.slots[name], average, its, scale, ema_decay
            )
        variables = {"params": new_params}
        for collection in state.variables:
            if collection != "params":
                variables[collection] = {
                    name: updated[collection] for name, updated in updates.items() if collection in updated
                }
        return State(variables, slots, ema if self.shape.ema else None), loss, logits

    def predict(self, variables, images):
        values = [images]
        for node in self.nodes:
            own = node_variables(variables, node.name)
            values.append(_piece_evaluate(node.module)(own, [values[i] for i in node.inputs]))
        return _as_float32(values[-1])


@jax.jit
def _as_float32(x: Array) -> Array:
    return x.astype(jnp.float32)


def node_variables(variables: dict[str, Tree], name: str) -> dict[str, Tree]:
    """One node's share of a graph network's variables."""
    return {collection: tree[name] for collection, tree in variables.items() if name in tree}


@functools.lru_cache(maxsize=256)
def compile_pieces(network: Any, shape: Shape) -> None:
    runner = Pieces(network, shape)
    state = runner.init(0)
    zero = np.float32(0)
    size = shape.batch_size
    batch = Batch(
        jnp.asarray(np.zeros((size, *shape.image_shape)), jnp.dtype(shape.dtype)),
        jnp.asarray(np.zeros((size, shape.num_classes), np.float32)),
        jnp.asarray(np.zeros(size, np.int32)),
    )
    noise, rates = (
        Noise(zero, np.uint32(0)),
        Rates(zero, zero, zero, np.int32(0), (zero,) * len(shape.own_weight_decay)),
    )
    state, loss, _ = runner.step(state, batch, noise, rates, zero)
    images = jnp.asarray(np.zeros((shape.evaluate_batch_size, *shape.image_shape)), jnp.dtype(shape.dtype))
    jax.block_until_ready((loss, runner.predict(state.variables, images)))
