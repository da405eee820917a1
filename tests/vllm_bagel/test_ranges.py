"""Positions, experts and attention of contexts: equal to those of packed samples."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.batch import TokenGeometry
from mathcanvas_lightning.data.sequence.pack import PackItem, pack_samples
from mathcanvas_lightning.data.sequence.splits import PlannedSplit
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.vllm_bagel.ranges import (
    ImageRange,
    SplitImageError,
    attention_segments,
    gen_mask,
    rope_positions,
    whole_images,
)

GEOMETRY = TokenGeometry(vit_patch_px=14, latent_patch_px=16, max_vit_side=8, max_latent_side=8)
KINDS = ("text", "vit", "clean")
items = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 3)), min_size=1, max_size=6)


def packed(contents: list[tuple[str, int]]) -> object:
    """A pack with one sample of these texts (ids) and images (columns)."""
    splits, texts, vae, vit = [], {}, {}, {}
    for number, (kind, size) in enumerate(contents):
        splits.append(PlannedSplit(kind=kind, element=number, droppable=False))  # type: ignore[arg-type]
        texts[number] = [7] * size
        vae[number] = np.zeros((16, 16 * size, 3), np.uint8)
        vit[number] = np.zeros((14, 14 * size, 3), np.uint8)
    item = PackItem(splits=tuple(splits), text_ids=texts, vae_pixels=vae, vit_pixels=vit)
    return pack_samples([item], GEOMETRY, TextTokenizer(None).special)


def images(pack: object, contents: list[tuple[str, int]]) -> list[ImageRange]:
    found, start = [], 0
    for (kind, _), split in zip(contents, pack.splits, strict=True):  # type: ignore[attr-defined]
        if kind != "text":
            found.append(ImageRange(start, split.length, is_latent=kind == "clean"))
        start += split.length
    return found


@given(items)
def test_positions_and_experts(contents: list[tuple[str, int]]) -> None:
    pack = packed(contents)
    wanted = pack.position_ids  # type: ignore[attr-defined]
    positions, shift = rope_positions(len(wanted), images(pack, contents)[::-1])
    assert positions[0].tolist() == positions[2].tolist() == wanted.tolist()
    is_gen = torch.zeros(len(wanted), dtype=torch.bool)
    is_gen[pack.latent_indexes] = True  # type: ignore[attr-defined]
    assert gen_mask(positions).tolist() == is_gen.tolist()
    more, _ = rope_positions(len(wanted) + 3, images(pack, contents))
    assert [index + shift for index in range(len(wanted), len(wanted) + 3)] == more[0, -3:].tolist()


@given(items, st.integers(0, 20), st.lists(st.integers(5, 12), min_size=40, max_size=40))
def test_chunks_attend_like_the_whole(
    contents: list[tuple[str, int]], cached: int, budgets: list[int]
) -> None:
    """A prefix may be cached up to any token; then each chunk has whole images."""
    pack = packed(contents)
    places = images(pack, contents)
    ranges = [(image.start, image.start + image.length - 1) for image in places]
    length = len(pack.position_ids)  # type: ignore[attr-defined]
    wanted = torch.ones(length, length).tril().bool()
    for first, last in ranges:
        wanted[first : last + 1, first : last + 1] = True
    cached = min(cached, length - 1)
    done, found = cached, torch.zeros(length, length, dtype=torch.bool)
    for budget in budgets:
        chunk = min(budget, length - done)
        new = whole_images(done, chunk, [(image.start, image.length) for image in places])
        assert 0 <= new <= chunk
        for segment in attention_segments([new], [done + new], {0: ranges}) if new else ():
            for token in range(segment.end - segment.length, segment.end):
                found[token, : token + 1 if segment.is_causal else segment.end] = True
        done += new
        if done == length:
            break
    assert done == length  # 5 tokens hold any image
    assert torch.equal(found[cached:], wanted[cached:])


def test_segments_of_a_batch() -> None:
    segments = attention_segments([4, 1, 6], [4, 9, 8], {0: [(1, 2)], 1: [(2, 5)], 2: [(1, 3)]})
    found = [(s.request, s.length, s.end, s.is_causal) for s in segments]
    assert found == [
        (0, 1, 1, True),
        (0, 2, 3, False),
        (0, 1, 4, True),
        (1, 1, 9, True),
        (2, 2, 4, False),  # its first token is cached
        (2, 4, 8, True),
    ]


def test_a_split_image_is_refused() -> None:
    with pytest.raises(SplitImageError, match="tokens 0 to 3, but an image has tokens 2 to 5"):
        attention_segments([4], [4], {0: [(2, 5)]})


@pytest.mark.parametrize(
    ("done", "num_new", "wanted"),
    [
        (0, 10, 10),
        (0, 3, 3),
        (0, 5, 3),
        (0, 6, 3),
        (3, 3, 0),
        (3, 4, 4),
        (4, 2, 0),
        (4, 3, 3),
        (7, 1, 1),
    ],
)
def test_whole_images(done: int, num_new: int, wanted: int) -> None:
    """An image of 4 tokens from token 3; 6 tokens end one before its end."""
    assert whole_images(done, num_new, [(3, 4)]) == wanted
