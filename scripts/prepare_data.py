"""Prepare a TFDS image-classification set as array_record, so that ``--dataset NAME`` finds it.

python scripts/prepare_data.py cifar10
python scripts/prepare_data.py mnist --from ~/Downloads/mnist --data-dir ~/tensorflow_datasets

Or a benchmark's official files as a table, so that ``--objective table`` finds it:

python scripts/prepare_data.py nasbench201 --from ~/NATS-tss-v1_0-3ffb9-simple --data-dir ~/nas_bench
python scripts/prepare_data.py natssize --from ~/NATS-sss-v1_0-50262-simple --data-dir ~/nas_bench
python scripts/prepare_data.py hw_nas_bench --from ~/HW-NAS-Bench-v1_0.pickle --data-dir ~/nas_bench
python scripts/prepare_data.py accel_nasbench --from ~/anb_dataset_jsons.tar.gz --data-dir ~/nas_bench
python scripts/prepare_data.py accel_nasbench_surrogate --data-dir ~/nas_bench   # fits, and prints rank correlations
python scripts/prepare_data.py tables --data-dir ~/nas_bench                     # what is there, what is missing
"""

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Annotated

import tyro

from nas.data.preparation import prepare
from nas.errors import InputError
from nas.run.command_line import run
from nas.tables import (
    TABLES,
    accel_nasbench,
    bench_folder,
    hw_nas_bench,
    load_table,
    nasbench201,
    natssize,
    official,
    write_table,
)
from nas.tables.files import VARIABLE


@dataclasses.dataclass(frozen=True)
class Config:
    """Prepare a TFDS image-classification set as array_record, so that --dataset NAME finds it; or a benchmark's table
    from its official files."""

    name: Annotated[str, tyro.conf.Positional]
    """TFDS name: set, set/config or set:version, such as cifar10, emnist/letters; or a benchmark: nasbench201,
    natssize, hw_nas_bench, accel_nasbench; accel_nasbench_surrogate fits its models, tables says which are there."""
    data_dir: Path | None = None
    """Where sets are kept; default TFDS_DATA_DIR, else ~/tensorflow_datasets. Benchmarks: NAS_BENCH_DIR."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Folder with the set's files as downloaded by hand: their sums are checked, nothing is downloaded.
    Benchmarks: the official file, or the folder that its archive unpacks to."""


def needed_folder(config: Config) -> Path:
    """Where the table is kept. Raises InputError."""
    folder = bench_folder(config.data_dir)
    if folder is None:
        raise InputError(
            f"{config.name}: say where to keep the table: --data-dir FOLDER, or {VARIABLE}=FOLDER"
        )
    return folder


def needed_source(config: Config, how: str) -> Path:
    """The official files. Raises InputError, which says how to get them."""
    if config.from_ is None:
        raise InputError(f"{config.name}: nothing is downloaded: give --from; {how}")
    return config.from_.expanduser()


def prepare_nats(config: Config) -> None:
    """Convert the official files of either space; one that is more than numbers and text is refused."""
    benchmark = natssize if config.name == natssize.NAME else nasbench201
    source, folder = needed_source(config, benchmark.HOW), needed_folder(config)

    def progress(done: int, files: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done:,} of {files:,} files", end="\n" if done == files else "", file=sys.stderr)

    table = benchmark.convert(source, progress=progress)
    whole = len(table.archs) == benchmark.ARCHITECTURES
    path = folder / (benchmark.CONVERTED if whole else benchmark.PARTIAL)
    sha256 = write_table(table, path)
    print(f"{config.name} prepared: {len(table.archs):,} architectures in {path}, sha256 {sha256}")
    if not whole:
        print(f"that is not all {benchmark.ARCHITECTURES:,}: the table is found by its path alone")


def written(folder: Path, name: str, content: bytes) -> None:
    """Write a file, whole or not at all. Raises InputError."""
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{name}.partial")
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error})") from error
    print(f"{path}, sha256 {hashlib.sha256(content).hexdigest()}")


def prepare_hw_nas_bench(config: Config) -> None:
    """Latencies and energies of nasbench201's networks on six devices."""
    source, folder = needed_source(config, hw_nas_bench.HOW), needed_folder(config)
    for name, content in official.hw_nas_bench_files(source).items():
        written(folder / hw_nas_bench.NAME, name, content)
    print("hw_nas_bench prepared (not checked: its authors publish no sum)")


def prepare_accel_nasbench(config: Config) -> None:
    """The rows of Accel-NASBench."""
    source, folder = needed_source(config, accel_nasbench.HOW), needed_folder(config)
    content, known = official.accel_nasbench_file(source)
    written(folder / accel_nasbench.NAME, accel_nasbench.FILE, content)
    checked = (
        "its sum is that of the authors' archive" if known else "not checked: not the authors' archive whole"
    )
    print(f"accel_nasbench prepared ({checked})")


def fit_accel_nasbench(config: Config) -> None:
    """Fit all models of the surrogate, and print how their ranks agree with rows that they have not seen."""
    surrogate = accel_nasbench.read_surrogate(bench_folder(config.data_dir)).surrogate
    assert surrogate is not None
    print(f"{'column':22} held-out Kendall tau   the authors'")
    for target in surrogate.targets:
        theirs = surrogate.authors_tau.get(target)
        print(f"{target:22} {surrogate.model(target).kendall_tau:20.3f}   {theirs or 'not printed'}")


def say_what_there_is(config: Config) -> None:
    """Which benchmark tables are there, and how the others are got."""
    folder = bench_folder(config.data_dir)
    for name in TABLES:
        try:
            table = load_table(name, folder)
            devices = ", ".join(dict.fromkeys(c for columns in table.devices.values() for c in columns))
            print(
                f"{name}: {len(table.archs):,} architectures of {table.space}; devices: {devices or 'none'}"
            )
        except InputError as error:
            print(f"missing: {error}")


BENCHMARKS = {
    nasbench201.NAME: prepare_nats,
    natssize.NAME: prepare_nats,
    hw_nas_bench.NAME: prepare_hw_nas_bench,
    accel_nasbench.NAME: prepare_accel_nasbench,
    f"{accel_nasbench.NAME}_surrogate": fit_accel_nasbench,
    "tables": say_what_there_is,
}


def main(config: Config) -> None:
    if config.name in BENCHMARKS:
        BENCHMARKS[config.name](config)
        return
    done = prepare(
        config.name, data_dir=config.data_dir, from_folder=config.from_, progress=sys.stderr.isatty()
    )
    for file in done.unchecked:
        print(f"not checked: {file} (TFDS has no sum for it)")
    images = ", ".join(f"{count:,} {split}" for split, count in done.images.items())
    state = "was there already" if done.was_there else "prepared"
    print(
        f"{done.name} {done.version} {state}: {images} images of {done.num_classes} classes in {done.folder}"
    )


if __name__ == "__main__":
    run(main)
