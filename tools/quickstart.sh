#!/usr/bin/env bash
# Teaches a small BAGEL to solve puzzles with its own drawings, on a laptop: makes .venv, generates
# BlockMoving puzzles, converts them to shards, fine-tunes the base model that the package ships,
# lets it answer held-out puzzles with texts and drawings, scores them, and shows all on one page. Then
# a small real language model answers questions. All files are written to demo/.
#   bash tools/quickstart.sh                 # about 4 minutes on two cores, without installing
#   bash tools/quickstart.sh --from_scratch  # trains the base model too: about 14 minutes more
# For tests: STEPS, PUZZLES and HELD_OUT make everything smaller; LANGUAGE_MODEL=no skips the last part.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh

number=0 total=8 started=$SECONDS
stage() {
    number=$((number + 1))
    local title="$1" begin=$SECONDS
    shift
    echo "[$number/$total] $title ..."
    "$@"
    echo "[$number/$total] $title: $((SECONDS - begin)) s"
}

install() {
    make_env "$(vllm_extra)"
    if [ "$total" = 8 ]; then python tools/make_demo_model.py --output demo/smollm2; fi
}

base_model() {
    if [ "$from_scratch" = yes ]; then
        bash tools/pretrain_demo.sh
        rm -rf demo/tiny_bagel
        cp -r demo/pretrain/export demo/tiny_bagel
    else
        python tools/make_tiny_bagel.py --output demo/tiny_bagel --preset tiny --pretrained
    fi
}

puzzles() {
    local rows="${PUZZLES:-3600}"
    python tools/generate_blockmoving.py --level 1 --part train --output demo/source \
        --num_tasks "$rows" --extra "reason=$rows,describe=$((rows / 4)),draw=$rows"
    python tools/generate_blockmoving.py --level 1 --part validation --output demo/source_validation \
        --num_tasks 60 --seed 1
    python tools/generate_blockmoving.py --level 1 --part test --output demo/source_test \
        --num_tasks "${HELD_OUT:-120}" --seed 2
}

shards() {
    local part
    for part in train validation test; do
        local source=demo/source
        if [ "$part" != train ]; then source="demo/source_$part"; fi
        python tools/convert_cot_to_parquet.py --config configs/convert/demo.yaml \
            --input "$source/enhanced_cot_cleaned.json" --output "demo/shards/$part"
    done
    python tools/inspect_shards.py demo/shards/test --rows 5 --html demo/shards.html --validate
}

training() {
    local processes=1
    if [ "$(getconf _NPROCESSORS_ONLN)" -ge 2 ]; then processes=2; fi
    OMP_NUM_THREADS=1 mathcanvas fit --config configs/fit/demo_cpu.yaml \
        --trainer.devices "$processes" --trainer.strategy ddp ${STEPS:+--trainer.max_steps "$STEPS"} \
        --config configs/sample_answers.yaml
    python tools/inspect_batch.py --config configs/fit/demo_cpu.yaml --png demo/pack.png \
        >demo/pack.txt &
    python tools/export_checkpoint.py demo/run --output demo/export --overwrite
    wait $!
}

answers() { mathcanvas predict --config configs/predict_demo.yaml; }

scores() {
    python tools/score_responses.py --input demo/reasoning.parquet --puzzles demo/source_test
    python tools/show_answers.py --input demo/reasoning.parquet \
        --curves demo/run
}

questions() {
    # vLLM in this process is imported once instead of three times.
    VLLM_ENABLE_V1_MULTIPROCESSING=0 mathcanvas predict --config configs/predict_vllm.yaml
    python tools/score_responses.py --input demo/answers.jsonl --by subject --by level
}

from_scratch=no
if [ "${1:-}" = --from_scratch ]; then from_scratch=yes; fi
if [ "${LANGUAGE_MODEL:-yes}" = no ]; then total=7; fi
stage "installing" install
stage "base model" base_model
stage "puzzles" puzzles
stage "shards" shards
stage "fine-tuning" training
stage "answers to held-out puzzles" answers
stage "scores and page" scores
if [ "$total" = 8 ]; then stage "questions to a language model" questions; fi

echo
echo "All in $((SECONDS - started)) s. Open in a browser: demo/reasoning.html"
echo "(curves, scores, and each held-out puzzle with the model's drawings beside the true ones)"
echo "Rows of the training data: demo/shards.html   The first training pack: demo/pack.png, demo/pack.txt"
