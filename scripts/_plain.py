"""Networks in plain Flax and optax, nothing of ours: what bench_tpu.py holds our programs against."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

CONV = functools.partial(nn.Conv, use_bias=False)


class Block(nn.Module):
    """He et al. 2015: two 3x3 convolutions, or with ``bottleneck`` 1x1, 3x3 (with the stride) and 1x1."""

    features: int
    stride: int
    bottleneck: bool
    norm: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        out = self.features * (4 if self.bottleneck else 1)
        kernels = [(1, 1), (3, 3), (1, 1)] if self.bottleneck else [(3, 3), (3, 3)]
        strides = [self.stride, 1, 1] if self.bottleneck else [self.stride, 1]
        y = x
        for k, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
            last = k + 1 == len(kernels)
            y = CONV(out if last else self.features, kernel, stride)(y)
            y = self.norm()(y) if last else nn.relu(self.norm()(y))
        if x.shape == y.shape:
            return nn.relu(x + y)
        if self.bottleneck:
            return nn.relu(self.norm()(CONV(out, (1, 1), self.stride)(x)) + y)
        pad = ((0, 0), (0, 0), (0, 0), (0, out - x.shape[-1]))
        return nn.relu(jnp.pad(x[:, :: self.stride, :: self.stride], pad) + y)


class ResNet(nn.Module):
    """For CIFAR (``bottleneck`` False) or ImageNet."""

    blocks: Sequence[int]
    width: int
    classes: int
    bottleneck: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        if self.bottleneck:
            x = nn.relu(norm()(CONV(self.width, (7, 7), 2)(x)))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        else:
            x = nn.relu(norm()(CONV(self.width, (3, 3))(x)))
        for stage, count in enumerate(self.blocks):
            for k in range(count):
                x = Block(self.width * 2**stage, 2 if stage and not k else 1, self.bottleneck, norm)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


class Cell(nn.Module):
    """A NAS-Bench-201 cell: node 3 is the sum of what arrives; ``operations`` by (source, target)."""

    operations: dict[tuple[int, int], str]
    features: int
    norm: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        nodes = [x]
        for to in range(1, 4):
            total: Any = 0
            for source in range(to):
                operation = self.operations[source, to]
                if operation == "skip_connect":
                    total += nodes[source]
                elif operation == "avg_pool_3x3":
                    total += nn.avg_pool(nodes[source], (3, 3), padding="SAME", count_include_pad=False)
                elif operation != "none":
                    kernel = (3, 3) if operation == "nor_conv_3x3" else (1, 1)
                    total += self.norm()(CONV(self.features, kernel)(nn.relu(nodes[source])))
            nodes.append(total)
        return nodes[-1]


class NasBench201(nn.Module):
    """Dong and Yang 2020: three stages of five cells of 16, 32 and 64 channels, a residual block between them."""

    operations: dict[tuple[int, int], str]
    classes: int

    @nn.compact
    def __call__(self, x: Array, train: bool = True) -> Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = norm()(CONV(16, (3, 3))(x))
        for stage in range(3):
            features = 16 * 2**stage
            if stage:
                y = norm()(CONV(features, (3, 3), 2)(nn.relu(x)))
                y = norm()(CONV(features, (3, 3))(nn.relu(y)))
                x = y + CONV(features, (1, 1))(nn.avg_pool(x, (2, 2), (2, 2)))
            for _ in range(5):
                x = Cell(self.operations, features, norm)(x)
        x = nn.relu(norm()(x)).mean((1, 2))
        return nn.Dense(self.classes)(x)


def training_step(network: nn.Module, image_shape: tuple[int, int, int], batch: int) -> tuple[Any, Any]:
    """A jitted step of momentum with weight decay in bfloat16, parameters float32, and its abstract arguments."""
    optimiser = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, 0.9))
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.bfloat16)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *image_shape))))

    def step(params: Any, stats: Any, opt_state: Any, images: Array, labels: Array) -> Any:
        def loss_of(params: Any) -> Any:
            half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
            logits, updated = network.apply(
                {"params": half, "batch_stats": stats}, images, mutable=["batch_stats"]
            )
            wide = logits.astype(jnp.float32)
            loss = optax.softmax_cross_entropy_with_integer_labels(wide, labels).mean()
            return loss, (updated["batch_stats"], wide)

        (loss, (updated, logits)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = optimiser.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), updated, state, loss, logits

    params = variables["params"]
    opt_state = jax.eval_shape(optimiser.init, params)
    arguments = (params, variables["batch_stats"], opt_state, images, labels)
    return jax.jit(step, donate_argnums=(0, 1, 2)), arguments
