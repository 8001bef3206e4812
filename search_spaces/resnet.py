"""The ``resnet`` space: He et al. 2015's networks for small images, and their plain twins.

A 3x3 convolution, then three stages of ``blocks`` basic blocks (two 3x3 convolutions each) at 1, 1/2 and
1/4 of the resolution with ``width``, 2 ``width`` and 4 ``width`` channels, global average pooling, a
classifier: 6 ``blocks`` + 2 layers. ``connections="plain"`` leaves the shortcuts out; shortcut ``A`` pads
new channels with zeros, ``B`` projects by a 1x1 convolution with batch normalisation (section 4.1).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from nas.space import Architecture, Categorical, Integer, LogUniform, SearchSpace, Uniform, When
from search_spaces.graph import Builder, Graph
from search_spaces.layers import CellAverage, Conv, Dense, NormAct


class PadShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, new channels zero."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        more = self.features - x.shape[-1]
        return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (0, more)))


def build(arch: Architecture, num_classes: int) -> Graph:
    """The network of a ``resnet`` architecture: [B, H, W, C] -> logits [B, num_classes]."""
    b = Builder()
    relu, linear = NormAct("batch", "relu"), NormAct("batch", "identity")
    width = arch["width"]
    x = b.add("norm_0", relu, b.add("conv_0", Conv(width), 0))
    channels = width
    for stage in range(3):
        features = width * 2**stage
        for block in range(arch["blocks"]):
            name = f"{stage + 1}_{block + 1}"
            stride = 2 if stage and not block else 1
            y = b.add(f"norm_{name}_1", relu, b.add(f"conv_{name}_1", Conv(features, 3, stride), x))
            y = b.add(f"conv_{name}_2", Conv(features), y)
            if arch["connections"] == "plain":
                x = b.add(f"norm_{name}_2", relu, y)
                continue
            shortcut = x
            if stride > 1 or channels != features:
                if arch["shortcut"] == "A":
                    shortcut = b.add(f"shortcut_{name}", PadShortcut(features, stride), x)
                else:
                    projected = b.add(f"project_{name}", Conv(features, 1, stride), x)
                    shortcut = b.add(f"shortcut_{name}", linear, projected)
            x, channels = b.add(f"norm_{name}_2", relu, y, shortcut), features
    x = b.add("average", CellAverage(1), x)
    b.add("logits", Dense(num_classes), x)
    return b.graph()


SPACE = SearchSpace(
    name="resnet",
    choices={
        "blocks": Integer(1, 18),
        "width": Categorical((8, 16, 32, 64)),
        "connections": Categorical(("residual", "plain")),
        "shortcut": Categorical(("A", "B")),
        "dropout": Uniform(0.0, 0.5, changes_program=False),
        "learning_rate": LogUniform(1e-2, 1.0, changes_program=False),
        "schedule": Categorical(("step", "cosine"), changes_program=False),
        "batch_size": Categorical((64, 128, 256)),
        "weight_decay": LogUniform(1e-5, 1e-3, changes_program=False),
        "augmentation": Categorical(("none", "crop+flip")),
    },
    conditions={"shortcut": (When("connections", values=("residual",)),)},
    build=build,
)
