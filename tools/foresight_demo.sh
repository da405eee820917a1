#!/usr/bin/env bash
# Measures whether drawings help. The question shows two cubes and names moves; the answer is the stack
# at the end. One model draws the stack after each move, the other one writes the same words without
# drawings; all else is equal. Everything goes to demo/foresight/.
#   bash tools/foresight_demo.sh
# SEED names another seed of the two models (remove their run folders first); STEPS, ROWS and
# HELD_OUT make everything smaller.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
make_env

seed="${SEED:-0}" here=demo/foresight

generate() { python tools/generate_blockmoving.py --level 1 --question stack "$@"; }

# shards SOURCE OUTPUT [FILE]
shards() {
    python tools/convert_cot_to_parquet.py --config configs/convert/demo.yaml \
        --input "$1/${3:-enhanced_cot_cleaned.json}" --output "$2"
}

# fresh PUZZLES TRAINED OUTPUT: leaves out the puzzles that were trained
fresh() {
    python - "$@" <<'END'
import json
import pathlib
import sys

def key(folder):
    task = json.loads((folder / "data.json").read_text())
    return json.dumps([task["initial"], task["moves"]])

puzzles, trained, output = map(pathlib.Path, sys.argv[1:])
known = {key(folder) for folder in trained.glob("task_*")}
rows = json.loads(puzzles.read_text())
new = [row for row in rows if key(puzzles.parent / f"task_{row['task_id']}") not in known]
output.write_text(json.dumps(new[:120]))
END
}

has_drawings() { if [ "$1" = drawn ]; then echo true; else echo false; fi; }

puzzles() {
    local rows="${ROWS:-2500}" moves arm
    for arm in drawn plain; do
        generate --part validation --num_moves 3 --num_tasks 60 --seed 20 \
            --drawings "$(has_drawings "$arm")" --output "$here/$arm/source_validation"
        shards "$here/$arm/source_validation" "$here/$arm/shards_validation"
    done
    # What the base model may know: every stack, and every single move.
    generate --num_moves 4 --num_tasks 1 --seed 0 --output "$here/help" \
        --extra "move=$((rows * 2)),describe=$rows"
    generate --num_moves 4 --num_tasks 1 --seed 1 --output "$here/validation" \
        --extra move=100,describe=100
    for moves in 1 2 3 4; do
        for arm in drawn plain; do
            generate --part train --num_moves "$moves" --num_tasks "$rows" --seed "1$moves" \
                --drawings "$(has_drawings "$arm")" --output "$here/$arm/source_$moves"
            shards "$here/$arm/source_$moves" "$here/$arm/shards_$moves"
        done
        generate --part test --num_moves "$moves" --num_tasks "${HELD_OUT:-200}" \
            --seed "3$moves" --output "$here/test/source_$moves"
        shards "$here/test/source_$moves" "$here/test/shards_$moves"
        # New puzzles with the colours of the training.
        generate --part train --num_moves "$moves" --num_tasks "${HELD_OUT:-300}" \
            --seed "9$moves" --output "$here/seen/source_$moves"
        fresh "$here/seen/source_$moves/enhanced_cot_cleaned.json" \
            "$here/drawn/source_$moves" "$here/seen/source_$moves/new.json"
        shards "$here/seen/source_$moves" "$here/seen/shards_$moves" new.json
    done
}

# In two legs, the second from the weights of the first with a new schedule and other noise.
base_model() {
    python tools/make_tiny_bagel.py --output "$here/base_0" --preset tiny --pretrained
    local leg before
    for leg in 1 2; do
        before="$here/base_1/export"
        if [ "$leg" = 1 ]; then before="$here/base_0"; fi
        mathcanvas fit --config configs/fit/foresight_base.yaml --seed_everything $((leg - 1)) \
            --trainer.default_root_dir "$here/base_$leg" \
            --model.init_args.source.checkpoint "$before" ${STEPS:+--trainer.max_steps "$STEPS"}
        python tools/export_checkpoint.py "$here/base_$leg/checkpoints/last.ckpt" \
            --output "$here/base_$leg/export" --overwrite
    done
}

# train ARM
train() {
    sed "s#/drawn/#/$1/#" configs/fit/foresight.yaml >"$here/$1.yaml"
    mathcanvas fit --config "$here/$1.yaml" --seed_everything "$seed" \
        ${STEPS:+--trainer.max_steps "$STEPS"}
    python tools/export_checkpoint.py "$here/$1/run/checkpoints/last.ckpt" \
        --output "$here/$1/export" --overwrite
}

# answer ARM NAME [OPTION ...]: answers and scores the held-out puzzles
answer() {
    local arm="$1" name="$2" set moves inputs=""
    shift 2
    for set in test seen; do
        for moves in 1 2 3 4; do
            inputs+="{path: $here/$set/shards_$moves, "
            inputs+="output: $here/answers/${set}_${name}_$moves.parquet}, "
        done
    done
    mathcanvas predict --config configs/predict_demo.yaml \
        --model.init_args.backend.init_args.checkpoint "$here/$arm/export" \
        --model.init_args.backend.init_args.max_steps 5 \
        --model.init_args.backend.init_args.max_images 4 \
        --data.init_args.inputs "[$inputs]" "$@"
    for set in test seen; do
        for moves in 1 2 3 4; do
            python tools/score_responses.py --puzzles "$here/$set/source_$moves" \
                --input "$here/answers/${set}_${name}_$moves.parquet"
        done
    done
}

puzzles
base_model
for arm in drawn plain; do
    train "$arm"
    answer "$arm" "$arm"
done
answer drawn suppressed --model.init_args.backend.init_args.drawings none
for set in test seen; do
    for moves in 1 2 3 4; do
        echo "$set, $moves moves, with against without drawings:"
        python tools/compare_scores.py "$here/answers/${set}_drawn_$moves.parquet_scores.json" \
            "$here/answers/${set}_plain_$moves.parquet_scores.json"
    done
done
