"""Residual networks against torchvision's, and against PyTorch's functions where it has none."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.nn.graph import Graph
from nas.objectives.train import build
from nas.training.network import computing
from search_spaces.resnet import NAMED, SPACE

Variables = dict[str, dict[str, dict[str, np.ndarray]]]

SMALL = NAMED["resnet20"].arch.set(blocks_1=2, blocks_2=2, blocks_3=1, width=8)
BOTTLENECK = {"block": "bottleneck", "stride_at": "1x1"}
FORMS = {
    "option A": SMALL,
    "option B": SMALL.set(shortcut="B"),
    "plain": SMALL.without("shortcut").set(connections="plain"),
    "bottleneck A": SMALL.set(**BOTTLENECK),
    "preactivation A": SMALL.set(preactivation=True),
    "preactivation B": SMALL.set(preactivation=True, shortcut="B", **BOTTLENECK),
    "preactivation plain": SMALL.without("shortcut").set(connections="plain", preactivation=True),
    "four stages": SMALL.set(stem="imagenet", stages=4, blocks_4=1, preactivation=True, shortcut="B"),
}


def drawn(network: Graph, image_shape: tuple[int, int, int]) -> Variables:
    """Variables in which everything counts: scales, biases and running statistics are not 1, 0, 0 and 1."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(lambda: network.lazy_init(jax.random.key(0), image))
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        if name == "kernel":
            return values * np.sqrt(2 / np.prod(leaf.shape[:-1]), dtype=np.float32)
        return 0.1 * values if name in ("bias", "mean") else 0.75 + 0.25 * np.abs(values)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def logits(network: Graph, variables: Variables, images: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, images))


