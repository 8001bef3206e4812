"""A user's own images: a folder of class folders with PNG or JPEG files, or an ``.npz`` file of arrays.

A folder is ``flowers/rose/1.jpg flowers/tulip/2.png …``, or has such folders below ``train/``, and ``test/`` or
``valid/`` beside it, which are then the official splits. Classes are the folders' names in alphabetical order.

An ``.npz`` has ``images`` and ``labels`` (or ``x_train`` and ``y_train``, as Keras has), and ``test_images`` and
``test_labels``, ``valid_images`` and ``valid_labels`` where there are official splits; ``class_names`` where labels
count from 0. Images are uint8, or floats from 0 to 1, [n, height, width] or [n, height, width, channel]; labels are
any whole numbers or texts [n].
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.cache import cache_folder
from nas.data.cache import Writer
from nas.data.embedded import EMBEDDED
from nas.data.generated import GENERATED
from nas.data.pixels import MODES, chunks_of, resize
from nas.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
# The names that the arrays of a split, and the folder of a split, go by.
ARRAYS = {
    "train": (("images", "labels"), ("train_images", "train_labels"), ("x_train", "y_train"), ("x", "y"), ("X", "y")),
    "valid": (("valid_images", "valid_labels"), ("val_images", "val_labels"), ("x_valid", "y_valid"),
              ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}  # fmt: skip
FOLDERS = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation"),
    "test": ("test", "testing"),
}
_CHUNK = 256  # images decoded at a time


def own_set(name: str) -> Path | None:
    """The folder or file that a data set's name is, None where it is the name of a set.

    What ends in ``.npz`` is a file, what begins or ends as a path (``./x``, ``~/x``, ``/x``, ``x/``) a folder, and so
    is any other name of a folder with class folders of images in it, but that of a set that comes with the install.
    """
    if name in EMBEDDED or name in GENERATED:
        return None
    path = Path(name).expanduser()
    if name.endswith(".npz") or name.endswith(os.sep) or name.startswith((".", "~", os.sep)):
        return path.absolute()
    return path.absolute() if path.is_dir() and _split_folders(path) is not None else None


def identity(path: Path) -> str:
    """Eight digits that change with the files' names, sizes and times: images already decoded are found by them."""
    digest = hashlib.sha256(f"{path}\0".encode())
    for file in [path] if path.is_file() else _files(path):
        stat = file.stat()
        digest.update(f"{file.relative_to(path.parent)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:8]


def check(path: Path) -> None:
    """Raises InputError where there is no such folder or file."""
    if path.suffix == ".npz":
        if not path.is_file():
            raise InputError(f"dataset: no file {path}")
    elif not path.is_dir():
        raise InputError(f"dataset: no folder {path}")
    elif _split_folders(path) is None:
        raise InputError(
            f"dataset: {path} has no class folders with {', '.join(SUFFIXES)} files, as in {path.name}/rose/1.jpg"
        )


def read(path: Path, image_size: int | None, writer: Writer) -> dict[str, Any]:
    """Write all splits to the cache; returns what they are, as `nas.data.decoding.decode` does. Raises InputError."""
    try:
        return (_read_arrays if path.is_file() else _read_folder)(path, image_size, writer)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        where = getattr(error, "filename", None) or path
        raise InputError(
            f"dataset: cannot read {where} ({getattr(error, 'strerror', None) or error})"
        ) from error


def keep_arrays(arrays: Mapping[str, Any]) -> str:
    """The path of an ``.npz`` file in the cache with ``arrays``, named by their content: workers read it there."""
    found = {name: np.asarray(value) for name, value in arrays.items()}
    digest = hashlib.sha256()
    for name, values in sorted(found.items()):
        if values.dtype.hasobject:
            raise InputError(f"dataset: {name} is an array of objects, not of numbers")
        digest.update(f"{name}\0{values.dtype.str}\0{values.shape}\0".encode())
        digest.update(np.ascontiguousarray(values).data)
    path = cache_folder("arrays") / f"arrays-{digest.hexdigest()[:12]}.npz"
    if not path.is_file():
        partial = path.with_name(f".{path.name}.{os.getpid()}.npz")
        try:
            np.savez(partial, **found)  # pyright: ignore[reportArgumentType]
            partial.replace(path)
        except OSError as error:
            raise InputError(f"dataset: cannot write {path} ({error.strerror}); set NAS_CACHE_DIR") from error
    return str(path)


# ---------------------------------------------------------------------------------------------------- folders


def _files(folder: Path) -> list[Path]:
    """All image files below ``folder``, in order."""
    found = []
    for below, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(below, name) for name in sorted(names) if _is_image(name)]
    return found


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _class_folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _split_folders(folder: Path) -> dict[str, Path] | None:
    """The folder of class folders of each split; None where there are none with images."""
    children = {child.name.lower(): child for child in _class_folders(folder)}
    found = {
        role: children[name]
        for role, names in FOLDERS.items()
        for name in names
        if name in children and _class_folders(children[name])
    }
    if "train" not in found:
        found = {"train": folder}
    some = any(_is_image(file.name) for of in _class_folders(found["train"]) for file in of.iterdir())
    return found if some else None


