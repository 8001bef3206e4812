"""Supernets made of spaces: what they compute, edge by edge and at vertices; layouts; relaxations; monitors."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nas.errors import InputError
from nas.nn.count import count_macs
from nas.nn.layout import Layout
from nas.oneshot import monitor
from nas.oneshot.monitor import Epoch
from nas.oneshot.relaxation import RELAXATIONS, Levels, entropy
from search_spaces import darts, nasbench201
from tests.supernets import EDGE_WEIGHTS, EDGES, cell_layout, cell_network, chain_layout, chain_network

PRIMITIVES = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5")


def initialised(network, shape=(8, 8, 3), seed=0):
    return network.lazy_init(jax.random.key(seed), jax.ShapeDtypeStruct((1, *shape), jnp.float32))


def trained_forward(network, variables, x, mixing=None):
    keywords = {} if mixing is None else {"mixing": jnp.asarray(mixing)}
    rest = [name for name in variables if name != "params"]

    @jax.jit
    def forward(variables, x, keywords):
        return network.apply(variables, x, train=True, mutable=rest, **keywords)[0]

    return np.asarray(forward(variables, x, keywords))


def images(size=3, shape=(8, 8, 3), seed=5):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((size, *shape)), jnp.float32)


# ------------------------------------------------------------------------------------- edge by edge, in lax


def conv(x, kernel, stride=1, padding=0, dilation=1, groups=1):
    pads = ((padding, padding),) * 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, rhs_dilation=(dilation, dilation), feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def norm(x, scale=1.0, bias=0.0):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


def pooled(x, kind, stride):
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf if kind == "max" else 0)
    ones = jnp.pad(jnp.ones_like(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]

    def seen(of):
        return [of[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]

    return (
        functools.reduce(jnp.maximum, seen(padded)) if kind == "max" else sum(seen(padded)) / sum(seen(ones))
    )


def separable(x, p, size, stride, dilation, repeats):
    for k in range(1, repeats + 1):
        x = jax.nn.relu(x)
        pad, channels = dilation * (size - 1) // 2, x.shape[-1]
        x = conv(x, p[f"depthwise_{k}"]["kernel"], stride if k == 1 else 1, pad, dilation, channels)
        x = norm(conv(x, p[f"pointwise_{k}"]["kernel"]))
    return x


def reduced(x, p):
    x = jax.nn.relu(x)
    parts = conv(x, p["even"]["kernel"], 2), conv(x[:, 1:, 1:], p["odd"]["kernel"], 2)
    return norm(jnp.concatenate(parts, -1))


def primitive(name, x, p, stride):
    if name == "none":
        return 0.0
    if name.endswith("pool_3x3"):
        return norm(pooled(x, name[:3], stride))
    if name == "skip_connect":
        return x if stride == 1 else reduced(x, p)
    size = int(name[-1])
    return separable(x, p, size, stride, 1, 2) if name[:3] == "sep" else separable(x, p, size, stride, 2, 1)


def per_edge(params, weights, x, cells, steps):
    """The supernet of Liu et al. 2019 as its equations have it: ``weights`` by edge and operation."""
    s0 = s1 = norm(conv(x, params["stem"]["kernel"], padding=1), **params["stem_norm"])
    reduced_before = False
    for cell in range(cells):
        reduction = cell in (cells // 3, 2 * cells // 3)
        kind, at = ("reduce" if reduction else "normal"), f"cell_{cell + 1}"
        first, second = (params[f"{at}_input_{k}"] for k in (0, 1))
        point = [
            reduced(s0, first)
            if reduced_before
            else norm(conv(jax.nn.relu(s0), first["pointwise"]["kernel"])),
            norm(conv(jax.nn.relu(s1), second["pointwise"]["kernel"])),
        ]
        for node in range(2, 2 + steps):
            total = jnp.zeros(())
            for j in range(node):
                stride = 2 if reduction and j < 2 else 1
                for name, weight in weights[f"{kind}_{node}_{j}"].items():
                    own = params.get(f"{at}_node_{node}_from_{j}_{name}")
                    total += weight * primitive(name, point[j], own, stride)
            point.append(total)
        s0, s1, reduced_before = s1, jnp.concatenate(point[2:], -1), reduction
    features = s1.mean((1, 2))
    return features @ params["logits"]["kernel"] + params["logits"]["bias"]


@functools.cache
def darts_supernet():
    layout = darts.layout(2, PRIMITIVES)
    network = darts.supernet(layout, 5, channels=4, cells=3)
    return layout, network, initialised(network)


def nasbench_supernet():
    made = nasbench201.searched_by_supernet(nasbench201.SPACE)
    layout = made.layout()
    network = made.build(layout.opened(), 5, channels=4, cells=1)
    return layout, network, initialised(network)


@pytest.mark.parametrize("made", [pytest.param(darts_supernet, marks=pytest.mark.slow), nasbench_supernet])
@pytest.mark.parametrize(
    "way", [*(pytest.param(way, marks=pytest.mark.slow) for way in ("batched", "remat")), "batched and remat"]
)
@pytest.mark.slow
def test_ways_to_run_a_supernet_change_neither_values_nor_gradients(made, way):
    layout, network, variables = made()
    mixing = jnp.asarray(np.random.default_rng(1).random(layout.size), jnp.float32)
    other = network.clone(**dict.fromkeys(way.split(" and "), True))
    rest = [name for name in variables if name != "params"]

    def loss(params, mixing, network):
        everything = {**variables, "params": params}
        logits, updated = network.apply(everything, images(), train=True, mutable=rest, mixing=mixing)
        return jnp.square(logits).mean(), updated

    def seen(network):
        of = functools.partial(loss, network=network)
        gradient = jax.value_and_grad(of, (0, 1), has_aux=True)
        at = (variables["params"], mixing)
        calls = sum(equation.primitive.name == "jit" for equation in jax.make_jaxpr(of)(*at).jaxpr.eqns)
        return jax.jit(gradient)(*at), calls, count_macs(of, *at), count_macs(gradient, *at)

    expected, calls, macs, macs_of_all = seen(network)
    found, calls_so, macs_so, macs_of_all_so = seen(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), found, expected)
    assert macs_so == macs
    assert (calls_so < calls) == ("batched" in way)
    assert (macs_of_all_so > macs_of_all) == ("remat" in way)


@pytest.mark.slow
def test_a_supernet_is_what_its_edges_are():
    layout, network, variables = darts_supernet()
    mixing = np.random.default_rng(1).random(layout.size).astype(np.float32)
    found = trained_forward(network, variables, images(), mixing)
    forward = jax.jit(lambda params, x: per_edge(params, layout.weights(mixing), x, 3, 2))
    np.testing.assert_allclose(found, forward(variables["params"], images()), rtol=1e-4, atol=1e-5)


ARCHES = [
    {"normal": ("sep_conv_3x3", "skip_connect"), "reduce": ("max_pool_3x3", "dil_conv_5x5")},
    {"normal": ("avg_pool_3x3", "dil_conv_5x5"), "reduce": ("skip_connect", "sep_conv_3x3")},
]


@pytest.mark.parametrize("relaxation", [*RELAXATIONS, "exactly"])
@pytest.mark.some(2)
def test_with_one_hot_weights_a_supernet_is_the_derived_network(relaxation):
    layout, network, variables = darts_supernet()
    rng = np.random.default_rng(len(relaxation))
    arch = {name: values[rng.integers(len(values))] for name, values in layout.choices}
    for name in ("normal_2_0", "normal_3_1", "reduce_2_0", "reduce_3_1"):  # every node has an input
        arch[name] = "sep_conv_3x3"
    mixing = layout.one_hot(arch)
    if relaxation != "exactly":
        # Alphas as far towards the one-hot weights as they go.
        alphas = jnp.where(jnp.asarray(mixing) > 0, 60.0, -60.0)
        of = RELAXATIONS[relaxation]
        if not of.learns:  # its own draw is one-hot, of another architecture
            mixing = of.relax(layout, alphas, jax.random.key(4), Levels(0.5))
            arch = layout.best(mixing)
        else:
            mixing = of.relax(layout, alphas, jax.random.key(3), Levels(0.5))
            assert layout.best(of.expected(layout, alphas)) == arch
        np.testing.assert_allclose(mixing, layout.one_hot(arch), atol=1e-6)
    discrete = darts.search_network(arch, 5, channels=4, cells=3)
    wanted = jax.eval_shape(lambda: initialised(discrete))
    own = {name: {node: variables[name][node] for node in tree} for name, tree in wanted.items()}
    found = trained_forward(network, variables, images(), mixing)
    np.testing.assert_allclose(found, trained_forward(discrete, own, images()), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["cell", "chain"])
def test_any_space_leaves_its_choices_open(kind):
    layout, build = {"cell": (cell_layout(), cell_network), "chain": (chain_layout(), chain_network)}[kind]
    network = build(layout.opened())
    variables = initialised(network)
    arch = {name: values[-1 - k % 2] for k, (name, values) in enumerate(layout.choices)}
    discrete = build(arch)
    wanted = jax.eval_shape(lambda: initialised(discrete))
    own = {name: {node: variables[name][node] for node in tree} for name, tree in wanted.items()}
    found = trained_forward(network, variables, images(), layout.one_hot(arch))
    np.testing.assert_allclose(found, trained_forward(discrete, own, images()), rtol=1e-5, atol=1e-5)
    assert not any("mix" in node.name and hasattr(node.module, "positions") for node in discrete.nodes)


@pytest.mark.slow
def test_partial_channels_and_edge_weights():
    """Equations 1 and 2 of Xu et al. 2020, edge by edge, with the shuffle at the end of each."""
    layout = cell_layout(("skip", "conv_3"), node_inputs=EDGE_WEIGHTS, partial_channels=2)
    network = cell_network(layout.opened(), cells=1)
    variables = initialised(network)
    params: Any = variables["params"]
    alphas = jax.random.normal(jax.random.key(0), (layout.size,))
    mixing = RELAXATIONS["softmax"].relax(layout, alphas, jax.random.key(0), Levels())
    betas = {name: alphas[layout.open(name).edge] for name in layout.names}
    betas = {
        name: np.exp(betas[name]) / sum(np.exp(betas[other]) for other in group)
        for group in layout.node_inputs
        for name in group
    }

    def shuffled(x):
        order = [k // 2 if k % 2 == 0 else 2 + k // 2 for k in range(4)]
        return x[..., np.array(order)]

    x = images()
    states = [conv(x, params["stem"]["kernel"], padding=1)]
    for to in (1, 2):
        total = jnp.zeros(())
        for source in [i for i, j in EDGES if j == to]:
            name, state = f"edge_{source}_{to}", states[source]
            first = layout.open(name).first
            soft = jax.nn.softmax(alphas[first : first + 2])
            own = f"cell_0_{source}_{to}_conv_3"
            convolved = norm(conv(state[..., :2], params[own]["kernel"], padding=1))
            mixed = soft[0] * state[..., :2] + soft[1] * jnp.tanh(convolved)
            total += betas[name] * shuffled(jnp.concatenate([mixed, state[..., 2:]], -1))
        states.append(total)
    expected = states[-1].mean((1, 2)) @ params["logits"]["kernel"] + params["logits"]["bias"]
    np.testing.assert_allclose(trained_forward(network, variables, x, mixing), expected, rtol=1e-4, atol=1e-5)


def test_evaluation_uses_running_statistics_and_dropout_of_skips_is_for_training():
    layout = darts.layout(2, ("none", "skip_connect", "dil_conv_3x3"))
    network = darts.supernet(layout, 5, channels=4, cells=2, skip_dropout=True)
    variables, mixing = initialised(network), jnp.full(layout.size, 1 / 3)
    run = jax.jit(functools.partial(network.apply, train=False))
    np.testing.assert_array_equal(*(run(variables, images(), mixing=mixing, dropout=d) for d in (0.0, 0.9)))
    train = jax.jit(lambda d: network.apply(
        variables, images(), train=True, mixing=mixing, dropout=d, seed=jnp.uint32(1), mutable=["batch_stats"]
    ))  # fmt: skip
    (kept, updated), (dropped, _) = train(0.0), train(0.9)
    assert np.abs(kept - dropped).max() > 1e-3
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), variables["batch_stats"], updated["batch_stats"]
    )
    assert min(jax.tree.leaves(moved)) > 0


# ----------------------------------------------------------------------------------------------- layouts


def test_a_layout_numbers_candidates_and_edges():
    layout = Layout.of({"a": (1, 3), "b": ("x", "y", "z")}, node_inputs=(("b", "a"),), partial_channels=4)
    assert (layout.candidates, layout.size) == (5, 7)
    assert layout.open("b") == layout.opened()["b"]
    assert (layout.open("b").first, layout.open("b").edge, layout.open("a").edge) == (2, 5, 6)
    np.testing.assert_array_equal(layout.one_hot({"a": 3, "b": "x"}), [0, 1, 1, 0, 0, 1, 1])
    assert layout.best([0.1, 0.2, 3, 2, 1, 0, 0], without=("x",)) == {"a": 3, "b": "y"}
    narrow = layout.strongest([1, 2, 5, 1, 7, 0, 0], 2)
    assert narrow.choices == (("a", (1, 3)), ("b", ("x", "z")))
    np.testing.assert_array_equal(narrow.transferred([1, 2, 5, 1, 7, 8, 9], layout), [1, 2, 5, 7, 8, 9])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cell_layout().open("edge_9_9"), "layout: 'edge_9_9'"),
        (
            lambda: cell_layout(node_inputs=(("edge_0_1",),)),
            "layout: node_inputs does not have every choice once",
        ),
        (lambda: cell_layout(partial_channels=4), "layout: partial_channels=4 needs edge weights"),
        (
            lambda: chain_layout().one_hot({f"kernel_{i}": 9 for i in range(3)}),
            "layout: kernel_0: 9 is not one of 1, 3, 5",
        ),
    ],
)
def test_a_wrong_layout_is_one_line(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_darts_cells_are_derived_by_their_two_strongest_inputs():
    layout = darts.layout()
    weights = np.full(layout.size, 0.01)
    entries = {
        ("normal_3_0", "sep_conv_3x3"): 0.5, ("normal_3_1", "none"): 0.9, ("normal_3_1", "avg_pool_3x3"): 0.4,
        ("normal_3_2", "skip_connect"): 0.45, ("normal_5_4", "dil_conv_5x5"): 0.3, ("normal_5_3", "skip_connect"): 0.2,
        ("normal_4_0", "skip_connect"): 0.3, ("normal_4_1", "skip_connect"): 0.25, ("normal_4_1", "max_pool_3x3"): 0.2,
    }  # fmt: skip
    for (name, operation), weight in entries.items():
        of = layout.open(name)
        weights[of.first + of.values.index(operation)] = weight
    cell = darts.derived(layout, weights).normal
    assert cell[2:4] == (("sep_conv_3x3", 0), ("skip_connect", 2))
    assert cell[6:8] == (("skip_connect", 3), ("dil_conv_5x5", 4))
    assert cell[4:6] == (("skip_connect", 0), ("skip_connect", 1))
    kept = darts.derived(layout, weights, most_skips=2).normal
    assert [op for op, _ in kept].count("skip_connect") == 2
    assert kept[4:6] == (("skip_connect", 0), ("max_pool_3x3", 1))
    genotype = darts.derived(layout, weights)
    assert darts.derived(layout, layout.one_hot(darts.discrete(genotype))) == genotype


# ------------------------------------------------------------------------------------------- relaxations


@pytest.mark.slow
def test_relaxations_draw_what_they_say():
    layout = Layout.of({"a": ("x", "y", "z"), "b": (1, 2)})
    alphas = jnp.asarray([0.5, -1.0, 0.2, 2.0, 0.0])
    keys = jax.random.split(jax.random.key(0), 2000)

    def mean(name):
        draw = jax.jit(lambda key: RELAXATIONS[name].relax(layout, alphas, key, Levels(temperature=10.0)))
        return np.asarray(jax.lax.map(draw, keys)).mean(0)

    for name in ("gumbel", "dirichlet"):
        np.testing.assert_allclose(mean(name), RELAXATIONS[name].expected(layout, alphas), atol=0.03)
    shares = np.asarray([1.5, np.exp(-1.0), 1.2])  # elu + 1
    np.testing.assert_allclose(
        RELAXATIONS["dirichlet"].expected(layout, alphas)[:3], shares / shares.sum(), rtol=1e-5
    )


@pytest.mark.slow
def test_the_gradient_of_dirichlet_draws_is_unbiased():
    """Implicit reparametrisation: the mean gradient of a draw is the gradient of the mean."""
    layout = Layout.of({"a": ("x", "y", "z")})
    alphas, slope = jnp.asarray([0.5, -0.5, 1.0]), jnp.asarray([1.0, -2.0, 0.5])
    of = RELAXATIONS["dirichlet"]
    keys = jax.random.split(jax.random.key(0), 3000)
    drawn = jax.jit(lambda key: jax.grad(lambda a: slope @ of.relax(layout, a, key, Levels()))(alphas))
    found = np.asarray(jax.jit(lambda keys: jax.lax.map(drawn, keys))(keys)).mean(0)
    expected = jax.grad(lambda a: slope @ of.expected(layout, a))(alphas)
    np.testing.assert_allclose(found, expected, atol=0.015)


def test_perturbations_stay_near_and_raise_the_loss():
    layout = Layout.of({"a": ("x", "y", "z"), "b": ("x", "y", "z")})
    mixing = RELAXATIONS["softmax"].relax(layout, jnp.arange(6.0) / 6, jax.random.key(0), Levels())
    slope = jnp.asarray([1.0, -2.0, 0.5, 3.0, 0.1, -1.0])
    moved = {}
    for name in ("perturbed", "adversarial"):
        perturb = RELAXATIONS[name].perturb
        assert perturb is not None
        for radius in (0.03, 0.2):
            at = (layout, mixing, jax.random.key(1), Levels(radius=radius), lambda m: slope, 7)
            moved[name, radius] = np.asarray(perturb(*at))
    for (_, radius), found in moved.items():
        np.testing.assert_allclose(found.reshape(2, 3).sum(1), 1, rtol=1e-5)
        assert 0.4 * radius < np.abs(found - mixing).max() < 2 * radius
    moved = {name: of for (name, radius), of in moved.items() if radius == 0.03}
    assert slope @ moved["adversarial"] > slope @ mixing + 0.05
    assert slope @ moved["adversarial"] > slope @ moved["perturbed"]


@pytest.mark.slow
def test_entropy_is_one_when_even_and_zero_when_one_hot():
    layout = Layout.of({"a": ("x", "y", "z"), "b": (1, 2)})
    np.testing.assert_allclose(entropy(layout, jnp.asarray([1 / 3] * 3 + [0.5] * 2)), 1, rtol=1e-6)
    np.testing.assert_allclose(entropy(layout, jnp.asarray(layout.one_hot({"a": "y", "b": 1}))), 0, atol=1e-6)


# ---------------------------------------------------------------------------------------------- monitors


def test_lanczos_finds_the_dominant_eigenvalue():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((40, 40)))
    matrix = basis @ np.diag([*np.linspace(-1, 1, 39), 5.0]) @ basis.T
    assert monitor.dominant_eigenvalue(lambda v: matrix @ v, 40, steps=12) == pytest.approx(5, rel=1e-4)
    assert monitor.dominant_eigenvalue(lambda v: 0 * v, 3) == pytest.approx(0, abs=1e-12)


def test_rules_stop_where_their_papers_do():
    skips = [Epoch(0), Epoch(1), Epoch(2)]
    assert monitor.stop_on_skips(skips[:2]) is None
    assert monitor.stop_on_skips(skips) == 1
    flat = [Epoch(0, 0.2)] * 12
    assert monitor.stop_on_curvature(flat) is None
    growing = [Epoch(0, 0.2)] * 6 + [Epoch(0, 0.2 + 0.1 * k) for k in range(1, 5)]
    stopped = [monitor.stop_on_curvature(growing[:n], start=0) for n in range(1, 11)]
    means = [np.mean([e.eigenvalue or 0.0 for e in growing[max(0, n - 4) : n + 1]]) for n in range(10)]
    expected = [n - 5 if n >= 5 and means[n - 5] / means[n] < 0.75 else None for n in range(10)]
    assert stopped == expected
    assert any(stop is not None for stop in stopped)
    late = [Epoch(0, 1.5**n) for n in range(17)]
    assert [monitor.stop_on_curvature(late[:n]) for n in range(1, 18)] == [None] * 15 + [10, 11]
    with pytest.raises(InputError, match="has no eigenvalue"):
        monitor.stop_on_curvature([Epoch(0)])


def test_skips_are_counted_by_cell():
    arch = {"normal_2_0": "skip_connect", "normal_2_1": "none", "reduce_2_0": "skip_connect"}
    assert monitor.count(arch, "skip_connect") == 2
    assert monitor.count(arch, "skip_connect", "normal") == 1
