"""Encoded images to uint8 arrays, squares of one size, and statistics over them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for images of so many channels
_CHUNK_IMAGES, _CHUNK_BYTES = 2048, 1 << 23


def decode_image(encoded: bytes, channels: int, size: int | None) -> np.ndarray:
    """PNG, JPEG, ... to uint8 [height, width, channels]; with ``size`` the centred square scaled to it.

    Grey becomes colour or colour grey where the file disagrees with ``channels``. Raises ``OSError`` or
    ``SyntaxError`` (as Pillow does) when the image is damaged.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return _array(image if image.mode == MODES[channels] else image.convert(MODES[channels]), size)
    except UnidentifiedImageError as error:
        raise OSError("not an image") from error  # Pillow's own message is an address in memory


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Uint8 [height, width, channel] to a square of ``size``, as ``decode_image`` makes it."""
    from PIL import Image

    return _array(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), size)


def _array(image: Image.Image, size: int | None) -> np.ndarray:
    """The largest centred square of the image, scaled to ``size`` (bicubic, antialiased); None: as it is."""
    if size is not None and image.size != (size, size):
        from PIL import Image

        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def chunks_of(images: np.ndarray, indices: np.ndarray) -> Iterator[np.ndarray]:
    """``images[indices]`` a few MB at a time: a memory-mapped set is never in memory whole."""
    rows = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // max(1, images[:1].nbytes)))
    for start in range(0, len(indices), rows):
        yield images[indices[start : start + rows]]


def pixel_covariance(images: np.ndarray) -> np.ndarray:
    """float64 [C, C]: the covariance of the channels over all pixels of uint8 ``images``, scaled to [0, 1]."""
    channels = images.shape[-1]
    total, products = np.zeros(channels), np.zeros((channels, channels))
    for chunk in chunks_of(images, np.arange(len(images))):
        pixels = chunk.reshape(-1, channels).T.astype(np.float64, order="C")  # sums are exact below 2**53
        total += pixels.sum(axis=1)
        products += pixels @ pixels.T
    count = images.size // channels
    return (products / count - np.outer(total, total) / count**2) / 255**2


def pixel_statistics(images: np.ndarray, indices: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of ``images[indices]``, scaled to [0, 1].

    Sums are exact integers, so that the order does not matter. A channel that never varies gets deviation 1.
    """
    channels = images.shape[-1]
    total, squares = np.zeros(channels, np.uint64), np.zeros(channels, np.uint64)
    for pixels in chunks_of(images, indices):
        # Over the images first: that sum runs along contiguous memory, and 2048 * 255^2 fits 32 bits.
        total += pixels.sum(axis=0, dtype=np.uint32).reshape(-1, channels).sum(axis=0, dtype=np.uint64)
        square = np.square(pixels, dtype=np.uint32).sum(axis=0, dtype=np.uint32)
        squares += square.reshape(-1, channels).sum(axis=0, dtype=np.uint64)
    count = len(indices) * images[0].size // channels
    mean, std = [], []
    for first, second in zip(total.tolist(), squares.tolist(), strict=True):
        mean.append(first / count / 255)
        variance = (count * second - first * first) / count**2  # Python's integers: no cancellation
        std.append(variance**0.5 / 255 if variance else 1.0)
    return mean, std
