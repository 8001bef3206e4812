"""CPU lowerings of JAX's own convolution and pooling: plain `jax` and `flax` programs get faster, none changes.

``register()`` puts them in front of XLA's for the whole process. They call kernels in C++ that the system's compiler
builds once; without a compiler, or with ``NAS_NATIVE=0``, XLA's own run as ever. Nothing of this package needs `nas`.
"""

from __future__ import annotations

import functools

from jax import lax

from nas.cpu import convolution, pooling
from nas.cpu.compiler import compiled
from nas.cpu.lowering import register as _register
from nas.cpu.native import available, native_status, processor

__all__ = ["available", "compiled", "native_status", "processor", "register"]


@functools.cache
def register() -> None:
    """Lower convolution, pooling and their derivatives on CPU to the native kernels, wherever JAX is used."""
    _register(lax.conv_general_dilated_p, convolution.choose, "convolution")
    _register(lax.reduce_window_max_p, pooling.choose_max, "pooling")
    _register(lax.reduce_window_sum_p, pooling.choose_sum, "pooling")
    _register(lax.select_and_scatter_add_p, pooling.choose_scatter, "pooling")
    _register(lax.select_and_gather_add_p, pooling.choose_gather, "pooling")
