#!/usr/bin/env bash
# From nothing to a trained model, in miniature: makes .venv, generates BlockMoving puzzles, converts
# them to shards, draws some rows as a page, makes a tiny model, draws the first pack of its
# training, and trains it. Everything goes to demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
make_env

python tools/generate_blockmoving.py --output demo/source --num_tasks 200
python tools/convert_cot_to_parquet.py --config configs/convert/blockmoving.yaml \
    --input demo/source/enhanced_cot_cleaned.json --output demo/shards
python tools/inspect_shards.py demo/shards --rows 5 --html demo/shards.html --validate
python tools/make_tiny_bagel.py --output demo/tiny_bagel --preset tiny
python tools/inspect_batch.py --config configs/fit/demo_cpu.yaml --png demo/pack.png

mathcanvas fit --config configs/fit/demo_cpu.yaml

echo "Puzzles: demo/source   Shards: demo/shards   Open in a browser: demo/shards.html"
echo "A pack as the model is given it: demo/pack.png"
echo "Curves: demo/run/curves/version_0/metrics.csv   Checkpoint: demo/run/checkpoints/last.ckpt"
