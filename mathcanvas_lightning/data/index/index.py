"""The index of a data set: roles, lengths and image sizes of its rows, in one sidecar per shard.

A sidecar is stored beside its shard in `.mathcanvas_index/`, or in the user's cache if the shard is
remote or its folder is read-only. One scan builds it; it is built again when the shard, the
tokenizer or the image limits change.
"""

import hashlib
import json
import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.parallel import (
    count_workers,
    ordered_map,
    refuse_in_a_starting_worker,
)
from mathcanvas_lightning.common.paths import (
    file_name,
    is_remote,
    local_path,
    parent_folder,
    plain_path,
    user_cache,
    without_query,
)
from mathcanvas_lightning.common.progress import progress_bar
from mathcanvas_lightning.data.rows.left_out import (
    ROW_ERRORS,
    LeftOutRow,
    row_boundary,
    stage_of,
)
from mathcanvas_lightning.data.rows.readers import Element
from mathcanvas_lightning.data.rows.source import RowGroup, Rows, RowSource, row_place, row_uid
from mathcanvas_lightning.data.sequence.encode import measure
from mathcanvas_lightning.data.sequence.roles import Ints
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.storage.config import FileStatus

FORMAT_VERSION = 1
INDEX_FOLDER = ".mathcanvas_index"
METADATA_KEY = b"mathcanvas_index"
MAX_NAME_LENGTH = 40
"""Characters of a shard's name in that of its sidecar; the name may be as long as it can be."""
GROUPS_PER_TASK = 16
SCHEMA = pa.schema(
    {
        "uid": pa.string(),
        "row_group": pa.int64(),
        "row": pa.int32(),
        "stage": pa.string(),  # why the row is left out; null for samples
        "problem": pa.string(),
        "roles": pa.list_(pa.int8()),
        "steps": pa.list_(pa.int16()),
        "text_tokens": pa.list_(pa.int32()),
        "widths": pa.list_(pa.int32()),
        "heights": pa.list_(pa.int32()),
    }
)


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
    left_out: tuple[LeftOutRow, ...]
    """Rows that are not training samples, or are damaged."""
    digest: str
    """Hash of the contents of all shards."""

    @property
    def num_rows(self) -> int:
        """Number of samples, N."""
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Scanner:
    """Scans row groups in worker processes."""

    source: RowSource
    tokenizer_folder: str

    def __call__(self, tasks: Sequence[tuple[str, Sequence[RowGroup]]]) -> list[pa.Table]:
        """Returns one table per task."""
        return [
            pa.Table.from_pylist(
                [row for group in groups for row in self._scan(path, group)], schema=SCHEMA
            )
            for path, groups in tasks
        ]

    def _scan(self, path: str, group: RowGroup) -> list[dict[str, Any]]:
        try:
            rows = self.source.read(path, group.number)
        except DataError as error:
            return [
                _left_out(row_uid(path, group.number, row), group.number, row, "read", error)
                for row in range(group.num_rows)
            ]
        return [self._scan_row(rows, path, group.number, row) for row in range(group.num_rows)]

    def _scan_row(self, rows: Rows, path: str, group: int, row: int) -> dict[str, Any]:
        uid = row_uid(path, group, row)
        try:
            sample = self.source.sample(rows, path, group, row)
            uid = sample.uid

            def read_image(element: Element) -> bytes:
                return self.source.read_image(element, path)

            with row_boundary(row_place(path, group, row)):
                measured = measure(
                    sample, _tokenizer(self.tokenizer_folder), self.source.limits, read_image
                )
        except ROW_ERRORS as error:
            return _left_out(uid, group, row, stage_of(error), error)
        indexes = range(len(measured.elements))
        sizes = [measured.sizes_px.get(index, (0, 0)) for index in indexes]
        return {
            "uid": uid,
            "row_group": group,
            "row": row,
            "stage": None,
            "problem": None,
            "roles": [int(element.role) for element in measured.elements],
            "steps": [element.step for element in measured.elements],
            "text_tokens": [len(measured.text_ids.get(index, ())) for index in indexes],
            "widths": [width for width, _ in sizes],
            "heights": [height for _, height in sizes],
        }


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
        num_workers: Worker processes; by default one per core.
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
    homes = _index_homes(root, index_dir)
    sidecars = [_Sidecar(file, found[file], root, homes, source, tokenizer) for file in files]
    if not all(sidecar.is_current() for sidecar in sidecars):
        refuse_in_a_starting_worker()
        homes[0].mkdir(parents=True, exist_ok=True)
        with FileLock(homes[0] / ".lock"):
            stale = [sidecar for sidecar in sidecars if not sidecar.is_fresh()]
            if stale:
                _scan_all(stale, Scanner(source, tokenizer.folder), num_workers, progress)
    return _load(files, [sidecar.target for sidecar in sidecars])


