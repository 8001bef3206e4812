"""What networks and training are made of, with the lowering that is fast on each platform; NHWC, HWIO.

One traced program lowers for CPU (native kernels, built on first use), GPU and TPU (XLA's own ops). All
of it differentiates to any order, in forward and reverse mode, and can be vmapped.
"""

from nas.ops.conv import conv2d
from nas.ops.count import count_macs, macs_of_equation, macs_of_jaxpr
from nas.ops.fused import (
    ACTIVATIONS,
    OPTIMISERS,
    Deferred,
    activate,
    add,
    batch_norm_act,
    batch_norm_inference,
    clip_scale,
    concatenate,
    count_correct,
    dense,
    dropout,
    ema_update,
    fork,
    fused_update,
    gather_augmented,
    gather_normalise,
    gather_targets,
    global_norm,
    layer_norm_act,
    lerp,
    local_response_norm,
    mixture,
    moments,
    optimiser_slots,
    recomputed,
    scale_shift_act,
    separable_conv2d,
    softmax_cross_entropy,
    weighted_sum,
)
from nas.ops.local import local2d
from nas.cpu import available as native_available
from nas.cpu import native_status, processor, register
register()
from nas.ops.noise import node_seed, noise_taken
from nas.ops.pool import avg_pool, max_pool

__all__ = [
    "ACTIVATIONS",
    "OPTIMISERS",
    "Deferred",
    "activate",
    "add",
    "avg_pool",
    "batch_norm_act",
    "batch_norm_inference",
    "clip_scale",
    "concatenate",
    "conv2d",
    "count_correct",
    "count_macs",
    "dense",
    "dropout",
    "ema_update",
    "fork",
    "fused_update",
    "gather_augmented",
    "gather_normalise",
    "gather_targets",
    "global_norm",
    "layer_norm_act",
    "lerp",
    "local2d",
    "local_response_norm",
    "macs_of_equation",
    "macs_of_jaxpr",
    "max_pool",
    "mixture",
    "moments",
    "native_available",
    "native_status",
    "node_seed",
    "noise_taken",
    "optimiser_slots",
    "processor",
    "recomputed",
    "scale_shift_act",
    "separable_conv2d",
    "softmax_cross_entropy",
    "weighted_sum",
]
