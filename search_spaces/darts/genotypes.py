"""Cells in the published notation, as points of the space, and to be drawn."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from nas.errors import InputError, one_of
from nas.space import Architecture, Cell

KINDS = ("normal", "reduce")
CELLS = {kind: f"{kind}_" for kind in KINDS}  # how the names of their choices begin
SKIP = "skip_connect"
PRIMITIVES = (  # in the order of the published alphas
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
OPERATIONS = (*PRIMITIVES[1:], "sep_conv_7x7", "conv_7x1_1x7")  # the last two: NASNet's and AmoebaNet's


class Genotype(NamedTuple):
    """A pair of cells in the published notation: two (operation, input) a node; the nodes of the output.

    Inputs and nodes are numbered together: 0 and 1 are the cell's inputs, 2 is its first node.
    """

    normal: tuple[tuple[str, int], ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[tuple[str, int], ...]
    reduce_concat: tuple[int, ...]

    def __str__(self) -> str:
        cells = [f"{name}={list(value)!r}" for name, value in zip(self._fields, self, strict=True)]
        return f"Genotype({', '.join(cells)})"


def read_genotype(text: str) -> Genotype:
    """The inverse of ``str``; also takes ``range(2, 6)`` and any line breaks. Raises InputError."""
    place = "genotype"
    body = re.sub(r"range\((\d+),\s*(\d+)\)", lambda m: repr(list(range(int(m[1]), int(m[2])))), text.strip())
    try:
        call = ast.parse(body, mode="eval").body
        assert isinstance(call, ast.Call)
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        cells = [tuple((str(name), int(source)) for name, source in values[kind]) for kind in KINDS]
        concats = [tuple(int(node) for node in values[f"{kind}_concat"]) for kind in KINDS]
    except (SyntaxError, ValueError, AssertionError, KeyError, TypeError):
        fields = ", ".join(Genotype._fields)
        raise InputError(f"{place}: {text[:60]!r} is not Genotype({fields}) in the published form") from None
    return Genotype(cells[0], concats[0], cells[1], concats[1])


def architecture_of(genotype: Genotype, **others: Any) -> Architecture:
    """The point of the space with these cells; ``others`` are its remaining choices. Raises InputError."""
    steps = len(genotype.normal) // 2
    choices: dict[str, Any] = {"steps": steps}
    for kind, cell, concat in (
        ("normal", genotype.normal, genotype.normal_concat),
        ("reduce", genotype.reduce, genotype.reduce_concat),
    ):
        if len(cell) != 2 * steps:
            raise InputError(
                f"genotype: {kind} has {len(cell)} operations, not two for each of {steps} nodes"
            )
        for node in range(steps):
            # A node is a sum: which of its two operations is written first says nothing.
            pair = sorted(cell[2 * node : 2 * node + 2], key=lambda edge: edge[1])
            choices[f"{kind}_inputs_{node + 1}"] = f"{pair[0][1]}-{pair[1][1]}"
            for k, (operation, _) in enumerate(pair):
                if operation not in OPERATIONS:
                    raise one_of(f"genotype: {kind}", operation, OPERATIONS)
                choices[f"{kind}_{'ab'[k]}_{node + 1}"] = operation
        every = range(2, 2 + steps)
        choices[f"{kind}_concat"] = (
            "all" if sorted(concat) == list(every) else "-".join(map(str, sorted(concat)))
        )
    return Architecture(choices | others)


def genotype_of(arch: Mapping[str, Any]) -> Genotype:
    """The cells of an architecture in the published notation."""
    cells: dict[str, Any] = {}
    for kind in KINDS:
        edges: list[tuple[str, int]] = []
        for node in range(1, arch["steps"] + 1):
            sources = [int(source) for source in arch[f"{kind}_inputs_{node}"].split("-")]
            edges += [(arch[f"{kind}_{k}_{node}"], source) for k, source in zip("ab", sources, strict=True)]
        cells[kind], cells[f"{kind}_concat"] = tuple(edges), concat_of(arch, kind)
    return Genotype(**cells)


def concat_of(arch: Mapping[str, Any], kind: str) -> tuple[int, ...]:
    """The nodes that are a cell's output, counting its inputs."""
    text = arch[f"{kind}_concat"]
    return tuple(range(2, 2 + arch["steps"])) if text == "all" else tuple(map(int, text.split("-")))


def cells_of(arch: Mapping[str, Any]) -> dict[str, Cell]:
    """Both cells to be drawn: ``c(k-2)`` and ``c(k-1)`` are the outputs of the two cells before."""
    genotype, found = genotype_of(arch), {}
    for kind in KINDS:
        nodes = ("c(k-2)", "c(k-1)", *map(str, range(1, arch["steps"] + 1)), "c(k)")
        edges = [
            (nodes[source], nodes[2 + k // 2], operation)
            for k, (operation, source) in enumerate(getattr(genotype, kind))
        ]
        edges += [(nodes[j], nodes[-1], "") for j in concat_of(arch, kind)]
        found[kind] = Cell(nodes, tuple(edges))
    return found
