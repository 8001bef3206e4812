"""Sets that are made by rule, the same on every machine: those of Larochelle, Erhan, Courville, Bergstra and
Bengio, "An empirical evaluation of deep architectures on problems with many factors of variation", ICML 2007.

28x28 grey images, with the published sizes, in the official splits that ``load`` goes by:

- ``mnist_basic``, ``mnist_rotated``, ``mnist_background_random``: 10,000 + 2,000 + 50,000 digits drawn from all
  70,000 of MNIST, the same ones in the three sets; as they are, turned by an angle even over the circle
  (bilinear, about the centre), or on a background of pixels even over 0..255, of which the brighter of digit
  and background is seen. The publication does not say how the two were joined.
- ``rectangles``: 1,000 + 200 + 50,000 outlines, one pixel wide, white on black; is it wide or tall? Height
  and width are even over 1..28, drawn again where they differ by less than 3, and so is the corner over all
  places at which the rectangle fits.
- ``convex``: 6,000 + 2,000 + 50,000 white regions; convex or not? See `convex`.

The published sets with photographs behind the shapes are not here: the photographs were never published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

SIDE = 28
VERSION = "1"  # to be raised with every change of what is drawn: caches of another version are left alone
_SEED = 2007
_CHUNK = 4096  # regions drawn, and images transformed, at a time
_ROLES = ("train", "valid", "test")

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
"""A number of images uint8 [n, 28, 28] and their labels int32 [n]."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A set out of nothing but random numbers; ``sizes`` of train, valid and test."""

    sizes: tuple[int, int, int]
    class_names: tuple[str, ...]
    draw: Draw


@dataclasses.dataclass(frozen=True)
class Altered:
    """Images of another set, ``source``, all its splits together, each changed by ``alter``."""

    sizes: tuple[int, int, int]
    source: str
    alter: Callable[[np.random.Generator, np.ndarray], np.ndarray]


def stream(role: str) -> np.random.Generator:
    """Each split has a stream of its own, so that the size of one does not change another."""
    return np.random.default_rng((_SEED, _ROLES.index(role)))


def parts(source: Altered, images: int) -> Mapping[str, np.ndarray]:
    """Which of the source's ``images`` are train, valid and test: indices in random order, each once."""
    order = np.random.default_rng((_SEED, len(_ROLES))).permutation(images)
    ends = np.cumsum(source.sizes)
    return dict(zip(_ROLES, np.split(order[: ends[-1]], ends[:-1]), strict=True))


# ------------------------------------------------------------------------------------------------- digits


