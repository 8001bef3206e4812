"""Training hyperparameters: the part of an architecture value that says how its network is trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from nas.errors import InputError, one_of
from nas.training.augment import AUGMENTATIONS
from nas.training.optimiser import OPTIMISERS


@dataclasses.dataclass(frozen=True)
class Hyper:
    """How a network is trained. A space that has a choice of one of these names searches over it.

    ``optimiser``, ``batch_size`` and ``augmentation`` change the compiled programs; all the others are
    arguments of them, so that trials differing in those alone share one compilation.
    """

    optimiser: str = "nesterov"
    """one of nas.training.optimiser.OPTIMISERS"""
    learning_rate: float = 0.05
    """the highest learning rate of the schedule"""
    schedule: str = "cosine"
    """one of nas.training.hyper.SCHEDULES"""
    batch_size: int = 64
    """images a step, over all devices"""
    weight_decay: float = 1e-4
    """L2 on kernels: added to the gradient, decoupled in adamw"""
    label_smoothing: float = 0.0
    """probability mass spread evenly over all classes"""
    augmentation: str = "none"
    """one of, or several joined by +, of nas.training.augment.AUGMENTATIONS"""
    dropout: float = 0.0
    """probability of dropping an input of a dense layer"""
    own_weight_decay: tuple[tuple[str, float], ...] = ()
    """modules of the network with a weight decay of their own: the choices weight_decay_<module>"""
    drop_path: float = 0.0
    """probability of dropping a path through a cell, reached linearly over the epochs"""

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise one_of("optimiser", self.optimiser, OPTIMISERS)
        if self.schedule not in SCHEDULES:
            raise one_of("schedule", self.schedule, SCHEDULES)
        for part in self.augmentation.split("+"):
            if part not in AUGMENTATIONS:
                raise one_of("augmentation", part, AUGMENTATIONS)
        if self.batch_size < 1:
            raise InputError(f"batch_size: {self.batch_size} is below 1")
        for name in ("label_smoothing", "dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is not in [0, 1)")
        for name in ("learning_rate", "weight_decay"):
            _check_rate(name, getattr(self, name))
        for module, decay in self.own_weight_decay:
            _check_rate(f"{_OWN}{module}", decay)


def _check_rate(name: str, value: float) -> None:
    if not 0 <= value < np.inf:
        raise InputError(f"{name}: {value} is not a finite number of at least 0")


_OWN = "weight_decay_"  # and the name of a module
NAMES = tuple(field.name for field in dataclasses.fields(Hyper))


def hyper_of(arch: Mapping[str, Any], **defaults: Any) -> Hyper:
    """The hyperparameters among an architecture's choices; ``defaults`` for those it does not have."""
    own = tuple((name.removeprefix(_OWN), arch[name]) for name in arch if name.startswith(_OWN))
    given: dict[str, Any] = {"own_weight_decay": own} if own else {}
    return Hyper(**(defaults | given | {name: arch[name] for name in NAMES if name in arch}))


def _constant(done: np.ndarray) -> np.ndarray:
    return np.ones_like(done)


def _linear(done: np.ndarray) -> np.ndarray:
    return 1.0 - done


def _cosine(done: np.ndarray) -> np.ndarray:
    """Loshchilov and Hutter 2017, one period without restarts."""
    return 0.5 * (1.0 + np.cos(np.pi * done))


def _step(done: np.ndarray) -> np.ndarray:
    """He et al. 2015: divided by 10 at one half and at three quarters of the training."""
    return np.where(done < 0.5, 1.0, np.where(done < 0.75, 0.1, 0.01))


def _evenly(reductions: int, done: np.ndarray) -> np.ndarray:
    """Divided by 10 so many times, at even distances (Li et al. 2018)."""
    return 0.1 ** np.floor(done * (reductions + 1))


def _one_cycle(done: np.ndarray) -> np.ndarray:
    """Linear warm-up over the first 15 %, then linear to zero (the triangle of Smith and Topin 2018)."""
    return np.minimum(done / 0.15, (1.0 - done) / 0.85)


# Each maps the fraction of training done, in [0, 1), to the fraction of the highest learning rate.
SCHEDULES = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "step": _step,
    "step_1": functools.partial(_evenly, 1),
    "step_2": functools.partial(_evenly, 2),
    "step_3": functools.partial(_evenly, 3),
    "one_cycle": _one_cycle,
}


def learning_rates(hyper: Hyper, *, epoch: int, epochs: int, steps: int) -> np.ndarray:
    """float32 [steps]: the rate of every step of ``epoch`` (from 0), of ``epochs`` with ``steps`` each.

    The schedule runs over the full ``epochs``, also when a scheduler stops the trial sooner.
    """
    done = (epoch * steps + np.arange(steps, dtype=np.float64)) / (epochs * steps)
    return (hyper.learning_rate * SCHEDULES[hyper.schedule](done)).astype(np.float32)
