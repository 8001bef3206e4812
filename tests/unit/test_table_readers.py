"""Benchmark tables as files: our own format, the restricted unpickler, and what is said when something is wrong."""

from __future__ import annotations

import bz2
import collections
import dataclasses
import gzip
import json
import os
import pickle
import zipfile

import numpy as np
import prepare_data
import pytest

from nas.errors import InputError
from nas.objectives.base import TrialFailed
from nas.objectives.table import TableObjective
from nas.space import Architecture, Integer, SearchSpace
from nas.tables import (
    TABLES,
    Column,
    Curve,
    Size,
    Table,
    Task,
    hw_nas_bench,
    load_table,
    macro,
    nasbench201,
    natssize,
    official,
    read_table,
    write_table,
)
from nas.tables.table import Cost
from search_spaces import SPACES
from tests.benchmarks import bench_files

VALID = Column("digits", 4, "valid_accuracy")
TEST = Column("digits", 4, "test_accuracy")
TEXT = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"


def small_table() -> Table:
    rng = np.random.default_rng(0)
    values = rng.random((3, 2, 4)).astype(np.float32)
    values[1, 1] = np.nan
    return Table(
        name="small",
        space="toy",
        archs=("a=1", "a=2", "a=3"),
        columns={VALID: Curve((1, 2, 3, 4), values), TEST: Curve((4,), values[:, :, 3:])},
        sizes={"digits": Size(np.array([10, 20, 30]), np.array([1, 2, 3]))},
        costs={("digits", 4): Cost(np.ones((3, 2), np.float32), np.full((3, 1), 0.5, np.float32))},
        tasks={"digits": Task(VALID, TEST)},
        within=("a=1..3",),
        notes={"command": "make_table"},
    )


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


# ------------------------------------------------------------------------------------------------- our own format


def test_a_written_table_comes_back(tmp_path):
    table = small_table()
    write_table(table, tmp_path / "new" / "small.npz")
    again = load_table(str(tmp_path / "new" / "small.npz"))
    for field in ("name", "space", "archs", "tasks", "within", "notes"):
        assert getattr(again, field) == getattr(table, field)
    assert again.listed() == table.listed() == "digits/4/test_accuracy@4, digits/4/valid_accuracy@1..4"
    assert set(again.columns) == set(table.columns)
    for column, curve in table.columns.items():
        assert again.columns[column].epochs == curve.epochs
        np.testing.assert_array_equal(again.columns[column].values, curve.values)
    np.testing.assert_array_equal(again.sizes["digits"].params, [10, 20, 30])
    np.testing.assert_array_equal(again.costs["digits", 4].evaluate_seconds, [[0.5]] * 3)
    assert again.mean(VALID, 2)[1] == pytest.approx(float(table.columns[VALID].values[1, 0, 1]))


def test_equal_tables_are_equal_files_and_others_have_other_checksums(tmp_path):
    sums = [write_table(small_table(), tmp_path / f"{i}.npz") for i in (1, 2)]
    assert sums[0] == sums[1]
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    other = small_table()
    other.columns[VALID].values[0, 0, 0] += 0.001
    assert write_table(other, tmp_path / "3.npz") != sums[0]
    checksums = [read_table(tmp_path / f"{i}.npz").checksum for i in (1, 2, 3)]
    assert checksums[0] == checksums[1] != checksums[2]


def test_a_changed_array_is_found_out(tmp_path):
    path = tmp_path / "small.npz"
    write_table(small_table(), path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = f"{VALID}.npy"
    members[name] = members[name][:-4] + np.float32(0.5).tobytes()
    with zipfile.ZipFile(path, "w") as file:  # a zip that is whole, of other numbers
        for member, content in members.items():
            file.writestr(member, content)
    table = read_table(path)
    assert table.at(TEST).shape == (3, 2)
    with pytest.raises(InputError) as caught:
        table.curve(VALID)
    assert f"{path} is damaged: {VALID} has another sum" in one_line(caught)


def test_damaged_and_other_files_are_one_line(tmp_path):
    path = tmp_path / "small.npz"
    write_table(small_table(), path)
    content = path.read_bytes()
    broken = {
        "half": content[: len(content) // 2],
        "flipped": content[:200] + bytes([content[200] ^ 255]) + content[201:],
        "text": b"not a zip",
        "empty": b"",
    }
    for what, wrong in broken.items():
        (tmp_path / f"{what}.npz").write_bytes(wrong)
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))

    def read_all(path) -> None:
        table = read_table(path)
        for column in table.columns:
            table.curve(column)

    for what in (*broken, "arrays"):
        with pytest.raises(InputError) as caught:
            read_all(tmp_path / f"{what}.npz")
        assert f"{what}.npz" in one_line(caught), what
    with pytest.raises(InputError, match=r"table: there is no file .*/none\.npz"):
        read_table(tmp_path / "none.npz")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"table: cannot write .*/file/t\.npz"):
        write_table(small_table(), tmp_path / "file" / "t.npz")


