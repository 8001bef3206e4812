"""A prepared TFDS set to arrays of the cache: which split plays which role; decoding by several processes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from nas.cores import local_cores
from nas.data.cache import Writer
from nas.data.tfds_records import Chunk, Records
from nas.data.tfds_sets import Located
from nas.errors import InputError

_VALIDATION = ("validation", "valid", "val")
_IMAGES_WORTH_A_PROCESS = 10_000  # it takes half a second to start; so many small images take one


def decode(source: Located, image_size: int | None, writer: Writer) -> dict[str, Any]:
    """Decode all splits of use into arrays ``<role>.images`` and ``<role>.labels``; returns what they are.

    Roles: ``train``; ``test``, the official one (the validation split where the test labels are secret or
    absent); ``valid``, an official validation split beside a test split. Further splits are left alone.

    Raises ``InputError`` for a set that is not single-label image classification in uint8, for images of
    varying size without ``image_size``, and for damaged files.
    """
    records = Records(source, image_size)
    shape: tuple[int, ...] = ()
    of_role = roles(records)
    for role, split in of_role.items():
        labels = []
        with contextlib.closing(_all_chunks(records, split)) as chunks:
            first = next(chunks)
            shape = shape or first[0].shape[1:]
            with writer.array(f"{role}.images", (records.splits[split], *shape), np.uint8) as append:
                for pixels, part in itertools.chain([first], chunks):
                    if pixels.shape[1:] != shape:
                        raise records.varied(shape, pixels.shape[1:])
                    append(pixels)
                    labels.append(part)
        writer.whole(f"{role}.labels", np.concatenate(labels))
    return {
        "image_shape": shape,
        "num_classes": records.num_classes,
        "class_names": records.class_names,
        "sizes": {role: records.splits[split] for role, split in of_role.items()},
    }


def roles(records: Records) -> dict[str, str]:
    """The split that is train, and those that are test and valid where there are such, as `decode` says."""
    splits = list(records.splits)
    if "train" not in splits:
        if len(splits) == 1:
            return {"train": splits[0]}
        raise InputError(
            f"dataset: {records.source.name} has no split called train, "
            f"only {', '.join(splits) or 'empty ones'}"
        )
    valid = next((split for split in _VALIDATION if split in splits), None)
    if "test" in splits and records.first_label("test") >= 0:
        return {"train": "train", "test": "test"} | ({"valid": valid} if valid else {})
    return {"train": "train"} | ({"test": valid} if valid else {})


def _all_chunks(records: Records, split: str) -> Generator[Chunk]:
    """All chunks of ``split`` in order; of a large split they are decoded by one process a processor."""
    processes = min(len(local_cores()), records.splits[split] // _IMAGES_WORTH_A_PROCESS)
    if processes < 2:
        yield from records.chunks(split)
        return
    # Not multiprocessing: it would import the user's main module again, or fork a process that has threads.
    command = [sys.executable, "-c", f"from {__name__} import decode_part; decode_part()"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    task = {
        "source": dataclasses.asdict(records.source) | {"folder": str(records.source.folder)},
        "image_size": records.image_size,
        "split": split,
        "parts": processes,
    }
    workers = [
        subprocess.Popen(
            [*command, json.dumps(task | {"part": part})],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
        )
        for part in range(processes)
    ]
    try:
        for number in range(len(records.plan(split))):
            yield _receive(workers[number % processes], records.source.name)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def decode_part() -> None:
    """Body of a decoding process, told its task by ``sys.argv[1]``.

    For each chunk its standard output carries a line of JSON with the shape, then labels and pixels; an error
    is a line of its own, the last.
    """
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the chunks
    task = json.loads(sys.argv[1])
    source = Located(**task["source"] | {"folder": Path(task["source"]["folder"])})
    try:
        with output:
            try:
                records = Records(source, task["image_size"])
                for pixels, labels in records.chunks(task["split"], task["part"], task["parts"]):
                    output.write(json.dumps({"shape": pixels.shape}).encode() + b"\n")
                    output.write(labels.data)
                    output.write(pixels.data)
                    output.flush()
            except InputError as error:
                output.write(json.dumps({"error": str(error)}).encode() + b"\n")
    except BrokenPipeError:
        pass  # the process that asked has gone


def _receive(worker: subprocess.Popen[bytes], name: str) -> Chunk:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    head = json.loads(line) if line.endswith(b"\n") else {}
    if "error" in head:
        raise InputError(head["error"])
    if "shape" in head:
        shape = head["shape"]
        labels = np.frombuffer(worker.stdout.read(4 * shape[0]), np.int32)
        pixels = np.frombuffer(worker.stdout.read(math.prod(shape)), np.uint8)
        if pixels.size == math.prod(shape):
            return pixels.reshape(shape), labels
    raise InputError(
        f"dataset: {name}: a decoding process died (exit status {worker.wait()}); out of memory?"
    )
