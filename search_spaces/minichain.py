"""The ``minichain`` space: 360 networks of ``chain`` and how they are trained, few and small enough to train them all.

One to three blocks, equally wide, with 2x2 max pooling after each; dense connections reduce the resolution by average
pooling. The learning rate and the augmentation are choices as well: they make learning curves cross. Every choice
matters where it exists: no two architectures are the same network. `nas.tables` has the table of all of them.
"""

from __future__ import annotations

from nas.nn.graph import Graph
from nas.space import Architecture, Categorical, Integer, SearchSpace, When
from search_spaces import chain


def build(arch: Architecture, num_classes: int) -> Graph:
    """The network of a ``minichain`` architecture: [B, H, W, C] -> logits [B, num_classes]."""
    blocks = range(1, arch["depth"] + 1)
    whole = {
        "depth": arch["depth"],
        **{f"width_{i}": arch["width"] for i in blocks},
        **{f"kernel_{i}": arch["kernel"] for i in blocks},
        "stride": 1,
        "pooling": "max",
        "downsample_every": 1,
        "connections": arch.get("connections", "plain"),
        "normalisation": arch["normalisation"],
        "activation": "relu",
        "head_depth": 0,
    }
    return chain.build(Architecture(whole), num_classes)


SPACE = SearchSpace(
    name="minichain",
    choices={
        "depth": Integer(1, 3),
        "width": Categorical((4, 8, 16)),
        "kernel": Categorical((3, 5)),
        "connections": Categorical(("plain", "dense")),
        "normalisation": Categorical(("none", "batch")),
        "learning_rate": Categorical((0.003, 0.02, 0.1), changes_program=False),
        "augmentation": Categorical(("none", "crop+cutout")),
    },
    conditions={"connections": When("depth", at_least=2)},
    build=build,
)
