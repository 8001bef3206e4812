"""One benchmark table as a value, and its file: one zip of arrays and a description, checked when read.

A table's rows are architectures. Its columns are typed: a `Column` says on which data a network was trained, for
how many epochs, and what was measured; train, validation and test are never one column. A column holds a `Curve`:
some or all epochs of one or several repetitions of that training.

The file, ``NAME.npz``: every array is a ``.npy`` member, ``table.json`` says what they are and has the sha256 of
each. Equal tables give equal files, byte by byte. Arrays are read when first asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nas.errors import InputError, one_of
from nas.tables.devices import DeviceColumn, Devices, device_column
from nas.tables.surrogate import Surrogate

QUANTITIES = (
    "train_accuracy",
    "train_loss",
    "valid_accuracy",
    "valid_loss",
    "test_accuracy",
    "test_loss",
)
SUFFIX = ".npz"

_FORMAT = 1
_DESCRIPTION = "table.json"


@dataclasses.dataclass(frozen=True, order=True)
class Column:
    """What was measured: ``quantity`` (one of QUANTITIES) of networks trained on ``dataset`` for ``trained`` epochs.

    The text is ``dataset/trained/quantity``, such as ``cifar10-valid/12/valid_accuracy``.
    """

    dataset: str
    trained: int
    quantity: str

    def __post_init__(self) -> None:
        if self.quantity not in QUANTITIES:
            raise one_of("column: quantity", self.quantity, QUANTITIES)

    def __str__(self) -> str:
        return f"{self.dataset}/{self.trained}/{self.quantity}"

    @classmethod
    def parse(cls, text: str) -> Column:
        """Inverse of ``str``; raises InputError."""
        rest, _, quantity = text.strip().rpartition("/")
        dataset, _, trained = rest.rpartition("/")  # a data set's own name may have a slash
        if not dataset or not trained.isdecimal():
            raise InputError(f"column: {text!r} is not DATASET/EPOCHS/QUANTITY")
        return cls(dataset, int(trained), quantity)

    def sibling(self, quantity: str) -> Column:
        """Another quantity of the same training."""
        return dataclasses.replace(self, quantity=quantity)


class Curve(NamedTuple):
    """One column: ``values`` float32 [architecture, repetition, epoch], after each of ``epochs`` (counted from 1).

    Accuracies are fractions in [0, 1]. An architecture with fewer repetitions than others has NaN behind its own;
    columns of one training have their repetitions in the same order.
    """

    epochs: tuple[int, ...]
    values: np.ndarray


class Size(NamedTuple):
    """int64 [architecture] each: parameters, and multiply-adds of one image."""

    params: np.ndarray
    macs_per_image: np.ndarray


class Cost(NamedTuple):
    """float32 [architecture, repetition] each: seconds of one epoch of training, and of one validation."""

    train_seconds: np.ndarray
    evaluate_seconds: np.ndarray


class Task(NamedTuple):
    """A benchmark's own protocol on one data set: what a search sees, what its choice is judged by, and how many
    simulated seconds it may take (None: nobody said)."""

    valid: Column
    test: Column
    budget_seconds: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """What is known of ``archs``, which are in the notation of the search space named ``space``.

    ``within`` are the assignments (`SearchSpace.restrict`'s ``narrow``) that make that space the one whose
    architectures these are. ``tasks`` are by data set, the first being the usual one; ``sizes`` by the data
    set of a column; ``costs`` by data set and epochs trained; ``devices`` are what its networks cost on
    devices, by data set (see `nas.tables.devices`). ``sampled``: the architectures are a sample of the space, and a
    search chooses among them. ``surrogate``: models that answer for those that are not there. ``notes`` say where the
    numbers come from; ``checksum`` is to be written down beside results: equal for equal files.
    """

    name: str
    space: str
    archs: tuple[str, ...]
    columns: Mapping[Column, Curve]
    sizes: Mapping[str, Size] = dataclasses.field(default_factory=dict)
    costs: Mapping[tuple[str, int], Cost] = dataclasses.field(default_factory=dict)
    devices: Devices = dataclasses.field(default_factory=dict)
    tasks: Mapping[str, Task] = dataclasses.field(default_factory=dict)
    within: tuple[str, ...] = ()
    sampled: bool = False
    surrogate: Surrogate | None = None
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    checksum: str = ""

    def require(self, column: Column, epoch: int | None = None) -> tuple[int, ...]:
        """The epochs of a column; InputError naming all that there are where it, or ``epoch`` of it, is not."""
        known = self._epochs.get(column, ())
        if not known or (epoch is not None and epoch not in known):
            wanted = f"{column}" if epoch is None else f"{column}@{epoch}"
            raise InputError(f"table {self.name}: has no {wanted}; it has {self.listed()}")
        return known

    def curve(self, column: Column) -> Curve:
        """The column; raises as ``require``."""
        self.require(column)
        return self.columns[column]

    def at(self, column: Column, epoch: int | None = None) -> np.ndarray:
        """float32 [architecture, repetition]: the column after ``epoch`` (None: its last); raises as ``require``."""
        epochs = self.require(column, epoch)
        return self.columns[column].values[:, :, -1 if epoch is None else epochs.index(epoch)]

    def mean(self, column: Column, epoch: int | None = None) -> np.ndarray:
        """float64 [architecture]: ``at``, averaged over the repetitions that there are; NaN where none is."""
        values = np.asarray(self.at(column, epoch), np.float64)
        known = ~np.isnan(values)
        total, count = np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def device(self, name: str, dataset: str | None = None) -> DeviceColumn:
        """The column QUANTITY:DEVICE, such as ``latency_ms:edgegpu``, with its unit and direction.

        Of networks for ``dataset`` (None: the first that has such columns). InputError naming those that there are.
        """
        return device_column(self.name, self.devices, name, dataset)

    def task(self, dataset: str | None = None) -> Task:
        """The protocol for ``dataset`` (None: the usual one); InputError naming those that there are."""
        if not any(column.quantity == "valid_accuracy" for column in self._epochs):
            raise InputError(
                f"table {self.name}: has no valid_accuracy, so that no search can be run on it, only {self.listed()}"
            )
        if not self.tasks:
            raise InputError(f"table {self.name}: has no protocol of its own; it has {self.listed()}")
        if dataset is not None and dataset not in self.tasks:
            raise one_of(f"table {self.name}: dataset", dataset, self.tasks)
        return self.tasks[next(iter(self.tasks)) if dataset is None else dataset]

    def listed(self) -> str:
        """The columns with their epochs, for messages: ``cifar10/200/test_accuracy@200, …``."""
        return ", ".join(f"{column}@{ranges(epochs)}" for column, epochs in sorted(self._epochs.items()))

    @functools.cached_property
    def _epochs(self) -> dict[Column, tuple[int, ...]]:
        epochs = getattr(self.columns, "epochs", None)  # of a file, without reading the arrays
        return epochs if epochs is not None else {c: curve.epochs for c, curve in self.columns.items()}


def ranges(epochs: tuple[int, ...]) -> str:
    """``1..12`` for consecutive epochs, else ``12,200``."""
    if len(epochs) > 2 and epochs == tuple(range(epochs[0], epochs[-1] + 1)):
        return f"{epochs[0]}..{epochs[-1]}"
    return ",".join(map(str, epochs))


# ------------------------------------------------------------------------------------------------------ files


def write_table(table: Table, path: str | os.PathLike[str]) -> str:
    """Write ``table`` to ``path`` (its folder is made); returns the sha256 of the file.

    The file appears whole or not at all. Raises InputError where it cannot be written.
    """
    path = Path(path)
    arrays: dict[str, np.ndarray] = {}
    for column, curve in table.columns.items():
        arrays[str(column)] = np.asarray(curve.values, np.float32)
    for dataset, size in table.sizes.items():
        for name, values in size._asdict().items():
            arrays[f"{dataset}/{name}"] = np.asarray(values, np.int64)
    for (dataset, trained), cost in table.costs.items():
        for name, values in cost._asdict().items():
            arrays[f"{dataset}/{trained}/{name}"] = np.asarray(values, np.float32)
    for dataset, columns in table.devices.items():
        for name, values in columns.items():
            arrays[f"{dataset}/{name}"] = np.asarray(values, np.float64)
    members = {name: _npy(values) for name, values in sorted(arrays.items())}
    description = {
        "format": _FORMAT,
        "name": table.name,
        "space": table.space,
        "within": list(table.within),
        "sampled": table.sampled,
        "columns": {str(column): list(curve.epochs) for column, curve in sorted(table.columns.items())},
        "sizes": sorted(table.sizes),
        "costs": sorted(f"{dataset}/{trained}" for dataset, trained in table.costs),
        "devices": {dataset: sorted(columns) for dataset, columns in sorted(table.devices.items())},
        "tasks": {name: [str(task.valid), str(task.test)] for name, task in table.tasks.items()},
        "budget_seconds": {
            name: task.budget_seconds for name, task in table.tasks.items() if task.budget_seconds is not None
        },
        "notes": dict(table.notes),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in members.items()},
        "archs": list(table.archs),
    }
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as file:
            text = json.dumps(description, indent=1, allow_nan=False, ensure_ascii=False).encode()
            for name, content in {_DESCRIPTION: text, **{f"{n}.npy": c for n, c in members.items()}}.items():
                file.writestr(_member(name), content)
        partial.replace(path)
        with open(path, "rb") as written:
            return hashlib.file_digest(written, "sha256").hexdigest()
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InputError(f"table: cannot write {path} ({error.strerror or error})") from error


def _member(name: str) -> zipfile.ZipInfo:
    """A member without the time of its making."""
    member = zipfile.ZipInfo(name)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o644 << 16
    return member


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(values), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def read_table(path: str | os.PathLike[str]) -> Table:
    """The table in a file of `write_table`; InputError where it is absent, damaged or something else.

    Arrays are read, and their sums checked, when they are first asked for.
    """
    path = Path(path)
    with _damage(path):
        with zipfile.ZipFile(path) as file:
            content = file.read(_DESCRIPTION)
        description = json.loads(content)
        if description["format"] != _FORMAT:
            raise InputError(f"table: {path} has format {description['format']}, not {_FORMAT}")
        arrays = _Arrays(path, dict(description["sha256"]))
        epochs = {Column.parse(text): tuple(known) for text, known in description["columns"].items()}
        budgets = description.get("budget_seconds", {})
        tasks = {
            name: Task(*map(Column.parse, texts), budget_seconds=budgets.get(name))
            for name, texts in description["tasks"].items()
        }
        trainings = [text.rpartition("/") for text in description["costs"]]
        return Table(
            name=description["name"],
            space=description["space"],
            archs=tuple(description["archs"]),
            columns=_Columns(epochs, arrays),
            sizes=Lazy({name: functools.partial(arrays.record, Size, name) for name in description["sizes"]}),
            costs=Lazy(
                {
                    (dataset, int(trained)): functools.partial(arrays.record, Cost, f"{dataset}/{trained}")
                    for dataset, _, trained in trainings
                }
            ),
            devices={
                dataset: Lazy({name: functools.partial(arrays.load, f"{dataset}/{name}") for name in names})
                for dataset, names in description.get("devices", {}).items()
            },
            tasks=tasks,
            within=tuple(description["within"]),
            sampled=bool(description.get("sampled", False)),
            notes=dict(description["notes"]),
            checksum=checksum(content),
        )


def checksum(content: bytes) -> str:
    """Of what a table was made from."""
    return hashlib.sha256(content).hexdigest()[:16]


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What goes wrong in reading ``path`` becomes one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"table: there is no file {path}") from error
    except OSError as error:
        raise InputError(f"table: cannot read {path} ({error.strerror or error})") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"table: {path} is damaged or no table ({error})") from error
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"table: {path} is no table ({type(error).__name__}: {error})") from error


@dataclasses.dataclass(frozen=True)
class _Arrays:
    """The arrays of a file, by name."""

    path: Path
    sha256: Mapping[str, str]

    def load(self, name: str) -> np.ndarray:
        with _damage(self.path):
            with zipfile.ZipFile(self.path) as file:
                content = file.read(f"{name}.npy")
            if hashlib.sha256(content).hexdigest() != self.sha256[name]:
                raise InputError(f"table: {self.path} is damaged: {name} has another sum than it had")
            return np.load(io.BytesIO(content), allow_pickle=False)

    def record(self, kind: Callable[..., Any], prefix: str) -> Any:
        fields = getattr(kind, "_fields", ())
        return kind(*(self.load(f"{prefix}/{field}") for field in fields))


class Lazy(Mapping[Any, Any]):
    """Values that are made when they are first asked for."""

    def __init__(self, makers: Mapping[Any, Callable[[], Any]]) -> None:
        self._makers, self._made = dict(makers), {}

    def __getitem__(self, key: Any) -> Any:
        if key not in self._made:
            self._made[key] = self._makers[key]()
        return self._made[key]

    def __contains__(self, key: object) -> bool:
        return key in self._makers

    def __iter__(self) -> Iterator[Any]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class _Columns(Lazy):
    """The columns of a file, whose ``epochs`` are known without reading them."""

    def __init__(self, epochs: Mapping[Column, tuple[int, ...]], arrays: _Arrays) -> None:
        self.epochs = dict(epochs)

        def make(column: Column) -> Curve:
            return Curve(self.epochs[column], arrays.load(str(column)))

        super().__init__({column: functools.partial(make, column) for column in epochs})
