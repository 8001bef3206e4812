"""From the benchmarks' official files to those that the tables are read from."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nas.errors import InputError
from nas.tables import accel_nasbench, hw_nas_bench
from nas.tables.nasbench201 import ARCHITECTURES
from nas.tables.pickles import read_pickle

ACCEL_SHA256 = "3520992d42e368b7c08c99fc3f6612855b5b366bf98668a7f19d49f3131aa4ae"
"""Of anb_dataset/anb_dataset_jsons.tar.gz at github afzalxo/Accel-NASBench 4260357."""
LARGEST_PICKLE = 2**29


def hw_nas_bench_files(source: Path) -> dict[str, bytes]:
    """The files of `hw_nas_bench.read` by their names, from the authors' ``HW-NAS-Bench-v1_0.pickle``.

    Of its NAS-Bench-201 part; nothing that the pickle may ask for is run. Raises InputError.
    """
    path = source / "HW-NAS-Bench-v1_0.pickle" if source.is_dir() else source
    if not path.is_file():
        raise InputError(
            f"hw_nas_bench: there is no {path}: it is in https://github.com/GATECH-EIC/HW-NAS-Bench"
        )
    held = read_pickle(path.read_bytes(), f"hw_nas_bench: {path}", LARGEST_PICKLE)
    files = {}
    try:
        for dataset in hw_nas_bench.DATASETS:
            part = held["nasbench201"][dataset]
            names = [name for name in part if name.partition("_")[2] in hw_nas_bench.QUANTITIES]
            archs = [config["arch_str"] for config in part["config"]]
            columns = [[float(value) for value in part[name]] for name in names]
            if len(archs) != ARCHITECTURES or not names:
                raise ValueError(f"{dataset}: {len(archs):,} architectures, columns {names}")
            rows = zip(archs, *columns, strict=True)
            files[f"{dataset}.csv.gz"] = _zipped(["arch", *names], rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"hw_nas_bench: {path} is not the official file ({type(error).__name__}: {error})"
        ) from error
    return files


def accel_nasbench_file(source: Path) -> tuple[bytes, bool]:
    """The file of `accel_nasbench.read` from the authors' ``anb_dataset_jsons.tar.gz`` or the folder unpacked from it,
    and whether the archive's sum is the known one. Raises InputError."""
    known, texts = False, {}
    try:
        if source.is_dir():
            texts = {path.name: path.read_bytes() for path in source.rglob("result_*.json")}
        else:
            content = source.read_bytes()
            known = hashlib.sha256(content).hexdigest() == ACCEL_SHA256
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:  # members are read, none is unpacked
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() else None
                    if file is not None and member.name.endswith(".json"):
                        texts[member.name.rpartition("/")[2]] = file.read()
        if not texts:
            raise ValueError("no result_N.json in it")
        numbered = sorted((int(re.findall(r"\d+", name)[0]), text) for name, text in texts.items())
        rows = [_accel_row(number, json.loads(text)) for number, text in numbered]
        header = list(rows[0])
        return _zipped(header, ([row[name] for name in header] for row in rows)), known
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        raise InputError(
            f"accel_nasbench: {source} is not the authors' archive ({type(error).__name__}: {error})"
        ) from error


def _accel_row(number: int, result: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"number": number}
    row |= {name: int(value) for name, value in result["architecture"].items()}
    metrics, info = result["metrics"], result["model_info"]
    row |= {
        "val_top1": metrics["val_top1"],
        "val_top5": metrics["val_top5"],
        "train_seconds": metrics["train_time"],
    }
    row |= {"macs_m": info["macs"], "params_m": info["params"]}
    for column in accel_nasbench.DEVICES.values():
        measured = result["platform_perf"].get(column) or {}
        for kind in ("mean", "std"):
            value = measured.get(f"{column.partition('_')[0]}_{kind}")
            row[column if kind == "mean" else f"{column}_std"] = "" if value is None else value
    return row


def _zipped(header: list[str], rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return gzip.compress(text.getvalue().encode(), mtime=0)
