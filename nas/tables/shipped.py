"""The tables that come with this code, and the sheet beside each: what made it, and the sum of its file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from nas.errors import InputError
from nas.tables.table import SUFFIX, Table, read_table

FOLDER = Path(__file__).parent / "files"


def write_sheet(table: Table, path: Path, sha256: str) -> Path:
    """Write ``table``'s notes and the sum of its file ``path`` to ``NAME.json`` beside it; returns that path."""
    sheet = path.with_suffix(".json")
    try:
        sheet.write_text(json.dumps({"sha256": sha256, **table.notes}, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"table: cannot write {sheet} ({error.strerror or error})") from error
    return sheet


def read(name: str, folder: Path = FOLDER) -> Table:
    """The table ``name`` of ``folder``, its file's sum being that of its sheet; else InputError."""
    path = folder / f"{name}{SUFFIX}"
    try:
        expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"table {name}: cannot read {path} and its sheet ({error})") from error
    if found != expected:
        raise InputError(f"table {name}: {path} is damaged: its sha256 is {found}, not {expected}")
    return read_table(path)
