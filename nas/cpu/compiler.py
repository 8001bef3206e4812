"""How XLA compiles a program on CPU: options under which it takes about half the time."""

from __future__ import annotations

import jax

OPTIONS: dict[str, str | bool] = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": "1"}
"""Neither makes a training step measurably slower (docs/ablation.md): what takes the time in it are native kernels."""


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """``lowered.compile()`` by `OPTIONS` where this process computes on CPU; other platforms have their own.

    A jaxlib that does not know the options compiles without them. ``JAX_DISABLE_MOST_OPTIMIZATIONS`` stays in force.
    """
    if jax.default_backend() != "cpu":
        return lowered.compile()
    options = dict(OPTIONS)
    if jax.config.values["jax_disable_most_optimizations"]:
        del options["xla_backend_optimization_level"]
    try:
        return lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()