# ---------------------------------------------------------------------------------------------------------- columns


def test_a_column_that_is_not_there_names_those_that_are():
    table = small_table()
    has = "it has digits/4/test_accuracy@4, digits/4/valid_accuracy@1..4"
    for column, epoch, wanted in (
        (TEST, 2, "digits/4/test_accuracy@2"),
        (Column("digits", 200, "valid_accuracy"), None, "digits/200/valid_accuracy"),
        (Column("mnist", 4, "valid_accuracy"), 4, "mnist/4/valid_accuracy@4"),
    ):
        with pytest.raises(InputError) as caught:
            table.at(column, epoch)
        assert one_line(caught) == f"table small: has no {wanted}; {has}"
    with pytest.raises(InputError, match=r"small: dataset: 'mnist' is not one of digits"):
        table.task("mnist")


def test_columns_as_text():
    for column in (VALID, Column("emnist/letters", 12, "train_loss")):
        assert Column.parse(str(column)) == column
    for text in ("digits", "digits/4", "digits/x/valid_accuracy", "/4/valid_accuracy"):
        with pytest.raises(InputError):
            Column.parse(text)
    with pytest.raises(InputError, match="quantity: 'accuracy' is not one of train_accuracy"):
        Column("digits", 4, "accuracy")


def test_what_is_missing_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("NAS_BENCH_DIR", raising=False)
    for name, how in (
        ("nasbench201", "scripts/prepare_data.py nasbench201 --from"),
        ("nasbench_macro", "xiusu"),
    ):
        for folder, place in ((None, "NAS_BENCH_DIR=FOLDER or --data-dir FOLDER"), (tmp_path, str(tmp_path))):
            with pytest.raises(InputError) as caught:
                load_table(name, folder)
            line = one_line(caught)
            assert how in line
            assert place in line
    known = ", ".join(TABLES) + r", a file NAME\.npz"
    with pytest.raises(InputError, match=rf"table: 'nasbench' is not one of {known}"):
        load_table("nasbench")


# ----------------------------------------------------------------------------------------------- the compact table


def write_compact(folder, rows: list[dict[str, str]], latencies: str | None = None) -> None:
    text = "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)])
    (folder / "nb201.csv.gz").write_bytes(gzip.compress(text.encode()))
    if latencies is not None:
        (folder / "latency_ms.csv.gz").write_bytes(gzip.compress(latencies.encode()))


def compact_row() -> dict[str, str]:
    row = {"index": "0", "arch": TEXT}
    row |= {f"params_m_{short}": "0.802426" for short in ("c10", "c100", "in16")}
    row |= {"mflops_c10": "113.9514", "mflops_c100": "113.9572", "mflops_in16": "28.49548"}
    return row | dict.fromkeys(nasbench201._COMPACT_COLUMNS, "63.364")


def test_the_compact_tables_numbers(tmp_path):
    """Exact multiply-adds out of seven digits; costs by the latency, in proportion to the images."""
    write_compact(tmp_path, [compact_row()], "index,1080ti_256\n0,20.0\n")
    table = load_table("nasbench201", tmp_path)
    assert table.archs == (TEXT,)
    macs = [int(table.sizes[name].macs_per_image[0]) for name in ("cifar10", "cifar100", "ImageNet16-120")]
    assert macs == [113_951_360, 113_957_120, 28_495_360]
    assert table.at(Column("cifar10-valid", 12, "valid_accuracy"))[0, 0] == np.float32(0.63364)
    half, whole = table.costs["cifar10-valid", 12], table.costs["cifar100", 12]
    assert half.train_seconds[0, 0] == pytest.approx(20 * 0.4288)
    assert whole.train_seconds[0, 0] == pytest.approx(2 * 20 * 0.4288)
    assert half.evaluate_seconds[0, 0] == pytest.approx(5 * whole.evaluate_seconds[0, 0])
    assert "estimated" in table.notes["seconds"]


