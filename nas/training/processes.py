"""Several processes as one: each runs the same program on its own devices, and one of them writes.

A script joins the others where ``JAX_COORDINATOR_ADDRESS`` (HOST:PORT), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``
say so. All of them then ask the same strategy and train the same trials, every batch split over all devices; the first
one alone has the record and the checkpoints, and tells the others what they need to go on.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from nas.ending import ProcessLost
from nas.errors import InputError

OF_THE_PROGRAM = ("RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "INVALID_ARGUMENT")
"""What XLA says of a program, or of the memory that it takes, whatever other processes do."""
ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join() -> None:
    """Join the processes that the environment names; nothing where it names none. Raises InputError.

    Those that do not write say nothing either but what is wrong.
    """
    numbers = [os.environ.get(name, "") for name in (COUNT, NUMBER)]
    if not all(number.isdecimal() for number in numbers) or int(numbers[1]) >= int(numbers[0]):
        raise InputError(
            f"processes: {ADDRESS} needs {COUNT}, their number, and {NUMBER}, this one's from 0, not "
            f"{numbers[0]!r} and {numbers[1]!r}"
        )
    # Without it the library ends this process with a dump of its own when it hears that another one died.
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(os.environ[ADDRESS], int(numbers[0]), int(numbers[1]))
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise InputError(f"processes: {str(error).splitlines()[0]}") from None
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 for the rest of the process


_own: list[Path] = []


def leave(code: int) -> NoReturn:
    """End this process when all are done; the first one, whom the others would miss, a little later."""
    for folder in _own:
        shutil.rmtree(folder, ignore_errors=True)
    multihost_utils.sync_global_devices("done")
    if is_writer():
        time.sleep(2)
    sys.stdout.flush()
    os._exit(code)  # not by the library's way out, which ends with a dump where another process was quicker


def is_writer() -> bool:
    """Whether this process writes. Alone it does, and is not asked for its devices: they may be its workers'."""
    return not joined() or jax.process_index() == 0


def joined() -> bool:
    """Whether this is one of several processes."""
    return jax.distributed.is_initialized()


def from_first(content: bytes) -> bytes:
    """What the first process calls this with, in all of them."""
    if not joined():
        return content
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    words = np.zeros(-(-size // 4), np.uint32)
    if is_writer():
        words = np.frombuffer(content.ljust(4 * len(words), b"\0"), np.uint32)
    return np.asarray(multihost_utils.broadcast_one_to_all(words)).tobytes()[:size]


def agreed(value: Any) -> Any:
    """The JSON value that the first process calls this with, in all of them."""
    return json.loads(from_first(json.dumps(value).encode()))


def own_folder(folder: Path) -> Path:
    """``folder`` in the process that writes; in the others a copy of its files, which goes when they end."""
    if not joined():
        return folder
    packed = io.BytesIO()
    if is_writer():
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.is_file():
                    archive.add(path, path.name)
    content = from_first(packed.getvalue())
    if is_writer():
        return folder
    own = Path(tempfile.mkdtemp(prefix="nas-process-"))
    _own.append(own)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(own, filter="data")
    return own


def check(error: Exception) -> None:
    """Raises ProcessLost where ``error`` is none of a program, but of the processes that run it."""
    if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
        text = str(error).strip().splitlines()[0]
        if not any(code in text for code in OF_THE_PROGRAM):
            raise ProcessLost(f"another process of {jax.process_count()} is lost") from error
