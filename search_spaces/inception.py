"""The ``inception`` space: networks of inception modules, GoogLeNet among them (Szegedy et al. 2014).

A module joins up to four branches along channels (figure 2): a 1x1 convolution; a 1x1 reduction, then a 3x3
convolution; a 1x1 reduction, then a larger one of ``large_kernel``; 3x3 max pooling, then a 1x1 projection.
Every convolution is followed by bias or batch normalisation, and activation. ``stages`` stages of ``modules_<i>``
modules halve the map between them by ``pooling_<i>``; then global average pooling and a classifier.

With ``widths=shares`` a module of stage i has ``width_<i>`` channels, shared among the branches in proportion to
``share_1x1_<i>``, ``share_3x3_<i>``, ``share_large_<i>`` and ``share_pool_<i>`` (0: there is no such branch);
``reduce_3x3_<i>`` and ``reduce_large_<i>`` are a reduction's channels over those of the convolution that it
serves (0: none, the naive module of figure 2a). With ``widths=googlenet`` the j-th module of stage i has
``scale`` times the widths of table 1 (its stage's last ones where there are more modules).

The stem is one 3x3 convolution (``small``), or GoogLeNet's of three convolutions and two pools (1/4 of the
resolution). ``normalisation=local_response`` normalises in the stem alone, as published, with the constants of
Krizhevsky et al. 2012. ``auxiliary`` adds the paper's two further classifiers (section 5) behind the first and
the last but one module of the second stage, with weight 0.3; only training runs them.

The hyperparameter ``dropout`` is the probability in front of the main classifier; in front of the auxiliary
ones it is the paper's 0.7, always. Convolutions are He-normal: the paper does not say what its are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
from jax import Array

from nas.nn import layers
from nas.nn.graph import Builder, Graph
from nas.nn.layers import CellAverage, Concat, Dense, NormAct, Pool
from nas.space import (
    Architecture,
    Categorical,
    Choice,
    Constraint,
    Integer,
    LogUniform,
    SearchSpace,
    Uniform,
    When,
)
from search_spaces.named import Named

STAGES = (1, 2, 3)
BRANCHES = ("1x1", "3x3", "large", "pool")
AUXILIARY_WEIGHT, AUXILIARY_DROPOUT = 0.3, 0.7
EPSILON = 1e-3  # of batch normalisation, in Inception's own code and in torchvision


class Widths(NamedTuple):
    """Channels of a module's convolutions; 0: it does not have it."""

    conv_1x1: int
    reduce_3x3: int
    conv_3x3: int
    reduce_large: int
    conv_large: int
    project: int

    @property
    def total(self) -> int:
        return self.conv_1x1 + self.conv_3x3 + self.conv_large + self.project


GOOGLENET = (  # table 1: 3a and b, 4a to e, 5a and b
    (Widths(64, 96, 128, 16, 32, 32), Widths(128, 128, 192, 32, 96, 64)),
    (
        Widths(192, 96, 208, 16, 48, 64),
        Widths(160, 112, 224, 24, 64, 64),
        Widths(128, 128, 256, 24, 64, 64),
        Widths(112, 144, 288, 32, 64, 64),
        Widths(256, 160, 320, 32, 128, 128),
    ),
    (Widths(256, 160, 320, 32, 128, 128), Widths(384, 192, 384, 48, 128, 128)),
)


