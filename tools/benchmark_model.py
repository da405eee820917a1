"""Compares speed and memory of the network with a plain index-gather implementation.

The plain implementation follows the reference and has the same weights: every layer gathers tokens
by expert and scatters them back around every norm, projection and MLP; each sample has a dense
mask; a repeated image is encoded again; the logits of all tokens are in memory at once. Its
training step clips and updates as torch does by default. Images are encoded apart, with --vae.
Time is the median of alternating runs in this process; on the CPU it is processor time, which other
programs disturb less. Memory is the increase of the peak over the start of the step: of a separate
process on the CPU, of the allocator on CUDA. That of a training step on the CPU includes moments.

--shares adds where the time of a training step goes, from torch's profiler: products of weights,
attention, and the rest. Attention consists of products, too. Those of the allowed pairs are
counted, and their time is computed at the rate of the products of weights: a floor for attention.

Example:
  python tools/benchmark_model.py --preset small --tokens 2048 --shares
  python tools/benchmark_model.py --preset 7b --layers 2 --tokens 8192 --dtype bfloat16 --compile
"""

import argparse
import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mathcanvas_lightning.batch import PackedBatch
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.flops import BACKWARD_FACTOR, forward_flops
from mathcanvas_lightning.model.flow import add_noise, velocity_target
from mathcanvas_lightning.model.layers.attention import (
    count_attended_pairs,
    dense_mask,
    make_layout,
)
from mathcanvas_lightning.model.layers.basic import rotary_tables, rotate
from mathcanvas_lightning.model.layers.mot import DecoderLayer
from mathcanvas_lightning.model.synthetic import synthetic_inputs, synthetic_pack
from mathcanvas_lightning.model.vae import LatentVAE, pack_latents
from mathcanvas_lightning.training.callbacks.monitor import device_peak_flops
from mathcanvas_lightning.training.gradients import Gradients
from mathcanvas_lightning.training.optim import OptimizerConfig, make_optimizer

COMPOSITIONS = {
    "mixed": ["question", "clean", "vit", "answer", "noisy", "clean", "vit", "answer"],
    "text": ["question", "answer"],
    "drawing": ["question", "noisy"],
}
Step = Callable[[Bagel, PackedBatch, dict[str, Tensor]], Tensor]


def our_loss(model: Bagel, batch: PackedBatch, inputs: dict[str, Tensor]) -> Tensor:
    """The library's forward pass and loss."""
    output = model(batch, **inputs)
    return _loss(output.ce, output.velocities, batch, inputs)


def plain_loss(model: Bagel, batch: PackedBatch, inputs: dict[str, Tensor]) -> Tensor:
    """The plain forward pass and loss, with the same weights."""
    llm = model.config.llm
    und = torch.cat([batch.text_indexes, batch.vit_indexes])
    gen = batch.latent_indexes
    embedded = model.language_model.model.embed_tokens(batch.text_ids)
    x = embedded.new_zeros(batch.sequence_length, llm.hidden_size)
    x[batch.text_indexes] = embedded
    if batch.vit_lens:
        vit = model.embed_vit(batch.vit_patches, batch.vit_position_ids, batch.vit_lens)
        x[batch.vit_indexes] = vit.to(x.dtype)
    if len(gen):
        noised = add_noise(inputs["latents"], inputs["noise"], inputs["timesteps"])
        latents = model.embed_latents(noised, inputs["timesteps"], batch.latent_position_ids)
        x[gen] = latents.to(x.dtype)
    rotary = rotary_tables(batch.position_ids, llm.head_dim, llm.rope_theta)
    layout = make_layout(batch.sample_lens, batch.splits, x.device)
    indexes = torch.arange(batch.sequence_length, device=x.device).split(list(batch.sample_lens))
    masks = [dense_mask(layout, sample) for sample in indexes]
    for layer in model.language_model.model.layers:
        assert isinstance(layer, DecoderLayer)
        x = _plain_layer(layer, x, und, gen, rotary, masks, batch.sample_lens)
    decoder = model.language_model.model
    x = _scattered(x, x.shape[-1], (und, decoder.norm), (gen, decoder.norm_moe_gen))
    logits = model.language_model.lm_head(x[batch.ce_indexes])
    ce = F.cross_entropy(logits.float(), batch.ce_label_ids, reduction="none")
    return _loss(ce, model.llm2vae(x[batch.mse_indexes]), batch, inputs)


