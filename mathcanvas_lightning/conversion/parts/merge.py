"""Merges the parts of a conversion to its shards, rejects and manifest."""

import json
import posixpath
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mathcanvas_lightning.conversion.input.scan import Scanner
from mathcanvas_lightning.conversion.job import (
    ConversionJob,
    Outcome,
    make_report,
    prepare_folder,
    with_scan,
    write_job,
)
from mathcanvas_lightning.conversion.options import RunConfig
from mathcanvas_lightning.conversion.output.existing import Existing
from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.conversion.parts.blocks import (
    PARTS_FOLDER,
    Converted,
    block_name,
    count_blocks,
    read_block,
    read_origin,
    read_texts,
)
from mathcanvas_lightning.conversion.parts.part import Part, find_markers
from mathcanvas_lightning.conversion.parts.settings import job_from
from mathcanvas_lightning.conversion.report import ConversionReport
from mathcanvas_lightning.conversion.samples import ConvertedExample
from mathcanvas_lightning.errors import OutputError


def merge_conversion(
    merge: str,
    *,
    max_reject_fraction: float = 1.0,
    max_image_reject_fraction: float = 0.1,
    overwrite: bool = False,
    progress: bool = True,
) -> ConversionReport:
    """Merges the parts that `mathcanvas convert --part i/n` wrote.

    Shards, rejects and manifest equal those of one conversion, byte for byte. Run again after an
    interruption, it resumes. At the end the parts are deleted.

    Args:
        merge: The output folder of the parts: a path or an fsspec URL.
        max_reject_fraction: The merge fails if a larger fraction of records is rejected.
        max_image_reject_fraction: The same for records that are rejected for their images.
        overwrite: Replace the files of an earlier conversion in this folder, and no others.
        progress: Show progress bars on a terminal.

    Raises:
        OutputError: If parts are missing, or differ in their settings or their input.
    """
    started = time.monotonic()
    folder = OutputFolder(merge)
    with folder.locked():
        num_records = _check_markers(folder)
        blocks = range(count_blocks(num_records))
        job = _scanned(job_from(_common_settings(folder, blocks)), folder, blocks)
        existing = prepare_folder(job, folder, overwrite=overwrite)
        outcomes = _outcomes(job, folder, blocks, existing)
        result = write_job(job, outcomes, folder, existing, progress=progress)
        _remove_parts(folder, blocks)
    run = RunConfig(
        num_workers=0,
        max_reject_fraction=max_reject_fraction,
        max_image_reject_fraction=max_image_reject_fraction,
        progress=progress,
    )
    return make_report(job, result, folder, run, started)


def _check_markers(folder: OutputFolder) -> int:
    """The number of records; raises an `OutputError` unless all parts are finished."""
    markers = find_markers(folder)
    if not markers:
        raise _bad(folder, "no finished part", "the parts of one job", "Run convert --part i/n.")
    counts = sorted({part.of for part in markers})
    if len(counts) > 1:
        found = f"parts of {' and of '.join(map(str, counts))}"
        raise _bad(folder, found, "parts of one job", "Delete those of the other job.")
    missing = [
        Part(n, counts[0]) for n in range(1, counts[0] + 1) if Part(n, counts[0]) not in markers
    ]
    if missing:
        names = ", ".join(map(str, missing))
        remedy = f"Run --part {missing[0]} with the options of the others, then merge again."
        raise _bad(folder, f"no finished part {names}", f"all {counts[0]} parts", remedy)
    records = {_records_of(folder, name) for name in markers.values()}
    if len(records) != 1:
        found = f"parts of inputs with {' and '.join(sorted(map(str, records)))} records"
        raise _bad(folder, found, "parts of one input", "Run all parts again with --overwrite.")
    return records.pop()


def _records_of(folder: OutputFolder, marker: str) -> int:
    try:
        return int(json.loads(folder.read(marker) or b"")["records"])
    except (ValueError, KeyError, TypeError):
        found = f"{posixpath.basename(marker)}, which no part wrote"
        raise _bad(
            folder, found, "files of finished parts", "Delete it, and run its part."
        ) from None


def _common_settings(folder: OutputFolder, blocks: Sequence[int]) -> str:
    """The settings of all blocks; raises an `OutputError` if they differ."""
    settings: dict[str, int] = {}
    for number in blocks:
        origin = read_origin(folder, number)
        if origin is None:
            raise OutputError(
                folder.path(block_name(number)),
                found="no block, or a damaged one",
                wanted="all blocks of the finished parts",
                remedy="Run its part again; the other blocks are kept.",
            )
        settings.setdefault(origin.settings, number)
    if not settings:
        raise _bad(folder, "parts of an empty input", "records", "Check --input.")
    if len(settings) > 1:
        names = " and ".join(folder.path(block_name(number)) for number in settings.values())
        found = f"other settings in {names}"
        remedy = "Run the parts again with --overwrite and the same options."
        raise _bad(folder, found, "parts with the same settings", remedy)
    return next(iter(settings))


def _scanned(job: ConversionJob, folder: OutputFolder, blocks: Sequence[int]) -> ConversionJob:
    scanner = Scanner(job.converter.source)
    for number in blocks:
        for text in read_texts(folder, number):
            scanner.add(json.loads(text), text)
    return with_scan(job, scanner.result(None))


def _outcomes(
    job: ConversionJob, folder: OutputFolder, blocks: Sequence[int], existing: Existing
) -> Iterator[Outcome]:
    for number in blocks:
        for one in read_block(folder, number):
            yield None if one.record in existing.records else _renamed(job, one)


def _renamed(job: ConversionJob, one: Converted) -> Outcome:
    outcome = one.outcome
    if not isinstance(outcome, ConvertedExample):
        return outcome
    return replace(outcome, extras=job.converter.renamed_extras(outcome.extras))


def _remove_parts(folder: OutputFolder, blocks: Sequence[int]) -> None:
    for name in find_markers(folder).values():
        folder.remove(name)
    for number in blocks:
        folder.remove(block_name(number))
    folder.remove_folder(PARTS_FOLDER)


def _bad(folder: OutputFolder, found: str, wanted: str, remedy: str) -> OutputError:
    return OutputError(folder.path(PARTS_FOLDER), found=found, wanted=wanted, remedy=remedy)
