"""What networks cost on devices: a table's columns such as ``latency_ms:edgegpu`` and ``throughput:tpuv3``.

The name of a column is QUANTITY:DEVICE; the quantity (one of UNITS) says its unit and whether more of it is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nas.errors import InputError, one_of


class Unit(NamedTuple):
    """``direction`` is 1 where more is better, -1 where less is."""

    unit: str
    direction: int


UNITS: dict[str, Unit] = {
    "latency_ms": Unit("ms", -1),
    "energy_mj": Unit("mJ", -1),
    "throughput": Unit("images/s", 1),
    "arithmetic_intensity": Unit("as its authors give it", 1),
}


class DeviceColumn(NamedTuple):
    """``values`` float64 [architecture], in the table's order; NaN where nobody measured."""

    name: str
    values: np.ndarray
    unit: str
    direction: int


class DeviceValue(NamedTuple):
    """One architecture's ``value`` in a column; NaN where nobody measured it."""

    value: float
    unit: str
    direction: int


Devices = Mapping[str, Mapping[str, np.ndarray]]
"""By data set, by name of a column: float64 [architecture]."""


def unit_of(name: str) -> Unit:
    """Of a column called QUANTITY:DEVICE. Raises InputError."""
    quantity, colon, device = name.partition(":")
    if quantity not in UNITS or not colon or not device:
        raise InputError(f"column: {name!r} is not QUANTITY:DEVICE, QUANTITY one of {', '.join(UNITS)}")
    return UNITS[quantity]


def device_column(table: str, devices: Devices, name: str, dataset: str | None) -> DeviceColumn:
    """The column ``name`` of networks for ``dataset`` (None: the first); InputError, one line, with the choices."""
    if not devices:
        raise InputError(f"table {table}: has no {name}, nor any other device's column")
    chosen = next(iter(devices)) if dataset is None else dataset
    if chosen not in devices:
        raise one_of(f"table {table}: device columns: dataset", chosen, devices)
    columns = devices[chosen]
    if name not in columns:
        raise one_of(f"table {table}: column", name, columns)
    return DeviceColumn(name, np.asarray(columns[name], np.float64), *unit_of(name))
