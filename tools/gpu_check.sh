#!/usr/bin/env bash
# First hour on a GPU: checks what a CPU cannot show, and prints one table. A failed check does not stop
# the others. Without a GPU it runs everything at tiny size, to test itself.
#   bash tools/gpu_check.sh [FOLDER]     # by default gpu_check; logs, trace and table are written there
set -uo pipefail
cd "$(dirname "$0")/.."
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi
out="${1:-gpu_check}"
mkdir -p "$out"
table="$out/table.md"
failed=0

if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    device=cuda preset=small trainer=(--trainer.accelerator gpu --trainer.precision 32-true)
    layers=4 tokens=16384 wide=7b dtype=bfloat16
else
    device=cpu preset=tiny trainer=(--trainer.accelerator cpu --trainer.precision 32-true)
    layers=2 tokens=2048 wide=tiny dtype=float32
fi

# check TITLE COMMAND...: runs it, with its output in a log file, and adds a line to the table.
check() {
    local title="$1" log begin=$SECONDS status
    log="$out/$(echo "$1" | tr -cs 'A-Za-z0-9' '_').log"
    shift
    "$@" >"$log" 2>&1
    status=$?
    if [ "$status" != 0 ]; then failed=1; fi
    echo "| $title | $([ "$status" = 0 ] && echo passed || echo "failed ($status)") | $((SECONDS - begin)) s | $(basename "$log") |" |
        tee -a "$table"
}

data() {
    python tools/make_tiny_bagel.py --output "$out/model" --preset "$preset" &&
        python tools/generate_blockmoving.py --level 1 --part train --output "$out/source" \
            --num_tasks 200 &&
        python tools/convert_cot_to_parquet.py --config configs/convert/demo.yaml \
            --input "$out/source/enhanced_cot_cleaned.json" --output "$out/shards"
}

sharded=(--config "$out/sharded.yaml")
cat >"$out/sharded.yaml" <<END
trainer: {strategy: {class_path: mathcanvas_lightning.training.strategy.ShardedStrategy}}
END
# run COMMAND FOLDER OPTIONS...: fit or validate on the puzzles.
run() {
    local command="$1" folder="$out/$2"
    shift 2
    cat >"$out/data.yaml" <<END
data:
  class_path: mathcanvas_lightning.MathCanvasDataModule
  init_args:
    train: [&puzzles {
      path: $out/shards,
      name: puzzles,
      vae_transform: {max_image_size: 96, min_image_size: 48, image_stride: 16},
      vit_transform: {max_image_size: 112, min_image_size: 56, image_stride: 14}}]
    validation: [*puzzles]
    max_num_tokens: 2048
    max_num_tokens_per_sample: 2048
    workers: {num_workers: 2}
model:
  class_path: mathcanvas_lightning.BagelModule
  init_args: {source: {checkpoint: $out/model}, schedule: {name: constant}}
trainer: {devices: 1, logger: false, gradient_clip_val: 1.0, limit_val_batches: 2}
END
    mathcanvas "$command" --config "$out/data.yaml" "$@" "${trainer[@]}" \
        --trainer.default_root_dir "$folder"
}

validate() { run validate validated "${sharded[@]}"; }

# adapters RECIPE STEPS: with STEPS 2 clipped and saved, with STEPS 4 resumed from there.
adapters() {
    run fit "$1" --config "configs/trainer/$1.yaml" --data.init_args.max_num_tokens 2048 \
        --data.init_args.max_num_tokens_per_sample 2048 --trainer.max_steps "$2"
}

# compiled FOLDER STEPS OPTIONS...: sharded and compiled, with a memory budget.
compiled() {
    local backend=inductor folder="$1" steps="$2"
    shift 2
    if [ "$device" = cpu ]; then backend=aot_eager_decomp_partition; fi
    TORCH_LOGS=recompiles run fit "$folder" "${sharded[@]}" \
        --model.init_args.parallelism.compile true \
        --model.init_args.parallelism.compile_backend "$backend" \
        --model.init_args.parallelism.activation_memory_budget 0.1 --trainer.max_steps "$steps" "$@"
}

traced() {
    run fit traced --trainer.max_steps 12 \
        --trainer.profiler lightning.pytorch.profilers.PyTorchProfiler \
        --trainer.profiler.dirpath "$out/trace" --trainer.profiler.filename trace
}

speed() {
    python tools/benchmark_training.py --preset "$wide" --llm_num_hidden_layers "$layers" \
        --max_num_tokens "$tokens" --dtype "$dtype" --steps 5 --no_baseline "$@"
}

{
    echo "$(date -u +%F), $(python -c 'import platform, torch
print(torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + ", no GPU")
print("torch", torch.__version__)' | paste -sd, -)"
    echo
    echo "| check | result | time | log |"
    echo "|---|---|---|---|"
} | tee "$table"
check "flex against dense attention" python tools/check_attention.py --json "$out/attention.json"
check "puzzles and a model" data
check "validation with ShardedStrategy" validate
for recipe in one_gpu_24gb one_gpu_24gb_offload; do
    check "$recipe: two steps, clipped and saved" adapters "$recipe" 2
    check "$recipe: resumed" adapters "$recipe" 4
done
check "compiled, sharded, with a memory budget" compiled compiled 20
if python -c 'import torchao.float8' 2>/dev/null; then
    check "the same in float8" compiled float8 5 --model.init_args.float8 true
fi
check "profiler trace" traced
check "speed and MFU, recomputed" speed --activation_checkpointing full --json "$out/speed.json"
if [ "$device" = cuda ]; then
    check "speed and MFU, compiled" speed --compile --json "$out/speed_compiled.json"
fi
echo
echo "Recompilations: $(grep -c 'Recompiling function' "$out"/compiled_sharded_with_a_memory_budget_.log)"
python - "$out" <<'END'
import json, pathlib, sys

for path in sorted(pathlib.Path(sys.argv[1]).glob("speed*.json")):
    for name, row in json.loads(path.read_text())["speeds"].items():
        mfu = f", MFU {row['mfu']:.1%}" if row.get("mfu") else ""
        print(f"{path.stem}, {name}: {row['tokens_per_s']:,.0f} tokens/s{mfu}")
END
exit "$failed"
