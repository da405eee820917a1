"""Blocks: files of converted records that no part of a job shares with another.

A block holds a fixed number of records, whatever the number of parts, so the outcome of a record
never depends on the part that converted it. The merge decides in which row a record is stored.
"""

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.conversion.rejection import Rejection
from mathcanvas_lightning.conversion.samples import ConvertedExample
from mathcanvas_lightning.data.rows.schema import ImageSegment, Segment, TextSegment
from mathcanvas_lightning.data.rows.stored_images import StoredImage
from mathcanvas_lightning.errors import OutputError

BLOCK_RECORDS = 256
"""Records of a block; blocks of another size are refused."""
PARTS_FOLDER = ".parts"
_KEY = b"mathcanvas_block"
_SCHEMA = pa.schema(
    [
        ("record", pa.int64()),
        ("text", pa.large_binary()),
        ("outcome", pa.large_binary()),
        ("images", pa.list_(pa.large_binary())),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a block was made of."""

    settings: str
    """All settings of the conversion, as JSON."""
    digest: str
    """Hash of its records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A record and its outcome."""

    record: int
    """Position in the input, from 0."""
    text: bytes
    """The record as `columns.identity.canonical` writes it."""
    outcome: ConvertedExample | Rejection


def block_name(number: int) -> str:
    """Path of a block in the output folder."""
    return posixpath.join(PARTS_FOLDER, f"block_{number:06d}.parquet")


def block_range(number: int, num_records: int) -> range:
    """The records of a block."""
    return range(number * BLOCK_RECORDS, min((number + 1) * BLOCK_RECORDS, num_records))


def count_blocks(num_records: int) -> int:
    """The number of blocks of an input."""
    return -(-num_records // BLOCK_RECORDS)


def digest_of(texts: Sequence[bytes]) -> str:
    """Hash of the records of a block."""
    digest = blake2b(digest_size=16)
    for text in texts:
        digest.update(len(text).to_bytes(8) + text)
    return digest.hexdigest()


def write_block(
    folder: OutputFolder, number: int, records: Sequence[Converted], settings: str
) -> None:
    """Writes a block; it appears complete or not at all."""
    origin = Origin(settings=settings, digest=digest_of([one.text for one in records]))
    rows = [_encode(one) for one in records]
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    metadata = {_KEY: json.dumps(asdict(origin))}
    with folder.writing(block_name(number)) as path:
        pq.write_table(
            table.replace_schema_metadata(metadata),
            path,
            compression="zstd",
            use_dictionary=False,
            row_group_size=32,
            write_statistics=False,
            write_page_checksum=True,
        )


def read_origin(folder: OutputFolder, number: int) -> Origin | None:
    """What a block was made of; None if there is no such block, or it is damaged."""
    try:
        metadata = folder.parquet_metadata(block_name(number))
        return Origin(**json.loads(metadata[_KEY]))
    except (KeyError, TypeError, ValueError):
        return None


def read_texts(folder: OutputFolder, number: int) -> list[bytes]:
    """The records of a block, without their outcomes.

    Raises:
        OutputError: If the block is damaged.
    """
    return [row["text"] for row in _rows(folder, number, ["text"])]


def read_block(folder: OutputFolder, number: int) -> Iterator[Converted]:
    """The records of a block, and their outcomes.

    Raises:
        OutputError: If the block is damaged.
    """
    return map(_decode, _rows(folder, number, None))


def _rows(folder: OutputFolder, number: int, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    name = block_name(number)
    try:
        with folder.open(name) as file:
            parquet = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=columns, use_threads=False)
                yield from table.to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            folder.path(name),
            found=f"a damaged file ({' '.join(str(error).split())[:200]})",
            wanted="a block of converted records",
            remedy="Delete it, run its part again, and merge again.",
        ) from None


def _encode(one: Converted) -> dict[str, Any]:
    outcome = one.outcome
    row: dict[str, Any] = {"record": one.record, "text": one.text, "images": []}
    if isinstance(outcome, Rejection):
        fields = asdict(outcome)
    else:
        fields = {
            "uid": outcome.uid,
            "question": [_encode_segment(segment) for segment in outcome.question],
            "solution": [_encode_segment(segment) for segment in outcome.solution],
            "answer": outcome.answer,
            "extras": dict(outcome.extras),
            "num_oriented": outcome.num_oriented,
            "stored_images": [[astuple(i) for i in images] for images in outcome.stored_images],
        }
        row["images"] = [image.data for image in outcome.images]
    return row | {"outcome": json.dumps(fields).encode()}


def _decode(row: Mapping[str, Any]) -> Converted:
    fields = json.loads(row["outcome"])
    outcome: ConvertedExample | Rejection
    if "reason" in fields:
        outcome = Rejection(**fields)
    else:
        data = iter(row["images"])
        question, solution = (
            tuple(
                TextSegment(text=item["text"])
                if "text" in item
                else ImageSegment(data=next(data), path=item["path"])
                for item in fields[section]
            )
            for section in ("question", "solution")
        )
        before, after = (
            tuple(StoredImage(*image) for image in images) for images in fields["stored_images"]
        )
        made = {"question": question, "solution": solution, "stored_images": (before, after)}
        outcome = ConvertedExample(**fields | made)
    return Converted(record=row["record"], text=row["text"], outcome=outcome)


def _encode_segment(segment: Segment) -> dict[str, Any]:
    if isinstance(segment, TextSegment):
        return {"text": segment.text}
    return {"path": segment.path}
