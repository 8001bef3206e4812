"""A network taken apart: against `outline`, sizes by hand, and what XLA and this device say."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import FlaxError
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from nas import cpu
from nas.errors import InputError
from nas.nn.graph import Builder
from nas.nn.layers import CellAverage, Concat, Dense, NormAct, conv
from nas.report import network_drawing, network_layout
from nas.training.network import outline
from nas.training.profile import Layer, dissect, measure, repeats
from nas.training.programs import Shape, lower_step
from search_spaces import SPACES
from search_spaces.zoo import ZOO

QUICK = (
    "resnet20",
    "plain20",
    "densenet40",
    "densenetbc100",
    "googlenet_aux",
    "alexnet",
    "lenet5",
    "mlp",
    "cat_neuron",
)


def network_of(name):
    named = ZOO[name]
    return SPACES[named.space].build(named.arch, named.num_classes), named.image_shape  # type: ignore[misc]


class Unit(nn.Module):
    """A module with submodules, a parameter and a product of its own."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return x @ self.param("mix", nn.initializers.ones, (8, 4))


class Plain(nn.Module):
    """An ordinary Flax network, no graph."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = Unit(name="unit")(x, train=train)
        return nn.Dense(10, name="logits")(x.mean((1, 2)))


# ------------------------------------------------------------------------------------------------- counting


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.some(4)
def test_one_trace_gives_what_outline_gives(name):
    network, shape = network_of(name)
    found, expected = dissect(network, shape), outline(network, shape)
    assert found.outline[1:] == expected[1:]
    assert jax.tree.map(lambda a: a.shape, found.outline.variables) == jax.tree.map(
        lambda a: a.shape, expected.variables
    )
    assert sum(layer.params for layer in found.layers) == found.outline.params
    counted = sum(layer.macs_per_image for layer in found.layers if not layer.training_only)
    assert counted == found.outline.macs_per_image


def test_layers_by_hand():
    b = Builder()
    x = b.add("conv", conv(6, 5, 2), 0)
    x = b.add("norm", NormAct("batch", "relu"), x)
    b.add("head", Dense(3), b.add("head_average", CellAverage(1), x))
    b.add("logits", Dense(10), b.add("average", CellAverage(2), x))
    found = dissect(b.graph({"head": 0.3}), (8, 12, 3))
    assert found.is_graph
    assert [(layer.name, layer.kind, layer.inputs, layer.training_only) for layer in found.layers] == [
        ("conv", "Conv", (0,), False),
        ("norm", "NormAct", (1,), False),
        ("head_average", "CellAverage", (2,), True),
        ("head", "Dense", (3,), True),
        ("average", "CellAverage", (2,), False),
        ("logits", "Dense", (5,), False),
    ]
    assert [layer.output_shape for layer in found.layers] == [(4, 6, 6), (4, 6, 6), (6,), (3,), (24,), (10,)]
    assert [layer.params for layer in found.layers] == [25 * 3 * 6, 12, 0, 21, 0, 250]
    macs = [24 * 25 * 3 * 6, 0, 0, 18, 0, 240]
    assert [layer.macs_per_image for layer in found.layers] == macs
    assert (
        found.outline.macs_per_image == macs[0] + 240
    )  # a classifier for training alone is no part of a pass
    assert found.layers[0].settings == "5x5 6 stride 2"
    assert found.layers[1].settings == "batch relu"


def test_an_ordinary_module_is_listed_by_its_submodules():
    found = dissect(Plain(), (8, 8, 3))
    assert not found.is_graph
    rows = [(layer.name, layer.kind, layer.output_shape, layer.params) for layer in found.layers]
    assert rows == [
        ("unit/Conv_0", "Conv", (8, 8, 8), 9 * 3 * 8 + 8),
        ("unit/BatchNorm_0", "BatchNorm", (8, 8, 8), 16),
        ("logits", "Dense", (10,), 50),
    ]
    assert [layer.macs_per_image for layer in found.layers] == [64 * 9 * 3 * 8, 0, 40]
    assert found.outline.params == sum(row[3] for row in rows) + 8 * 4
    assert found.outline.macs_per_image == 64 * 9 * 3 * 8 + 40 + 64 * 8 * 4


def test_nothing_is_allocated_or_compiled(monkeypatch):
    """A dense layer of 16 billion weights (the lecture's 200x200 image and 400,000 units)."""
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    b = Builder()
    b.add("units", Dense(400_000, bias=False), b.add("flat", CellAverage(200), 0))
    found = dissect(b.graph(), (200, 200, 1))
    assert found.outline.params == found.outline.macs_per_image == 16_000_000_000
    assert compiled == []


def test_an_image_that_a_network_cannot_take_is_one_line():
    class Shrinks(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Conv(4, (5, 5), padding="VALID")(x).reshape(x.shape[0], -1) @ jnp.ones((4, 10))

    with pytest.raises(InputError, match=r"^input 8x8x1: .+") as caught:
        dissect(Shrinks(), (8, 8, 1))
    assert "\n" not in str(caught.value)


RAISED = {
    AssertionError(): "AssertionError",
    KeyError("width"): "KeyError: 'width'",
    AttributeError("no width\nat all"): "AttributeError: no width",
    NotImplementedError("not yet"): "NotImplementedError: not yet",
    FlaxError("of Flax"): "FlaxError: of Flax",
    ValueError(""): "ValueError",
}


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_a_network_raises_is_one_line(error):
    class Raises(nn.Module):
        @nn.compact
        def __call__(self, x):
            raise error

    with pytest.raises(InputError) as caught:
        dissect(Raises(), (8, 8, 1))
    said = str(caught.value)
    assert said.startswith(f"input 8x8x1: the network does not take it: {RAISED[error]}")
    assert "\n" not in said


class Cell(nn.Module):
    """A layer of a stack by `nn.scan`."""

    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(3)(x)), None


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x):
        stack = nn.scan(Cell, variable_axes={"params": 0}, split_rngs={"params": True}, length=5)
        return nn.Dense(10, name="logits")(stack(name="stack")(x.mean((1, 2)), None)[0])


