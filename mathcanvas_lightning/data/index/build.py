"""Indexing as a command: what it found, for people."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.index.index import DatasetIndex, LeftOut, build_index
from mathcanvas_lightning.data.rows.readers import RowFormat
from mathcanvas_lightning.data.rows.source import RowSource
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.storage.config import StorageConfig
from mathcanvas_lightning.storage.files import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """What is in a data set, by its index."""

    path: str
    num_files: int
    num_samples: int
    text_tokens: int
    """Ids of all texts."""
    num_images: int
    sizes_px: Counter[tuple[int, int]]
    """(width, height) -> images."""
    left_out: tuple[LeftOut, ...]
    """Rows that are no samples, or damaged."""


def index_shards(
    paths: Sequence[str],
    *,
    tokenizer: str | None = None,
    format: RowFormat = "interleaved",  # noqa: A002 - the option's name
    image_dir: str | None = None,
    index_dir: str | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> list[IndexReport]:
    """Indexes shards for training; only what is new or has changed is read.

    Args:
        paths: Folders of shards, or files; local or fsspec URLs.
        tokenizer: Checkpoint directory with the tokenizer to count text tokens with; an index is
            for one tokenizer. Single bytes by default, for a first look.
        format: Layout of the rows: interleaved, t2i, edit or vlm.
        image_dir: Where the image paths of conversations start; the folder of their file by
            default.
        index_dir: Where index files go; beside the shards, or in the user's cache, by default.
        num_workers: Worker processes; one a core by default.
        progress: Show a progress bar on a terminal.

    Returns:
        One report a path.

    Raises:
        ConfigError: If there is no such tokenizer.
        DataError: If there is no file, or one can't be opened.
        StorageError: If a server fails.
    """
    texts = TextTokenizer(tokenizer)
    source = RowSource(format, Storage(StorageConfig()), image_dir, ImageLimits())
    return [
        _report(
            path,
            build_index(
                path,
                source,
                texts,
                index_dir=index_dir,
                num_workers=num_workers,
                progress=progress,
            ),
        )
        for path in paths
    ]


def _report(path: str, index: DatasetIndex) -> IndexReport:
    images = index.widths_px > 0
    sizes = np.stack([index.widths_px[images], index.heights_px[images]], axis=1)
    found, counts = np.unique(sizes, axis=0, return_counts=True)
    return IndexReport(
        path=path,
        num_files=len(index.files),
        num_samples=index.num_rows,
        text_tokens=int(index.text_tokens.sum(dtype=np.int64)),
        num_images=int(images.sum()),
        sizes_px=Counter(
            {(int(w), int(h)): int(n) for (w, h), n in zip(found, counts, strict=True)}
        ),
        left_out=index.left_out,
    )
