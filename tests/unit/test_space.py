"""Architectures and search spaces: known answers, exact error lines, and random spaces against brute force."""

import enum
import itertools
import math
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import InputError
from nas.space import (
    Architecture,
    Categorical,
    Choice,
    Constraint,
    Integer,
    LogUniform,
    Range,
    SearchSpace,
    Size,
    Uniform,
    When,
    parse_architecture,
    parse_assignments,
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


# ---------------------------------------------------------------------------------------------- architectures


class Kind(enum.StrEnum):
    WIDE = "wide"


def test_an_architecture_is_an_unordered_value() -> None:
    one, two = Architecture(depth=3, pool="max"), Architecture({"pool": "max"}, depth=3)
    assert one == two == {"depth": 3, "pool": "max"}
    assert hash(one) == hash(two)
    assert {one: 1}[two] == 1
    assert one != Architecture(depth=3)
    assert one != "depth=3"
    assert one.set(depth=4, width=8) == Architecture(depth=4, pool="max", width=8)
    assert one.without("pool", "other") == Architecture(depth=3)
    assert one == two
    assert eval(repr(one)) == one


def test_an_architecture_does_not_change() -> None:
    source = {"depth": 3}
    arch: Any = Architecture(source)
    source["depth"] = 4
    assert arch["depth"] == 3
    with pytest.raises(AttributeError, match=r"immutable: use \.set\(depth=…\)"):
        arch.depth = 4
    with pytest.raises(AttributeError, match="immutable"):
        del arch._values
    with pytest.raises(TypeError):
        arch["depth"] = 4


def test_an_architecture_holds_plain_values() -> None:
    arch = Architecture(a=np.float32(0.5), b=np.int64(3), c=np.bool_(True), d=np.str_("x"), e=Kind.WIDE)
    assert [type(value) for value in arch.values()] == [float, int, bool, str, str]
    assert arch.to_json() == '{"a": 0.5, "b": 3, "c": true, "d": "x", "e": "wide"}'


def test_a_pickled_architecture_forgets_its_hash() -> None:
    arch = Architecture(a="x", b=1)
    assert hash(arch) == arch._hash
    copied = pickle.loads(pickle.dumps(arch))
    assert copied._hash is None
    assert copied == arch


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{oops", "architecture: '{oops' is not JSON (Expecting property name"),
        ("[1]", "architecture: '[1]' is not a JSON object of names and values"),
        ([1], "architecture: [1] is not a JSON object of names and values"),
        ('{"a": 1, "a": 2}', "architecture: a is given twice"),
        ('{"a": NaN}', "architecture: a=nan is not finite"),
        ('{"a": 1e999}', "architecture: a=inf is not finite"),
        ('{"a": [1]}', "architecture: a=[1] is not a string, number, bool or None"),
        (b"\xff", "architecture: b'\\xff' is not JSON"),
        ("[" * 100_000, "architecture: '[[["),
        ({3: 1}, "architecture: the name 3 is not a string"),
        ({"a\nb": {}}, "architecture: 'a\\nb'={} is not a string, number, bool or None"),
    ],
)
def test_bad_json_is_one_line(source: Any, said: str) -> None:
    assert line_of(Architecture.from_json, source).startswith(said)


# ---------------------------------------------------------------------------------------------------- choices


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Categorical(()), "Categorical: there are no values to choose from"),
        (lambda: Categorical("abc"), "Categorical: 'abc' is one string, not a sequence of values"),
        (lambda: Categorical((1, 1.0)), "Categorical: two of the values (1, 1.0) are the same"),
        (lambda: Categorical(("1", 1)), "Categorical: two of the values ('1', 1) are the same"),
        (lambda: Categorical((math.nan,)), "architecture: value=nan is not finite"),
        (lambda: Integer(3, 2), "Integer: low=3 is above high=2"),
        (lambda: cast(Any, Integer)(0, 2.5), "Integer: high=2.5 is not a whole number"),
        (lambda: Integer(False, 2), "Integer: low=False is not a whole number"),
        (lambda: Integer(0, 2**60), "Integer: 0..1152921504606846976 is too wide"),
        (lambda: Uniform(1, 1), "Uniform: low=1.0 is not below high=1.0"),
        (lambda: cast(Any, Uniform)("0", 1), "Uniform: low='0' is not a number"),
        (
            lambda: Uniform(1e9, 1e9 + 1e-3),
            "Uniform: 1000000000.0..1000000000.001 is too narrow to hold a million values",
        ),
        (lambda: Uniform(-1e308, 1e308), "Uniform: -1e+308..1e+308 is too wide"),
        (lambda: LogUniform(0, 1), "LogUniform: low=0.0 is not above 0"),
        (lambda: LogUniform(1e-300, 1e300), "LogUniform: 1e-300..1e+300 (log) is too wide"),
        (
            lambda: Constraint("x", bool, ()),
            "Constraint: 'x' looks at no choice; None stands for all",
        ),
        (lambda: When("a"), "When('a'): give values, or at_least and at_most"),
        (lambda: When("a", (1,), at_least=1), "When('a'): give values, or at_least and at_most"),
        (lambda: When("a", "max"), "When('a'): 'max' is one string, not a sequence of values"),
    ],
)
def test_impossible_parts_are_one_line(make: Callable[[], Any], said: str) -> None:
    assert line_of(make) == said