class _Sidecar:
    """The index file of one shard: in the folder to write to, or in another one."""

    def __init__(
        self,
        path: str,
        status: FileStatus,
        root: str,
        homes: Sequence[Path],
        source: RowSource,
        tokenizer: TextTokenizer,
    ) -> None:
        self.path, self.status = path, status
        settings = {
            "format": FORMAT_VERSION,
            "rows": source.row_format,
            "tokenizer": tokenizer.digest,
            "limits": asdict(source.limits),
            "image_dir": source.image_dir and without_query(source.image_dir),
        }
        inside = posixpath.relpath(without_query(path), root or ".")
        name = f"{inside}\n{json.dumps(settings, sort_keys=True)}"
        tag = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
        shown = file_name(path)[:MAX_NAME_LENGTH].encode(errors="replace").decode()
        file = f"{shown}.{tag}.parquet"
        self._candidates = [home / file for home in homes]
        self.target = self._candidates[0]

    def is_current(self) -> bool:
        """Whether it exists for this version of the shard."""
        wanted = (self.status.size_bytes, self.status.version)
        for target in self._candidates:
            known = _read_metadata(target)
            if known is not None and (known["size_bytes"], known["version"]) == wanted:
                self.target = target
                return True
        return False

    def is_fresh(self) -> bool:
        """Whether the file exists and matches the current shard; updates its version if so."""
        if self.is_current():
            return True
        if is_remote(self.path):
            return False
        for target in self._candidates:
            known = _read_metadata(target)
            if known is None or known["size_bytes"] != self.status.size_bytes:
                continue
            if known["digest"] == self.digest():
                # Touched or copied: store the new version, so that it is hashed only once.
                self.write(pq.read_table(target), known["digest"])
                return True
        return False

    def digest(self) -> str:
        """Hash of the contents; for a remote shard, of its size and version."""
        if is_remote(self.path):
            return hashlib.sha256(repr(self.status).encode()).hexdigest()
        with local_path(self.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write(self, table: pa.Table, digest: str) -> None:
        """Writes the file to the first folder, with the version of the shard."""
        self.target = self._candidates[0]
        about = {
            "size_bytes": self.status.size_bytes,
            "version": self.status.version,
            "digest": digest,
        }
        table = table.replace_schema_metadata({METADATA_KEY: json.dumps(about)})
        with written_whole(self.target) as temporary:
            pq.write_table(table, temporary, compression="zstd")


def _scan_all(
    sidecars: Sequence[_Sidecar], scanner: Scanner, num_workers: int | None, progress: bool
) -> None:
    groups = [scanner.source.groups(sidecar.path) for sidecar in sidecars]
    tasks = [
        [(sidecar.path, of_file[first : first + GROUPS_PER_TASK])]
        for sidecar, of_file in zip(sidecars, groups, strict=True)
        for first in range(0, len(of_file), GROUPS_PER_TASK)
    ]
    workers = count_workers(num_workers, len(tasks), 1)
    num_rows = sum(group.num_rows for of_file in groups for group in of_file)
    with progress_bar("Indexing", num_rows, show=progress) as advance:
        tables = ordered_map(scanner, tasks, num_workers=workers)
        for sidecar, of_file in zip(sidecars, groups, strict=True):
            parts = []
            for _ in range(0, len(of_file), GROUPS_PER_TASK):
                parts.append(next(tables))
                advance(parts[-1].num_rows, file_name(sidecar.path))
            sidecar.write(pa.concat_tables([SCHEMA.empty_table(), *parts]), sidecar.digest())
        tables.close()


def _load(files: Sequence[str], targets: Sequence[Path]) -> DatasetIndex:
    tables, left_out, digests = [], [], hashlib.sha256()
    for number, (path, target) in enumerate(zip(files, targets, strict=True)):
        table = pq.read_table(target)
        digests.update(json.loads(table.schema.metadata[METADATA_KEY])["digest"].encode())
        out = table.filter(pa.compute.is_valid(table["stage"])).to_pylist()
        left_out += [_from_row(without_query(path), row) for row in out]
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
        left_out=tuple(left_out),
        digest=digests.hexdigest(),
    )


def _left_out(uid: str, group: int, row: int, stage: str, error: Exception) -> dict[str, Any]:
    return {
        "uid": uid,
        "row_group": group,
        "row": row,
        "stage": stage,
        "problem": str(error).encode(errors="backslashreplace").decode(),
        "roles": [],
        "steps": [],
        "text_tokens": [],
        "widths": [],
        "heights": [],
    }


def _from_row(path: str, row: Mapping[str, Any]) -> LeftOutRow:
    return LeftOutRow(
        uid=row["uid"],
        path=path,
        row_group=row["row_group"],
        row=row["row"],
        stage=row["stage"],
        error=row["problem"],
    )


def _read_metadata(target: Path) -> Mapping[str, Any] | None:
    try:
        metadata = pq.read_schema(target).metadata or {}
        about: Mapping[str, Any] = json.loads(metadata[METADATA_KEY])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
    return about


def _index_homes(root: str, index_dir: str | None) -> list[Path]:
    """The folder to write sidecars to, then others where they may be."""
    beside = None if is_remote(root) else local_path(root) / INDEX_FOLDER
    if index_dir:
        home = local_path(index_dir)
    elif beside and os.access(beside if beside.exists() else beside.parent, os.W_OK):
        home = beside
    else:
        tag = hashlib.sha256(root.encode(errors="surrogateescape")).hexdigest()[:16]
        home = user_cache() / "index" / tag
    return [home, *([beside] if beside and beside != home else [])]


@cache
def _tokenizer(folder: str) -> TextTokenizer:
    return TextTokenizer(folder)
