"""Speed of reasoning with drawings, compared to a plain loop that answers one problem at a time.

Each problem has a text and a picture; its answer is a text, a drawing, ..., a text. The model has
random weights, so a script replaces its tokens after sampling. Both implementations do the same
work, and their drawings are compared first. benchmark_generation_baseline.py describes the plain
loop. With --vllm, another contender gets its texts from vLLM (benchmark_generation_vllm.py).
Figures are medians of alternating runs in this process.

Example:
  python tools/benchmark_generation.py --preset tiny --batch_sizes 1 4 16
  python tools/benchmark_generation.py --preset small --text_tokens 64 --json figures.json
  python tools/benchmark_generation.py --preset tiny --vllm
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmark_generation_baseline import PlainGenerator
from benchmark_generation_vllm import VLLMSide, vllm_side
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.generation.bagel.contexts import ItemMaker
from mathcanvas_lightning.generation.bagel.generator import InterleavedGenerator
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig, FeatureCache
from mathcanvas_lightning.generation.bagel.options import BatchLimits, ImageOptions
from mathcanvas_lightning.generation.bagel.problem import InterleavedConfig, Problem
from mathcanvas_lightning.generation.bagel.text_steps import TextConfig, TokenChoice, choose_tokens
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.vae import LatentVAE

QUESTION = "What is the area of the shape in the picture? Draw what helps you, then answer. "
MAX_DIFFERENCE = {"float32": 0.1, "bfloat16": 5.0}
"""Allowed mean difference of drawings, in levels of a pixel, from rounding."""
GREEDY = TextConfig(temperature=0.0)


class Bench:
    """A model, problems and their script.

    Args:
        options: Options of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.tokenizer = TextTokenizer(None)
        config = BagelConfig.preset(options.preset)
        if options.layers is not None:
            config = config.override(llm_num_hidden_layers=options.layers)
        dtype, device = getattr(torch, options.dtype), torch.device(options.device)
        self.model = Bagel.empty(config, dtype=dtype, device=device)
        self.model.reset_parameters(0)
        with torch.no_grad():
            self.model.llm2vae.weight.normal_(std=0.02)  # initially zero: it would draw nothing
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.vae = LatentVAE(config.vae).to(device, dtype)
        side, patch = options.image_px, config.vit.patch_size
        near = side // patch * patch
        self.transforms = (
            ImageTransform(max_image_size=side, min_image_size=side, image_stride=16),
            ImageTransform(max_image_size=near, min_image_size=near, image_stride=patch),
        )
        special = self.tokenizer.special
        self.text_ids = self.tokenizer.encode("abcdefgh" * options.text_tokens)
        self.text_ids = self.text_ids[: options.text_tokens]
        self.actions = [special.start_of_image] * options.drawings + [special.end_of_text]

    def inputs(self, number: int) -> tuple[str, Image.Image]:
        """A question and its picture."""
        side = self.options.image_px
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
        return QUESTION, Image.fromarray(pixels)

    def scripted(self, step: int, index: int) -> int:
        """The next token of an answer: a text token, the end token, or the action."""
        length = len(self.text_ids)
        if index < length:
            return self.text_ids[index]
        return self.tokenizer.special.eos if index == length else self.actions[step - 1]

    def plain(self, count: int) -> list[list[Any]]:
        """Answers of the plain loop."""
        maker = ItemMaker(self.model.config, self.tokenizer, *self.transforms)
        config = DrawingConfig(num_timesteps=self.options.timesteps)
        generator = PlainGenerator(self.model, self.vae, self.tokenizer, maker, config)

        def choose(logits: Tensor, step: int, index: int) -> int:
            int(logits[0].argmax())
            return self.scripted(step, index)

        return [generator.answer(str(i), self.inputs(i), choose) for i in range(count)]

    def ours(self, count: int, batch_size: int, reuse: FeatureCache | None) -> list[list[Any]]:
        """Answers of the library."""

        def choose(logits: Tensor, choices: Sequence[TokenChoice]) -> list[int]:
            choose_tokens(logits, choices)
            return [self.scripted(choice.step, choice.index) for choice in choices]

        drawing = DrawingConfig(num_timesteps=self.options.timesteps, feature_cache=reuse)
        generator = InterleavedGenerator(
            self.model,
            self.vae,
            self.tokenizer,
            images=ImageOptions(vae_transform=self.transforms[0], vit_transform=self.transforms[1]),
            config=InterleavedConfig(text=GREEDY, drawing=drawing),
            limits=BatchLimits(
                max_batch_size=batch_size, max_context_tokens=self.options.max_context_tokens
            ),
            choose=choose,
        )
        problems = [Problem(uid=str(i), inputs=self.inputs(i)) for i in range(count)]
        return [[step.content for step in answer.steps] for answer in generator.run(problems)]

    def over_vllm(self, side: VLLMSide, count: int, batch_size: int) -> list[list[Any]]:
        """Answers of the library, with texts by vLLM."""
        drawing = DrawingConfig(num_timesteps=self.options.timesteps)
        config = InterleavedConfig(text=GREEDY, drawing=drawing)
        return side.answers(count, batch_size, config)