@pytest.mark.parametrize("value", ["", "a,b", "a..b", " a", "a ", "{a}", "a\nb"])
def test_values_that_text_cannot_carry_are_refused(value: str) -> None:
    assert "cannot stand in an architecture's text" in line_of(Categorical, ("fine", value))


ranges = st.tuples(st.floats(-1e6, 1e6), st.floats(0.01, 1e9)).map(lambda ends: (ends[0], ends[0] + ends[1]))
log_ranges = st.tuples(st.floats(1e-12, 1e6), st.floats(1.001, 1e12)).map(lambda e: (e[0], e[0] * e[1]))
units = st.floats(0, 1)


@settings(max_examples=200)
@given(kind=st.sampled_from((Uniform, LogUniform)), data=st.data(), unit=units)
def test_continuous_values_come_back_from_their_units(kind: Any, data: st.DataObject, unit: float) -> None:
    low, high = data.draw(ranges if kind is Uniform else log_ranges)
    choice = kind(low, high)
    value = choice.from_unit(unit)
    assert low <= value <= high
    assert choice.accepts(value)
    assert 0 <= choice.to_unit(value) <= 1
    assert choice.nearest(choice.to_unit(value)) == value
    assert choice.to_unit(value) == pytest.approx(unit, abs=1e-6)
    assert [choice.from_unit(u) for u in (-1.0, 0.0, 1.0, 2.0)] == [low, low, high, high]
    for other in choice.steps(value):
        assert low <= other <= high
        assert other != value


@given(low=st.integers(-(2**70), 2**70), span=st.integers(0, 2**50), unit=units)
def test_integers_come_back_from_their_units(low: int, span: int, unit: float) -> None:
    choice = Integer(low, low + span)
    for value in {choice.from_unit(unit), choice.from_unit(1.0), choice.default, low, low + span}:
        assert choice.accepts(value)
        assert choice.nearest(choice.to_unit(value)) == value


def test_the_other_values_are_all_there_in_random_order() -> None:
    rng = np.random.default_rng(0)
    for choice in (Categorical(tuple("abcde")), Integer(3, 7)):
        for value in choice.options():
            orders = {tuple(choice.others(value, rng)) for _ in range(100)}
            assert {frozenset(order) for order in orders} == {frozenset(choice.options()) - {value}}
            assert {len(order) for order in orders} == {4}
            assert len({order[0] for order in orders}) == 4
    drawn = list(itertools.islice(Uniform(0, 1).others(0.5, rng), 50))
    assert len(set(drawn)) == 50


def test_points_are_evenly_spaced() -> None:
    assert LogUniform(1e-4, 1e-1).options(4) == (1e-4, 1e-3, 1e-2, 1e-1)
    assert LogUniform(1e-4, 1.0).options(1) == (0.01,)
    assert Uniform(0, 0.5).options(3) == (0.0, 0.25, 0.5)
    assert Uniform(-1, 3).options(1) == (1.0,)
    assert Integer(1, 10).options(4) == (1, 4, 7, 10)
    assert list(Integer(1, 3).options(7)) == [1, 2, 3]
    assert Integer(1, 9).options(1) == (5,)


def test_drawn_numbers_are_short() -> None:
    drawn = [CHAIN.sample((0, i)) for i in range(200)]
    assert max(len(repr(arch["learning_rate"])) for arch in drawn) <= len("0.000123456")
    assert max(len(repr(arch["dropout"])) for arch in drawn) <= len("0.1234567")


def test_values_are_told_apart_by_type() -> None:
    assert [Categorical((0, 1)).accepts(value) for value in (1, True, 1.0, "1", None)] == [True] + [False] * 4
    assert [Categorical((0.0, 1.0)).accepts(value) for value in (1, True, 1.0)] == [True, False, True]
    assert [Integer(0, 3).accepts(value) for value in (1, True, 1.0)] == [True, False, False]
    assert [Uniform(0, 3).accepts(value) for value in (1, True, 1.0, math.nan)] == [True, False, True, False]