def _plain_layer(
    layer: DecoderLayer,
    x: Tensor,
    und: Tensor,
    gen: Tensor,
    rotary: tuple[Tensor, Tensor],
    masks: list[Tensor],
    sample_lens: tuple[int, ...],
) -> Tensor:
    attention: Any = layer.self_attn

    def both(source: Tensor, owner: Any, name: str) -> Tensor:
        first, second = getattr(owner, name), getattr(owner, f"{name}_moe_gen")
        width = getattr(first, "out_features", source.shape[-1])
        return _scattered(source, width, (und, first), (gen, second))

    normed = both(x, layer, "input_layernorm")
    heads = {
        name: both(normed, attention, f"{name}_proj").unflatten(-1, (-1, attention.head_dim))
        for name in "qkv"
    }
    query, key = (rotate(both(heads[name], attention, f"{name}_norm"), rotary) for name in "qk")
    parts = []
    for mask, q, k, v in zip(
        masks, *(t.split(list(sample_lens)) for t in (query, key, heads["v"])), strict=True
    ):
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        parts.append(out[0].transpose(0, 1).flatten(1))
    x = x + both(torch.cat(parts), attention, "o_proj")
    normed = both(x, layer, "post_attention_layernorm")
    return x + _scattered(normed, x.shape[-1], (und, layer.mlp), (gen, layer.mlp_moe_gen))


def _scattered(source: Tensor, width: int, *experts: tuple[Tensor, Any]) -> Tensor:
    out = source.new_zeros(*source.shape[:-1], width)
    for indexes, function in experts:
        if len(indexes):
            out[indexes] = function(source[indexes]).to(out.dtype)
    return out


def _loss(ce: Tensor, velocities: Tensor, batch: PackedBatch, inputs: dict[str, Tensor]) -> Tensor:
    target = velocity_target(inputs["latents"], inputs["noise"])[batch.noisy_latents()]
    return ce.sum() + (velocities.float() - target).square().sum()


def encode_plainly(vae: LatentVAE, batch: PackedBatch) -> None:
    """Encodes all items, also repeated ones, padded to one size, as one batch."""
    items = [batch.images[image] for image in batch.latent_image_ids]
    height, width = (max(item.shape[axis] for item in items) for axis in (1, 2))
    vae.moments(
        torch.stack([F.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in items])
    )


def measure_vae(options: argparse.Namespace, setup: Any) -> list[dict[str, Any]]:
    """Measures the latent tokens per second of encoding the pack's images."""
    model, batch, inputs = setup
    vae = LatentVAE(model.config.vae).to(options.device, getattr(torch, options.dtype))
    encoders = {
        "index gather": lambda: encode_plainly(vae, batch),
        "ours": lambda: pack_latents(vae, batch, model.config.latent_patch_size),
    }
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for repeat in range(options.repeats + 1):
        for name, encode in encoders.items():
            started = _now(inputs)
            encode()
            if repeat:
                seconds[name].append(_now(inputs) - started)
    return [
        {
            "pass": "VAE encode",
            "implementation": name,
            "tokens_per_s": len(batch.latent_indexes) / median(times),
            "seconds": median(times),
        }
        for name, times in seconds.items()
    ]


PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
ATTENTION = ("scaled_dot_product", "softmax")
COLUMNS = {"peak_mib": "{:,.0f}", "tflops_per_s": "{:,.3f}", "mfu": "{:.1%}"}
CONTENDERS: dict[str, Step] = {"index gather": plain_loss, "ours": our_loss}
PASSES = ("forward", "forward+backward", "training step")
NO_CHANGE = 1e-30
"""Learning rate with which both implementations keep equal weights."""


