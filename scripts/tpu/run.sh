#!/usr/bin/env bash
# Runs a command of this repository on a Cloud TPU VM and brings the VM's runs/ back.
#
#   ./scripts/tpu/run.sh NAME ZONE -- python scripts/search.py --space chain --dataset mnist5k --out runs/tpu
#
# Never run on a real TPU by us: none was at hand. What is tested is what it asks of gcloud (against a
# stand-in, tests/unit/test_shell.py) and that every training step lowers for TPU (no device needed).
#
# Before: gcloud set up with your project, and a VM made by you, which costs money until you delete it:
#   gcloud compute tpus tpu-vm create NAME --zone ZONE --accelerator-type v5litepod-8 --version v2-alpha-tpuv5-lite
#   gcloud compute tpus tpu-vm delete NAME --zone ZONE
# One host is used: take a slice that fits one (v5litepod-1, -4 or -8; v6e-1, -4 or -8; v4-8).
#
# What it does: sends the working tree (what git tracks or would), makes .venv there with requirements-tpu.txt,
# runs the command with JAX bound to the TPU, prints its output, and copies runs/ (without checkpoints) into
# runs/from-NAME/ here, every minute and at the end: a spot VM that is taken away leaves its records. They are sent along
# with the tree, so a search that ended, or whose VM did, goes on with the same line and --resume, on this VM or
# another of the same NAME. A lost connection does not end the command. Data sets are not sent: mnist5k and digits come with the packages, others are
# prepared there (the command may be: python scripts/prepare_data.py cifar10). Exit status: the command's own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
fail() {
    echo "error: tpu: $*" >&2
    exit 2
}
if [ $# -lt 4 ] || [ "$3" != -- ]; then fail "usage: ./scripts/tpu/run.sh NAME ZONE -- COMMAND…"; fi
name=$1 zone=$2
shift 3
command -v gcloud >/dev/null || fail "gcloud, the Google Cloud command line, is not installed"
tpu() { gcloud compute tpus tpu-vm "$@" --zone "$zone"; }

archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
git ls-files -z --cached --others --exclude-standard | tar --null -czf "$archive" -T -
tpu scp "$archive" "$name:nas-search.tar.gz"
into=runs/from-$name
if [ -d "$into/runs" ]; then
    tar -czf "$archive" -C "$into" runs
    tpu scp "$archive" "$name:nas-records.tar.gz"
fi

# A copy that breaks off leaves the one before it.
mirror() {
    rm -rf "$into.part" && mkdir -p "$into.part"
    if tpu ssh "$name" --command 'tar -C nas-search -cz --exclude=checkpoints runs' 2>/dev/null </dev/null |
        tar -xz -C "$into.part" 2>/dev/null; then
        rm -rf "$into" && mv "$into.part" "$into"
    else
        rm -rf "$into.part"
        return 1
    fi
}

# The VM's own Python may be older than 3.11 (Ubuntu 22.04 has 3.10): uv brings a newer one.
remote='set -eu
mkdir -p nas-search && tar -xzf nas-search.tar.gz -C nas-search && cd nas-search
if [ -f ../nas-records.tar.gz ]; then tar -xzf ../nas-records.tar.gz --skip-old-files && rm ../nas-records.tar.gz; fi
if [ ! -x .venv/bin/python ] && ! python3 -c "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
    python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --seed --python 3.12 .venv
fi
./scripts/setup.sh requirements-tpu.txt
export JAX_PLATFORMS=tpu,cpu PATH="$PWD/.venv/bin:$PATH"
: >tpu.log  # there before tail looks for it
nohup '$(printf '%q ' "$@")'>tpu.log 2>&1 </dev/null &
tail -n +1 -f --pid=$! tpu.log
wait $!'
# (The sleep that outlives the loop holds no output open.)
(while sleep "${MIRROR_SECONDS:-60}" >/dev/null 2>&1; do mirror || true; done) &
mirroring=$!
trap 'kill "$mirroring" 2>/dev/null || true; rm -f "$archive"' EXIT
status=0
tpu ssh "$name" --command "$remote" || status=$?
kill "$mirroring" 2>/dev/null || true
wait "$mirroring" 2>/dev/null || true
mirror || echo "tpu: runs/ could not be copied; what was is in $into" >&2
exit "$status"
