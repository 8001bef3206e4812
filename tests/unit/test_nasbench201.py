"""The NAS-Bench spaces: notation, neighbours, and their networks against PyTorch's functions."""

from __future__ import annotations

import collections
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.errors import InputError
from nas.objectives.train import build, size_of
from nas.space import parse_architecture
from search_spaces import nasbench201, natssize
from search_spaces.nasbench201 import OPERATIONS, Skeleton, nasbench201_space

TEXT = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"
CELLS = {
    "every operation": TEXT,
    "a node that nobody reads": "|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|nor_conv_3x3~0|none~1|none~2|",
    "a node of nothing, convolved": "|none~0|+|skip_connect~0|nor_conv_3x3~1|+|none~0|none~1|nor_conv_1x1~2|",
    "an output of nothing": "|nor_conv_3x3~0|+|avg_pool_3x3~0|none~1|+|none~0|none~1|none~2|",
    "its input": "|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|",
    "sums of three": "|avg_pool_3x3~0|+|skip_connect~0|avg_pool_3x3~1|+|skip_connect~0|skip_connect~1|skip_connect~2|",
}


# ---------------------------------------------------------------------------------------------------- notation


def test_the_published_text_is_the_notation():
    space, arch = parse_architecture(f"nasbench201:{TEXT}", {"nasbench201": nasbench201.SPACE})
    assert dict(arch) == {
        "edge_0_1": "nor_conv_3x3",
        "edge_0_2": "none",
        "edge_1_2": "nor_conv_1x1",
        "edge_0_3": "skip_connect",
        "edge_1_3": "avg_pool_3x3",
        "edge_2_3": "nor_conv_3x3",
    }
    assert space.to_string(arch) == TEXT


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            TEXT.replace("nor_conv_1x1", "nor_conv_7x7"),
            "edge_1_2=nor_conv_7x7 is not one of none, skip_connect",
        ),
        (TEXT.replace("~2", "~1"), "is not of the form |OP~0|+|OP~0|OP~1|+|OP~0|OP~1|OP~2|"),
        (TEXT[:-1], "is not of the form"),
        (TEXT + TEXT, "is not of the form"),
    ],
)
def test_other_texts_are_one_line(text, says):
    with pytest.raises(InputError) as caught:
        nasbench201.SPACE.from_string(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_neighbours_are_24_and_the_space_has_15625():
    arch = nasbench201.SPACE.from_string(TEXT)
    neighbours = nasbench201.SPACE.neighbours(arch)
    assert len(neighbours) == 24
    assert all(sum(arch[name] != other[name] for name in arch) == 1 for other in neighbours)
    assert nasbench201.SPACE.count() == 5**6
    assert natssize.SPACE.count() == 32_768


def test_indices_and_architectures_are_inverse():
    for space in (nasbench201, natssize):
        indices = (0, 1, 4711, space.SPACE.count() - 1)
        assert [space.index_of(space.architecture_at(index)) for index in indices] == list(indices)
        for index in (-1, space.SPACE.count()):
            with pytest.raises(InputError, match=rf"^{space.SPACE.name}: index {index} is not one of 0\.\."):
                space.architecture_at(index)
    assert natssize.to_text(natssize.architecture_at(12)) == "8:8:8:16:40"
    with pytest.raises(InputError, match=r"natssize: '8:8:8': is not of the form C:C:C:C:C"):
        natssize.SPACE.from_string("8:8:8")


def test_canonical_forms_of_isomorphic_cells():
    """Two ways to one function share a form; operations in another order, or others, do not."""

    def form(text: str) -> str:
        return nasbench201.canonical_form(nasbench201.SPACE.from_string(text))

    by_node_1 = form("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|nor_conv_1x1~1|none~2|")
    by_node_2 = form("|none~0|+|nor_conv_3x3~0|none~1|+|none~0|none~1|nor_conv_1x1~2|")
    other = form("|nor_conv_1x1~0|+|none~0|none~1|+|none~0|nor_conv_3x3~1|none~2|")
    assert by_node_1 == "#+#+((0)@nor_conv_3x3)@nor_conv_1x1"
    assert form("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|skip_connect~1|none~2|") == "#+#+(0)@nor_conv_3x3"
    assert by_node_2 != by_node_1 != other  # node 2 keeps the zero beside its only term
    assert form("|none~0|+|none~0|nor_conv_3x3~1|+|none~0|skip_connect~1|none~2|") == "#+#+#"


def test_the_space_can_be_pickled_and_made_smaller():
    small = nasbench201_space(channels=4, cells=1)
    again = pickle.loads(pickle.dumps(small))
    arch = small.sample(0)
    assert again == small
    assert again != nasbench201.SPACE
    assert size_of(build(again, arch, 10), (32, 32, 3)) == Skeleton(4, 1).size(arch)
    with pytest.raises(InputError, match="nasbench201: cells=0 is below 1"):
        nasbench201_space(cells=0)


# ---------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("image_shape", [(32, 32, 3), (13, 17, 2)])
@pytest.mark.parametrize("what", CELLS)
@pytest.mark.some(4)
def test_counted_sizes_are_those_of_the_networks(what, image_shape):
    space = nasbench201_space(channels=4, cells=2)
    arch = space.from_string(CELLS[what])
    assert size_of(Skeleton(4, 2)(arch, 7), image_shape) == Skeleton(4, 2).size(arch, image_shape, 7)


@pytest.mark.parametrize("index", [0, 1234, 23_456, 32_767])
@pytest.mark.some(2)
def test_counted_sizes_of_the_size_space(index):
    arch = natssize.architecture_at(index)
    for image_shape in ((32, 32, 3), (13, 17, 2)):
        assert size_of(natssize.build(arch, 7), image_shape) == natssize.size(arch, image_shape, 7)


def test_every_node_of_a_network_is_read():
    """The parameters of what has no effect are there all the same."""
    for text in CELLS.values():
        graph = Skeleton(4, 1)(nasbench201.SPACE.from_string(text), 10)
        readers = collections.Counter(i for node in graph.nodes for i in node.inputs)
        assert all(readers[i] for i in range(len(graph.nodes)))
        assert not readers[len(graph.nodes)]


def variables_of(network, image, seed):
    """Random variables, running statistics too."""
    shapes = jax.eval_shape(lambda: network.lazy_init(jax.random.key(0), image))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if name == "kernel" else 0.3
        return (spread * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, dict(shapes))


class Reference:
    """Dong and Yang's network in PyTorch's functions, edge by edge as the authors wrote it."""

    def __init__(self, torch, variables, *, train: bool) -> None:
        self.torch, self.f, self.train = torch, torch.nn.functional, train
        self.variables = variables

    def tensor(self, node: str, *path: str, collection: str = "params"):
        tree = self.variables[collection][node]
        for name in path:
            tree = tree[name]
        return self.torch.tensor(np.asarray(tree))

    def conv(self, x, node, *path, stride=1):
        kernel = self.tensor(node, *path, "kernel").permute(3, 2, 0, 1)
        return self.f.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(self, x, node, *path):
        scale, bias = self.tensor(node, *path, "scale"), self.tensor(node, *path, "bias")
        mean = self.tensor(node, *path, "mean", collection="batch_stats")
        var = self.tensor(node, *path, "var", collection="batch_stats")
        return self.f.batch_norm(x, mean, var, scale, bias, training=self.train, eps=1e-5)

    def relu_conv_norm(self, x, node, stride=1):
        return self.norm(self.conv(self.f.relu(x), node, "conv", stride=stride), node, "norm")

    def cell(self, x, name, operations):
        nodes = [x]
        edges = iter(zip(nasbench201.EDGES, operations, strict=True))
        for to in (1, 2, 3):
            total = self.torch.zeros(())
            for source in range(to):
                (_, _), operation = next(edges)
                value = nodes[source]
                if operation == "none":
                    value = value * 0.0
                elif operation == "avg_pool_3x3":
                    value = self.f.avg_pool2d(value, 3, 1, 1, count_include_pad=False)
                elif (
                    operation == "skip_connect"
                    and source == 0
                    and f"{name}_project" in self.variables["params"]
                ):
                    value = self.norm(self.conv(value, f"{name}_project", "conv"), f"{name}_project", "norm")
                elif operation != "skip_connect":
                    value = self.relu_conv_norm(value, f"{name}_conv_{source}_{to}")
                total = total + value
            nodes.append(total)
        return nodes[-1]

    def reduction(self, x, name):
        y = self.relu_conv_norm(self.relu_conv_norm(x, f"{name}_conv_1", stride=2), f"{name}_conv_2")
        return y + self.conv(self.f.avg_pool2d(x, 2, 2), f"{name}_project")

    def stem(self, images):
        x = self.torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
        return self.norm(self.conv(x, "conv_0"), "norm_0")

    def head(self, x):
        x = self.f.relu(self.norm(x, "norm_last")).mean((2, 3))
        return (x @ self.tensor("logits", "kernel") + self.tensor("logits", "bias")).numpy()


def outputs(network: Any, variables, images, *, train: bool):
    stateful = [name for name in variables if name != "params"]
    if train:
        return network.apply(variables, images, train=True, mutable=stateful)[0]
    return network.apply(variables, images, train=False)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("what", CELLS)
def test_the_network_is_the_authors(what, train):
    torch = pytest.importorskip("torch")
    arch = nasbench201.SPACE.from_string(CELLS[what])
    network = Skeleton(4, 1)(arch, 10)
    images = np.random.default_rng(1).standard_normal((3, 8, 8, 3)).astype(np.float32)
    variables = variables_of(network, jax.ShapeDtypeStruct(images.shape, jnp.float32), 2)
    reference = Reference(torch, variables, train=train)
    operations = nasbench201.operations_of(arch)
    x = reference.stem(images)
    for stage in range(3):
        x = reference.reduction(x, f"reduce_{stage}") if stage else x
        x = reference.cell(x, f"cell_{stage + 1}_1", operations)
    np.testing.assert_allclose(
        outputs(network, variables, images, train=train), reference.head(x), rtol=1e-4, atol=1e-4
    )


def test_the_size_network_is_the_authors():
    torch = pytest.importorskip("torch")
    arch = natssize.SPACE.from_string("8:16:24:16:16")
    network = natssize.build(arch, 10)
    images = np.random.default_rng(3).standard_normal((2, 8, 8, 3)).astype(np.float32)
    variables = variables_of(network, jax.ShapeDtypeStruct(images.shape, jnp.float32), 4)
    reference = Reference(torch, variables, train=False)
    x = reference.stem(images)
    for layer in range(1, 6):
        if layer % 2:
            x = reference.cell(x, f"cell_{layer}", natssize.OPERATIONS)
        else:
            x = reference.reduction(x, f"reduce_{layer}")
    np.testing.assert_allclose(
        outputs(network, variables, images, train=False), reference.head(x), rtol=1e-4, atol=1e-4
    )


def test_named_cells_are_points_of_the_space():
    for named in nasbench201.NAMED.values():
        nasbench201.SPACE.validate(named.arch)
        assert Skeleton().size(named.arch, named.image_shape, named.num_classes).params == named.params
    assert len(OPERATIONS) == 5


def test_features_are_the_ways_through_the_cell():
    """White et al. 2021, section 3.1: 5 + 25 + 125 paths; here 3, 0-1 then 1-3, 0-2 then 2-3, and the long one."""
    space = nasbench201.SPACE
    assert space.features is not None
    arch = "|nor_conv_1x1~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
    encoded = space.features(space.from_string(arch))
    number = {operation: k for k, operation in enumerate(OPERATIONS)}
    one, none, pool, three, skip = (
        number[name] for name in ("nor_conv_1x1", "none", "avg_pool_3x3", "nor_conv_3x3", "skip_connect")
    )
    expected = {skip, 5 + 5 * one + three, 5 + 5 * none + one, 30 + 25 * one + 5 * pool + one}
    assert set(np.flatnonzero(encoded).tolist()) == expected
    assert len(encoded) == 155
    assert nasbench201_space() == space == pickle.loads(pickle.dumps(space))
