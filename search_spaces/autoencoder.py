"""The ``autoencoder`` space: sparse deep autoencoders trained without labels (the "cat neuron").

Le et al. 2012, "Building high-level features using large scale unsupervised learning", section 3. A stage is
three sublayers: linear filters over local receptive fields whose weights no two locations share; L2 pooling
over the locations around each one, within a map; subtractive and divisive local contrast normalisation. What
one gives is the next one's input. Stages learn from their own cost alone (equation 1),

    || W2 W1' x - x ||^2  +  sparsity * sum_j sqrt(eps + H_j (W1' x)^2),

of encoding weights W1, decoding weights W2 and fixed uniform pooling weights H. The paper trains all stages
together on the sum of their costs; here gradients stop between stages, so that each minimises its own cost on
what the stages below give, as in greedy training stage by stage, and can not make its input easier to code.

The output, logits, is a linear readout of the last stage. Labels train it and nothing else: it shows during
training how much of the classes the features hold, and is what a search maximises.

Fields, pools and contrast windows lie wholly inside their map ("VALID"); one that is larger than its map is
taken as large as the map, so that every network runs on every image.
"""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from nas.nn.graph import Builder, Graph
from nas.nn.layers import Dense, average_pool, conv2d, he_normal, local2d
from nas.space import Architecture, Categorical, Choice, Integer, LogUniform, SearchSpace, Uniform, When
from search_spaces.named import Named

MAX_STAGES = 3
EPSILON = 1e-4  # under the root of L2 pooling; the paper does not give its value
CONTRAST_WINDOW = 5  # pixels of the Gaussian window's sides (figure 1, "LCN size")
CONTRAST_DEVIATION = 1.25  # pixels; the paper does not give its value
LEAST_CONTRAST = 0.01  # what the divisive normalisation divides by at the least (the paper's c)


class Stage(nn.Module):
    """Local linear filters, L2 pooling, contrast normalisation: [B, H, W, C] -> [B, H', W', maps].

    A filter sees ``field`` x ``field`` pixels of all channels, one filter a map every ``stride`` pixels; a
    pooling unit sums over ``pool`` x ``pool`` neighbouring locations of one map. ``weights``: "unshared", or for
    comparison "shared" by all locations (a convolution). ``decoder``: "separate" from the encoder as in the
    paper, or "tied", W2 = W1 (Le et al. 2011, reconstruction ICA). ``contrast``: "local" or "none".

    In training it sows the terms of its cost in the collection "losses": "reconstruction" and "sparsity",
    means over images, divided by the H W C values of an image, which makes stages of any size comparable and
    moves no optimum.
    """

    maps: int
    field: int
    stride: int = 1
    pool: int = 5
    sparsity: float = 0.1
    weights: str = "unshared"
    decoder: str = "separate"
    contrast: str = "local"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        height, width, channels = x.shape[1:]
        field = (min(self.field, height), min(self.field, width))
        shape = (*field, channels, self.maps)
        if self.weights == "unshared":
            places = (
                (size - side) // self.stride + 1 for size, side in zip(x.shape[1:3], field, strict=True)
            )
            shape = (*places, *shape)
        draw = functools.partial(he_normal, fan_in=math.prod(field) * channels)
        encoder = decoder = self.param("encoder", draw, shape).astype(x.dtype)
        if self.decoder == "separate":
            decoder = self.param("decoder", draw, shape).astype(x.dtype)
        if train:
            x = jax.lax.stop_gradient(x)
        filtered = self._filter(encoder, x)
        pooled = l2_pool(filtered, self.pool)
        if train:
            error = self._rebuild(decoder, filtered, x) - x
            squares = jnp.sum(jnp.square(error.astype(jnp.float32)))
            self.sow("losses", "reconstruction", squares / x.size)
            self.sow("losses", "sparsity", self.sparsity * jnp.sum(pooled.astype(jnp.float32)) / x.size)
        return contrast_normalise(pooled) if self.contrast == "local" else pooled

    def _filter(self, kernel: Array, x: Array) -> Array:
        """W' x: [B, H, W, C] -> [B, OH, OW, maps]."""
        layer = local2d if self.weights == "unshared" else conv2d
        return layer(x, kernel, "VALID", self.stride)

    def _rebuild(self, kernel: Array, filtered: Array, x: Array) -> Array:
        """W times the filters' outputs, summed where fields overlap: of the shape of ``x``."""
        image = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.linear_transpose(lambda x: self._filter(kernel, x), image)(filtered)[0]


class Readout(nn.Module):
    """Softmax regression on all values of the last stage: [B, H, W, C] -> logits [B, num_classes]."""

    num_classes: int

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool = False, dropout: ArrayLike = 0.0, seed: ArrayLike = 0
    ) -> Array:
        if train:
            x = jax.lax.stop_gradient(x)
        features = x.reshape(x.shape[0], -1)
        return Dense(self.num_classes)(features, train=train, dropout=dropout, seed=seed)


def l2_pool(x: Array, size: int) -> Array:
    """sqrt(eps + sum of squares) over ``size`` x ``size`` locations of a map, at every location: [B, H, W, C]."""
    rows, columns = (min(size, side) for side in x.shape[1:3])
    squares = average_pool(jnp.square(x), (rows, columns), 1, "VALID")
    return jnp.sqrt(squares * (rows * columns) + EPSILON)


