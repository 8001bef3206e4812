"""Tables by name, and where their files are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from nas.errors import one_of
from nas.tables import accel_nasbench, macro, nasbench201, natssize, shipped
from nas.tables.files import VARIABLE
from nas.tables.table import SUFFIX, Table, read_table

TABLES: dict[str, Callable[[Path | None], Table]] = {
    "nasbench201": nasbench201.read,
    "nasbench_macro": macro.read,
    "natssize": natssize.read,
    "accel_nasbench": accel_nasbench.read,
    "accel_nasbench_surrogate": accel_nasbench.read_surrogate,
    "minichain": lambda _: shipped.read("minichain"),
}


def bench_folder(data_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder of benchmark files: ``data_dir``, else ``NAS_BENCH_DIR``; None where neither says."""
    chosen = data_dir or os.environ.get(VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else None


def load_table(name: str, data_dir: str | os.PathLike[str] | None = None) -> Table:
    """The table ``name``: one of TABLES, read from `bench_folder` where it is not shipped, or a file of `write_table`.

    Raises InputError, one line, where it is unknown, damaged, or not there (how to get it).
    """
    if name.endswith(SUFFIX):
        return read_table(Path(name).expanduser())
    if name not in TABLES:
        raise one_of("table", name, (*TABLES, f"a file NAME{SUFFIX}"))
    return TABLES[name](bench_folder(data_dir))
