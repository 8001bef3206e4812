"""Architectures and spaces as text."""

import pytest

from nas.space import Categorical, Constraint, Integer, SearchSpace, Uniform, When, parse_architecture
from tests.spaces import ARCH, CELL, CHAIN, TEXT, line_of, space_of


def test_the_canonical_text() -> None:
    assert CHAIN.to_string(ARCH) == TEXT
    assert CHAIN.from_string(TEXT) == ARCH
    assert (
        CHAIN.from_string(
            " pool = max , depth=2,bias=none,width_1=16.0,width_2=32,learning_rate=1e-3,dropout=0"
        )
        == ARCH
    )
    assert CHAIN.from_string(ARCH.to_json()) == ARCH
    assert CHAIN.to_string(ARCH.set(dropout=0)) == TEXT
    assert type(CHAIN.canonical(ARCH.set(dropout=0))["dropout"]) is float


def test_the_fields_own_notation() -> None:
    text = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"
    space, arch = parse_architecture(f"cell:{text}", {"cell": CELL, "chain": CHAIN})
    assert space is CELL
    assert CELL.to_string(arch) == text
    assert arch["op_2_1"] == "nor_conv_1x1"
    assert parse_architecture(f"cell:{arch.to_json()}", {"cell": CELL}) == (CELL, arch)
    assert (
        line_of(CELL.from_string, "|a~0|")
        == "cell: '|a~0|': a cell has nodes of one, two and three operations"
    )
    assert line_of(CELL.from_string, text.replace("none~1", "no~1")).startswith(
        "cell: op_3_1=no is not one of none,"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "chain: depth is missing; it is one of 1..3"),
        ("depth", "chain: 'depth' is not name=value"),
        ("depth=2,,pool=max", "chain: '' is not name=value"),
        ("depth=two", "chain: depth=two is not one of 1..3"),
        ("depth=2,depth=3", "chain: depth is given twice"),
        (
            "dept=2",
            "chain: dept is not one of depth, width_1..3, pool, bias, learning_rate, dropout (did you",
        ),
        (TEXT.replace("0.001", "nan"), "chain: learning_rate=nan is not in 0.0001..1.0"),
        (TEXT.replace("0.001", "5"), "chain: learning_rate=5.0 is not in 0.0001..1.0"),
        (TEXT.replace("depth=2", "depth=1"), "chain: width_2=32 does not exist here, only when depth >= 2"),
        ('{"depth": 2', "architecture: '{\"depth\": 2' is not JSON"),
    ],
)
def test_bad_text_is_one_line(text: str, said: str) -> None:
    assert line_of(CHAIN.from_string, text).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT, f"architecture: '{TEXT[:78]}… is not space:architecture; spaces: chain, cell"),
        ("chian:depth=1", "architecture: space: 'chian' is not one of chain, cell (did you mean chain?)"),
        ("chain:depth=1", "chain: width_1 is missing; it is one of 16, 32"),
    ],
)
def test_bad_architecture_arguments_are_one_line(text: str, said: str) -> None:
    assert line_of(parse_architecture, text, {"chain": CHAIN, "cell": CELL}) == said


def test_the_description() -> None:
    differ = Constraint("the first two differ", lambda arch: arch["width_1"] != arch.get("width_2"), "width")
    space = SearchSpace("chain", CHAIN.choices, CHAIN.conditions, (differ,))
    assert (
        space.describe()
        == """\
choice         values             exists when  in the program
-------------  -----------------  -----------  --------------
depth          1..3               always       built in
width_1        16, 32             always       built in
width_2..3     16, 32             depth >= i   built in
pool           none, max          always       built in
bias           True, False, None  always       built in
learning_rate  0.0001..1.0 (log)  always       argument
dropout        0.0..0.5           always       argument
constraint: the first two differ
chain: 8 choices, infinitely many architectures (learning_rate, dropout continuous; 432 with 3 points each)"""
    )


def test_a_description_keeps_numbers_that_are_no_index() -> None:
    space = space_of(
        depth=Integer(1, 3),
        kind_1=Categorical((1, 3)),
        size_1=Integer(1, 3),
        kind_3=Categorical((1, 3)),
        size_3=Integer(1, 3),
        conditions={
            "kind_1": When("depth", at_least=1),
            "kind_3": When("depth", at_least=3),
            "size_1": When("kind_1", values=(1, 3)),
            "size_3": When("kind_3", values=(1, 3)),
        },
    )
    lines = space.describe().splitlines()
    assert "size_1  1..3    kind_1 in 1, 3  built in" in lines
    assert "size_3  1..3    kind_3 in 1, 3  built in" in lines
    assert "kind_3  1, 3    depth >= 3      built in" in lines
    assert lines[-1] == f"s: 5 choices, {space.count():,} architectures"


def test_what_is_no_number_is_compared_with_none() -> None:
    space = space_of(
        o=Categorical(("x", "y")),
        u=Uniform(0, 1),
        v=Integer(0, 1),
        conditions={"u": When("o", ("x",)), "v": When("u", at_least=0.5)},
    )
    assert line_of(space.from_string, '{"o": "y", "u": "hello"}').startswith("s: u=hello")
