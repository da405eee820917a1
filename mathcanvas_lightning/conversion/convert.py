"""Chain-of-thought data with images -> interleaved Parquet shards."""

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

import pyarrow as pa

from mathcanvas_lightning.common.parallel import chunked, count_workers, ordered_map
from mathcanvas_lightning.common.paths import is_remote, without_query
from mathcanvas_lightning.common.progress import progress_bar
from mathcanvas_lightning.conversion.input.images import SourceFiles
from mathcanvas_lightning.conversion.input.records import fetched, read_records
from mathcanvas_lightning.conversion.input.scan import (
    Scan,
    find_source,
    recognise_source,
    scan_input,
)
from mathcanvas_lightning.conversion.options import (
    check_image_dir,
    folder_of,
    make_source,
    relative_image_dir,
)
from mathcanvas_lightning.conversion.output.columns import shard_schema
from mathcanvas_lightning.conversion.output.existing import (
    REJECTS_FILE,
    SUMMARY_FILE,
    Existing,
    clear,
    find_existing,
    tidy,
)
from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.conversion.output.splits import assign_splits, parse_split
from mathcanvas_lightning.conversion.output.writer import ShardLayout, ShardWriter
from mathcanvas_lightning.conversion.rejection import Reason, Rejection
from mathcanvas_lightning.conversion.samples import RecordConverter
from mathcanvas_lightning.data.images.decode import MAX_PIXELS, ImageLimits
from mathcanvas_lightning.data.rows.schema import InterleavedExample, InterleaveEncoding

FORMAT_VERSION = 1
CHUNK_RECORDS = 8

