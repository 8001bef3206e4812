"""Networks of cells: the evaluation network, and what it shares with the network of the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nas.nn.graph import Builder, First, Graph, Term
from nas.nn.layers import Activation, BatchNorm, CellAverage, Concat, Dense
from nas.nn.layout import Open
from search_spaces.darts.genotypes import SKIP
from search_spaces.darts.modules import (
    AuxiliaryFeatures,
    Dropout,
    DropPath,
    FactorizedReduce,
    PointwiseNorm,
    kernel,
    operation,
    takes_relu,
)

AUXILIARY_WEIGHT = 0.4


class Body:
    """The cells of a network, one after the other; what two edges would do alike is one node."""

    def __init__(self, b: Builder, stem: tuple[int, int], width: int, affine: bool, reduced: bool) -> None:
        self.b, self.affine = b, affine
        self.previous, self.current = stem
        self.width, self.reduced = width, reduced  # whether the cell before halved the resolution

    def inputs(self, at: str, reduction: bool) -> list[int]:
        """The cell's two inputs, brought to its channels and to one resolution."""
        self.width *= 2 if reduction else 1
        first = FactorizedReduce if self.reduced else PointwiseNorm
        before = self.b.once(f"{at}_relu_previous", Activation("relu"), self.previous)
        last = self.b.once(f"{at}_relu_current", Activation("relu"), self.current)
        return [
            self.b.add(f"{at}_input_0", first(self.width, self.affine), before),
            self.b.add(f"{at}_input_1", PointwiseNorm(self.width, self.affine), last),
        ]

    def edge(
        self,
        name: str,
        state: str,
        choice: Any,
        source: int,
        stride: int,
        drop_path: bool,
        skip_dropout: bool,
    ) -> list[Term]:
        """What an edge of operation ``choice`` brings from the value ``source``; ``state`` names what edges share."""

        def make(primitive: str, x: int, part: int) -> int | None:
            if primitive == "none":
                return None
            dropped = skip_dropout and primitive == SKIP
            mixed = isinstance(choice, Open) and not dropped and not drop_path  # read by a `Mix` alone
            module = operation(primitive, self.width // part, stride, self.affine, mixed)
            if module is None:
                out = x
            elif not takes_relu(primitive):
                out = self.b.once(f"{state}_{primitive}", module, x)
            else:
                out = self.b.add(
                    f"{name}_{primitive}", module, self.b.once(f"{state}_relu", Activation("relu"), x)
                )
            if dropped:
                out = self.b.add(f"{name}_skip_dropout", Dropout(), out)
            # What is passed on as it is is not dropped.
            return self.b.add(f"{name}_drop", DropPath(), out) if drop_path and module else out

        return self.b.choose(choice, make, source, name=state, stride=stride)

    def close(self, at: str, states: Sequence[int], unused: Sequence[int], reduction: bool) -> None:
        """The cell's output are ``states``; ``unused``: those that nothing reads, computed all the same."""
        output = self.b.add(f"{at}_output", Concat(), *states)
        if unused:
            output = self.b.add(f"{at}_used", First(), output, *unused)
        self.previous, self.current = self.current, output
        self.reduced = reduction


def small_stem(b: Builder, width: int) -> tuple[int, int]:
    stem = b.add("stem_norm", BatchNorm(), b.add("stem", kernel(width), 0))
    return stem, stem


def imagenet_stem(b: Builder, width: int) -> tuple[int, int]:
    x = b.add(
        "stem_norm_1", BatchNorm(activation="relu"), b.add("stem_1", kernel(width // 2, stride=(2, 2)), 0)
    )
    first = b.add("stem_norm_2", BatchNorm(), b.add("stem_2", kernel(width, stride=(2, 2)), x))
    second = b.add("stem_3", kernel(width, stride=(2, 2)), b.add("stem_relu", Activation("relu"), first))
    return first, b.add("stem_norm_3", BatchNorm(), second)


Edges = Sequence[Sequence[tuple[Any, int]]]  # of each node, pairs of an operation (or `Open`) and its input


def network(
    edges: Mapping[str, Edges],
    concat: Mapping[str, Sequence[int]],
    num_classes: int,
    *,
    channels: int,
    cells: int,
    imagenet: bool = False,
    auxiliary: bool = False,
    searching: bool = False,
    skip_dropout: bool = False,
) -> Graph:
    """The network of cells with these ``edges`` and output nodes ``concat``, by the kind of cell.

    ``searching``: as in the search, where normalisation has no scale and bias of its own, pools are normalised
    and no path is dropped; ``skip_dropout`` then drops out elements of skip connections.
    """
    b = Builder()
    stem = imagenet_stem(b, channels) if imagenet else small_stem(b, 3 * channels)
    body = Body(b, stem, channels, affine=not searching, reduced=imagenet)
    head = {}
    for cell in range(cells):
        reduction = cell in (cells // 3, 2 * cells // 3)
        kind = "reduce" if reduction else "normal"
        at = f"cell_{cell + 1}"
        states = body.inputs(at, reduction)
        for node, arriving in enumerate(edges[kind], 2):
            terms: list[Term] = []
            named: set[str] = set()
            for choice, j in arriving:
                name = f"{at}_node_{node}_from_{j}"
                name += "_again" if name in named else ""
                named.add(name)
                stride = 2 if reduction and j < 2 else 1
                state = f"{at}_state_{j}"
                terms += body.edge(name, state, choice, states[j], stride, not searching, skip_dropout)
            states.append(b.mix(f"{at}_node_{node}", terms))
        read = {j for arriving in edges[kind] for _, j in arriving}.union(concat[kind])
        unused = [state for j, state in enumerate(states) if j not in read]
        body.close(at, [states[j] for j in concat[kind]], unused, reduction)
        if auxiliary and cell == 2 * cells // 3:
            relu = b.once(f"{at}_auxiliary_relu", Activation("relu"), body.current)
            head = {"auxiliary": AUXILIARY_WEIGHT}
            features = b.add("auxiliary_features", AuxiliaryFeatures(imagenet), relu)
            b.add("auxiliary", Dense(num_classes), features)
    b.add("logits", Dense(num_classes), b.add("average", CellAverage(1), body.current))
    return b.graph(head)
