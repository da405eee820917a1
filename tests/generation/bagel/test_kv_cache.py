"""Cached attention gives the same results as one pass over the whole sequence."""

from dataclasses import replace
from itertools import zip_longest
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mathcanvas_lightning.batch import PackedBatch
from mathcanvas_lightning.data.sequence.pack import PackItem, pack_samples
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.bagel import contexts as contexts_module
from mathcanvas_lightning.generation.bagel import kv_cache
from mathcanvas_lightning.generation.bagel.contexts import Context, Item
from mathcanvas_lightning.generation.bagel.kv_cache import (
    CachedTokens,
    Span,
    in_passes,
    plan_batch_size,
    token_bytes,
)
from mathcanvas_lightning.generation.bagel.text_steps import next_logits
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.vae import pack_latents
from tests.conftest import examples
from tests.generation.drawing import Studio, parts, picture, studio

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-4}
KINDS = st.sampled_from(["short", "long", "", "small", "large", "vit"])


def make(kind: str, desk: Studio, seed: int) -> Item:
    """A text of the given length, or a picture of the given size."""
    if kind == "small":
        return desk.maker.image(picture(seed, 32, 32))
    if kind in ("large", "vit"):
        return desk.maker.image(picture(seed, 48, 32), for_vae=kind == "large")
    return desk.maker.text({"short": f"a{seed}", "long": f"{seed} words " * 3, "": ""}[kind])


def packed(items: list[list[Item]], desk: Studio) -> PackedBatch:
    """Whole contexts as one pack."""
    samples = [joined(own) for own in items]
    return pack_samples(samples, desk.maker.geometry, desk.maker.tokenizer.special)


def joined(items: list[Item]) -> PackItem:
    """Items of one context as one sample."""
    splits: list[Any] = []
    texts: dict[int, Any] = {}
    vae: dict[int, Any] = {}
    vit: dict[int, Any] = {}
    for number, item in enumerate(items):
        splits += [replace(split, element=number) for split in item.content.splits]
        for whole, own in (
            (texts, item.content.text_ids),
            (vae, item.content.vae_pixels),
            (vit, item.content.vit_pixels),
        ):
            if own:
                [whole[number]] = own.values()
    return PackItem(splits=tuple(splits), text_ids=texts, vae_pixels=vae, vit_pixels=vit)


def uncached(items: list[list[Item]], desk: Studio) -> tuple[Tensor, PackedBatch]:
    """Hidden states by the training forward."""
    batch = packed(items, desk)
    model, vae, _ = parts()
    latents = pack_latents(vae, batch, model.config.latent_patch_size)
    times = torch.zeros(len(latents))
    return model(batch, latents=latents, noise=latents, timesteps=times).hidden_states, batch


@torch.inference_mode()
@settings(deadline=None, max_examples=examples(25))
@given(st.lists(st.lists(KINDS, min_size=1, max_size=4), min_size=1, max_size=3), st.booleans())
def test_prefill_equals_the_training_forward(kinds: list[list[str]], at_once: bool) -> None:
    desk = studio()
    items = [[make(k, desk, 10 * i + j) for j, k in enumerate(own)] for i, own in enumerate(kinds)]
    rows = [Context(row=2 * i) for i in range(len(items))]
    entries = [(item, [rows[i]]) for i, own in enumerate(items) for item in own]
    passes = [entries] if at_once else [[entry] for entry in entries]
    found = [hidden for entry in passes for hidden in desk.prefiller.prefill(entry)]
    hidden, batch = uncached(items, desk)
    und = torch.cat([batch.text_indexes, batch.vit_indexes]).sort().values
    torch.testing.assert_close(torch.cat([und for und, _ in found]), hidden[und], **CLOSE)
    gen = torch.cat([gen for _, gen in found])
    torch.testing.assert_close(gen, hidden[batch.latent_indexes], **CLOSE)
    assert [row.length for row in rows] == list(batch.sample_lens)
    ends = torch.tensor(batch.sample_lens).cumsum(0) - 1
    assert [row.position for row in rows] == (batch.position_ids[ends] + 1).tolist()


@torch.inference_mode()
@settings(deadline=None, max_examples=examples(15))
@given(st.lists(st.tuples(KINDS, st.integers(1, 9)), min_size=1, max_size=6), st.randoms())
def test_token_by_token_equals_the_training_forward(rows: list[Any], order: Any) -> None:
    """Texts of different lengths after different prompts, as one batch, in any rows."""
    desk = studio()
    model, _, tokenizer = parts()
    places = order.sample(range(12), len(rows))
    contexts = [Context(row=place) for place in sorted(places)]
    prompts = [make(kind, desk, i) for i, (kind, _) in enumerate(rows)]
    desk.prefiller.prefill([(item, [c]) for item, c in zip(prompts, contexts, strict=True)])
    texts = [desk.maker.text("x" * count) for _, count in rows]
    ids = [
        [tokenizer.special.bos, *item.content.text_ids[0], tokenizer.special.eos] for item in texts
    ]
    found: list[list[Tensor]] = [[] for _ in rows]
    for place in range(max(map(len, ids))):
        active = [i for i, own in enumerate(ids) if place < len(own)]
        logits = next_logits(
            model, desk.cache, [contexts[i] for i in active], [ids[i][place] for i in active]
        )
        for i, row in zip(active, logits, strict=True):
            found[i].append(row)
    hidden, batch = uncached([list(pair) for pair in zip(prompts, texts, strict=True)], desk)
    for own, sample in zip(found, hidden.split(list(batch.sample_lens)), strict=True):
        wanted = model.language_model.lm_head(sample[-len(own) :])
        torch.testing.assert_close(torch.stack(own), wanted, **CLOSE)


