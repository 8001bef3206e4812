"""`SearchSpace`: what can be done with a space, over the functions of this package."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from nas.errors import InputError
from nas.space import counting, encoding, moves, sampling, subspaces, text, validation
from nas.space.architecture import Architecture, Scalar
from nas.space.counting import Size
from nas.space.definition import Definition
from nas.space.sampling import Key
from nas.space.subspaces import Range


class SearchSpace(Definition):
    """Named choices, when they exist, and what must hold between them; its fields are those of `Definition`.

    ``key``, wherever it is asked for, is a whole number, a sequence of them such as ``(seed, i)``, or a NumPy
    generator (which is advanced); the same key gives the same result. Bad input raises ``InputError``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        subspaces.select(self, self.search_within)  # raises where these are no assignments of this space

    # ---------------------------------------------------------------------------------------------- checking

    def validate(self, arch: Mapping[str, Any]) -> None:
        """Raises ``InputError`` saying in one line what is wrong with ``arch``, if anything is."""
        validation.checked(self, arch)

    def canonical(self, arch: Mapping[str, Any]) -> Architecture:
        """``arch`` validated, in the space's order, each number of its choice's type."""
        return validation.canonical(self, arch)

    def program(self, arch: Mapping[str, Any]) -> Architecture:
        """The part of ``arch`` that changes the compiled program: equal parts, one compilation."""
        return validation.program(self, arch)

    # --------------------------------------------------------------------- sampling, enumerating and counting

    def sample(self, key: Key) -> Architecture:
        """A random architecture: each choice even over its range, given the choices that it depends on.

        Every choice has its own part of the key's randomness, so that (constraints aside) fixing or narrowing
        one leaves the draws of the others as they are. Under constraints draws are rejected until one passes;
        raises ``InputError`` when ``MAX_DRAWS`` did not.
        """
        return sampling.sample(self, key)

    def enumerate(self, points: int | Mapping[str, int] | None = None) -> Iterator[Architecture]:
        """All architectures, lazily, the last choice changing fastest; ``points`` as in ``discretise``.

        Raises ``InputError`` at once where a continuous choice has no number of points.
        """
        return counting.enumerate_all(self if points is None else self.discretise(points))

    def grid(self, points: int | Mapping[str, int]) -> Iterator[Architecture]:
        """All architectures with ``points`` values for each continuous choice: ``enumerate(points)``."""
        return self.enumerate(points)

    def count(self, points: int | Mapping[str, int] | None = None) -> int | float:
        """How many architectures there are, exactly; ``math.inf`` where continuous without ``points``
        (constraints are taken to leave more than single values of a continuous choice).

        Raises ``InputError`` where constraints make that too hard to say; ``size`` then has an upper bound.
        """
        size = self.size(points)
        if not size.exact:
            raise InputError(
                f"{self.name}: {size} architectures; under its constraints no exact count is in reach"
            )
        return size.value

    def size(self, points: int | Mapping[str, int] | None = None) -> Size:
        """How many architectures there are, without enumerating them; ``math.inf`` as in ``count``.

        Dynamic programming over the choices: a state holds what conditions and constraints still need of the
        choices made. Without constraints it is always exact. Constraints are counted as long as no more
        than ``MAX_COUNTED`` states arise; beyond, those over the most choices are left out, which gives an
        upper bound.
        """
        return self._size if points is None else self.discretise(points)._size

    @functools.cached_property
    def _size(self) -> Size:
        return counting.size(self)

    # ---------------------------------------------------------------------------------------------- encoding

    @property
    def encoded_width(self) -> int:
        """How many numbers an encoding has."""
        return encoding.encoded_width(self)

    @functools.cached_property
    def encoded_names(self) -> tuple[str, ...]:
        """What each number of an encoding is, such as ``depth``, ``pool=max`` or ``width_3?`` (it exists)."""
        return encoding.encoded_names(self)

    def encode(self, arch: Mapping[str, Any]) -> np.ndarray:
        """``arch`` as float64 ``[encoded_width]`` in [0, 1].

        Choice after choice: a categorical one-hot, a number scaled to its range (LogUniform: in the
        logarithm), then for a conditional choice 1 where it exists; all 0 where it does not. Constraints are
        not checked; raises ``InputError`` where a value does not fit.
        """
        return encoding.encode(self, arch)

    def decode(self, vector: Any) -> Architecture:
        """The architecture of an encoding; for any other finite vector ``[encoded_width]`` a valid one.

        Categoricals take their largest entry, numbers the nearest value, and conditions (not flags) say what
        exists. ``decode(encode(arch))`` is ``arch``; a continuous value that is off the space's grid (see
        ``Uniform``) comes back to within a millionth of its range. Where the architecture read so breaks a
        constraint, its neighbour nearest to ``vector`` is taken, or without such a sample keyed by ``vector``.
        """
        return encoding.decode(self, vector)

    # ------------------------------------------------------------------------------------------------- moves

    def neighbours(self, arch: Mapping[str, Any]) -> tuple[Architecture, ...]:
        """All valid architectures one edit away, in a fixed order.

        An edit gives one active choice another value: a categorical any other, an integer the one before or
        after, a continuous one a step of ``CONTINUOUS_STEP`` of its (logarithmic) range either way, cut off
        at the ends. Choices that exist only after the edit take their first value, numbers the middle one;
        those that no longer exist are dropped. What then breaks a constraint is left out.
        """
        return moves.neighbours(self, arch)

    def mutate(self, arch: Mapping[str, Any], key: Key) -> Architecture:
        """``arch`` with one random active choice at another random value; choices that exist only then are
        drawn, those that no longer exist are dropped.

        Where no such edit meets the constraints, a sample that differs; ``arch`` itself only where none turns
        up in ``MAX_DRAWS`` draws.
        """
        return moves.mutate(self, arch, key)

    def crossover(self, a: Mapping[str, Any], b: Mapping[str, Any], key: Key) -> Architecture:
        """A child of ``a`` and ``b`` (uniform crossover).

        Each choice active in the child comes from a parent in which it is active, from either by a fair coin
        where it is in both; what is active in neither is drawn. Where none of 1,000 children meets the
        constraints, ``a``.
        """
        return moves.crossover(self, a, b, key)

    # -------------------------------------------------------------------------------------------------- text

    def to_string(self, arch: Mapping[str, Any]) -> str:
        """Canonical text: ``depth=3,width_1=32,…`` in the space's order, floats exact; or its ``format``."""
        return text.to_string(self, arch)

    def from_string(self, written: str) -> Architecture:
        """Inverse of ``to_string``, in any order; JSON is taken as well. Raises ``InputError``."""
        return text.from_string(self, written)

    def describe(self) -> str:
        """The space as a table of plain text, its constraints and its size."""
        return text.describe(self)

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        from nas.space.display import space_html

        return space_html(self)

    # ---------------------------------------------------------------------------------------------- Ray Tune

    def to_tune(self) -> dict[str, Any]:
        """The choices as Ray Tune samples them, for ``tune.Tuner(…, param_space=space.to_tune())``.

        Tune knows no conditions: a config has a value for every choice, and `from_tune` drops those that do not
        exist. See `nas.run.tune.space`, which is imported here, by its name: spaces need no Ray for anything else.
        """
        return importlib.import_module("nas.run.tune.space").to_tune(self)

    def from_tune(self, config: Mapping[str, Any]) -> Architecture:
        """The architecture that a config of Tune means. Raises ``InputError``."""
        return importlib.import_module("nas.run.tune.space").from_tune(self, config)

    # --------------------------------------------------------------------------------------------- subspaces

    def fix(self, name: str, value: Scalar) -> Self:
        """The subspace in which choice ``name``, where it exists, has ``value`` (text is parsed).

        ``"width"`` means every ``width_<i>``.
        """
        return self.narrow(name, (value,))

    def narrow(self, name: str, to: Range | Sequence[Scalar]) -> Self:
        """The subspace in which choice ``name`` has one of the values ``to`` or lies in the ``Range``.

        ``"width"`` means every ``width_<i>``. Text is parsed. Values that the choice does not have, and
        ranges that reach beyond it, are an ``InputError``; of listed numbers a range keeps those within it, one at
        least.
        """
        return subspaces.narrow(self, name, to)

    def restrict(self, fix: Iterable[str] = (), narrow: Iterable[str] = ()) -> Self:
        """The subspace that command-line assignments describe, such as ``fix=["connections=residual"]`` and
        ``narrow=["width=16,32", "learning_rate=1e-3..1e-1"]``; ``width_1=64`` goes before ``width=32``."""
        return subspaces.restrict(self, fix, narrow)

    def searched(self, fix: Iterable[str] = (), narrow: Iterable[str] = ()) -> Self:
        """``restrict``, and ``search_within`` for every choice that the assignments leave alone."""
        return subspaces.searched(self, fix, narrow)

    def discretise(self, points: int | Mapping[str, int]) -> Self:
        """The subspace in which every continuous choice has ``points`` values, from its low to its high end,
        evenly spaced (LogUniform: in the logarithm); one point is the middle.

        With a mapping, each named choice (``"rate"`` means every ``rate_<i>``) has its own number, an Integer
        too if named; the others stay as they are.
        """
        return subspaces.discretise(self, points)

    def resolve_fixed(self, open_choices: Iterable[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Values of all choices except ``open_choices``, which a supernet leaves open.

        A choice has the only value that is left to it, else its default (``"width"`` means every ``width_<i>``), or
        the number nearest to its default that it can have. Raises ``InputError`` where a choice has no default, and
        where another choice depends on an open one.
        """
        return subspaces.resolve_fixed(self, open_choices, defaults)