# ----------------------------------------------------------------------------------------------------- spaces


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SearchSpace("s", {}), "s: a space needs at least one choice"),
        (lambda: SearchSpace("a b", {"x": Integer(0, 1)}), "space: 'a b' is not a name (no space,"),
        (lambda: SearchSpace("s", {"x=": Integer(0, 1)}), "s: 'x=' is not a choice's name (no space,"),
        (
            lambda: SearchSpace("s", cast(Any, {"x": (1, 2)})),
            "s: x=(1, 2) is not one of Categorical, Integer, Uniform, LogUniform",
        ),
        (lambda: space_of(x=Integer(0, 1), conditions={"y": When("x", (1,))}), "s: y is not one of x"),
        (lambda: space_of(x=Integer(0, 1), conditions={"x": When("y", (1,))}), "s: y is not one of x"),
        (
            lambda: space_of(x=Integer(0, 1), y=Integer(0, 1), conditions={"x": When("y", (1,))}),
            "s: condition on x: y must stand before x among the choices",
        ),
        (
            lambda: space_of(x=Integer(0, 1), conditions={"x": When("x", (1,))}),
            "s: condition on x: x must stand before x among the choices",
        ),
        (
            lambda: space_of(x=Integer(0, 1), y=Integer(0, 1), conditions={"y": When("x", (2,))}),
            "s: condition on y: x=2 is not one of 0..1",
        ),
        (
            lambda: space_of(x=Categorical(("a",)), y=Integer(0, 1), conditions={"y": When("x", at_least=1)}),
            "s: condition on y: x >= 1 compares what are not numbers: a",
        ),
        (
            lambda: space_of(Constraint("c", bool, "z"), x_1=Integer(0, 1), x_2=Integer(0, 1)),
            "s: z is not one of x_1..2",
        ),
        (
            lambda: SearchSpace("s", {"x": Integer(0, 1)}, format=str),
            "s: give both format and parse, or neither",
        ),
    ],
)
def test_impossible_spaces_are_one_line(make: Callable[[], Any], said: str) -> None:
    assert line_of(make).startswith(said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depth": 9}, "chain: depth=9 is not one of 1..3"),
        ({"depth": True}, "chain: depth=True is not one of 1..3"),
        ({"depth": 3}, "chain: width_3 is missing; it is one of 16, 32"),
        ({"depth": 1}, "chain: width_2=32 does not exist here, only when depth >= 2"),
        ({"width_1": "16"}, "chain: width_1=16 is not one of 16, 32"),
        ({"pool": "m\nx"}, "chain: pool='m\\nx' is not one of none, max"),
        ({"learning_rate": 3}, "chain: learning_rate=3 is not in 0.0001..1.0"),
        ({"bias": 1}, "chain: bias=1 is not one of True, False, None"),
        (
            {"widht_1": 16},
            "chain: widht_1 is not one of depth, width_1..3, pool, bias, learning_rate, dropout "
            "(did you mean width_1?)",
        ),
        ({"width_1": [16]}, "architecture: width_1=[16] is not a string, number, bool or None"),
    ],
)
def test_invalid_architectures_are_one_line(changes: dict[str, Any], said: str) -> None:
    CHAIN.validate(ARCH)
    assert line_of(CHAIN.validate, {**ARCH, **changes}) == said


def test_a_broken_constraint_is_named_with_its_values() -> None:
    space = space_of(
        Constraint("a before b", lambda arch: arch["a_1"] < arch["a_2"], "a"),
        Constraint("odd in all", lambda arch: sum(arch.values()) % 2 == 1),
        a_1=Integer(0, 3),
        a_2=Integer(0, 3),
        c=Integer(0, 3),
    )
    assert (
        line_of(space.validate, {"a_1": 2, "a_2": 1, "c": 0})
        == "s: a_1=2,a_2=1 breaks the constraint: a before b"
    )
    assert (
        line_of(space.validate, {"a_1": 1, "a_2": 2, "c": 1})
        == "s: architecture breaks the constraint: odd in all"
    )


def test_a_constraint_sees_what_it_names_and_nothing_else() -> None:
    seen: set[frozenset[str]] = set()

    def holds(arch: Architecture) -> bool:
        seen.add(frozenset(arch))
        return True

    space = space_of(
        Constraint("any", holds, ("b", "a")),
        a=Integer(0, 1),
        b=Integer(0, 1),
        c=Integer(0, 1),
        conditions={"b": When("a", (1,))},
    )
    arch = space.sample(0)
    space.validate(arch)
    list(space.enumerate())
    space.count()
    space.mutate(arch, 0)
    space.crossover(arch, arch, 0)
    space.decode(space.encode(arch))
    assert seen == {frozenset("a"), frozenset("ab")}


def test_a_space_travels_between_processes() -> None:
    list(itertools.islice(CELL.enumerate(), 3))
    CELL.sample(0)
    copied = pickle.loads(pickle.dumps(CELL))
    assert copied == CELL
    assert hash(copied) == hash(CELL)
    assert copied.sample(5) == CELL.sample(5)