def test_a_compact_table_without_latencies_has_no_costs(tmp_path):
    write_compact(tmp_path, [compact_row()])
    table = load_table("nasbench201", tmp_path)
    assert not table.costs
    assert table.notes["seconds"] == "unknown: no latency_ms.csv.gz beside it"


def test_damaged_compact_tables_are_one_line(tmp_path):
    row = compact_row()
    without = {name: value for name, value in row.items() if name != "c10_test_e200"}
    for rows, says in (
        ([without], "column: 'c10_test_e200' is not one of index, arch"),
        ([row | {"c10_test_e200": "?"}], "could not convert string to float"),
        ([row, {"index": "1"}], "is not a table"),
    ):
        write_compact(tmp_path, rows)
        with pytest.raises(InputError) as caught:
            load_table("nasbench201", tmp_path)
        assert says in one_line(caught)
    write_compact(tmp_path, [row], "index,1080ti_256\n0,20.0\n1,20.0\n")
    with pytest.raises(InputError, match=r"latency_ms\.csv\.gz has 2 rows, .*nb201\.csv\.gz has 1"):
        load_table("nasbench201", tmp_path)
    (tmp_path / "nb201.csv.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(InputError, match=r"nb201\.csv\.gz is damaged"):
        load_table("nasbench201", tmp_path)


def test_macro(tmp_path):
    records = {
        "22212220": {"test_acc": [93.0, 93.2, 93.4], "params": 7, "flops": 9},
        "00000000": {"test_acc": [80.0, 81.0, 82.0], "params": 1, "flops": 2},
    }
    path = tmp_path / macro.FILE
    path.write_bytes(gzip.compress(json.dumps(records).encode()))
    table = load_table("nasbench_macro", tmp_path)
    assert table.archs == ("00000000", "22212220")
    assert table.mean(macro.TEST, 50) == pytest.approx([0.81, 0.932])
    assert table.sizes["cifar10"].params.tolist() == [1, 7]
    with pytest.raises(
        InputError, match="has no cifar10/50/valid_accuracy; it has cifar10/50/test_accuracy@50"
    ):
        table.at(Column("cifar10", 50, "valid_accuracy"))
    with pytest.raises(InputError, match="has no valid_accuracy, so that no search can be run on it"):
        table.task()
    path.write_bytes(gzip.compress(b"[]x"))
    with pytest.raises(InputError, match="is not the published file"):
        load_table("nasbench_macro", tmp_path)


# ----------------------------------------------------------------------------------------------- the official files


def official_record(index: int = 7, *, seeds=(777, 888), text: str = TEXT) -> dict:
    """A record of the official form: numbers are NumPy scalars, epochs count from 0."""
    results = collections.OrderedDict()
    for seed in seeds:
        results["cifar10-valid", seed] = {
            "train_acc1es": {0: 10.0 + seed / 100, 1: 20.0},
            "train_losses": {0: 2.0, 1: 1.5},
            "train_times": collections.OrderedDict({0: np.float64(7.0), 1: np.float64(7.0)}),
            "params": np.float64(0.129306),
            "flop": 15.64737,
            "eval_acc1es": {"x-valid@0": 11.0, "x-valid@1": np.float64(seed / 10), "ori-test@1": 33.0},
            "eval_losses": {"x-valid@0": 2.1, "x-valid@1": 1.6, "ori-test@1": 1.7},
            "eval_times": {"x-valid@0": 2.5, "x-valid@1": 2.5, "ori-test@1": 1.0},
        }
    return collections.OrderedDict({"02": {"arch_index": index, "arch_str": text, "all_results": results}})


def write_pickle(path, content) -> None:
    path.write_bytes(bz2.compress(content if isinstance(content, bytes) else pickle.dumps(content, 4)))


def test_official_files_become_a_table(tmp_path):
    write_pickle(tmp_path / "000007.pickle.pbz2", official_record())
    write_pickle(
        tmp_path / "000009.pickle.pbz2", official_record(9, seeds=(888,), text=TEXT.replace("avg_pool", "x"))
    )
    heard = []
    table = nasbench201.convert(tmp_path, progress=lambda done, files: heard.append((done, files)))
    assert heard == [(1, 2), (2, 2)]
    assert table.archs[0] == TEXT
    valid, test = (Column("cifar10-valid", 2, f"{split}_accuracy") for split in ("valid", "test"))
    assert table.curve(valid).epochs == (1, 2)
    np.testing.assert_allclose(table.curve(valid).values[0], [[0.11, 0.777], [0.11, 0.888]], rtol=1e-6)
    np.testing.assert_allclose(table.curve(valid).values[1], [[0.11, 0.888], [np.nan, np.nan]], rtol=1e-6)
    assert table.curve(test).epochs == (2,)
    assert table.mean(valid).tolist() == pytest.approx([0.8325, 0.888])
    assert table.sizes["cifar10-valid"].macs_per_image.tolist() == [15_647_360] * 2
    np.testing.assert_allclose(table.costs["cifar10-valid", 2].evaluate_seconds[0], [2.5, 2.5])
    assert np.isnan(table.costs["cifar10-valid", 2].train_seconds[1, 1])


class Evil:
    """Its pickle, when loaded as pickles are, runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    content = pickle.dumps({"12": Evil(f"touch {marker}")}, 4)
    write_pickle(tmp_path / "000000.pickle.pbz2", content)
    with pytest.raises(InputError) as caught:
        nasbench201.convert(tmp_path)
    assert f"{tmp_path}/000000.pickle.pbz2 is refused: it asks for" in one_line(caught)
    assert ".system" in str(caught.value)
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()  # it would have


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(np.zeros(3)),  # an array: numpy's _reconstruct, which is not allowed
        pickle.dumps(np.array(["x"], object)[0:1]),
        b"cbuiltins\neval\n(S'1+1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"ccollections\nOrderedDict.fromkeys\n(]tR.",
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
        b"Pan object elsewhere\n.",
        b"cnumpy\ndtype\n(S'O'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O'\ntRS'x'\ntR.",
        b"not a pickle",
        b"",
    ],
)
def test_whatever_else_a_pickle_asks_for_is_refused(tmp_path, content):
    path = tmp_path / "000000.pickle.pbz2"
    write_pickle(path, content)
    with pytest.raises(InputError) as caught:
        nasbench201.convert(path)
    assert str(path) in one_line(caught)


def test_numpy_numbers_are_read_as_pythons(tmp_path):
    path = tmp_path / "numbers.pickle.pbz2"
    numbers = [np.float64(0.1), np.float32(0.5), np.int64(-3), np.uint8(7), np.bool_(True), np.float64(1e300)]
    write_pickle(path, numbers)
    read = nasbench201.read_official(path)
    assert read == [number.item() for number in numbers]
    assert [type(number) for number in read] == [float, float, int, int, bool, float]


def test_records_that_are_none_are_one_line(tmp_path):
    path = tmp_path / "000007.pickle.pbz2"
    for content, says in (
        (official_record(8), "it is of another index than its name says"),
        ({"12": {"arch_str": TEXT}}, "is not an official record"),
        ({"state": [1, 2]}, "is not an official record"),
        (bytes(2**26 + 1), "is larger than any record"),
    ):
        write_pickle(path, content)
        with pytest.raises(InputError) as caught:
            nasbench201.convert(path)
        assert says in one_line(caught)
    path.write_bytes(b"not bzip2")
    with pytest.raises(InputError, match=r"000007\.pickle\.pbz2 cannot be read"):
        nasbench201.convert(path)
    with pytest.raises(InputError, match=r"no NNNNNN\.pickle\.pbz2 in"):
        nasbench201.convert(tmp_path / "none")


def test_prepare_data_converts_official_files(tmp_path, capsys, monkeypatch):
    """A part of the benchmark is not put where a whole one would be looked for."""
    write_pickle(tmp_path / "000007.pickle.pbz2", official_record())
    prepare_data.main(prepare_data.Config("nasbench201", data_dir=tmp_path / "bench", from_=tmp_path))
    path = tmp_path / "bench" / "nasbench201-partial.npz"
    assert f"nasbench201 prepared: 1 architectures in {path}, sha256 " in capsys.readouterr().out
    assert load_table(str(path)).archs == (TEXT,)
    with pytest.raises(InputError, match="to get it: "):
        load_table("nasbench201", tmp_path / "bench")
    monkeypatch.setattr(nasbench201, "ARCHITECTURES", 1)
    prepare_data.main(prepare_data.Config("nasbench201", data_dir=tmp_path / "bench", from_=tmp_path))
    assert load_table("nasbench201", tmp_path / "bench").archs == (TEXT,)
    monkeypatch.delenv("NAS_BENCH_DIR", raising=False)
    for config, says in (
        (prepare_data.Config("nasbench201"), "nothing is downloaded: give --from; unpack NATS-tss"),
        (prepare_data.Config("nasbench201", from_=tmp_path), "say where to keep the table: --data-dir"),
    ):
        with pytest.raises(InputError) as caught:
            prepare_data.main(config)
        assert says in one_line(caught)


# ------------------------------------------------------------------------------------------------- devices' columns


def with_devices() -> Table:
    columns = {"latency_ms:pi": np.array([1.5, np.nan, 2.5]), "throughput:tpu": np.array([10.0, 20.0, 30.0])}
    return dataclasses.replace(small_table(), devices={"digits": columns, "mnist": {}})


def test_device_columns_come_back_with_unit_and_direction(tmp_path):
    write_table(with_devices(), tmp_path / "small.npz")
    for table in (with_devices(), read_table(tmp_path / "small.npz")):
        column = table.device("latency_ms:pi")
        assert (column.unit, column.direction) == ("ms", -1)
        np.testing.assert_array_equal(column.values, [1.5, np.nan, 2.5])
        column = table.device("throughput:tpu", "digits")
        assert (column.unit, column.direction, list(column.values)) == ("images/s", 1, [10, 20, 30])


def test_a_device_column_that_is_not_there_names_those_that_are():
    table = with_devices()
    for name, dataset, line in (
        ("latency_ms:tpu", None, "'latency_ms:tpu' is not one of latency_ms:pi, throughput:tpu"),
        ("latency_ms:pi", "cifar10", "dataset: 'cifar10' is not one of digits, mnist"),
    ):
        with pytest.raises(InputError) as caught:
            table.device(name, dataset)
        assert line in one_line(caught)
    with pytest.raises(InputError, match="table small: has no latency_ms:pi, nor any other device's column"):
        small_table().device("latency_ms:pi")


def test_an_objective_answers_for_an_architecture():
    table = dataclasses.replace(with_devices(), tasks={"digits": Task(VALID, TEST)})
    space = SearchSpace("toy", {"a": Integer(1, 4)})
    objective = TableObjective(space, table)
    assert objective.device_value(Architecture(a=3), "latency_ms:pi") == (2.5, "ms", -1)
    assert np.isnan(objective.device_value(Architecture(a=2), "latency_ms:pi").value)
    with pytest.raises(TrialFailed, match="has no a=4"):
        objective.device_value(Architecture(a=4), "latency_ms:pi")


def test_hw_nas_bench_is_the_columns_of_its_networks():
    """Architecture 0 on CIFAR-10 as the authors' page prints it."""
    table = load_table("nasbench201", bench_files("nasbench201/nb201.csv.gz", "hw_nas_bench/cifar10.csv.gz"))
    printed = {
        "latency_ms:edgegpu": 5.807418537139893,
        "energy_mj:edgegpu": 24.226614330768584,
        "latency_ms:raspi4": 10.481976820010459,
        "latency_ms:edgetpu": 0.9571811309997429,
        "latency_ms:pixel3": 3.6058499999999998,
        "latency_ms:eyeriss": 3.645620000000001,
        "energy_mj:eyeriss": 0.6872827644999999,
        "latency_ms:fpga": 2.57296,
        "energy_mj:fpga": 18.01072,
    }
    assert {name: table.device(name, "cifar10").values[0] for name in printed} == printed
    assert len(table.device("latency_ms:pixel3", "ImageNet16-120").values) == nasbench201.ARCHITECTURES
    objective = TableObjective(SPACES["nasbench201"], table, "cifar100")
    value = objective.device_value(objective.architectures[7], "energy_mj:edgegpu")
    assert value == (table.device("energy_mj:edgegpu", "cifar100").values[7], "mJ", -1)
    assert value.value != table.device("energy_mj:edgegpu", "cifar10").values[7]


def test_damaged_device_files_are_one_line(tmp_path):
    archs = ("x", "y")
    for text, line in (
        ("arch,pi_latency\nx,1\n", "its 1 rows are not the table's architectures in their order"),
        ("arch,pi_latency\ny,1\nx,2\n", "its 2 rows are not"),
        ("arch,pi_weight\nx,1\ny,2\n", "column pi_weight is none of a device's latency, energy"),
        ("arch,pi_latency\nx,1\ny,fast\n", "pi_latency: could not convert string to float"),
        ("arch,pi_latency\nx,1\ny\n", "is not a table"),
    ):
        (tmp_path / "cifar10.csv.gz").write_bytes(gzip.compress(text.encode()))
        with pytest.raises(InputError) as caught:
            hw_nas_bench.devices_in(tmp_path, archs)["cifar10"]
        assert line in one_line(caught)


def hw_pickle(path, devices, **config) -> None:
    """A file in the form that the authors' API reads (hw_nas_bench_api.py, query_by_index)."""
    part = {"config": [{"arch_str": f"a{i}", **config} for i in range(3)], **devices}
    path.write_bytes(pickle.dumps({"nasbench201": dict.fromkeys(hw_nas_bench.DATASETS, part), "fbnet": {}}))


def test_hw_nas_benchs_pickle_becomes_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr("nas.tables.official.ARCHITECTURES", 3)
    path = tmp_path / "HW-NAS-Bench-v1_0.pickle"
    hw_pickle(path, {"pixel3_latency": [1.5, 2.5, 3.5], "fpga_energy": np.array([4.0, 5.0, 6.0])})
    files = official.hw_nas_bench_files(tmp_path)
    assert set(files) == {f"{name}.csv.gz" for name in hw_nas_bench.DATASETS}
    (tmp_path / "cifar10.csv.gz").write_bytes(files["cifar10.csv.gz"])
    columns = hw_nas_bench.devices_in(tmp_path, ("a0", "a1", "a2"))["cifar10"]
    assert {name: values.tolist() for name, values in columns.items()} == {
        "latency_ms:pixel3": [1.5, 2.5, 3.5],
        "energy_mj:fpga": [4, 5, 6],
    }
    for devices, config, line in (
        ({"pixel3_latency": [1.0]}, {}, "is not the official file"),
        ({}, {}, "is not the official file"),
        ({"pixel3_latency": [1.0] * 3}, {"run": os.system}, "is refused: it asks for posix.system"),
        (
            {"pixel3_latency": np.array(["x"] * 3)},
            {},
            "is refused: it asks for an array of what is no number",
        ),
    ):
        hw_pickle(path, devices, **config)
        with pytest.raises(InputError) as caught:
            official.hw_nas_bench_files(path)
        assert line in one_line(caught)


def test_the_size_space_of_nats_bench_is_read_from_its_files(tmp_path):
    """Genuine records of the topology space under the other's names: the files have one form."""
    folder = (
        bench_files("nasbench201/official_samples/000011.pickle.pbz2") / "nasbench201" / "official_samples"
    )
    record = nasbench201.read_official(folder / "000011.pickle.pbz2")
    size = {"90" if epochs == "200" else epochs: part for epochs, part in record.items()}
    with pytest.raises(InputError, match=r"natssize: .* is of another space: unpack NATS-sss"):
        natssize.convert(folder / "000011.pickle.pbz2")
    for part in size.values():
        part["arch_str"] = "8:16:24:32:64"
    (tmp_path / "000011.pickle.pbz2").write_bytes(bz2.compress(pickle.dumps(size)))
    table = natssize.convert(tmp_path)
    write_table(table, tmp_path / natssize.CONVERTED)
    again = load_table("natssize", tmp_path)
    assert (again.name, again.space, again.archs) == ("natssize", "natssize", ("8:16:24:32:64",))
    task = again.task("cifar100")
    assert (str(task.valid), str(task.test)) == ("cifar100/12/valid_accuracy", "cifar100/90/test_accuracy")
    known = nasbench201.convert(folder)
    assert (
        again.mean(task.test)[0] == known.mean(Column("cifar100", 200, "test_accuracy"))[1]
    )  # of 0, 11 and 284
    (arch,) = TableObjective(SPACES["natssize"], again).architectures
    assert arch["channels_5"] == 64
