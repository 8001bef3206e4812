"""What holds for all tests: reproducible Hypothesis examples, and the import path of the scripts.

Hypothesis draws the same examples on every run and has no deadline: a slow machine is not a failure.
"""

import sys
from pathlib import Path

from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True, database=None, print_blob=False)
settings.load_profile("house")

# As `_cli` does: behind the standard library, whose `profile` cProfile imports (and torch imports that).
SCRIPTS = str(Path(__file__).resolve().parents[1] / "scripts")
sys.path[:] = [path for path in sys.path if path != SCRIPTS] + [SCRIPTS]
