"""Networks of inverted residuals against torchvision's; parts that it does not have against formulas."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.errors import InputError
from nas.objectives.train import build, size_of
from nas.space import Architecture
from search_spaces.mbconv import NAMED, SPACE
from search_spaces.mbconv.networks import Resize, SqueezeExcite, divisible, layers_of
from tests.unit.test_resnet import drawn, logits

TORCHVISION = {
    "mobilenetv2": "mobilenet_v2",
    "mobilenetv3_large": "mobilenet_v3_large",
    "mobilenetv3_small": "mobilenet_v3_small",
    "mnasnet0_5": "mnasnet0_5",
    "mnasnet1_3": "mnasnet1_3",
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_b5": "efficientnet_b5",
}


def tensors(node: dict[str, Any], statistics: dict[str, Any]) -> list[np.ndarray]:
    """A node's variables in the order and layout in which PyTorch has them."""
    if "reduce" in node:
        return [
            array
            for part in ("reduce", "expand")
            for array in (node[part]["kernel"].T[:, :, None, None], node[part]["bias"])
        ]
    if "scale" in node:
        return [node["scale"], node["bias"], statistics["mean"], statistics["var"]]
    kernel = node["kernel"].transpose(3, 2, 0, 1) if node["kernel"].ndim == 4 else node["kernel"].T
    return [kernel, *([node["bias"]] if "bias" in node else [])]


@pytest.mark.parametrize(
    "name",
    [
        *sorted(TORCHVISION.keys() - {"efficientnet_b5", "mnasnet1_3"}),
        pytest.param("efficientnet_b5", marks=pytest.mark.slow),
        pytest.param("mnasnet1_3", marks=pytest.mark.slow),
    ],
)
def test_logits_are_torchvisions(name):
    """The same weights and running statistics in both, in the order of the layers; an image with odd sides too."""
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision").models
    network = build(SPACE, NAMED[name].arch, 1000)
    variables = drawn(network, (64, 64, 3))
    model = getattr(models, TORCHVISION[name])().eval()
    ours = [
        array
        for node in network.nodes
        if node.name in variables["params"]
        for array in tensors(variables["params"][node.name], variables["batch_stats"].get(node.name, {}))
    ]
    theirs = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert [tuple(v.shape) for v in theirs.values()] == [array.shape for array in ours]
    with torch.no_grad():
        for tensor, array in zip(theirs.values(), ours, strict=True):
            tensor.copy_(torch.from_numpy(np.array(array)))
        for shape in ((2, 64, 64, 3), (1, 53, 70, 3)):
            images = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
            reference = model(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
            assert reference.std() > 0.01
            found = logits(network, variables, images)
            np.testing.assert_allclose(found, reference, atol=1e-4 * max(1, np.abs(reference).max()))


@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
def test_squeeze_and_excitation_by_its_formula(gate):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 5, 8)).astype(np.float32)
    module = SqueezeExcite(3, "silu", gate)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)["params"]
    hidden = x.mean((1, 2)) @ params["reduce"]["kernel"] + params["reduce"]["bias"]
    hidden = hidden / (1 + np.exp(-hidden))
    weights = hidden @ params["expand"]["kernel"] + params["expand"]["bias"]
    weights = 1 / (1 + np.exp(-weights)) if gate == "sigmoid" else np.clip(weights / 6 + 0.5, 0, 1)
    expected = x * weights[:, None, None]
    np.testing.assert_allclose(np.asarray(module.apply({"params": params}, x)), expected, atol=1e-5)


@pytest.mark.slow
def test_a_resolution_resamples_the_images():
    """A network at 16 pixels costs as much on any image, gives what it gives on 16 pixels, and nothing more."""
    arch = SPACE.searched(fix=["resolution=16"]).sample(0)
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    network, native = build(SPACE, arch, 10), build(SPACE, arch.set(resolution=0), 10)
    assert size_of(network, (31, 40, 3)) == size_of(native, (16, 16, 3))
    assert size_of(network, (31, 40, 3)).macs_per_image < size_of(native, (31, 40, 3)).macs_per_image
    variables = drawn(native, (16, 16, 3))
    np.testing.assert_array_equal(logits(network, variables, images), logits(native, variables, images))
    constant = jnp.full((1, 5, 9, 2), 3.0, jnp.bfloat16)
    resized = np.asarray(Resize(4).apply({}, constant))
    assert (resized.shape, resized.dtype) == ((1, 4, 4, 2), jnp.bfloat16)
    np.testing.assert_array_equal(resized.astype(np.float32), 3.0)


def test_widths_are_rounded_to_eights():
    assert [divisible(x) for x in (1, 8, 11.9, 12, 184, 188, 17.7)] == [8, 8, 16, 16, 184, 192, 16]
    assert divisible(10) == 16  # 8 is less than nine tenths of it


def test_layers_beyond_the_fourth_are_as_the_fourth():
    arch = NAMED["ofa_smallest"].arch.set(depth_2=6)
    for i, kernel in enumerate((3, 5, 3, 7), 1):
        arch = arch.set(**{f"kernel_2_{i}": kernel, f"expansion_2_{i}": 3, f"se_2_{i}": False})
    assert [layer.kernel for layer in layers_of(arch, 2)] == [3, 5, 3, 7, 7, 7]
    SPACE.validate(arch)
    assert [layer.kernel for layer in layers_of(NAMED["efficientnet_b7"].arch, 3)] == [5] * 7


def test_what_is_searched_suits_small_images():
    space = SPACE.searched()
    for i in range(20):
        arch = space.sample((1, i))
        assert arch["stem_stride"] == 1
        assert arch["granularity"] == "stage"
        if i < 3:
            assert 1e6 < size_of(build(space, arch, 10), (32, 32, 3)).macs_per_image < 1e8


def test_every_network_can_be_reached_by_fixing_and_narrowing():
    for name, named in NAMED.items():
        texts = [f"{choice}={value}" for choice, value in named.arch.items()]
        space = SPACE.searched(fix=texts)
        assert space.sample(0) == named.arch, name


def test_bad_values_are_one_line():
    arch = NAMED["mobilenetv2"].arch
    with pytest.raises(InputError, match="mbconv: kernel_3=4 is not one of 3, 5, 7"):
        SPACE.validate(arch.set(kernel_3=4))
    with pytest.raises(InputError, match="mbconv: kernel_3_1=3 does not exist here, only when"):
        SPACE.validate(arch.set(kernel_3_1=3))
    with pytest.raises(InputError, match="stem_width"):
        SPACE.validate(Architecture(arch.set(stem_width=0)))
