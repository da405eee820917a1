"""Compares FlexAttention with dense attention: results, gradients, and compiled graphs.

Each length has a causal text, an image and a drawing. On a GPU, FlexAttention is compiled and its
gradients are compared too; on a CPU it has no backward pass. Lengths whose dense scores don't fit
into memory are compared with the split-by-split implementation. Ends with status 1 if a difference
is above the tolerance of its type.

Example:
  python tools/check_attention.py
  python tools/check_attention.py --lengths 1 127 128 129 4096 51200
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mathcanvas_lightning.batch import make_splits
from mathcanvas_lightning.model.layers.attention import Attention, make_layout
from mathcanvas_lightning.model.layers.flex import Stack

SHAPES: dict[str, tuple[Stack, int, int, int]] = {
    "decoder": ("decoder", 28, 4, 128),
    "ViT": ("vit", 16, 16, 72),
}
"""Heads, heads of keys and values, and head size of BAGEL-7B-MoT."""
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 4e-2}
"""Maximum difference, relative to the largest value; float32 may use TF32."""
MAX_DENSE = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One comparison."""

    stack: str
    dtype: str
    length: int
    error: float
    """Largest difference of results and gradients, relative to the largest value."""
    tolerance: float
    seconds: float
    """Duration of FlexAttention, forward and backward, after compiling."""


def compare(name: str, dtype: torch.dtype, length: int, device: torch.device) -> Comparison:
    """Compares both implementations at one length.

    Args:
        name: One of `SHAPES`.
        dtype: Type of queries, keys and values.
        length: Number of tokens.
        device: Device of the tokens.
    """
    stack, heads, kv_heads, size = SHAPES[name]
    lengths = [part for part in (length - 2 * (length // 3), length // 3, length // 3) if part]
    modes = ["causal", "full", "noise"] if name == "decoder" else ["full"] * 3
    splits = make_splits(lengths, modes[: len(lengths)])  # type: ignore[arg-type]
    layout = make_layout([length], splits, device)
    generator = torch.Generator(device).manual_seed(length)
    has_grad = device.type == "cuda"
    qkv = [
        torch.randn(
            length, n, size, dtype=dtype, device=device, generator=generator
        ).requires_grad_(has_grad)
        for n in (heads, kv_heads, kv_heads)
    ]
    flex = Attention(layout, "flex", stack)
    _values(flex, qkv)  # compiles
    start = time.perf_counter()
    found = _values(flex, qkv)
    seconds = time.perf_counter() - start
    wanted = _values(Attention(layout, "dense" if length <= MAX_DENSE else "sdpa"), qkv)
    error = max(
        float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-6))
        for a, b in zip(found, wanted, strict=True)
    )
    return Comparison(
        stack=name,
        dtype=str(dtype).removeprefix("torch."),
        length=length,
        error=error,
        tolerance=TOLERANCE[dtype],
        seconds=seconds,
    )


def _values(attention: Attention, qkv: list[torch.Tensor]) -> list[torch.Tensor]:
    result = attention(*qkv)
    values = [result.detach()]
    if result.requires_grad:
        values += torch.autograd.grad(result.float().square().sum(), qkv)
        torch.cuda.synchronize()
    return values


def main() -> int:
    """Compares, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    has_gpu = torch.cuda.is_available()
    lengths = [1, 127, 128, 129, 4096, 51200] if has_gpu else [1, 127, 128, 129]
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths)
    parser.add_argument("--device", default="cuda" if has_gpu else "cpu")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    device = torch.device(options.device)
    found = [
        compare(name, dtype, length, device)
        for name in SHAPES
        for dtype in TOLERANCE
        for length in options.lengths
    ]
    table = Table("stack", "type", "tokens", "error", "tolerance", "ms", title="flex, dense")
    for line in found:
        numbers = (f"{line.length:,}", f"{line.error:.1e}", f"{line.tolerance:g}")
        table.add_row(line.stack, line.dtype, *numbers, f"{line.seconds * 1e3:.1f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(line) for line in found], indent=2) + "\n")
    return int(any(not line.error <= line.tolerance for line in found))


if __name__ == "__main__":
    sys.exit(main())
