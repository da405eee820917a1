"""Runs one engine inside this process, in several ways, and writes its texts as JSON.

The tests run it in a separate process: vLLM changes global state, and the controls replace parts
of the plugin.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}

import torch
from vllm import LLM, SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler

from mathcanvas_lightning.vllm_bagel import ARCHITECTURE, cpu_attention, model, scheduler
from mathcanvas_lightning.vllm_bagel.blocks import ImageBlock, engine_prompt
from mathcanvas_lightning.vllm_bagel.directory import read_directory
from mathcanvas_lightning.vllm_bagel.ranges import ImageRange, Segment, rope_positions
from tests.conftest import golden_folder
from tests.vllm_bagel.contexts import NUM_WRITTEN, Case, cases, golden_texts

BLOCK = 32
"""Tokens of a KV block."""
MAX_SEQS = 16
Texts = dict[str, dict[str, list[Any]]]


def start(folder: Path, found: Sequence[Case]) -> LLM:
    """An engine whose passes hold little more than one image, and whose cache overflows."""
    sizes = [sum(_length(part) for part in case.context) + 32 for case in found]
    window = -(-max(sizes) // BLOCK) * BLOCK
    return LLM(
        model=str(folder),
        hf_overrides={"architectures": [ARCHITECTURE]},
        dtype="float32",
        max_model_len=window,
        max_num_seqs=MAX_SEQS,
        max_num_batched_tokens=read_directory(str(folder)).max_block_tokens + MAX_SEQS,
        block_size=BLOCK,
        num_gpu_blocks_override=window // BLOCK + 5,
        kv_cache_memory_bytes=2**28,
        enable_prefix_caching=True,
    )


class Runs:
    """Writes the texts of all cases with one engine.

    Args:
        llm: The engine.
        pad: Id of the placeholder.
    """

    def __init__(self, llm: LLM, pad: int) -> None:
        self.llm, self.pad = llm, pad
        self.num_cached = 0

    def __call__(self, found: Sequence[Case], num_tokens: int = NUM_WRITTEN) -> Texts:
        """Greedy texts of some cases, all at once."""
        sampling = SamplingParams(
            temperature=0, max_tokens=num_tokens, ignore_eos=True, logprobs=0, detokenize=False
        )
        prompts: Any = [engine_prompt(case.context, self.pad) for case in found]
        outputs = self.llm.generate(prompts, sampling, use_tqdm=False)
        texts: Texts = {}
        self.num_cached = 0
        for case, output in zip(found, outputs, strict=True):
            [made] = output.outputs
            assert made.logprobs is not None
            chosen = zip(made.token_ids, made.logprobs, strict=True)
            logprobs = [row[token].logprob for token, row in chosen]
            texts[case.name] = {"ids": list(made.token_ids), "logprobs": logprobs}
            self.num_cached += output.num_cached_tokens or 0
        return texts

    def cold(self, found: Sequence[Case]) -> Texts:
        """The same with an empty prefix cache."""
        assert self.llm.reset_prefix_cache()
        return self(found)


@contextmanager
def counted_preemptions() -> Iterator[list[int]]:
    """Counts how often the scheduler takes back the cache of a request."""
    number = [0]
    before = Scheduler._preempt_request

    def preempt(self: Any, *args: Any, **kwargs: Any) -> Any:
        number[0] += 1
        return before(self, *args, **kwargs)

    with mock.patch.object(Scheduler, "_preempt_request", preempt):
        yield number


def causal(query_lens: Sequence[int], seq_lens: Sequence[int], _: object) -> list[Segment]:
    """Control: images attend causally."""
    pairs = zip(query_lens, seq_lens, strict=True)
    return [Segment(i, length, end, is_causal=True) for i, (length, end) in enumerate(pairs)]


def sequential(num_tokens: int, images: Sequence[ImageRange]) -> tuple[torch.Tensor, int]:
    """Control: each token of an image takes a position."""
    rows = rope_positions(num_tokens, images)[0]
    steps = torch.arange(num_tokens)
    return torch.stack([steps, steps + rows[1] - rows[0], steps]), 0


def one_expert(positions: torch.Tensor) -> torch.Tensor:
    """Control: the understanding expert computes latents too."""
    return torch.zeros_like(positions[0], dtype=torch.bool)


CONTROLS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "causal": (cpu_attention, "attention_segments", causal),
    "sequential": (model, "rope_positions", sequential),
    "one_expert": (model, "gen_mask", one_expert),
}


def split_error(runs: Runs, found: Sequence[Case]) -> str:
    """What the guard says if the scheduler splits images; ends the engine."""
    runs.llm.reset_prefix_cache()
    try:
        with mock.patch.object(scheduler, "whole_images", lambda _, num_new, __: num_new):
            runs(found)
    except Exception as error:  # of any type: vLLM may wrap it
        return f"{type(error).__name__}: {error}"
    return ""


def main(out: Path) -> None:
    """All runs."""
    folder = golden_folder() / "tiny_bagel"
    found = cases()
    runs = Runs(start(folder, found), read_directory(str(folder)).pad)
    results: dict[str, Any] = {}
    with counted_preemptions() as number:
        results["all"] = runs.cold(found)
    results["num_preemptions"] = number[0]
    results["warm"] = runs(found)
    results["warm_again"] = {}
    results["num_cached"] = 0
    for case in found[-4:]:
        for _ in range(2):
            results["warm_again"] |= runs([case])
        results["num_cached"] += runs.num_cached
    runs.llm.reset_prefix_cache()
    results["fours"] = {}
    for first in range(0, len(found), 4):
        results["fours"] |= runs(found[first : first + 4])
    longest = max(len(ids) for ids in golden_texts().values())
    results["golden"] = runs([case for case in found if case.name in golden_texts()], longest)
    for name, (module, attribute, control) in CONTROLS.items():
        with mock.patch.object(module, attribute, control):
            results[name] = runs.cold(found)
    results["after_controls"] = runs.cold(found[:8])
    results["split_error"] = split_error(runs, found)
    out.write_text(json.dumps(results))


def _length(part: Any) -> int:
    return part.num_tokens if isinstance(part, ImageBlock) else len(part)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # the engine may be broken on purpose