def test_the_module_needs_numpy_alone() -> None:
    code = "import sys, nas.space; print(*{name.split('.')[0] for name in sys.modules} & set(sys.argv[1:]))"
    heavy = ["jax", "flax", "optax", "scipy", "pandas", "ray", "tensorflow", "optuna"]
    done = subprocess.run(
        [sys.executable, "-c", code, *heavy, "numpy"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["numpy"]


# -------------------------------------------------------------------------------------------------- sampling


def test_samples_are_even_over_each_choice() -> None:
    drawn = [CHAIN.sample((1, i)) for i in range(3_000)]
    for name, expected in [("depth", (1, 2, 3)), ("width_3", (16, 32)), ("bias", (True, False, None))]:
        values = [arch[name] for arch in drawn if name in arch]
        for value, many in Counter(values).items():
            assert value in expected
            even = len(values) / len(expected)
            assert abs(many - even) < 5 * math.sqrt(even)
    logarithms = [math.log10(arch["learning_rate"]) for arch in drawn]
    assert np.mean(logarithms) == pytest.approx(-2, abs=0.1)
    assert np.quantile(logarithms, [0.25, 0.75]) == pytest.approx([-3, -1], abs=0.15)


def test_keys_of_every_kind_and_streams() -> None:
    assert CHAIN.sample((3, 4)) == CHAIN.sample([3, 4]) == CHAIN.sample(np.random.default_rng((3, 4)))
    rng = np.random.default_rng(0)
    assert CHAIN.sample(rng) != CHAIN.sample(rng)
    assert len({CHAIN.sample((0, i)) for i in range(100)}) == 100


@pytest.mark.parametrize("key", [None, -1, 1.5, "seed", (0, -1)])
def test_bad_keys_are_one_line(key: Any) -> None:
    assert line_of(CHAIN.sample, key).startswith(f"chain: key={key!r} is not a whole number from 0")


def test_unsatisfiable_constraints_are_one_line() -> None:
    space = space_of(Constraint("x is above 5", lambda arch: arch["x"] > 5), x=Integer(0, 3))
    assert line_of(space.sample, 0) == "s: none of 10,000 random draws meets the constraints: x is above 5"
    assert list(space.enumerate()) == []
    assert space.count() == 0


# ---------------------------------------------------------------------------------- enumerating and counting


def test_enumeration_order_is_nested_loops() -> None:
    space = CHAIN.fix("pool", "max").fix("bias", None).fix("learning_rate", 0.1).fix("dropout", 0.1)
    shown = [tuple(arch.values())[:-4] for arch in space.enumerate()]
    assert shown[:2] == [(1, 16), (1, 32)]
    assert shown[2:6] == [(2, 16, 16), (2, 16, 32), (2, 32, 16), (2, 32, 32)]
    assert shown[6:] == [(3, *widths) for widths in itertools.product((16, 32), repeat=3)]


def test_known_counts() -> None:
    assert CELL.count() == 15_625
    assert CHAIN.count() == math.inf
    assert CHAIN.count(1) == (2 + 4 + 8) * 2 * 3
    assert CHAIN.count(3) == (2 + 4 + 8) * 2 * 3 * 9
    assert CHAIN.count({"dropout": 2, "learning_rate": 5}) == (2 + 4 + 8) * 2 * 3 * 10
    assert CHAIN.count({"dropout": 2}) == math.inf
    assert len(set(CHAIN.grid(2))) == CHAIN.count(2) == 336
    assert CHAIN.count({"dropout": 1, "learning_rate": 1, "depth": 2}) == (2 + 8) * 2 * 3


def test_a_big_space_is_counted_exactly() -> None:
    """Thirty conditional choices and two constraints: against a sum done by hand over depth."""
    blocks = range(1, 16)
    kinds = {f"kind_{i}": Categorical(("conv", "pool", "skip")) for i in blocks}
    kernels = {f"kernel_{i}": Categorical((1, 3, 5, 7)) for i in blocks}
    conditions = {f"kind_{i}": [When("depth", at_least=i)] for i in blocks}
    conditions |= {f"kernel_{i}": [When(f"kind_{i}", ["conv"])] for i in blocks}
    space = SearchSpace("big", {"depth": Integer(0, 15), **kinds, **kernels}, conditions)
    assert space.count() == sum(6**depth for depth in range(16))
    first = Constraint("block 1 is no skip", lambda a: a.get("kind_1") != "skip", ["kind_1"])
    pair = Constraint("kernel 2 is 3", lambda a: a.get("kernel_2", 3) == 3, ["kernel_2"])
    constrained = SearchSpace("big", space.choices, conditions, [first, pair])
    assert constrained.count() == 1 + 5 + sum(5 * 3 * 6 ** (depth - 2) for depth in range(2, 16))


def test_where_constraints_are_too_hard_the_size_is_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.space.counting.MAX_COUNTED", 10_000)
    first = Constraint("a_1 is 0", lambda arch: arch["a_1"] == 0, ["a_1"])
    odd = Constraint("odd", lambda arch: sum(arch.values()) % 2 == 1)
    space = space_of(first, odd, **{f"a_{i}": Integer(0, 9) for i in range(1, 10)})
    assert space.size() == Size(10**8, exact=False)
    assert str(space.size()) == "at most 100,000,000"
    assert line_of(space.count) == (
        "s: at most 100,000,000 architectures; under its constraints no exact count is in reach"
    )
    assert space.narrow("a", (0, 1)).count() == 2**7
    wide = space_of(Constraint("odd", lambda arch: arch["a"] % 2 == 1), a=Integer(0, 10**12))
    assert wide.size() == Size(10**12 + 1, exact=False)


def test_conditions_on_wide_and_continuous_choices_are_counted() -> None:
    space = space_of(
        n=Integer(0, 10**12),
        even=Categorical((1, 2, 3)),
        small=Categorical((1, 2)),
        conditions={"even": When("n", (0, 7)), "small": When("n", at_least=2.5, at_most=10)},
    )
    assert space.count() == 3 + 3 * 2 + 7 * 2 + (10**12 + 1 - 9)  # n = 0; 7; 3 to 10 without 7; others
    rates = space_of(
        rate=Uniform(0, 1), child=Categorical((1, 2, 3)), conditions={"child": When("rate", at_least=0.5)}
    )
    assert rates.count() == math.inf
    assert rates.count(3) == 1 + 2 * 3
    never = space_of(a=Integer(0, 3), rate=Uniform(0, 1), conditions={"rate": When("a", at_least=4)})
    assert never.count() == 4
    assert [dict(arch) for arch in never.enumerate()] == [{"a": a} for a in range(4)]
    assert "rate" not in never.describe()


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (0, "chain: 0 points for learning_rate is not a whole number from 1"),
        (2.0, "chain: 2.0 points for learning_rate is not a whole number from 1"),
        (True, "chain: True points for learning_rate is not a whole number from 1"),
        ({"dropout": 2}, "chain: learning_rate is continuous: say how many points of it to take"),
        ({"pool": 2}, "chain: pool is one of none, max: it has no number of points"),
        ({"depht": 2}, "chain: depht is not one of depth, width_1..3, pool, bias, learning_rate, dropout"),
        (None, "chain: learning_rate is continuous: say how many points of it to take"),
    ],
)
def test_impossible_grids_are_one_line(points: Any, said: str) -> None:
    assert line_of(CHAIN.enumerate, points).startswith(said)


