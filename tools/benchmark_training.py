"""Measures complete training steps and their parts, and compares them with a plain loop.

BagelModule trains in a Trainer on generated BlockMoving shards. After each of its steps, the plain
loop makes a step on the same pack, with the same weights and optimizer. It follows the reference
(see benchmark_model.py): repeated images are encoded again, all padded to one size; every layer
gathers tokens by expert and scatters them back; each sample has a dense mask; all logits are in
memory at once. It doesn't load data or make noise, so compare it with our speed without data wait.
It never recomputes activations of the decoder and is never compiled; to see the effect of
compilation, compare runs with and without --compile.
Values are medians of wall time; "optimizer" is clipping, AdamW and schedule. Processor time is
printed too: if it is much less, other programs used the machine. The same number of steps follows
in which each part is timed. On CUDA this synchronizes around every part, so the parts take a little
longer.

Example:
  python tools/benchmark_training.py --preset small --steps 10
  python tools/benchmark_training.py --preset 7b --llm_num_hidden_layers 4 --dtype bfloat16 \
    --max_num_tokens 16384 --compile --activation_checkpointing full
"""

import argparse
import json
import logging
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import lightning
import torch
from benchmark_model import check_agreement, encode_plainly, plain_loss
from lightning.pytorch import Callback, Trainer, seed_everything
from rich.console import Console
from rich.table import Table

from mathcanvas_lightning import generate_blockmoving
from mathcanvas_lightning.batch import MicroBatch
from mathcanvas_lightning.conversion.convert import convert_cot
from mathcanvas_lightning.data.datamodule import MathCanvasDataModule
from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.loading.config import DatasetConfig, WorkerConfig
from mathcanvas_lightning.model.flops import BACKWARD_FACTOR, forward_flops
from mathcanvas_lightning.model.parallelize import Parallelism
from mathcanvas_lightning.training import module as training_module
from mathcanvas_lightning.training.callbacks.monitor import device_peak_flops, peak_memory_gib
from mathcanvas_lightning.training.inputs import draw_inputs
from mathcanvas_lightning.training.module import BagelModule
from mathcanvas_lightning.training.optim import ScheduleConfig
from mathcanvas_lightning.training.source import ModelSource

WARMUP_STEPS = 3
PARTS = ("data wait", "VAE", "ViT", "decoder", "rest of forward", "backward", "optimizer", "rest")
OURS, WITHOUT_DATA, PLAIN = "ours", "ours without data wait", "plain loop"


class Clock:
    """Seconds of the current step by part; parts may be nested."""

    def __init__(self, device: torch.device, *, enabled: bool = False) -> None:
        self.device, self.enabled = device, enabled
        self.seconds: dict[str, float] = {}
        self._started: dict[str, float] = {}

    def now(self) -> float:
        """Synchronizes the device and returns the time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def start(self, part: str, *_: Any) -> None:
        """Starts a part."""
        if self.enabled:
            self._started[part] = self.now()

    def stop(self, part: str, *_: Any) -> None:
        """Ends a part."""
        if self.enabled and part in self._started:
            took = self.now() - self._started.pop(part)
            self.seconds[part] = self.seconds.get(part, 0.0) + took

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a function to measure its time."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.start(part)
            result = function(*args, **kwargs)
            self.stop(part)
            return result

        return run


class Stopwatch(Callback):
    """Measures complete steps, then steps by part, and runs the plain loop after each.

    Args:
        steps: Number of steps of each kind, after the warm-up.
        attention: Attention path; None for the default of the device.
        baseline: Whether the plain loop runs.
    """

    def __init__(self, steps: int, attention: Any, *, baseline: bool) -> None:
        self.steps, self.attention, self.baseline = steps, attention, baseline
        self.rows: list[dict[str, Any]] = []
        self.parts: list[dict[str, float]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:  # noqa: ARG002
        """Installs the clock on the parts."""
        network = pl_module.network
        network.attention_path = self.attention
        self.clock = clock = Clock(pl_module.device)
        training_module.draw_inputs = clock.timed("VAE", draw_inputs)
        network._embed_vit = clock.timed("ViT", network._embed_vit)
        for part, watched in (("forward", network), ("decoder", network.language_model.model)):
            watched.register_forward_pre_hook(partial(clock.start, part))
            watched.register_forward_hook(partial(clock.stop, part))

    def on_train_start(self, *_: Any) -> None:
        """Starts the first step."""
        self.number = 0
        self.busy = time.process_time()
        self.started, self.waited = self.clock.now(), 0.0

    def on_before_backward(self, *_: Any) -> None:
        """Starts the backward pass."""
        self.clock.start("backward")

    def on_after_backward(self, *_: Any) -> None:
        """Ends the backward pass."""
        self.clock.stop("backward")
        self.clock.start("optimizer")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Ends a step, and runs a step of the plain loop."""
        self.clock.stop("optimizer")
        seconds = self.clock.now() - self.started
        waited = trainer.train_dataloader.waited_s
        wait = waited - self.waited if waited >= self.waited else waited  # a new epoch
        busy = time.process_time() - self.busy
        self.number += 1
        measured = self.number > WARMUP_STEPS
        if measured and self.clock.enabled:
            self.parts.append(split_step(self.clock.seconds | {"data wait": wait}, seconds))
        elif measured:
            plain = self.step_plainly(trainer, pl_module, batch) if self.baseline else None
            self.rows.append(describe(pl_module, batch, seconds, wait, plain) | {"busy": busy})
        elif self.baseline:
            self.step_plainly(trainer, pl_module, batch)
        self.clock.enabled = self.number >= WARMUP_STEPS + self.steps
        self.clock.seconds = {}
        self.started, self.waited = self.clock.now(), waited
        self.busy = time.process_time()

    def step_plainly(self, trainer: Trainer, module: Any, batch: MicroBatch) -> float:
        """Returns the seconds of a step of the plain loop."""
        network, optimizer = module.network, trainer.optimizers[0]
        drawn = draw_inputs(
            module.vae, batch, module.config.latent_patch_size, module.timestep_shift
        )
        inputs = {name: getattr(drawn, name) for name in ("latents", "noise", "timesteps")}
        if self.number == 1:
            check_agreement((network, batch.pack, inputs), module.param_dtype)
        optimizer.zero_grad(set_to_none=True)
        started = self.clock.now()
        if batch.pack.images:
            encode_plainly(module.vae, batch.pack)
        plain_loss(network, batch.pack, inputs).backward()
        torch.nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], 1.0)
        torch.optim.AdamW.step(optimizer)  # not through the Trainer, which would count it
        optimizer.zero_grad(set_to_none=True)
        return self.clock.now() - started