def class_files(path: Path) -> tuple[list[str], dict[str, tuple[list[Path], list[int]]]]:
    """The classes' names, and files and labels of each split of a folder that passed `check`. Raises InputError."""
    splits = _split_folders(path) or {}
    classes = [folder.name for folder in _class_folders(splits["train"])]
    files: dict[str, tuple[list[Path], list[int]]] = {}
    for role, folder in splits.items():
        named: list[Path] = []
        labels: list[int] = []
        for of in _class_folders(folder):
            if of.name not in classes:
                raise InputError(f"dataset: {of} is no class of {splits['train']}: {', '.join(classes)}")
            images = [file for file in sorted(of.iterdir()) if _is_image(file.name)]
            if not images and role == "train":
                raise InputError(f"dataset: {of} has no {', '.join(SUFFIXES)} file")
            named += images
            labels += [classes.index(of.name)] * len(images)
        if not named:
            raise InputError(
                f"dataset: {folder} has no {', '.join(SUFFIXES)} file; remove it, or put some there"
            )
        files[role] = named, labels
    if len(classes) < 2:
        raise InputError(f"dataset: {path} has one class, {classes[0]}; at least two are needed")
    return classes, files


def _read_folder(path: Path, image_size: int | None, writer: Writer) -> dict[str, Any]:
    classes, files = class_files(path)
    shape = _common_shape([file for named, _ in files.values() for file in named], path, image_size)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for role, (named, labels) in files.items():
            with writer.array(f"{role}.images", (len(named), *shape), np.uint8) as append:
                for start in range(0, len(named), _CHUNK):
                    some = named[start : start + _CHUNK]
                    append(np.stack(list(pool.map(lambda file: _decoded(file, shape[2], image_size), some))))
            writer.whole(f"{role}.labels", np.array(labels, np.int32))
    return {
        "image_shape": shape,
        "num_classes": len(classes),
        "class_names": classes,
        "sizes": {role: len(labels) for role, (_, labels) in files.items()},
    }


def _common_shape(files: list[Path], path: Path, image_size: int | None) -> tuple[int, int, int]:
    """Height, width and channels: 1 where every image is grey, else 3."""
    sizes: dict[tuple[int, int], Path] = {}
    grey = True
    for file in files:
        with _opened(file) as image:
            # Orientations that exchange width and height.
            with _damage(file):
                turned = image.format == "JPEG" and image.getexif().get(0x0112, 1) >= 5
            width, height = image.size
            sizes.setdefault((height, width) if turned else (width, height), file)
            grey = grey and image.mode in ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L")
    if image_size is not None:
        return image_size, image_size, 1 if grey else 3
    if len(sizes) > 1:
        one, other = list(sizes)[:2]
        raise InputError(
            f"dataset: {path} has images of varying size ({one[0]}x{one[1]}, {other[0]}x{other[1]}); "
            "give image_size, such as 32"
        )
    ((width, height),) = sizes
    return height, width, 1 if grey else 3


def _opened(file: Path) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with _damage(file, but=UnidentifiedImageError):
            return Image.open(file)
    except UnidentifiedImageError:
        raise InputError(f"dataset: {file} is not an image") from None


@contextlib.contextmanager
def _damage(file: Path, but: tuple[type[Exception], ...] | type[Exception] = ()) -> Iterator[None]:
    """What Pillow raises of a damaged ``file``, or of one that decompresses to a memory's worth, as InputError."""
    from PIL import Image

    try:
        yield
    except but:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"dataset: {file} is damaged ({error})") from None


def _decoded(file: Path, channels: int, image_size: int | None) -> np.ndarray:
    """Uint8 [height, width, channels], upright."""
    from PIL import Image, ImageOps

    with _opened(file) as image, _damage(file):
        image = ImageOps.exif_transpose(image) if image.format == "JPEG" else image
        if image.mode.startswith("I"):  # 16 bits a pixel
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        pixels = np.asarray(image.convert(MODES[channels]))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return pixels if image_size is None else resize(pixels, image_size)