@pytest.mark.parametrize(
    ("name", "stride_at"), [("resnet18", None), ("resnet50", "3x3"), ("resnet50", "1x1")]
)
def test_logits_are_torchvisions(name, stride_at):
    """The same weights and running statistics in both; the paper's stride by moving torchvision's."""
    models = pytest.importorskip("torchvision").models
    torch = pytest.importorskip("torch")
    arch = NAMED[name].arch
    network = build(SPACE, arch if stride_at is None else arch.set(stride_at=stride_at), 1000)
    variables = drawn(network, (64, 64, 3))
    model = getattr(models, name)().eval()
    if stride_at == "1x1":
        for block in (model.layer2[0], model.layer3[0], model.layer4[0]):
            block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    params, statistics = variables["params"], variables["batch_stats"]
    state = {}

    def convolution(to: str, node: str) -> None:
        state[f"{to}.weight"] = params[node]["kernel"].transpose(3, 2, 0, 1)

    def normalisation(to: str, node: str) -> None:
        state[f"{to}.weight"], state[f"{to}.bias"] = params[node]["scale"], params[node]["bias"]
        state[f"{to}.running_mean"] = statistics[node]["mean"]
        state[f"{to}.running_var"] = statistics[node]["var"]

    convolution("conv1", "conv_0")
    normalisation("bn1", "norm_0")
    for stage in range(1, 5):
        for block in range(1, arch[f"blocks_{stage}"] + 1):
            to, node = f"layer{stage}.{block - 1}", f"{stage}_{block}"
            for i in (1, 2, 3) if name == "resnet50" else (1, 2):
                convolution(f"{to}.conv{i}", f"conv_{node}_{i}")
                normalisation(f"{to}.bn{i}", f"norm_{node}_{i}")
            if f"project_{node}" in params:
                convolution(f"{to}.downsample.0", f"project_{node}")
                normalisation(f"{to}.downsample.1", f"shortcut_{node}")
    state["fc.weight"], state["fc.bias"] = params["logits"]["kernel"].T, params["logits"]["bias"]
    with torch.no_grad():
        expected = {k for k in model.state_dict() if not k.endswith("num_batches_tracked")}
        assert expected == state.keys()
        model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=False)
        images = np.random.default_rng(1).standard_normal((2, 64, 64, 3)).astype(np.float32)
        reference = model(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    assert reference.std() > 0.1
    found = logits(network, variables, images)
    np.testing.assert_allclose(found, reference, atol=1e-4 * max(1, np.abs(reference).max()))


def by_functions(arch: Any, variables: Variables, images: np.ndarray) -> np.ndarray:
    """The papers' networks written out in PyTorch's functions."""
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F

    params, statistics = variables["params"], variables["batch_stats"]
    used = set()

    def tensor(node: str, leaf: str) -> Any:
        used.add(node)
        found = params[node].get(leaf)
        return torch.from_numpy(np.asarray(statistics[node][leaf] if found is None else found))

    def conv(node: str, x: Any, stride: int, padding: int) -> Any:
        return F.conv2d(x, tensor(node, "kernel").permute(3, 2, 0, 1), None, stride, padding)

    def norm(node: str, x: Any) -> Any:
        return F.batch_norm(x, *(tensor(node, leaf) for leaf in ("mean", "var", "scale", "bias")))

    def block(x: Any, name: str, stride: int, features: int, first: bool) -> Any:
        if arch["block"] == "basic":
            layers, out = ((stride, 1), (1, 1)), features
        else:
            layers, out = ((stride, 0), (1, 1), (1, 0)), 4 * features
        pre = arch["preactivation"]
        y = x if not pre or first else F.relu(norm(f"norm_{name}_1", x))
        shortcut = x
        if stride > 1 or x.shape[1] != out:
            source = y if pre else x
            if arch.get("shortcut") == "A":
                shortcut = F.pad(source[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, out - x.shape[1]))
            elif arch.get("shortcut") == "B":
                shortcut = conv(f"project_{name}", source, stride, 0)
                shortcut = shortcut if pre else norm(f"shortcut_{name}", shortcut)
        for i, (step, padding) in enumerate(layers, 1):
            if pre and i > 1:
                y = F.relu(norm(f"norm_{name}_{i}", y))
            y = conv(f"conv_{name}_{i}", y, step, padding)
            if not pre:
                y = norm(f"norm_{name}_{i}", y)
                y = F.relu(y) if i < len(layers) else y
        if arch["connections"] == "residual":
            y = y + shortcut
        return y if pre else F.relu(y)

    with torch.no_grad():
        large = arch["stem"] == "imagenet"
        x = torch.from_numpy(images.transpose(0, 3, 1, 2))
        x = F.relu(norm("norm_0", conv("conv_0", x, 2 if large else 1, 3 if large else 1)))
        x = F.max_pool2d(x, 3, 2, 1) if large else x
        for stage in range(arch["stages"]):
            for k in range(arch[f"blocks_{stage + 1}"]):
                stride = 2 if stage > 0 and k == 0 else 1
                x = block(x, f"{stage + 1}_{k + 1}", stride, arch["width"] * 2**stage, stage == k == 0)
        if arch["preactivation"]:
            x = F.relu(norm("norm_last", x))
        out = x.mean((2, 3)) @ tensor("logits", "kernel") + tensor("logits", "bias")
        assert used == params.keys()
        return out.numpy()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.some(4)
def test_logits_are_those_of_the_papers_formulas(form):
    """On images with odd sides too, whose last rows and columns a stride may drop."""
    arch = FORMS[form]
    SPACE.validate(arch)
    network = build(SPACE, arch, 7)
    variables = drawn(network, (13, 18, 3))
    images = np.random.default_rng(2).standard_normal((2, 13, 18, 3)).astype(np.float32)
    reference = by_functions(arch, variables, images)
    assert reference.std() > 0.1
    np.testing.assert_allclose(logits(network, variables, images), reference, atol=1e-4)


@pytest.mark.slow
def test_every_form_runs_on_images_of_any_size_in_either_type():
    """Down to one pixel; bfloat16 stays between layers."""
    for i in range(12):
        space = SPACE.fix("blocks", 1)
        network = build(space, space.sample((3, i)), 7)
        size = [(1, 1, 1), (2, 3, 1), (8, 8, 1), (33, 17, 3)][i % 4]
        image = jax.ShapeDtypeStruct((2, *size), jnp.bfloat16)
        variables = jax.eval_shape(lambda net=network, x=image: net.lazy_init(jax.random.key(0), x))
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
        for train in (False, True):
            out, kept = jax.eval_shape(
                lambda v, x, net=network, train=train: net.apply(
                    computing(v, (x,)),
                    x,
                    train=train,
                    capture_intermediates=True,
                    mutable=["intermediates", "batch_stats"],
                ),
                variables,
                image,
            )
            assert out.shape == (2, 7)
            assert {leaf.dtype for leaf in jax.tree.leaves(kept["intermediates"])} == {
                jnp.dtype(jnp.bfloat16)
            }


def test_no_node_is_computed_for_nothing():
    for form, arch in FORMS.items():
        nodes = build(SPACE, arch, 7).nodes
        read = {i for node in nodes for i in node.inputs}
        assert read == set(range(len(nodes))), form


def test_what_is_searched_is_small():
    space = SPACE.searched()
    for i in range(20):
        arch = space.sample((1, i))
        assert arch["stem"] == "small"
        assert arch["width"] <= 16
        assert max(value for name, value in arch.items() if name.startswith("blocks_")) <= 3
