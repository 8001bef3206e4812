"""How training programs are made and run, as settings. Imports no jax: a command line is made of them."""

from __future__ import annotations

import dataclasses

from nas.errors import InputError, one_of

EVALUATIONS = ("centre", "ten_crop")
INPUTS = ("device", "stream")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How programs are made and run; the same for every trial of a search."""

    dtype: str = "float32"
    """compute dtype: float32 or bfloat16 (parameters stay float32)"""
    clip_norm: float | None = None
    """scale gradients down to this global norm"""
    ema_decay: float | None = None
    """evaluate an exponential moving average of the parameters with this decay a step"""
    evaluate_batch_size: int = 250
    """images a step of an evaluation, over all devices"""
    steps_per_epoch: int | None = None
    """training steps between two measurements, which count as an epoch; default: a pass over the images"""
    devices: int = 1
    """local devices to split every batch over; 0: all there are"""
    steps_per_call: int | None = None
    """training steps that are one program; default: 1 on CPU, on accelerators 50"""
    scan_blocks: bool = False
    """compile equal consecutive blocks of a network once (jax.lax.scan): less to compile, more memory traffic"""
    input: str | None = None
    """where decoded images lie: device (whole on each) or stream (on the host's disk, a batch at a time; same values);
    default: stream where they would fill more than half of an accelerator's memory"""
    evaluation: str = "centre"
    """how test images are seen: centre (as they are) or ten_crop (corners, centre, all mirrored; averaged)"""
    crop_fraction: float = 0.875
    """share of the height and width that a corner of ten_crop has"""
    checkpoint_minutes: float = 5.0
    """minutes between two checkpoints while an epoch is under way; there is one after every epoch too"""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise one_of("dtype", self.dtype, ("float32", "bfloat16"))
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"clip_norm: {self.clip_norm} is not above 0")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InputError(f"ema_decay: {self.ema_decay} is not between 0 and 1")
        if self.evaluate_batch_size < 1:
            raise InputError(f"evaluate_batch_size: {self.evaluate_batch_size} is below 1")
        if self.steps_per_epoch is not None and self.steps_per_epoch < 1:
            raise InputError(f"steps_per_epoch: {self.steps_per_epoch} is below 1")
        if self.steps_per_call is not None and self.steps_per_call < 1:
            raise InputError(f"steps_per_call: {self.steps_per_call} is below 1")
        if self.devices < 0:
            raise InputError(f"devices: {self.devices} is below 0")
        if self.input is not None and self.input not in INPUTS:
            raise one_of("input", self.input, INPUTS)
        if self.evaluation not in EVALUATIONS:
            raise one_of("evaluation", self.evaluation, EVALUATIONS)
        if not 0 < self.crop_fraction < 1:
            raise InputError(f"crop_fraction: {self.crop_fraction} is not between 0 and 1")
        if not self.checkpoint_minutes > 0:
            raise InputError(f"checkpoint_minutes: {self.checkpoint_minutes} is not above 0")
