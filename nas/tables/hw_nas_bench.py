"""HW-NAS-Bench (Li et al., ICLR 2021): latency and energy of all NAS-Bench-201 networks on six devices.

A file a data set, ``hw_nas_bench/DATASET.csv.gz``, a row an architecture in the official order. They are columns of
the ``nasbench201`` table where they lie beside it. Latencies are in ms, energies in mJ; those of eyeriss are
estimated, all others measured.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nas.errors import InputError
from nas.tables.devices import Devices
from nas.tables.files import unzipped
from nas.tables.table import Lazy

NAME = "hw_nas_bench"
DATASETS = ("cifar10", "cifar100", "ImageNet16-120")
QUANTITIES = {
    "latency": "latency_ms",
    "energy": "energy_mj",
    "arithmetic_intensity": "arithmetic_intensity",
}


def devices_in(folder: Path | None, archs: Sequence[str]) -> Devices:
    """The columns in the files of ``folder`` or its ``hw_nas_bench``; none where there are no files.

    Each file is read when its data set is first asked for; InputError where it is damaged, or is not of ``archs`` in
    their order.
    """
    if folder is None:
        return {}
    found = {}
    for dataset in DATASETS:
        for path in (folder / f"{dataset}.csv.gz", folder / NAME / f"{dataset}.csv.gz"):
            if path.is_file():
                found[dataset] = functools.partial(read, path, archs)
    return Lazy(found)


def read(path: Path, archs: Sequence[str]) -> dict[str, np.ndarray]:
    """One file's columns by name, ``latency_ms:edgegpu`` and so on: float64 [architecture]."""
    place = f"table {NAME}: {path}"
    try:
        header, *rows = csv.reader(io.StringIO(unzipped(path).decode()))
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    except ValueError as error:
        raise InputError(f"{place} is not a table ({error})") from error
    if columns.pop("arch", ()) != tuple(archs):
        raise InputError(f"{place}: its {len(rows):,} rows are not the table's architectures in their order")
    found = {}
    for name, texts in columns.items():
        device, _, quantity = name.partition("_")
        if quantity not in QUANTITIES:
            raise InputError(f"{place}: column {name} is none of a device's {', '.join(QUANTITIES)}")
        try:
            found[f"{QUANTITIES[quantity]}:{device}"] = np.array([float(text or "nan") for text in texts])
        except ValueError as error:
            raise InputError(f"{place}: {name}: {error}") from None
    return found