def build(options: argparse.Namespace) -> tuple[Bagel, PackedBatch, dict[str, Tensor]]:
    """Makes the model and a pack of about the given number of tokens."""
    overrides = {} if options.layers is None else {"llm_num_hidden_layers": options.layers}
    config = BagelConfig.preset(options.preset, **overrides)
    side = min(config.max_latent_size, config.vit_max_num_patch_per_side, options.image_side)
    sample: Any = COMPOSITIONS[options.composition]
    sizes = {"text_tokens": (64, 256), "image_side": (max(1, side // 2), side)}
    batch, samples = synthetic_pack([sample], config, **sizes), [sample]
    while batch.sequence_length < options.tokens:
        samples.append(sample)
        batch = synthetic_pack(samples, config, **sizes)
    dtype = getattr(torch, options.dtype)
    model = Bagel.empty(config, dtype=dtype, device=options.device)
    if options.device == "cpu":
        model.reset_parameters(0)
    else:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    model.freeze()
    inputs = synthetic_inputs(batch, config)
    inputs = {name: tensor.to(options.device) for name, tensor in inputs.items()}
    return model, batch.to(options.device), inputs


def run_once(name: str, kind: str, setup: Any, optimizer: Any = None) -> float:
    """Returns the seconds of one pass; a training step needs an optimizer."""
    model, batch, inputs = setup
    model.zero_grad(set_to_none=True)
    started = _now(inputs)
    with torch.set_grad_enabled(kind != "forward"):
        loss = CONTENDERS[name](model, batch, inputs)
        if kind != "forward":
            loss.backward()
        if kind == "training step":
            clip(name, model)
            optimizer.step()
    return _now(inputs) - started


def optimizer_of(name: str, model: Bagel) -> torch.optim.Optimizer:
    """Makes the optimizer of an implementation."""
    if name == "ours":
        return make_optimizer(model, OptimizerConfig(lr=NO_CHANGE))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=NO_CHANGE, weight_decay=0.0)


def clip(name: str, model: Bagel) -> None:
    """Clips gradients to a norm of one."""
    if name != "ours":
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return
    gradients = Gradients(model.named_parameters(), None, next(model.parameters()).device)
    gradients.clip_norm(1.0, gradients.norms()["total"])


def step_shares(name: str, setup: Any) -> dict[str, Any]:
    """Returns the parts of a training step's processor time, from torch's profiler."""
    model, batch, _ = setup
    optimizer = optimizer_of(name, model)
    run_once(name, "training step", setup, optimizer)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run_once(name, "training step", setup, optimizer)
    found = dict.fromkeys(("products", "attention", "rest"), 0.0)
    for event in profile.key_averages():
        is_product = event.key in PRODUCTS
        is_attention = any(word in event.key for word in ATTENTION)
        part = "products" if is_product else "attention" if is_attention else "rest"
        found[part] += event.self_cpu_time_total / 1e6
    whole = sum(found.values())
    total = forward_flops(model.config, batch) * (1 + BACKWARD_FACTOR)
    of_pairs = attention_flops(model.config, batch) * (1 + BACKWARD_FACTOR)
    rate = (total - of_pairs) / found["products"]
    shares = {part: seconds / whole for part, seconds in found.items()}
    return {"implementation": name, **shares, "attention_floor": of_pairs / rate / whole}


def attention_flops(config: BagelConfig, batch: PackedBatch) -> int:
    """Counts the operations of a forward pass between the tokens that attend."""
    pairs = count_attended_pairs(batch.sample_lens, batch.splits)
    patches = sum(length**2 for length in batch.vit_lens)
    decoder = config.llm.num_hidden_layers * config.llm.hidden_size
    return 4 * (pairs * decoder + patches * config.vit.num_layers_used * config.vit.hidden_size)


def _now(inputs: dict[str, Tensor]) -> float:
    if not inputs["latents"].is_cuda:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _peak_in_child(options: argparse.Namespace, name: str, kind: str, result: Any) -> None:
    torch.set_num_threads(options.threads)
    setup = build(options)
    optimizer = optimizer_of(name, setup[0])
    before = _resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak
    for _ in range(1 + (kind == "training step")):  # the second one starts with moments
        run_once(name, kind, setup, optimizer)
    result.send(_resident_mib("VmHWM") - before)


def _resident_mib(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def peak_in_child(options: argparse.Namespace, name: str, kind: str) -> float:
    """Measures by how much the peak memory of a step exceeds that before it, in MiB."""
    context = multiprocessing.get_context("fork")  # of a process that has only imported
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_peak_in_child, args=(options, name, kind, send))
    process.start()
    peak: float = receive.recv()
    process.join()
    return peak


def peak_on_cuda(name: str, kind: str, setup: Any, optimizer: Any) -> float:
    """Same as `peak_in_child`, for the allocator of CUDA."""
    setup[0].zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run_once(name, kind, setup, optimizer)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns one row per implementation and pass."""
    cases = [(name, kind) for kind in PASSES for name in CONTENDERS]
    peaks = {}
    if options.device == "cpu":  # in separate processes, before this one builds a model
        peaks = {case: peak_in_child(options, *case) for case in cases}
    setup = build(options)
    model, batch, _ = setup
    if options.compile:
        for layer in model.language_model.model.layers:
            layer.compile(dynamic=True)
    check_agreement(setup, getattr(torch, options.dtype))
    peak = device_peak_flops(torch.device(options.device))
    rows = []
    optimizers = {name: optimizer_of(name, model) for name in CONTENDERS}
    for kind in PASSES:
        seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for repeat in range(options.repeats + 1):
            for name in CONTENDERS:
                took = run_once(name, kind, setup, optimizers[name])
                if repeat:  # the first run is a warm-up
                    seconds[name].append(took)
        flops = forward_flops(model.config, batch) * (1 + BACKWARD_FACTOR * (kind != "forward"))
        for name, times in seconds.items():
            rows.append(
                {
                    "pass": kind,
                    "implementation": name,
                    "tokens_per_s": batch.sequence_length / median(times),
                    "seconds": median(times),
                    "peak_mib": peaks[name, kind]
                    if peaks
                    else peak_on_cuda(name, kind, setup, optimizers[name]),
                    "tflops_per_s": flops / median(times) / 1e12,
                    "mfu": None if peak is None else flops / median(times) / peak,
                }
            )
    return rows + (measure_vae(options, setup) if options.vae else [])


def check_agreement(setup: Any, dtype: torch.dtype) -> None:
    """Exits if the two implementations don't compute the same loss."""
    with torch.no_grad():
        losses = [step(*setup).item() for step in CONTENDERS.values()]
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    if abs(losses[0] - losses[1]) > tolerance * abs(losses[0]):
        raise SystemExit(f"the implementations disagree: losses {losses}")


def parse() -> argparse.Namespace:
    """Parses the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--preset", default="small", help="tiny, small or 7b (default: small)")
    parser.add_argument("--layers", type=int, help="decoder layers (default: the preset's)")
    parser.add_argument("--tokens", type=int, default=2048, help="of a pack (default: 2048)")
    parser.add_argument("--image_side", type=int, default=32, help="tokens per side (default: 32)")
    parser.add_argument("--composition", default="mixed", choices=COMPOSITIONS, help="of samples")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--vae", action="store_true", help="also encode the images")
    parser.add_argument("--shares", action="store_true", help="also where a step's time goes (CPU)")
    parser.add_argument("--compile", action="store_true", help="compile decoder layers (ours)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def main() -> None:
    """Measures, and shows the results."""
    options = parse()
    torch.set_num_threads(options.threads)
    rows = measure(options)
    setup = build(options) if options.shares else None
    shares = [step_shares(name, setup) for name in CONTENDERS] if options.shares else []
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    title = f"{options.preset}, {options.composition}, {options.dtype}, {device}"
    names = ("pass", "implementation", "tokens/s", "peak MiB", "TFLOP/s", "MFU")
    table = Table(*names, title=title)
    for row in rows:
        table.add_row(
            row["pass"],
            row["implementation"],
            f"{row['tokens_per_s']:,.0f}",
            *(
                style.format(row[key]) if row.get(key) is not None else "-"
                for key, style in COLUMNS.items()
            ),
        )
    Console().print(table)
    for row in shares:
        parts = ", ".join(f"{row[part]:.0%} {part}" for part in ("products", "attention", "rest"))
        floor = f"{row['attention_floor']:.0%}"
        Console().print(f"{row['implementation']}: {parts}; attention's own products: {floor}")
    if options.json:
        about = {"date": datetime.now(UTC).date().isoformat(), "device": device}
        about |= {
            "rows": rows,
            "shares": shares,
            "torch": torch.__version__,
            "options": {k: str(v) for k, v in vars(options).items()},
        }
        options.json.write_text(
            json.dumps(about | {"rows": rows, "shares": shares}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
