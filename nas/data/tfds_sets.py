"""TFDS sets on disk: which names there are, where a prepared set is, and how to get one that is not there."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import re
import shlex
from pathlib import Path
from typing import Any

from nas.data.embedded import EMBEDDED
from nas.data.generated import GENERATED, Altered
from nas.errors import InputError
from nas.storage import fetched, remote

_NAME = re.compile(r"(?P<set>[a-z][a-z0-9_]*)(/(?P<config>[\w.-]+))?(:(?P<version>\d+\.\d+\.\d+))?", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Located:
    """A prepared set on disk. ``fingerprint`` changes when its metadata or the size of a shard does."""

    name: str
    folder: Path
    version: str
    fingerprint: str


def tfds_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where TFDS sets are: ``data_dir``, ``TFDS_DATA_DIR`` or TFDS's own default."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    return Path(chosen).expanduser().absolute()


def prepare_command(name: str, data_dir: Path) -> str:
    """The command line that prepares ``name`` in ``data_dir``."""
    return f"python scripts/prepare_data.py {name} --data-dir {shlex.quote(str(data_dir))}"


def import_tfds() -> Any:
    """The package, imported when it is needed; ``InputError`` when it is absent."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(
            f"dataset: TFDS sets need tensorflow-datasets and array_record ({error}): "
            f"pip install -r requirements.txt"
        ) from error
    return tensorflow_datasets


def parse_name(name: str) -> tuple[str, str | None, str | None]:
    """``set[/config][:version]`` to its three parts; ``InputError`` when it is not of that form."""
    match = _NAME.fullmatch(name)
    if match is None:
        own = ", ".join([*EMBEDDED, *GENERATED])
        raise InputError(f"dataset: {name!r} is not one of {own} or a TFDS name like cifar10")
    return match["set"], match["config"], match["version"]


def known_set(name: str) -> None:
    """Raise ``InputError`` with the nearest names unless TFDS has a set of this name."""
    base = parse_name(name)[0]
    if base in EMBEDDED:
        raise InputError(f"dataset: {base} needs no preparation: it comes with {EMBEDDED[base].package}")
    if made := GENERATED.get(base):
        out_of = f"of {made.source}" if isinstance(made, Altered) else "by rule"
        raise InputError(f"dataset: {base} needs no preparation: it is made {out_of} when it is first loaded")
    builders = import_tfds().list_builders(with_community_datasets=False)
    if base not in builders:
        near = difflib.get_close_matches(base, [*EMBEDDED, *GENERATED, *builders], n=3)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise InputError(
            f"dataset: {name!r} is not one of {', '.join([*EMBEDDED, *GENERATED])} or a TFDS set{hint}"
        )


def locate(name: str, data_dir: str | os.PathLike[str] | None = None) -> Located:
    """Find ``set[/config][:version]`` below the TFDS folder; without a version the newest one.

    A folder that is a URL is downloaded once (`nas.storage`).

    Raises ``InputError`` for a name that TFDS does not know, for a set that is not there (with the command
    that prepares it), and where several configurations leave a choice.
    """
    base, config, version = parse_name(name)
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR")
    url = remote(str(chosen)) if chosen else None
    root = fetched(url, base) if url else tfds_folder(data_dir)
    folder = root / base
    try:
        if folder.is_dir() and config is None and not _versions(folder):
            configs = sorted(child.name for child in folder.iterdir() if _versions(child))
            if len(configs) > 1:
                raise InputError(f"dataset: {name} has several configurations: {_listed(base, configs)}")
            config = configs[0] if configs else None
        folder = folder / config if config else folder
        versions = _versions(folder)
        if not versions:
            known_set(name)
            raise InputError(f"dataset: {name} is not in {root}; get it with: {prepare_command(name, root)}")
        if version is not None and version not in versions:
            raise InputError(f"dataset: {folder} has no version {version}, only {', '.join(versions)}")
        version = version or versions[-1]
        return Located(name, folder / version, version, _fingerprint(folder / version))
    except OSError as error:
        raise InputError(f"dataset: {name}: cannot read {error.filename} ({error.strerror})") from error


def _versions(folder: Path) -> list[str]:
    """Versions prepared in the folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [
        child.name
        for child in folder.iterdir()
        if _VERSION.fullmatch(child.name) and (child / "dataset_info.json").is_file()
    ]
    return sorted(found, key=lambda version: tuple(map(int, version.split("."))))


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        if path.suffix in (".json", ".txt"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def _listed(base: str, configs: list[str]) -> str:
    return ", ".join(f"{base}/{config}" for config in configs)
