"""The generated sets: what the publications say of them, found again in the images by other means."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from scipy.stats import chisquare, kstest

from nas.data import GENERATED, generated, load, load_test
from nas.data.generated import Altered, Drawn
from nas.errors import InputError

ROOT = Path(__file__).parents[2]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ------------------------------------------------------------------------------------------ digits


def test_rotation_angles_are_even_over_the_circle() -> None:
    spot = np.zeros((28, 28), np.uint8)
    spot[12:16, 22:26] = 255  # on the axis through the centre, to its right
    turned = generated.rotated(generator(), np.stack([spot] * 600))
    rows, columns = np.array([ndimage.center_of_mass(image) for image in turned]).T - 13.5
    np.testing.assert_allclose(np.hypot(rows, columns), 10, atol=0.25)  # about the centre of the image
    assert kstest(np.arctan2(rows, columns) / (2 * np.pi) + 0.5, "uniform").pvalue > 0.01


def test_a_background_is_even_over_all_values_and_behind_the_digit() -> None:
    digit = np.zeros((200, 28, 28), np.uint8)
    digit[:, 10:18, 10:18] = 200
    made = generated.on_noise(generator(), digit)
    assert made[:, 10:18, 10:18].min() == 200
    background = made[digit == 0]
    assert chisquare(np.bincount(background, minlength=256)).pvalue > 0.01
    flat = made[:, 0, :10].astype(float)
    assert abs(np.corrcoef(flat[:, 0], flat[:, 1])[0, 1]) < 0.25


def test_variants_are_of_the_same_digits_each_used_once() -> None:
    kind = GENERATED["mnist_rotated"]
    assert isinstance(kind, Altered)
    index = generated.parts(kind, 70_000)
    assert {role: len(part) for role, part in index.items()} == {
        "train": 10_000,
        "valid": 2_000,
        "test": 50_000,
    }
    together = np.concatenate(list(index.values()))
    assert len(np.unique(together)) == 62_000
    assert kstest(together / 70_000, "uniform").pvalue > 0.01
    other = generated.parts(GENERATED["mnist_basic"], 70_000)  # type: ignore[arg-type]
    assert all(np.array_equal(index[role], other[role]) for role in index)


# ------------------------------------------------------------------------------------------ rectangles


def test_rectangles_are_outlines_of_the_published_sizes() -> None:
    images, labels = generated.rectangles(generator(), 3000)
    assert images.shape == (3000, 28, 28)
    assert set(np.unique(images)) == {0, 255}
    sides, corners = [], []
    for image, label in zip(images, labels, strict=True):
        rows, columns = np.nonzero(image)
        top, left, bottom, right = rows.min(), columns.min(), rows.max(), columns.max()
        height, width = bottom - top + 1, right - left + 1
        expected = np.zeros((28, 28), bool)
        expected[top : bottom + 1, left : right + 1] = True
        expected[top + 1 : bottom, left + 1 : right] = False
        assert np.array_equal(image > 0, expected)
        assert abs(height - width) >= 3
        assert label == (height > width)
        sides.append((height, width))
        if height <= 20:
            corners.append(top / (28 - height + 1))
    heights, widths = np.array(sides).T
    # Of all pairs that differ by 3 or more, each is as likely.
    pairs = [(h, w) for h in range(1, 29) for w in range(1, 29) if abs(h - w) >= 3]
    assert abs(heights.mean() - np.mean([h for h, _ in pairs])) < 0.7
    expected_counts = np.bincount([h for h, _ in pairs], minlength=29)[1:] * len(images) / len(pairs)
    assert chisquare(np.bincount(heights, minlength=29)[1:], expected_counts).pvalue > 0.01
    assert chisquare(np.bincount(widths, minlength=29)[1:], expected_counts).pvalue > 0.01
    assert abs(labels.mean() - 0.5) < 0.03
    assert abs(np.mean(corners) - 0.47) < 0.03  # whole places of 8 to 28: (n - 1) / 2n on average


# ------------------------------------------------------------------------------------------ convex


def in_hull(region: np.ndarray) -> np.ndarray:
    """The pixels within the convex hull of the region's."""
    points = np.argwhere(region)
    try:
        sides = ConvexHull(points).equations
    except QhullError:  # all in one line
        return region
    everywhere = np.indices(region.shape).reshape(2, -1)
    inside = np.asarray((sides[:, :2] @ everywhere + sides[:, 2:] < 1e-9).all(axis=0))
    return inside.reshape(region.shape)


def test_convex_regions_fill_their_hull_and_the_others_do_not() -> None:
    images, labels = generated.convex(generator(1), 300)
    assert set(np.unique(images)) <= {0, 255}
    assert labels.sum() == 150
    for image, label in zip(images, labels, strict=True):
        assert np.array_equal(in_hull(image > 0), image > 0) == label


