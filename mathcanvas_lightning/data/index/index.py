"""The index of a data set: roles, lengths and image sizes of its rows, in one sidecar per shard.

A sidecar is stored beside its shard in `.mathcanvas_index/`, or in the user's cache if the shard is
remote or its folder is read-only. One scan builds it; it is built again when the shard, the
tokenizer or the image limits change.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mathcanvas_lightning.common.atomic import make_folder
from mathcanvas_lightning.common.locks import locked
from mathcanvas_lightning.common.parallel import (
    TORCH_START_S,
    count_workers,
    ordered_map,
    refuse_in_a_starting_worker,
    serial_time,
)
from mathcanvas_lightning.common.paths import (
    file_name,
    is_remote,
    join_path,
    parent_folder,
    plain_path,
    without_query,
)
from mathcanvas_lightning.common.progress import progress_bar
from mathcanvas_lightning.data.index.scan import SCHEMA, Scanner, with_stored_images
from mathcanvas_lightning.data.index.sidecar import (
    INDEX_FOLDER,
    METADATA_KEY,
    Sidecar,
    index_homes,
    read_sidecar,
)
from mathcanvas_lightning.data.rows.left_out import LeftOutRow
from mathcanvas_lightning.data.rows.shards import INFO_FILE
from mathcanvas_lightning.data.rows.source import RowGroup, RowSource
from mathcanvas_lightning.data.sequence.roles import Ints
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import MathCanvasError
from mathcanvas_lightning.storage.files import Storage

__all__ = ["INDEX_FOLDER", "DatasetIndex", "Scanner", "build_index"]

logger = logging.getLogger(__name__)

GROUPS_PER_TASK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetIndex:
    """All samples of a data set: [N] rows, [E] elements."""

    files: tuple[str, ...]
    """Paths of the shards."""
    file_numbers: Ints
    """[N] number of the shard in `files`."""
    row_groups: Ints
    """[N] row group in the shard."""
    rows: Ints
    """[N] row number within the row group."""
    uids: pa.ChunkedArray
    """[N] strings, ids of the rows."""
    offsets: Ints
    """[N + 1] first element of each row."""
    roles: Ints
    """[E] int8, see `Role`."""
    steps: Ints
    """[E] int16, steps of edits."""
    text_tokens: Ints
    """[E] int32, tokens of a text; 0 for images."""
    widths_px: Ints
    """[E] int32, 0 for texts."""
    heights_px: Ints
    """[E] int32, 0 for texts."""
    num_oriented: int
    """Images with an EXIF orientation; they are trained on unturned, as in the reference."""
    left_out: tuple[LeftOutRow, ...]
    """Rows that are not training samples, or are damaged."""
    digest: str
    """Hash of the contents of all shards."""

    @property
    def num_rows(self) -> int:
        """Number of samples, N."""
        return len(self.rows)


def build_index(
    path: str,
    source: RowSource,
    tokenizer: TextTokenizer,
    *,
    index_dir: str | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> DatasetIndex:
    """Indexes new and changed shards, and loads the whole index.

    Args:
        path: A folder of shards, or a file; local or remote.
        source: Reads the rows.
        tokenizer: Tokenizer of the texts.
        index_dir: Folder of the sidecars; None for beside the shards, or the user's cache.
        num_workers: Worker processes; by default one per core, if the scan takes long enough.
        progress: Show a progress bar on a terminal.

    Returns:
        The index.

    Raises:
        DataError: If there is no file, or a file can't be opened.
        StorageError: If a server fails.
        WorkerError: If worker processes can't start, or are killed.
    """
    path = plain_path(path)
    found = source.storage.list_statuses(path, suffix=source.suffix)
    files = list(found)
    root = parent_folder(path) if files == [path] else without_query(path).rstrip("/")
    homes = index_homes(root, index_dir)
    sidecars = [Sidecar(file, found[file], root, homes, source, tokenizer) for file in files]
    is_new = not all(sidecar.is_current() for sidecar in sidecars)
    if is_new:
        refuse_in_a_starting_worker()
        make_folder(homes[0])
        with locked(homes[0] / ".lock"):
            stale = [sidecar for sidecar in sidecars if not sidecar.is_fresh()]
            if stale:
                _scan_all(stale, Scanner(source, tokenizer.folder), num_workers, progress)
    index = _load(files, [sidecar.target for sidecar in sidecars])
    if is_new and index.num_oriented:
        logger.warning(
            "%s: %d images have an EXIF orientation; training uses them unturned, as the reference",
            root,
            index.num_oriented,
        )
    return index


def _scan_all(
    sidecars: Sequence[Sidecar], scanner: Scanner, num_workers: int | None, progress: bool
) -> None:
    """Scans shards; the image sizes in a shard are used if it is the one that its conversion wrote.

    The checksum shows this for a local shard, the size for a remote one.
    """
    groups = [scanner.source.groups(sidecar.path) for sidecar in sidecars]
    digests: dict[str, str] = {}

    def tasks() -> Iterator[list[tuple[str, Sequence[RowGroup]]]]:
        listed = cache(partial(_listed_shards, scanner.source.storage))
        for sidecar, of_file in zip(sidecars, groups, strict=True):
            # Before the scan: if the shard is replaced meanwhile, the index is not up to date.
            path = sidecar.path
            digests[path] = sidecar.digest()
            size, checksum = listed(parent_folder(path)).get(file_name(path), (-1, ""))
            is_listed = checksum == digests[path] or is_remote(path)
            known: Sequence[RowGroup] = of_file
            if is_listed and size == sidecar.status.size_bytes:
                known = with_stored_images(scanner.source, path, of_file)
            for first in range(0, len(known), GROUPS_PER_TASK):
                yield [(path, known[first : first + GROUPS_PER_TASK])]

    num_tasks = sum(-(-len(of_file) // GROUPS_PER_TASK) for of_file in groups)
    num_rows = sum(group.num_rows for of_file in groups for group in of_file)
    workers = count_workers(num_workers, num_tasks, 1)
    serial_s = serial_time(num_workers, TORCH_START_S)
    tables = ordered_map(scanner, tasks(), num_workers=workers, serial_s=serial_s)
    with (
        contextlib.closing(tables),
        progress_bar("Indexing", num_rows, show=progress) as advance,
    ):
        for sidecar, of_file in zip(sidecars, groups, strict=True):
            parts = []
            for _ in range(0, len(of_file), GROUPS_PER_TASK):
                parts.append(next(tables))
                advance(parts[-1].num_rows, file_name(sidecar.path))
            digest = digests.get(sidecar.path) or sidecar.digest()  # not scanned if it is empty
            sidecar.write(pa.concat_tables([SCHEMA.empty_table(), *parts]), digest)


def _listed_shards(storage: Storage, folder: str) -> dict[str, tuple[int, str]]:
    """Name -> bytes and SHA-256 of the shards that a conversion wrote to a folder."""
    try:
        info = json.loads(storage.read_bytes(join_path(folder, INFO_FILE)))
        return {str(f["path"]): (int(f["bytes"]), str(f["sha256"])) for f in info["files"]}
    except (MathCanvasError, ValueError, KeyError, TypeError):
        return {}


def _load(files: Sequence[str], targets: Sequence[Path]) -> DatasetIndex:
    tables, left_out, digests, num_oriented = [], [], hashlib.sha256(), 0
    for number, (path, target) in enumerate(zip(files, targets, strict=True)):
        table = read_sidecar(target)
        digests.update(json.loads(table.schema.metadata[METADATA_KEY])["digest"].encode())
        out = table.filter(pa.compute.is_valid(table["stage"])).to_pylist()
        left_out += [_from_row(without_query(path), row) for row in out]
        if "oriented" in table.column_names:  # not in sidecars of earlier versions
            num_oriented += pa.compute.sum(table["oriented"], min_count=0).as_py()
            table = table.drop_columns(["oriented"])
        table = table.filter(pa.compute.is_null(table["stage"])).drop_columns(["stage", "problem"])
        numbers = pa.array(np.full(table.num_rows, number, np.int32))
        tables.append(table.append_column("file", numbers).replace_schema_metadata(None))
    table = pa.concat_tables(tables)
    lengths = pa.compute.list_value_length(table["roles"]).to_numpy()

    def flat(name: str) -> Ints:
        values: Ints = pa.compute.list_flatten(table[name]).to_numpy()
        return values

    return DatasetIndex(
        files=tuple(files),
        file_numbers=table["file"].to_numpy(),
        row_groups=table["row_group"].to_numpy(),
        rows=table["row"].to_numpy(),
        uids=table["uid"],
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        roles=flat("roles"),
        steps=flat("steps"),
        text_tokens=flat("text_tokens"),
        widths_px=flat("widths"),
        heights_px=flat("heights"),
        num_oriented=num_oriented,
        left_out=tuple(left_out),
        digest=digests.hexdigest(),
    )


def _from_row(path: str, row: Mapping[str, Any]) -> LeftOutRow:
    return LeftOutRow(
        uid=row["uid"],
        path=path,
        row_group=row["row_group"],
        row=row["row"],
        stage=row["stage"],
        error=row["problem"],
    )
