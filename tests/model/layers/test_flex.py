"""Number of graphs that torch compiles for packs of all kinds, and the padding of short ones."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention

from mathcanvas_lightning.batch.layout import BLOCK_TOKENS, SOME_PAIRS
from mathcanvas_lightning.data.sequence.pack import filler_pack
from mathcanvas_lightning.data.sequence.tokenizer import SpecialTokens
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers import flex
from mathcanvas_lightning.model.layers.attention import (
    dense_mask,
    full_layout,
    stored_layout,
)
from mathcanvas_lightning.model.layers.flex import MAX_GRAPHS, compile_options
from mathcanvas_lightning.model.layers.padding import MIN_TOKENS, Padding
from mathcanvas_lightning.model.synthetic import Kind, synthetic_inputs, synthetic_pack

CONFIG = BagelConfig.preset("tiny", llm_num_hidden_layers=1, vit_num_hidden_layers=2)
SPECIAL = SpecialTokens(bos=1, eos=2, start_of_image=3, end_of_image=4, end_of_text=5)
MIXED: list[Kind] = ["question", "clean", "vit", "answer", "noisy"]
PACKS: dict[str, tuple[list[list[Kind]], dict[str, tuple[int, int]]]] = {
    "mixed": ([MIXED] * 3, {"text_tokens": (40, 80), "image_side": (4, 8)}),
    "only texts": ([["question", "answer"]] * 3, {"text_tokens": (60, 90)}),
    "one token": ([["question"]], {"text_tokens": (1, 1)}),
    "one patch": ([["question", "vit", "noisy"]], {"image_side": (1, 1)}),
    "one block": ([["question"]], {"text_tokens": (BLOCK_TOKENS, BLOCK_TOKENS)}),
    "whole blocks": ([["answer"]] * 2, {"text_tokens": (BLOCK_TOKENS, BLOCK_TOKENS)}),
    "many patches": ([["vit", "answer"]], {"image_side": (16, 16)}),
    "drawings": ([["question", "noisy"]] * 3, {"text_tokens": (40, 80), "image_side": (4, 8)}),
    "mixed again": ([MIXED] * 2, {"text_tokens": (40, 80), "image_side": (5, 9)}),
}


def count_graphs(model: Bagel, counters: list[CompileCounterWithBackend]) -> list[int]:
    """Graphs of each function after the first pack and after all, for training and validation."""
    packs = [synthetic_pack(samples, CONFIG, **sizes) for samples, sizes in PACKS.values()]
    packs.append(filler_pack(CONFIG.geometry, SPECIAL))
    numbers = []
    for has_grad in (True, False):
        for number, batch in enumerate(packs):
            inputs = synthetic_inputs(batch, CONFIG)
            with torch.set_grad_enabled(has_grad):
                model.attention_path = "flex"
                found = model(batch, **inputs)
                if has_grad:
                    (found.hidden_states.sum() + found.velocities.sum()).backward()
            with torch.no_grad():
                model.attention_path = "dense"
                with torch.compiler.set_stance("force_eager"):
                    wanted = model(batch, **inputs)
            torch.testing.assert_close(
                found.hidden_states, wanted.hidden_states, atol=1e-4, rtol=1e-4
            )
            if number in (0, len(packs) - 1):
                numbers.append(sum(counter.frame_count for counter in counters))
    return numbers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
@pytest.mark.parametrize("compiled", ["attention", "layers"])
def test_no_pack_needs_a_separate_graph(compiled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # FlexAttention refuses a backward pass on the CPU, but only its kernels lack it.
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    torch._dynamo.reset()
    model = Bagel.empty(CONFIG, dtype=torch.float32, device="cpu")
    model.reset_parameters(0)
    model.freeze()
    counters = [CompileCounterWithBackend("aot_eager") for _ in flex.ATTEND]
    options = compile_options(fullgraph=True)
    functions: dict[Any, Any] = {}
    stacks = (model.language_model.model.layers, model.vit_model.vision_model.encoder.layers)
    for (stack, attend), layers, counter in zip(flex.ATTEND.items(), stacks, counters, strict=True):
        functions[stack] = torch.compile(attend, backend=counter, **options)
        for layer in layers if compiled == "layers" else ():
            layer.forward = torch.compile(layer.forward, backend=counter, **options)
    if compiled == "attention":
        monkeypatch.setattr(flex, "ATTEND", functions)
    first, trained, validated, all_ = count_graphs(model, counters)
    assert first == trained <= 4
    assert validated == all_ <= 8
    assert torch._dynamo.config.recompile_limit >= MAX_GRAPHS


@settings(deadline=None)
@given(st.lists(st.sampled_from([*PACKS]), max_size=2), st.booleans())
def test_padding_attends_to_itself(names: list[str], keeps_blocks: bool) -> None:
    samples = [sample for name in names for sample in PACKS[name][0]]
    batch = synthetic_pack(samples, CONFIG, image_side=(1, 8))
    layout, gen = stored_layout(batch.layout), len(batch.latent_indexes)
    und = len(layout.sample_ids) - gen
    if not keeps_blocks:  # as if the first token were a latent
        und, gen = min(und, 1), len(layout.sample_ids) - min(und, 1)
    padding = Padding.of_experts(und, gen)
    assert und + padding.und >= 2 <= gen + padding.gen
    assert und + gen + padding.und + padding.gen >= MIN_TOKENS
    padded = padding.of_layout(layout, und)
    mask = dense_mask(padded)
    real = torch.ones(len(mask), dtype=torch.bool)
    real[und : und + padding.und] = False
    real[und + padding.und + gen :] = False
    assert torch.equal(mask[real][:, real], dense_mask(layout))
    assert torch.equal(mask[~real], torch.eye(len(mask), dtype=torch.bool)[~real])
    assert torch.equal(mask[:, ~real], torch.eye(len(mask), dtype=torch.bool)[:, ~real])
    if padded.blocks is None:
        assert padding.und
        assert gen
    else:
        blocks = padded.blocks.repeat_interleave(BLOCK_TOKENS, 0)
        blocks = blocks.repeat_interleave(BLOCK_TOKENS, 1)[: len(mask), : len(mask)]
        assert not mask[blocks < SOME_PAIRS].any()
        assert mask[blocks > SOME_PAIRS].all()


def test_long_packs_are_not_padded() -> None:
    assert Padding.of_experts(300, 2) == Padding.of_patches(300) == Padding()
    layout = full_layout(torch.zeros(300, dtype=torch.int64))
    assert Padding().of_layout(layout, 300) is layout


def test_beyond_the_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    options = compile_options(fullgraph=True)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    compiled = torch.compile(lambda x: x * 2, backend="eager", **options)
    compiled(torch.ones(3))
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        compiled(torch.ones(3, dtype=torch.int64))