Outcome = InterleavedExample | Rejection | None
"""None for a record that an earlier run has converted."""
_Item = tuple[int, tuple[Any] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionReport:
    """What became of every record of the input."""

    output: str
    """The output folder."""
    num_records: int
    """Records of the input: rows and rejects together."""
    rows: Mapping[str, int]
    """Split name ("" without a split) -> rows."""
    rejects: Mapping[str, int]
    """Reason code -> rejected records."""
    num_resumed: int
    """Rows that an earlier run had finished."""
    max_reject_fraction: float
    """The largest acceptable fraction of rejects."""
    seconds: float
    """Time taken."""

    @property
    def num_rows(self) -> int:
        """Rows in all splits."""
        return sum(self.rows.values())

    @property
    def num_rejects(self) -> int:
        """Rejected records, filtered ones included."""
        return sum(self.rejects.values())

    @property
    def problem(self) -> str | None:
        """Why the conversion counts as failed, None if it doesn't."""
        if self.num_rows == 0:
            return f"nothing was kept of {self.num_records} records; see {REJECTS_FILE}"
        fraction = self.num_rejects / self.num_records
        if fraction > self.max_reject_fraction:
            return (
                f"{fraction:.1%} of the records were rejected, more than --max_reject_fraction "
                f"{self.max_reject_fraction:g} allows; see {REJECTS_FILE}"
            )
        return None


def convert_cot(
    input: str,  # noqa: A002 - the option's name
    output: str,
    *,
    image_dir: str | None = None,
    source: str = "auto",
    name: str | None = None,
    samples_per_file: int = 100,
    row_group_rows: int = 32,
    interleave_encoding: InterleaveEncoding = "json",
    question_prompt: str = "builtin",
    split: str | None = None,
    seed: int = 42,
    num_workers: int | None = None,
    max_reject_fraction: float = 1.0,
    allow_no_solution: bool = False,
    max_image_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
    progress: bool = True,
) -> ConversionReport:
    """Converts chain-of-thought data with images into interleaved Parquet shards.

    A sample becomes a whole row, or one line of rejects.jsonl with the reason. The same input and
    settings give the same bytes, whatever the number of workers. Killed and started again, it
    goes on where it was; an input that has grown at its end is converted from there on.

    Args:
        input: JSON array or JSON lines: a path, or an fsspec URL (file, s3, http).
        output: Folder for the shards: a path or an fsspec URL.
        image_dir: Folder that image paths are relative to; by default the input's own.
        source: Format of the input: auto, blockmoving, mathcanvas, mathvision, or the import
            path of a SourceFormat subclass.
        name: Beginning of the shards' file names; by default the source's name.
        samples_per_file: Rows of a shard.
        row_group_rows: Rows of a row group; one of large images ends sooner, at 8 MiB.
        interleave_encoding: How interleaves stand: "json" for JSON strings, "struct" for lists
            of structs, which the public MathCanvas trainer reads too.
        question_prompt: Text, or a file that holds it, put before a BlockMoving task's options;
            "builtin" describes the rules, "none" leaves the question as it stands.
        split: Split names and fractions, such as train=0.9,test=0.1; each gets a folder.
        seed: Decides which row goes to which split.
        num_workers: Processes that read and check images; 0 works in this one; by default one
            for each usable core.
        max_reject_fraction: The conversion counts as failed if more of the records than this
            were rejected, filtered ones included.
        allow_no_solution: Keep samples without a solution: for prediction, not for training.
        max_image_pixels: An image with more pixels is rejected without being decoded.
        overwrite: Replace what an earlier conversion wrote to the output folder.
        progress: Show progress bars on a terminal.

    Returns:
        Counts of rows and rejects; its `problem` says why the conversion counts as failed.

    Raises:
        ConfigError: If a setting can't be used.
        InputError: If the input can't be read, or its JSON breaks: what was finished stays.
        OutputError: If the output folder holds something else.
        WorkerError: If a worker process is killed.
    """
    started = time.monotonic()
    fractions = parse_split(split)
    folder = OutputFolder(output)
    with fetched(input) as path, folder.locked():
        place = without_query(input) if is_remote(input) else os.fspath(path)
        format_class = recognise_source(path, place) if source == "auto" else find_source(source)
        converter = RecordConverter(
            source=make_source(format_class, question_prompt),
            files=SourceFiles(check_image_dir(image_dir) or folder_of(input)),
            limits=ImageLimits(max_pixels=max_image_pixels),
            allow_no_solution=allow_no_solution,
        )
        job = _Job(
            converter=converter,
            layout=ShardLayout(
                name=name or converter.source.name,
                encoding=interleave_encoding,
                samples_per_file=samples_per_file,
                row_group_rows=row_group_rows,
            ),
            scan=scan_input(path, place, converter.source, progress=progress),
            fractions=fractions,
            seed=seed,
            image_dir=relative_image_dir(image_dir, input),
        )
        if overwrite:
            clear(folder)
        records = islice(read_records(path, place), job.scan.num_records)
        rows, rejects, num_resumed = _run(job, records, folder, num_workers, progress)
    return ConversionReport(
        output=folder.root,
        num_records=job.scan.num_records,
        rows=rows,
        rejects=rejects,
        num_resumed=num_resumed,
        max_reject_fraction=max_reject_fraction,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True, kw_only=True)
class _Job:
    """All that decides the bytes of the output."""

    converter: RecordConverter
    layout: ShardLayout
    scan: Scan
    fractions: Mapping[str, float]
    seed: int
    image_dir: str

    @cached_property
    def schema(self) -> pa.Schema:
        return shard_schema(self.layout.encoding, self.scan.extras)

    @cached_property
    def settings(self) -> dict[str, Any]:
        source = self.converter.source
        options: dict[str, Any] = asdict(source) if is_dataclass(source) else {}
        return {
            "format_version": FORMAT_VERSION,
            "source": f"{type(source).__module__}.{type(source).__qualname__}",
            "source_options": options,
            "image_dir": self.image_dir,
            "layout": asdict(self.layout),
            "columns": {field.name: str(field.type) for field in self.schema},
            "split": dict(self.fractions),
            "seed": self.seed,
            "allow_no_solution": self.converter.allow_no_solution,
            "image_limits": asdict(self.converter.limits),
        }

    @cached_property
    def settings_hash(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()


def _run(
    job: _Job,
    records: Iterator[Any],
    folder: OutputFolder,
    num_workers: int | None,
    progress: bool,
) -> tuple[dict[str, int], dict[str, int], int]:
    """Converts what is left to do; returns rows by split, rejects by reason, rows resumed."""
    existing = find_existing(
        folder,
        folders=job.fractions,
        layout=job.layout,
        settings=job.settings_hash,
        scan=job.scan,
    )
    outcomes = ordered_map(
        partial(_convert_chunk, job.converter),
        _chunks(records, existing),
        num_workers=count_workers(
            num_workers, job.scan.num_records - len(existing.records), CHUNK_RECORDS
        ),
    )
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
        stack.enter_context(contextlib.closing(outcomes))
        rejects = _write(job, outcomes, writers, existing, folder, progress)
    rows = {part: writer.num_rows for part, writer in writers.items()}
    summary = {"records": job.scan.num_records, "rows": rows, "rejects": rejects}
    with folder.writing(SUMMARY_FILE) as path:
        path.write_text(json.dumps({**job.settings, **summary}, indent=2) + "\n")
    return rows, rejects, len(existing.records)


def _write(
    job: _Job,
    outcomes: Iterator[Outcome],
    writers: Mapping[str, ShardWriter],
    existing: Existing,
    folder: OutputFolder,
    progress: bool,
) -> dict[str, int]:
    """Writes rows and rejects in the order of the records; returns rejects by reason."""
    rejects: Counter[str] = Counter()
    parts = assign_splits(job.fractions, job.seed)
    uids = set(existing.uids)
    with (
        folder.writing(REJECTS_FILE) as path,
        path.open("wb") as reject_file,
        progress_bar("Converting", job.scan.num_records, show=progress) as advance,
    ):
        for record, outcome in enumerate(outcomes):
            if isinstance(outcome, InterleavedExample) and outcome.uid in uids:
                outcome = _duplicate(record, outcome.uid)
            if outcome is None:
                next(parts)
            elif isinstance(outcome, Rejection):
                rejects[outcome.reason] += 1
                reject_file.write(_json_line(outcome))
            else:
                uids.add(outcome.uid)
                writers[next(parts)].add(outcome, record=record)
            advance(1, f"{rejects.total()} rejected")
        if job.scan.error is not None:
            raise job.scan.error
        for writer in writers.values():
            writer.finish()
            writer.write_info()
        tidy(folder, {part: writer.shards for part, writer in writers.items()})
    return dict(sorted(rejects.items()))


def _chunks(records: Iterator[Any], existing: Existing) -> Iterator[list[_Item]]:
    """Records with their numbers, a few at a time; those already converted without content."""
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


def _duplicate(record: int, uid: str) -> Rejection:
    message = f"a row with the id {uid!r} is already there"
    return Rejection(record=record, uid=uid, reason=Reason.DUPLICATE_ID, message=message)


def _json_line(rejection: Rejection) -> bytes:
    fields = asdict(rejection)
    line = {"record": fields["record"], "id": fields["uid"], **fields}
    del line["uid"]
    return json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
