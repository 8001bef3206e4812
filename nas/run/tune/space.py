"""Search spaces as parameter spaces of Ray Tune, for those who want Tune's own searchers and schedulers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.search.sample import Domain

from nas.errors import InputError
from nas.space import Architecture, Categorical, Choice, Integer, SearchSpace, Uniform
from nas.space.architecture import scalar
from nas.space.choices import ABSENT, nearest_value
from nas.space.definition import Step, complete


def to_tune(space: SearchSpace) -> dict[str, Domain]:
    """The choices of ``space`` by name, as Tune samples them: ``tune.Tuner(…, param_space=to_tune(space))``.

    Tune knows no conditions: a config has a value for every choice. `from_tune` drops those that do not exist.
    """
    return {name: _domain(choice) for name, choice in space.choices.items() if name in space.possible}


def from_tune(space: SearchSpace, config: Mapping[str, Any]) -> Architecture:
    """The architecture that a config sampled from ``to_tune(space)`` stands for.

    Keys of ``config`` that are no choices are ignored, and so are choices that do not exist beside the values of the
    others. A number becomes the nearest one that its choice has: population-based training multiplies numbers beyond
    their range. Raises InputError where a choice has no value or a wrong one, or a constraint is broken.
    """

    def value(step: Step) -> Any:
        if step.name not in config:
            raise InputError(
                f"{space.name}: {step.name} is missing from Tune's config; it is {step.choice.span}"
            )
        given = scalar(step.name, config[step.name])
        nearest = nearest_value(step.choice, given)
        return given if nearest is ABSENT else nearest

    return space.canonical(complete(space, {}, value))


def _domain(choice: Choice) -> Domain:
    if isinstance(choice, Categorical):
        return tune.choice(list(choice.values))
    if isinstance(choice, Integer):
        return tune.randint(choice.low, choice.high + 1)
    if isinstance(choice, Uniform):
        return tune.uniform(choice.low, choice.high)
    return tune.loguniform(choice.low, choice.high)
