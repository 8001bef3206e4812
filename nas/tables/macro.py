"""NAS-Bench-Macro (Su et al. 2021): all 6,561 networks of eight layers with three candidate blocks each, CIFAR-10.

An architecture is eight digits, a layer each: 0 identity, 1 and 2 inverted bottlenecks (kernel 3 and expansion 3,
kernel 5 and expansion 6). Every one was trained three times for 50 epochs; the file has the best test accuracy
of each training, and no validation: no search can be run on it, but scores can be ranked against it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from nas.errors import InputError
from nas.tables.files import find, unzipped
from nas.tables.table import Column, Curve, Size, Table, checksum

FILE = "nas-bench-macro_cifar10.json.gz"
TEST = Column("cifar10", 50, "test_accuracy")


HOW = "gzip data/nas-bench-macro_cifar10.json of https://github.com/xiusu/NAS-Bench-Macro, and put it there"


def read(folder: Path | None) -> Table:
    """The table from the authors' file, gzipped, in ``folder`` or its ``nasbench_macro``. Raises InputError."""
    path = find("nasbench_macro", folder, [FILE], HOW)
    content = unzipped(path)
    try:
        records = json.loads(content)
        archs = tuple(sorted(records))
        accuracy = np.array([records[arch]["test_acc"] for arch in archs], np.float64) / 100
        params = np.array([records[arch]["params"] for arch in archs], np.int64)
        macs = np.array([records[arch]["flops"] for arch in archs], np.int64)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"table nasbench_macro: {path} is not the published file ({type(error).__name__}: {error})"
        ) from error
    return Table(
        name="nasbench_macro",
        space="nasbench_macro",
        archs=archs,
        columns={TEST: Curve((50,), accuracy[:, :, None].astype(np.float32))},
        sizes={"cifar10": Size(params, macs)},
        notes={
            "source": "github xiusu/NAS-Bench-Macro, Apache-2.0 (Su et al. 2021)",
            "accuracy": "the best of 50 epochs on test images, by three trainings",
        },
        checksum=checksum(content),
    )
