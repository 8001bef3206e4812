"""The size space of NATS-Bench (Dong et al. 2021): all 32,768 networks of ``natssize``, from its official files.

Those are as NAS-Bench-201's: a bzip2 pickle an architecture, read by the same restricted unpickler. The networks were
trained for 1, 12 and 90 epochs; the protocol is to search by the validation of 12 and to report the test of 90.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from nas.errors import InputError
from nas.tables import nasbench201
from nas.tables.files import find
from nas.tables.table import Column, Table, Task, read_table

NAME = "natssize"
ARCHITECTURES = 8**5
CONVERTED = "natssize.npz"
PARTIAL = "natssize-partial.npz"
ARCHIVE = "NATS-sss-v1_0-50262-simple"
HOW = (
    f"unpack {ARCHIVE}.tar (https://github.com/D-X-Y/NATS-Bench), then: "
    f"python scripts/prepare_data.py {NAME} --from {ARCHIVE} --data-dir FOLDER"
)


def tasks() -> dict[str, Task]:
    """The benchmark's protocol for its three data sets; search budgets as for the topology space."""
    return {
        name: Task(
            dataclasses.replace(task.valid, trained=12),
            Column(name, 90, "test_accuracy"),
            task.budget_seconds,
        )
        for name, task in nasbench201.tasks().items()
    }


def read(folder: Path | None) -> Table:
    """The converted table in ``folder`` or its ``natssize``. Raises InputError."""
    return read_table(find(NAME, folder, [CONVERTED], HOW))


def convert(source: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Table:
    """A table of every epoch and repetition in the official files of ``source``. Raises InputError."""
    table = nasbench201.convert(source, progress=progress)
    if any(text.count(":") != 4 for text in table.archs):
        raise InputError(
            f"{NAME}: {source} holds {table.archs[0]}, which is of another space: unpack {ARCHIVE}.tar"
        )
    return dataclasses.replace(table, name=NAME, space=NAME, tasks=tasks())