def split_step(seconds: dict[str, float], whole: float) -> dict[str, float]:
    """Splits a step into parts that add up to it; "forward" includes ViT and decoder."""
    known = dict.fromkeys(PARTS, 0.0) | {k: v for k, v in seconds.items() if k in PARTS}
    forward = seconds.get("forward", 0.0)
    known["rest of forward"] = forward - known["ViT"] - known["decoder"]
    known["rest"] = whole - sum(known.values())
    return known | {"step": whole}


def describe(
    module: BagelModule, batch: MicroBatch, seconds: float, wait: float, plain: float | None
) -> dict[str, Any]:
    """Returns the measurements of one step."""
    return {
        "tokens": sum(sample.num_tokens for sample in batch.samples),
        "flops": forward_flops(module.config, batch.pack) * (1 + BACKWARD_FACTOR),
        OURS: seconds,
        WITHOUT_DATA: seconds - wait,
        **({} if plain is None else {PLAIN: plain}),
    }


def make_data(folder: Path, options: argparse.Namespace, source: ModelSource) -> Any:
    """Makes shards of puzzles and their data module."""
    generate_blockmoving(
        str(folder / "source"),
        num_tasks=options.tasks,
        view_px=options.view_px,
        num_workers=0,
        progress=False,
    )
    convert_cot(
        str(folder / "source" / "enhanced_cot_cleaned.json"),
        str(folder / "shards"),
        num_workers=0,
        progress=False,
    )
    geometry = source.config().geometry
    sides = {
        "vae_transform": (geometry.max_latent_side, geometry.latent_patch_px),
        "vit_transform": (geometry.max_vit_side, geometry.vit_patch_px),
    }
    transforms = {
        name: ImageTransform(
            max_image_size=min(options.image_px, tokens * stride) // stride * stride,
            min_image_size=min(options.image_px // 2, tokens * stride) // stride * stride,
            image_stride=stride,
        )
        for name, (tokens, stride) in sides.items()
    }
    return MathCanvasDataModule(
        train=[DatasetConfig(path=str(folder / "shards"), **transforms)],
        max_num_tokens=options.max_num_tokens,
        max_num_tokens_per_sample=options.max_num_tokens,
        overlong="quarantine",
        workers=WorkerConfig(num_workers=options.workers),
        geometry=geometry,
        quarantine_file=str(folder / "quarantine.jsonl"),
        progress=False,
    )


def train(options: argparse.Namespace, folder: Path) -> tuple[Stopwatch, BagelModule]:
    """Trains with measurements."""
    layers = options.llm_num_hidden_layers
    overrides = {} if layers is None else {"llm_num_hidden_layers": layers}
    source = ModelSource(preset=options.preset, overrides=overrides)
    module = BagelModule(
        source=source,
        schedule=ScheduleConfig(name="constant"),
        param_dtype=options.dtype,
        compute_dtype=options.dtype,
        parallelism=Parallelism(
            activation_checkpointing=options.activation_checkpointing, compile=options.compile
        ),
    )
    watch = Stopwatch(options.steps, options.attention, baseline=not options.no_baseline)
    trainer = Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        max_steps=WARMUP_STEPS + 2 * options.steps,
        gradient_clip_val=1.0,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, make_data(folder, options, source))
    return watch, module