def contrast_normalise(x: Array) -> Array:
    """Local contrast normalisation over all maps (Jarrett et al. 2009; the paper's footnote): [B, H, W, C].

    ``g = x - G * x`` and ``y = g / max(c, sqrt(G * g^2))``, where ``G *`` is the mean over all maps and a
    Gaussian window of locations. At the edges the mean is over what of the window lies in the map.
    """
    window, mass = gaussian_window(x.shape[1], x.shape[2])

    def mean(z: Array) -> Array:
        average = jnp.mean(z, axis=-1, keepdims=True)
        kernel = jnp.asarray(window[..., None, None], x.dtype)
        return conv2d(average, kernel) * jnp.asarray(1 / mass, x.dtype)

    centred = x - mean(x)
    # The root of the larger square: at 0 its gradient is finite.
    return centred / jnp.sqrt(jnp.maximum(LEAST_CONTRAST**2, mean(jnp.square(centred))))


def gaussian_window(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The window, float32 [5, 5] that sums to 1, and how much of it lies in a map at each place, [H, W, 1]."""
    reach = CONTRAST_WINDOW // 2
    side = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * CONTRAST_DEVIATION**2))
    side /= side.sum()
    rows, columns = (np.convolve(np.ones(size), side)[reach : reach + size] for size in (height, width))
    return np.outer(side, side).astype(np.float32), np.outer(rows, columns)[..., None].astype(np.float32)


def build(arch: Architecture, num_classes: int) -> Graph:
    """The network of an ``autoencoder`` architecture: [B, H, W, C] -> logits [B, num_classes]."""
    SPACE.check_known(arch, "weights", "decoder", "contrast")
    b = Builder()
    x = 0
    for i in range(1, arch["stages"] + 1):
        stage = Stage(
            maps=arch[f"maps_{i}"],
            field=arch[f"field_{i}"],
            stride=arch[f"stride_{i}"],
            pool=arch[f"pool_{i}"],
            sparsity=arch["sparsity"],
            weights=arch["weights"],
            decoder=arch["decoder"],
            contrast=arch["contrast"],
        )
        x = b.add(f"stage_{i}", stage, x)
    b.add("readout", Readout(num_classes), x)
    return b.graph()


def _space() -> SearchSpace:
    stages = range(1, MAX_STAGES + 1)
    per_stage: dict[str, Choice] = {
        "maps": Categorical((4, 8, 16, 32, 64)),
        "field": Categorical((3, 4, 5, 6, 7, 8, 10, 14, 18)),
        "stride": Categorical((1, 2)),
        "pool": Categorical((1, 2, 3, 5)),
    }
    choices: dict[str, Choice] = {"stages": Integer(1, MAX_STAGES)}
    choices |= {f"{name}_{i}": choice for i in stages for name, choice in per_stage.items()}
    choices |= {
        "weights": Categorical(("unshared", "shared")),
        "decoder": Categorical(("separate", "tied")),
        "contrast": Categorical(("local", "none")),
        "sparsity": Categorical((0.0, 0.1, 0.3, 1.0, 3.0, 10.0)),
        "dropout": Uniform(0.0, 0.5, changes_program=False),
        "optimiser": Categorical(("adam", "adamw")),
        "learning_rate": LogUniform(1e-4, 3e-2, changes_program=False),
        "schedule": Categorical(("constant", "linear", "cosine"), changes_program=False),
        "batch_size": Categorical((32, 64, 100, 128)),
        "weight_decay": LogUniform(1e-6, 1e-2, changes_program=False),
        "label_smoothing": Uniform(0.0, 0.2, changes_program=False),
        "augmentation": Categorical(("none", "flip", "crop", "crop+flip")),
    }
    conditions = {f"{name}_{i}": (When("stages", at_least=i),) for i in stages if i > 1 for name in per_stage}
    return SearchSpace(
        name="autoencoder",
        choices=choices,
        conditions=conditions,
        build=build,
        # A readout of few features in few steps needs a high rate and small batches.
        search_within=(
            "stages=1..2",
            "maps=4,8",
            "field=3,4,6",
            "sparsity=0.1,0.3,1.0",
            "learning_rate=5e-3..3e-2",
            "batch_size=32,64",
            "augmentation=none",
        ),
    )


SPACE = _space()


def _named(
    image_shape: tuple[int, int, int],
    num_classes: int,
    params: int,
    source: str,
    sparsity: float,
    **stage: int,
) -> Named:
    """Three equal stages, as published; the paper does not give its optimiser's rates."""
    return Named.of(
        "autoencoder",
        image_shape,
        num_classes,
        params,
        source,
        stages=3,
        **{f"{name}_{i}": value for i in (1, 2, 3) for name, value in stage.items()},
        weights="unshared",
        decoder="separate",
        contrast="local",
        sparsity=sparsity,
        dropout=0.0,
        optimiser="adam",
        learning_rate=2e-3,
        schedule="cosine",
        batch_size=100,
        weight_decay=1e-6,
        label_smoothing=0.0,
        augmentation="none",
    )


NAMED: dict[str, Named] = {
    # For CIFAR-10: fields and pools as near to the published ones as 32 pixels let three stages be. Sparsity weighs
    # an amplitude against a square, so 0.1 depends on the scale of the pixels, which the paper does not give; on
    # pixels of standard deviation 1, 1.0 does what 0.1 does on pixels of standard deviation 0.1.
    "cat_neuron": _named(
        (32, 32, 3),
        10,
        4_254_410,
        "the published network shrunk to 32x32 images; counted by hand in tests/golden/test_autoencoder_counts.py",
        sparsity=1.0,
        maps=8,
        field=7,
        stride=1,
        pool=3,
    ),
    # The paper's billion are the weights of the three encoders, 1,216,858,464.
    "cat_neuron_1b": _named(
        (200, 200, 3),
        2,
        2_434_017_234,
        "Le et al. 2012, section 3.2: encoders, as many weights of decoders, and the readout of two classes",
        sparsity=0.1,
        maps=8,
        field=18,
        stride=1,
        pool=5,
    ),
}
