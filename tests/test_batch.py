"""PackedBatch: consistent parts, moved together."""

import dataclasses
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.batch import LossTotals, MicroBatch, SampleInfo, to_unit_range
from mathcanvas_lightning.batch.layout import ALL_PAIRS, BLOCK_TOKENS, SOME_PAIRS, mask_blocks
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers.attention import (
    Attention,
    dense_mask,
    full_layout,
    stored_layout,
)
from mathcanvas_lightning.model.synthetic import Kind, synthetic_pack
from tests.conftest import examples

CONFIG = BagelConfig.preset("tiny")
BATCH = synthetic_pack([["question", "clean", "vit", "answer", "noisy"], ["answer"]], CONFIG)


def test_moves_with_all_tensors() -> None:
    moved = BATCH.to("meta")
    tensors = [getattr(moved, f.name) for f in dataclasses.fields(moved)]
    assert {t.device.type for t in tensors if isinstance(t, torch.Tensor)} == {"meta"}
    assert {image.device.type for image in moved.images} == {"meta"}
    assert moved.sample_lens == BATCH.sample_lens
    assert BATCH.text_ids.device.type == "cpu"


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BATCH.sample_lens = ()  # type: ignore[misc]


def test_noisy_latents() -> None:
    assert int(BATCH.noisy_latents().sum()) == len(BATCH.mse_indexes)


@pytest.mark.parametrize(
    "name",
    [
        "position_ids",
        "text_indexes",
        "vit_patches",
        "vit_position_ids",
        "latent_position_ids",
        "timestep_logits",
        "ce_label_ids",
        "sample_lens",
        "splits",
        "vit_lens",
        "latent_shapes",
        "latent_image_ids",
    ],
)
def test_inconsistent_parts_are_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="found"):
        dataclasses.replace(BATCH, **{name: getattr(BATCH, name)[:-1]})


@settings(deadline=None, max_examples=examples(40))
@given(
    samples=st.lists(
        st.lists(st.sampled_from(["question", "clean", "vit", "answer", "noisy"]), min_size=1),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 9),
)
def test_blocks_of_the_mask(samples: list[list[Kind]], seed: int) -> None:
    """They are those of the mask, token by token."""
    sizes = {"text_tokens": (2, 200), "image_side": (2, 14)}
    layout = synthetic_pack(samples, CONFIG, seed=seed, **sizes).layout
    for token_layout, blocks in (
        (stored_layout(layout), layout.blocks),
        (full_layout(layout.vit_image_ids), layout.vit_blocks),
    ):
        mask = dense_mask(token_layout)
        padded = torch.nn.functional.pad(mask, (0, -len(mask) % BLOCK_TOKENS) * 2)
        count = len(padded) // BLOCK_TOKENS
        pairs = padded.view(count, BLOCK_TOKENS, count, BLOCK_TOKENS).sum(dim=(1, 3))
        wanted = (pairs > 0).to(torch.uint8) + (pairs == BLOCK_TOKENS**2).to(torch.uint8)
        assert torch.equal(blocks, wanted)


def test_storage_in_sequence_order_leaves_fewer_blocks() -> None:
    config = BagelConfig.preset("7b")
    samples: Any = [["question", "vit", "answer", "noisy", "clean", "vit", "answer"]] * 6
    pack = synthetic_pack(samples, config, text_tokens=(64, 256), image_side=(8, 16))
    layout = pack.layout
    order = torch.cat([pack.text_indexes, pack.vit_indexes, pack.latent_indexes])
    place = layout.inverse[order]
    by_kind = mask_blocks(
        order,
        layout.sample_ids[place],
        layout.split_ids[place],
        layout.bidirectional[place],
        layout.noisy[place],
    )
    for values in ([SOME_PAIRS], [SOME_PAIRS, ALL_PAIRS]):
        now, before = (torch.isin(b, torch.tensor(values)).sum() for b in (layout.blocks, by_kind))
        assert int(now) < 0.9 * int(before)


def test_attention_takes_the_blocks_of_the_host() -> None:
    layout = stored_layout(BATCH.layout)
    made = Attention(replace(layout, blocks=None), "flex")
    given_blocks = Attention(layout, "flex")
    assert torch.equal(made.block_mask.to_dense(), given_blocks.block_mask.to_dense())


@pytest.mark.parametrize("has_layout", [False, True])
def test_survives_pickling_in_one_buffer(has_layout: bool) -> None:
    pack = dataclasses.replace(BATCH)
    if has_layout:
        assert len(pack.layout.order) == pack.sequence_length
    found = pickle.loads(pickle.dumps(pack))
    assert ("layout" in vars(found)) == has_layout
    for member in dataclasses.fields(pack):
        value, wanted = getattr(found, member.name), getattr(pack, member.name)
        if isinstance(wanted, torch.Tensor):
            assert torch.equal(value, wanted)
            assert value.untyped_storage().data_ptr() == found.text_ids.untyped_storage().data_ptr()
        elif member.name != "images":
            assert value == wanted
    assert all(map(torch.equal, found.images, pack.images))
    assert torch.equal(found.layout.split_ids, pack.layout.split_ids)
    assert found.layout.noisy_items == pack.layout.noisy_items
    assert torch.equal(found.to("cpu").vit_patches, pack.vit_patches)


def test_levels_map_to_the_unit_range() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    wanted = (levels.float() / 255 - 0.5) / 0.5
    assert torch.equal(to_unit_range(levels), wanted)
    assert to_unit_range(wanted) is wanted


def test_shows_counts_and_escapes_names() -> None:
    counts = "2 samples, 31 tokens, 24 text tokens"
    assert repr(BATCH).startswith(f"PackedBatch({counts}")
    assert len(repr(BATCH)) < 200
    evil = SampleInfo(uid="<b>", dataset="set & co", num_tokens=1200)
    batch = MicroBatch(
        pack=BATCH,
        samples=(evil,),
        image_seeds=(),
        step_totals=LossTotals(),
        epoch=0,
        step=3,
    )
    assert repr(batch) == f"MicroBatch(epoch 0, step 3, {BATCH!r})"
    shown = batch._repr_html_()
    assert "<td>set &amp; co</td><td>&lt;b&gt;</td><td>1,200</td>" in shown
    assert BATCH._repr_html_() in shown
