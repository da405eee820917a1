"""Writes and reads back shards: small row groups, page checksums, and a footer with the origin."""

import contextlib
import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count, groupby
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from mathcanvas_lightning.conversion.output.columns import to_table
from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.data.rows.schema import (
    InterleavedExample,
    InterleaveEncoding,
    row_from_example,
)
from mathcanvas_lightning.data.rows.shards import INFO_FILE
from mathcanvas_lightning.data.rows.stored_images import IMAGES_KEY, StoredRow, encode_images
from mathcanvas_lightning.errors import ConfigError, check_settings

FOOTER_KEY = b"mathcanvas_lightning"
ROW_GROUP_BYTES = 8 * 2**20
"""A row group is flushed when its images reach this size, even if it has few rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """Origin of a shard, stored in the metadata of the Parquet file."""

    settings: str
    """Hash of all settings that determine the content."""
    chain: str
    """Hash of all input records up to the last one in the shard."""
    records: tuple[int, ...]
    """For each row, the position of its record in the input."""

    def encode(self) -> bytes:
        """Encodes as JSON; consecutive positions become `first-last`."""
        return json.dumps(asdict(self) | {"records": _runs(self.records)}).encode()

    @classmethod
    def decode(cls, metadata: bytes) -> "Footer":
        """Decodes the JSON that `encode` returns."""
        fields = json.loads(metadata)
        return cls(**fields | {"records": tuple(_positions(fields["records"]))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A finished shard."""

    name: str
    """File name."""
    footer: Footer
    """Origin of the shard."""
    num_row_groups: int
    """Number of row groups."""
    size_bytes: int
    """File size, in bytes."""
    sha256: str
    """SHA-256 of the file, in hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLayout:
    """Names, encoding and sizes of shards."""

    name: str
    """Prefix of the file names."""
    encoding: InterleaveEncoding
    """Encoding of the interleave columns."""
    samples_per_file: int
    """Rows per shard; the last shard of a split may have fewer."""
    row_group_rows: int
    """Rows per row group; fewer if their images are large."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: If a number is not positive, or the name is not valid in a file name.
        """
        samples, rows = self.samples_per_file, self.row_group_rows
        check_settings(
            ("--samples_per_file", samples, samples >= 1, "a positive number"),
            ("--row_group_rows", rows, rows >= 1, "a positive number"),
            (
                "--interleave_encoding",
                self.encoding,
                self.encoding in get_args(InterleaveEncoding),
                "json or struct",
            ),
            remedy="Remove the option to use the default.",
        )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ConfigError(
                "--name",
                found=repr(self.name),
                wanted="letters, digits, dots, dashes and underscores",
                remedy="Name the shards after the data set, such as blockmoving.",
            )

    def shard_name(self, number: int) -> str:
        """Returns the file name of a shard."""
        return f"{self.name}_{number:03d}.parquet"


class ShardWriter:
    """Writes the rows of one split to numbered shards; each shard is written atomically.

    Args:
        output: The output folder.
        folder: Name of the split's folder in it; "" for the output folder itself.
        layout: Names, encoding and sizes of the shards.
        schema: Schema of the shards.
        settings: Hash of the settings, for the footers.
        chain: Returns the hash of the input up to a record, for the footers.
        finished: Number -> finished shard of an earlier run, which is kept.
    """

    def __init__(
        self,
        output: OutputFolder,
        *,
        folder: str,
        layout: ShardLayout,
        schema: pa.Schema,
        settings: str,
        chain: Callable[[int], str],
        finished: Mapping[int, Shard],
    ) -> None:
        self._shards = dict(finished)
        self._number = 0
        self._output = output
        self._folder = folder
        self._layout = layout
        self._schema = schema
        self._settings = settings
        self._chain = chain
        self._open = contextlib.ExitStack()
        self._rows: list[dict[str, Any]] = []
        self._group_bytes = 0
        self._records: list[int] = []
        self._images: list[StoredRow] = []
        self._path: Path
        self._parquet: pq.ParquetWriter

    @property
    def shards(self) -> list[Shard]:
        """All finished shards, by number."""
        return [shard for _, shard in sorted(self._shards.items())]

    @property
    def num_rows(self) -> int:
        """Number of rows in all finished shards."""
        return sum(len(shard.footer.records) for shard in self.shards)

    def add(
        self, example: InterleavedExample, *, record: int, images: StoredRow | None = None
    ) -> None:
        """Writes one row.

        Args:
            example: The sample to write.
            record: Position of its record in the input.
            images: Sizes of its images, for the footer; None if they are not known.
        """
        if not self._records:
            self._start()
        self._records.append(record)
        if images is not None:
            self._images.append(images)
        self._rows.append(row_from_example(example, self._layout.encoding))
        self._group_bytes += sum(len(image.data) for image in example.images)
        if len(self._rows) >= self._layout.row_group_rows or self._group_bytes >= ROW_GROUP_BYTES:
            self._flush()
        if len(self._records) == self._layout.samples_per_file:
            self.finish()

    def finish(self) -> None:
        """Finishes the current shard, if there is one."""
        if not self._records:
            return
        if self._rows:
            self._flush()
        chain = self._chain(self._records[-1])
        footer = Footer(settings=self._settings, chain=chain, records=tuple(self._records))
        metadata = {FOOTER_KEY: footer.encode()}
        if len(self._images) == len(self._records):
            metadata[IMAGES_KEY] = encode_images(self._images)
        self._parquet.add_key_value_metadata(metadata)
        self._parquet.close()
        with self._path.open("rb") as file:
            name = self._layout.shard_name(self._number)
            self._shards[self._number] = _describe(name, file)
        self._open.close()  # renames the temporary file
        self._records, self._images = [], []

    def __enter__(self) -> "ShardWriter":
        """Returns the writer; it writes nothing before the first row."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Deletes the unfinished shard after an error."""
        assert error is not None or not self._records
        if self._records:
            with contextlib.suppress(OSError):  # such as a full disk: the original error is raised
                self._parquet.close()
            self._open.__exit__(kind, error, traceback)

    def write_info(self) -> None:
        """Writes the info file: the list of the split's shards."""
        with self._output.writing(posixpath.join(self._folder, INFO_FILE)) as path:
            path.write_text(json.dumps(shard_info(self.shards), indent=2) + "\n")

    def _start(self) -> None:
        self._number = next(number for number in count() if number not in self._shards)
        name = self._layout.shard_name(self._number)
        target = posixpath.join(self._folder, name)
        self._path = self._open.enter_context(self._output.writing(target))
        self._parquet = pq.ParquetWriter(
            self._path,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )

    def _flush(self) -> None:
        self._parquet.write_table(to_table(self._rows, self._schema))
        self._rows, self._group_bytes = [], 0