@torch.inference_mode()
def test_prefill_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = studio()
    items = [make(kind, desk, i) for i, kind in enumerate(["long", "large", "short", "small"])]
    whole, parted = Context(row=0), Context(row=1)
    together = desk.prefiller.prefill([(item, [whole]) for item in items])
    monkeypatch.setattr(contexts_module, "MAX_PREFILL_TOKENS", 20)
    apart = desk.prefiller.prefill([(item, [parted]) for item in items])
    assert len(together) == 1 < len(apart)
    for expert in (0, 1):
        states = [torch.cat([own[expert] for own in passes]) for passes in (together, apart)]
        torch.testing.assert_close(states[0], states[1], **CLOSE)


@torch.inference_mode()
@pytest.mark.parametrize("most", [3, 4, 100])
def test_long_texts_attend_piece_by_piece(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks do not grow with the square of the text length; the first piece needs none."""
    masks = []
    real = F.scaled_dot_product_attention

    def attend(query: Tensor, *args: Any, **options: Any) -> Tensor:
        if options.get("enable_gqa"):
            masks.append(options["attn_mask"])
            assert query.shape[2] <= most
            assert options["is_causal"] == (masks[-1] is None)
        return real(query, *args, **options)

    desk = studio()
    model, _, _ = parts()
    items = [make(kind, desk, i) for i, kind in enumerate(["long", "large", "long", "short"])]
    hidden, batch = uncached([items], desk)
    monkeypatch.setattr(kv_cache, "MAX_CAUSAL", most)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    [(und, _)] = desk.prefiller.prefill([(item, [Context(row=5)]) for item in items[:1]])
    num_layers = model.config.llm.num_hidden_layers
    assert sum(mask is None for mask in masks) == num_layers
    context = Context(row=2)
    found = desk.prefiller.prefill([(item, [context]) for item in items])
    wanted = hidden[torch.cat([batch.text_indexes, batch.vit_indexes]).sort().values]
    torch.testing.assert_close(torch.cat([und for und, _ in found]), wanted, **CLOSE)
    torch.testing.assert_close(und, wanted[: len(und)], **CLOSE)
    torch.testing.assert_close(found[0][1], hidden[batch.latent_indexes], **CLOSE)


@torch.inference_mode()
def test_an_image_is_encoded_once_for_all_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, encoded = studio(), []
    vae = parts()[1]
    real = vae.moments
    monkeypatch.setattr(vae, "moments", lambda x: encoded.append(len(x)) or real(x))
    contexts = [Context(row=i) for i in range(3)]
    desk.prefill(contexts, desk.maker.image(picture(0)), desk.maker.text("see"))
    assert encoded == [1]
    assert contexts[0].length == contexts[1].length + contexts[2].length
    assert contexts[0].position == contexts[1].position + contexts[2].position


@torch.inference_mode()
def test_tokens_are_written_in_place() -> None:
    desk = studio()
    model = parts()[0]
    addresses = [tensor.data_ptr() for tensor in desk.cache.keys + desk.cache.values]
    context = Context(row=3)
    for token in range(5):
        next_logits(model, desk.cache, [context], [token])
    assert addresses == [tensor.data_ptr() for tensor in desk.cache.keys + desk.cache.values]
    keys = desk.cache.keys[0]
    assert keys[3, :, :5].abs().sum(-1).gt(0).all()
    assert keys[3, :, 5:].eq(0).all()
    assert keys[[0, 1, 2, 4]].eq(0).all()


def test_a_span_beyond_the_capacity_is_an_assertion() -> None:
    desk = studio(capacity=4)
    tokens = CachedTokens(desk.cache, [Span(row=0, start=3, length=2, position=0, kind="text")])
    with pytest.raises(AssertionError):
        tokens.reserve()


@given(st.lists(st.integers(1, 9)), st.integers(1, 12))
def test_passes(sizes: list[int], most: int) -> None:
    passes = list(in_passes(sizes, lambda size: size, most))
    assert [size for own in passes for size in own] == sizes
    for own, after in zip_longest(passes, passes[1:]):
        assert len(own) == 1 or sum(own) <= most
        assert after is None or sum(own) + after[0] > most


def test_memory() -> None:
    llm = BagelConfig().llm
    assert token_bytes(llm, torch.bfloat16) == 28 * 4 * 128 * 2 * 2
    assert plan_batch_size(10, 100, 16) == 10
    assert plan_batch_size(10, 1000, 16) == 16
    with pytest.raises(ConfigError, match="max_context_tokens"):
        plan_batch_size(101, 100, 16)
