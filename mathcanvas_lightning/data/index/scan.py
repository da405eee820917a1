"""Scans row groups: roles, token counts and image sizes of their rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from typing import Any

import pyarrow as pa

from mathcanvas_lightning.data.images.decode import check_image
from mathcanvas_lightning.data.rows.left_out import ROW_ERRORS, row_boundary, stage_of
from mathcanvas_lightning.data.rows.readers import Element, Sample
from mathcanvas_lightning.data.rows.schema import IMAGE_COLUMNS
from mathcanvas_lightning.data.rows.source import RowGroup, Rows, RowSource, row_place, row_uid
from mathcanvas_lightning.data.rows.stored_images import StoredImage, StoredRow, decode_images
from mathcanvas_lightning.data.sequence.encode import encode_texts, is_text
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import DataError

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
        "oriented": pa.int32(),  # images with an EXIF orientation
    }
)
NEWER_COLUMNS = frozenset({"oriented"})
"""Columns that sidecars of earlier versions lack."""


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
            rows = self._read(path, group)
        except DataError as error:
            return [
                _left_out(row_uid(path, group.number, row), group.number, row, "read", error)
                for row in range(group.num_rows)
            ]
        return [self._scan_row(rows, path, group, row) for row in range(group.num_rows)]

    def _read(self, path: str, group: RowGroup) -> Rows:
        """Reads a row group, without its images if their sizes are known and within the limits."""
        stored = group.images
        if stored is None or not all(
            image.fits(self.source.limits) for row in stored for part in row for image in part
        ):
            return self.source.read(path, group.number)
        return _TextRows(self.source.read(path, group.number, without=IMAGE_COLUMNS), stored)

    def _scan_row(self, rows: Rows, path: str, group: RowGroup, row: int) -> dict[str, Any]:
        uid = row_uid(path, group.number, row)
        try:
            sample = self.source.sample(rows, path, group.number, row)
            uid = sample.uid
            with row_boundary(row_place(path, group.number, row)):
                texts = encode_texts(sample, _tokenizer(self.tokenizer_folder))
                images = self._images(rows, sample, path, row)
        except ROW_ERRORS as error:
            return _left_out(uid, group.number, row, stage_of(error), error)
        indexes = range(len(sample.elements))
        sizes = [
            (images[i].width_px, images[i].height_px) if i in images else (0, 0) for i in indexes
        ]
        return {
            "uid": uid,
            "row_group": group.number,
            "row": row,
            "stage": None,
            "problem": None,
            "roles": [int(element.role) for element in sample.elements],
            "steps": [element.step for element in sample.elements],
            "text_tokens": [len(texts.get(index, ())) for index in indexes],
            "widths": [width for width, _ in sizes],
            "heights": [height for _, height in sizes],
            "oriented": sum(image.orientation != 1 for image in images.values()),
        }

    def _images(self, rows: Rows, sample: Sample, path: str, row: int) -> Mapping[int, StoredImage]:
        """Element -> what is known of its image."""
        if isinstance(rows, _TextRows):
            return rows.images(sample, row)

        return {
            index: self._read_image(element, path)
            for index, element in enumerate(sample.elements)
            if not is_text(element)
        }

    def _read_image(self, element: Element, path: str) -> StoredImage:
        data = self.source.read_image(element, path)
        return StoredImage.of(data, check_image(data, self.source.limits, depth="header"))


class _TextRows:
    """Rows that were read without their images; a number stands for each image of a row.

    Args:
        rows: The other columns.
        stored: The images of each row.
    """

    def __init__(self, rows: Rows, stored: Sequence[StoredRow]) -> None:
        self._rows, self._stored = rows, stored
        self.num_bytes = rows.num_bytes

    def row(self, number: int, place: str) -> Mapping[str, Any]:
        """See `Rows`."""
        question, solution = self._stored[number]
        names = [str(n).encode() for n in range(len(question) + len(solution))]
        images = (names[: len(question)], names[len(question) :])
        return {**self._rows.row(number, place), **dict(zip(IMAGE_COLUMNS, images, strict=True))}

    def images(self, sample: Sample, number: int) -> Mapping[int, StoredImage]:
        """Element of a sample -> its image."""
        images = [image for part in self._stored[number] for image in part]
        return {
            index: images[int(element.content)]
            for index, element in enumerate(sample.elements)
            if isinstance(element.content, bytes)
        }


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
        "oriented": 0,
    }


@cache
def _tokenizer(folder: str) -> TextTokenizer:
    return TextTokenizer(folder)


def with_stored_images(
    source: RowSource, path: str, groups: Sequence[RowGroup]
) -> Sequence[RowGroup]:
    """Adds the sizes of the images to the row groups of a shard, if its footer holds them."""
    if source.row_format != "interleaved":
        return groups
    num_rows = sum(group.num_rows for group in groups)
    images = decode_images(source.storage.metadata(path).metadata, num_rows)
    if images is None:
        return groups
    ends = accumulate(group.num_rows for group in groups)
    return [
        replace(group, images=images[end - group.num_rows : end])
        for group, end in zip(groups, ends, strict=True)
    ]
