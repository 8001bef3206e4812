"""The append-only record of a run: reading, checking and writing it. Nothing here imports jax or matplotlib."""

from nas.record.events import TRIALS
from nas.record.files import CONFIG, ENV
from nas.record.reading import find_runs, is_run, read_run, record_difference, same_record, without_times
from nas.record.record import Record
from nas.record.run import MAY_DIFFER, Observation, Run

__all__ = [
    "CONFIG",
    "ENV",
    "MAY_DIFFER",
    "TRIALS",
    "Observation",
    "Record",
    "Run",
    "find_runs",
    "is_run",
    "read_run",
    "record_difference",
    "same_record",
    "without_times",
]
