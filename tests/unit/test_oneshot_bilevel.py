"""Derivatives of supernets in float64, and the bilevel step."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from nas.cpu import native_status
from nas.oneshot import bilevel
from nas.oneshot.bilevel import Point, Problem, Rates
from nas.oneshot.programs import OF_RELAXATION, Search
from nas.oneshot.relaxation import RELAXATIONS
from nas.training.network import Noise, apply_train
from nas.training.programs import Shape
from search_spaces import darts
from tests.arrays import in_plain
from tests.supernets import (
    EDGE_WEIGHTS,
    cell_layout,
    cell_network,
    chain_layout,
    chain_network,
    planted_batch,
    planted_layout,
    planted_network,
    random_batch,
)

UNROLL = 1.0
SHAPE = Shape((6, 6, 2), 3, 6, 6, "momentum")


FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # to compile
jit = functools.partial(jax.jit, compiler_options=FAST)


@functools.cache
def supernet(part=1):
    if part == 1:
        layout = chain_layout(2, (1, 3))
        return layout, chain_network(layout.opened(), "tanh")
    layout = cell_layout(("none", "skip", "conv_1"), node_inputs=EDGE_WEIGHTS, partial_channels=part)
    return layout, cell_network(layout.opened(), cells=1)


def wide(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64) if a.dtype == jnp.float32 else a, tree)


def problem_state(order, relaxation="softmax", part=1):
    layout, network = supernet(part)
    problem = Problem(layout, RELAXATIONS[relaxation], order)
    state = Search(network, problem, SHAPE).init(0)
    alphas = jax.random.normal(jax.random.key(1), (layout.size,))
    trace = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), state.params)
    opt_state = optax.tree.set(state.opt_state, trace=trace)
    return network, problem, wide(state._replace(alphas=alphas, opt_state=opt_state))


def mean_loss(network, params, mixing, state, batch):
    logits, *_ = apply_train(
        network, {"params": params, **state.rest}, (batch.images,), Noise(0.0, 0), mixing=mixing
    )
    return -jnp.mean(jnp.sum(batch.target * jax.nn.log_softmax(logits), -1))


def architecture_gradient(order, relaxation, part, unroll):
    network, problem, state = problem_state(order, relaxation, part)
    train, valid = (wide(random_batch(k)) for k in (1, 2))
    rates = Rates(unroll=unroll, progress=0.3, penalty=0.1)
    mixing = jax.jit(functools.partial(bilevel.architecture_mixing, problem))(state.alphas, 7, rates)
    of = bilevel.derivatives(network)

    @jit
    def gradient(state, mixing):
        by_mixing = bilevel.mixing_gradient(of, order, state, mixing, train, valid, Noise(0.0, 0), rates)[1]
        return bilevel.alpha_gradient(problem, state.alphas, by_mixing, 7, rates)

    def explicit(alphas):
        """The validation loss after one step of the weights, differentiated through the step."""
        mixing = bilevel.architecture_mixing(problem, alphas, 7, rates)
        weights = state.params
        if order != "first":
            gradient = jax.grad(lambda p: mean_loss(network, p, mixing, state, train))(weights)
            weights = jax.tree.map(lambda p, g: p - unroll * (0.9 * 0.1 + g + 3e-4 * p), weights, gradient)
        penalty = 0.1 * problem.relaxation.penalty(problem.layout, alphas)
        return mean_loss(network, weights, mixing, state, valid) + penalty

    return gradient(state, mixing), explicit, state.alphas


@pytest.mark.parametrize(
    ("order", "relaxation", "part"),
    [
        ("first", "softmax", 1),
        pytest.param("exact", "softmax", 1, marks=pytest.mark.slow),
        pytest.param("exact", "dirichlet", 1, marks=pytest.mark.slow),
        pytest.param("exact", "softmax", 2, marks=pytest.mark.slow),
    ],
)
def test_architecture_gradients_in_float64(order, relaxation, part):
    """Equal to differentiation through the unrolled step, and to finite differences of it."""
    with jax.enable_x64(True):
        found, explicit, alphas = architecture_gradient(order, relaxation, part, UNROLL)
        value = jit(explicit)
        expected = jit(jax.grad(explicit))(alphas)
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-10)
        if order != "first":  # the second-order part is there, and not small
            first, *_ = architecture_gradient("first", relaxation, part, UNROLL)
            assert np.linalg.norm(found - first) > 0.03 * np.linalg.norm(first)
        if (
            relaxation == "dirichlet"
        ):  # its draws are not a smooth function of alphas: see the test of its gradient
            return
        rng = np.random.default_rng(0)
        for _ in range(3):
            along = rng.standard_normal(alphas.shape)
            slope = (value(alphas + 1e-5 * along) - value(alphas - 1e-5 * along)) / 2e-5
            np.testing.assert_allclose(found @ along, slope, rtol=2e-5, atol=1e-8)


@pytest.mark.slow
def test_gumbel_gradient_is_that_of_the_softmax_at_the_drawn_one_hot():
    with jax.enable_x64(True):
        network, problem, state = problem_state("first", "gumbel")
        temperature = 5.05
        rates, valid = Rates(temperature=temperature), wide(random_batch(2))
        mixing = bilevel.architecture_mixing(problem, state.alphas, 7, rates)
        np.testing.assert_allclose(np.sort(mixing), [0, 0, 1, 1], atol=1e-12)
        of = bilevel.derivatives(network)
        at = Point(state.params, mixing, state.rest, valid, Noise(0.0, 0))
        _, by_mixing = jit(of.by_mixing)(at)
        found = bilevel.alpha_gradient(problem, state.alphas, by_mixing, 7, rates)
        noise = jax.random.gumbel(bilevel._keys(7)[0], (problem.layout.size,))
        rows = (state.alphas.reshape(2, 2), noise.reshape(2, 2), by_mixing.reshape(2, 2))
        for k, (alphas, drawn, slope) in enumerate(zip(*rows, strict=True)):
            soft = jax.nn.softmax((jax.nn.log_softmax(alphas) + drawn) / temperature)
            centred = soft * (slope - soft @ slope) / temperature  # by the logits
            by_alphas = centred - jax.nn.softmax(alphas) * centred.sum()
            np.testing.assert_allclose(found.reshape(2, 2)[k], by_alphas, rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_the_published_difference_comes_near_the_exact_second_order_gradient():
    with jax.enable_x64(True):
        exact, *_ = architecture_gradient("exact", "softmax", 1, UNROLL)
        difference, *_ = architecture_gradient("difference", "softmax", 1, UNROLL)
        first, *_ = architecture_gradient("first", "softmax", 1, UNROLL)
        assert np.linalg.norm(difference - exact) < 0.01 * np.linalg.norm(exact - first)


def stepped(order, relaxation, one_program, steps=2):
    layout, network = supernet()
    search = Search(network, Problem(layout, RELAXATIONS[relaxation], order), SHAPE, one_program)
    state = search.init(0)
    for k in range(steps):
        rates = Rates(unroll=0.1, temperature=5.0, radius=0.15, nesterov=1.0, alpha_learning_rate=0.1)
        state, metrics = search.step(state, random_batch(1), random_batch(2), rates, np.uint32(k))
    return state, metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "relaxation"),
    [
        ("first", "gumbel"),
        pytest.param("exact", "softmax", marks=pytest.mark.slow),
        pytest.param("difference", "adversarial", marks=pytest.mark.slow),
    ],
)
def test_one_program_a_step_and_one_a_derivative_do_the_same(order, relaxation):
    results = [stepped(order, relaxation, one_program) for one_program in ("step", "derivative")]
    (whole, of_whole), (apart, of_apart) = results
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(of_whole, of_apart, rtol=1e-4)
    assert optax.tree.get(whole.alpha_opt_state, "count") == 2


def test_a_step_compiles_nothing_after_compile():
    layout, network = supernet()
    search = Search(network, Problem(layout, RELAXATIONS["softmax"], "first"), SHAPE, "derivative")
    search.compile()
    state = search.init(0)
    batch, compiled = random_batch(1), []
    state, _ = search.step(state, batch, batch, Rates(), np.uint32(0))
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    for k in range(1, 3):
        state, _ = search.step(state, batch, batch, Rates(learning_rate=0.1 * k), np.uint32(k))
    assert not [event for event in compiled if "compile" in event]


@pytest.fixture
def own_caches(tmp_path, monkeypatch):
    """Empty caches of compiled programs, ours and JAX's: a program of JAX's cache is not stored in ours."""
    native_status()  # built in the cache folder of all tests, not in this one's
    monkeypatch.setenv("NAS_CACHE_DIR", str(tmp_path))
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.mark.usefixtures("own_caches")
def test_a_second_process_traces_only_what_has_no_name_on_disk(monkeypatch):
    layout, network = supernet()
    traced = []
    of_shape = Search.traced
    monkeypatch.setattr(
        Search, "traced", lambda self, *names: traced.append(names[0]) or of_shape(self, *names)
    )
    for expected in (set(OF_RELAXATION[2:]) | {"by_both", "mixed", "by_weights", "unrolled",
                     "weights_update", "predict"}, set(OF_RELAXATION[2:])):  # fmt: skip
        traced.clear()
        search = Search(network, Problem(layout, RELAXATIONS["softmax"], "exact"), SHAPE, "derivative")
        search.compile()
        assert set(traced) == expected
        _, metrics = search.step(search.init(0), random_batch(1), random_batch(2), Rates(), np.uint32(0))
        assert set(traced) == expected
        assert np.isfinite(metrics.valid_loss)


@pytest.mark.slow
def test_what_is_computed_again_is_not_kept():
    layout = darts.layout(2, ("none", "sep_conv_3x3"))
    shape, kept, losses = Shape((8, 8, 3), 10, 16, 16, "momentum"), [], []
    for remat in (False, True):
        network = darts.supernet(layout, 10, channels=8, cells=1).clone(remat=remat)
        search = Search(network, Problem(layout, RELAXATIONS["softmax"], "exact"), shape, "derivative")
        function, arguments = search.traced("by_weights", "by_weights")
        kept.append(function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes)
        train, valid = (random_batch(k, 16, (8, 8, 3), 10) for k in range(2))
        losses.append(search.step(search.init(0), train, valid, Rates(), np.uint32(0))[1].valid_loss)
    assert kept[1] < 0.8 * kept[0]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "dtype", "remat"), [("difference", "float32", True), ("exact", "bfloat16", False)]
)
def test_one_program_lowers_for_accelerators(order, dtype, remat):
    """Computed again as accelerators do it, though this process is on CPU: behind barriers."""
    layout = darts.layout(1)
    network = darts.supernet(layout, 10, channels=4, cells=2).clone(remat=remat)
    shape = Shape((8, 8, 3), 10, 2, 2, "momentum", dtype=dtype)
    search = Search(network, Problem(layout, RELAXATIONS["softmax"], order), shape, "step")
    function, arguments = search.traced("search_step", "search_step")
    exported = in_plain(jax.export.export(function, platforms=["tpu", "cuda"]), *arguments)
    assert "@nas_" not in exported.mlir_module()
    assert ("optimization_barrier" in exported.mlir_module()) == remat
    convolutions = [line for line in exported.mlir_module().splitlines() if "stablehlo.convolution" in line]
    assert convolutions
    assert all(("bf16" in line) == (dtype == "bfloat16") for line in convolutions)


@pytest.mark.slow
def test_a_step_in_bfloat16_is_near_that_in_float32():
    layout, network = supernet()
    found = []
    for dtype in ("float32", "bfloat16"):
        search = Search(
            network,
            Problem(layout, RELAXATIONS["softmax"], "exact"),
            dataclasses.replace(SHAPE, dtype=dtype),
            "step",
        )
        train, valid = (one._replace(images=one.images.astype(dtype)) for one in map(random_batch, (1, 2)))
        state, metrics = search.step(search.init(0), train, valid, Rates(), np.uint32(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
        found.append((metrics.train_loss, metrics.valid_loss))
    np.testing.assert_allclose(found[1], found[0], rtol=3e-2)


def test_weights_follow_the_published_update():
    """Momentum of the clipped gradient plus weight decay, on every leaf."""
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.full(2, 2.0)}
    gradient = {"kernel": jnp.full((2, 2), 30.0), "bias": jnp.full(2, 40.0)}
    trace = jax.tree.map(jnp.ones_like, params)
    rates = Rates(learning_rate=0.1, momentum=0.5, weight_decay=0.01, clip_norm=5.0)
    opt_state = optax.tree.set(bilevel.weights_optimiser(rates).init(params), trace=trace)
    found, opt_state = bilevel.weights_update(params, opt_state, gradient, rates)
    moved = optax.tree.get(opt_state, "trace")
    factor = 5 / np.sqrt(4 * 30**2 + 2 * 40**2)
    np.testing.assert_allclose(moved["kernel"], 0.5 + 30 * factor + 0.01 * 1, rtol=1e-5)
    np.testing.assert_allclose(moved["bias"], 0.5 + 40 * factor + 0.01 * 2, rtol=1e-5)
    np.testing.assert_allclose(found["bias"], 2 - 0.1 * (0.5 + 40 * factor + 0.02), rtol=1e-5)
    # Nesterov's: the gradient and the momentum that is now.
    opt_state = optax.tree.set(bilevel.weights_optimiser(rates).init(params), trace=trace)
    ahead, opt_state = bilevel.weights_update(params, opt_state, gradient, rates._replace(nesterov=1.0))
    step = 40 * factor + 0.02
    np.testing.assert_allclose(ahead["bias"], 2 - 0.1 * (step + 0.5 * (0.5 + step)), rtol=1e-5)
    np.testing.assert_allclose(optax.tree.get(opt_state, "trace")["bias"], 0.5 + step, rtol=1e-5)


@pytest.mark.parametrize("variant", [*RELAXATIONS, "partial", "progressive"])
@pytest.mark.some(3)
def test_every_relaxation_finds_the_planted_operation(variant):
    name = variant if variant in RELAXATIONS else "softmax"
    others = {"node_inputs": (("op_1", "op_2"),), "partial_channels": 2} if variant == "partial" else {}
    layout = planted_layout(**others)
    good = {"op_1": "good", "op_2": "good"}
    shape = Shape((4, 4, 4), 2, 32, 32, "momentum")
    order = "first"
    relaxation = RELAXATIONS[name]
    search = Search(planted_network(layout.opened()), Problem(layout, relaxation, order), shape, "step")
    state = search.init(0)
    steps = 80

    def run(search, state, first, last):
        for k in range(first, last):
            rates = Rates(
                learning_rate=0.05,
                unroll=0.05,
                alpha_learning_rate=0.05,
                progress=k / steps,
                temperature=10 + (0.1 - 10) * k / steps,
                radius=0.03 + 0.27 * k / steps,
                penalty={"sigmoid": 10.0, "dirichlet": 1e-3}.get(name, 0.0),
                weight_decay=0.0,
            )
            state, _ = search.step(state, planted_batch(2 * k), planted_batch(2 * k + 1), rates, np.uint32(k))
        return state

    if variant == "progressive":
        state = run(search, state, 0, 30)
        narrow = layout.strongest(relaxation.expected(layout, state.alphas), 2)
        assert all("good" in values for _, values in narrow.choices)
        search = Search(planted_network(narrow.opened()), Problem(narrow, relaxation, order), shape, "step")
        state, layout = run(search, search.init(1), 30, steps), narrow
    else:
        state = run(search, state, 0, steps)
    assert layout.best(relaxation.expected(layout, state.alphas)) == good
