"""Descriptions and drawings of packs: complete, with the mask of the attention rule."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from mathcanvas_lightning.batch import PackedBatch, TokenGeometry
from mathcanvas_lightning.data.sequence.pack import (
    PackItem,
    PlannedSplit,
    SpecialTokens,
    pack_samples,
)
from mathcanvas_lightning.inspection.pack_drawing import draw_pack
from mathcanvas_lightning.inspection.pack_mask import mask_image
from mathcanvas_lightning.inspection.pack_table import Block, blocks_table, describe_pack
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers.attention import dense_mask, make_layout
from mathcanvas_lightning.model.synthetic import Kind, synthetic_pack
from tests.conftest import golden_folder
from tests.parity.packs import load_pack, need

GOLDEN = golden_folder()
CONFIG = BagelConfig.preset("tiny")
PACKS: list[list[list[Kind]]] = [
    [["question", "clean", "vit", "answer", "noisy", "clean", "vit", "answer"], ["answer"]],
    [["question"], ["answer", "answer"]],
    [["vit"]],
    [["noisy"], ["clean"], ["question"]],
]


GEOMETRY = TokenGeometry(vit_patch_px=2, latent_patch_px=2, max_vit_side=8, max_latent_side=8)
SPECIAL = SpecialTokens(bos=1, eos=2, start_of_image=3, end_of_image=4, end_of_text=5)


def vit_images(*sizes: tuple[int, int]) -> PackItem:
    splits = (PlannedSplit(kind="vit", element=i, droppable=False) for i in range(len(sizes)))
    pixels = {i: np.zeros((2 * h, 2 * w, 3), np.uint8) for i, (h, w) in enumerate(sizes)}
    return PackItem(splits=tuple(splits), text_ids={}, vae_pixels={}, vit_pixels=pixels)


def spelled(ids: list[int]) -> str:
    return " ".join(map(str, ids))


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("pack_*.json")))
def test_blocks_of_the_reference(name: str) -> None:
    about = json.loads(need(GOLDEN / f"{name}.json").read_text())
    batch = load_pack(GOLDEN, name, BagelConfig.from_directory(need(GOLDEN / "tiny_bagel"))).batch
    blocks = describe_pack(batch, spelled)
    check(blocks, batch)
    assert [block.attention_mode for block in blocks] == about["attn_modes"]
    assert [block.end - block.start for block in blocks] == about["split_lens"]
    shapes = [list(b.size) for b in blocks if b.expert == "gen" and b.size]
    drawn = list(about["patchified_vae_latent_shapes"])
    assert shapes == drawn[: len(shapes)]


@pytest.mark.parametrize("samples", PACKS)
def test_blocks_of_any_pack(samples: list[list[Kind]], tmp_path: Path) -> None:
    batch = synthetic_pack(samples, CONFIG)
    blocks = describe_pack(batch, spelled)
    check(blocks, batch)
    names: dict[str, str] = {"question": "text", "answer": "text", "vit": "ViT image"}
    names |= {"clean": "clean latents", "noisy": "noisy latents"}
    assert [block.kind for block in blocks] == [names[kind] for s in samples for kind in s]
    assert [block.sample for block in blocks] == [i for i, s in enumerate(samples) for _ in s]
    draw_pack(batch, tmp_path / "pack.png", blocks)
    with Image.open(tmp_path / "pack.png") as picture:
        assert picture.width >= 900


def check(blocks: tuple[Block, ...], batch: PackedBatch) -> None:
    assert [block.start for block in blocks] == [0, *(block.end for block in blocks)][:-1]
    assert blocks[-1].end == batch.sequence_length
    assert sum(block.ce_tokens for block in blocks) == len(batch.ce_indexes)
    assert sum(block.mse_tokens for block in blocks) == len(batch.mse_indexes)
    rope = batch.position_ids.tolist()
    for block in blocks:
        assert block.positions == (rope[block.start], rope[block.end - 1])
        assert bool(block.labels) == bool(block.ce_tokens)
        assert (block.kind == "text") == bool(block.text)
    texts = " ".join(block.text for block in blocks if block.text).split()
    markers = 2 * sum(block.kind != "text" for block in blocks)
    assert len(texts) == len(batch.text_ids) - markers


def test_the_mask_is_that_of_the_reference() -> None:
    masks = load_file(need(GOLDEN / "masks.safetensors"))
    config = BagelConfig.from_directory(need(GOLDEN / "tiny_bagel"))
    batch = load_pack(GOLDEN, "pack_all", config).batch
    image = mask_image(batch)
    start = 0
    for number, length in enumerate(batch.sample_lens):
        [mask] = [m for name, m in masks.items() if name.split("_")[-1] == str(number)] or [
            list(masks.values())[number]
        ]
        part = image[start : start + length, start : start + length]
        np.testing.assert_array_equal(part, mask.float().numpy())
        start += length


@pytest.mark.parametrize("samples", PACKS)
@pytest.mark.parametrize("max_px", [1000, 7])
def test_the_mask_follows_the_attention_rule(samples: list[list[Kind]], max_px: int) -> None:
    batch = synthetic_pack(samples, CONFIG)
    layout = make_layout(batch.sample_lens, batch.splits, torch.device("cpu"))
    dense = dense_mask(layout).float().numpy()
    size = min(max_px, len(dense))
    edges = np.arange(size + 1) * len(dense) // size
    wanted = np.array(
        [
            [dense[a:b, c:d].mean() for c, d in itertools.pairwise(edges)]
            for a, b in itertools.pairwise(edges)
        ]
    )
    np.testing.assert_allclose(mask_image(batch, max_px), wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(240)  # a T x T mask would take gigabytes, and minutes
def test_a_long_pack_is_drawn(tmp_path: Path) -> None:
    sample: list[Kind] = ["question", "clean", "vit", "answer", "noisy", "clean", "vit", "answer"]
    batch = synthetic_pack([sample] * 40, CONFIG, text_tokens=(300, 500), image_side=(12, 16))
    assert batch.sequence_length > 45_000
    draw_pack(batch, tmp_path / "pack.png", describe_pack(batch, spelled))
    assert (tmp_path / "pack.png").is_file()


def test_the_table_shows_texts_without_markup() -> None:
    batch = synthetic_pack([["question", "answer"]], CONFIG)
    blocks = describe_pack(batch, lambda ids: "[b]bold[/b]\nnext line")
    console = Console(width=200, record=True, file=None)
    with console.capture() as captured:
        console.print(blocks_table(blocks, ["row[1]"]))
    out = captured.get()
    assert "[b]bold[/b]" in out
    assert "\\n" in out
    assert "row[1]" in out


def test_blocks_of_another_pack(tmp_path: Path) -> None:
    batch, other = (synthetic_pack(samples, CONFIG) for samples in PACKS[:2])
    with pytest.raises(ValueError, match="don't cover"):
        draw_pack(batch, tmp_path / "x.png", describe_pack(other, spelled))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sizes", "interpolate", "wanted"),
    [
        ([(3, 4), (2, 1), (1, 1)], False, [(3, 4), (2, 1), (1, 1)]),
        ([(3, 4), (1, 5), (2, 8)], False, [(3, 4), (1, 5), (2, 8)]),
        ([(2, 8)], False, [None]),  # or one row of 16
        ([(3, 4)], True, [None]),
        ([(3, 4), (5, 3), (1, 1)], True, [None, None, (1, 1)]),
    ],
)
def test_sizes_of_vit_images(
    sizes: list[tuple[int, int]], interpolate: bool, wanted: list[tuple[int, int] | None]
) -> None:
    items = [vit_images(*sizes)]
    batch = pack_samples(items, GEOMETRY, SPECIAL, interpolate_positions=interpolate)
    assert [block.size for block in describe_pack(batch, spelled)] == wanted


def test_a_hole_is_padding(tmp_path: Path) -> None:
    text = PlannedSplit(kind="text", element=0, droppable=False)
    short = PackItem(splits=(text,), text_ids={0: ()}, vae_pixels={}, vit_pixels={})
    batch = pack_samples([vit_images((1, 1)), PackItem(hole_tokens=9), short], GEOMETRY, SPECIAL)
    blocks = describe_pack(batch, spelled)
    assert [block.kind for block in blocks] == ["ViT image", "padding", "text"]
    assert [block.text for block in blocks] == ["", "", "1 2"]
    draw_pack(batch, tmp_path / "pack.png", blocks)
    with Image.open(tmp_path / "pack.png") as picture:
        assert (200, 200, 200) in {colour for _, colour in picture.getcolors(1 << 20) or []}


def test_an_empty_pack(tmp_path: Path) -> None:
    batch = synthetic_pack([], CONFIG)
    assert describe_pack(batch, spelled) == ()
    draw_pack(batch, tmp_path / "pack.png", ())
    assert mask_image(batch).shape == (0, 0)


def test_a_block_takes_one_line_and_counts_are_worded() -> None:
    blocks = describe_pack(synthetic_pack([["question"]], CONFIG), lambda ids: "long " * 99)
    console = Console(width=100)
    with console.capture() as captured:
        console.print(blocks_table(blocks, ["name " * 9]))
    title, *lines = captured.get().splitlines()
    assert "1 sample, 1 split;" in title
    assert len(lines) == 5
