"""``load`` and ``load_test``: a set's name and a seed to memory-mapped splits."""

from __future__ import annotations

import dataclasses
import functools
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nas.cache import cache_folder
from nas.data import own_sets
from nas.data.cache import Entry, Writer, cached
from nas.data.dataset import Dataset, Split
from nas.data.decoding import decode
from nas.data.embedded import EMBEDDED, read_embedded, version_of
from nas.data.encoded import SAMPLE, Encoded, read_labels, source_of, view_size
from nas.data.generated import GENERATED, VERSION, Altered, parts, stream
from nas.data.pixels import chunks_of, pixel_statistics, resize
from nas.data.splits import stratified
from nas.data.tfds_sets import Located, locate
from nas.errors import InputError

LARGEST_SIDE = 10_000  # pixels; a larger image is a slip
_TEST_STREAM, _SUBSET_STREAM, _VALID_STREAM, _OFFICIAL_VALID_STREAM = range(4)


def load(
    name: str,
    *,
    seed: int = 0,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    subset: int | None = None,
    image_size: int | None = None,
    resize: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Train and validation images of ``name``: an embedded or generated set, ``set[/config][:version]`` of TFDS, a
    folder of class folders of images, or an ``.npz`` file (`nas.data.own_sets`).

    The first call decodes the set into the cache (``cache_dir``, else ``NAS_CACHE_DIR``, else
    ``~/.cache/nas``); later ones, in any process, map it into memory. The splits are stratified by class and
    depend on the arguments alone:

    * test: the official split. A set without one gives up ``test_fraction`` of its images, drawn by ``seed``,
      the same whatever the other arguments are.
    * ``subset``: use only so many of the images left, for train and validation together. Test stays whole.
    * validation: ``valid_fraction`` of these. Where a set has both a validation and a test split of its own,
      its validation split is used: all of it, or ``valid_fraction * subset`` images of it.

    ``image_size`` scales the centred square of each image to that many pixels a side; without it images keep
    their size, which must then be one. With ``resize`` images of a folder or a TFDS set are not decoded: those of the
    splits are `nas.data.encoded.Encoded`, which scale the short side to ``resize`` and show the central ``image_size``
    (default: 7/8 of it); the statistics are those of a sample. ``data_dir`` stands in for ``TFDS_DATA_DIR``.

    Raises ``InputError`` for whatever of this cannot be had: the line names the set and what to do.
    """
    request = _Request(name, seed, valid_fraction, test_fraction, subset, image_size, resize)
    pool, split = _entries(request, data_dir, cache_dir)
    meta = pool.meta
    what = "numbers" if request.resize else "images"
    parts = (f"train.{what}", "train.labels", f"valid.{what}", "valid.labels")
    train = _split(split, "train", request, data_dir)
    height, width, channels = train.images.shape[1:]
    return Dataset(
        name=name,
        version=meta["version"],
        train=train,
        valid=_split(split, "valid", request, data_dir),
        num_classes=meta["num_classes"],
        image_shape=(height, width, channels),
        mean=_frozen(split.meta["mean"]),
        std=_frozen(split.meta["std"]),
        class_names=tuple(meta["class_names"]),
        split_seed=seed,
        checksum=f"{zlib.crc32(b''.join(split.crc32[part].to_bytes(4, 'big') for part in parts)):08x}",
    )


def load_test(
    name: str,
    *,
    seed: int = 0,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    subset: int | None = None,
    image_size: int | None = None,
    resize: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Split:
    """The test images that belong to ``load`` with the same arguments. For the final training only."""
    request = _Request(name, seed, valid_fraction, test_fraction, subset, image_size, resize)
    pool, split = _entries(request, data_dir, cache_dir)
    return _split(pool if "test" in pool.meta["sizes"] else split, "test", request, data_dir)


@dataclasses.dataclass(frozen=True)
class _Request:
    """The arguments that decide which images come back, checked as far as they can be without the set."""

    name: str
    seed: int
    valid_fraction: float
    test_fraction: float
    subset: int | None
    image_size: int | None
    resize: int | None

    def __post_init__(self) -> None:
        for field in ("valid_fraction", "test_fraction"):
            value = getattr(self, field)
            if not 0 < value < 1:
                raise InputError(f"dataset: {field}={value} is not between 0 and 1 (both excluded)")
        for field, least in (("seed", 0), ("subset", 1), ("image_size", 1), ("resize", 1)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise InputError(f"dataset: {field}={value} is not at least {least}")
            if field in ("image_size", "resize") and (value or 0) > LARGEST_SIDE:
                raise InputError(f"dataset: {field}={value} is more than {LARGEST_SIDE}")
        if self.resize is not None:
            view_size(self.image_size, self.resize)

    def draw(self, stream: int) -> np.random.Generator:
        """Each purpose has its own stream, so that a smaller subset does not change the test split."""
        return np.random.default_rng((self.seed, stream))


def _entries(
    request: _Request,
    data_dir: str | os.PathLike[str] | None,
    cache_dir: str | os.PathLike[str] | None,
) -> tuple[Entry, Entry]:
    """The decoded set and its splits, two entries of the cache."""
    root = cache_folder("data", cache_dir)
    if request.resize is None:
        key, build_pool = _pool(request.name, request.image_size, data_dir, root)
    else:
        key, build_pool = _labels(request.name, _files(request.name, data_dir))
    pool = cached(root / key, build_pool)
    drawn = f"seed{request.seed}-valid{request.valid_fraction!r}"
    if "test" not in pool.meta["sizes"]:
        drawn += f"-test{request.test_fraction!r}"
    if request.subset is not None:
        drawn += f"-subset{request.subset}"
    if request.resize is None:
        return pool, cached(root / f"{key}-{drawn}", lambda writer: _draw(request, pool, writer))
    drawn += f"-{view_size(request.image_size, request.resize)}of{request.resize}px"
    return pool, cached(
        root / f"{key}-{drawn}", lambda writer: _draw_numbers(request, pool, data_dir, writer)
    )


def _files(name: str, data_dir: str | os.PathLike[str] | None) -> Path | Located:
    """Where the files of a set are whose images can be decoded one by one. Raises InputError."""
    own = own_sets.own_set(name)
    if name in EMBEDDED or name in GENERATED or (own is not None and own.suffix == ".npz"):
        raise InputError(f"dataset: resize is for a folder of images or a TFDS set, {name} is none")
    if own is None:
        return locate(name, data_dir)
    own_sets.check(own)
    return own


def _labels(name: str, where: Path | Located) -> tuple[str, Callable[[Writer], dict[str, Any]]]:
    """As `_pool`, for images that stay in their files."""
    if isinstance(where, Path):
        name, version = where.stem.replace(" ", "_"), f"own-{own_sets.identity(where)}"
        identity = version
    else:
        version, identity = where.version, f"{where.version}-{where.fingerprint}"
    key = f"{name.split(':')[0].replace('/', '-')}-{identity}-labels"
    return key, lambda writer: {"version": version, **read_labels(where, writer)}


def _pool(
    name: str, image_size: int | None, data_dir: str | os.PathLike[str] | None, root: Path
) -> tuple[str, Callable[[Writer], dict[str, Any]]]:
    """Where in the cache a decoded set is, by all that tells its content apart, and what decodes it."""
    if name in EMBEDDED:
        version = identity = f"{EMBEDDED[name].package}-{version_of(name)}"
        read = functools.partial(_embedded, name, image_size)
    elif name in GENERATED:
        version = identity = f"generated-{VERSION}"
        kind, source = GENERATED[name], None
        if isinstance(kind, Altered):
            source_key, build = _pool(kind.source, None, data_dir, root)
            identity += f"-{source_key}"
            source = functools.partial(cached, root / source_key, build)
        read = functools.partial(_generated, name, source, image_size)
    elif own := own_sets.own_set(name):
        own_sets.check(own)
        version = identity = f"own-{own_sets.identity(own)}"
        read = functools.partial(own_sets.read, own, image_size)
        name = own.stem.replace(" ", "_")
    else:
        located = locate(name, data_dir)
        version, identity = located.version, f"{located.version}-{located.fingerprint}"
        read = functools.partial(decode, located, image_size)
    key = f"{name.split(':')[0].replace('/', '-')}-{identity}"
    if image_size is not None:
        key += f"-{image_size}px"
    return key, lambda writer: {"version": version, **read(writer)}


def _generated(
    name: str, source: Callable[[], Entry] | None, image_size: int | None, writer: Writer
) -> dict[str, Any]:
    kind = GENERATED[name]
    made: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if isinstance(kind, Altered):
        assert source is not None
        entry = source()
        roles = entry.meta["sizes"]
        images, labels = (
            np.concatenate([entry.array(f"{role}.{what}") for role in roles]) for what in ("images", "labels")
        )
        if len(labels) < sum(kind.sizes) or images.shape[-1] != 1:
            raise InputError(f"dataset: {name} needs {sum(kind.sizes)} grey images of {kind.source}")
        for role, index in parts(kind, len(labels)).items():
            made[role] = kind.alter(stream(role), images[index, ..., 0]), labels[index]
        class_names = entry.meta["class_names"]
    else:
        for role, count in zip(("train", "valid", "test"), kind.sizes, strict=True):
            made[role] = kind.draw(stream(role), count)
        class_names = list(kind.class_names)
    shape: tuple[int, ...] = ()
    for role, (images, labels) in made.items():
        images = images[..., None]
        if image_size is not None:
            images = np.stack([resize(image, image_size) for image in images])
        shape = images.shape[1:]
        writer.whole(f"{role}.images", images)
        writer.whole(f"{role}.labels", labels)
    return {
        "image_shape": shape,
        "num_classes": len(class_names),
        "class_names": class_names,
        "sizes": {role: len(labels) for role, (_, labels) in made.items()},
    }


def _embedded(name: str, image_size: int | None, writer: Writer) -> dict[str, Any]:
    images, labels = read_embedded(name)
    if image_size is not None:
        images = np.stack([resize(image, image_size) for image in images])
    writer.whole("train.images", images)
    writer.whole("train.labels", labels)
    classes = int(labels.max()) + 1
    return {
        "image_shape": images.shape[1:],
        "num_classes": classes,
        "class_names": [str(label) for label in range(classes)],
        "sizes": {"train": len(labels)},
    }


def _draw(request: _Request, pool: Entry, writer: Writer) -> dict[str, Any]:
    """Write the splits of ``pool``; returns the statistics of the training pixels."""
    chosen = _chosen(request, pool)
    for role, (source, indices) in chosen.items():
        _write(writer, role, pool, source, indices)
    mean, std = pixel_statistics(pool.array("train.images"), chosen["train"][1])
    return {"mean": mean, "std": std}


def _draw_numbers(
    request: _Request, pool: Entry, data_dir: str | os.PathLike[str] | None, writer: Writer
) -> dict[str, Any]:
    """As `_draw`, with the numbers of the images instead of them, and the statistics of a sample."""
    chosen = _chosen(request, pool)
    for role, (source, indices) in chosen.items():
        writer.whole(f"{role}.numbers", indices)
        writer.whole(f"{role}.labels", pool.array(f"{source}.labels")[indices])
    sample = _encoded(request, data_dir, "train", chosen["train"][1])[:SAMPLE]
    mean, std = pixel_statistics(sample, np.arange(len(sample)))
    return {"mean": mean, "std": std, "sources": {role: source for role, (source, _) in chosen.items()}}


def _chosen(request: _Request, pool: Entry) -> dict[str, tuple[str, np.ndarray]]:
    """Of each split that is drawn, the role in the pool that its images have, and which of these."""
    sizes = pool.meta["sizes"]
    labels = np.asarray(pool.array("train.labels"))
    classes = len(np.unique(labels))
    left = np.arange(len(labels))  # what train, and validation unless it is official, are drawn from
    chosen: dict[str, tuple[str, np.ndarray]] = {}
    if "test" not in sizes:
        count = _share(request, "test_fraction", len(left), classes)
        test, left = stratified(labels, count, request.draw(_TEST_STREAM))
        chosen["test"] = "train", test

    most = len(left) + sizes.get("valid", 0)
    used = most if request.subset is None else request.subset
    if used > most:
        raise InputError(
            f"dataset: subset={used} is more than the {most} images {request.name} has to search with"
        )
    if "valid" in sizes:
        valid_count = sizes["valid"]
        if request.subset is not None:
            valid_count = _share(request, "valid_fraction", used, classes)
        train_count = used - valid_count
        if train_count > len(left) or valid_count > sizes["valid"]:
            raise InputError(
                f"dataset: subset={used} with valid_fraction={request.valid_fraction} needs {train_count} "
                f"training and {valid_count} validation images of {request.name}, which has {len(left)} and "
                f"{sizes['valid']}"
            )
        train = _some(labels, left, train_count, request.draw(_SUBSET_STREAM))
        official = np.asarray(pool.array("valid.labels"))
        valid = _some(
            official, np.arange(len(official)), valid_count, request.draw(_OFFICIAL_VALID_STREAM), keep=0
        )
        return {**chosen, "valid": ("valid", valid), "train": ("train", train)}
    valid_count = _share(request, "valid_fraction", used, classes)
    left = _some(labels, left, used, request.draw(_SUBSET_STREAM))
    valid, train = stratified(labels[left], valid_count, request.draw(_VALID_STREAM))
    return {**chosen, "valid": ("train", left[valid]), "train": ("train", left[train])}


def _share(request: _Request, field: str, total: int, classes: int) -> int:
    """``field`` as a number of the ``total`` images, if both parts can show every class."""
    fraction = getattr(request, field)
    count = round(fraction * total)
    if min(count, total - count) < classes:
        what = "images" if request.subset is None else f"images (subset={request.subset})"
        raise InputError(
            f"dataset: {field}={fraction} splits the {total} {what} of {request.name} into "
            f"{total - count} and {count}; each part needs at least one for each of the {classes} classes"
        )
    return count


def _some(
    labels: np.ndarray, indices: np.ndarray, count: int, rng: np.random.Generator, *, keep: int = 1
) -> np.ndarray:
    """``count`` of ``indices``, stratified, at least ``keep`` of each class, in random order."""
    _, rest = stratified(labels[indices], len(indices) - count, rng, keep=keep)
    return indices[rest]


def _write(writer: Writer, role: str, pool: Entry, source: str, indices: np.ndarray) -> None:
    """Copy images and labels of the pool's ``source`` split, in the order of ``indices``."""
    images = pool.array(f"{source}.images")
    with writer.array(f"{role}.images", (len(indices), *images.shape[1:]), np.uint8) as append:
        for chunk in chunks_of(images, indices):
            append(chunk)
    writer.whole(f"{role}.labels", pool.array(f"{source}.labels")[indices])


def _split(entry: Entry, role: str, request: _Request, data_dir: str | os.PathLike[str] | None) -> Split:
    labels = entry.array(f"{role}.labels")
    if request.resize is None:
        return Split(images=entry.array(f"{role}.images"), labels=labels)
    drawn = "sources" in entry.meta  # else the set's own test split
    source, numbers = (
        (entry.meta["sources"][role], entry.array(f"{role}.numbers"))
        if drawn
        else (role, np.arange(len(labels)))
    )
    return Split(images=_encoded(request, data_dir, source, numbers), labels=labels)


def _encoded(
    request: _Request, data_dir: str | os.PathLike[str] | None, source: str, numbers: np.ndarray
) -> Encoded:
    assert request.resize is not None
    where = _files(request.name, data_dir)
    size = view_size(request.image_size, request.resize)
    return Encoded(source_of(where, source), numbers, size, request.resize)


def _frozen(values: list[float]) -> np.ndarray:
    array = np.asarray(values, np.float32)
    array.flags.writeable = False
    return array
