"""Writing shards: small row groups, page checksums, and a footer that tells their origin."""

import contextlib
import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

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
from mathcanvas_lightning.errors import ConfigError, OutputError

FOOTER_KEY = b"mathcanvas_lightning"
ROW_GROUP_BYTES = 8 * 2**20
"""A row group ends when its images reach this size, even if it has few rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """What a shard was made of; it stands in the Parquet file's own metadata."""

    settings: str
    """Hash of all settings that decide a shard's content."""
    chain: str
    """Hash of all records of the input up to the shard's last one."""
    records: tuple[int, ...]
    """Position in the input of each row's record."""

    def encode(self) -> bytes:
        """As JSON, with runs of positions shortened to `first-last`."""
        return json.dumps(asdict(self) | {"records": _runs(self.records)}).encode()

    @classmethod
    def decode(cls, metadata: bytes) -> "Footer":
        """Reads what `encode` wrote."""
        fields = json.loads(metadata)
        return cls(**fields | {"records": tuple(_positions(fields["records"]))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A finished shard."""

    name: str
    """File name."""
    footer: Footer
    """What it was made of."""
    num_row_groups: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLayout:
    """How rows are laid out in files."""

    name: str
    """Beginning of the file names."""
    encoding: InterleaveEncoding
    """How interleaves stand."""
    samples_per_file: int
    """Rows of a shard; a split's last one may have fewer."""
    row_group_rows: int
    """Rows of a row group, fewer where images are large."""

    def __post_init__(self) -> None:
        """Checks what the user chose.

        Raises:
            ConfigError: If a number is not positive, or the name can't be a file's.
        """
        for setting in ("samples_per_file", "row_group_rows"):
            if getattr(self, setting) < 1:
                raise ConfigError(
                    f"--{setting}",
                    found=str(getattr(self, setting)),
                    wanted="a positive number",
                    remedy="Leave it out for the default.",
                )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ConfigError(
                "--name",
                found=repr(self.name),
                wanted="letters, digits, dots, dashes and underscores",
                remedy="Name the shards after the data set, such as blockmoving.",
            )

    def shard_name(self, number: int) -> str:
        """The file name of a shard."""
        return f"{self.name}_{number:03d}.parquet"


class ShardWriter:
    """Writes the rows of one split to numbered shards, each of which appears when it is whole.

    Args:
        output: Where.
        folder: The split's folder in it, "" for the output folder itself.
        layout: How rows are laid out.
        schema: Of all shards.
        settings: Hash of the settings, for the footers.
        chain: Gives the hash of the input up to a record, for the footers.
        finished: Shards of an earlier run that stay.
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
        finished: Sequence[Shard],
    ) -> None:
        self.shards = list(finished)
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
        self._path: Path
        self._parquet: pq.ParquetWriter

    @property
    def num_rows(self) -> int:
        """Rows of all finished shards."""
        return sum(len(shard.footer.records) for shard in self.shards)

    def add(self, example: InterleavedExample, *, record: int) -> None:
        """Writes one row.

        Args:
            example: The sample.
            record: Position of its record in the input.
        """
        if not self._records:
            self._start()
        self._records.append(record)
        self._rows.append(row_from_example(example, self._layout.encoding))
        self._group_bytes += sum(len(image.data) for image in example.images)
        if len(self._rows) >= self._layout.row_group_rows or self._group_bytes >= ROW_GROUP_BYTES:
            self._flush()
        if len(self._records) == self._layout.samples_per_file:
            self.finish()

    def finish(self) -> None:
        """Completes the shard under way, if there is one."""
        if not self._records:
            return
        if self._rows:
            self._flush()
        chain = self._chain(self._records[-1])
        footer = Footer(settings=self._settings, chain=chain, records=tuple(self._records))
        self._parquet.add_key_value_metadata({FOOTER_KEY: footer.encode()})
        self._parquet.close()
        with self._path.open("rb") as file:
            self.shards.append(_describe(self._layout.shard_name(len(self.shards)), file))
        self._open.close()  # here the file takes its name
        self._records = []

    def __enter__(self) -> "ShardWriter":
        """Nothing is written before the first row."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drops the shard that an error leaves unfinished."""
        assert error is not None or not self._records
        if self._records:
            with contextlib.suppress(OSError):  # a full disk, say: the error under way tells it
                self._parquet.close()
            self._open.__exit__(kind, error, traceback)

    def write_info(self) -> None:
        """Writes the list of the split's shards beside them."""
        with self._output.writing(posixpath.join(self._folder, INFO_FILE)) as path:
            path.write_text(json.dumps(shard_info(self.shards), indent=2) + "\n")

    def _start(self) -> None:
        name = self._layout.shard_name(len(self.shards))
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
    """The content of the info file: row ranges are half-open, paths relative to the file."""
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


def read_finished(
    output: OutputFolder, folder: str, layout: ShardLayout
) -> list[tuple[Shard, list[str]]]:
    """Finds the shards of an earlier run.

    Args:
        output: Where.
        folder: The split's folder in it.
        layout: Gives the file names.

    Returns:
        Each shard in order, up to the first gap in the numbers, with the ids of its rows.

    Raises:
        OutputError: If a file with a shard's name was not written by a conversion.
    """
    present = set(output.files(folder))
    found: list[tuple[Shard, list[str]]] = []
    while (name := layout.shard_name(len(found))) in present:
        path = posixpath.join(folder, name)
        try:
            with output.open(path) as file:
                shard = _describe(name, file)
                # In this thread alone: one of Arrow's that still holds Python's file when the
                # process ends aborts it.
                parquet = pq.ParquetFile(file, pre_buffer=False)
                ids = parquet.read(columns=["id"], use_threads=False)["id"].to_pylist()
                found.append((shard, ids))
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise OutputError(
                output.path(path),
                found=f"a file that no conversion wrote ({type(error).__name__})",
                wanted="an output folder that is empty or holds this conversion's shards",
                remedy="Choose another --output or --name, or replace it with --overwrite.",
            ) from None
    return found


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
