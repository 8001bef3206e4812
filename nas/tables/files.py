"""What the readers of published tables share: where files are, and reading gzip."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

from nas.errors import InputError

VARIABLE = "NAS_BENCH_DIR"


def find(table: str, folder: Path | None, names: Sequence[str], how: str) -> Path:
    """The first of ``names`` in ``folder`` or its subfolder named as the ``table``; InputError says ``how``."""
    if folder is None:
        place = f"{VARIABLE}=FOLDER or --data-dir FOLDER"
        raise InputError(f"table {table}: say where {' or '.join(names)} is: {place}; to get it: {how}")
    for name in names:
        for path in (folder / name, folder / table / name):
            if path.is_file():
                return path
    raise InputError(
        f"table {table}: no {' or '.join(names)} in {folder} or {folder / table}; to get it: {how}"
    )


def unzipped(path: Path) -> bytes:
    """What a .gz file holds; InputError where it is damaged or cannot be read."""
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"table: {path} is damaged ({error})") from error
    except OSError as error:
        raise InputError(f"table: cannot read {path} ({error.strerror or error})") from error
