"""How a search with shared weights is set, and the published ones by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from nas.errors import InputError, one_of

SELECTIONS = ("strongest", "random", "evolution")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What one search with a supernet is told; the defaults are those of Liu et al. 2019, section 3.1.

    All are plain values: the settings are the architecture of the trial that the search is. Raises InputError.
    """

    relaxation: str = "softmax"
    """how alphas become weights of candidates: one of nas.oneshot.relaxation.RELAXATIONS"""
    order: str = "first"
    """of the architecture's gradient: first, exact (second order) or difference (the paper's approximation)"""
    selection: str = "strongest"
    """strongest candidates by the alphas, or the best of random or of evolved architectures with shared weights"""
    candidates: int = 1000
    """selections random and evolution: architectures judged, at the end of the search"""
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
    skip_dropout: float = 0.0
    """dropout of skip connections where the last stage begins, falling to nothing in each (P-DARTS)"""
    most_skips: int = -1
    """skip connections that the derived normal cell may have; -1: any number"""
    stop: str = "none"
    """early stopping: none, skips (DARTS+) or curvature (RobustDARTS)"""
    eigenvalue: bool = True
    """compute the dominant eigenvalue of the validation loss by the alphas, every epoch"""
    batch_size: int = 64
    learning_rate: float = 0.025
    """of the weights, at first; a cosine to learning_rate_min"""
    learning_rate_min: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip_norm: float = 5.0
    alpha_learning_rate: float = 3e-4
    alpha_weight_decay: float = 1e-3
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
            if part not in AUGMENTATIONS or part == "pca":
                raise one_of(
                    "supernet: augmentation", part, [name for name in AUGMENTATIONS if name != "pca"]
                )
        for name, low in (
            ("candidates", 1),
            ("partial_channels", 1),
            ("batch_size", 1),
            ("deeper", 0),
            ("most_skips", -1),
        ):
            if getattr(self, name) < low:
                raise InputError(f"supernet: {name}={getattr(self, name)} is below {low}")
        for name in ("warmup", "skip_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"supernet: {name}={getattr(self, name)} is not from 0 to below 1")
        rates = (
            "learning_rate",
            "learning_rate_min",
            "weight_decay",
            "alpha_learning_rate",
            "alpha_weight_decay",
        )
        for name in (*rates, "momentum", "clip_norm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(
                    f"supernet: {name}={getattr(self, name)} is not a finite number of at least 0"
                )
        if self.partial_channels > 1 and not self.edge_weights:
            raise InputError(f"supernet: partial_channels={self.partial_channels} needs edge_weights=True")
        if self.stop == "curvature" and not self.eigenvalue:
            raise InputError("supernet: stop=curvature needs eigenvalue=True")
        if self.stop != "none" and (self.kept or self.selection != "strongest"):
            raise InputError(f"supernet: stop={self.stop} is for a search of one stage by alphas")
        self.kept  # noqa: B018 - says what is wrong with stages

    @property
    def kept(self) -> tuple[int, ...]:
        """Candidates a choice in each stage; empty: one stage with all."""
        if self.stages == "all":
            return ()
        counts = self.stages.split("-")
        if not all(count.isdecimal() and int(count) > 0 for count in counts):
            raise InputError(f"supernet: stages={self.stages} is neither all nor of the form 8-5-3")
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
        | {"alpha_learning_rate": 6e-4, "alpha_weight_decay": 0.0},
        "DrNAS, one stage (Chen et al. 2021)",
    ),
    "fair_darts": ({"relaxation": "sigmoid"}, "FairDARTS (Chu et al. 2020)"),
    "pc_darts": (_PARTIAL, "PC-DARTS (Xu et al. 2020)"),
    "p_darts": (
        {"stages": "8-5-3", "deeper": 6, "skip_dropout": 0.7, "most_skips": 2, "warmup": 0.4}
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
"""What each published search sets otherwise than `Settings`' defaults, and whose it is."""


def settings_of(values: Mapping[str, Any]) -> Settings:
    """The fields of `Settings` among ``values``."""
    return Settings(**{name: values[name] for name in names() if name in values})


def names() -> Sequence[str]:
    return tuple(field.name for field in dataclasses.fields(Settings))
