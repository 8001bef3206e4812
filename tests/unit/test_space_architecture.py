"""Architectures as values."""

import enum
import pickle
from typing import Any

import numpy as np
import pytest

from nas.space import Architecture
from tests.spaces import line_of


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
