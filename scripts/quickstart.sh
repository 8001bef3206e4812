#!/usr/bin/env bash
# Installs what is needed, compares four strategies on 5,000 MNIST images, tests each one's best network:
# a table, plots and an HTML report in a new folder under runs/. Further options go to scripts/compare.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONDONTWRITEBYTECODE=  # what is imported is compiled once
./scripts/setup.sh
out=runs/quickstart
for ((n = 2; ; n++)); do
    [ -e "$out" ] || break
    out=runs/quickstart-$n
done
exec .venv/bin/python scripts/compare.py --space chain --dataset mnist5k \
    --strategies grid random hyperband asha --epochs 4 --final-epochs 12 --test-seeds 2 \
    --fix downsample_every=1 stride=1 kernel=3 \
    --narrow depth=2,3 width=8,16,32 pooling=max,average,overlapping_max \
    normalisation=batch,layer learning_rate=0.005..0.05 --out "$out" "$@"
