"""Accel-NASBench (Ahmad et al., DAC 2024): 5,125 networks' ImageNet accuracy, and their speed on six accelerators.

``accel_nasbench``: the rows alone, a sample of the space ``accel_nasbench``, in the order of their multiply-adds; a
search chooses among them. ``accel_nasbench_surrogate``: models fitted to the rows, which answer for the whole space.

Accuracy is that of ImageNet's validation images after the paper's shortened training of 16 epochs, from one seed; there
is no other, so what a search sees is also what its choice is judged by. Throughput is in images a second, latency in
ms. Multiply-adds are as the authors count them, with more than convolutions.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from nas.errors import InputError
from nas.tables.files import find, unzipped
from nas.tables.rows import Rows
from nas.tables.surrogate import Surrogate
from nas.tables.table import Column, Cost, Curve, Size, Table, Task, checksum

NAME = "accel_nasbench"
FILE = "anb.csv.gz"
DATASET, EPOCHS = "imagenet", 16
VALID = Column(DATASET, EPOCHS, "valid_accuracy")
TEST = Column(DATASET, EPOCHS, "test_accuracy")
STAGES = 7
PARTS = {"e": "expansion", "k": "kernel", "l": "depth", "se": "se"}
DEVICES = {
    **{f"throughput:{d}": f"throughput_{d}" for d in ("tpuv2", "tpuv3", "a100", "3090", "zcu102", "vck190")},
    **{f"latency_ms:{device}": f"latency_{device}" for device in ("zcu102", "vck190")},
}
AUTHORS_TAU = {"valid_accuracy": 0.917}
"""Of the authors' boosted trees on held-out rows, where their README prints it (seed 3 of their random splits)."""

HOW = (
    "convert anb_dataset/anb_dataset_jsons.tar.gz of https://github.com/afzalxo/Accel-NASBench: "
    f"python scripts/prepare_data.py {NAME} --from anb_dataset_jsons.tar.gz --data-dir FOLDER"
)


def read(folder: Path | None) -> Table:
    """The rows in ``folder`` or its ``accel_nasbench``. Raises InputError."""
    path = find(NAME, folder, [FILE], HOW)
    content = unzipped(path)
    rows = Rows(f"table {NAME}: {path}", content)
    texts = zip(*(rows.texts(f"block{b}_{p}") for b in range(STAGES) for p in PARTS), strict=True)
    archs = ["_".join(_stage(row[4 * b : 4 * b + 4]) for b in range(STAGES)) for row in texts]
    macs = rows.numbers("macs_m")
    trainings: dict[str, list[int]] = {}
    for row in np.argsort(macs, kind="stable"):
        trainings.setdefault(archs[row], []).append(int(row))
    first = np.array([found[0] for found in trainings.values()])
    most = max(map(len, trainings.values()))

    def by_training(name: str, unit: float) -> np.ndarray:
        """float32 [architecture, repetition]."""
        numbers, values = rows.numbers(name) / unit, np.full((len(first), most), np.nan, np.float32)
        for k, found in enumerate(trainings.values()):
            values[k, : len(found)] = numbers[found]
        return values

    accuracy = by_training("val_top1", 100)[:, :, None]
    return Table(
        name=NAME,
        space=NAME,
        archs=tuple(trainings),
        columns={VALID: Curve((EPOCHS,), accuracy), TEST: Curve((EPOCHS,), accuracy)},
        sizes={
            DATASET: Size(
                *(np.rint(rows.numbers(n)[first] * 1e6).astype(np.int64) for n in ("params_m", "macs_m"))
            )
        },
        costs={
            (DATASET, EPOCHS): Cost(
                by_training("train_seconds", EPOCHS), np.zeros((len(first), 1), np.float32)
            )
        },
        devices={DATASET: {name: rows.numbers(column)[first] for name, column in DEVICES.items()}},
        tasks={DATASET: Task(VALID, TEST)},
        sampled=True,
        notes={
            "source": "github afzalxo/Accel-NASBench (Ahmad et al. 2024)",
            "accuracy": "ImageNet's validation images, the only ones the benchmark has",
            "seconds": "of the training, as measured by its authors",
        },
        checksum=checksum(content),
    )


def _stage(texts: tuple[str, ...]) -> str:
    return "".join(f"{part}{text}" for part, text in zip(PARTS, texts, strict=True))


def read_surrogate(folder: Path | None) -> Table:
    """The rows, with models that answer for architectures that are none of them. Raises InputError."""
    rows = read(folder)
    numbers = np.array([_numbers(text) for text in rows.archs], np.float64)
    targets = {
        "valid_accuracy": rows.mean(VALID),
        "train_seconds": np.nanmean(rows.costs[DATASET, EPOCHS].train_seconds.astype(np.float64), axis=1)
        * EPOCHS,
        **rows.devices[DATASET],
    }
    names = tuple(f"{name}_{stage}" for stage in range(1, STAGES + 1) for name in PARTS.values())
    name = f"{NAME}_surrogate"
    surrogate = Surrogate(names, numbers, targets, rows.checksum, AUTHORS_TAU)
    notes = {
        **rows.notes,
        "surrogate": "boosted trees fitted to 0.8 of the rows, 0.1 to stop by, 0.1 held out",
    }
    return dataclasses.replace(rows, name=name, sampled=False, surrogate=surrogate, notes=notes)


def _numbers(text: str) -> list[int]:
    """The choices of an architecture in the space's order."""
    digits = text.replace("se", " ").replace("e", " ").replace("k", " ").replace("l", " ").replace("_", " ")
    found = [int(digit) for digit in digits.split()]
    if len(found) != 4 * STAGES:
        raise InputError(f"table {NAME}: {text} is not an architecture")
    return found
