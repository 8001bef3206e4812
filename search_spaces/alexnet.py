"""The ``alexnet`` space: Krizhevsky, Sutskever and Hinton 2012, and what their network can be varied in.

Convolutions 1 to ``depth``, each followed by bias, activation, normalisation and, where ``pool_<i>``, pooling
(sections 3.3 to 3.5); the map averaged over at most ``cells`` x ``cells`` equal cells (6 leaves the paper's 6x6
map as it is); ``dense_depth`` dense layers; a classifier. With ``groups=2`` every convolution but the first
and the third sees half of the channels, as on the paper's two GPUs. ``normalised`` says which layers
``normalisation`` holds for: the first two, as in the paper, or all (batch normalisation: dense ones too).

``padding`` says where 55x55 maps come from. ``unpadded``: the first convolution and the pools have no padding,
which needs the 227x227 images that the published sizes imply. ``two``: 2 pixels round the 224x224 images that
the paper speaks of, pools unpadded, as in torchvision. ``same``: maps shrink by their strides alone, whatever
the image. Unpadded windows larger than a small image are padded after all, so that all of them run on it.

The hyperparameter ``dropout`` is the probability behind each hidden dense layer; the features that the first
dense layer sees are never dropped. Parameters are He-normal and zero, not the paper's N(0, 0.01) and ones.
"""

from __future__ import annotations

from typing import Any

from nas.nn.graph import Builder, Graph
from nas.nn.layers import CellAverage, Dense, NormAct, Pool, conv
from nas.space import Architecture, Categorical, Integer, LogUniform, SearchSpace, Uniform, When
from search_spaces.named import Named

MAX_DEPTH = 8
UNGROUPED = (1, 3)  # section 3.5: the third convolution sees both halves; the first, the image


def build(arch: Architecture, num_classes: int) -> Graph:
    """The network of an ``alexnet`` architecture: [B, H, W, C] -> logits [B, num_classes]."""
    SPACE.check_known(arch, "padding", "pooling", "normalisation", "normalised")
    b = Builder()
    stem_padding = {"same": "SAME", "unpadded": "FIT", "two": 2}[arch["padding"]]
    pool = Pool(arch["pooling"], padding="SAME" if arch["padding"] == "same" else "FIT")
    everywhere = arch.get("normalised") == "all"
    bias, normalised = (NormAct(kind, arch["activation"]) for kind in ("none", arch["normalisation"]))
    x = 0
    for i in range(1, arch["depth"] + 1):
        convolution = conv(
            arch[f"width_{i}"],
            arch[f"kernel_{i}"],
            stride=arch["stride"] if i == 1 else 1,
            groups=1 if i in UNGROUPED else arch["groups"],
            padding=stem_padding if i == 1 else "SAME",
        )
        x = b.add(f"conv_{i}", convolution, x)
        x = b.add(f"norm_{i}", normalised if everywhere or i <= 2 else bias, x)
        if arch[f"pool_{i}"]:
            x = b.add(f"pool_{i}", pool, x)
    x = b.add("average", CellAverage(arch["cells"]), x)
    dense_norm = normalised if everywhere and arch["normalisation"] == "batch" else bias
    for i in range(1, arch["dense_depth"] + 1):
        dense = Dense(arch["dense_width"], bias=False, rate=0.0 if i == 1 else None)
        x = b.add(f"dense_norm_{i}", dense_norm, b.add(f"dense_{i}", dense, x))
    b.add("logits", Dense(num_classes, rate=None if arch["dense_depth"] else 0.0), x)
    return b.graph()


