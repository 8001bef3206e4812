"""The supernets that spaces say themselves to have: networks at vertices, derived points, narrowed spaces."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.errors import InputError
from nas.nn.supernet import supernet_of
from nas.space import Categorical, LogUniform, SearchSpace, When
from search_spaces import SPACES, chain, darts, nasbench201
from search_spaces.nasbench201 import nasbench201_space

SPACE_OF: dict[str, SearchSpace] = {
    "darts": darts.SPACE.searched(fix=["channels=4"], narrow=["normal_a=skip_connect,sep_conv_3x3",
                                                              "normal_b=skip_connect,sep_conv_3x3"]),
    "nasbench201": nasbench201_space(channels=4, cells=1).restrict(narrow=["edge_1_3=none,avg_pool_3x3"]),
    "chain": chain.SPACE.searched(fix=["depth=2", "width=8"], narrow=["kernel_2=3,5", "pooling=max,average"]),
}  # fmt: skip
SIZES = {"darts": {"channels": 4, "cells": 3}, "nasbench201": {"channels": 4, "cells": 1}, "chain": {}}


@functools.cache
def supernet(name: str) -> Any:
    space = SPACE_OF[name]
    assert space.supernet is not None
    return space.supernet(space)


@functools.cache
def initialised(name: str) -> tuple[Any, Any]:
    network = supernet(name).build(supernet(name).layout().opened(), 5, **SIZES[name])
    return network, network.lazy_init(jax.random.key(1), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))


def shapes_of(network: Any) -> Any:
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    return jax.eval_shape(lambda: network.lazy_init(jax.random.key(0), image))


def logits(network: Any, variables: Any, train: bool = True, **further: Any) -> np.ndarray:
    x = jnp.asarray(np.random.default_rng(5).standard_normal((4, 8, 8, 3)), jnp.float32)
    rest = [name for name in variables if name != "params"] if train else False

    @jax.jit
    def forward(variables: Any, further: Any) -> Any:
        found = network.apply(variables, x, train=train, mutable=rest, **further)
        return found[0] if train else found

    return np.asarray(forward(variables, further))


def drawn(name: str, seed: int) -> dict[str, Any]:
    """Operations by the layout's names."""
    rng = np.random.default_rng(seed)
    found = {choice: values[rng.integers(len(values))] for choice, values in supernet(name).layout().choices}
    if name == "darts":  # which has a way into every node
        found |= {edge: "skip_connect" for edge in found if edge.endswith("_0")}
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "darts" else name for name in SPACE_OF]
)
def test_a_supernet_with_one_hot_weights_is_the_network_of_those_operations(name):
    of, (network, variables) = supernet(name), initialised(name)
    for seed in range(2):
        operations = drawn(name, seed)
        discrete = of.build(operations, 5, **SIZES[name])
        own = {
            kind: {node: variables[kind][node] for node in tree} for kind, tree in shapes_of(discrete).items()
        }
        mixing = jnp.asarray(of.layout().one_hot(operations))
        found = logits(network, variables, mixing=mixing)
        np.testing.assert_allclose(found, logits(discrete, own), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["nasbench201", "chain"])