class Nothing(nn.Module):
    @nn.compact
    def __call__(self, x):
        return None


class Watched(nn.Module):
    @nn.compact
    def __call__(self, x):
        Nothing(name="watch")(x)
        return nn.Dense(10, name="logits")(x.mean((1, 2)))


def rows_of(network):
    found = dissect(network, (8, 8, 3))
    assert sum(layer.macs_per_image for layer in found.layers) == found.outline.macs_per_image
    return [(layer.name, layer.output_shape, layer.params, layer.macs_per_image) for layer in found.layers]


def test_a_module_without_a_known_output_is_listed():
    assert rows_of(Stacked()) == [
        ("stack/Dense_0", (), 5 * (9 + 3), 5 * 9),
        ("logits", (10,), 40, 30),
    ]
    assert rows_of(Watched()) == [("watch", (), 0, 0), ("logits", (10,), 40, 30)]


CONV, LOGITS = ((8, 8, 4), 9 * 3 * 4 + 4, 64 * 9 * 3 * 4), ((10,), 50, 40)


class Helped(nn.Module):
    """It calls a submodule in a method of its own."""

    def setup(self):
        self.conv, self.logits = nn.Conv(4, (3, 3)), nn.Dense(10)

    def encode(self, x):
        return self.conv(x)

    def __call__(self, x):
        return self.logits(self.encode(x).mean((1, 2)))


class Around(nn.Module):
    """It calls a submodule, or that submodule's other method."""

    whole: bool

    def setup(self):
        self.net, self.logits = Helped(), nn.Dense(10)

    def __call__(self, x):
        return self.net(x) if self.whole else self.logits(self.net.encode(x).mean((1, 2)))


class Lifted(nn.Module):
    """Its convolution is one that a transform of Flax has made."""

    lift: Any

    @nn.compact
    def __call__(self, x):
        x = self.lift(nn.Conv)(4, (3, 3), name="conv")(x)
        return nn.Dense(10, name="logits")(x.mean((1, 2)))


class Twice(nn.Module):
    """JAX traces a jitted layer once where the next is like it, which is no module then."""

    @nn.compact
    def __call__(self, x):
        conv = nn.jit(nn.Conv)
        for name in ("a", "b", "c"):
            x = conv(3, (3, 3), name=name)(x)
        return x