def shard_info(shards: Iterable[Shard]) -> dict[str, Any]:
    """Returns the content of the info file: half-open row ranges, paths relative to the file."""
    files: list[dict[str, Any]] = []
    start = 0
    for shard in shards:
        end = start + len(shard.footer.records)
        files.append(
            {
                "path": shard.name,
                "num_samples": end - start,
                "start_idx": start,
                "end_idx": end,
                "num_row_groups": shard.num_row_groups,
                "bytes": shard.size_bytes,
                "sha256": shard.sha256,
            }
        )
        start = end
    return {"total_samples": start, "num_files": len(files), "files": files}


def read_shard(
    output: OutputFolder, path: str, *, checksum: str | None
) -> tuple[Shard, list[str]] | None:
    """Reads a shard of an earlier run, and checks that it is undamaged.

    Args:
        output: The output folder.
        path: Path of the shard in it.
        checksum: Recorded SHA-256; None to verify the checksums of the pages instead.

    Returns:
        The shard and the ids of its rows, or None if it is damaged.
    """
    try:
        with output.open(path) as file:
            shard = _describe(posixpath.basename(path), file)
            if checksum is not None and shard.sha256 != checksum:
                return None
            # Only in this thread: an Arrow thread that still holds the Python file at exit
            # aborts the process.
            parquet = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
            ids: list[str] = []
            for group in range(parquet.num_row_groups):
                columns = None if checksum is None else ["id"]
                rows = parquet.read_row_group(group, columns=columns, use_threads=False)
                ids += rows["id"].to_pylist()
            return shard, ids
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None


def read_footer(output: OutputFolder, path: str) -> Footer | None:
    """Reads the origin of a shard; None if it is damaged, or no conversion wrote it."""
    try:
        return Footer.decode(output.parquet_metadata(path)[FOOTER_KEY])
    except (KeyError, TypeError, ValueError):
        return None


def _describe(name: str, file: Any) -> Shard:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = file.tell()
    metadata = pq.read_metadata(file)
    return Shard(
        name=name,
        footer=Footer.decode(metadata.metadata[FOOTER_KEY]),
        num_row_groups=metadata.num_row_groups,
        size_bytes=size,
        sha256=digest,
    )


def _runs(positions: Sequence[int]) -> str:
    runs = []
    for _, members in groupby(enumerate(positions), key=lambda pair: pair[1] - pair[0]):
        run = [position for _, position in members]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(runs)


def _positions(runs: str) -> Iterator[int]:
    for run in runs.split(","):
        first, _, last = run.partition("-")
        yield from range(int(first), int(last or first) + 1)
