"""How a search with shared weights is set, and the published ones by name."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nas.errors import InputError, one_of

if TYPE_CHECKING:
    from nas.nn.supernet import Supernet
    from nas.oneshot.monitor import Epoch
    from nas.training.config import TrainingConfig

SELECTIONS = ("strongest", "random", "evolution")

AT_LEAST = {
    "candidates": 1, "partial_channels": 1, "batch_size": 1, "deeper": 0, "most_skips": -1, "perturbation_steps": 1,
    "stop_skips": 1, "stop_window": 1, "stop_start": 0, "population": 1, "parents": 1,
}  # fmt: skip
SHARES = ("warmup", "momentum", "alpha_b1", "alpha_b2")  # from 0 to below 1
POSITIVE = ("temperature", "temperature_min", "stop_ratio", "clip_norm")
NOT_NEGATIVE = (
    "learning_rate", "learning_rate_min", "weight_decay", "alpha_learning_rate", "alpha_weight_decay", "alpha_scale",
    "penalty", "radius", "radius_min", "skip_dropout_decay",
)  # fmt: skip
NEEDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(("temperature", "temperature_min"), ("relaxation", ("gumbel",))),
    **dict.fromkeys(("radius", "radius_min"), ("relaxation", ("perturbed", "adversarial"))),
    "perturbation_steps": ("relaxation", ("adversarial",)),
    "penalty": ("relaxation", ("sigmoid", "dirichlet")),
    "stop_skips": ("stop", ("skips",)),
    **dict.fromkeys(("stop_window", "stop_ratio", "stop_start"), ("stop", ("curvature",))),
    "candidates": ("selection", ("random", "evolution")),
    **dict.fromkeys(("population", "parents", "mutation"), ("selection", ("evolution",))),
    **dict.fromkeys(
        ("relaxation", "order", "warmup", "most_skips", "eigenvalue", "alpha_learning_rate", "alpha_weight_decay",
         "alpha_b1", "alpha_b2", "alpha_scale"),
        ("selection", ("strongest",)),
    ),
}  # fmt: skip
"""Settings that say something only where another setting is one of some values."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What one search with a supernet is told; the defaults are those of Liu et al. 2019, section 3.1.

    All are plain values: the settings are the architecture of the trial that the search is. Raises InputError.
    """

    relaxation: str = "softmax"
    """how alphas become weights of candidates: one of nas.oneshot.relaxation.RELAXATIONS"""
    temperature: float = 10.0
    """gumbel: of the softmax of a draw, at first; a straight line to temperature_min"""
    temperature_min: float = 0.1
    radius: float = 0.3
    """perturbed, adversarial: how far a weight is moved, at last; a straight line from radius_min"""
    radius_min: float = 0.03
    perturbation_steps: int = 7
    """adversarial: steps of ascent, each of 2 radius / steps"""
    penalty: float = 0.0
    """sigmoid, dirichlet: weight of what draws sigmoids to 0 or 1, or concentrations to 1"""
    order: str = "first"
    """of the architecture's gradient: first, exact (second order) or difference (the paper's approximation)"""
    selection: str = "strongest"
    """strongest candidates by the alphas, or the best of random or of evolved architectures with shared weights"""
    candidates: int = 1000
    """selections random and evolution: architectures judged, at the end of the search"""
    population: int = 50
    """evolution: of a generation"""
    parents: int = 10
    """evolution: the best of all before, whose children the next generation is"""
    mutation: float = 0.1
    """evolution: chance that a mutant's choice is drawn anew"""
    partial_channels: int = 1
    """candidates see one in so many channels (K of PC-DARTS)"""
    edge_weights: bool = False
    """edges into a node are weighted, too (PC-DARTS)"""
    warmup: float = 0.0
    """share of the search, or of each stage, in which the alphas stay"""
    stages: str = "all"
    """candidates a choice has in each stage, as 8-5-3: the weakest go, and weights begin anew (P-DARTS)"""
    deeper: int = 0
    """cells that each stage adds"""
    skip_dropout: str = "0"
    """dropout of skip connections in each stage, as 0.1-0.4-0.7 (the last ones, where stages are fewer), or in all"""
    skip_dropout_decay: float = 0.2
    """behind a stage's warm-up, in which dropout falls in a straight line, it starts anew and falls exponentially, by
    this an epoch (P-DARTS)"""
    most_skips: int = -1
    """skip connections that the derived normal cell may have; -1: any number"""
    stop: str = "none"
    """early stopping: none, skips (DARTS+) or curvature (RobustDARTS)"""
    stop_skips: int = 2
    """skips: so many in the derived normal cell end the search"""
    stop_window: int = 5
    """curvature: epochs that the eigenvalue is averaged over, and how many before the average is compared with"""
    stop_ratio: float = 0.75
    """curvature: the average before is below so much of the one now"""
    stop_start: int = 10
    """curvature: no epoch (from 0) before this one counts"""
    eigenvalue: bool = True
    """compute the dominant eigenvalue of the validation loss by the alphas, every epoch"""
    batch_size: int = 64
    learning_rate: float = 0.025
    """of the weights, at first; a cosine to learning_rate_min"""
    learning_rate_min: float = 0.001
    momentum: float = 0.9
    nesterov: bool = False
    """the weights' momentum is Nesterov's"""
    weight_decay: float = 3e-4
    clip_norm: float = 5.0
    alpha_learning_rate: float = 3e-4
    alpha_weight_decay: float = 1e-3
    alpha_b1: float = 0.5
    """of Adam's mean of the alphas' gradients; alpha_b2: of their squares"""
    alpha_b2: float = 0.999
    alpha_scale: float = 1e-3
    """standard deviation of the alphas at first"""
    augmentation: str = "crop+flip"
    batched: bool = False
    """run equal operations on one input side by side in its channels; changes no value"""
    remat: bool = False
    """compute again for gradients what is inside an operation: less memory, more time; changes no value. On CPU
    not for the products of order exact"""

    def __post_init__(self) -> None:
        # Here: a command line names the methods below without waiting for jax.
        from nas.oneshot.bilevel import ORDERS
        from nas.oneshot.monitor import STOPS
        from nas.oneshot.relaxation import RELAXATIONS
        from nas.training.augment import AUGMENTATIONS

        for name, choices in (
            ("relaxation", RELAXATIONS), ("order", ORDERS), ("selection", SELECTIONS), ("stop", STOPS)
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise one_of(f"supernet: {name}", getattr(self, name), choices)
        for part in self.augmentation.split("+"):
            able = [name for name in AUGMENTATIONS if name not in ("pca", "resized_crop")]
            if part not in able:
                raise one_of("supernet: augmentation", part, able)
        for name, low in AT_LEAST.items():
            if getattr(self, name) < low:
                raise InputError(f"supernet: {name}={getattr(self, name)} is below {low}")
        for names, holds, what in (
            (SHARES, lambda x: 0 <= x < 1, "from 0 to below 1"),
            (("mutation",), lambda x: 0 <= x <= 1, "from 0 to 1"),
            (POSITIVE, lambda x: 0 < x < math.inf, "a finite number above 0"),
            (NOT_NEGATIVE, lambda x: 0 <= x < math.inf, "a finite number of at least 0"),
        ):
            for name in names:
                if not holds(getattr(self, name)):
                    raise InputError(f"supernet: {name}={getattr(self, name)} is not {what}")
        if self.partial_channels > 1 and not self.edge_weights:
            raise InputError(f"supernet: partial_channels={self.partial_channels} needs edge_weights=True")
        if self.stop == "curvature" and not self.eigenvalue:
            raise InputError("supernet: stop=curvature needs eigenvalue=True")
        if self.kept and (self.selection != "strongest" or self.relaxation == "gumbel"):
            raise InputError(
                f"supernet: stages={self.stages} is for selection=strongest and a relaxation that mixes candidates"
            )
        if self.deeper and not self.kept:
            raise InputError(f"supernet: deeper={self.deeper} needs stages")
        if self.stop != "none" and (self.kept or self.selection != "strongest"):
            raise InputError(f"supernet: stop={self.stop} is for a search of one stage by alphas")
        self.skip_dropouts  # noqa: B018 - says what is wrong with it and with stages

    @property
    def stop_rule(self) -> Callable[[Sequence[Epoch]], int | None]:
        """The rule of `nas.oneshot.monitor` with its numbers."""
        from nas.oneshot.monitor import STOPS

        numbers = {
            "skips": {"most": self.stop_skips},
            "curvature": {"window": self.stop_window, "ratio": self.stop_ratio, "start": self.stop_start},
        }
        return functools.partial(STOPS[self.stop], **numbers.get(self.stop, {}))

    @property
    def skip_dropouts(self) -> tuple[float, ...]:
        """Dropout of skip connections at the start of each stage."""
        try:
            found = tuple(map(float, str(self.skip_dropout).split("-")))
        except ValueError:
            found = ()
        count = max(1, len(self.kept))
        if not found or 1 < len(found) < count or not all(0 <= share < 1 for share in found):
            raise InputError(
                f"supernet: skip_dropout={self.skip_dropout} is neither one share below 1 nor one for each of the "
                f"{count} stages, as 0.1-0.4"
            )
        return found * count if len(found) == 1 else found[-count:]

    @property
    def kept(self) -> tuple[int, ...]:
        """Candidates a choice in each stage; empty: one stage with all."""
        if self.stages == "all":
            return ()
        counts = self.stages.split("-")
        if not all(count.isdecimal() and int(count) > 1 for count in counts):
            raise InputError(
                f"supernet: stages={self.stages} is neither all nor of the form 8-5-3, of numbers from 2"
            )
        if [int(count) for count in counts] != sorted({int(count) for count in counts}, reverse=True):
            raise InputError(f"supernet: stages={self.stages} do not fall")
        return tuple(map(int, counts))


_FIRST = {"order": "first"}
_PARTIAL = {
    "partial_channels": 4,
    "edge_weights": True,
    "warmup": 0.3,
    "batch_size": 256,
    "learning_rate": 0.1,
}
_PARTIAL |= {"learning_rate_min": 0.0, "alpha_learning_rate": 6e-4}
_FAIR = {
    "relaxation": "sigmoid",
    "penalty": 10.0,
    "batch_size": 128,
    "learning_rate": 0.005,
    "alpha_scale": 0.0,
}
_FAIR |= {"alpha_learning_rate": 3e-3, "alpha_b1": 0.9}

METHODS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "darts": ({"order": "exact"}, "DARTS, second order (Liu et al. 2019)"),
    "darts_first": (_FIRST, "DARTS, first order (Liu et al. 2019)"),
    "darts_plus": (_FIRST | {"stop": "skips"}, "DARTS+, stopped by skip connections (Liang et al. 2019)"),
    "robust_darts": (_FIRST | {"stop": "curvature"}, "RobustDARTS, stopped by curvature (Zela et al. 2020)"),
    "sdarts_rs": ({"relaxation": "perturbed"}, "SmoothDARTS, random perturbation (Chen and Hsieh 2020)"),
    "sdarts_adv": ({"relaxation": "adversarial"}, "SmoothDARTS, adversarial perturbation (the same)"),
    "gdas": ({"relaxation": "gumbel"}, "GDAS (Dong and Yang 2019)"),
    "drnas": (
        {"relaxation": "dirichlet", "learning_rate": 0.1, "learning_rate_min": 0.0}
        | {"alpha_learning_rate": 6e-4},
        "DrNAS, one stage (Chen et al. 2021)",
    ),
    "fair_darts": (_FAIR, "FairDARTS (Chu et al. 2020)"),
    "pc_darts": (_PARTIAL, "PC-DARTS (Xu et al. 2020)"),
    "p_darts": (
        {"stages": "8-5-3", "deeper": 6, "skip_dropout": "0.1-0.4-0.7", "most_skips": 2, "warmup": 0.4}
        | {"alpha_learning_rate": 6e-4, "batch_size": 96, "learning_rate_min": 0.0},
        "P-DARTS (Chen et al. 2019)",
    ),
    "rsps": (
        {"selection": "random", "eigenvalue": False},
        "random search with shared weights (Li and Talwalkar 2019)",
    ),
    "spos": (
        {"selection": "evolution", "eigenvalue": False},
        "single path one-shot, evolution (Guo et al. 2020)",
    ),
}
"""What each published search sets otherwise than `Settings`' defaults, and whose it is.

These are the settings for the space of DARTS; a space that authors have others for says them (`Supernet.published`).
`docs/guide/oneshot_settings.md` holds each against its authors' code.
"""


