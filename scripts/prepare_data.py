"""Prepare a TFDS image-classification set as array_record, so that ``--dataset NAME`` finds it.

python scripts/prepare_data.py cifar10
python scripts/prepare_data.py mnist --from ~/Downloads/mnist --data-dir ~/tensorflow_datasets

Or NAS-Bench-201's official files as one table, so that ``--objective table`` finds it:

python scripts/prepare_data.py nasbench201 --from ~/NATS-tss-v1_0-3ffb9-simple --data-dir ~/nas_bench
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from nas.data.preparation import prepare
from nas.errors import InputError
from nas.run.command_line import run
from nas.tables import bench_folder, nasbench201, write_table
from nas.tables.files import VARIABLE


@dataclasses.dataclass(frozen=True)
class Config:
    """Prepare a TFDS image-classification set as array_record, so that --dataset NAME finds it; or the table of
    nasbench201 from its official files."""

    name: Annotated[str, tyro.conf.Positional]
    """TFDS name: set, set/config or set:version, such as cifar10, emnist/letters; or nasbench201."""
    data_dir: Path | None = None
    """Where sets are kept; default TFDS_DATA_DIR, else ~/tensorflow_datasets. nasbench201: NAS_BENCH_DIR."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Folder with the set's files as downloaded by hand: their sums are checked, nothing is downloaded.
    nasbench201: the unpacked archive of NATS-Bench's topology space."""


def prepare_nasbench201(config: Config) -> None:
    """Convert the official files; one that is more than numbers and text is refused."""
    if config.from_ is None:
        raise InputError(f"nasbench201: nothing is downloaded: give --from; {nasbench201.HOW}")
    folder = bench_folder(config.data_dir)
    if folder is None:
        raise InputError(f"nasbench201: say where to keep the table: --data-dir FOLDER, or {VARIABLE}=FOLDER")

    def progress(done: int, files: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done:,} of {files:,} files", end="\n" if done == files else "", file=sys.stderr)

    table = nasbench201.convert(config.from_.expanduser(), progress=progress)
    whole = len(table.archs) == nasbench201.ARCHITECTURES
    path = folder / (nasbench201.CONVERTED if whole else nasbench201.PARTIAL)
    sha256 = write_table(table, path)
    print(f"nasbench201 prepared: {len(table.archs):,} architectures in {path}, sha256 {sha256}")
    if not whole:
        print(f"that is not all {nasbench201.ARCHITECTURES:,}: the table is found by its path alone")


def main(config: Config) -> None:
    if config.name == nasbench201.NAME:
        prepare_nasbench201(config)
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
