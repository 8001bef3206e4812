"""What every search space promises, held against all registered ones and three made to be difficult."""

import copy
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.check import spaces as checks
from nas.check.spaces import differing
from nas.errors import InputError
from nas.space import (
    Architecture,
    Categorical,
    Constraint,
    Integer,
    LogUniform,
    SearchSpace,
    Uniform,
    When,
)
from search_spaces import SPACES

NESTED = SearchSpace(
    name="nested",
    choices={
        "depth": Integer(0, 3),
        "kind_1": Categorical(("none", "conv", "pool")),
        "kind_2": Categorical(("none", "conv", "pool")),
        "kernel_1": Categorical((1, 3)),
        "kernel_2": Categorical((1, 3)),
        "dilation_1": Integer(1, 2),
        "bias": Categorical((True, False, None)),
        "both": Categorical(("a",)),
    },
    conditions={
        "kind_1": When("depth", at_least=1),
        "kind_2": When("depth", at_least=2, at_most=2),
        "kernel_1": When("kind_1", values=("conv", "pool")),
        "kernel_2": When("kind_2", values=("conv",)),
        "dilation_1": (When("kernel_1", values=(3,)), When("kind_1", values=("conv",))),
        "both": (When("kind_1", values=("conv",)), When("kind_2", values=("conv",))),
    },
)


def _no_more_than_two_convolutions(arch: Architecture) -> bool:
    return sum(operation == "conv" for operation in arch.values()) <= 2


def _needs_no_bias(arch: Architecture) -> bool:
    return not (arch["norm"] == "batch" and arch.get("bias"))


CONSTRAINED = SearchSpace(
    name="constrained",
    choices={
        "norm": Categorical(("none", "batch")),
        "op_1": Categorical(("conv", "pool", "skip")),
        "op_2": Categorical(("conv", "pool", "skip")),
        "op_3": Categorical(("conv", "pool", "skip")),
        "bias": Categorical((True, False)),
    },
    conditions={"bias": When("op_1", values=("conv",))},
    constraints=(
        Constraint("at most two convolutions", _no_more_than_two_convolutions, choices="op"),
        Constraint("batch normalisation has its own bias", _needs_no_bias, choices=("norm", "bias")),
        Constraint("not everything skips", lambda arch: list(arch.values()).count("skip") < 3),
    ),
)

CONTINUOUS = SearchSpace(
    name="continuous",
    choices={
        "optimiser": Categorical(("sgd", "adam")),
        "rate": LogUniform(1e-5, 5.0, changes_program=False),
        "momentum": Uniform(0.0, 0.99, changes_program=False),
        "nesterov": Categorical((False, True)),
        "shift": Uniform(-3.0, 1e6),
        "units": Integer(18, 1024),
    },
    conditions={
        "momentum": When("optimiser", values=("sgd",)),
        "nesterov": When("momentum", at_least=0.5),
    },
    constraints=(
        Constraint(
            "fast adam diverges", lambda a: a["optimiser"] == "sgd" or a["rate"] < 1, ("optimiser", "rate")
        ),
    ),
)

SPACE_BY_NAME: dict[str, SearchSpace] = {**SPACES, **{s.name: s for s in (NESTED, CONSTRAINED, CONTINUOUS)}}
keys = st.integers(0, 2**32)


@pytest.fixture(params=sorted(SPACE_BY_NAME))
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return SPACE_BY_NAME[request.param]


