#!/usr/bin/env bash
# Installs what is needed, then shows both ways to search, each with its table and its HTML report under runs/:
# a sweep on 5,000 MNIST images, whose best network is trained anew and tested, and four strategies compared over the
# shipped benchmark table, 200 searches each. Further options go to that comparison (scripts/compare.py).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONDONTWRITEBYTECODE=  # what is imported is compiled once
./scripts/setup.sh
out=runs/quickstart
for ((n = 2; ; n++)); do
    [ -e "$out" ] || [ -e "$out-images" ] || break
    out=runs/quickstart-$n
done
.venv/bin/python scripts/search.py --space chain --dataset mnist5k --strategy asha --trials 10 --epochs 9 \
    --test-seeds 5 --fix downsample_every=1 stride=1 kernel=3 \
    --narrow depth=2,3 width=8,16,32 pooling=max,average,overlapping_max \
    normalisation=batch,layer learning_rate=0.005..0.05 --out "$out-images"
.venv/bin/python scripts/report.py "$out-images" | tail -n 1
echo
exec .venv/bin/python scripts/compare.py --objective table --space minichain --seeds 200 \
    --strategies random evolution local_search hyperband --out "$out" "$@"
