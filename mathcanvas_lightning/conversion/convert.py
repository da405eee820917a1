"""Converts chain-of-thought data with images into interleaved Parquet shards.

A record becomes one row, or one line of rejects.jsonl with the reason. The same input and settings
give the same bytes for any number of workers, parts or machines. Run again, a conversion resumes.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mathcanvas_lightning.common.parallel import count_workers
from mathcanvas_lightning.conversion.columns import ColumnKeys, Columns
from mathcanvas_lightning.conversion.input.files import InputFiles, opened_input
from mathcanvas_lightning.conversion.input.scan import (
    NO_SCAN,
    Scan,
    find_source,
    recognise_source,
    scan_input,
)
from mathcanvas_lightning.conversion.job import (
    ConversionJob,
    make_report,
    prepare_folder,
    run_job,
    with_scan,
)
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
from mathcanvas_lightning.conversion.output.folder import LOCK_FILE, OutputFolder
from mathcanvas_lightning.conversion.output.splits import parse_split
from mathcanvas_lightning.conversion.output.writer import ShardLayout
from mathcanvas_lightning.conversion.parts.merge import merge_conversion
from mathcanvas_lightning.conversion.parts.part import parse_part, run_part
from mathcanvas_lightning.conversion.parts.ray_job import ray_parts
from mathcanvas_lightning.conversion.report import ConversionReport
from mathcanvas_lightning.conversion.samples import RecordConverter
from mathcanvas_lightning.conversion.sources import SourceFormat
from mathcanvas_lightning.data.images.decode import MAX_PIXELS, ImageLimits
from mathcanvas_lightning.data.rows.schema import InterleaveEncoding
from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.storage.config import FileStatus


def convert_cot(
    input: str,  # noqa: A002 - the option's name
    output: str,
    *,
    image_dir: str | None = None,
    link_root: str | None = None,
    source: str = "auto",
    preset: str | None = None,
    columns: ColumnKeys | None = None,
    name: str | None = None,
    samples_per_file: int = 100,
    row_group_rows: int = 32,
    interleave_encoding: InterleaveEncoding = "json",
    question_prompt: str = "builtin",
    split: str | None = None,
    seed: int = 42,
    part: str | None = None,
    ray: str | None = None,
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

    Args:
        input: JSON, JSON lines, CSV, Parquet or tar: a file, folder or pattern; a path or a URL.
        output: Folder for the shards: a path or an fsspec URL.
        image_dir: Folder that image paths are relative to; by default the input's folder.
        link_root: Folder that links in image_dir may lead into; by default image_dir itself.
        source: auto, blockmoving, mathcanvas, mathvision, columns, or a SourceFormat's import path.
        preset: Public data set whose columns are known, such as zebra_cot, or a YAML file.
        columns: Keys of ColumnsConfig, such as question and answer; they replace those of preset.
        name: Prefix of the shards' file names; by default the source's name.
        samples_per_file: Rows per shard.
        row_group_rows: Rows per row group; a group of large images ends earlier, at 8 MiB.
        interleave_encoding: "json" (strings) or "struct" (as the public MathCanvas trainer reads).
        question_prompt: Text or text file before a BlockMoving task's options; "builtin" or "none".
        split: Split names and fractions, such as train=0.9,test=0.1; one folder per split.
        seed: Seed of the assignment of rows to splits.
        part: Convert only part i/n, such as 3/8; at the end, convert --merge OUTPUT joins them.
        ray: Convert as a Ray Data job on this cluster: its address, or local; needs the extra ray.
        num_workers: Worker processes; 0 uses the main process; by default one per usable core.
        max_reject_fraction: The conversion fails if a larger fraction of records is rejected.
        max_image_reject_fraction: The same for records that are rejected for their images.
        allow_no_solution: Keep samples without a solution: for prediction, not for training.
        max_image_pixels: An image with more pixels is rejected without being decoded.
        apply_exif_orientation: Turn images by EXIF, stored as PNG; the reference ignores EXIF.
        overwrite: Replace the files of an earlier conversion in this folder, and no others.
        progress: Show progress bars on a terminal.

    Raises:
        MathCanvasError: If options, input or output can't be used; finished shards stay.
    """
    groups = select_options(locals())
    return run_conversion(*groups) if ray is None else run_on_ray(groups, ray)


