"""One encoded image to the pixels that training or evaluation sees: decoding, crops, colour and lighting, on the host.

All randomness comes from a numpy generator that is given, in a fixed order, so that an image's view is a pure function
of the generator's seed. Pixels come out as uint8: a quarter of the bytes to move of float32; the device normalises.
"""

from __future__ import annotations

import dataclasses
import io
import math
from typing import TYPE_CHECKING

import numpy as np

from nas.data.pixels import MODES
from nas.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom
PCA_DEVIATION = 0.1  # Krizhevsky et al. 2012, section 4.1
_TRIES = 10
_ORIENTATION = 0x0112  # the Exif tag


@dataclasses.dataclass(frozen=True, eq=False)
class Augmentation:
    """What training does to an image, in this order: random-resized crop, flip, colour, lighting."""

    size: int = 224
    """height and width that come out, pixels"""
    area: tuple[float, float] = (0.08, 1.0)
    """share of the image's area that a crop has (Szegedy et al. 2015, section 6)"""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """width over height of a crop"""
    flip: bool = True
    """mirror every other image, left to right"""
    colour: float = 0.0
    """brightness, contrast and saturation are multiplied by factors in 1 +- this"""
    components: np.ndarray | None = None
    """[C, C]; column i is the i-th principal component of the training pixels (in [0, 1]) times its variance, as
    `nas.training.augment.principal_components` gives it; None: no lighting"""

    def __post_init__(self) -> None:
        low, high = self.area
        if self.size < 1:
            raise InputError(f"augmentation: size={self.size} is not at least 1")
        if not 0 < low <= high <= 1:
            raise InputError(f"augmentation: area={self.area} is not an interval in (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InputError(f"augmentation: ratio={self.ratio} is not an interval above 0")
        if not 0 <= self.colour <= 1:
            raise InputError(f"augmentation: colour={self.colour} is not from 0 to 1")


def train_view(
    encoded: bytes, channels: int, augmentation: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    """Uint8 [size, size, channels]: a random view of the image. Raises OSError etc. where it is damaged."""
    with _opened(encoded) as image:
        box = random_box(*_upright_size(image), augmentation.area, augmentation.ratio, rng)
        pixels = _resized(image, channels, box, (augmentation.size, augmentation.size))
    if augmentation.flip and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if augmentation.colour or augmentation.components is not None:
        factors, offset = np.ones(3), np.zeros(channels)
        if augmentation.colour:
            factors = rng.uniform(1 - augmentation.colour, 1 + augmentation.colour, 3)
        if augmentation.components is not None:
            offset = augmentation.components @ rng.normal(0, PCA_DEVIATION, channels)
        pixels = adjusted(pixels, factors, offset)
    return np.ascontiguousarray(pixels)


def centre_view(encoded: bytes, channels: int, resize: int, crop: int) -> np.ndarray:
    """Uint8 [crop, crop, channels]: the short side scaled to ``resize``, then the central square of ``crop``."""
    with _opened(encoded) as image:
        width, height = _upright_size(image)
        side = min(width, height) * crop / resize
        left, top = (width - side) / 2, (height - side) / 2
        return _resized(image, channels, (left, top, left + side, top + side), (crop, crop))


def ten_views(encoded: bytes, channels: int, resize: int, crop: int) -> np.ndarray:
    """Uint8 [10, crop, crop, channels]: corners and centre of the central square of ``resize``, and all mirrored.

    Krizhevsky et al. 2012, section 4.1; a network's ten softmaxes are averaged.
    """
    square = centre_view(encoded, channels, resize, resize)
    far, middle = resize - crop, (resize - crop) // 2
    places = ((0, 0), (0, far), (far, 0), (far, far), (middle, middle))
    views = [square[top : top + crop, left : left + crop] for top, left in places]
    return np.stack([*views, *(view[:, ::-1] for view in views)])


def random_box(
    width: int, height: int, area: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """A box of random area, shape (uniform in its logarithm) and place; the central one where ten tries do not fit."""
    for _ in range(_TRIES):
        wanted = rng.uniform(*area) * width * height
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(wanted * shape)), round(math.sqrt(wanted / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def adjusted(pixels: np.ndarray, factors: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Uint8 [h, w, C] with brightness, contrast and saturation times ``factors`` [3], then plus ``offset`` [C].

    Contrast is about the image's mean, saturation about each pixel's mean over channels. ``offset`` is in pixels of
    [0, 1]. All of it is one matrix and one vector, applied once; rounded and clipped once.
    """
    bright, contrast, saturation = factors
    channels = pixels.shape[-1]
    mix = saturation * np.eye(channels) + (1 - saturation) / channels
    centre = bright * float(pixels.mean(dtype=np.float32)) * (1 - contrast)
    matrix = (bright * contrast * mix).astype(np.float32)
    shift = (centre + 255 * offset + 0.5).astype(np.float32)  # half: the cast below rounds down
    values = pixels.reshape(-1, channels).astype(np.float32) @ matrix + shift
    return np.clip(values, 0, 255, out=values).astype(np.uint8).reshape(pixels.shape)


def _opened(encoded: bytes) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError as error:
        raise OSError("not an image") from error  # Pillow's own message is an address in memory


def _turned(image: Image.Image) -> int:
    return image.getexif().get(_ORIENTATION, 1) if image.format == "JPEG" else 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _turned(image) >= 5 else (width, height)


def _resized(image: Image.Image, channels: int, box: Box, size: tuple[int, int]) -> np.ndarray:
    """The part of the upright image in ``box``, scaled to ``size`` (bilinear, antialiased)."""
    from PIL import Image, ImageOps

    mode = MODES[channels]
    if _turned(image) > 1:
        image = ImageOps.exif_transpose(image)
    elif image.format == "JPEG" and image.mode == mode:
        # A JPEG can be decoded at a half, a quarter or an eighth, where that still is no smaller than asked for.
        width, height = image.size
        scale = max(size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1]))
        least = math.ceil(width * scale - 1e-6), math.ceil(height * scale - 1e-6)  # but for rounding
        image.draft(mode, least)
        x, y = image.size[0] / width, image.size[1] / height
        box = box[0] * x, box[1] * y, min(box[2] * x, image.size[0]), min(box[3] * y, image.size[1])
    if image.mode.startswith("I"):  # 16 bits a pixel
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    image = image if image.mode == mode else image.convert(mode)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))
    return pixels[..., None] if pixels.ndim == 2 else pixels
