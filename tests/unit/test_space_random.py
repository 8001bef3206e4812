"""Random spaces with conditions and constraints against brute force."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.space import Architecture, Categorical, Choice, Constraint, Integer, SearchSpace, When

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