def test_that_network_is_the_spaces_own(name):
    """With the same weights, and the normalisation's scale and bias as they begin, in training mode."""
    space, of, (network, variables) = SPACE_OF[name], supernet(name), initialised(name)
    operations = drawn(name, 3)
    if name == "nasbench201":
        operations |= {"edge_0_1": "nor_conv_3x3", "edge_0_3": "nor_conv_1x1"}
    arch = of.derive(of.layout(), of.layout().one_hot(operations))
    assert of.operations(arch) == operations
    assert space.build is not None
    plain = space.build(arch, 5)
    renamed = {f"conv_{i}": f"conv_{i}_{arch.get(f'kernel_{i}')}" for i in (1, 2)}
    params: dict[str, Any] = {}
    for node, tree in shapes_of(plain)["params"].items():
        if node.startswith("cell_"):
            cell, edge = node.split("_conv_")
            conv = variables["params"][f"{cell}_edge_{edge}_{arch[f'edge_{edge}']}"]["conv"]
            ones, zeros = (np.full(tree["norm"]["scale"].shape, k, np.float32) for k in (1, 0))
            params[node] = {"conv": conv, "norm": {"scale": ones, "bias": zeros}}
        else:
            params[node] = variables["params"][renamed[node] if name == "chain" and node in renamed else node]
    statistics = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes_of(plain)["batch_stats"])
    found = logits(network, variables, mixing=jnp.asarray(of.layout().one_hot(operations)))
    expected = logits(plain, {"params": params, "batch_stats": statistics})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_edges_of_nasbench201_are_normalised_by_the_batch_in_evaluation_too():
    """As its authors search (`affine`, `track_running_stats` false): an edge has a kernel and nothing else."""
    network, variables = initialised("nasbench201")
    of_edge = {node: tree for node, tree in variables["params"].items() if "_edge_" in node}
    # 3 stages of 5 edges with two convolutions: edge_1_3 is narrowed to none and a pool.
    assert len(of_edge) == 3 * 5 * 2
    assert all(list(tree) == ["conv"] for tree in of_edge.values())
    assert not [node for node in variables["batch_stats"] if "_edge_" in node]
    mixing = jnp.full(supernet("nasbench201").layout().size, 0.2)
    plain = logits(network, variables, train=False, mixing=mixing)
    scaled = jax.tree.map(lambda leaf: leaf, variables)
    for node in of_edge:
        scaled["params"][node] = {"conv": {"kernel": 3 * scaled["params"][node]["conv"]["kernel"]}}
    found = logits(network, scaled, train=False, mixing=mixing)
    np.testing.assert_allclose(found, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SPACE_OF)
def test_what_is_derived_is_a_point_of_the_narrowed_space(name):
    space, of = SPACE_OF[name], supernet(name)
    for edge_weights in (False, True):
        layout = of.layout(edge_weights=edge_weights)
        for seed in range(20):
            arch = of.derive(layout, np.random.default_rng(seed).random(layout.size))
            space.validate(arch)
            operations = of.operations(arch)
            assert of.derive(layout, layout.one_hot(operations)) == arch
            for kind, prefix in of.cells.items():
                assert any(choice.startswith(prefix) for choice in arch), kind
                assert any(choice.startswith(prefix) for choice in operations), kind


def test_narrowing_narrows_the_candidates():
    assert dict(supernet("chain").layout().choices) == {
        "kernel_1": (1, 3, 5), "kernel_2": (3, 5), "pooling": ("max", "average")
    }  # fmt: skip
    of_edge = dict(supernet("nasbench201").layout().choices)
    assert of_edge["edge_1_3"] == ("none", "avg_pool_3x3")
    assert of_edge["edge_0_1"] == nasbench201.OPERATIONS
    of_darts = dict(supernet("darts").layout().choices)
    assert of_darts["normal_4_2"] == ("none", "skip_connect", "sep_conv_3x3")
    assert of_darts["reduce_4_2"] == darts.PRIMITIVES
    assert supernet("nasbench201").layout(edge_weights=True).node_inputs[-1] == (
        "edge_0_3",
        "edge_1_3",
        "edge_2_3",
    )
    assert dict(supernet("nasbench201").sizes) == {"channels": 4, "cells": 1}
    assert dict(supernet("darts").sizes) == {"channels": 16, "cells": 8}
    assert SPACES["natssize"].supernet is None
    again = pickle.loads(pickle.dumps(SPACE_OF["darts"]))
    assert again.supernet(again).layout() == supernet("darts").layout()


@pytest.mark.parametrize("name", ["darts", "nasbench201"])
def test_skips_can_be_held_down(name):
    of = supernet(name)
    layout, prefix = of.layout(), next(iter(of.cells.values()))
    weights = np.random.default_rng(0).random(layout.size) / 10
    weights[layout.positions("skip_connect")] += 1

    def skips(layout, weights, most):
        arch = of.derive(layout, weights, most_skips=most)
        return sum(value == of.skip for choice, value in arch.items() if choice.startswith(prefix))

    every = {"darts": 8, "nasbench201": 5}[name]
    assert [skips(layout, weights, most) for most in (None, 2, 1, 0)] == [every, 2, 1, 0]
    if name == "nasbench201":  # the strongest one stays
        skipping = [layout.open(c) for c in layout.names if of.skip in layout.open(c).values]
        places = {choice.first + choice.values.index(of.skip): choice.name for choice in skipping}
        arch = of.derive(layout, weights, most_skips=1)
        assert arch[places[max(layout.positions(of.skip), key=weights.__getitem__)]] == of.skip
    only = layout.strongest(weights, 1)  # nothing but skips: there they stay
    assert skips(only, only.transferred(weights, layout), 0) == every


