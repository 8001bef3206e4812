"""Two small search spaces, and how their error lines are read."""

from collections.abc import Callable
from typing import Any

import pytest

from nas.errors import InputError
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

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def read_cell(text: str) -> dict[str, str]:
    nodes = [node.strip("|").split("|") for node in text.split("+")]
    if [len(node) for node in nodes] != [1, 2, 3]:
        raise ValueError("a cell has nodes of one, two and three operations")
    return {
        f"op_{to}_{edge.split('~')[1]}": edge.split("~")[0]
        for to, node in enumerate(nodes, 1)
        for edge in node
    }


def write_cell(arch: Architecture) -> str:
    nodes = [[f"{arch[f'op_{to}_{at}']}~{at}" for at in range(to)] for to in (1, 2, 3)]
    return "+".join(f"|{'|'.join(node)}|" for node in nodes)


CELL = SearchSpace(
    name="cell",
    choices={f"op_{to}_{at}": Categorical(OPERATIONS) for to in (1, 2, 3) for at in range(to)},
    format=write_cell,
    parse=read_cell,
)
CHAIN = SearchSpace(
    name="chain",
    choices={
        "depth": Integer(1, 3),
        "width_1": Categorical((16, 32)),
        "width_2": Categorical((16, 32)),
        "width_3": Categorical((16, 32)),
        "pool": Categorical(("none", "max")),
        "bias": Categorical((True, False, None)),
        "learning_rate": LogUniform(1e-4, 1.0, changes_program=False),
        "dropout": Uniform(0.0, 0.5, changes_program=False),
    },
    conditions={"width_2": When("depth", at_least=2), "width_3": [When("depth", at_least=3)]},
)
ARCH = Architecture(depth=2, width_1=16, width_2=32, pool="max", bias=None, learning_rate=0.001, dropout=0.0)
TEXT = "depth=2,width_1=16,width_2=32,pool=max,bias=None,learning_rate=0.001,dropout=0.0"


def line_of(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """The message of the ``InputError`` that the call raises; one line."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def space_of(*constraints: Constraint, conditions: Any = None, **choices: Choice) -> SearchSpace:
    return SearchSpace("s", choices, conditions or {}, constraints)