def check_agreement(bench: Bench, side: VLLMSide | None) -> dict[str, float]:
    """Exits if the drawings differ; returns the differences, also with the feature cache."""
    plain, ours = bench.plain(1), bench.ours(1, 1, None)
    others = [] if side is None else [bench.over_vllm(side, 1, 1)]
    difference = max(_difference(plain, other) for other in (ours, *others))
    if difference > MAX_DIFFERENCE[bench.options.dtype]:
        raise SystemExit(f"the implementations disagree by {difference} levels of a pixel")
    reused = bench.ours(1, 1, FeatureCache(refresh_every=bench.options.refresh_every))
    return {"agreement_levels": difference, "reused_levels": _difference(ours, reused)}


def _difference(left: list[list[Any]], right: list[list[Any]]) -> float:
    """Mean difference of drawings in levels of a pixel; texts must be equal."""
    found = [0.0]
    for one, other in zip(left[0], right[0], strict=True):
        if isinstance(one, str):
            assert one == other
        else:
            pixels = [np.asarray(image).astype(float) for image in (one, other)]
            found.append(float(np.abs(pixels[0] - pixels[1]).mean()))
    return max(found)


def measure(bench: Bench, side: VLLMSide | None) -> list[dict[str, Any]]:
    """Measures problems per second of each implementation."""
    options = bench.options
    reuse = FeatureCache(refresh_every=options.refresh_every)
    contenders: dict[str, tuple[int, Callable[[int], Any]]] = {
        "plain loop": (options.plain_problems, bench.plain)
    }
    for size in options.batch_sizes:
        name, count = f"ours, batch {size}", max(size, options.plain_problems)
        contenders[name] = (count, lambda n, size=size: bench.ours(n, size, None))
        if side is not None:
            contenders[f"vLLM writes, batch {size}"] = (
                count,
                lambda n, size=size: bench.over_vllm(side, n, size),
            )
    largest = max(options.batch_sizes)
    contenders[f"ours, batch {largest}, feature cache"] = (
        max(largest, options.plain_problems),
        lambda n: bench.ours(n, largest, reuse),
    )
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(options.repeats + 1):
        for name, (count, answer) in contenders.items():
            started = time.perf_counter()
            answer(count if repeat else 1)
            if repeat:  # the first run is a warm-up
                rates[name].append(count / (time.perf_counter() - started))
    base = median(rates["plain loop"])
    return [
        {
            "implementation": name,
            "problems": contenders[name][0],
            "problems_per_s": median(own),
            "slowest": min(own),
            "fastest": max(own),
            "times_plain": median(own) / base,
        }
        for name, own in rates.items()
    ]


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--preset", default="tiny", help="tiny, small or 7b (default: tiny)")
    parser.add_argument("--layers", type=int, help="decoder layers (default: the preset's)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument(
        "--text_tokens", type=int, default=64, help="length of each text (default: 64)"
    )
    parser.add_argument("--drawings", type=int, default=1, help="drawings per answer (default: 1)")
    parser.add_argument(
        "--timesteps", type=int, default=25, help="timesteps of a drawing (default: 25)"
    )
    parser.add_argument("--image_px", type=int, default=64, help="side of pictures (default: 64)")
    parser.add_argument(
        "--refresh_every", type=int, default=3, help="steps between passes with the feature cache"
    )
    parser.add_argument("--max_context_tokens", type=int, default=2048)
    parser.add_argument(
        "--plain_problems", type=int, default=2, help="problems in a run of the plain loop"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each implementation (default: 3)"
    )
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--vllm", action="store_true", help="also measure with texts by vLLM")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Prints a table."""
    names = ("implementation", "problems", "problems/s", "slowest to fastest", "x plain loop")
    table = Table(*names, title=title)
    for row in rows:
        table.add_row(
            row["implementation"],
            str(row["problems"]),
            f"{row['problems_per_s']:.3f}",
            f"{row['slowest']:.3f} to {row['fastest']:.3f}",
            f"{row['times_plain']:.1f}",
        )
    Console().print(table)


def show_shares(figures: dict[int, dict[str, float]]) -> None:
    """Prints where the time of the runs with vLLM went."""
    table = Table(
        "problems at a time",
        "drawing, of the time",
        "only waiting for vLLM",
        "context tokens from the prefix cache",
        title="vLLM writes",
    )
    for size, shares in figures.items():
        table.add_row(str(size), *(f"{share:.0%}" for share in shares.values()))
    Console().print(table)


def main() -> None:
    """Runs the benchmark and prints the results."""
    options = parse()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    with ExitStack() as stack:
        side = stack.enter_context(vllm_side(bench)) if options.vllm else None
        agreement: dict[str, Any] = check_agreement(bench, side)
        rows = measure(bench, side)
    if side is not None:
        show_shares(side.figures)
        agreement["vllm_shares"] = side.figures
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device,
        "torch": torch.__version__,
        "options": {k: str(v) for k, v in vars(options).items()},
    }
    show(
        rows, f"{options.preset}, {options.text_tokens} tokens per text, {options.dtype}, {device}"
    )
    if options.json:
        options.json.write_text(json.dumps(about | agreement | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
