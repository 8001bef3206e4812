"""Runs in a bucket: mirrored in order, taken up elsewhere, held up by nothing."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import fsspec
import pytest

from nas import storage
from nas.errors import InputError
from nas.record import read_run, same_record


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A bucket in this process's memory, and a folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(storage, "PERIOD_SECONDS", 0.05)
    files = fsspec.filesystem("memory")
    if files.exists("/b"):
        files.rm("/b", recursive=True)
    return files


def _until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def _search(out, **more):
    import nas

    space = nas.SearchSpace("s", {"x": nas.Integer(0, 99)})
    return nas.search(space, objective=lambda arch: -arch["x"], trials=5, engine="local", out=out, **more)


@pytest.mark.parametrize("text", ["gs://b/run", "gs:/b/run", "gs://b/run/"])
def test_a_url_is_known_as_a_path_too(text):
    assert storage.remote(text) == storage.remote(Path(text)) == "gs://b/run"
    assert storage.remote("runs/gs") is None
    assert storage.local_folder("gs://b/../../etc") == Path("runs/b/etc")


def test_what_is_appended_arrives_while_the_search_goes_on(bucket):
    with storage.mirrored("memory://b/run") as folder:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "trials.jsonl").write_text("1\n")
        _until(lambda: bucket.exists("/b/run/trials.jsonl"))
        with (folder / "trials.jsonl").open("a") as file:
            file.write("2\n")
        _until(lambda: bucket.cat_file("/b/run/trials.jsonl") == b"1\n2\n")
        (folder / "checkpoints" / "0" / "3").mkdir(parents=True)
        (folder / "checkpoints" / "0" / "3" / "data").write_bytes(b"state")
        _until(lambda: bucket.exists("/b/run/checkpoints/0/3/data"))
        shutil.rmtree(folder / "checkpoints" / "0" / "3")
        _until(lambda: not bucket.exists("/b/run/checkpoints/0/3/data"))
        (folder / "end.txt").write_text("last")
    assert bucket.cat_file("/b/run/end.txt") == b"last"


def test_records_are_copied_before_checkpoints(tmp_path, bucket):
    for name in (
        "checkpoints/0/1/data",
        "trials.jsonl",
        "env.json",
        "config.json",
        "a.txt",
        "x.orbax-tmp/part",
    ):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("x")
    new = list(storage.Mirror("memory://b/run", tmp_path / "run")._new())
    assert new == ["config.json", "env.json", "trials.jsonl", "a.txt", "checkpoints/0/1/data"]


def test_a_search_goes_on_from_the_bucket_where_the_machine_is_gone(tmp_path, bucket):
    whole = _search(tmp_path / "whole")
    _search("memory://b/run")
    # A machine that was lost: of the record in the bucket the first lines, of the local folder nothing.
    lines = bucket.cat_file("/b/run/trials.jsonl").splitlines(keepends=True)
    bucket.pipe_file("/b/run/trials.jsonl", b"".join(lines[:5]) + lines[5][:7])
    shutil.rmtree("runs/b")
    with pytest.raises(InputError, match="memory://b/run: holds a run already; go on with --resume"):
        _search("memory://b/run")
    resumed = _search("memory://b/run", resume=True)
    assert resumed.best is not None
    assert whole.best is not None
    assert resumed.best.arch == whole.best.arch
    assert same_record("runs/b/run", tmp_path / "whole")
    shutil.rmtree("runs/b")
    assert same_record(storage.copied("memory://b/run"), tmp_path / "whole")


def test_the_longer_of_two_records_of_one_run_goes_on(bucket):
    _search("memory://b/run")
    record = Path("runs/b/run/trials.jsonl")
    whole = record.read_bytes()
    record.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    _search("memory://b/run", resume=True)
    assert record.read_bytes() == whole
    record.write_bytes(b"another\n")
    with pytest.raises(InputError, match="are of different runs; remove one of them"):
        _search("memory://b/run", resume=True)


def test_to_read_a_run_by_its_url_leaves_what_is_further_here(bucket):
    """A search that is writing there would end otherwise."""
    folder = storage.local_folder("memory://b/run")
    folder.mkdir(parents=True)
    for name, here, there in (("trials.jsonl", b"1\n2\n", b"1\n"), ("config.json", b"{}", b"{}")):
        (folder / name).write_bytes(here)
        bucket.pipe_file(f"/b/run/{name}", there)
    assert storage.copied("memory://b/run") == folder
    assert (folder / "trials.jsonl").read_bytes() == b"1\n2\n"
    bucket.pipe_file("/b/run/trials.jsonl", b"1\n2\n3\n")
    storage.copied("memory://b/run")
    assert (folder / "trials.jsonl").read_bytes() == b"1\n2\n3\n"


def test_a_bucket_that_is_away_for_a_while_holds_nothing_up(bucket, monkeypatch, capsys):
    away = {"is": True}
    pipe = type(bucket).pipe_file

    def sometimes(self, path, data, **more):
        if away["is"]:
            raise ConnectionError("no route to the bucket")
        return pipe(self, path, data, **more)

    monkeypatch.setattr(type(bucket), "pipe_file", sometimes)
    with storage.mirrored("memory://b/run") as folder:
        folder.mkdir(parents=True)
        (folder / "trials.jsonl").write_text("1\n")
        time.sleep(0.4)
        away["is"] = False
    told = capsys.readouterr().err
    assert told.count("cannot be reached (ConnectionError: no route to the bucket)") == 1
    assert bucket.cat_file("/b/run/trials.jsonl") == b"1\n"


def test_what_could_not_be_mirrored_is_said(bucket, monkeypatch, capsys):
    def never(self, path, data, **more):
        raise PermissionError("403")

    monkeypatch.setattr(type(bucket), "pipe_file", never)
    monkeypatch.setattr(storage, "LAST_SECONDS", 0.2)
    found = _search("memory://b/run")
    assert read_run("runs/b/run").done
    assert found.best is not None
    assert "files of runs/b/run could not be mirrored; --resume copies them" in capsys.readouterr().err
    monkeypatch.undo()


def test_a_library_that_is_missing_is_one_line(monkeypatch):
    def missing(url):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(
        InputError, match=r"gs://b/run: Please install gcsfs: pip install -r requirements-cloud"
    ):
        storage.Mirror("gs://b/run", Path("run"))


def test_data_is_downloaded_once(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("NAS_CACHE_DIR", str(tmp_path / "cache"))
    bucket.pipe_file("/b/data/mine/1.0.0/features.json", json.dumps({"a": 1}).encode())
    folder = storage.fetched("memory://b/data", "mine")
    assert json.loads((folder / "mine/1.0.0/features.json").read_text()) == {"a": 1}
    bucket.rm("/b/data", recursive=True)
    assert storage.fetched("memory://b/data", "mine") == folder
    assert not (storage.fetched("memory://b/data", "other") / "other").exists()
