"""The settings of a conversion as JSON, so that a merge needs neither input nor options."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mathcanvas_lightning.conversion.columns import Columns
from mathcanvas_lightning.conversion.columns.config import columns_from
from mathcanvas_lightning.conversion.files import SourceFiles
from mathcanvas_lightning.conversion.input.scan import KNOWN, NO_SCAN, find_source
from mathcanvas_lightning.conversion.job import ConversionJob, import_path
from mathcanvas_lightning.conversion.output.writer import ShardLayout
from mathcanvas_lightning.conversion.parts import blocks
from mathcanvas_lightning.conversion.samples import RecordConverter
from mathcanvas_lightning.conversion.sources import BlockMoving, SourceFormat
from mathcanvas_lightning.data.images.decode import ImageLimits


def settings_of(job: ConversionJob) -> str:
    """All settings that determine the output of a job, as JSON; the same text for equal jobs."""
    converter = job.converter
    source = converter.source
    settings = {
        "block_records": blocks.BLOCK_RECORDS,
        "source": source.name if type(source) in KNOWN else import_path(type(source)),
        "prompt": source.prompt if isinstance(source, BlockMoving) else None,
        "columns": asdict(source.config) if isinstance(source, Columns) else None,
        "image_dir": job.image_dir,
        "link_root": job.link_root,
        "layout": asdict(job.layout),
        "split": dict(job.fractions),
        "seed": job.seed,
        "allow_no_solution": converter.allow_no_solution,
        "image_limits": asdict(converter.limits),
        "apply_orientation": converter.apply_orientation,
    }
    return json.dumps(settings)


def job_from(text: str) -> ConversionJob:
    """The job with these settings, which has not scanned its input.

    Raises:
        ConfigError: If its source format can't be imported here.
    """
    settings = json.loads(text)
    converter = RecordConverter(
        source=_source(settings),
        files=SourceFiles("."),  # a merge reads no image
        limits=ImageLimits(**settings["image_limits"]),
        allow_no_solution=settings["allow_no_solution"],
        apply_orientation=settings["apply_orientation"],
    )
    return ConversionJob(
        converter=converter,
        layout=ShardLayout(**settings["layout"]),
        scan=NO_SCAN,
        fractions=settings["split"],
        seed=settings["seed"],
        image_dir=settings["image_dir"],
        link_root=settings["link_root"],
    )


def _source(settings: Mapping[str, Any]) -> SourceFormat:
    kind = find_source(settings["source"])
    if issubclass(kind, BlockMoving):
        return kind(prompt=settings["prompt"])
    if issubclass(kind, Columns):
        return Columns(columns_from(settings["columns"], "columns"))
    return kind()