# ----------------------------------------------------------------------------------------------------- arrays


def _read_arrays(path: Path, image_size: int | None, writer: Writer) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            opened = np.load(file, allow_pickle=False)
            if isinstance(opened, np.ndarray):
                raise InputError(
                    f"dataset: {path} is one array (.npy); give it as images with labels, by np.savez"
                )
            with opened:
                arrays = {name: opened[name] for name in opened.files}
    except ValueError as error:  # what is no array of numbers or text
        raise InputError(f"dataset: {path}: {error}") from None
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for role, pairs in ARRAYS.items():
        for images, labels in pairs:
            if images in arrays and labels in arrays:
                found[role] = _split(path, images, arrays[images], arrays[labels])
                break
            if role != "train" and (images in arrays or labels in arrays):
                there, lacks = (images, labels) if images in arrays else (labels, images)
                raise InputError(f"dataset: {path} has {there} and no {lacks}, but {', '.join(arrays)}")
    if "train" not in found:
        raise InputError(
            f"dataset: {path} has {', '.join(arrays) or 'no arrays'}; it needs images and labels, "
            "or x_train and y_train"
        )
    values = np.unique(found["train"][1])
    names = [str(value) for value in arrays.get("class_names", values)]
    if (
        "class_names" in arrays
        and values.dtype.kind in "iu"
        and not 0 <= values.min() <= values.max() < len(names)
    ):
        raise InputError(
            f"dataset: {path} has labels from {values.min()} to {values.max()}, but {len(names)} class_names"
        )
    if "class_names" in arrays and values.dtype.kind in "iu":
        values = np.arange(len(names))
    if len(values) < 2:
        raise InputError(f"dataset: {path} has one class, {names[0]}; at least two are needed")
    shape = found["train"][0].shape[1:]
    for role, (images, labels) in found.items():
        unknown = np.setdiff1d(labels, values)
        if len(unknown):
            raise InputError(f"dataset: {path}: the label {unknown[0]} of {role} is none of train")
        if images.shape[1:] != found["train"][0].shape[1:]:
            raise InputError(
                f"dataset: {path}: images of {role} are {images.shape[1:]}, those of train {shape}"
            )
        writer.whole(f"{role}.labels", np.searchsorted(values, labels).astype(np.int32))
        if image_size is None:
            writer.whole(f"{role}.images", images)
            continue
        if shape[2] not in MODES:
            raise InputError(
                f"dataset: {path}: images of {shape[2]} channels cannot be resized, only of 1, 3 or 4"
            )
        resized = (len(images), image_size, image_size, images.shape[3])
        with writer.array(f"{role}.images", resized, np.uint8) as append:
            for chunk in chunks_of(images, np.arange(len(images))):
                append(np.stack([resize(image, image_size) for image in chunk]))
    return {
        "image_shape": shape if image_size is None else (image_size, image_size, shape[2]),
        "num_classes": len(values),
        "class_names": names,
        "sizes": {role: len(labels) for role, (_, labels) in found.items()},
    }


def _split(path: Path, name: str, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images as uint8 [n, H, W, C] and labels [n]. Raises InputError."""
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(
            f"dataset: {path}: {name} has shape {images.shape}, not [n, height, width] or [n, height, width, channel]"
        )
    if images.shape[1] in (1, 3, 4) and images.shape[3] not in (1, 3, 4):
        raise InputError(
            f"dataset: {path}: {name} has shape {images.shape}: channels are to be its last axis"
        )
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (len(images),):
        raise InputError(f"dataset: {path}: labels have shape {labels.shape}, for {len(images)} images")
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iuUSb":
        raise InputError(f"dataset: {path}: labels are {labels.dtype}, neither whole numbers nor texts")
    return _bytes(path, name, images), labels


def _bytes(path: Path, name: str, images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    if images.dtype == bool:
        return images.astype(np.uint8) * np.uint8(255)
    low, high = (float(value) for value in (images.min(), images.max()))
    if images.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(images * 255).astype(np.uint8)
    if images.dtype.kind in "iu" and low >= 0 and high <= 255:
        return images.astype(np.uint8)
    raise InputError(
        f"dataset: {path}: {name} has {images.dtype} values from {low:g} to {high:g}; "
        "give uint8, or floats from 0 to 1"
    )
