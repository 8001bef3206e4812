"""Data augmentation: a few numbers an image are drawn on the host, the pixels change on the device.

The draws are numpy's, a pure function of (seed, epoch), so that they are the same on every platform and
cost no compilation; `gather_images` turns them and the uint8 images into one float batch.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Float32, Int, UInt8

from nas.training import own_augment

# What each draws for a batch; see `draw`.
AUGMENTATIONS = ("none", "crop", "flip", "cutout", "mixup", "colour", "pca", "resized_crop")

MIXUP_ALPHA = 0.2  # Zhang et al. 2018 use 0.1 to 0.4 on ImageNet
COLOUR_RANGE = 0.2  # brightness, contrast and saturation factors in 1 +- this
PCA_DEVIATION = 0.1  # of the multiples of the principal components: Krizhevsky et al. 2012, section 4.1


def crop_pad(size: int) -> int:
    """Pixels of zero padding for a random crop: 4 at 32, as in He et al. 2015, in proportion elsewhere."""
    return max(1, round(size / 8))


def principal_components(
    covariance: Float[np.ndarray, "channel channel"],
) -> Float32[np.ndarray, "channel channel"]:
    """Column i is the i-th principal component of the pixels times its variance: l_i p_i.

    ``covariance`` is that of pixels in [0, 1]. On one channel the only component is 1.
    """
    variances, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(len(vectors))]
    return (vectors * np.sign(largest) * variances).astype(np.float32)  # LAPACKs differ in the signs


def ten_crop(batch: int, image_shape: tuple[int, int, int], crop_fraction: float) -> list[dict[str, Any]]:
    """Krizhevsky et al. 2012, section 4.1: the corners and the centre, and all five mirrored; plans as of `draw`.

    A corner is the part of ``crop_fraction`` of the height and width that touches it. It keeps its scale and the
    network its input size, as in training by crop: the image moves so far that all else of it leaves the frame,
    and zeros come in behind it. The centre is the whole image, as it is evaluated otherwise.
    """
    dy, dx = (max(1, round((1 - crop_fraction) * size)) for size in image_shape[:2])
    places = [(-dy, -dx), (-dy, dx), (dy, -dx), (dy, dx), (0, 0)]
    return [
        {
            "shift": np.tile(np.array(place, np.int32), (batch, 1)),
            "flip": np.full(batch, mirrored),
            "cutout": np.zeros((batch, 3), np.int32),
        }
        for mirrored in (False, True)
        for place in places
    ]


def draw(
    augmentation: str,
    rng: np.random.Generator,
    steps: int,
    batch: int,
    image_shape: tuple[int, int, int],
    components: Float32[np.ndarray, "channel channel"] | None = None,
) -> dict[str, np.ndarray]:
    """The random numbers of ``steps`` batches, each with leading axes [steps, batch] (mixup: [steps]).

    - crop, flip, cutout: ``shift`` int32 [.., 2], rows and columns, within the padding of `crop_pad`; ``flip``
      bool, left to right; ``cutout`` int32 [.., 3], top, left and size of a square of half the image, centred
      anywhere (DeVries and Taylor 2017). All three where there is any, zeros for the others: it is one program
    - mixup: ``mix`` float32 [steps], the weight of a batch against itself in reverse order
    - colour: ``colour`` float32 [.., 3], brightness, contrast and saturation factors
    - pca: ``offset`` float32 [.., C], what is added to all pixels of an image: the `principal_components` (which
      only this needs) times normal numbers of deviation 0.1 (Krizhevsky et al. 2012, section 4.1). On one channel
      it is a change of brightness
    - resized_crop: ``view`` uint32 [..], the seed of each image's crop of random area and shape, scaled to the input's
      size as it is decoded (Szegedy et al. 2015, section 6; `nas.data.encoded`)
    - a function of the user's: a seed uint32 [steps] for each (`nas.training.own_augment`)
    """
    height, width, channels = image_shape
    parts = augmentation.split("+")
    plan: dict[str, np.ndarray] = {}
    if {"crop", "flip", "cutout"} & set(parts):
        plan["shift"] = np.zeros((steps, batch, 2), np.int32)
        plan["flip"] = np.zeros((steps, batch), bool)
        plan["cutout"] = np.zeros((steps, batch, 3), np.int32)
    if "crop" in parts:
        pads = np.array([crop_pad(height), crop_pad(width)])
        plan["shift"] += rng.integers(-pads, pads + 1, size=(steps, batch, 2), dtype=np.int32)
    if "flip" in parts:
        plan["flip"] |= rng.random((steps, batch)) < 0.5
    if "cutout" in parts:
        size = min(height, width) // 2
        centre = rng.integers(0, (height, width), size=(steps, batch, 2), dtype=np.int32)
        plan["cutout"] += np.concatenate([centre - size // 2, np.full_like(centre[..., :1], size)], axis=-1)
    if "mixup" in parts:
        plan["mix"] = rng.beta(MIXUP_ALPHA, MIXUP_ALPHA, size=steps).astype(np.float32)
    if "colour" in parts:
        plan["colour"] = rng.uniform(1 - COLOUR_RANGE, 1 + COLOUR_RANGE, (steps, batch, 3)).astype(np.float32)
    if "pca" in parts:
        assert components is not None
        multiples = rng.normal(0, PCA_DEVIATION, (steps, batch, channels)).astype(np.float32)
        plan["offset"] = multiples @ components.T
    if "resized_crop" in parts:
        plan["view"] = rng.integers(2**32, size=(steps, batch), dtype=np.uint32)
    for name in own_augment.used(augmentation).values():
        plan[name] = rng.integers(2**32, size=steps, dtype=np.uint32)
    return plan


def gather_images(
    images: UInt8[Array, "all height width channel"],
    index: Int[Array, " batch"],
    mean: Float[Array, " channel"],
    std: Float[Array, " channel"],
) -> Float[Array, "batch height width channel"]:
    """``(images[index] / 255 - mean) / std``; an index beyond the images takes the last one."""
    return _normalised(images.at[index].get(mode="clip"), mean, std)


def gather_augmented(
    images: UInt8[Array, "all height width channel"],
    index: Int[Array, " batch"],
    mean: Float[Array, " channel"],
    std: Float[Array, " channel"],
    shift: Int[Array, "batch 2"],
    flip: Bool[Array, " batch"],
    cutout: Int[Array, "batch 3"],
) -> Float[Array, "batch height width channel"]:
    """`gather_images` with each image moved, mirrored and cut out as its row of the parameters says.

    First moved: pixel (i, j) of the result is (i + dy, j + dx) of the image, for ``shift`` = (dy, dx); beyond its
    edges pixels are 0 before normalisation. (Padding by p and cropping at random is dy and dx uniform on -p..p.)
    Then mirrored left to right where ``flip``. Then the square ``cutout`` = (top, left, size), clipped by the edges,
    is set to 0 after normalisation, the mean colour (DeVries and Taylor 2017); size 0 cuts nothing.
    """
    chosen = images.at[index].get(mode="clip")
    _, height, width, _ = images.shape
    row, column = jnp.arange(height), jnp.arange(width)
    rows = row + shift[:, :1]
    columns = jnp.where(flip[:, None], column[::-1], column) + shift[:, 1:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    place = jnp.arange(index.shape[0])[:, None, None]
    moved = chosen.at[place, rows[:, :, None], columns[:, None, :]].get(mode="clip")
    out = _normalised(jnp.where(inside[..., None], moved, jnp.zeros((), moved.dtype)), mean, std)

    def within(position: Array, first: Array) -> Array:
        return (position >= first[:, None]) & (position < (first + cutout[:, 2])[:, None])

    cut = within(row, cutout[:, 0])[:, :, None] & within(column, cutout[:, 1])[:, None, :]
    return jnp.where(cut[..., None], jnp.zeros((), out.dtype), out)


def _normalised(pixels: Array, mean: Array, std: Array) -> Array:
    return (pixels.astype(mean.dtype) / 255 - mean) * (1 / std)


def gather_targets(
    labels: Int[Array, " all"], index: Int[Array, " batch"], num_classes: int, smoothing: ArrayLike = 0.0
) -> tuple[Int[Array, " batch"], Float[Array, "batch class"]]:
    """The labels at ``index``, and their target probabilities.

    A label's class gets ``1 - smoothing + smoothing / num_classes``, every other ``smoothing / num_classes``
    (Szegedy et al. 2016, section 7); ``smoothing`` may be traced. An index beyond the labels takes the last one.
    """
    chosen = labels.at[index].get(mode="clip")
    low = jnp.asarray(smoothing, jnp.float32) / num_classes
    return chosen, jnp.where(chosen[:, None] == jnp.arange(num_classes), 1 - smoothing + low, low)


def adjust_colour(
    images: Float[Array, "batch height width channel"],
    factors: Float[Array, "batch 3"],
    mean: Float[Array, " channel"],
    std: Float[Array, " channel"],
) -> Float[Array, "batch height width channel"]:
    """Brightness, contrast and saturation of normalised ``images`` times ``factors``.

    Contrast is about each image's mean, saturation about each pixel's mean over channels (no effect on
    one channel); done on pixels in [0, 1] without clipping.
    """
    bright, contrast, saturation = (factors[:, i, None, None, None] for i in range(3))
    pixels = (images * std + mean) * bright
    centre = jnp.mean(pixels, axis=(1, 2, 3), keepdims=True)
    pixels = centre + (pixels - centre) * contrast
    grey = jnp.mean(pixels, axis=-1, keepdims=True)
    return (grey + (pixels - grey) * saturation - mean) / std