def test_pairs_deny_the_convexity_of_a_notch_a_hole_and_two_parts() -> None:
    square = np.zeros((28, 28), bool)
    square[5:20, 5:20] = True
    notch, hole, parts = square.copy(), square.copy(), square.copy()
    notch[5, 12] = hole[12, 12] = parts[:, 10] = False
    corner = square.copy()
    corner[5, 5] = False
    given = np.stack([square, notch, hole, parts, corner, ~square, np.ones_like(square)])
    assert generated.convex_by_pairs(given).tolist() == [True, False, False, False, True, False, True]


def test_pairs_see_a_gap_of_one_pixel_in_either_direction() -> None:
    given = np.zeros((4, 28, 28), bool)
    given[0, 5:7, 5] = given[1, 5, 5] = True
    given[2, [5, 7], 5] = given[3, 5, [5, 7]] = True
    assert generated.convex_by_pairs(given).tolist() == [True, True, False, False]


def test_both_kinds_have_equally_many_pixels_and_no_tiny_regions() -> None:
    images, labels = generated.convex(generator(2), 3000)
    pixels = (images > 0).sum(axis=(1, 2))
    assert pixels[labels == 1].min() >= 19
    assert pixels[labels == 0].min() >= 10
    means = [pixels[labels == label].mean() for label in (0, 1)]
    assert abs(means[0] / means[1] - 1) < 0.08
    # No half-plane at all: 0.195 of the draws, and more of those that are kept.
    assert (pixels[labels == 1] == 784).mean() > 0.195


def test_the_number_of_half_planes_has_the_published_distribution() -> None:
    assert (
        generated.half_plane_regions(generator(), 4000, 0.195, 0).all(axis=(1, 2))
    ).mean() == pytest.approx(0.195, abs=0.02)


# ------------------------------------------------------------------------------------------ as data sets


@pytest.mark.slow
def test_a_set_is_the_same_every_time(tmp_path: Path) -> None:
    first, again = (load("rectangles", cache_dir=tmp_path / folder) for folder in "ab")
    assert (len(first.train), len(first.valid), first.image_shape) == (1000, 200, (28, 28, 1))
    assert (first.num_classes, first.class_names) == (2, ("wide", "tall"))
    assert first.checksum == again.checksum == "d8d4a843"
    test = load_test("rectangles", cache_dir=tmp_path / "a")
    assert len(test) == 50_000
    train = {image.tobytes() for image in first.train.images}
    assert sum(image.tobytes() in train for image in first.valid.images) < 40  # drawn apart
    small = load("rectangles", cache_dir=tmp_path / "a", subset=240, valid_fraction=0.25, image_size=14)
    assert (len(small.train), len(small.valid), small.image_shape) == (180, 60, (14, 14, 1))


def test_the_published_sizes() -> None:
    sizes = {name: kind.sizes for name, kind in GENERATED.items()}
    digits = (10_000, 2_000, 50_000)
    assert sizes == {
        "mnist_basic": digits,
        "mnist_rotated": digits,
        "mnist_background_random": digits,
        "rectangles": (1_000, 200, 50_000),
        "convex": (6_000, 2_000, 50_000),
    }
    assert all(kind.source == "mnist" for kind in GENERATED.values() if isinstance(kind, Altered))


def test_a_set_of_altered_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GENERATED, "digits_turned", Altered((1000, 200, 500), "digits", generated.rotated))
    data = load("digits_turned", cache_dir=tmp_path)
    test = load_test("digits_turned", cache_dir=tmp_path)
    assert [len(part) for part in (data.train, data.valid, test)] == [1000, 200, 500]
    assert (data.num_classes, data.image_shape, data.class_names[3]) == (10, (8, 8, 1), "3")
    monkeypatch.setitem(GENERATED, "digits_more", Altered((1000, 200, 600), "digits", generated.rotated))
    with pytest.raises(InputError, match="digits_more needs 1800 grey images of digits"):
        load("digits_more", cache_dir=tmp_path)


@pytest.mark.slow
def test_the_sets_of_mnist(tmp_path: Path) -> None:
    folder = Path(os.environ.get("TFDS_DATA_DIR", ROOT.parent / "shared" / "data" / "tfds"))
    if not (folder / "mnist").is_dir():
        pytest.skip("no MNIST: TFDS_DATA_DIR is not set and there is no ../shared/data/tfds")
    basic, noisy = (
        load(name, cache_dir=tmp_path, data_dir=folder) for name in ("mnist_basic", "mnist_background_random")
    )
    assert np.array_equal(basic.train.labels, noisy.train.labels)
    assert (noisy.train.images >= basic.train.images).all()
    assert basic.checksum == "ab8b505f"
    assert all(isinstance(GENERATED[name], Drawn) for name in ("rectangles", "convex"))
