"""Converts the remaining records of a conversion job, in order, and writes rows and rejects."""

import contextlib
import hashlib
import json
import posixpath
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import cached_property, partial
from typing import Any

import pyarrow as pa

from mathcanvas_lightning.common.parallel import chunked, count_workers, ordered_map, serial_time
from mathcanvas_lightning.common.progress import progress_bar
from mathcanvas_lightning.conversion import sources
from mathcanvas_lightning.conversion.input.scan import Scan
from mathcanvas_lightning.conversion.options import RunConfig
from mathcanvas_lightning.conversion.output.columns import shard_schema
from mathcanvas_lightning.conversion.output.existing import Existing, find_existing, tidy
from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.conversion.output.manifest import (
    REJECTS_FILE,
    SUMMARY_FILE,
    find_owned,
    remove_leftovers,
    remove_owned,
)
from mathcanvas_lightning.conversion.output.splits import assign_splits
from mathcanvas_lightning.conversion.output.writer import ShardLayout, ShardWriter
from mathcanvas_lightning.conversion.rejection import Reason, Rejection
from mathcanvas_lightning.conversion.report import ConversionReport
from mathcanvas_lightning.conversion.samples import ConvertedExample, RecordConverter
from mathcanvas_lightning.data.rows.shards import INFO_FILE
from mathcanvas_lightning.errors import InputError

FORMAT_VERSION = 1
CHUNK_RECORDS = 8

Outcome = ConvertedExample | Rejection | None
"""None if an earlier run has already converted the record."""
_Item = tuple[int, tuple[Any] | None]


@dataclass(frozen=True, kw_only=True)
class ConversionJob:
    """Everything that determines the bytes of the output."""

    converter: RecordConverter
    """Converts one record."""
    layout: ShardLayout
    """Names and sizes of the shards."""
    scan: Scan
    """Result of scanning the input."""
    fractions: Mapping[str, float]
    """Split name -> fraction of the rows."""
    seed: int
    """Seed of the assignment of rows to splits."""
    image_dir: str
    """Image folder relative to the input's folder."""
    link_root: str | None
    """Folder that links may lead into, relative to the input's folder; None: the image folder."""

    @cached_property
    def schema(self) -> pa.Schema:
        """Schema of all shards."""
        return shard_schema(self.layout.encoding, self.scan.extras)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings that determine the output, as JSON values."""
        source = self.converter.source
        options: dict[str, Any] = asdict(source) if is_dataclass(source) else {}
        # Named only if used: shards of earlier versions hold a hash without them.
        newer: dict[str, Any] = {"link_root": self.link_root} if self.link_root else {}
        if self.converter.apply_orientation:
            newer["apply_exif_orientation"] = True
        return {
            "format_version": FORMAT_VERSION,
            "source": import_path(type(source)),
            "source_options": options,
            "image_dir": self.image_dir,
            "layout": asdict(self.layout),
            "columns": {field.name: str(field.type) for field in self.schema},
            "split": dict(self.fractions),
            "seed": self.seed,
            "allow_no_solution": self.converter.allow_no_solution,
            "image_limits": asdict(self.converter.limits),
            **newer,
        }

    @cached_property
    def settings_hash(self) -> str:
        """SHA-256 of the settings, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """Counts of a finished job."""

    rows: Mapping[str, int]
    """Split name -> number of rows."""
    rejects: Mapping[str, int]
    """Reason code -> number of rejected records."""
    num_resumed: int
    """Number of rows that an earlier run had already finished."""
    num_oriented: int
    """Number of images with an EXIF orientation in the rows that this run converted."""


def with_scan(job: ConversionJob, scan: Scan) -> ConversionJob:
    """The job for an input that was scanned."""
    return replace(job, scan=scan, converter=replace(job.converter, renamed=scan.renamed))