def unchanged(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    return images


def rotated(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Uint8 [n, H, W], each turned about its centre by an angle even over the circle; zeros come in."""
    from PIL import Image

    degrees = 360 * rng.random(len(images))
    turned = [
        np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR))
        for image, angle in zip(images, degrees.tolist(), strict=True)
    ]
    return np.stack(turned)


def on_noise(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Uint8 [n, H, W], wherever brighter than a background of independent pixels even over 0..255."""
    return np.maximum(images, rng.integers(256, size=images.shape, dtype=np.uint8))


# ------------------------------------------------------------------------------------------------- shapes


def rectangles(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Outlines of rectangles uint8 [n, 28, 28]; label 1 where one is higher than it is wide."""
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < count:
        sides = rng.integers(1, SIDE + 1, size=(_CHUNK, 2))
        kept.append(sides[np.abs(sides[:, 0] - sides[:, 1]) >= 3])
    sides = np.concatenate(kept)[:count]
    first = rng.integers(SIDE - sides + 1)
    last = first + sides - 1
    inside, border = [], []
    for axis in (0, 1):
        at = np.arange(SIDE)
        low, high = first[:, axis, None], last[:, axis, None]
        inside.append((low <= at) & (at <= high))
        border.append((at == low) | (at == high))
    outline = (border[0][:, :, None] & inside[1][:, None, :]) | (
        inside[0][:, :, None] & border[1][:, None, :]
    )
    return outline * np.uint8(255), (sides[:, 0] > sides[:, 1]).astype(np.int32)


def convex(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """White regions uint8 [n, 28, 28], half of them convex (label 1).

    Convex: the intersection of half-planes, each bounded by a line through a place even over the image, in an
    even direction. Their number k = 0, 1, ... has probability p (1 - p)^k, p = 0.195; regions of less than 19
    pixels are drawn again. Not convex: the union of 2 to 4 such regions with p = 0.07 and at least 10 pixels
    each, if `convex_by_pairs` denies it. So the rules on the authors' page of the set. They count k from 0 and
    not from 1: then regions of both kinds have equally many pixels, as the page says they do (59 % of the
    image; it is 35 % of convex images that are white all over).
    """
    labels = (rng.permutation(count) < count // 2).astype(np.int32)
    regions = np.empty((count, SIDE, SIDE), bool)
    regions[labels == 1] = half_plane_regions(rng, count // 2, 0.195, 19)
    unions: list[np.ndarray] = []
    while (missing := count - count // 2 - sum(map(len, unions))) > 0:
        candidates = half_plane_regions(rng, min(missing, _CHUNK), 0.07, 10)
        members = rng.integers(2, 5, size=len(candidates))
        for k in (2, 3, 4):
            more = members >= k
            candidates[more] |= half_plane_regions(rng, int(more.sum()), 0.07, 10)
        unions.append(candidates[~convex_by_pairs(candidates)])
    regions[labels == 0] = np.concatenate(unions)[: count - count // 2] if unions else False
    return regions * np.uint8(255), labels


def half_plane_regions(rng: np.random.Generator, count: int, p: float, least: int) -> np.ndarray:
    """Bool [n, 28, 28]: intersections of a geometric number of half-planes with at least ``least`` pixels."""
    grid = np.indices((SIDE, SIDE)).reshape(2, -1).astype(np.float32)
    kept, have = [np.empty((0, SIDE * SIDE), bool)], 0
    while have < count:
        tried = min(_CHUNK, 64 + 8 * (count - have))
        planes = rng.geometric(p, tried) - 1
        regions = np.ones((tried, SIDE * SIDE), bool)
        left = np.arange(tried)  # those large enough so far; too small stays too small
        for k in range(planes.max()):
            cut = left[planes[left] > k]
            if not len(cut):
                break
            place = SIDE * rng.random((len(cut), 2)) - 0.5
            angle = 2 * np.pi * rng.random(len(cut))
            normal = np.stack([np.cos(angle), np.sin(angle)], axis=1)
            bound = (normal * place).sum(axis=1, keepdims=True).astype(np.float32)
            after = regions[cut] & (normal.astype(np.float32) @ grid <= bound)
            regions[cut] = after
            left = np.setdiff1d(left, cut[np.count_nonzero(after, axis=1) < least], assume_unique=True)
        kept.append(regions[left])
        have += len(left)
    return np.concatenate(kept)[:count].reshape(-1, SIDE, SIDE)


def convex_by_pairs(regions: np.ndarray) -> np.ndarray:
    """Whether every pixel midway between two pixels of a region is of it too: bool [n] of bool [n, H, W].

    So it is in all sets of pixels that a convex polygon holds. The sums of two pixels are where the region's
    convolution with itself is above 0.
    """
    height, width = regions.shape[1:]
    found = [np.empty(0, bool)]
    for start in range(0, len(regions), _CHUNK // 4):
        some = regions[start : start + _CHUNK // 4]
        waves = np.fft.rfft2(some.astype(np.float32), s=(2 * height, 2 * width))
        pairs = np.fft.irfft2(waves * waves, s=(2 * height, 2 * width))
        midway = pairs[:, ::2, ::2] > 0.5  # counts, but for rounding
        found.append(np.asarray((some | ~midway).all(axis=(1, 2))))
    return np.concatenate(found)


_MNIST = (10_000, 2_000, 50_000)
GENERATED: dict[str, Drawn | Altered] = {
    "mnist_basic": Altered(_MNIST, "mnist", unchanged),
    "mnist_rotated": Altered(_MNIST, "mnist", rotated),
    "mnist_background_random": Altered(_MNIST, "mnist", on_noise),
    "rectangles": Drawn((1_000, 200, 50_000), ("wide", "tall"), rectangles),
    "convex": Drawn((6_000, 2_000, 50_000), ("not convex", "convex"), convex),
}
