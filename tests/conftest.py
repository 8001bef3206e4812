"""What holds for all tests: Hypothesis draws the same examples on every run and has no deadline; shapes are checked;
programs that tests start import this checkout, whatever is installed; compiled programs are those of this run."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests import shapes

settings.register_profile("house", deadline=None, derandomize=True, database=None, print_blob=False)
settings.load_profile("house")

shapes.install()  # before anything of these packages is imported

os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(shapes.ROOT), os.environ.get("PYTHONPATH")]))


def _fresh_cache() -> None:
    """One cache for this run and the processes that it starts, with the native kernels, whose build takes long."""
    from nas.cache import cache_folder

    native = cache_folder("native")
    folder = Path(tempfile.mkdtemp(prefix="nas-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "native").symlink_to(native)
    os.environ["NAS_CACHE_DIR"] = str(folder)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked ``some(count)`` all cases but ``count`` become slow."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("some") and not item.get_closest_marker("slow"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for of in cases.values():
        marker = of[0].get_closest_marker("some")
        assert marker
        (count,) = marker.args
        kept = {k * len(of) // count for k in range(count)}
        for k, item in enumerate(of):
            if k not in kept:
                item.add_marker(pytest.mark.slow)


if "PYTEST_XDIST_WORKER" not in os.environ:
    _fresh_cache()
