#!/usr/bin/env bash
# Runs every step once, in miniature and on one machine: makes .venv, generates BlockMoving puzzles,
# converts them to shards, shows some rows on a page, makes a tiny BAGEL, draws its first training pack,
# trains it, and lets it answer held-out puzzles with texts and drawings. A small real language model
# answers questions. The answers of both are scored. All files are written to demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
make_env "$(vllm_extra)"

python tools/generate_blockmoving.py --output demo/source --num_tasks 200
python tools/convert_cot_to_parquet.py --config configs/convert/blockmoving.yaml \
    --input demo/source/enhanced_cot_cleaned.json --output demo/shards
python tools/inspect_shards.py demo/shards --rows 5 --html demo/shards.html --validate
python tools/make_tiny_bagel.py --output demo/tiny_bagel --preset tiny
python tools/inspect_batch.py --config configs/fit/demo_cpu.yaml --png demo/pack.png

mathcanvas fit --config configs/fit/demo_cpu.yaml

python tools/export_checkpoint.py demo/run/checkpoints/last.ckpt --output demo/export
mathcanvas predict --config configs/predict_bagel.yaml
python tools/score_responses.py --input demo/reasoning.parquet
python tools/show_answers.py --input demo/reasoning.parquet

python tools/make_demo_model.py --output demo/smollm2
mathcanvas predict --config configs/predict_vllm.yaml
python tools/score_responses.py --input demo/answers.jsonl --by subject --by level

echo "Puzzles: demo/source   Shards: demo/shards   Open in a browser: demo/shards.html"
echo "The first training pack: demo/pack.png"
echo "Curves: demo/run/curves/version_0/metrics.csv   Trained model: demo/export"
echo "Its answers, to open in a browser: demo/reasoning.html   One folder per puzzle: demo/reasoning"
echo "Questions and a language model's answers: demo/answers.jsonl   Verdicts: demo/answers_scores.json"