class Checkpointed(nn.Module):
    """The whole network is computed again when gradients are."""

    @nn.remat
    @nn.compact
    def __call__(self, x):
        with jax.named_scope("part"):
            x = nn.Conv(4, (3, 3), name="conv.1")(x)
        return nn.Dense(10, name="logits")(x.mean((1, 2)))


def test_multiply_adds_of_a_helper_method_are_its_modules():
    assert rows_of(Helped()) == [("conv", *CONV), ("logits", *LOGITS)]
    assert rows_of(Around(True)) == [("net/conv", *CONV), ("net/logits", *LOGITS)]
    assert rows_of(Around(False)) == [("net/conv", *CONV), ("logits", *LOGITS)]


def test_multiply_adds_of_a_transformed_module_are_its_own():
    lifted = [("conv", *CONV), ("logits", *LOGITS)]
    assert rows_of(Lifted(nn.remat)) == lifted
    assert rows_of(Lifted(nn.jit)) == lifted
    assert rows_of(Checkpointed()) == [("conv.1", *CONV), ("logits", *LOGITS)]

    def mapped(layer):
        return nn.vmap(layer, variable_axes={"params": None}, split_rngs={"params": False})

    assert rows_of(Lifted(mapped)) == [("conv", (), *CONV[1:]), ("logits", *LOGITS)]


def test_multiply_adds_of_what_was_not_traced_are_no_other_modules():
    found = dissect(Twice(), (8, 8, 3))
    each = 64 * 9 * 3 * 3
    assert [(layer.name, layer.macs_per_image) for layer in found.layers] == [("a", each)]
    assert found.outline.macs_per_image == 3 * each


# -------------------------------------------------------------------------------------------------- folding


def chain(*words, shape=(8, 8, 4)):
    return [Layer(f"{k}", word, "", (k,), shape, 1, 2) for k, word in enumerate(words)]


def folded(layers):
    return [(part.start, part.period, part.times) for part in repeats(layers)]


def test_repeats_are_found_whole():
    assert folded(chain(*"xababababy")) == [(0, 1, 1), (1, 2, 4), (9, 1, 1)]
    assert folded(chain(*"abc")) == [(0, 3, 1)]
    assert folded(chain(*"aaaa")) == [(0, 1, 4)]
    assert folded([]) == []
    ragged = chain(*"ab") + chain(*"ab", shape=(4, 4, 4))
    assert folded(ragged) == [(0, 4, 1)]  # at another resolution it is another part


def test_parts_end_where_only_one_value_goes_on():
    """Residual blocks: not rotated to begin in the middle of one, though that is as long."""
    layers = dissect(*network_of("resnet50")).layers
    parts = [part for part in repeats(layers) if part.times > 1]
    assert [part.times for part in parts] == [2, 3, 5, 2]
    for part in parts:
        names = [layer.name for layer in layers[part.start : part.start + part.period]]
        assert names[0].startswith("conv")
        assert names[-1].startswith("norm")
    assert [(p.period, p.times) for p in repeats(dissect(*network_of("resnet20")).layers) if p.times > 1] == [
        (4, 3), (4, 2), (4, 2),
    ]  # fmt: skip


def test_dense_blocks_are_repeats_though_each_layer_reads_more():
    parts = repeats(dissect(*network_of("densenetbc100")).layers)
    assert [(part.period, part.times, part.dense) for part in parts if part.times > 1] == [(1, 16, True)] * 3


def test_folding_keeps_what_is_connected():
    layers = dissect(*network_of("densenetbc100")).layers
    kept, groups = network_layout.fold(layers)
    assert [remark for _, remark in groups] == ["× 16"] * 3
    assert len(kept) == len(layers) - 3 * (16 - network_layout.SHOWN - 2)
    hidden = [layer for layer in kept if "more" in layer.kind]
    assert [layer.kind for layer in hidden] == [f"… {16 - network_layout.SHOWN - 1} more"] * 3
    for number, layer in enumerate(kept, 1):
        assert all(0 <= i < number for i in layer.inputs)
    first = groups[0][0]
    assert kept[first[-1] - 1].inputs == tuple(range(1, first[-1]))  # its last layer reads all before it