def figures(watch: Stopwatch, device: torch.device) -> dict[str, Any]:
    """Computes the medians over the steps."""
    peak = device_peak_flops(device)
    speeds = {}
    for name in (OURS, WITHOUT_DATA, PLAIN):
        rows = [row for row in watch.rows if name in row]
        if not rows:
            continue
        speeds[name] = {
            "tokens_per_s": median(row["tokens"] / row[name] for row in rows),
            "seconds": median(row[name] for row in rows),
            "tflops_per_s": median(row["flops"] / row[name] for row in rows) / 1e12,
        }
        speeds[name]["mfu"] = peak and speeds[name]["tflops_per_s"] * 1e12 / peak
    parts = {name: median(step[name] for step in watch.parts) for name in (*PARTS, "step")}
    return {
        "tokens_a_step": median(row["tokens"] for row in watch.rows),
        "peak_gib": peak_memory_gib(device),
        "processor_s_a_step": median(row["busy"] for row in watch.rows),
        "speeds": speeds,
        "parts_s": parts,
    }


def show(found: dict[str, Any], title: str) -> None:
    """Prints tables."""
    table = Table("", "tokens/s", "s a step", "TFLOP/s", "MFU", title=title)
    for name, row in found["speeds"].items():
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        cells = (f"{row['tokens_per_s']:,.0f}", f"{row['seconds']:.4f}")
        table.add_row(name, *cells, f"{row['tflops_per_s']:,.4f}", mfu)
    Console().print(table)
    whole = found["parts_s"]["step"]
    table = Table("part", "ms", "share", title="a step by part, medians of each")
    for name, seconds in found["parts_s"].items():
        table.add_row(name, f"{seconds * 1e3:,.1f}", f"{seconds / whole:.1%}")
    Console().print(table)
    about = (
        f"{found['tokens_a_step']:,.0f} tokens per step, {found['processor_s_a_step']:.2f} s of "
        f"processor time, peak memory {found['peak_gib']:.2f} GiB"
    )
    if PLAIN in found["speeds"]:
        ours, plain = (found["speeds"][name]["tokens_per_s"] for name in (WITHOUT_DATA, PLAIN))
        about += f"; without data wait, ours is {ours / plain:.2f} times as fast as the plain loop"
    Console().print(about)


def parse() -> argparse.Namespace:
    """Parses the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--preset", default="tiny", help="tiny, small or 7b (default: tiny)")
    parser.add_argument("--llm_num_hidden_layers", type=int, help="(default: the preset's)")
    parser.add_argument("--steps", type=int, default=10, help="measured of each kind (default: 10)")
    parser.add_argument("--max_num_tokens", type=int, default=2048, help="(default: 2048)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cuda" if cuda else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--attention", choices=("dense", "sdpa", "flex"), help="(default: auto)")
    parser.add_argument("--compile", action="store_true", help="compile layers")
    parser.add_argument(
        "--activation_checkpointing", default="none", choices=("none", "selective", "full")
    )
    parser.add_argument("--no_baseline", action="store_true", help="leave the plain loop out")
    parser.add_argument("--tasks", type=int, default=40, help="puzzles to generate (default: 40)")
    parser.add_argument("--view_px", type=int, default=64, help="of a view (default: 64)")
    parser.add_argument("--image_px", type=int, default=128, help="longest side (default: 128)")
    parser.add_argument("--workers", type=int, default=0, help="that build packs (default: 0)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def main() -> None:
    """Measures, and shows the results."""
    options = parse()
    torch.set_num_threads(options.threads)
    seed_everything(0, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    with tempfile.TemporaryDirectory() as folder:
        watch, module = train(options, Path(folder))
    found = figures(watch, module.device)
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    show(found, f"{options.preset}, {options.dtype}, {device}")
    if options.json:
        about = {
            "date": datetime.now(UTC).date().isoformat(),
            "device": device,
            "versions": {package.__name__: package.__version__ for package in (torch, lightning)},
            "options": {name: str(value) for name, value in vars(options).items()},
        }
        options.json.write_text(json.dumps(about | found, indent=2) + "\n")


if __name__ == "__main__":
    main()
