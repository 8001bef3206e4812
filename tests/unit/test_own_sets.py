"""Folders of class folders and .npz files as data sets: what is read, how it is split, what is wrong with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nas.data import load, load_test
from nas.data.config import DataConfig
from nas.data.own_sets import keep_arrays, own_set
from nas.errors import InputError
from tests.spaces import line_of

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_CACHE_DIR", str(tmp_path / "cache"))


def images_of(
    folder: Path, count: int, value: int, size: tuple[int, int] = (6, 8), suffix: str = ".png"
) -> None:
    """``count`` colour images of ``size`` (height, width), whose red is ``value`` and whose blue is their number."""
    folder.mkdir(parents=True)
    for k in range(count):
        pixels = np.zeros((*size, 3), np.uint8)
        pixels[..., 0], pixels[..., 2] = value, k
        Image.fromarray(pixels).save(folder / f"{k:03}{suffix}")


def test_class_folders_become_classes_in_alphabetical_order(tmp_path: Path) -> None:
    images_of(tmp_path / "flowers" / "tulip", 30, 200)
    images_of(tmp_path / "flowers" / "rose", 20, 100)
    (tmp_path / "flowers" / "README.txt").write_text("not a class")
    (tmp_path / "flowers" / ".hidden").mkdir()
    data = load(f"{tmp_path}/flowers/")
    assert (data.class_names, data.num_classes, data.image_shape) == (("rose", "tulip"), 2, (6, 8, 3))
    test = load_test(f"{tmp_path}/flowers/")
    assert (len(data.train), len(data.valid), len(test)) == (41, 4, 5)
    seen = []
    for split in (data.train, data.valid, test):
        assert (split.images[:, 0, 0, 0] == np.where(split.labels == 0, 100, 200)).all()
        seen += list(zip(split.labels.tolist(), split.images[:, 0, 0, 2].tolist(), strict=True))
    assert sorted(seen) == [(0, k) for k in range(20)] + [(1, k) for k in range(30)]
    assert load(f"{tmp_path}/flowers/").checksum == data.checksum


def test_split_folders_are_the_official_splits(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("val", 3), ("test", 4)):
        images_of(tmp_path / "set" / split / "a", count, 10)
        images_of(tmp_path / "set" / split / "b", count, 20)
    data = load(str(tmp_path / "set"))
    sizes = (len(data.train), len(data.valid), len(load_test(str(tmp_path / "set"))))
    assert sizes == (24, 6, 8)
    images_of(tmp_path / "set" / "test" / "c", 1, 30)
    assert "is no class of" in line_of(load, str(tmp_path / "set"))


def test_images_are_upright_grey_where_all_are_and_resized(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for k in range(6):
            pixels = np.zeros((4, 6), np.uint8)
            pixels[0] = 250  # the upper row; turned by a right angle it is the right column
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{k}.jpg", exif=exif, quality=100)
    data = load(f"{tmp_path}/set/", valid_fraction=0.3, test_fraction=0.3)
    assert data.image_shape == (6, 4, 1)
    assert (data.train.images[:, :, -1, 0] > 200).all()
    assert (data.train.images[:, :, 0, 0] < 50).all()
    resized = load(f"{tmp_path}/set/", valid_fraction=0.3, test_fraction=0.3, image_size=3)
    assert resized.image_shape == (3, 3, 1)
    deep = (np.arange(24, dtype=np.uint16).reshape(6, 4) << 8).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "set" / "a" / "deep.png")
    data = load(f"{tmp_path}/set/", valid_fraction=0.3, test_fraction=0.3)
    test = load_test(f"{tmp_path}/set/", valid_fraction=0.3, test_fraction=0.3)
    both = np.concatenate([data.train.images, data.valid.images, test.images])
    assert (both[..., 0] == np.arange(24).reshape(6, 4)).all(axis=(1, 2)).sum() == 1


def test_a_changed_folder_is_read_again(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        images_of(tmp_path / "set" / name, 10, value)
    before = load(f"{tmp_path}/set/")
    images_of(tmp_path / "set" / "c", 10, 3)
    after = load(f"{tmp_path}/set/")
    assert (before.num_classes, after.num_classes) == (2, 3)
    assert before.checksum != after.checksum


def test_what_is_wrong_with_a_folder_is_one_line(tmp_path: Path) -> None:
    assert line_of(load, f"{tmp_path}/none/") == f"dataset: no folder {tmp_path}/none"
    (tmp_path / "empty").mkdir()
    assert "has no class folders with .png, .jpg, .jpeg files" in line_of(load, f"{tmp_path}/empty/")
    images_of(tmp_path / "set" / "a", 10, 1)
    assert line_of(load, f"{tmp_path}/set/").endswith("has one class, a; at least two are needed")
    images_of(tmp_path / "set" / "b", 10, 1, size=(7, 8))
    assert line_of(load, f"{tmp_path}/set/").endswith(
        "has images of varying size (8x6, 8x7); give image_size, such as 32"
    )
    assert load(f"{tmp_path}/set/", image_size=5).image_shape == (5, 5, 3)
    (tmp_path / "set" / "c").mkdir()
    assert line_of(load, f"{tmp_path}/set/").endswith("set/c has no .png, .jpg, .jpeg file")
    (tmp_path / "set" / "c" / "1.jpg").write_bytes(b"not an image")
    assert line_of(load, f"{tmp_path}/set/").endswith("set/c/1.jpg is not an image")
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    whole = (tmp_path / "noise.png").read_bytes()
    (tmp_path / "set" / "c" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    assert "set/c/1.jpg is damaged" in line_of(load, f"{tmp_path}/set/", image_size=4)


def test_a_name_is_a_folder_only_where_it_looks_like_one_or_holds_class_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").mkdir()  # of TFDS, say
    images_of(tmp_path / "flowers" / "rose", 1, 1)
    assert own_set("cifar10") is None
    assert own_set("mnist5k") is None
    assert own_set("flowers") == tmp_path / "flowers"
    assert own_set("./cifar10") == tmp_path / "cifar10"
    assert own_set("my.npz") == tmp_path / "my.npz"
    config = DataConfig("flowers/")
    assert (config.own, config.label, config.placed().dataset) == (True, "flowers", str(tmp_path / "flowers"))
    assert (DataConfig().own, DataConfig("emnist/letters").label) == (False, "emnist_letters")


# ----------------------------------------------------------------------------------------------------- arrays


def test_a_folder_by_the_name_of_a_set_that_is_installed_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("a", "b"):
        images_of(tmp_path / "digits" / kind, 2, 100)
    assert not DataConfig("digits").own
    assert DataConfig("digits/").own


def test_an_empty_split_and_damaged_files_are_one_line(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        images_of(tmp_path / "set" / "train" / kind, 3, 100)
        (tmp_path / "set" / "test" / kind).mkdir(parents=True)
    with pytest.raises(InputError, match=r"dataset: .*test has no \.png, .* file"):
        load(f"{tmp_path}/set/")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    half = saved(
        tmp_path, images=np.zeros((4, 5, 5), np.uint8), labels=[0, 1] * 2, test_images=np.zeros((2, 5, 5))
    )
    for path, line in (
        (tmp_path / "empty.npz", "cannot read"),
        (tmp_path / "one.npz", "is one array"),
        (half, "has test_images and no test_labels"),
    ):
        with pytest.raises(InputError, match=f"dataset: .*{line}"):
            load(str(path))


def saved(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "my.npz", **arrays)
    return str(folder / "my.npz")


def test_arrays_of_a_file(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (40, 5, 4), dtype=np.uint8)
    labels = np.repeat(["dog", "cat"], 20)
    data = load(saved(tmp_path, images=images, labels=labels))
    assert (data.image_shape, data.class_names) == ((5, 4, 1), ("cat", "dog"))
    rows = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for image, label in zip(data.train.images, data.train.labels, strict=True):
        assert rows[image[..., 0].tobytes()] == data.class_names[label]


def test_official_splits_floats_and_labels_with_gaps(tmp_path: Path) -> None:
    x, y = RNG.random((30, 3, 3, 3)).astype(np.float32), np.tile([3, 7, 9], 10)
    file = saved(tmp_path, x_train=x, y_train=y[:, None], x_test=x[:6], y_test=y[:6].astype(float))
    data, test = load(file), load_test(file)
    assert (data.class_names, len(test)) == (("3", "7", "9"), 6)
    assert sorted(map(bytes, test.images)) == sorted(map(bytes, np.rint(x[:6] * 255).astype(np.uint8)))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((9, 2, 2), np.uint8)}, "has images; it needs images and labels"),
        ({"images": np.zeros((9, 4), np.uint8), "labels": np.arange(9)}, "images has shape (9, 4), not"),
        ({"images": np.zeros((9, 3, 8, 8), np.uint8), "labels": np.arange(9)}, "channels are to be its last axis"),
        ({"images": np.zeros((9, 2, 2), np.uint8), "labels": np.arange(8)}, "labels have shape (8,), for 9 images"),
        ({"images": np.full((9, 2, 2), -3.0), "labels": np.arange(9)}, "has float64 values from -3 to -3; give uint8"),
        ({"images": np.zeros((9, 2, 2), np.uint8), "labels": np.zeros(9, int)}, "has one class, 0"),
        ({"images": np.zeros((9, 2, 2), np.uint8), "labels": np.full(9, 0.5)}, "neither whole numbers nor texts"),
        ({"images": np.array([object()]), "labels": np.arange(1)}, "Object arrays cannot be loaded"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_line(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = saved(tmp_path, **arrays)
    line = line_of(load, file)
    assert line.startswith(f"dataset: {file}")
    assert said in line


def test_no_file_and_no_array_file(tmp_path: Path) -> None:
    assert line_of(load, f"{tmp_path}/no.npz") == f"dataset: no file {tmp_path}/no.npz"
    (tmp_path / "my.npz").write_bytes(b"PK\x03\x04 and nothing else")
    assert line_of(load, f"{tmp_path}/my.npz").startswith(f"dataset: cannot read {tmp_path}/my.npz")


def test_arrays_of_a_program_are_kept_once_by_their_content() -> None:
    images, labels = RNG.integers(0, 256, (40, 5, 4), dtype=np.uint8), np.repeat([0, 1], 20)
    first = keep_arrays({"images": images, "labels": labels})
    stamp = os.stat(first).st_mtime_ns
    assert keep_arrays({"images": images.copy(), "labels": labels.tolist()}) == first
    assert os.stat(first).st_mtime_ns == stamp
    assert keep_arrays({"images": images[::-1], "labels": labels}) != first
    assert load(first).num_classes == 2
    assert "objects" in line_of(keep_arrays, {"images": np.array([object()])})
