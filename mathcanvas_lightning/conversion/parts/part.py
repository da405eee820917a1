"""Converts one part of an input to blocks."""

import contextlib
import json
import posixpath
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mathcanvas_lightning.common.parallel import chunked, count_workers, ordered_map, serial_time
from mathcanvas_lightning.common.progress import progress_bar
from mathcanvas_lightning.conversion.columns.identity import canonical
from mathcanvas_lightning.conversion.input.files import InputFiles
from mathcanvas_lightning.conversion.job import CHUNK_RECORDS, ConversionJob
from mathcanvas_lightning.conversion.options import RunConfig
from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.conversion.parts.blocks import (
    PARTS_FOLDER,
    Converted,
    block_name,
    block_range,
    count_blocks,
    digest_of,
    read_origin,
    write_block,
)
from mathcanvas_lightning.conversion.parts.settings import settings_of
from mathcanvas_lightning.conversion.rejection import Rejection
from mathcanvas_lightning.conversion.report import ConversionReport
from mathcanvas_lightning.conversion.samples import RecordConverter
from mathcanvas_lightning.errors import ConfigError, OutputError

_MARKER = re.compile(r"(\d+)_of_(\d+)\.json")


@dataclass(frozen=True, slots=True)
class Part:
    """One of the parts that an input is divided into."""

    number: int
    """Number of the part, from 1."""
    of: int
    """Number of parts."""

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def marker(self) -> str:
        """Path of the file that says that the part is finished, in the output folder."""
        return posixpath.join(PARTS_FOLDER, f"{self.number}_of_{self.of}.json")

    @property
    def lock(self) -> str:
        """Path of the file that locks out another job with the same part."""
        return posixpath.join(PARTS_FOLDER, f".{self.number}_of_{self.of}.lock")

    def blocks(self, num_records: int) -> range:
        """The blocks of the part: neighbours, and as many as in the other parts, or one fewer."""
        num_blocks = count_blocks(num_records)
        return range((self.number - 1) * num_blocks // self.of, self.number * num_blocks // self.of)


def parse_part(text: str) -> Part:
    """Parses a text such as `3/8`.

    Raises:
        ConfigError: If the text is not a part.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(
            "--part",
            found=repr(text),
            wanted="i/n with i from 1 to n",
            remedy="Write for instance 1/8, 2/8, ... 8/8 in the jobs of an array.",
        )
    return Part(int(found[1]), int(found[2]))


def run_part(
    job: ConversionJob,
    files: InputFiles,
    folder: OutputFolder,
    part: Part,
    run: RunConfig,
    *,
    overwrite: bool,
) -> ConversionReport:
    """Converts the records of a part; a part that was interrupted is resumed.

    Args:
        job: What to convert, and how; it need not have scanned its input.
        files: The input.
        folder: The output folder of the whole conversion.
        part: The part.
        run: Workers and progress bar.
        overwrite: Convert all records again.

    Returns:
        Counts of its records; rejects are those of this run.

    Raises:
        InputError: If the input is malformed, or the storage of the images fails.
        OutputError: If the blocks of another conversion are there.
        WorkerError: If a worker process is killed.
    """
    started = time.monotonic()
    check_other_parts(folder, part)
    settings = settings_of(job)
    num_records = files.count()
    blocks = part.blocks(num_records)
    folder.remove(part.marker)
    todo = [number for number in blocks if overwrite or read_origin(folder, number) is None]
    for number in set(blocks) - set(todo):
        origin = read_origin(folder, number)
        texts = [canonical(r) for r in _records(files, number, num_records)]
        if origin is None or (origin.settings, origin.digest) != (settings, digest_of(texts)):
            raise _other(folder, number)
    rejects, num_oriented = _convert(job, files, folder, todo, num_records, settings, run)
    with folder.writing(part.marker) as path:
        path.write_text(json.dumps({"records": num_records}) + "\n")
    own = sum(len(block_range(number, num_records)) for number in blocks)
    done = sum(len(block_range(number, num_records)) for number in todo)
    return ConversionReport(
        output=folder.root,
        num_records=own,
        rows={"": own - rejects.total()},
        rejects=dict(sorted(rejects.items())),
        num_resumed=own - done,
        max_reject_fraction=run.max_reject_fraction,
        max_image_reject_fraction=run.max_image_reject_fraction,
        seconds=time.monotonic() - started,
        num_oriented=num_oriented,
        orientation_applied=job.converter.apply_orientation,
        part=str(part),
    )


def find_markers(folder: OutputFolder) -> dict[Part, str]:
    """The finished parts in an output folder, and the names of their files."""
    found = {}
    for name in folder.files(PARTS_FOLDER):
        if match := _MARKER.fullmatch(name):
            found[Part(int(match[1]), int(match[2]))] = posixpath.join(PARTS_FOLDER, name)
    return dict(sorted(found.items(), key=lambda item: (item[0].of, item[0].number)))


def check_other_parts(folder: OutputFolder, part: Part) -> None:
    """Raises an `OutputError` if other parts are finished of another number of parts."""
    for other in find_markers(folder):
        if other.of != part.of:
            raise OutputError(
                folder.path(other.marker),
                found=f"part {other} of a job with {other.of} parts",
                wanted=f"only parts of {part.of}, as --part {part} says",
                remedy=f"Delete {folder.path(PARTS_FOLDER)}, or give all jobs the same number.",
            )


def convert_block(
    converter: RecordConverter, numbered: Sequence[tuple[int, Any]]
) -> list[Converted]:
    """Converts records; a pure function of each record and the settings.

    Args:
        converter: Converts one record.
        numbered: Positions in the input, and records.
    """
    return [
        Converted(record=number, text=canonical(record), outcome=converter.convert(number, record))
        for number, record in numbered
    ]


def _convert(
    job: ConversionJob,
    files: InputFiles,
    folder: OutputFolder,
    blocks: Sequence[int],
    num_records: int,
    settings: str,
    run: RunConfig,
) -> tuple[Counter[str], int]:
    """Converts blocks; returns rejects by reason, and the number of images to turn."""
    rejects: Counter[str] = Counter()
    total = sum(len(block_range(number, num_records)) for number in blocks)
    num_oriented = 0
    items = (
        item
        for number in blocks
        for item in zip(
            block_range(number, num_records), _records(files, number, num_records), strict=True
        )
    )
    outcomes = ordered_map(
        partial(convert_block, job.converter),
        chunked(items, CHUNK_RECORDS),
        num_workers=count_workers(run.num_workers, total, CHUNK_RECORDS),
        serial_s=serial_time(run.num_workers),
    )
    with (
        contextlib.closing(outcomes),
        progress_bar("Converting", total, show=run.progress) as advance,
    ):
        for number in blocks:
            block: list[Converted] = []
            for _ in block_range(number, num_records):
                one = next(outcomes)
                block.append(one)
                if isinstance(one.outcome, Rejection):
                    rejects[one.outcome.reason] += 1
                else:
                    num_oriented += one.outcome.num_oriented
                advance(1, f"{rejects.total()} rejected")
            write_block(folder, number, block, settings)
    return rejects, num_oriented


def _records(files: InputFiles, block: int, num_records: int) -> Iterator[Any]:
    records = block_range(block, num_records)
    return files.read(records.start, records.stop)


def _other(folder: OutputFolder, number: int) -> OutputError:
    return OutputError(
        folder.path(block_name(number)),
        found="a block of another conversion, or of other records",
        wanted="no block, or one of the same records and settings",
        remedy="Choose another --output, or use --overwrite in all parts.",
    )
