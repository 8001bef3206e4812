"""Objectives with directions and constraints: what is read, what is judged, what is one line."""

import math

import pytest

from nas.errors import InputError
from nas.goals import Goal, Limit, parse_goals, parse_limit
from nas.objectives.quantities import KNOWN, sign_of
from nas.proxies import PROXIES


def test_directions_are_known_and_can_be_turned():
    goals = parse_goals(["train", "latency_ms", "params:max", "ntk_condition"], [], sign_of)
    assert goals.objectives == (
        Goal("valid_accuracy", 1),
        Goal("latency_ms", -1),
        Goal("params", 1),
        Goal("ntk_condition", -1),
    )
    assert {"valid_accuracy", "params", "macs_per_image", "activation_bytes", "latency_ms"} <= set(KNOWN)
    assert set(PROXIES) <= set(KNOWN)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("latency_ms<5", Limit("latency_ms", "<", 5)),
        ("params<=1e6", Limit("params", "<=", 1e6)),
        (" valid_accuracy >= 0.9 ", Limit("valid_accuracy", ">=", 0.9)),
        ("throughput:tpuv3>1000", Limit("throughput:tpuv3", ">", 1000)),
    ],
)
def test_a_constraint_is_read(text, limit):
    assert parse_limit(text) == limit


@pytest.mark.parametrize(
    "text", ["latency_ms", "<5", "latency_ms=5", "latency_ms<", "latency_ms<x", "a<nan", "a<=inf", ""]
)
def test_what_is_no_constraint_is_one_line(text):
    with pytest.raises(InputError, match=r"^constraint: [^\n]*$"):
        parse_limit(text)


@pytest.mark.parametrize(
    ("objectives", "constraints", "said"),
    [
        (
            ["valid_accuracy", "latncy_ms"],
            [],
            "objective: 'latncy_ms' is not one of .*did you mean latency_ms",
        ),
        (["train"], ["paramz<3"], "constraint: 'paramz' is not one of"),
        (["valid_accuracy", "train"], [], "each is to be named once"),
        ([], [], "none"),
        (["nowhere.py:f", "params"], [], "objective: no file nowhere.py"),
    ],
)
def test_what_is_no_quantity_is_one_line(objectives, constraints, said):
    with pytest.raises(InputError, match=said):
        parse_goals(objectives, constraints, sign_of)


def test_gains_are_turned_and_violations_are_shares_of_the_bounds():
    goals = parse_goals(["valid_accuracy", "params"], ["params<=100", "valid_accuracy>0.5"], sign_of)
    assert goals.judge({"valid_accuracy": 0.9, "params": 100}) == ((0.9, -100), 0)
    assert goals.judge({"valid_accuracy": 0.25, "params": 150}) == ((0.25, -150), 0.5 + 0.5)
    known = goals.judge({"params": 200})
    assert math.isnan(known.gains[0])
    assert known.violation == 1
    assert goals.names == ("valid_accuracy", "params")


@pytest.mark.parametrize(("relation", "kept"), [("<", False), ("<=", True), (">", False), (">=", True)])
def test_at_the_bound_itself_the_strict_ones_are_violated(relation, kept):
    assert (Limit("x", relation, 3.0).violation(3.0) == 0) == kept
    assert Limit("x", relation, 0.0).violation({"<": 2, "<=": 2, ">": -2, ">=": -2}[relation]) == 2