Reference = Iterable[dict[str, Any]]


def reference(space: SearchSpace) -> Reference:
    """All members by brute force: every assignment of every choice, what is inactive taken out."""
    options = [[(name, value) for value in choice.options()] for name, choice in space.choices.items()]
    seen = set()
    for assignment in itertools.product(*options):
        values: dict[str, Any] = {}
        for name, value in assignment:
            whens: Any = space.conditions.get(name, ())
            if all(when.choice in values and values[when.choice] in when for when in whens):
                values[name] = value
        key = tuple(values.items())
        if key in seen:
            continue
        seen.add(key)
        held = [
            {name: value for name, value in values.items() if not c.choices or name in c.choices}
            for c in space.constraints
        ]
        if all(c.holds(Architecture(part)) for c, part in zip(space.constraints, held, strict=True)):
            yield values


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Up to six small choices, with up to two conditions each on earlier ones and up to two constraints."""
    names = list("abcdef"[: draw(st.integers(1, 6))])
    choices: dict[str, Choice] = {}
    conditions: dict[str, list[When]] = {}
    for name in names:
        low = draw(st.integers(-1, 1))
        span = draw(st.integers(0, 2))
        integers = tuple(range(low, low + span + 1))
        choices[name] = draw(st.sampled_from((Integer(low, low + span), Categorical(integers))))
        earlier = [other for other in names if other < name]
        parents = draw(st.lists(st.sampled_from(earlier), max_size=2)) if earlier else []
        conditions[name] = []
        for parent in parents:
            bound = draw(st.sampled_from((-1, -0.5, 0, 0.5, 1, 1.5, 2)))
            values: Any = draw(st.sets(st.sampled_from(list(choices[parent].options())), min_size=1))
            kinds = (When(parent, sorted(values)), When(parent, at_least=bound), When(parent, at_most=bound))
            conditions[name].append(draw(st.sampled_from(kinds)))
    constraints = []
    for modulus in draw(st.lists(st.integers(2, 3), max_size=2)):
        scope = draw(st.one_of(st.none(), st.sets(st.sampled_from(names), min_size=1)))
        constraints.append(
            Constraint(
                f"sum not 0 modulo {modulus}",
                lambda arch, modulus=modulus: not arch or sum(arch.values(), len(arch)) % modulus != 0,
                None if scope is None else sorted(scope),
            )
        )
    return SearchSpace("random", choices, conditions, constraints)


@settings(max_examples=150)
@given(space=spaces(), key=st.integers(0, 2**32))
def test_random_spaces_against_brute_force(space: SearchSpace, key: int) -> None:
    expected = list(reference(space))
    members = list(space.enumerate())
    assert [dict(arch) for arch in members] == expected
    assert space.count() == len(expected)
    if not members:
        return
    everything = set(members)
    assert space.sample(key) in everything
    arch = members[key % len(members)]
    assert space.decode(space.encode(arch)) == arch
    assert len({tuple(space.encode(member)) for member in members}) == len(members)
    vector = np.random.default_rng(key).uniform(-0.5, 1.5, space.encoded_width)
    assert space.decode(vector) in everything
    assert set(space.neighbours(arch)) <= everything - {arch}
    mutant = space.mutate(arch, key)
    assert mutant in everything
    assert (mutant != arch) == (len(members) > 1)
    other = members[(key // 7) % len(members)]
    child = space.crossover(arch, other, key)
    assert child in everything
    assert all(value in (arch.get(n), other.get(n)) for n, value in child.items() if n in arch or n in other)


@settings(max_examples=100)
@given(space=spaces(), data=st.data())
def test_narrowed_random_spaces_are_the_subset(space: SearchSpace, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(space.choices)))
    values: Any = data.draw(st.sets(st.sampled_from(list(space.choices[name].options())), min_size=1))
    narrowed = space.narrow(name, sorted(values))
    inside = [arch for arch in space.enumerate() if name not in arch or arch[name] in values]
    assert list(narrowed.enumerate()) == inside
    assert narrowed.count() == len(inside)


# -------------------------------------------------------------------------------------------------- encoding


def test_the_layout_of_an_encoding() -> None:
    space = space_of(
        kind=Categorical(("a", "b", "c")),
        depth=Integer(1, 5),
        rate=LogUniform(1e-4, 1.0),
        conditions={"depth": When("kind", ("a", "b")), "rate": When("kind", ("a",))},
    )
    assert space.encoded_names == ("kind=a", "kind=b", "kind=c", "depth", "depth?", "rate", "rate?")
    assert space.encode(Architecture(kind="c")).tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert space.encode(Architecture(kind="b", depth=1)).tolist() == [0, 1, 0, 0, 1, 0, 0]
    assert space.encode({"kind": "a", "depth": 4, "rate": 0.01}).tolist() == [1, 0, 0, 0.75, 1, 0.5, 1]
    assert space.decode([0.2, 0.9, 0.8, 0.6, 0.0, 9.0, 9.0]) == Architecture(kind="b", depth=3)
    assert space.decode([9, 0, 0, -9, 0, 9, 0]) == Architecture(kind="a", depth=1, rate=1.0)


def test_a_vector_that_breaks_a_constraint_decodes_to_its_nearest_neighbour() -> None:
    differ = Constraint("all differ", lambda arch: len(set(arch.values())) == len(arch))
    space = space_of(differ, a=Integer(0, 4), b=Integer(0, 4))
    assert space.decode([0.5, 0.49]) == Architecture(a=2, b=1)
    far = Constraint("far apart", lambda arch: abs(arch["a"] - arch["b"]) == 4)
    lonely = space_of(far, a=Integer(0, 4), b=Integer(0, 4))
    assert abs(lonely.decode([0.5, 0.5])["a"] - lonely.decode([0.5, 0.5])["b"]) == 4


@pytest.mark.parametrize("vector", [[0.0], np.zeros((2, 2)), [math.nan] * 16, [math.inf] * 16])
def test_vectors_that_are_none_are_one_line(vector: Any) -> None:
    assert CHAIN.encoded_width == 16
    assert line_of(CHAIN.decode, vector).endswith("is not an encoding: finite numbers of shape (16,)")


def test_values_between_the_points_of_the_grid_stay_valid_and_near() -> None:
    exact = ARCH.set(learning_rate=0.0012345678901234567, dropout=0.12345678901234567)
    assert CHAIN.from_string(CHAIN.to_string(exact)) == exact
    back = CHAIN.decode(CHAIN.encode(exact))
    assert back["learning_rate"] == pytest.approx(exact["learning_rate"], rel=1e-5)
    assert back["dropout"] == pytest.approx(exact["dropout"], abs=1e-6)


# -------------------------------------------------------------------------------------------------- moving about


def test_the_neighbours_of_a_cell() -> None:
    """NAS-Bench-201: 24 networks are one edit away."""
    arch = CELL.from_string("|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|avg_pool_3x3~2|")
    neighbours = CELL.neighbours(arch)
    assert len(set(neighbours)) == len(neighbours) == 24
    assert all(sum(a != b for a, b in zip(arch.values(), n.values(), strict=True)) == 1 for n in neighbours)
    assert all(arch in CELL.neighbours(neighbour) for neighbour in neighbours)


def test_neighbours_fill_what_comes_and_drop_what_goes() -> None:
    space = CHAIN.fix("pool", "max").fix("bias", None).fix("dropout", 0.25)
    arch = Architecture(
        depth=2, width_1=16, width_2=32, pool="max", bias=None, learning_rate=1e-3, dropout=0.25
    )
    rest = {"pool": "max", "bias": None, "dropout": 0.25}
    assert [dict(neighbour) for neighbour in space.neighbours(arch)] == [
        {"depth": 1, "width_1": 16, "learning_rate": 1e-3, **rest},
        {"depth": 3, "width_1": 16, "width_2": 32, "width_3": 16, "learning_rate": 1e-3, **rest},
        {"depth": 2, "width_1": 32, "width_2": 32, "learning_rate": 1e-3, **rest},
        {"depth": 2, "width_1": 16, "width_2": 16, "learning_rate": 1e-3, **rest},
        {"depth": 2, "width_1": 16, "width_2": 32, "learning_rate": 0.000398107, **rest},
        {"depth": 2, "width_1": 16, "width_2": 32, "learning_rate": 0.00251189, **rest},
    ]
    edge = [n["learning_rate"] for n in space.neighbours(arch.set(learning_rate=1.0))]
    assert edge[-1:] == [0.398107]
    clipped = [n["learning_rate"] for n in space.neighbours(arch.set(learning_rate=0.9))]
    assert clipped[-1] == 1.0


def test_mutation_reaches_every_other_value() -> None:
    space = space_of(a=Integer(0, 9), b=Categorical(tuple("xyz")))
    arch = Architecture(a=4, b="y")
    seen = Counter(space.mutate(arch, i) for i in range(2_000))
    assert set(seen) == {arch.set(a=a) for a in range(10) if a != 4} | {arch.set(b=b) for b in "xz"}
    assert sum(many for mutant, many in seen.items() if mutant["a"] != 4) == pytest.approx(1_000, abs=120)


def test_mutation_without_another_value_or_with_none_valid() -> None:
    single = space_of(a=Categorical(("x",)), b=Integer(3, 3))
    assert single.mutate(single.sample(0), 0) == single.sample(0)
    equal = space_of(
        Constraint("equal", lambda arch: arch["a"] == arch["b"]), a=Integer(0, 3), b=Integer(0, 3)
    )
    assert equal.mutate({"a": 1, "b": 1}, 0) in [Architecture(a=i, b=i) for i in (0, 2, 3)]
    only = space_of(Constraint("one", lambda arch: arch["a"] == 1), a=Integer(0, 3))
    assert only.mutate({"a": 1}, 0) == Architecture(a=1)


def test_mutation_draws_what_comes_into_being() -> None:
    arch = ARCH.set(depth=1).without("width_2")
    deeper = [m for m in (CHAIN.mutate(arch, i) for i in range(500)) if m["depth"] > 1]
    assert {m["width_2"] for m in deeper} == {16, 32}
    assert {m.get("width_3") for m in deeper} == {None, 16, 32}


def test_crossover_mixes_and_draws_what_neither_has() -> None:
    space = space_of(
        a=Integer(0, 1),
        b=Integer(0, 1),
        c=Integer(0, 9),
        conditions={"c": [When("a", (1,)), When("b", (1,))]},
    )
    children = {space.crossover({"a": 0, "b": 1}, {"a": 1, "b": 0}, i) for i in range(300)}
    assert {(child["a"], child["b"]) for child in children} == set(itertools.product((0, 1), repeat=2))
    assert {child["c"] for child in children if "c" in child} == set(range(10))


def test_crossover_falls_back_on_the_first_parent() -> None:
    alike = Constraint("alike", lambda arch: len(set(arch.values())) == 1)
    space = space_of(alike, **{f"a_{i}": Integer(0, 1) for i in range(40)})
    zeros, ones = (Architecture({f"a_{i}": value for i in range(40)}) for value in (0, 1))
    assert space.crossover(zeros, ones, 0) == zeros
    assert space.crossover(ones, zeros, 0) == ones


def test_architectures_that_share_a_program() -> None:
    assert CHAIN.program(ARCH) == ARCH.without("learning_rate", "dropout")
    assert CHAIN.fix("learning_rate", 0.1).program(ARCH.set(learning_rate=0.1)) == CHAIN.program(ARCH)


# ------------------------------------------------------------------------------------------------------ text


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
        ("chian:depth=1", "architecture: space: 'chian' is not one of chain, cell"),
        ("chain:depth=1", "chain: width_1 is missing; it is one of 16, 32"),
    ],
)
def test_bad_architecture_arguments_are_one_line(text: str, said: str) -> None:
    assert line_of(parse_architecture, text, {"chain": CHAIN, "cell": CELL}) == said


# ------------------------------------------------------------------------------------------------- subspaces


def test_assignments() -> None:
    assert parse_assignments(["connections=residual", "width = 16, 32", "learning_rate=1e-3..1e-1"]) == {
        "connections": ("residual",),
        "width": ("16", "32"),
        "learning_rate": Range("1e-3", "1e-1"),
    }


@pytest.mark.parametrize("text", ["width", "=3", "width=", "width=1,,2", "rate=1..", "rate=..2", "width=1,"])
def test_bad_assignments_are_one_line(text: str) -> None:
    said = line_of(parse_assignments, [text])
    assert said == f"{text!r} is not name=value, name=value,value or name=low..high"
    assert line_of(parse_assignments, ["a=1", "a=2"]) == "a is given twice: 'a=2'"


def test_restricting_from_the_command_line() -> None:
    space = CHAIN.restrict(
        fix=["pool=max", "width_1=32", "width=16", "bias=NONE"],
        narrow=["depth=2..3", "learning_rate=1e-3..1e-1", "dropout=0,0.25"],
    )
    assert space.choices == {
        "depth": Integer(2, 3),
        "width_1": Categorical((32,)),
        "width_2": Categorical((16,)),
        "width_3": Categorical((16,)),
        "pool": Categorical(("max",)),
        "bias": Categorical((None,)),
        "learning_rate": LogUniform(1e-3, 1e-1, changes_program=False),
        "dropout": Categorical((0.0, 0.25), changes_program=False),
    }
    assert CHAIN.restrict() == CHAIN
    assert CHAIN.narrow("width", (32, 16, 32)) == CHAIN
    assert CHAIN.narrow("width", Range(20, 99)) == CHAIN.fix("width", 32)
    assert CHAIN.narrow("depth", (3, 1)).choices["depth"] == Categorical((1, 3))
    assert CHAIN.restrict(narrow=["dropout=0.1..0.2"], fix=["dropout=0.15"]).choices[
        "dropout"
    ] == Categorical((0.15,), changes_program=False)


def test_what_narrowing_rules_out_is_never_present() -> None:
    shallow = CHAIN.narrow("depth", Range(1, 2))
    assert shallow.count(1) == (2 + 4) * 2 * 3
    assert "width_3" not in shallow.describe()
    assert "width_3" in shallow.choices
    space = space_of(
        kind=Categorical(("a", "b")),
        child=Integer(0, 3),
        grandchild=Integer(0, 3),
        conditions={"child": When("kind", ("b",)), "grandchild": When("child", (3,))},
    )
    without = space.fix("kind", "a")
    assert without.count() == 1
    assert line_of(without.validate, {"kind": "a", "child": 0}) == (
        "s: child=0 does not exist here, only when kind in (values ruled out here)"
    )


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"fix": ["depth=9"]}, "chain: depth=9 is not one of 1..3"),
        ({"fix": ["depth=1,2"]}, "chain: cannot fix depth=1,2: give one value, or narrow it"),
        ({"fix": ["depth=1..2"]}, "chain: cannot fix depth=1..2: give one value, or narrow it"),
        (
            {"fix": ["wdith=16"]},
            "chain: wdith is not one of depth, width_1..3, pool, bias, learning_rate, dropout ",
        ),
        ({"fix": ["width=64"]}, "chain: width_1=64 is not one of 16, 32"),
        ({"fix": ["learning_rate=fast"]}, "chain: learning_rate=fast is not in 0.0001..1.0"),
        ({"narrow": ["width=16,64"]}, "chain: width_1=64 is not one of 16, 32"),
        ({"narrow": ["width=40..50"]}, "chain: cannot narrow width_1 to 40..50: there is none among 16, 32"),
        ({"narrow": ["depth=2..5"]}, "chain: cannot narrow depth to 2..5: it must lie within 1..3"),
        ({"narrow": ["depth=1.5..3"]}, "chain: cannot narrow depth to 1.5..3: it must lie within 1..3"),
        ({"narrow": ["depth=nan..3"]}, "chain: cannot narrow depth to nan..3: it must lie within 1..3"),
        ({"narrow": ["depth=inf..inf"]}, "chain: cannot narrow depth to inf..inf: it must lie within 1..3"),
        (
            {"narrow": ["dropout=0.1..0.7"]},
            "chain: cannot narrow dropout to 0.1..0.7: it must lie in 0.0..0.5",
        ),
        (
            {"narrow": ["dropout=0.3..0.1"]},
            "chain: cannot narrow dropout to 0.3..0.1: it must lie in 0.0..0.5",
        ),
        ({"narrow": ["dropout=a..b"]}, "chain: cannot narrow dropout to a..b: a is not a number"),
        ({"narrow": ["pool=1..2"]}, "chain: cannot narrow pool to 1..2: only numbers have a range"),
        ({"narrow": ["width=16"], "fix": ["width=32"]}, "chain: width_1=32 is not 16"),
    ],
)
def test_impossible_restrictions_are_one_line(named: Mapping[str, Any], said: str) -> None:
    assert line_of(CHAIN.restrict, **named).startswith(said)


def test_narrowing_to_nothing_is_one_line() -> None:
    assert line_of(CHAIN.narrow, "depth", ()) == "chain: cannot narrow depth to nothing; it is one of 1..3"


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


def test_search_within_is_searched_unless_one_says_otherwise() -> None:
    space = SearchSpace(
        name="deep",
        choices={"depth": Integer(1, 200), "width_1": Categorical((8, 64)), "width_2": Categorical((8, 64))},
        search_within=["depth=1..3", "width=8"],
    )
    assert space.searched().count() == 3
    assert space.searched(narrow=["depth=150..200"]).count() == 51
    assert space.searched(fix=["width_2=64"]).sample(0)["width_2"] == 64
    assert space.searched(fix=["width_2=64"]).sample(0)["width_1"] == 8
    assert space.searched(fix=["depth=9"], narrow=["depth=5..9"]).count() == 1
    assert space.searched().searched() == space.searched()
    assert space.restrict(fix=["depth=7"]).searched().count() == 1
    space.validate(Architecture(depth=200, width_1=8, width_2=64))
    with pytest.raises(InputError, match=r"deep: unknown choice|deep: .*wide"):
        SearchSpace(name="deep", choices=space.choices, search_within=["wide=3"])