class ResponseNorm(nn.Module):
    """Local response normalisation of a map, with the constants of Krizhevsky et al. 2012."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return layers.local_response_norm(x)


def widths_of(arch: Architecture, stage: int, module: int) -> Widths:
    """The channels of the ``module``-th module of ``stage``, both from 1."""
    if arch["widths"] == "googlenet":
        published = GOOGLENET[stage - 1]
        found = published[min(module, len(published)) - 1]
        return Widths(*(max(1, round(width * arch["scale"])) for width in found))
    shares = {branch: arch[f"share_{branch}_{stage}"] for branch in BRANCHES}
    unit = arch[f"width_{stage}"] / sum(shares.values())
    channels = {branch: max(1, round(share * unit)) if share else 0 for branch, share in shares.items()}

    def reduction(branch: str) -> int:
        part = arch.get(f"reduce_{branch}_{stage}", 0.0)
        return max(1, round(part * channels[branch])) if part else 0

    return Widths(
        conv_1x1=channels["1x1"],
        reduce_3x3=reduction("3x3"),
        conv_3x3=channels["3x3"],
        reduce_large=reduction("large"),
        conv_large=channels["large"],
        project=channels["pool"],
    )


def build(arch: Architecture, num_classes: int) -> Graph:
    """The network of an ``inception`` architecture: [B, H, W, C] -> logits [B, num_classes]."""
    SPACE.check_known(arch, "stem", "pooling", "widths", "normalisation")
    b = Builder()
    kind = "batch" if arch["normalisation"] == "batch" else "none"
    norm = NormAct(kind, arch["activation"], EPSILON)

    def conv(name: str, x: int, features: int, kernel: int = 1, **options: Any) -> int:
        y = b.add(f"conv_{name}", layers.conv(features, kernel, **options), x)
        return b.add(f"norm_{name}", norm, y)

    def response(name: str, x: int) -> int:
        return b.add(name, ResponseNorm(), x) if arch["normalisation"] == "local_response" else x

    def module(name: str, x: int, widths: Widths) -> int:
        ends = [conv(f"{name}_1x1", x, widths.conv_1x1)] if widths.conv_1x1 else []
        for branch, reduced, features, kernel in (
            ("3x3", widths.reduce_3x3, widths.conv_3x3, 3),
            ("large", widths.reduce_large, widths.conv_large, arch["large_kernel"]),
        ):
            if features:
                y = conv(f"{name}_{branch}_reduce", x, reduced) if reduced else x
                ends.append(conv(f"{name}_{branch}", y, features, kernel))
        if widths.project:
            pooled = b.add(f"pool_{name}", Pool("max", window=3, stride=1), x)
            ends.append(conv(f"{name}_project", pooled, widths.project))
        return b.add(f"module_{name}", Concat(), *ends) if len(ends) > 1 else ends[0]

    def classifier(name: str, x: int, width: int) -> None:
        """An auxiliary one; at GoogLeNet's 512 channels of module 4a it has the paper's 128 and 1024."""
        y = b.add(f"{name}_pool", Pool("average", window=5, stride=3, padding="FIT"), x)
        y = conv(name, y, max(1, width // 4))
        y = b.add(f"{name}_flat", CellAverage(4), y)
        y = b.add(f"{name}_dense", Dense(2 * width, bias=False, rate=0.0), y)
        y = b.add(f"{name}_act", NormAct("none", arch["activation"]), y)
        b.add(name, Dense(num_classes, rate=AUXILIARY_DROPOUT), y)

    width = arch["stem_width"]
    if arch["stem"] == "small":
        x = response("response_1", conv("1", 0, width, 3))
    else:
        x = conv("1", 0, width, 7, stride=2, padding=3)
        x = response("response_1", b.add("pool_1", Pool("overlapping_max"), x))
        x = response("response_2", conv("3", conv("2", x, width), 3 * width, 3))
        x = b.add("pool_2", Pool("overlapping_max"), x)
    heads: dict[str, float] = {}
    for stage in STAGES[: arch["stages"]]:
        if stage > 1:
            x = b.add(f"shrink_{stage - 1}", Pool(arch[f"pooling_{stage - 1}"]), x)
        last = arch[f"modules_{stage}"]
        for i in range(1, last + 1):
            x = module(f"{stage}_{i}", x, widths_of(arch, stage, i))
            if stage == 2 and i in (1, last - 1) and arch.get("auxiliary"):
                name = f"auxiliary_{len(heads) + 1}"
                classifier(name, x, widths_of(arch, stage, 1).total)
                heads[name] = AUXILIARY_WEIGHT
    x = b.add("average", CellAverage(1), x)
    b.add("logits", Dense(num_classes), x)
    return b.graph(heads)


def _has_a_branch(arch: Architecture) -> bool:
    return any(arch.values()) or not arch  # without shares the widths are GoogLeNet's


def _space() -> SearchSpace:
    choices: dict[str, Choice] = {
        "stem": Categorical(("small", "googlenet")),
        "stem_width": Categorical((8, 16, 32, 64)),
        "stages": Integer(1, len(STAGES)),
        **{f"modules_{i}": Integer(1, 5) for i in STAGES},
        **{f"pooling_{i}": Categorical(("overlapping_max", "max", "average")) for i in STAGES[:-1]},
        "widths": Categorical(("shares", "googlenet")),
        "scale": Categorical((0.125, 0.25, 0.5, 1.0)),
    }
    conditions: dict[str, Any] = {"scale": When("widths", values=("googlenet",))}
    for i in STAGES:
        there = (When("stages", at_least=i),) if i > 1 else ()
        conditions[f"modules_{i}"] = there
        if i > 1:
            conditions[f"pooling_{i - 1}"] = there
        shared = (*there, When("widths", values=("shares",)))
        own: dict[str, Choice] = {f"width_{i}": Categorical((16, 32, 64, 128, 256, 512, 1024))}
        own |= {f"share_{branch}_{i}": Integer(0, 4) for branch in BRANCHES}
        conditions |= dict.fromkeys(own, shared)
        for branch in ("3x3", "large"):
            own[f"reduce_{branch}_{i}"] = Categorical((0.0, 0.25, 0.5, 0.75))
            conditions[f"reduce_{branch}_{i}"] = (*shared, When(f"share_{branch}_{i}", at_least=1))
        choices |= own
    choices |= {
        "large_kernel": Categorical((5, 3)),
        "normalisation": Categorical(("batch", "none", "local_response")),
        "activation": Categorical(("relu", "gelu", "silu", "tanh")),
        "auxiliary": Categorical((False, True)),
        "dropout": Uniform(0.0, 0.5, changes_program=False),
        "optimiser": Categorical(("momentum", "nesterov", "adamw")),
        "learning_rate": LogUniform(1e-3, 1e-1, changes_program=False),
        "schedule": Categorical(("linear", "cosine", "step"), changes_program=False),
        "batch_size": Categorical((32, 64, 128)),
        "weight_decay": LogUniform(1e-6, 1e-2, changes_program=False),
        "label_smoothing": Uniform(0.0, 0.2, changes_program=False),
        "augmentation": Categorical(("none", "crop", "crop+flip", "crop+flip+colour")),
    }
    conditions["auxiliary"] = (When("stages", at_least=2), When("modules_2", at_least=3))
    return SearchSpace(
        name="inception",
        choices=choices,
        conditions=conditions,
        constraints=[
            Constraint(
                f"a module of stage {i} has a branch",
                _has_a_branch,
                [f"share_{branch}_{i}" for branch in BRANCHES],
            )
            for i in STAGES
        ],
        build=build,
        search_within=(
            "stem=small",
            "stem_width=8..32",
            "stages=1..2",
            "modules=1..3",
            "widths=shares",
            "width=16..64",
        ),
    )


SPACE = _space()


def _googlenet(params: int, source: str, **choices: Any) -> Named:
    return Named.of(
        "inception",
        (224, 224, 3),
        1000,
        params,
        source,
        **{
            "stem": "googlenet",
            "stem_width": 64,
            "stages": 3,
            **{f"modules_{i}": len(published) for i, published in zip(STAGES, GOOGLENET, strict=True)},
            "pooling_1": "overlapping_max",
            "pooling_2": "overlapping_max",
            "widths": "googlenet",
            "scale": 1.0,
            "large_kernel": 5,
            "normalisation": "local_response",
            "activation": "relu",
            "auxiliary": False,
            "dropout": 0.4,
            "optimiser": "momentum",
            "learning_rate": 0.01,
            "schedule": "linear",
            "batch_size": 128,
            "weight_decay": 2e-4,
            "label_smoothing": 0.0,
            "augmentation": "crop+flip+colour",
            **choices,
        },
    )


NAMED = {
    "googlenet": _googlenet(
        6_998_552,
        "Szegedy et al. 2014, table 1, with biases and without auxiliary classifiers: the sum over its layers",
    ),
    "googlenet_aux": _googlenet(
        13_378_280,
        "Szegedy et al. 2014, table 1 and the two classifiers of section 5: the sum over its layers",
        auxiliary=True,
    ),
    "googlenet_bn": _googlenet(
        6_624_904,
        "torchvision's googlenet(aux_logits=False): batch normalisation, no biases, 3x3 for 5x5, a last 2x2 pool",
        normalisation="batch",
        large_kernel=3,
        pooling_2="max",
        dropout=0.2,
    ),
}
