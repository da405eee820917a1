"""Sequence plans, packs and pixels are equal to those of the reference."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mathcanvas_lightning.batch import PackedBatch, TokenGeometry, to_unit_range
from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.rows.readers import READERS, Element, RowFormat, Sample
from mathcanvas_lightning.data.sequence.encode import (
    MeasuredSample,
    RowSettings,
    count_elements,
    measure,
    prepare,
)
from mathcanvas_lightning.data.sequence.pack import PackItem, pack_samples
from mathcanvas_lightning.data.sequence.roles import NO_DROPOUT, DropoutConfig
from mathcanvas_lightning.data.sequence.splits import plan_sequence
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.model.config import BagelConfig
from tests.conftest import golden_folder
from tests.parity.packs import load_pack, need

GOLDEN = golden_folder()
PACKS = sorted(path.stem for path in GOLDEN.glob("pack_*.json"))
PARSED = sorted(path.name for path in GOLDEN.glob("parsed*.json"))
NEUTRAL = 0.5  # a random number that drops nothing without dropout


def read_json(name: str) -> Any:
    return json.loads(need(GOLDEN / name).read_text())


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(str(need(GOLDEN / "tiny_bagel")))


@pytest.fixture(scope="module")
def geometry() -> TokenGeometry:
    return BagelConfig.from_directory(need(GOLDEN / "tiny_bagel")).geometry


def read_row(row_id: str) -> tuple[RowFormat, Sample]:
    """Format and content of a row of the golden set."""
    if row_id in ("t2i", "edit"):
        [row] = pq.read_table(need(GOLDEN / f"{row_id}.parquet")).to_pylist()
        return row_id, READERS[row_id](row, row_id)  # type: ignore[index, return-value]
    if row_id == "vlm":
        return "vlm", READERS["vlm"](json.loads(need(GOLDEN / "vlm.jsonl").read_text()), row_id)
    rows = pq.read_table(need(GOLDEN / "rows.parquet")).to_pylist()
    [row] = [row for row in rows if row["id"] == row_id]
    return "interleaved", READERS["interleaved"](row, row_id)


def settings(row_format: RowFormat, dropout: DropoutConfig = NO_DROPOUT) -> RowSettings:
    given = read_json("settings.json")
    return RowSettings(
        row_format=row_format,
        vae_transform=ImageTransform(**given["image_transform"]),
        vit_transform=ImageTransform(**given["vit_image_transform"]),
        dropout=dropout,
        limits=ImageLimits(),
    )


def read_image(element: Element) -> bytes:
    if isinstance(element.content, bytes):
        return element.content
    return Path(GOLDEN / "vlm_images" / element.content).read_bytes()


def load(row_id: str, tokenizer: TextTokenizer) -> tuple[RowFormat, MeasuredSample]:
    row_format, sample = read_row(row_id)
    return row_format, measure(sample, tokenizer, ImageLimits(), read_image)


def prepared(
    row_ids: Sequence[str],
    tokenizer: TextTokenizer,
    geometry: TokenGeometry,
    dropout: DropoutConfig = NO_DROPOUT,
) -> list[PackItem]:
    items = []
    for row_id in row_ids:
        row_format, sample = load(row_id, tokenizer)
        uniforms = np.full((len(sample.elements), 4), NEUTRAL)
        item, _ = prepare(sample, settings(row_format, dropout), geometry, tokenizer, uniforms)
        items.append(item)
    return items


@pytest.mark.parametrize("name", PARSED)
def test_sequence_plans_equal_the_reference(
    name: str, tokenizer: TextTokenizer, geometry: TokenGeometry
) -> None:
    types = {"text": "text", "noisy": "vae_image", "clean": "vae_image", "vit": "vit_image"}
    for wanted in read_json(name):
        row_format, sample = load(wanted["row_id"], tokenizer)
        elements = count_elements(sample, settings(row_format), geometry)
        uniforms = np.full((len(sample.elements), 4), NEUTRAL)
        plan = plan_sequence(row_format, elements, uniforms, NO_DROPOUT, tokenizer.special)
        found = [
            {
                "type": types[split.kind],
                "enable_cfg": int(split.droppable),
                "loss": int(split.loss and split.kind in ("text", "noisy")),
                "special_token_loss": int(split.action_id is not None),
                "special_token_label": split.action_id,
            }
            for split in plan
        ]
        assert found == wanted["sequence_plan"], wanted["row_id"]
        texts = [list(sample.text_ids[s.element]) for s in plan if s.kind == "text"]
        assert texts == wanted["text_ids_list"]
        [item] = prepared([wanted["row_id"]], tokenizer, geometry)
        shapes = [
            (item.vit_pixels if s.kind == "vit" else item.vae_pixels)[s.element].shape
            for s in plan
            if s.kind != "text"
        ]
        assert [[3, h, w] for h, w, _ in shapes] == wanted["image_shapes"]
        pack = pack_samples([item], geometry, tokenizer.special)
        assert pack.sequence_length == wanted["num_tokens"] + 2 * len(plan)


@pytest.mark.parametrize("name", PACKS)
def test_packs_equal_the_reference(
    name: str, tokenizer: TextTokenizer, geometry: TokenGeometry
) -> None:
    about = read_json(f"{name}.json")
    config = BagelConfig.from_directory(GOLDEN / "tiny_bagel")
    wanted = load_pack(GOLDEN, name, config).batch
    dropped = name.removeprefix("pack_no_") if name.startswith("pack_no_") else ""
    dropout = dataclasses.replace(NO_DROPOUT, **({dropped: 1.0} if dropped else {}))
    items = with_timesteps(
        prepared(about["row_ids"], tokenizer, geometry, dropout), wanted.timestep_logits
    )
    found = pack_samples(items, geometry, tokenizer.special)
    compare(found, wanted, with_pixels=not dropped)


def with_timesteps(items: list[PackItem], logits: torch.Tensor) -> list[PackItem]:
    """The same items with the timesteps of the reference, image by image."""
    order: list[float] = []
    for value in logits[torch.isfinite(logits)].tolist():
        if not order or order[-1] != value:
            order.append(value)
    values = iter(order)
    return [
        dataclasses.replace(
            item,
            splits=tuple(
                dataclasses.replace(split, timestep_logit=next(values))
                if split.kind == "noisy"
                else split
                for split in item.splits
            ),
        )
        for item in items
    ]


def compare(found: PackedBatch, wanted: PackedBatch, *, with_pixels: bool) -> None:
    pixels = ("vit_patches", "images", "latent_image_ids")
    for member in dataclasses.fields(PackedBatch):
        ours, theirs = getattr(found, member.name), getattr(wanted, member.name)
        if member.name in pixels:
            continue
        if isinstance(ours, torch.Tensor):
            assert ours.dtype == theirs.dtype, member.name
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7, msg=member.name)
        else:
            assert ours == theirs, member.name
    if with_pixels:
        level = 2 / 255 + 1e-6
        patches = to_unit_range(found.vit_patches)
        torch.testing.assert_close(patches, wanted.vit_patches, rtol=0, atol=level)
        for ours, theirs in zip(found.latent_image_ids, wanted.latent_image_ids, strict=True):
            assert found.images[ours].dtype == torch.uint8
            image = to_unit_range(found.images[ours])
            torch.testing.assert_close(image, wanted.images[theirs], rtol=0, atol=level)


def test_image_sizes_equal_the_reference() -> None:
    for name, rows in read_json("resize_sizes.json").items():
        longest, shortest, stride = map(int, name.split("_"))
        rule = ImageTransform(max_image_size=longest, min_image_size=shortest, image_stride=stride)
        for width, height, *wanted in rows:
            assert list(rule.output_size(width, height)) == wanted, (name, width, height)