def run_conversion(
    source: InputConfig,
    output: OutputConfig,
    size: ShardSize,
    split: SplitConfig,
    samples: SampleConfig,
    run: RunConfig,
) -> ConversionReport:
    """Runs a conversion, or a part of it; see `convert_cot`."""
    started = time.monotonic()
    fractions = parse_split(split.split)
    part = None if run.part is None else parse_part(run.part)
    count_workers(run.num_workers, 0, 1)  # raises for a bad option, before anything is deleted
    folder = OutputFolder(output.output)
    lock = LOCK_FILE if part is None else part.lock
    with opened_input(source.input, output=folder.root) as files, folder.locked(lock):
        converter = _converter(source, samples, files)
        job = ConversionJob(
            converter=converter,
            layout=ShardLayout(
                name=output.name or source.shard_name or converter.source.name,
                encoding=output.interleave_encoding,
                samples_per_file=size.samples_per_file,
                row_group_rows=size.row_group_rows,
            ),
            scan=NO_SCAN,
            fractions=fractions,
            seed=split.seed,
            image_dir=relative_folder(source.image_dir, source.input),
            link_root=source.link_root and relative_folder(source.link_root, source.input),
        )
        if part is not None:
            return run_part(job, files, folder, part, run, overwrite=output.overwrite)
        versions = files.versions()
        scan = scan_input(files.read(), files.place, converter.source, progress=run.progress)
        job = with_scan(job, scan)
        existing = prepare_folder(job, folder, overwrite=output.overwrite)
        records = _read_again(files, scan, versions, converter.source)
        result = run_job(job, records, folder, existing, run)
    return make_report(job, result, folder, run, started)


def run_on_ray(groups: tuple[Any, ...], cluster: str) -> ConversionReport:
    """Runs a conversion as a Ray Data job, a part per task; see `convert_cot`.

    Args:
        groups: Arguments of `run_conversion`.
        cluster: Address of the cluster, or local.
    """
    output, run = groups[1], groups[-1]
    work = partial(_run_part, groups)
    ray_parts(work, OutputFolder(output.output), cluster)
    return merge_conversion(
        output.output,
        max_reject_fraction=run.max_reject_fraction,
        max_image_reject_fraction=run.max_image_reject_fraction,
        overwrite=output.overwrite,
        progress=run.progress,
    )


def _run_part(groups: tuple[Any, ...], part: str) -> None:
    """Runs one part in the process of a task."""
    run = replace(groups[-1], part=part, num_workers=0, progress=False)
    arguments = [*groups[:-1], run]
    run_conversion(*arguments)


def _read_again(
    files: InputFiles, scan: Scan, versions: Sequence[FileStatus], source: SourceFormat
) -> Iterator[Any]:
    """Yields the records of a scan.

    Args:
        files: The input.
        scan: The scan.
        versions: The files' versions before the scan.
        source: The source format.

    Raises:
        InputError: At the end, if these records have changed since the scan. Others may follow.
    """
    stop = scan.num_records
    yield from files.read(0, stop)
    if files.versions() == versions:
        return
    again = scan_input(files.read(0, stop), files.place, source, progress=False)
    if again.chains != scan.chains:
        raise InputError(
            files.place,
            found="records that were changed while they were read",
            wanted="the same records as at the start of the conversion",
            remedy="Wait until the file is complete, then run again; finished shards stay.",
        )


def _converter(source: InputConfig, samples: SampleConfig, files: InputFiles) -> RecordConverter:
    kind: type[SourceFormat]
    if source.source == "auto" and source.has_columns:
        kind = Columns
    elif source.source == "auto":
        kind = recognise_source(files.read(), files.place)
    else:
        kind = find_source(source.source)
    return RecordConverter(
        source=make_source(kind, source),
        files=make_files(source),
        limits=ImageLimits(max_pixels=samples.max_image_pixels),
        allow_no_solution=samples.allow_no_solution,
        apply_orientation=samples.apply_exif_orientation,
    )
