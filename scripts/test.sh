#!/usr/bin/env bash
# Checks the code, then runs the tests; works in a fresh clone.
#   ./scripts/test.sh                  the default tests
#   ./scripts/test.sh --all            the slow ones too, and the others once more without native kernels
#   ./scripts/test.sh [--all] ARGS…    ARGS go to pytest: tests/unit/test_space_moves.py -k encode
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
twice=
if [ "${1:-}" = --all ]; then
    shift
    [ $# -gt 0 ] || twice=yes
else
    set -- -m "not slow" "$@"
    # Most of the time goes into compiling small programs that run once: --all has XLA optimise them as ever.
    export JAX_DISABLE_MOST_OPTIMIZATIONS=1
fi
export PYTHONDONTWRITEBYTECODE=  # what is imported is compiled once
./scripts/setup.sh requirements-dev.txt
.venv/bin/python -m ruff check
.venv/bin/python -m ruff format --check
PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/python -m pyright --pythonpath .venv/bin/python
# A process a core. The tests of a file stay together, sharing what takes long to set up; smoke tests come early.
pytest=(.venv/bin/python -m pytest -n logical --dist loadfile --no-loadscope-reorder)
"${pytest[@]}" "$@"
if [ "$twice" ]; then
    NAS_NATIVE=0 "${pytest[@]}" -m "not slow" tests/unit tests/conformance tests/golden
fi