def all_spaces(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test of (space, key) on every space with random keys, fewer of them where it has many choices."""

    @pytest.mark.parametrize("space", SPACE_BY_NAME.values(), ids=SPACE_BY_NAME)
    @functools.wraps(test, assigned=("__name__", "__doc__", "__module__"))
    def with_keys(space: SearchSpace) -> None:
        @settings(max_examples=12 if len(space.choices) < 40 else 4)
        @given(key=keys)
        def with_key(key: int) -> None:
            test(space, key)

        with_key()

    del with_keys.__wrapped__  # whose signature pytest would take for this one's
    return with_keys


def corner(space: SearchSpace, around: Architecture, limit: int = 300) -> SearchSpace:
    """A subspace round ``around`` of at most ``limit`` architectures: choices are fixed until it is small."""
    small = space.discretise(2) if math.isinf(space.size().value) else space
    names = sorted(small.choices, key=lambda name: name[::-1])  # an order unlike the space's own
    together = max(3, len(names) // 20)
    while small.size().value > limit:
        for name in names[:together]:
            choice = small.choices[name]
            held = name in around and choice.accepts(around[name])
            small = small.fix(name, around[name] if held else choice.options()[0])
        names = names[together:]
    return small


# --------------------------------------------------------------------------------------- values and notations


@all_spaces
def test_samples_are_valid_and_depend_on_the_key_alone(space: SearchSpace, key: int) -> None:
    checks.samples_are_valid(space, key)
    for name, value in space.sample(key).items():
        assert space.choices[name].accepts(value)


@all_spaces
def test_text_and_json_come_back(space: SearchSpace, key: int) -> None:
    checks.notations_come_back(space, key)
    arch = space.sample((7, key))
    text = space.to_string(arch)
    shuffled = Architecture(reversed(list(arch.items())))
    assert (shuffled, hash(shuffled), shuffled.to_json()) == (arch, hash(arch), arch.to_json())
    assert space.to_string(shuffled) == text
    assert copy.deepcopy(arch) == arch


@all_spaces
def test_the_program_part_leaves_out_arguments_alone(space: SearchSpace, key: int) -> None:
    arch = space.sample(key)
    program = space.program(arch)
    assert differing(arch, program) == {n for n in arch if not space.choices[n].changes_program}


@all_spaces
def test_any_damage_is_one_clear_line(space: SearchSpace, key: int) -> None:
    arch = space.sample(key)
    rng = np.random.default_rng(key)
    name = list(arch)[rng.integers(len(arch))]
    damaged = {
        "dropped": arch.without(name),
        "unknown": arch.set(no_such_choice=1),
        "text": arch.set(**{name: "no such value"}),
        "number": arch.set(**{name: 10**9}),
        "below": arch.set(**{name: -7.5}),
    }
    for what, wrong in damaged.items():
        for use in (space.validate, space.encode, space.to_string, space.neighbours, space.canonical):
            with pytest.raises(InputError) as caught:
                use(wrong)
            line = str(caught.value)
            assert line.startswith(f"{space.name}: "), what
            assert "\n" not in line
            assert ("no_such_choice" if what == "unknown" else name) in line
    inactive = [other for other in space.choices if other not in arch]
    for other in inactive:
        with pytest.raises(InputError, match=f"^{space.name}: {other}=.* does not exist here, only when "):
            space.validate(arch.set(**{other: space.choices[other].default}))


# --------------------------------------------------------------------------------------------------- encoding


@all_spaces
def test_encodings_come_back(space: SearchSpace, key: int) -> None:
    arch = space.sample(key)
    vector = space.encode(arch)
    assert vector.shape == (space.encoded_width,) == (len(space.encoded_names),)
    assert vector.dtype == np.float64
    assert vector.min() >= 0
    assert vector.max() <= 1
    assert space.decode(vector) == arch
    other = space.sample((key, 1))
    assert (space.encode(other) == vector).all() == (other == arch)


@all_spaces
def test_any_vector_decodes_to_a_valid_architecture(space: SearchSpace, key: int) -> None:
    rng = np.random.default_rng(key)
    for scale in (1.0, 100.0):
        vector = rng.normal(0.5, scale, space.encoded_width)
        arch = space.decode(vector)
        space.validate(arch)
        assert space.decode(vector.copy()) == arch
        assert space.decode(space.encode(arch)) == arch


# ----------------------------------------------------------------------------------------------- moving about


@all_spaces
def test_neighbours_are_valid_and_distinct_and_one_edit_away(space: SearchSpace, key: int) -> None:
    arch = space.sample(key)
    neighbours = space.neighbours(arch)
    assert len(set(neighbours)) == len(neighbours)
    assert arch not in neighbours
    assert space.neighbours(arch) == neighbours
    parents = {when.choice for name in space.choices for when in space.whens(name)}
    back = set(neighbours[key % 5 :: max(1, len(neighbours) // 20)])  # in large spaces not from each one
    for neighbour in neighbours:
        space.validate(neighbour)
        edited = [name for name in differing(arch, neighbour) if name in arch and name in neighbour]
        assert len(edited) == 1
        continuous = isinstance(space.choices[edited[0]], Uniform | LogUniform)
        if not continuous and edited[0] not in parents:
            assert differing(arch, neighbour) == {edited[0]}
            assert neighbour not in back or arch in space.neighbours(neighbour)


@all_spaces
def test_neighbours_are_all_there_are(space: SearchSpace, key: int) -> None:
    """Against enumeration: whatever differs in one choice alone, by one step, is a neighbour."""
    small = corner(space, space.sample(key))
    members = list(small.enumerate())
    arch = members[key % len(members)]
    neighbours = set(small.neighbours(arch))
    for other in members:
        differs = differing(arch, other)
        if len(differs) != 1:
            continue
        (name,) = differs
        if name in arch and name in other:
            choice = small.choices[name]
            step = not isinstance(choice, Integer) or abs(arch[name] - other[name]) == 1
            assert (other in neighbours) == step


@all_spaces
def test_mutation_changes_one_choice_and_what_hangs_on_it(space: SearchSpace, key: int) -> None:
    checks.mutants_differ_in_one_choice(space, key)
    arch = space.sample(key)
    mutant = space.mutate(arch, (key, 1))
    edited = [name for name in differing(arch, mutant) if name in arch and name in mutant]
    assert len(edited) == 1
    assert list(mutant) == [name for name in space.choices if name in mutant]


@all_spaces
def test_a_child_takes_its_choices_from_its_parents(space: SearchSpace, key: int) -> None:
    checks.children_are_valid(space, key)
    a, b = space.sample((key, 0)), space.sample((key, 1))
    assert space.crossover(a, b, key) == space.crossover(a, b, key)
    assert space.crossover(a, a, key) == a


# ----------------------------------------------------------------------------------- enumerating and counting


@all_spaces
def test_enumeration_has_each_member_once_and_count_knows(space: SearchSpace, key: int) -> None:
    small = corner(space, space.sample(key))
    members = list(small.enumerate())
    assert len(members) == len(set(members)) == small.count() == small.size().value
    assert members == list(small.enumerate())
    for arch in members[:: max(1, len(members) // 50)]:
        small.validate(arch)
        space.validate(arch)
    for i in range(5):
        assert small.sample((key, i)) in set(members)


def test_counting_needs_no_enumeration(space: SearchSpace) -> None:
    size = space.size()
    open_choices = [n for n, c in space.choices.items() if isinstance(c, Uniform | LogUniform)]
    assert size.exact
    assert math.isinf(size.value) == bool(open_choices)
    assert space.count(3) == space.discretise(3).count()
    if open_choices:
        with pytest.raises(InputError, match=f"^{space.name}: {open_choices[0]} is continuous"):
            space.enumerate()
    else:
        assert space.count(3) == size.value


def test_enumeration_is_lazy(space: SearchSpace) -> None:
    first = list(itertools.islice(space.grid(2), 100))
    assert len(set(first)) == len(first) > 0
    for arch in first:
        space.validate(arch)


def test_grids_have_the_stated_number_of_points(space: SearchSpace) -> None:
    for points in (1, 2, 5):
        grid = space.discretise(points)
        for name, choice in space.choices.items():
            if isinstance(choice, Uniform | LogUniform):
                values: list[Any] = list(grid.choices[name].options())
                assert len(values) == points
                assert values == sorted(values)
                if points > 1:
                    assert (values[0], values[-1]) == (choice.low, choice.high)
            else:
                assert grid.choices[name] == choice


# -------------------------------------------------------------------------------------------------- subspaces


@all_spaces
def test_fixing_gives_the_subspace_and_leaves_other_draws_alone(space: SearchSpace, key: int) -> None:
    arch = space.sample(key)
    name = list(arch)[key % len(arch)]
    fixed = space.fix(name, arch[name])
    assert fixed.validate(arch) is None
    if not space.constraints:
        assert fixed.sample(key) == arch
    other = fixed.sample((key, 1))
    space.validate(other)
    assert name not in other or other[name] == arch[name]
    as_text = space.to_string(arch) if space.format is None else ""
    for assignment in as_text.split(",") if as_text else ():
        if assignment.startswith(f"{name}="):
            assert space.restrict(fix=[assignment]) == fixed


@all_spaces
def test_narrowing_keeps_what_is_asked_for(space: SearchSpace, key: int) -> None:
    arch, other = space.sample((key, 0)), space.sample((key, 1))
    narrowed = space
    for name in space.choices:
        wanted = {a[name] for a in (arch, other) if name in a}
        narrowed = narrowed.narrow(name, tuple(wanted)) if wanted else narrowed
    narrowed.validate(arch)
    narrowed.validate(other)
    drawn = narrowed.sample(key)
    space.validate(drawn)
    for name, value in drawn.items():
        known = [a[name] for a in (arch, other) if name in a]
        assert not known or value in known


def test_description_names_every_choice_and_the_size(space: SearchSpace) -> None:
    text = space.describe()
    assert str(space.size()) in text
    for name in space.choices:
        assert name in text or f"{name.rpartition('_')[0]}_" in text
    for constraint in space.constraints:
        assert constraint.text in text
    assert all(line == line.rstrip() for line in text.splitlines())
