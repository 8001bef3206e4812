"""How the native kernels are built, kept, found and done without."""

import os
import stat
import threading
from pathlib import Path

import pytest

from nas.cpu import native


def test_without_compiler(monkeypatch):
    monkeypatch.delenv("NAS_NATIVE", raising=False)
    monkeypatch.setenv("CXX", "/nowhere/g++ -pipe")
    assert native._found.__wrapped__().status == "XLA's own operations: no C++ compiler (/nowhere/g++ -pipe)"


def test_some_can_be_left_out(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setenv("NAS_NATIVE", "-pooling,-edges")
    assert [native.enabled(name) for name in ("pooling", "edges", "convolution")] == [False, False, True]


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that only copies the library we have, and counts how often it linked one."""
    if not native.available():
        pytest.skip(native.native_status())
    library = tmp_path / "library.so"
    links = tmp_path / "links"
    links.touch()
    with open("/proc/self/maps") as maps:  # the library may be gone from its folder
        library.write_bytes(Path(next(line.split()[-1] for line in maps if "/kernels-" in line)).read_bytes())
    script = tmp_path / "copying compiler"
    script.write_text(
        f"""#!/bin/sh
case "$*" in
*--version*) echo copying ;;
*-shared*) sleep 0.3; echo link >> '{links}'; while [ "$1" != -o ]; do shift; done; cp '{library}' "$2" ;;
*) while [ "$1" != -o ]; do shift; done; : > "$2" ;;
esac
"""
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("NAS_CACHE_DIR", str(tmp_path / "cache"))
    return [str(script)], lambda: len(links.read_text().split())


def test_two_processes_build_once(compiler):
    """Threads stand for processes: the lock is the file's."""
    command, links = compiler
    found = []
    threads = [threading.Thread(target=lambda: found.append(native._load(command)[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert found[0].exists()
    assert links() == 1
    native._load(command)
    assert links() == 1


def test_damaged_library_is_built_again(compiler):
    command, links = compiler
    path = native._cache_folder() / f"kernels-{native._key(command)}.so"
    path.write_bytes(b"not a library")
    assert native._load(command)[0] == path
    assert links() == 1
    assert path.stat().st_size > 1000


def test_cache_that_cannot_be_written(compiler, tmp_path):
    command, links = compiler
    (tmp_path / "cache").write_text("a file where the folder should be")
    path, library = native._load(command)
    assert links() == 1
    assert library.nas_conv
    assert not path.parent.exists()


def test_compiler_that_fails(tmp_path, monkeypatch):
    script = tmp_path / "failing"
    script.write_text("#!/bin/sh\necho 'kernels.cc:1: error: no' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("NAS_CACHE_DIR", str(tmp_path))
    with pytest.raises(native._BuildError, match=r"^.*failing: kernels.cc:1: error: no$"):
        native._build([str(script)], tmp_path / "kernels.so")


def test_the_kernels_are_there_unless_switched_off():
    """Else tests that need them would be skipped without a word; NAS_NATIVE=0 runs the others without."""
    assert native.available() == (os.environ.get("NAS_NATIVE") != "0"), native.native_status()