def prepare_folder(job: ConversionJob, folder: OutputFolder, *, overwrite: bool) -> Existing:
    """Finds what earlier runs have finished, or deletes it.

    Args:
        job: What to convert, and how.
        folder: The output folder.
        overwrite: Delete the files of earlier conversions in the folder, and no others.

    Returns:
        The finished work to keep.

    Raises:
        InputError: If the input is malformed and finished work would be lost.
        OutputError: If the folder holds files of others that would be mixed with the shards, or,
            without `overwrite`, shards of another conversion.
    """
    folders = tuple(job.fractions)
    owned = find_owned(folder, job.layout, folders)
    if overwrite and owned.shards:
        if job.scan.error is not None:
            raise job.scan.error
        if job.scan.num_records == 0:
            raise InputError(
                "--input",
                found="no record",
                wanted="records to replace the finished shards with",
                remedy="Check the path; nothing was deleted.",
            )
        remove_owned(folder, owned)
        owned = find_owned(folder, job.layout, folders)
    existing = find_existing(
        folder,
        folders=folders,
        owned=owned,
        layout=job.layout,
        settings=job.settings_hash,
        scan=job.scan,
    )
    remove_leftovers(folder, owned)
    for split in set(owned.folders) - set(folders):  # of an earlier conversion without a row
        folder.remove(posixpath.join(split, INFO_FILE))
        folder.remove_folder(split)
    return existing


def run_job(
    job: ConversionJob,
    records: Iterator[Any],
    folder: OutputFolder,
    existing: Existing,
    run: RunConfig,
) -> JobResult:
    """Converts the records that no earlier run has converted, and writes shards and summary.

    Args:
        job: What to convert, and how.
        records: All records of the input.
        folder: The output folder.
        existing: Finished work of earlier runs.
        run: Workers and progress bar.

    Raises:
        InputError: If the input breaks off, or the storage of the images fails.
        WorkerError: If a worker process is killed.
    """
    outcomes = ordered_map(
        partial(_convert_chunk, job.converter),
        _chunks(records, existing),
        num_workers=count_workers(
            run.num_workers, job.scan.num_records - len(existing.records), CHUNK_RECORDS
        ),
        serial_s=serial_time(run.num_workers),
    )
    with contextlib.closing(outcomes):
        return write_job(job, outcomes, folder, existing, progress=run.progress)


def write_job(
    job: ConversionJob,
    outcomes: Iterator[Outcome],
    folder: OutputFolder,
    existing: Existing,
    *,
    progress: bool,
) -> JobResult:
    """Writes the outcomes of the records to shards, rejects and summary.

    Args:
        job: What was converted, and how.
        outcomes: The outcome of each record, in order.
        folder: The output folder.
        existing: Finished work of earlier runs.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If the input broke off.
    """
    with contextlib.ExitStack() as stack:
        writers = {
            part: stack.enter_context(
                ShardWriter(
                    folder,
                    folder=part,
                    layout=job.layout,
                    schema=job.schema,
                    settings=job.settings_hash,
                    chain=job.scan.chain,
                    finished=existing.shards[part],
                )
            )
            for part in job.fractions
        }
        rejects, oriented = _write(job, outcomes, writers, folder, existing, progress)
    rows = {part: writer.num_rows for part, writer in writers.items()}
    summary = {"records": job.scan.num_records, "rows": rows, "rejects": rejects}
    if job.scan.renamed:
        summary["renamed_fields"] = dict(job.scan.renamed)
    with folder.writing(SUMMARY_FILE) as path:
        path.write_text(json.dumps({**job.settings, **summary}, indent=2) + "\n")
    return JobResult(
        rows=rows, rejects=rejects, num_resumed=len(existing.records), num_oriented=oriented
    )


