"""The index command and its report."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.index.index import DatasetIndex, build_index
from mathcanvas_lightning.data.rows.left_out import LeftOutRow
from mathcanvas_lightning.data.rows.readers import RowFormat
from mathcanvas_lightning.data.rows.source import RowSource
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.storage.config import StorageConfig
from mathcanvas_lightning.storage.files import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """Summary of a data set, from its index."""

    path: str
    num_files: int
    num_samples: int
    text_tokens: int
    """Tokens of all texts."""
    num_images: int
    sizes_px: Counter[tuple[int, int]]
    """(width, height) -> number of images."""
    num_oriented: int
    """Images with an EXIF orientation; they are trained on unturned, as in the reference."""
    left_out: tuple[LeftOutRow, ...]
    """Rows that are not training samples, or are damaged."""


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
    """Indexes shards for training; reads only new and changed shards.

    Args:
        paths: Folders of shards, or files; local or fsspec URLs.
        tokenizer: Checkpoint directory with the tokenizer that counts text tokens; each tokenizer
            has a separate index. By default a tokenizer of single bytes, for a first look.
        format: Layout of the rows: interleaved, t2i, edit or vlm.
        image_dir: Folder of the image paths in conversations; by default the folder of the file.
        index_dir: Folder of the index files; by default beside the shards, or in the user's cache
            if the shards are remote or read-only.
        num_workers: Worker processes; by default one per core.
        progress: Show a progress bar on a terminal.

    Returns:
        One report per path.

    Raises:
        ConfigError: If the tokenizer doesn't exist.
        DataError: If there is no file, or a file can't be opened.
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
        num_oriented=index.num_oriented,
        left_out=index.left_out,
    )
