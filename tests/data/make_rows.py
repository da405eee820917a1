"""Data for the tests of the data module: planned rows, and real shards of each format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mathcanvas_lightning.batch import TokenGeometry
from mathcanvas_lightning.data.datamodule import MathCanvasDataModule
from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.loading.config import DatasetConfig, WorkerConfig
from mathcanvas_lightning.data.plan.epoch import PlannedDataset
from mathcanvas_lightning.data.rows.readers import Role, RowFormat
from mathcanvas_lightning.data.sequence.roles import NO_DROPOUT, DropoutConfig, Elements
from mathcanvas_lightning.data.sequence.tokenizer import BYTE_TOKENIZER
from tests.conftest import png

GEOMETRY = TokenGeometry(vit_patch_px=14, latent_patch_px=16, max_vit_side=8, max_latent_side=6)
TOKENIZER = str(BYTE_TOKENIZER)
TRANSFORMS: dict[str, Any] = {
    "vae_transform": ImageTransform(max_image_size=64, min_image_size=32),
    "vit_transform": ImageTransform(max_image_size=56, min_image_size=28, image_stride=14),
}


def planned(
    lengths: Sequence[int],
    *,
    name: str = "set",
    rows_per_group: int = 3,
    weight: float | None = None,
    dropout: DropoutConfig = NO_DROPOUT,
) -> PlannedDataset:
    """Rows of one question each, with the given packed lengths (3 or more)."""
    count = len(lengths)
    return PlannedDataset(
        name=name,
        row_format="interleaved",
        elements=Elements(
            offsets=np.arange(count + 1),
            roles=np.full(count, Role.PROMPT_TEXT, np.int8),
            steps=np.zeros(count, np.int16),
            text_tokens=np.array(lengths, np.int32) - 2,
            latent_tokens=np.zeros(count, np.int32),
            vit_tokens=np.zeros(count, np.int32),
        ),
        counters=np.arange(count),
        row_groups=np.arange(count) // rows_per_group,
        weight=weight,
        dropout=dropout,
    )


def interleaved_row(number: int, *, words: int = 3, images: int = 2) -> dict[str, Any]:
    """A question with a picture, and a solution of steps with pictures."""
    colours = ("red", "green", "blue", "black")
    pictures = [
        png(24 + 8 * (number % 3), 24 + 8 * i, colours[(number + i) % 4]) for i in range(images)
    ]
    steps: list[dict[str, Any]] = []
    for index in range(images - 1):
        steps += [
            {"type": "text", "content": f"Step {index}: " + "go on " * (words + number % 5)},
            {"type": "image", "index": index},
        ]
    question = [{"type": "text", "content": f"Question {number}?"}, {"type": "image", "index": 0}]
    return {
        "id": f"row{number}",
        "answer": "A",
        "question_interleave": json.dumps(question if images else question[:1]),
        "solution_interleave": json.dumps([*steps, {"type": "text", "content": "It is A."}]),
        "question_images": [{"bytes": p, "path": None} for p in pictures[:1]],
        "solution_images": [{"bytes": p, "path": None} for p in pictures[1:]],
    }


def write_shards(
    folder: Path, rows: Sequence[dict[str, Any]], *, num_files: int = 2, rows_per_group: int = 4
) -> Path:
    """Writes shards with page checksums, as the converter does."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        table = pa.Table.from_pylist(list(rows[number::num_files]))
        pq.write_table(
            table,
            folder / f"part_{number}.parquet",
            row_group_size=rows_per_group,
            write_page_checksum=True,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
        )
    return folder


def interleaved_shards(folder: Path, count: int, **layout: int) -> Path:
    """Real shards with pictures."""
    return write_shards(folder, [interleaved_row(n) for n in range(count)], **layout)


def t2i_shards(folder: Path, count: int) -> Path:
    """Captions, one or several, in the published columns."""
    rows = [
        {"image": png(40, 32, "red"), "captions": [f"A red box {n}.", "A much longer caption " * 4]}
        for n in range(count)
    ]
    return write_shards(folder, rows)


def edit_shards(folder: Path, count: int) -> Path:
    """Chains of three to five pictures."""
    rows = [
        {
            "image_list": [png(32, 32, c) for c in ("red", "green", "blue", "black")[: 3 + n % 2]],
            "instruction_list": [[f"Step {n}.", "Do it."], ["Again."], ["Once more.", "More."]],
        }
        for n in range(count)
    ]
    return write_shards(folder, rows)


def vlm_file(folder: Path, count: int) -> Path:
    """Writes one conversation per line, and its picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / "pictures" / "a.png").write_bytes(png(30, 40, "blue"))
    lines = [
        {
            "id": f"talk{n}",
            "image": "pictures/a.png",
            "conversations": [
                {"from": "human", "value": f"<image>\nWhat is picture {n}?"},
                {"from": "gpt", "value": "Blue."},
            ],
        }
        for n in range(count)
    ]
    path = folder / "talks.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def config(
    path: Path | str, row_format: RowFormat = "interleaved", **options: Any
) -> DatasetConfig:
    """A data set with small pictures."""
    return DatasetConfig(path=str(path), format=row_format, **{**TRANSFORMS, **options})


def new_module(*train: DatasetConfig, **options: Any) -> MathCanvasDataModule:
    """A data module for the tiny model that builds packs in this process; not set up."""
    defaults: dict[str, Any] = {
        "tokenizer": TOKENIZER,
        "max_num_tokens": 400,
        "max_num_tokens_per_sample": 400,
        "geometry": GEOMETRY,
        "workers": WorkerConfig(num_workers=0),
        "index_workers": 0,
    }
    return MathCanvasDataModule(train=list(train), **{**defaults, **options})


def module(*train: DatasetConfig, **options: Any) -> MathCanvasDataModule:
    """As `new_module`, set up."""
    data = new_module(*train, **options)
    data.prepare_data()
    data.setup()
    return data
