#!/usr/bin/env bash
# Makes .venv and installs this project (editable) with the tested versions (constraints.txt) into it; at once when
# nothing changed.
#   ./scripts/setup.sh                         what searches need
#   ./scripts/setup.sh requirements-gpu.txt    for an NVIDIA GPU (-tpu, -dev and -bench likewise)
# PYTHON=/path/to/python chooses the Python that .venv is made with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
requirements=${1:-requirements.txt}
fail() {
    echo "error: $*" >&2
    exit 1
}
[ -f "$requirements" ] || fail "setup: $requirements is not one of" requirements*.txt

usable() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

if ! usable .venv/bin/python; then
    candidates=(python3 python3.13 python3.12 python3.11)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    chosen='' found=''
    for python in "${candidates[@]}"; do
        if usable "$python"; then
            chosen=$python
            break
        fi
        version=$("$python" -c 'import sys; print(sys.version.split()[0])' 2>/dev/null) && found+=" $python $version"
    done
    [ -n "$chosen" ] || fail "setup: Python 3.11 or newer with its venv module is needed, found:${found:- none};" \
        "PYTHON=/path/to/python chooses another"
    "$chosen" -m venv --clear .venv
fi

# A stamp is what was installed, so that a change to a requirement or a version installs again.
stamp=.venv/installed-$requirements
wanted=$(cat pyproject.toml requirements.txt "$requirements" constraints.txt)
if [ ! -f "$stamp" ] || [ "$wanted" != "$(cat "$stamp")" ]; then
    echo "installing $requirements into .venv (a minute or two, once)" >&2
    # Most of the modules are never imported: Python compiles the others at their first import, where it may.
    compile=--no-compile
    [ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || compile=--compile
    .venv/bin/python -m pip --disable-pip-version-check install --quiet $compile \
        --editable . -r "$requirements" -c constraints.txt ||
        fail "setup: pip could not install $requirements; it says why above"
    echo "$wanted" >"$stamp"
fi
