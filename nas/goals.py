"""What a search is after where that is more than one number: objectives with their directions, and constraints."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from nas.errors import InputError

ACCURACY = "valid_accuracy"
TRAIN = "train"
"""What `ACCURACY` is called where it is the only objective."""
LATENCY = "latency_ms"
PREDICTED_LATENCY = "predicted_latency_ms"
SUMMED_LATENCY = "summed_latency_ms"
TPU_ROOFLINE, TPU_BYTES = ROOFLINES = "tpu_roofline_ms", "tpu_bytes"

RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "<=": lambda value, bound: value <= bound,
    ">=": lambda value, bound: value >= bound,
    "<": lambda value, bound: value < bound,
    ">": lambda value, bound: value > bound,
}
_LIMIT = re.compile(rf"(.+?)({'|'.join(RELATIONS)})(.*)", re.DOTALL)
DIRECTIONS = {":min": -1, ":max": 1}


class Goal(NamedTuple):
    """One objective; ``sign`` is 1 where more of it is better, -1 where less is."""

    name: str
    sign: int


class Limit(NamedTuple):
    """One constraint, such as ``latency_ms<5``."""

    name: str
    relation: str
    bound: float

    def __str__(self) -> str:
        bound = f"{self.bound:g}"
        return f"{self.name}{self.relation}{bound if float(bound) == self.bound else repr(self.bound)}"

    def violation(self, value: float) -> float:
        """0 where ``value`` keeps it, else how far it is from that, as a share of the bound (of 1 where that is 0)."""
        if RELATIONS[self.relation](value, self.bound):
            return 0.0
        return max(abs(value - self.bound) / (abs(self.bound) or 1.0), sys.float_info.epsilon)


class Judged(NamedTuple):
    """Values as a search compares them: ``gains`` are the objectives with their signs turned, so that more is better;
    ``violation`` is the sum over constraints of `Limit.violation`."""

    gains: tuple[float, ...]
    violation: float


@dataclasses.dataclass(frozen=True)
class Goals:
    """All objectives, in the order given, and all constraints."""

    objectives: tuple[Goal, ...]
    limits: tuple[Limit, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every quantity that must be known, each once: those of the objectives first."""
        return tuple(dict.fromkeys((*(g.name for g in self.objectives), *(c.name for c in self.limits))))

    def judge(self, values: Mapping[str, float]) -> Judged:
        """Those that ``values`` lacks are not a number among the gains, and violate nothing."""
        gains = (goal.sign * values.get(goal.name, math.nan) for goal in self.objectives)
        violations = (c.violation(values[c.name]) for c in self.limits if c.name in values)
        return Judged(tuple(gains), math.fsum(violations))


@dataclasses.dataclass(frozen=True)
class LatencyConfig:
    """How the latency of networks is measured, where an objective or a constraint is ``latency_ms``."""

    latency_device: str | None = None
    """what the latency is measured on: cpu, gpu or tpu; default: what trains"""
    latency_batch: int = 1
    """images at a time"""
    latency_repetitions: int = 30
    """timed calls of each of its rounds"""
    latency_tpu: str = "v5e:1x1"
    """the chip of the objectives tpu_roofline_ms and tpu_bytes, which the TPU compiler answers; there need be none"""
    latency_predictor: str | None = None
    """folder of scripts/predict_latency.py, for the objectives predicted_latency_ms and summed_latency_ms"""

    def __post_init__(self) -> None:
        for name, low in (("latency_batch", 1), ("latency_repetitions", 5)):
            if getattr(self, name) < low:
                raise InputError(f"{name}: {getattr(self, name)} is below {low}")


def parse_limit(text: str) -> Limit:
    """``latency_ms<5``, with <, <=, > or >=. Raises InputError."""
    found = _LIMIT.fullmatch(text.strip())
    if found is None:
        raise InputError(f"constraint: {text!r} is not NAME<NUMBER (or <=, >, >=); quote it for the shell")
    name, relation, number = (part.strip() for part in found.groups())
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise InputError(f"constraint: {text!r}: {number!r} is not a number")
    return Limit(name, relation, bound)


def without_direction(text: str) -> tuple[str, int | None]:
    """The quantity that an objective names, and the direction of its ``:min`` or ``:max``, None where it has none."""
    for suffix, sign in DIRECTIONS.items():
        if text.endswith(suffix):
            return text.removesuffix(suffix), sign
    return text, None


def parse_goals(
    objectives: Sequence[str], constraints: Iterable[str], sign_of: Callable[[str, str], int]
) -> Goals:
    """The goals that options mean.

    ``sign_of(name, place)`` knows every quantity's direction and raises InputError for one that there is not, the
    place being the option that names it. An objective's own suffix, ``:min`` or ``:max``, goes before it. ``train``
    is the validation accuracy. Raises InputError.
    """
    goals = []
    for text in objectives:
        name, sign = without_direction(text)
        name = ACCURACY if name == TRAIN else name
        known = sign_of(name, "objective")
        goals.append(Goal(name, known if sign is None else sign))
    names = [goal.name for goal in goals]
    if not names or len(set(names)) < len(names):
        raise InputError(f"objective: {' '.join(objectives) or 'none'}: each is to be named once")
    limits = []
    for limit in map(parse_limit, constraints):
        name = ACCURACY if limit.name == TRAIN else limit.name
        sign_of(name, "constraint")
        limits.append(limit._replace(name=name))
    return Goals(tuple(goals), tuple(limits))