def make_report(
    job: ConversionJob, result: JobResult, folder: OutputFolder, run: RunConfig, started: float
) -> ConversionReport:
    """The report of a finished job.

    Args:
        job: What was converted.
        result: Its counts.
        folder: The output folder.
        run: The fractions of rejects with which it still succeeds.
        started: Time of its start, by `time.monotonic`.
    """
    return ConversionReport(
        output=folder.root,
        num_records=job.scan.num_records,
        rows=result.rows,
        rejects=result.rejects,
        num_resumed=result.num_resumed,
        max_reject_fraction=run.max_reject_fraction,
        max_image_reject_fraction=run.max_image_reject_fraction,
        seconds=time.monotonic() - started,
        renamed_fields=job.scan.renamed,
        num_oriented=result.num_oriented,
        orientation_applied=job.converter.apply_orientation,
    )


def _write(
    job: ConversionJob,
    outcomes: Iterator[Outcome],
    writers: Mapping[str, ShardWriter],
    folder: OutputFolder,
    existing: Existing,
    progress: bool,
) -> tuple[dict[str, int], int]:
    """Writes rows and rejects in the order of the records.

    Returns:
        Rejects by reason, and the number of images with an EXIF orientation.
    """
    rejects: Counter[str] = Counter()
    num_oriented = 0
    parts = assign_splits(job.fractions, job.seed)
    uids = set(existing.uids)
    with (
        folder.writing(REJECTS_FILE) as path,
        path.open("wb") as reject_file,
        progress_bar("Converting", job.scan.num_records, show=progress) as advance,
    ):
        for record, outcome in enumerate(outcomes):
            if isinstance(outcome, ConvertedExample) and outcome.uid in uids:
                outcome = _duplicate(record, outcome.uid)
            if outcome is None:
                next(parts)
            elif isinstance(outcome, Rejection):
                _check_not_lost(outcome, existing)
                rejects[outcome.reason] += 1
                reject_file.write(_json_line(outcome))
            else:
                uids.add(outcome.uid)
                num_oriented += outcome.num_oriented
                images = outcome.stored_images
                writers[next(parts)].add(outcome, record=record, images=images)
            advance(1, f"{rejects.total()} rejected")
        if job.scan.error is not None:
            raise job.scan.error
        for writer in writers.values():
            writer.finish()
            writer.write_info()
        shards = {part: writer.shards for part, writer in writers.items()}
        tidy(folder, job.layout, shards, existing)
    return dict(sorted(rejects.items())), num_oriented


def _chunks(records: Iterator[Any], existing: Existing) -> Iterator[list[_Item]]:
    """Yields chunks of (number, record); records that are already converted become None."""
    items: Iterator[_Item] = (
        (number, None if number in existing.records else (record,))
        for number, record in enumerate(records)
    )
    return chunked(items, CHUNK_RECORDS)


def _convert_chunk(converter: RecordConverter, chunk: Sequence[_Item]) -> list[Outcome]:
    return [
        None if content is None else converter.convert(number, content[0])
        for number, content in chunk
    ]


def _check_not_lost(rejection: Rejection, existing: Existing) -> None:
    """Raises for a record whose row an earlier run has written: it would be deleted now."""
    if rejection.record in existing.rewritten and rejection.reason != Reason.DUPLICATE_ID:
        raise InputError(
            f"record {rejection.record} ({rejection.uid})",
            found=f"{rejection.reason}: {rejection.message}; an earlier run has converted it",
            wanted="the files and the source format of the earlier run",
            remedy="Restore them, or use --overwrite to convert everything again; finished shards "
            "stay.",
        )


def _duplicate(record: int, uid: str) -> Rejection:
    message = f"a row with the id {uid!r} is already there"
    return Rejection(record=record, uid=uid, reason=Reason.DUPLICATE_ID, message=message)


def _json_line(rejection: Rejection) -> bytes:
    fields = asdict(rejection)
    line = {"record": fields["record"], "id": fields["uid"], **fields}
    del line["uid"]
    return json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def import_path(kind: type[sources.SourceFormat]) -> str:
    """The import path of a source format."""
    # Built-in formats have the name of the package that exports them, wherever they are defined:
    # shards of earlier versions hold a hash of it.
    module = sources.__name__ if kind in sources.BUILT_IN else kind.__module__
    return f"{module}.{kind.__qualname__}"
