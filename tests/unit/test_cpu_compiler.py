"""The options by which programs are compiled on CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nas.cpu import compiler


def _lowered():
    return jax.jit(lambda x: jnp.tanh(x).sum() * 2).lower(jax.ShapeDtypeStruct((4,), "float32"))


def test_this_jaxlib_knows_the_options():
    for name, value in compiler.OPTIONS.items():
        assert _lowered().compile({name: value})(jnp.zeros(4)) == 0, name


def test_the_options_reach_the_compiler(monkeypatch):
    asked = []
    compile_of = jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", lambda self, options=None: asked.append(options) or compile_of(self)
    )
    compiler.compiled(_lowered())
    expected = dict(compiler.OPTIONS)
    if jax.config.values["jax_disable_most_optimizations"]:
        del expected["xla_backend_optimization_level"]
    assert asked == [expected]


def test_a_jaxlib_without_them_compiles_all_the_same(monkeypatch):
    monkeypatch.setitem(compiler.OPTIONS, "xla_cpu_no_option_of_any_version", True)
    assert compiler.compiled(_lowered())(jnp.zeros(4)) == 0
