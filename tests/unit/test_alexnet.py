"""AlexNet against torch: the published layers by torch's own functions, torchvision's model as a whole."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas.nn.noise import dropout, node_seed
from nas.objectives.train import build
from nas.training.network import Noise, apply_train, initialise
from search_spaces.alexnet import NAMED, SPACE


def drawn(network, image_shape, seed=0):
    """Parameters from ``seed``; biases too, which are zeros at first."""
    rng = np.random.default_rng(seed)
    params = initialise(network, seed, image_shape, "float32")["params"]
    return jax.tree.map(
        lambda p: np.float32(rng.normal(0, 0.1, p.shape)) if p.ndim == 1 else np.array(p), params
    )


def logits_of(network, params, images):
    return np.asarray(
        jax.jit(functools.partial(network.apply, train=False))({"params": params}, jnp.asarray(images))
    )


def test_two_groups_with_response_normalisation_equal_torchs_functions():
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    narrow = {f"width_{i}": width for i, width in enumerate((16, 32, 48, 48, 32), 1)}
    arch = NAMED["alexnet"].arch.set(**narrow, dense_width=64)
    SPACE.validate(arch)
    shape = (67, 67, 3)  # maps of 15, 7, 3 and 1: the last pool just fits
    network = build(SPACE, arch, 7)
    params = drawn(network, shape)
    images = np.random.default_rng(1).normal(0, 100, (2, *shape)).astype(np.float32)

    def tensor(array):
        return torch.from_numpy(np.array(array))

    x = tensor(images).permute(0, 3, 1, 2)
    for i, (stride, padding, groups) in enumerate([(4, 0, 1), (1, 2, 2), (1, 1, 1), (1, 1, 2), (1, 1, 2)], 1):
        kernel = tensor(params[f"conv_{i}"]["kernel"]).permute(3, 2, 0, 1)
        x = f.conv2d(x, kernel, tensor(params[f"norm_{i}"]["bias"]), stride, padding, groups=groups).relu()
        if i <= 2:  # torch takes the mean over the 5 channels where the paper takes the sum
            before = x
            x = f.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)
            assert float((x / before.clamp(min=1e-9)).min()) < 0.5  # below 2**-0.75: the sum matters
        if i in (1, 2, 5):
            x = f.max_pool2d(x, 3, 2)
    x = x.permute(0, 2, 3, 1).flatten(1)
    for i in (1, 2):
        x = (x @ tensor(params[f"dense_{i}"]["kernel"]) + tensor(params[f"dense_norm_{i}"]["bias"])).relu()
    expected = (x @ tensor(params["logits"]["kernel"]) + tensor(params["logits"]["bias"])).numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits_of(network, params, images), expected, rtol=1e-4, atol=1e-4)


def test_one_weird_trick_equals_torchvision():
    models = pytest.importorskip("torchvision").models
    torch = pytest.importorskip("torch")
    named = NAMED["alexnet_owt"]
    network = build(SPACE, named.arch, 10)
    params = drawn(network, named.image_shape)
    with torch.device("meta"):
        theirs = models.alexnet(num_classes=10)
    theirs = theirs.to_empty(device="cpu").eval()
    layers = [m for m in theirs.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    ours = [(f"conv_{i}", f"norm_{i}") for i in range(1, 6)]
    ours += [(f"dense_{i}", f"dense_norm_{i}") for i in (1, 2)] + [("logits", "logits")]
    with torch.no_grad():
        for layer, (kernel_at, bias_at) in zip(layers, ours, strict=True):
            kernel = np.array(params[kernel_at]["kernel"])
            if kernel.ndim == 4:
                kernel = kernel.transpose(3, 2, 0, 1)
            elif kernel_at == "dense_1":  # torch flattens [C, H, W]
                kernel = kernel.reshape(6, 6, 256, -1).transpose(3, 2, 0, 1).reshape(4096, -1)
            else:
                kernel = kernel.T
            layer.weight.copy_(torch.from_numpy(kernel))
            layer.bias.copy_(torch.from_numpy(params[bias_at]["bias"]))
        images = np.random.default_rng(1).normal(size=(2, *named.image_shape)).astype(np.float32)
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits_of(network, params, images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_dropout_is_behind_the_hidden_dense_layers_alone():
    """Section 4.2: 'in the first two fully-connected layers', so the 9216 features are whole."""
    arch = NAMED["alexnet"].arch.set(**{f"width_{i}": 16 for i in range(1, 6)}, dense_width=64)
    network = build(SPACE, arch, 7)
    variables = initialise(network, 0, (32, 32, 3), "float32")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)
    _, kept = network.apply(
        variables,
        images,
        train=True,
        dropout=np.float32(0.5),
        seed=np.uint32(3),
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    seen = {
        name: np.asarray(out["__call__"][0]) for name, out in kept["intermediates"].items() if name[0] != "_"
    }
    params = variables["params"]
    names = [node.name for node in network.nodes]

    def dropped(x, name):
        return np.asarray(dropout(jnp.asarray(x), 0.5, node_seed(3, names.index(name))))

    first = seen["average"] @ params["dense_1"]["kernel"]
    np.testing.assert_allclose(seen["dense_1"], first, rtol=1e-4, atol=1e-5)
    for name, before in (("dense_2", "dense_norm_1"), ("logits", "dense_norm_2")):
        bias = params[name].get("bias", 0)
        expected = dropped(seen[before], name) @ params[name]["kernel"] + bias
        np.testing.assert_allclose(seen[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMED)
def test_named_networks_run_on_small_images(name):
    network = build(SPACE, NAMED[name].arch, 7)
    noise = Noise(np.float32(0.5), np.uint32(0))
    for shape in ((8, 8, 1), (28, 28, 1), (13, 17, 2)):
        image = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        variables = jax.eval_shape(lambda x=image: network.lazy_init(jax.random.key(0), x))
        logits, _, _ = jax.eval_shape(lambda v, x: apply_train(network, v, (x,), noise), variables, image)
        assert logits.shape == (2, 7)


def test_map_sizes_of_the_two_paddings():
    """227 unpadded and 224 with 2 pixels round it: 55, 27, 13, 6."""
    for name in ("alexnet", "alexnet_owt"):
        network = build(SPACE, NAMED[name].arch, 7)
        image = jax.ShapeDtypeStruct((1, *NAMED[name].image_shape), jnp.float32)
        variables = jax.eval_shape(lambda net=network, x=image: net.lazy_init(jax.random.key(0), x))
        _, kept = jax.eval_shape(
            lambda v, x, net=network: net.apply(v, x, capture_intermediates=True, mutable=["intermediates"]),
            variables,
            image,
        )
        found = [
            kept["intermediates"][at]["__call__"][0].shape[1:3]
            for at in ("conv_1", "pool_1", "pool_2", "pool_5")
        ]
        assert found == [(55, 55), (27, 27), (13, 13), (6, 6)]
