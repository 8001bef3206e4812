"""A search with shared weights as an objective: a trial is one such search, its architecture their settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from nas.errors import InputError, one_of
from nas.nn.supernet import Supernet
from nas.objectives.base import TrialFailed, trial_folder
from nas.objectives.train import Size, TrainObjective, TrainSetup, reason, size_of
from nas.oneshot.search import SupernetSearch
from nas.oneshot.settings import Settings, check_needed, published, settings_of
from nas.space import Architecture, Categorical, Range, SearchSpace, parse_assignments
from nas.training import processes
from nas.training.checkpoint import Checkpoints
from nas.training.loop import TrainingFailed
from nas.trial import Final, Measurement, Trial


@dataclasses.dataclass(frozen=True)
class SupernetSetup:
    """What a worker needs to build a `SupernetObjective`; called with the checkpoint folder.

    ``train`` says which space, data and final trainings; ``epochs`` is how long a search is.
    """

    train: TrainSetup
    epochs: int

    def __call__(self, checkpoints: Path | None) -> SupernetObjective:
        return SupernetObjective(self, checkpoints)


class SupernetObjective:
    """Searches with the settings of a trial; trains what it derived to the end like any other architecture."""

    def __init__(self, setup: SupernetSetup, checkpoints: Path | None) -> None:
        self.setup, self.checkpoints = setup, checkpoints
        self.supernet = supernet_of(setup.train.space)
        self.training = TrainObjective(setup.train, None)
        if self.training.streams:
            raise InputError("input: a supernet trains from images on the device: --input device")

    def describe(self, trial: Trial) -> Size:
        """Of the supernet."""
        layout = self.supernet.layout(**_layout_options(settings_of(trial.arch)))
        training = self.training
        network = self.supernet.build(
            layout.opened(), training.dataset.num_classes, **sizes_of(self.supernet, trial.arch)
        )
        return size_of(network, training.dataset.image_shape)

    def __call__(self, trial: Trial) -> Iterator[Measurement]:
        checkpoints = None
        if self.checkpoints is not None:
            checkpoints = Checkpoints(
                trial_folder(self.checkpoints, trial.id), self.training.config.checkpoint_minutes
            )
        training = self.training
        try:
            search = SupernetSearch(
                supernet=self.supernet,
                settings=settings_of(trial.arch),
                sizes=sizes_of(self.supernet, trial.arch),
                train=training.train_data,
                valid=training.valid_data,
                num_classes=training.dataset.num_classes,
                config=training.config,
                seed=trial.seed,
                epochs=self.setup.epochs,
            )
            yield from search.run(trial.budget, checkpoints=checkpoints, measured=trial.measurements)
        except (TrainingFailed, InputError, jax.errors.JaxRuntimeError) as error:
            processes.check(error)
            raise TrialFailed(reason(error)) from None
        finally:
            if checkpoints is not None:
                checkpoints.close()

    def final(self, arch: Architecture, seed: int, epochs: int) -> Final:
        """See `TrainObjective.final`."""
        return self.training.final(arch, seed, epochs)


def supernet_of(space: SearchSpace) -> Supernet:
    """The supernet of a space as narrowed. Raises InputError where it has none."""
    if space.supernet is None:
        raise InputError(f"space: {space.name} cannot be searched by a supernet")
    return space.supernet(space)


def sizes_of(supernet: Supernet, settings: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(settings[name]) for name in supernet.sizes}


def _layout_options(settings: Settings) -> dict[str, int | bool]:
    return {"partial_channels": settings.partial_channels, "edge_weights": settings.edge_weights}


def settings_space(method: str, supernet: Supernet, texts: tuple[str, ...], repetitions: int) -> SearchSpace:
    """The settings to search with, as a space: a grid of it are all the searches.

    ``texts`` such as ``channels=8 order=first,exact`` are settings otherwise than the published ones of
    ``method``, several values being several searches, each repeated ``repetitions`` times from other seeds. Raises
    InputError.
    """
    known = published(method, supernet)
    choices: dict[str, tuple[Any, ...]] = {name: (value,) for name, value in known.items()}
    given = parse_assignments(texts)
    for name, to in given.items():
        if name not in known:
            raise one_of("supernet", name, tuple(known))
        if isinstance(to, Range):
            raise InputError(f"supernet: {name} needs values, not a range")
        choices[name] = tuple(_read(name, text, known[name]) for text in to)
    check_needed(choices, (name for name in given if set(choices[name]) != {known[name]}))
    for name in supernet.sizes:
        for value in choices[name]:
            if value < 1:
                raise InputError(f"supernet: {name}={value} is below 1")
    space = SearchSpace(
        name=method,
        choices={"repetition": Categorical(tuple(range(repetitions)))}
        | {name: Categorical(values) for name, values in choices.items()},
    )
    for arch in space.enumerate():
        settings_of(arch)
    _check_supernet(supernet, method, choices, given)
    return space


def _check_supernet(
    supernet: Supernet, method: str, choices: Mapping[str, tuple[Any, ...]], given: Mapping[str, Any]
) -> None:
    """Raises InputError where a setting asks for what the supernet does not have."""
    if supernet.skip is None and "skips" in choices["stop"]:
        raise InputError(f"supernet: stop=skips ({method}) needs a space with skip connections")
    if supernet.skip is None and "most_skips" in given:
        raise InputError("supernet: most_skips needs a space with skip connections")
    if not supernet.drops_skips and "skip_dropout" in given:
        raise InputError("supernet: skip_dropout needs a supernet that drops skip connections out")
    for part in choices["partial_channels"]:
        for channels in choices.get("channels", ()):
            if channels % part:
                raise InputError(f"supernet: partial_channels={part} does not divide channels={channels}")


def _read(name: str, text: Any, default: Any) -> Any:
    """A setting's value from the command line, of its default's kind."""
    if isinstance(default, bool):
        if str(text).lower() not in ("true", "false"):
            raise one_of(f"supernet: {name}", text, ("true", "false"))
        return str(text).lower() == "true"
    kind = type(default)
    try:
        value = kind(text)
    except ValueError:
        raise InputError(f"supernet: {name}={text} is not {kind.__name__}") from None
    if kind is float and not math.isfinite(value):
        raise InputError(f"supernet: {name}={text} is not a finite number")
    return value
