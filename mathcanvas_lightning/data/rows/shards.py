"""Reads the rows of Parquet shards in small batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mathcanvas_lightning.common.paths import without_query
from mathcanvas_lightning.data.rows.schema import InterleavedExample, example_from_row
from mathcanvas_lightning.storage.files import Storage
from mathcanvas_lightning.storage.parquet import python_rows

INFO_FILE = "train_parquet_info.json"
BATCH_ROWS = 32


def iter_rows(path: str, storage: Storage) -> Iterator[dict[str, Any]]:
    """Yields the rows of a shard as dicts.

    Raises:
        DataError: If the file is missing or damaged, or a value can't be read.
        StorageError: If its server fails.
    """
    start = 0
    for batch in storage.iter_batches(path, BATCH_ROWS):
        yield from python_rows(batch, path, start)
        start += len(batch)


def iter_examples(path: str | Path) -> Iterator[InterleavedExample]:
    """Yields the examples of an interleaved shard, or of all shards below a folder.

    Args:
        path: A Parquet file or a folder: a path, or an fsspec URL.

    Yields:
        One example per row, in order.

    Raises:
        DataError: At the first row, or file, that is damaged.
        StorageError: If a server fails.
    """
    storage = Storage()
    for shard in storage.list_files(str(path)):
        for number, row in enumerate(iter_rows(shard, storage)):
            yield example_from_row(row, place=f"{without_query(shard)}#{number}")
