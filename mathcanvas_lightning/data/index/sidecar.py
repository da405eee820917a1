"""The index file of one shard, and the folders where it may be."""

import hashlib
import json
import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.paths import (
    file_name,
    is_remote,
    local_path,
    user_cache,
    without_query,
)
from mathcanvas_lightning.data.index.scan import NEWER_COLUMNS, SCHEMA
from mathcanvas_lightning.data.rows.source import RowSource
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.storage.config import FileStatus

FORMAT_VERSION = 1
INDEX_FOLDER = ".mathcanvas_index"
METADATA_KEY = b"mathcanvas_index"
MAX_NAME_LENGTH = 40
"""Maximum number of characters of a shard's name that the name of its sidecar repeats."""


class Sidecar:
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
            known = read_metadata(target)
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
            known = read_metadata(target)
            if known is None or known["size_bytes"] != self.status.size_bytes:
                continue
            if known["digest"] == self.digest():
                # Touched or copied: store the new version, so that it is hashed only once.
                self.write(read_sidecar(target), known["digest"])
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


def read_metadata(target: Path) -> Mapping[str, Any] | None:
    """What a sidecar says about its shard; None if it is missing, damaged, or of another shard."""
    try:
        schema = pq.read_schema(target)
        about: Mapping[str, Any] = json.loads((schema.metadata or {})[METADATA_KEY])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
    is_ours = isinstance(about, dict) and {"size_bytes", "version", "digest"} <= about.keys()
    has_columns = all(
        field.name in schema.names and schema.field(field.name).type == field.type
        for field in SCHEMA
        if field.name not in NEWER_COLUMNS
    )
    return about if is_ours and has_columns else None


def read_sidecar(target: Path) -> pa.Table:
    """Reads a sidecar.

    Raises:
        DataError: If it is damaged.
    """
    try:
        return pq.read_table(target)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            str(target),
            found=f"a damaged index file ({error})",
            wanted="a whole one",
            remedy="Delete it: it is made again.",
        ) from None


def index_homes(root: str, index_dir: str | None) -> list[Path]:
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
