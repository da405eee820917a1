"""Counts and problems of a folder of interleaved shards."""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mathcanvas_lightning.common.display.short import counted, short_repr
from mathcanvas_lightning.common.paths import (
    join_path,
    local_path,
    parent_folder,
    without_query,
)
from mathcanvas_lightning.common.progress import Advance, progress_bar
from mathcanvas_lightning.data.images.decode import Depth, ImageError, ImageLimits, check_image
from mathcanvas_lightning.data.rows.left_out import require_unicode
from mathcanvas_lightning.data.rows.schema import (
    SECTIONS,
    ImageSegment,
    InterleavedExample,
    TextSegment,
    example_from_row,
)
from mathcanvas_lightning.data.rows.shards import INFO_FILE, iter_rows
from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.inspection.gallery import write_gallery
from mathcanvas_lightning.storage.files import Storage
from mathcanvas_lightning.storage.retry import MissingFileError


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A problem of a shard or row."""

    place: str
    """Location: file and row."""
    uid: str | None
    """Id of the row; None if the problem concerns a whole file."""
    message: str
    """Description of the problem."""


@dataclass(slots=True, kw_only=True)
class ShardsReport:
    """Counts, examples and problems; filled row by row."""

    path: str
    """Folder of shards, or a single shard."""
    num_files: int = 0
    size_bytes: int = 0
    num_rows: int = 0
    row_group_rows: list[int] = field(default_factory=list)
    """Number of rows of each row group."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column name -> Arrow type."""
    image_formats: Counter[str] = field(default_factory=Counter)
    """Format and mode -> number of images."""
    image_sizes_px: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(width, height) -> number of images."""
    num_oriented: int = 0
    """Number of images with an EXIF orientation, which training ignores as the reference does."""
    images_per_row: dict[str, list[int]] = field(default_factory=lambda: {s: [] for s in SECTIONS})
    """Section -> number of images of each row."""
    text_lengths: dict[str, list[int]] = field(default_factory=lambda: {s: [] for s in SECTIONS})
    """Section -> number of characters of each row."""
    answers: Counter[str] = field(default_factory=Counter)
    """Answer -> number of rows."""
    examples: list[InterleavedExample] = field(default_factory=list)
    """The first rows."""
    problems: list[Problem] = field(default_factory=list)
    """All problems, in order of the rows."""

    def __repr__(self) -> str:
        counts = {"file": self.num_files, "row": self.num_rows, "problem": len(self.problems)}
        return short_repr(self, repr(self.path), *(counted(n, name) for name, n in counts.items()))


def inspect_shards(
    path: str,
    *,
    rows: int = 3,
    html: str | None = None,
    validate: bool = False,
    progress: bool = True,
) -> ShardsReport:
    """Inspects interleaved shards: counts, columns, row groups, images, texts.

    Args:
        path: Folder of Parquet shards, or a single shard: a path, or an fsspec URL.
        rows: Number of rows to show.
        html: HTML file to write, with these rows as texts and pictures in reading order.
        validate: Also decode all images, and compare the shards with their info file.
        progress: Show a progress bar on a terminal.

    Returns:
        Counts, the first rows, and the problems.

    Raises:
        DataError: If there is no shard.
        StorageError: If a server fails.
    """
    storage = Storage()
    shards = storage.list_statuses(path)
    shown = without_query(path)
    report = ShardsReport(path=shown, num_files=len(shards))
    seen: dict[str, str] = {}
    with progress_bar("Inspecting", _count_rows(shards, storage), show=progress) as advance:
        for shard, status in shards.items():
            report.size_bytes += status.size_bytes
            try:
                _inspect_shard(shard, storage, report, seen, rows, validate, advance)
            except DataError as error:
                place = without_query(shard)
                report.problems.append(Problem(place=place, uid=None, message=str(error)))
    if validate:
        for folder in sorted({parent_folder(shard) for shard in shards}):
            report.problems += _check_info(folder, storage)
    if html is not None:
        title = f"{report.num_rows} rows of {shown}"
        write_gallery(local_path(html), report.examples, title=title)
    return report


def _count_rows(shards: Iterable[str], storage: Storage) -> int:
    total = 0
    for shard in shards:
        with contextlib.suppress(DataError):  # reported when the shard is read
            total += storage.metadata(shard).num_rows
    return total


def _inspect_shard(
    shard: str,
    storage: Storage,
    report: ShardsReport,
    seen: dict[str, str],
    num_shown: int,
    validate: bool,
    advance: Advance,
) -> None:
    metadata = storage.metadata(shard)
    report.row_group_rows += [
        metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)
    ]
    for column in metadata.schema.to_arrow_schema():
        report.columns.setdefault(column.name, str(column.type))
    for number, row in enumerate(iter_rows(shard, storage)):
        place = f"{without_query(shard)}#{number}"
        report.num_rows += 1
        try:
            example = example_from_row(row, place=place)
        except DataError as error:
            uid = str(row.get("id", place))
            report.problems.append(Problem(place=place, uid=uid, message=str(error)))
            continue
        for message in _inspect_example(example, report, depth="pixels" if validate else "header"):
            report.problems.append(Problem(place=place, uid=example.uid, message=message))
        if (first := seen.setdefault(example.uid, place)) != place:
            message = f"the id {example.uid!r} is also that of {first}"
            report.problems.append(Problem(place=place, uid=example.uid, message=message))
        if len(report.examples) < num_shown:
            report.examples.append(example)
        advance(1, f"{len(report.problems)} problems")


def _inspect_example(
    example: InterleavedExample, report: ShardsReport, *, depth: Depth
) -> Iterator[str]:
    """Adds an example to the counts, and yields its problems."""
    report.answers[example.answer] += 1
    for section in SECTIONS:
        segments = getattr(example, section)
        texts = [segment.text for segment in segments if isinstance(segment, TextSegment)]
        report.text_lengths[section].append(sum(map(len, texts)))
        images = [segment for segment in segments if isinstance(segment, ImageSegment)]
        report.images_per_row[section].append(len(images))
        for number, image in enumerate(images):
            try:
                info = check_image(image.data, ImageLimits(), depth=depth)
            except ImageError as error:
                yield f"{section} image {number} ({image.path}): {error.reason}: {error}"
                continue
            report.image_formats[f"{info.format} {info.mode}"] += 1
            report.image_sizes_px[info.width_px, info.height_px] += 1
            report.num_oriented += info.orientation != 1
    every = (*example.question, *example.solution)
    texts = [segment.text for segment in every if isinstance(segment, TextSegment)]
    try:
        require_unicode(" ".join([example.uid, *texts]), example.uid)
    except DataError as error:
        yield error.found
    if not example.question:
        yield "no question"
    if not example.answer:
        yield "no answer"


def _check_info(folder: str, storage: Storage) -> Iterator[Problem]:
    path = join_path(folder, INFO_FILE)
    try:
        content = storage.read_bytes(path)
    except MissingFileError:
        return
    try:
        files: list[Mapping[str, Any]] = json.loads(content)["files"]
        for entry in files:
            shard = join_path(folder, entry["path"])
            for message in _compare(shard, entry, storage):
                yield Problem(place=shard, uid=None, message=message)
    except (ValueError, KeyError, TypeError) as error:
        message = f"not an info file of this library ({type(error).__name__}: {error})"
        yield Problem(place=path, uid=None, message=message)


def _compare(shard: str, entry: Mapping[str, Any], storage: Storage) -> Iterator[str]:
    try:
        with storage.fetched(shard) as local, local.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except MissingFileError:
        yield f"listed in {INFO_FILE}, but not there"
        return
    if digest != entry["sha256"]:
        yield f"its SHA-256 is {digest}, in {INFO_FILE} it is {entry['sha256']}"
