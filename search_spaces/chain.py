"""The ``chain`` space: a convolutional network as a chain of blocks, and how it is trained.

A block is convolution, normalisation, activation. With ``connections="residual"`` its input is added before
the activation (through a 1x1 convolution where the shape changes: He et al. 2015, option B); with
``"dense"`` its input is concatenated to its output (Huang et al. 2017). After every ``downsample_every``
blocks the map shrinks: that block's convolution has the stride ``stride`` and the pooling ``pooling``
follows it. The head averages the map over at most 4x4 cells and adds ``head_depth`` dense layers, normalised and
activated likewise, before the classifier. The training hyperparameters are choices of the same space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nas.nn.graph import Builder, Graph
from nas.nn.layers import CellAverage, Concat, Dense, NormAct, Pool, conv
from nas.nn.supernet import Supernet, supernet_of
from nas.space import Categorical, Choice, Integer, LogUniform, SearchSpace, Uniform, When


def chain_space(
    *,
    max_depth: int = 6,
    widths: Sequence[int] = (8, 16, 32, 64),
    kernels: Sequence[int] = (1, 3, 5),
    name: str = "chain",
) -> SearchSpace:
    """The space with other limits than ``chain``'s own."""
    blocks = range(1, max_depth + 1)
    choices: dict[str, Choice] = {"depth": Integer(1, max_depth)}
    choices |= {f"width_{i}": Categorical(tuple(widths)) for i in blocks}
    choices |= {f"kernel_{i}": Categorical(tuple(kernels)) for i in blocks}
    choices |= {
        "stride": Categorical((1, 2)),
        "pooling": Categorical(("none", "max", "average", "overlapping_max")),
        "downsample_every": Categorical((1, 2, 3)),
        "connections": Categorical(("plain", "residual", "dense")),
        "normalisation": Categorical(("none", "batch", "layer", "local_response")),
        "activation": Categorical(("relu", "gelu", "silu", "tanh")),
        "head_depth": Integer(0, 2),
        "head_width": Categorical((32, 64, 128, 256)),
        "dropout": Uniform(0.0, 0.5, changes_program=False),
        "optimiser": Categorical(("nesterov", "adamw")),
        "learning_rate": LogUniform(1e-3, 1e-1, changes_program=False),
        "schedule": Categorical(("constant", "linear", "cosine", "step"), changes_program=False),
        "batch_size": Categorical((32, 64, 128)),
        "weight_decay": LogUniform(1e-6, 1e-2, changes_program=False),
        "label_smoothing": Uniform(0.0, 0.2, changes_program=False),
        "augmentation": Categorical(("none", "crop", "crop+flip", "crop+cutout", "mixup", "colour")),
    }
    conditions = {
        f"{group}_{i}": (When("depth", at_least=i),) for group in ("width", "kernel") for i in blocks[1:]
    }
    conditions["head_width"] = (When("head_depth", at_least=1),)
    return SearchSpace(
        name=name,
        choices=choices,
        conditions=conditions,
        build=build,
        supernet=searched_by_supernet,
        elastic=("kernel", "depth", "width"),
    )


DEFAULTS: dict[str, Any] = {  # of what a supernet does not decide
    "depth": 4,
    "width": 32,
    "stride": 1,
    "pooling": "max",
    "downsample_every": 2,
    "connections": "plain",
    "normalisation": "batch",
    "activation": "relu",
    "head_depth": 0,
    "head_width": 128,
    "dropout": 0.0,
    "optimiser": "nesterov",
    "learning_rate": 0.05,
    "schedule": "cosine",
    "batch_size": 64,
    "weight_decay": 1e-4,
    "label_smoothing": 0.0,
    "augmentation": "none",
}


def searched_by_supernet(space: SearchSpace) -> Supernet:
    """`Supernet` of the space: the kernel sizes of the blocks are open, and the pooling once ``none`` is ruled out.

    All candidates must give maps of one size. The other choices are as fixed, else `DEFAULTS`.
    """
    kernels = [name for name in space.choices if name.startswith("kernel_")]
    depth = space.resolve_fixed(kernels, DEFAULTS)["depth"]
    groups = [[name] for name in kernels[:depth]]
    if not space.choices["pooling"].accepts("none"):
        groups.append(["pooling"])

    def searched(arch: Mapping[str, Any], num_classes: int) -> Graph:
        return build(arch, num_classes, searching=True)

    cell = ("blocks", "kernel_")
    return supernet_of(space, groups, searched, defaults=DEFAULTS, cell=cell, partial=False)


def build(arch: Mapping[str, Any], num_classes: int, *, searching: bool = False) -> Graph:
    """The network of a ``chain`` architecture: [B, H, W, C] -> logits [B, num_classes].

    ``searching``: kernel sizes and pooling may be left open; candidates of a convolution have names of their own.
    """
    SPACE.check_known(arch, "pooling", "connections", "normalisation")
    b = Builder()
    x = 0
    width = 0  # channels of x; 0: the image's
    for i in range(1, arch["depth"] + 1):
        last = i % arch["downsample_every"] == 0
        stride = arch["stride"] if last else 1
        features = arch[f"width_{i}"]

        def convolve(
            size: int, x: int, part: int, i: int = i, features: int = features, stride: int = stride
        ) -> int:
            own = f"conv_{i}_{size}" if searching else f"conv_{i}"
            return b.add(own, conv(features // part, size, stride), x)

        def pool(kind: str, x: int, part: int, i: int = i) -> int:
            return b.add(f"pool_{i}_{kind}" if searching else f"pool_{i}", Pool(kind), x)

        of_kernel = b.choose(arch[f"kernel_{i}"], convolve, x, name=f"block_{i}", stride=stride)
        y = b.mix(f"conv_{i}", of_kernel)
        norm = NormAct(arch["normalisation"], arch["activation"])
        if arch["connections"] == "residual" and i > 1:
            same = stride == 1 and width == features
            shortcut = x if same else b.add(f"shortcut_{i}", conv(features, 1, stride), x)
            x, width = b.add(f"norm_{i}", norm, y, shortcut), features
        elif arch["connections"] == "dense" and i > 1:
            y = b.add(f"norm_{i}", norm, y)
            old = x if stride == 1 else b.add(f"shrink_{i}", Pool("average"), x)
            x, width = b.add(f"concat_{i}", Concat(), old, y), width + features
        else:
            x, width = b.add(f"norm_{i}", norm, y), features
        if last and arch["pooling"] != "none":
            x = b.mix(f"pool_{i}", b.choose(arch["pooling"], pool, x, name=f"pool_{i}", stride=2))
    x = b.add("average", CellAverage(), x)
    # Hidden dense layers are normalised like convolutions: without, large learning rates kill them at once.
    kind = arch["normalisation"] if arch["normalisation"] in ("batch", "layer") else "none"
    for i in range(1, arch["head_depth"] + 1):
        y = b.add(f"dense_{i}", Dense(arch["head_width"], bias=False), x)
        x = b.add(f"dense_norm_{i}", NormAct(kind, arch["activation"]), y)
    b.add("logits", Dense(num_classes), x)
    return b.graph()


SPACE = chain_space()