def _space() -> SearchSpace:
    layers = range(1, MAX_DEPTH + 1)
    widths = Categorical((16, 32, 48, 64, 96, 128, 192, 256, 384))
    return SearchSpace(
        name="alexnet",
        choices={
            "depth": Integer(2, MAX_DEPTH),
            **{f"width_{i}": widths for i in layers},
            "kernel_1": Categorical((3, 5, 7, 11)),
            **{f"kernel_{i}": Categorical((3, 5)) for i in layers[1:]},
            **{f"pool_{i}": Categorical((False, True)) for i in layers},
            "stride": Categorical((1, 2, 4)),
            "padding": Categorical(("same", "unpadded", "two")),
            "pooling": Categorical(("overlapping_max", "max", "average")),
            "groups": Categorical((1, 2)),
            "normalisation": Categorical(("local_response", "none", "batch")),
            "normalised": Categorical(("first_two", "all")),
            "activation": Categorical(("relu", "gelu", "silu", "tanh")),
            "cells": Categorical((1, 2, 3, 6)),
            "dense_depth": Integer(0, 3),
            "dense_width": Categorical((64, 128, 256, 512, 1024, 2048, 4096)),
            "dropout": Uniform(0.0, 0.7, changes_program=False),
            "optimiser": Categorical(("momentum", "nesterov", "adamw")),
            "learning_rate": LogUniform(1e-3, 1e-1, changes_program=False),
            "schedule": Categorical(("step", "cosine"), changes_program=False),
            "batch_size": Categorical((32, 64, 128)),
            "weight_decay": LogUniform(1e-6, 1e-2, changes_program=False),
            "label_smoothing": Uniform(0.0, 0.2, changes_program=False),
            "augmentation": Categorical(("none", "crop", "crop+flip", "crop+flip+pca")),
        },
        conditions={
            **{
                f"{group}_{i}": When("depth", at_least=i)
                for group in ("width", "kernel", "pool")
                for i in layers[2:]
            },
            "normalised": When("normalisation", values=("local_response", "batch")),
            "dense_width": When("dense_depth", at_least=1),
        },
        build=build,
        search_within=(
            "depth=2..5",
            "width=16..64",
            "kernel_1=3..5",
            "stride=1..2",
            "padding=same",
            "cells=1..3",
            "dense_depth=0..2",
            "dense_width=64..256",
        ),
    )


SPACE = _space()


def _alexnet(side: int, params: int, source: str, widths: tuple[int, ...], **choices: Any) -> Named:
    return Named.of(
        "alexnet",
        (side, side, 3),
        1000,
        params,
        source,
        depth=5,
        **{f"width_{i}": width for i, width in enumerate(widths, 1)},
        **{f"kernel_{i}": kernel for i, kernel in enumerate((11, 5, 3, 3, 3), 1)},
        **{f"pool_{i}": i in (1, 2, 5) for i in range(1, 6)},
        stride=4,
        pooling="overlapping_max",
        activation="relu",
        cells=6,
        dense_depth=2,
        dense_width=4096,
        dropout=0.5,
        optimiser="momentum",
        learning_rate=0.01,
        schedule="step",
        batch_size=128,
        weight_decay=5e-4,
        label_smoothing=0.0,
        augmentation="crop+flip+pca",
        **choices,
    )


_WIDTHS = (96, 256, 384, 384, 256)
_RESPONSE = {"padding": "unpadded", "normalisation": "local_response", "normalised": "first_two"}
NAMED = {
    "alexnet": _alexnet(
        227,
        60_965_224,
        "Krizhevsky et al. 2012, section 3.5 (two groups): 'about 60 million'; the sum over its layers",
        _WIDTHS,
        groups=2,
        **_RESPONSE,
    ),
    "alexnet_one_group": _alexnet(
        227,
        62_378_344,
        "Krizhevsky et al. 2012's widths in one group, on one device: the sum over its layers",
        _WIDTHS,
        groups=1,
        **_RESPONSE,
    ),
    "alexnet_owt": _alexnet(
        224,
        61_100_840,
        "torchvision's alexnet, after Krizhevsky 2014, 'One weird trick': one group, no normalisation",
        (64, 192, 384, 256, 256),
        groups=1,
        padding="two",
        normalisation="none",
    ),
}
