"""HW-NAS-Bench (Li et al., ICLR 2021): latency and energy of all NAS-Bench-201 networks on six devices.

A file a data set, ``hw_nas_bench/DATASET.csv.gz``, a row an architecture in the official order. They are columns of
the ``nasbench201`` table where they lie beside it. Latencies are in ms, energies in mJ; those of eyeriss are
estimated, all others measured.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nas.errors import InputError
from nas.tables.devices import Devices
from nas.tables.files import unzipped
from nas.tables.rows import Rows
from nas.tables.table import Lazy

NAME = "hw_nas_bench"
DATASETS = ("cifar10", "cifar100", "ImageNet16-120")
QUANTITIES = {
    "latency": "latency_ms",
    "energy": "energy_mj",
    "arithmetic_intensity": "arithmetic_intensity",
}

HOW = (
    "take HW-NAS-Bench-v1_0.pickle of https://github.com/GATECH-EIC/HW-NAS-Bench, then: "
    f"python scripts/prepare_data.py {NAME} --from HW-NAS-Bench-v1_0.pickle --data-dir FOLDER"
)


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
    rows = Rows(place, unzipped(path))
    if rows.texts("arch") != tuple(archs):
        raise InputError(f"{place}: its {rows.count:,} rows are not the table's architectures in their order")
    found = {}
    for name in rows:
        device, _, quantity = name.partition("_")
        if name != "arch" and quantity not in QUANTITIES:
            raise InputError(f"{place}: column {name} is none of a device's {', '.join(QUANTITIES)}")
        if name != "arch":
            found[f"{QUANTITIES[quantity]}:{device}"] = rows.numbers(name)
    return found
