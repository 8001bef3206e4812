"""What changes in the course of a search with shared weights: the rate of the weights, dropout, temperature, radius."""

from __future__ import annotations

import math

from nas.oneshot.bilevel import Rates
from nas.oneshot.relaxation import Levels
from nas.oneshot.settings import Settings


def rates_at(settings: Settings, stage: int, epoch: int, epochs: int) -> Rates:
    """What the steps of ``epoch`` (from 0) of a ``stage`` of so many ``epochs`` take.

    The rate of the weights falls as a cosine over the stage. Dropout of skip connections falls in a straight line in
    the stage's warm-up; then it starts anew and falls exponentially.
    """
    fall = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    rate = settings.learning_rate_min + (settings.learning_rate - settings.learning_rate_min) * fall
    if epoch / epochs < settings.warmup:
        kept = (epochs - epoch - 1) / epochs
    else:
        kept = math.exp(-settings.skip_dropout_decay * (epoch - math.ceil(settings.warmup * epochs)))
    return Rates(
        learning_rate=rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        alpha_learning_rate=settings.alpha_learning_rate,
        alpha_weight_decay=settings.alpha_weight_decay,
        alpha_b1=settings.alpha_b1,
        alpha_b2=settings.alpha_b2,
        unroll=rate,
        dropout=settings.skip_dropouts[stage] * kept,
        nesterov=float(settings.nesterov),
        penalty=settings.penalty,
    )


def levels_at(settings: Settings, progress: float) -> Levels:
    """Temperature and radius, which go from one end to the other in straight lines; ``progress`` from 0 to 1."""
    return Levels(
        progress,
        settings.temperature + (settings.temperature_min - settings.temperature) * progress,
        settings.radius_min + (settings.radius - settings.radius_min) * progress,
    )