# -------------------------------------------------------------------------------------------------- drawing


def boxes_of(axes) -> list[FancyBboxPatch]:
    return [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "densenetbc100", "googlenet_aux", "resnet152"])
def test_no_box_of_a_drawing_lies_on_another(name):
    network, shape = network_of(name)
    figure = network_drawing.draw(dissect(network, shape).layers, shape, name)
    (axes,) = figure.axes
    solid = [p for p in boxes_of(axes) if p.get_facecolor()[:3] != (0.975,) * 3]  # frames are around boxes
    boxes = np.array(
        [[p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height()] for p in solid]
    )
    assert len(boxes) > 8
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert (boxes[:, 0] >= left).all()
    assert (boxes[:, 2] <= right).all()
    assert (boxes[:, 1] >= top).all()
    assert (boxes[:, 3] <= bottom).all()
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (name, a, b)


def test_a_drawing_has_every_layer_and_connection():
    b = Builder()
    x = b.add("stem", conv(4), 0)
    branches = [b.add(f"branch_{k}", conv(4, k), x) for k in (1, 3, 5)]
    y = b.add("join", Concat(), x, *branches)
    b.add("logits", Dense(10), b.add("average", CellAverage(1), y))
    figure = network_drawing.draw(dissect(b.graph(), (8, 8, 3)).layers, (8, 8, 3), "title")
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.texts]
    for text in ("title", "image", "Conv 1x1 4", "Conv 5x5 4", "Concat", "8x8x16", "Dense 10"):
        assert text in texts
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == 1 + 3 + 4 + 1 + 1
    lefts = [patch.get_x() for patch in boxes_of(axes)]
    assert len(set(np.round(lefts, 3))) > 3  # branches stand side by side


@pytest.mark.parametrize("ending", network_drawing.ENDINGS)
def test_a_drawing_is_the_same_bytes_again(tmp_path, ending):
    layers = dissect(*network_of("lenet5")).layers
    for name in ("a", "b"):
        network_drawing.save(
            network_drawing.draw(layers, (32, 32, 1), "lenet5"), tmp_path / f"{name}{ending}"
        )
    first = (tmp_path / f"a{ending}").read_bytes()
    assert len(first) > 2000
    assert first == (tmp_path / f"b{ending}").read_bytes()


def test_a_file_that_cannot_be_drawn_is_named(tmp_path):
    figure = network_drawing.draw(dissect(*network_of("mlp")).layers, (28, 28, 1), "mlp")
    with pytest.raises(InputError, match=r"'.gif' is not one of .png, .svg, .pdf"):
        network_drawing.save(figure, tmp_path / "x.gif")
    with pytest.raises(InputError, match="cannot write"):
        network_drawing.save(figure, tmp_path / "none" / "x.png")


# ------------------------------------------------------------------------------------------------ measuring


@pytest.mark.slow
def test_measured_memory_is_what_xla_plans_and_times_are_real():
    network, image_shape = network_of("lenet5_dense")
    shape = Shape(image_shape, 10, 8, 8, "nesterov")
    found = measure(network, shape, seconds=0.02)
    planned = cpu.compiled(
        lower_step(network, shape)
    ).memory_analysis()  # by the options of all programs here
    assert planned is not None
    params_bytes = 4 * outline(network, image_shape).params
    assert found.train_argument_bytes == planned.argument_size_in_bytes
    pixels = 8 * np.prod(image_shape)
    assert found.train_argument_bytes >= 2 * params_bytes + 4 * (pixels + 8 * 10)  # state and batch
    assert found.train_temp_bytes == planned.temp_size_in_bytes > 0
    assert found.train_alias_bytes >= 2 * params_bytes  # the state is donated
    total = found.train_argument_bytes + found.train_output_bytes + found.train_temp_bytes
    assert found.train_peak_bytes == total - found.train_alias_bytes
    for name, value in found._asdict().items():
        assert not name.endswith("_seconds") or 0 < value < 60
    assert found.train_step_seconds > found.forward_batch_1_seconds
