#!/usr/bin/env bash
# Trains the demo's base model from nothing: describing pictures, drawing descriptions, single moves,
# comparing words.
# The package ships the result (mathcanvas_lightning/demo/weights/tiny); everything goes to
# demo/pretrain/. About 14 minutes of two cores; the seeds decide everything.
#   bash tools/pretrain_demo.sh --ship    # also replaces the weights in the package
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
make_env

level="${LEVEL:-1}"
generate() {
    python tools/generate_blockmoving.py --level "$level" --num_tasks 1 "$@"
}
generate --output demo/pretrain/source --part train --seed 0 \
    --extra describe=10000,draw=10000,move=3000,compare=10000
generate --output demo/pretrain/validation --part validation --seed 1 \
    --extra describe=150,draw=150,compare=150
python tools/make_tiny_bagel.py --output demo/pretrain/new_bagel --preset tiny --seed 0
mathcanvas fit --config configs/fit/demo_pretrain.yaml
python tools/export_checkpoint.py demo/pretrain/run \
    --output demo/pretrain/export --overwrite
if [ "${1:-}" = --ship ]; then
    target=mathcanvas_lightning/demo/weights/tiny
    mkdir -p "$target"
    cp demo/pretrain/export/*.json demo/pretrain/export/ema.safetensors \
        demo/pretrain/export/merges.txt "$target"
    cp demo/pretrain/run/metrics.csv "$target/curves.csv"
fi
