"""Converts chain-of-thought data with images into interleaved Parquet shards."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

from mathcanvas_lightning.common.parallel import count_workers
from mathcanvas_lightning.common.paths import is_remote, join_path, without_query
from mathcanvas_lightning.conversion.input.records import fetched, read_records
from mathcanvas_lightning.conversion.input.scan import find_source, recognise_source, scan_input
from mathcanvas_lightning.conversion.job import ConversionJob, prepare_folder, run_job
from mathcanvas_lightning.conversion.options import (
    InputConfig,
    OutputConfig,
    RunConfig,
    SampleConfig,
    ShardSize,
    SplitConfig,
    make_files,
    make_source,
    relative_folder,
    select_options,
)
from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.conversion.output.manifest import REJECTS_FILE
from mathcanvas_lightning.conversion.output.splits import parse_split
from mathcanvas_lightning.conversion.output.writer import ShardLayout
from mathcanvas_lightning.conversion.rejection import IMAGE_REASONS
from mathcanvas_lightning.conversion.samples import RecordConverter
from mathcanvas_lightning.data.images.decode import MAX_PIXELS, ImageLimits
from mathcanvas_lightning.data.rows.schema import InterleaveEncoding


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionReport:
    """Counts of a finished conversion."""

    output: str
    """Path or URL of the output folder."""
    num_records: int
    """Number of input records: rows plus rejects."""
    rows: Mapping[str, int]
    """Split name ("" without splits) -> number of rows."""
    rejects: Mapping[str, int]
    """Reason code -> number of rejected records."""
    num_resumed: int
    """Number of rows that an earlier run had already finished."""
    max_reject_fraction: float
    """The largest fraction of rejects with which the conversion still succeeds."""
    max_image_reject_fraction: float
    """The same for records that were rejected for their images."""
    seconds: float
    """Wall time, in seconds."""
    renamed_fields: Mapping[str, str] = field(default_factory=dict)
    """Field of the records -> extra column, for fields named like a column of the format."""
    num_oriented: int = 0
    """Number of images with an EXIF orientation in the rows that this run converted."""
    orientation_applied: bool = False
    """Whether these images were turned."""

    @property
    def num_rows(self) -> int:
        """Number of rows in all splits."""
        return sum(self.rows.values())

    @property
    def num_rejects(self) -> int:
        """Number of rejected records, including filtered ones."""
        return sum(self.rejects.values())

    @property
    def problem(self) -> str | None:
        """Why the conversion failed, or None if it succeeded."""
        if self.num_rows == 0:
            return f"no row was kept from {self.num_records} records; {self._remedy}"
        fraction = self.num_rejects / self.num_records
        if fraction > self.max_reject_fraction:
            return (
                f"{fraction:.1%} of the records were rejected, more than --max_reject_fraction "
                f"{self.max_reject_fraction:g} allows; {self._remedy}"
            )
        fraction = sum(self.rejects.get(reason, 0) for reason in IMAGE_REASONS) / self.num_records
        if fraction > self.max_image_reject_fraction:
            return (
                f"{fraction:.1%} of the records were rejected for their images, more than "
                f"--max_image_reject_fraction {self.max_image_reject_fraction:g} allows; "
                f"{self._remedy}"
            )
        return None

    @property
    def _remedy(self) -> str:
        """The most frequent reason, and where all are listed."""
        place = f"see {join_path(self.output, REJECTS_FILE)}"
        if not self.rejects:
            return place
        reason = max(self.rejects, key=lambda reason: self.rejects[reason])
        hint = "; check --image_dir" if reason in IMAGE_REASONS else ""
        return f"most for {reason}{hint}; {place}"


def convert_cot(
    input: str,  # noqa: A002 - the option's name
    output: str,
    *,
    image_dir: str | None = None,
    link_root: str | None = None,
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
    max_image_reject_fraction: float = 0.1,
    allow_no_solution: bool = False,
    max_image_pixels: int = MAX_PIXELS,
    apply_exif_orientation: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> ConversionReport:
    """Converts chain-of-thought data with images into interleaved Parquet shards.

    A record becomes one row, or one line of rejects.jsonl with the reason. The same input and
    settings give the same bytes for any number of workers. Run again, the conversion resumes.

    Args:
        input: JSON array or JSON lines, also packed by gzip: a path, or an fsspec URL.
        output: Folder for the shards: a path or an fsspec URL.
        image_dir: Folder that image paths are relative to; by default the input's folder.
        link_root: Folder that links in image_dir may lead into; by default image_dir itself.
        source: auto, blockmoving, mathcanvas, mathvision, or import path of a SourceFormat class.
        name: Prefix of the shards' file names; by default the source's name.
        samples_per_file: Rows per shard.
        row_group_rows: Rows per row group; a group of large images ends earlier, at 8 MiB.
        interleave_encoding: "json" (strings) or "struct" (as the public MathCanvas trainer reads).
        question_prompt: Text, or a text file, before the options of a BlockMoving task; "builtin"
            describes the rules, "none" keeps the question unchanged.
        split: Split names and fractions, such as train=0.9,test=0.1; one folder per split.
        seed: Seed of the assignment of rows to splits.
        num_workers: Worker processes; 0 uses the main process; by default one per usable core.
        max_reject_fraction: The conversion fails if a larger fraction of records is rejected.
        max_image_reject_fraction: The same for records that are rejected for their images.
        allow_no_solution: Keep samples without a solution: for prediction, not for training.
        max_image_pixels: An image with more pixels is rejected without being decoded.
        apply_exif_orientation: Turn images by EXIF, stored as PNG; the reference ignores EXIF.
        overwrite: Replace the files of an earlier conversion in this folder, and no others.
        progress: Show progress bars on a terminal.

    Raises:
        ConfigError: If an option is invalid.
        InputError: If the input is malformed, or a storage fails; finished shards stay.
        OutputError: If the output folder holds files of others; nothing is deleted.
        WorkerError: If a worker process is killed.
    """
    return run_conversion(*select_options(locals()))


def run_conversion(
    source: InputConfig,
    output: OutputConfig,
    size: ShardSize,
    split: SplitConfig,
    samples: SampleConfig,
    run: RunConfig,
) -> ConversionReport:
    """Runs a conversion; see `convert_cot`."""
    started = time.monotonic()
    fractions = parse_split(split.split)
    count_workers(run.num_workers, 0, 1)  # raises for a bad option, before anything is deleted
    folder = OutputFolder(output.output)
    with fetched(source.input) as path, folder.locked():
        place = without_query(source.input) if is_remote(source.input) else os.fspath(path)
        is_auto = source.source == "auto"
        kind = recognise_source(path, place) if is_auto else find_source(source.source)
        converter = RecordConverter(
            source=make_source(kind, source.question_prompt),
            files=make_files(source),
            limits=ImageLimits(max_pixels=samples.max_image_pixels),
            allow_no_solution=samples.allow_no_solution,
            apply_orientation=samples.apply_exif_orientation,
        )
        scan = scan_input(path, place, converter.source, progress=run.progress)
        job = ConversionJob(
            converter=replace(converter, renamed=scan.renamed),
            layout=ShardLayout(
                name=output.name or converter.source.name,
                encoding=output.interleave_encoding,
                samples_per_file=size.samples_per_file,
                row_group_rows=size.row_group_rows,
            ),
            scan=scan,
            fractions=fractions,
            seed=split.seed,
            image_dir=relative_folder(source.image_dir, source.input),
            link_root=source.link_root and relative_folder(source.link_root, source.input),
        )
        existing = prepare_folder(job, folder, overwrite=output.overwrite)
        records = islice(read_records(path, place), scan.num_records)
        result = run_job(job, records, folder, existing, run)
    return ConversionReport(
        output=folder.root,
        num_records=scan.num_records,
        rows=result.rows,
        rejects=result.rejects,
        num_resumed=result.num_resumed,
        max_reject_fraction=run.max_reject_fraction,
        max_image_reject_fraction=run.max_image_reject_fraction,
        seconds=time.monotonic() - started,
        renamed_fields=scan.renamed,
        num_oriented=result.num_oriented,
        orientation_applied=samples.apply_exif_orientation,
    )
