"""Reads the rows of Parquet shards in small batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mathcanvas_lightning.common.paths import natural_key
from mathcanvas_lightning.data.rows.schema import InterleavedExample, example_from_row
from mathcanvas_lightning.errors import DataError

INFO_FILE = "train_parquet_info.json"
BATCH_ROWS = 32


def list_shards(folder: Path) -> list[Path]:
    """The Parquet files of a folder in natural order, without hidden files such as indexes.

    Args:
        folder: Folder, searched recursively; or a single file.

    Returns:
        At least one path.

    Raises:
        DataError: If there is no file.
    """
    paths = [folder] if folder.is_file() else list(folder.rglob("*.parquet"))
    shards = [path for path in paths if not _is_hidden(path.relative_to(folder))]
    if not shards:
        raise DataError(
            str(folder),
            found="no Parquet file" if folder.exists() else "nothing",
            wanted="a folder of shards",
            remedy="Make them with tools/convert_cot_to_parquet.py.",
        )
    return sorted(shards, key=lambda path: natural_key(str(path)))


def open_shard(path: Path) -> pq.ParquetFile:
    """Opens a shard; reads verify the page checksums.

    Raises:
        DataError: If it is not a complete Parquet file.
    """
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def iter_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a shard as dicts, with little memory even for large row groups.

    Raises:
        DataError: If the file is damaged.
    """
    shard = open_shard(path)
    try:
        with shard:
            for batch in shard.iter_batches(batch_size=BATCH_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def iter_examples(path: str | Path) -> Iterator[InterleavedExample]:
    """Yields the examples of an interleaved shard, or of all shards below a folder.

    Args:
        path: A Parquet file or a folder.

    Yields:
        One example per row, in order.

    Raises:
        DataError: At the first damaged row or file.
    """
    for shard in list_shards(Path(path)):
        for number, row in enumerate(iter_rows(shard)):
            yield example_from_row(row, place=f"{shard}#{number}")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        str(path),
        found=f"damage ({error})",
        wanted="a complete Parquet file",
        remedy="Convert its source again, or copy the file again.",
    )
