"""All architectures of a space, one after another, and how many there are."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nas.errors import InputError
from nas.space.architecture import Architecture
from nas.space.choices import ABSENT
from nas.space.conditions import Constraint, When, active, partition, satisfies
from nas.space.definition import Definition, Step

MAX_COUNTED = 10**6
"""Most partial assignments ``size`` holds at a time to count exactly under constraints."""

END: Any = object()  # what an exhausted iterator gives


@dataclasses.dataclass(frozen=True)
class Size:
    """How many architectures a space has: ``value`` (``math.inf`` where continuous), or at most so many
    where not ``exact``."""

    value: int | float
    exact: bool = True

    def __str__(self) -> str:
        shown = f"{self.value:,}" if isinstance(self.value, int) else "infinitely many"
        return shown if self.exact else f"at most {shown}"


def enumerate_all(space: Definition) -> Iterator[Architecture]:
    """See `SearchSpace.enumerate`."""
    if space.continuous:
        raise InputError(
            f"{space.name}: {space.continuous[0]} is continuous: say how many points of it to take"
        )
    return walk(space)


def walk(space: Definition) -> Iterator[Architecture]:
    """The architectures of a space without continuous choices, lazily, the last choice changing fastest."""
    steps = space.steps
    due: list[list[tuple[Constraint, tuple[str, ...]]]] = [[] for _ in steps]
    position = {step.name: index for index, step in enumerate(steps)}
    for constraint, scope in space.checks:  # each is checked as soon as its last choice is made
        due[position[scope[-1]]].append((constraint, scope))
    values: dict[str, Any] = {}
    levels = [alternatives(steps[0], values)]
    while levels:
        level = len(levels) - 1
        values.pop(steps[level].name, None)
        value = next(levels[-1], END)
        if value is END:
            levels.pop()
            continue
        if value is not ABSENT:
            values[steps[level].name] = value
        if not all(satisfies(values, constraint, scope) for constraint, scope in due[level]):
            continue
        if len(levels) == len(steps):
            yield Architecture.from_checked(dict(values))
        else:
            levels.append(alternatives(steps[level + 1], values))


def alternatives(step: Step, values: Mapping[str, Any]) -> Iterator[Any]:
    """The values that ``step`` can have after ``values``: ABSENT alone where it does not exist."""
    return iter(step.options or ()) if active(step.conditions, values) else iter((ABSENT,))


def size(space: Definition) -> Size:
    """See `SearchSpace.size`."""
    if (unconstrained := count_states(space, ())) == math.inf:
        return Size(math.inf)
    countable = sorted(space.checks, key=lambda check: len(check[1]))
    while countable:
        if (value := count_states(space, countable)) is not None:
            return Size(value, exact=len(countable) == len(space.checks))
        countable.pop()
    return Size(unconstrained, exact=not space.checks)


def count_states(space: Definition, checks: Sequence[tuple[Constraint, tuple[str, ...]]]) -> Any:
    """How many architectures meet ``checks``: an int, or inf; None where that takes too many states.

    A state is whether a continuous choice is active, and for each live choice what is kept of it: its
    value where a check will read it, else a bit for each condition on it, set where it is met.
    """
    scopes = [frozenset(scope) for _, scope in checks]
    read = frozenset().union(*scopes)
    if any(s.name in read and s.options is not None and len(s.options) > MAX_COUNTED for s in space.steps):
        return None
    watch: dict[str, list[When]] = {name: [] for name in space.choices}
    needed_by: dict[str, set[str]] = {name: set() for name in space.choices}
    for name in space.choices:
        for when in space.whens(name):
            needed_by[when.choice].add(name)
            if when not in watch[when.choice]:
                watch[when.choice].append(when)
    for scope in scopes:
        for name in scope:
            needed_by[name] |= scope - {name}
    kept: dict[str, list[tuple[Any, int, bool]]] = {
        step.name: [(value, 1, False) for value in step.options or ()]
        if step.name in read
        else partition(step.choice, watch[step.name])
        for step in space.steps
    }

    def met(kept_of_parent: Any, when: When, bit: int) -> bool:
        if when.choice in read:
            return kept_of_parent is not ABSENT and kept_of_parent in when
        return bool(kept_of_parent >> bit & 1)

    states: dict[tuple[Any, ...], int] = {(False,): 1}
    live: list[str] = []
    made: set[str] = set()
    for name in elimination_order(space, needed_by, kept):
        if checks and len(states) * len(kept[name]) > MAX_COUNTED:
            return None
        made.add(name)
        conditions = [
            (live.index(when.choice) + 1, when, watch[when.choice].index(when)) for when in space.whens(name)
        ]
        absent = [(ABSENT if name in read else 0, 1, False)]
        held = [*live, name]
        due = [check for check, scope in zip(checks, scopes, strict=True) if name in scope and scope <= made]
        stays = [index for index, other in enumerate(held, 1) if needed_by[other] - made]
        following: defaultdict[tuple[Any, ...], int] = defaultdict(int)
        for state, ways in states.items():
            exists = all(met(state[index], when, bit) for index, when, bit in conditions)
            for value, weight, infinite in kept[name] if exists else absent:
                state_after = (state[0] or infinite, *state[1:], value)
                if due:
                    values = {n: v for n, v in zip(held, state_after[1:], strict=True) if v is not ABSENT}
                    if not all(satisfies(values, constraint, scope) for constraint, scope in due):
                        continue
                following[(state_after[0], *(state_after[index] for index in stays))] += ways * weight
        states, live = following, [held[index - 1] for index in stays]
    return math.inf if (True,) in states else sum(states.values())


def elimination_order(
    space: Definition, needed_by: Mapping[str, set[str]], kept: Mapping[str, Sequence[object]]
) -> list[str]:
    """An order of the choices, parents first, that greedily keeps the number of states low."""
    order: list[str] = []
    made: set[str] = set()
    waiting = {name: set(users) for name, users in needed_by.items()}  # live until these are made
    cost = {name: math.log(len(values) + 1) for name, values in kept.items()}
    needs = {name: [other for other in waiting if name in waiting[other]] for name in waiting}

    def growth(name: str) -> float:
        freed = sum(cost[other] for other in needs[name] if other in made and len(waiting[other]) == 1)
        return (cost[name] if waiting[name] else 0.0) - freed

    parents = {name: {when.choice for when in space.whens(name)} for name in space.choices}
    while parents:
        name = min((name for name in parents if parents[name] <= made), key=growth)
        del parents[name]
        order.append(name)
        made.add(name)
        for other in needs[name]:
            waiting[other].discard(name)
    return order
