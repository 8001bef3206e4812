"""Benchmark tables: what every architecture of a space was worth when somebody trained it, and what it cost.

A `Table` is typed columns; `TABLES` says how each published one is read. `nas.objectives.table` makes an
objective of one.
"""

from nas.tables.devices import DeviceColumn, DeviceValue
from nas.tables.loading import TABLES, bench_folder, load_table
from nas.tables.table import Column, Curve, Size, Table, Task, read_table, write_table

__all__ = [
    "TABLES",
    "Column",
    "Curve",
    "DeviceColumn",
    "DeviceValue",
    "Size",
    "Table",
    "Task",
    "bench_folder",
    "load_table",
    "read_table",
    "write_table",
]