# ----------------------------------------------------------------------------------- what is not searched


def test_what_a_supernet_does_not_decide_is_as_published_or_near_it():
    found = derived(darts.SPACE)
    assert {name: found[name] for name in darts.RECIPE} == darts.RECIPE
    assert (found["steps"], found["normal_concat"]) == (4, "all")
    near = derived(darts.SPACE, fix=["cells=6"], narrow=["channels=4,16", "learning_rate=0.001..0.02"])
    assert (near["cells"], near["channels"], near["learning_rate"]) == (6, 16, 0.02)
    assert near["weight_decay"] == 3e-4
    five = derived(darts.SPACE, fix=["steps=5"])
    assert five["steps"] == 5
    assert "normal_inputs_5" in five
    usual = derived(chain.SPACE)
    assert (usual["depth"], usual["width_4"], usual["pooling"]) == (4, 32, "max")


def derived(space: SearchSpace, **narrowed: Any) -> Any:
    within = space.restrict(**narrowed)
    assert within.supernet is not None
    of = within.supernet(within)
    arch = of.derive(of.layout(), np.ones(of.layout().size))
    within.validate(arch)
    return arch


@pytest.mark.parametrize(
    ("space", "fix", "narrow", "says"),
    [
        (
            darts.SPACE, [], ["optimiser=nesterov,adamw"],
            "darts: nothing here decides optimiser: --fix optimiser=… to one of nesterov, adamw",
        ),
        (darts.SPACE, ["normal_inputs_2=0-1"], [], "darts: a supernet decides normal_inputs_2, which cannot"),
        (darts.SPACE, ["normal_a_2=skip_connect"], [], "darts: a supernet has the same operations on all edges"),
        (darts.SPACE, ["steps=5", "reduce_concat=4-5-6"], [], "darts: a supernet's cells give out all their nodes"),
        (nasbench201.SPACE, [f"{name}=none" for name in nasbench201.CHOICES], [],
         "nasbench201: a supernet has nothing to choose: edge_0_1, edge_0_2"),
        (chain.SPACE, ["kernel=3"], [], "chain: a supernet has nothing to choose: kernel_1, kernel_2, kernel_3"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_one_line(space, fix, narrow, says):
    within = space.restrict(fix, narrow)
    with pytest.raises(InputError) as caught:
        within.supernet(within)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_a_chains_candidates_see_all_channels():
    with pytest.raises(
        InputError, match="chain: partial_channels=4: its candidates change the number of channels"
    ):
        supernet("chain").layout(partial_channels=4, edge_weights=True)


def test_choices_that_cannot_be_open_are_refused():
    space = SearchSpace(
        name="own",
        choices={
            "kind": Categorical(("a", "b")), "size": Categorical((1, 3)), "rate": LogUniform(0.1, 1.0),
            "batch": Categorical((1, 2), changes_program=False), "more": Categorical((1, 2)),
        },
        conditions={"size": When("kind", values=("a",))},
    )  # fmt: skip

    def build(arch, num_classes):
        return arch

    for name, says in {
        "kind": "other choices depend on it", "rate": "it is in 0.1..1.0", "batch": "it is one of 1, 2"
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=f"own: {name} cannot be left open: {says}"):
            supernet_of(space, [[name]], build, defaults={"rate": 0.5, "kind": "a", "batch": 1, "more": 1})
    with pytest.raises(InputError, match="own: nothing here decides kind: --fix kind=… to one of a, b"):
        supernet_of(space, [["size"]], build)
    of = supernet_of(space, [["size"]], build, defaults={"rate": 7, "kind": "a", "batch": 5, "more": 2})
    assert of.derive(of.layout(), [0.2, 0.8]) == {"kind": "a", "size": 3, "rate": 1.0, "batch": 2, "more": 2}
    assert of.build({"size": 1}, 10)["size"] == 1