def published(method: str, supernet: Supernet) -> dict[str, Any]:
    """The settings and sizes of ``method`` on the space of ``supernet``. InputError for an unknown method."""
    if method not in METHODS:
        raise one_of("strategy", method, METHODS)
    defaults = {name: getattr(Settings(), name) for name in names()} | dict(supernet.sizes)
    return {**defaults, **METHODS[method][0], **supernet.published.get(method, {})}


def check_needed(method_settings: Mapping[str, Sequence[Any]], given: Iterable[str]) -> None:
    """Raises InputError where a setting ``given`` says nothing, whatever values the others have."""
    for name in given:
        if name == "skip_dropout_decay" and not any(
            share != "0" for share in method_settings["skip_dropout"]
        ):
            raise InputError("supernet: skip_dropout_decay needs skip_dropout")
        if name in NEEDS:
            other, values = NEEDS[name]
            if not set(values) & set(method_settings[other]):
                raise InputError(
                    f"supernet: {name} is for {other}={' or '.join(values)}, not {', '.join(method_settings[other])}"
                )


def check_fit(settings: Settings, config: TrainingConfig, half: int, devices: int, epochs: int) -> None:
    """Raises InputError where a search of ``epochs`` on ``half`` images for the weights cannot be set so."""
    size = settings.batch_size
    if size > half:
        raise InputError(f"supernet: batch_size={size} is more than the {half} images of one half")
    if size % devices:
        raise InputError(f"supernet: batch_size={size} is not a multiple of devices={devices}")
    if (config.steps_per_epoch or 0) > half // size:
        raise InputError(
            f"steps_per_epoch: {config.steps_per_epoch} is more than the {half // size} of a pass over the {half} "
            f"images of one half at batch_size={size}"
        )
    if settings.order == "difference" and config.dtype != "float32":
        raise InputError(
            f"supernet: order=difference needs dtype=float32, not {config.dtype}: its differences would be "
            "rounding; order=exact does not"
        )
    stages = max(1, len(settings.kept))
    if stages > epochs:
        raise InputError(f"supernet: {stages} stages in {epochs} epochs")


def settings_of(values: Mapping[str, Any]) -> Settings:
    """The fields of `Settings` among ``values``."""
    return Settings(**{name: values[name] for name in names() if name in values})


def names() -> Sequence[str]:
    return tuple(field.name for field in dataclasses.fields(Settings))
