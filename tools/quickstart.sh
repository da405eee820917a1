#!/usr/bin/env bash
# From nothing to shards that you can look at: makes .venv, generates BlockMoving puzzles,
# converts them, and draws some rows as a page. Everything goes to demo/ (or the folder given).
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
make_env
demo="${1:-demo}"

python tools/generate_blockmoving.py --output "$demo/source" --num_tasks 200
python tools/convert_cot_to_parquet.py --config configs/convert/blockmoving.yaml \
    --input "$demo/source/enhanced_cot_cleaned.json" --output "$demo/shards"
python tools/inspect_shards.py "$demo/shards" --rows 5 --html "$demo/shards.html" --validate

echo "Puzzles: $demo/source   Shards: $demo/shards   Open in a browser: $demo/shards.html"
