"""Prints the results of commands as tables and lines on the terminal."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mathcanvas_lightning.common.display.short import counted
from mathcanvas_lightning.data.rows.schema import SECTIONS, ImageSegment

if TYPE_CHECKING:
    from mathcanvas_lightning.blockmoving.generate import BlockMovingReport
    from mathcanvas_lightning.conversion.handler import ColumnsFile, Handler
    from mathcanvas_lightning.conversion.report import ConversionReport
    from mathcanvas_lightning.data.index.build import IndexReport
    from mathcanvas_lightning.demo.language_model import DemoModel
    from mathcanvas_lightning.demo.new_bagel import NewBagel
    from mathcanvas_lightning.evaluation.report.page import ReportPage
    from mathcanvas_lightning.evaluation.scoring import ScoreReport
    from mathcanvas_lightning.generation.run.summary import PredictionReport
    from mathcanvas_lightning.inspection.batch import BatchReport
    from mathcanvas_lightning.inspection.shards import ShardsReport
    from mathcanvas_lightning.training.autoencoder import AutoencoderReport
    from mathcanvas_lightning.training.checkpoint.export import ExportReport
    from mathcanvas_lightning.training.memory.plan import MemoryPlan
    from mathcanvas_lightning.training.run.curves import CurvesReport
    from mathcanvas_lightning.training.run.page import RunPage

MAX_LISTED = 20
MAX_TEXT = 300
MIN_SCORES_WIDTH = 140
MAX_INPUT_WIDTH = 24
"""Longer paths of inputs take several lines; so the table fits into 80 columns."""
INCOMPLETE = 3
"""Exit status of a finished run with failed requests."""


def conversion(report: "ConversionReport", console: Console) -> int:
    """Prints the outcomes of the records; returns 1 if the conversion counts as failed."""
    part = "" if report.part is None else f", part {report.part}"
    table = Table("outcome", "records")
    table.columns[1].justify = "right"
    for split, rows in report.rows.items():
        table.add_row(f"rows in {split}" if split else "rows", f"{rows:,}")
    for reason, count in sorted(report.rejects.items(), key=lambda item: -item[1]):
        table.add_row(f"rejected: {reason}", f"{count:,}")
    table.add_section()
    table.add_row("all", f"{report.num_records:,}")
    _titled(f"Conversion to {report.output}{part}", table, console)
    resumed = f", {report.num_resumed:,} rows were there already" if report.num_resumed else ""
    console.print(f"{report.seconds:.1f} s{resumed}")
    for name, column in report.renamed_fields.items():
        console.print(f"field {name!r} is the column {column!r}: its name is taken", markup=False)
    if report.num_oriented:
        outcome = (
            "turned"
            if report.orientation_applied
            else "not turned, as in the reference (--apply_exif_orientation turns them)"
        )
        console.print(f"{report.num_oriented:,} images with an EXIF orientation: {outcome}")
    if report.problem is not None:
        console.print(f"failed: {report.problem}", markup=False, soft_wrap=True)
        return 1
    if report.part is not None:
        command = f"mathcanvas convert --merge {report.output}"
        console.print(f"after all parts: {command}", markup=False, soft_wrap=True)
    return 0


def shards(report: "ShardsReport", console: Console) -> int:
    """Prints the contents of shards; returns 1 if they have problems."""
    table = Table("what", "found", show_lines=False)
    table.add_row("files", f"{report.num_files:,}, {report.size_bytes / 2**20:,.1f} MiB")
    table.add_row("rows", f"{report.num_rows:,}")
    table.add_row(
        "row groups",
        f"{len(report.row_group_rows):,} of {_spread(report.row_group_rows)} rows",
    )
    for name, kind in report.columns.items():
        table.add_row(f"column {escape(name)}", escape(kind))
    for section in SECTIONS:
        table.add_row(f"{section}: images per row", _spread(report.images_per_row[section]))
        table.add_row(f"{section}: characters per row", _spread(report.text_lengths[section]))
    table.add_row("image formats", _counts(report.image_formats))
    sizes = {f"{width}x{height}": n for (width, height), n in report.image_sizes_px.items()}
    table.add_row("image sizes", _counts(sizes))
    if report.num_oriented:
        note = "convert with --apply_exif_orientation to turn them"
        table.add_row("images to turn (EXIF)", f"{report.num_oriented:,}, not turned; {note}")
    table.add_row("answers", escape(_counts(report.answers)))
    _titled(f"Shards in {report.path}", table, console)
    for example in report.examples:
        console.rule(escape(f"{example.uid} (answer {example.answer})"))
        for section in SECTIONS:
            for segment in getattr(example, section):
                text = (
                    f"[image {segment.path}, {len(segment.data):,} bytes]"
                    if isinstance(segment, ImageSegment)
                    else _shortened(segment.text)
                )
                console.print(f"{section}: {text}", markup=False, highlight=False)
    return _problems(report, console)


def indexes(reports: Sequence["IndexReport"], console: Console) -> int:
    """Prints the contents of indexes; returns 1 if rows are damaged."""
    damaged = 0
    for report in reports:
        table = Table("what", "found")
        table.add_row("files", f"{report.num_files:,}")
        table.add_row("samples", f"{report.num_samples:,}")
        table.add_row("text tokens", f"{report.text_tokens:,}")
        table.add_row("images", f"{report.num_images:,}")
        sizes = {f"{width}x{height}": n for (width, height), n in report.sizes_px.items()}
        table.add_row("image sizes", _counts(sizes))
        if report.num_oriented:
            table.add_row("images to turn (EXIF)", f"{report.num_oriented:,}, not turned")
        stages = Counter(row.stage for row in report.left_out)
        table.add_row("rows left out", _counts(stages))
        _titled(f"Index of {report.path}", table, console)
        for row in report.left_out[:MAX_LISTED]:
            console.print(f"left out: {row.place}: {row.stage}: {row.error}", markup=False)
        if len(report.left_out) > MAX_LISTED:
            console.print(f"... and {len(report.left_out) - MAX_LISTED} more")
        damaged += sum(row.stage != "no_sample" for row in report.left_out)
    return 1 if damaged else 0


def batch(report: "BatchReport", console: Console) -> int:
    """Prints the blocks of a pack and a summary of its epoch."""
    from mathcanvas_lightning.inspection.pack_table import print_blocks  # needs torch

    batch, pack = report.batch, report.batch.pack
    print_blocks(console, report.blocks, [sample.uid for sample in batch.samples])
    console.print(
        f"Epoch {batch.epoch}, step {batch.step} of {report.num_steps:,}: "
        f"{pack.sequence_length:,} of {report.capacity:,} tokens, {len(batch.samples)} samples; "
        f"{len(pack.ce_indexes):,} tokens with text loss, {len(pack.mse_indexes):,} with drawing "
        f"loss.\nThe epoch: {report.num_samples:,} samples in {report.num_packs:,} packs, "
        f"{report.fill:.1%} full, and {counted(report.num_fillers, 'filler')}.",
        markup=False,
        highlight=False,
    )
    if report.png:
        console.out(f"Picture: {report.png}", highlight=False)
    return 0


def memory_plan(plan: "MemoryPlan", console: Console) -> int:
    """Prints a table of the memory, a verdict and advice; returns 1 if it doesn't fit."""
    shared = f", {plan.shards} of which share a network" if plan.shards > 1 else ""
    table = Table("computed, not measured", "each GPU", "host, for each GPU", title_justify="left")
    of_each = f"each of {plan.gpus} GPUs{shared}" if plan.gpus > 1 else "the GPU"
    table.title = f"Memory of {of_each}, in GB"
    for column in table.columns[1:]:
        column.justify = "right"
    for item in plan.items:
        table.add_row(item.name, *(_gb(size) for size in (item.gpu, item.host)))
    table.add_section()
    ranks = plan.ranks_per_host
    of_host = f"; host with {ranks} GPUs" if ranks > 1 else ""
    table.add_row(f"together{of_host}", _gb(plan.gpu), _gb(plan.host))
    console.print(table)
    verdict = "It fits" if plan.fits else "It does not fit"
    lines = [plan.note] if plan.note else []
    lines.append(f"{verdict}: {plan.gpu / 1e9:.1f} of {plan.gpu_memory / 1e9:g} GB.")
    if plan.advice:
        lines.append("Changes that save memory, one after the other:")
    lines += [f"  {advice.change}  -> {advice.gpu / 1e9:.1f} GB" for advice in plan.advice]
    for line in lines:
        console.out(line, highlight=False)
    return 0 if plan.fits else 1


def _titled(title: str, table: Table, console: Console) -> None:
    """Prints a table below its title; rich would break a title at the width of the table."""
    console.print(title, style="italic", markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}" if size else ""


def blockmoving(report: "BlockMovingReport", console: Console) -> int:
    """Prints the numbers of tasks and pictures."""
    wrong, missing = f"{report.num_wrong:,}", f"{report.num_unrendered:,}"
    faults = f" (on purpose, {wrong} end with a wrong answer and {missing} lack a picture)"
    faults = faults if report.num_wrong or report.num_unrendered else ""
    console.out(
        f"{report.num_tasks:,} tasks with {report.num_images:,} pictures in "
        f"{report.seconds:.1f} s: {report.source_file}{faults}",
        highlight=False,
    )
    return 0


def new_bagel(model: "NewBagel", console: Console) -> int:
    """Prints the size of a new model."""
    console.out(
        f"{model.path}: {model.num_parameters:,} parameters, {model.num_words:,} tokens, "
        f"{'pretrained' if model.is_pretrained else 'untrained'}",
        highlight=False,
    )
    return 0


def autoencoder(report: "AutoencoderReport", console: Console) -> int:
    """Prints how well an autoencoder reproduces pictures that were held out."""
    console.out(
        f"{report.path}: {report.num_parameters:,} parameters, {report.num_steps:,} steps in "
        f"{report.seconds:.0f} s; held-out pictures at {report.psnr_db:.1f} dB "
        f"(before: {report.first_psnr_db:.1f} dB)",
        highlight=False,
    )
    return 0


def demo_model(model: "DemoModel", console: Console) -> int:
    """Prints the folder of the demo model."""
    remark = "made" if model.is_new else "exists already"
    console.out(f"{model.path}: SmolLM2-135M-Instruct, {remark}", highlight=False)
    return 0


def export(report: "ExportReport", console: Console) -> int:
    """Prints the contents of an exported checkpoint."""
    parts = [f"{report.num_parameters:,} parameters as of step {report.step:,}"]
    if report.num_averaged:
        parts.append(f"moving average of {report.num_averaged:,} tensors")
    if report.num_merged:
        parts.append(f"adapters merged into {report.num_merged:,} projections")
    parts.append(
        "without tokenizer and autoencoder, since the run started from a preset: --source copies "
        "them from a directory"
        if report.source is None
        else f"tokenizer and autoencoder of {report.source}"
    )
    console.out(f"{report.path}: {'; '.join(parts)}", highlight=False)
    return 0


def curves(report: "CurvesReport", console: Console) -> int:
    """Prints the last values of each run, and the path of the picture."""
    table = Table("metric", title="Last values", title_justify="left")
    for run in report.last:
        table.add_column(escape(run), justify="right", overflow="fold")
    table.add_row("step", *(f"{report.steps[run]:,}" for run in report.last), end_section=True)
    names = dict.fromkeys(name for values in report.last.values() for name in values)
    for name in names:
        found = [values.get(name) for values in report.last.values()]
        table.add_row(escape(name), *("-" if one is None else f"{one:.4g}" for one in found))
    console.print(table)
    console.out(f"written: {report.path}", highlight=False)
    return 0


def predictions(report: "PredictionReport | None", console: Console) -> int:
    """Prints the outcomes of a predict run; returns 3 if requests failed, for use in scripts."""
    if report is None:
        return 0
    table = Table(
        "input", "records", "answered", "failed", "limit reached", "tokens in", "tokens out"
    )
    table.columns[0].overflow = "fold"
    table.columns[0].min_width = min(
        max((len(one.path) for one in report.inputs), default=0), MAX_INPUT_WIDTH
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for one in report.inputs:
        counts = (one.num_records, one.num_answered, one.failures.total(), one.num_cut)
        numbers = (*counts, one.prompt_tokens, one.completion_tokens)
        table.add_row(escape(one.path), *(f"{number:,}" for number in numbers))
    console.print(table)
    for one in report.inputs:
        for kind, count in one.failures.most_common():
            console.print(f"failed: {kind}, {count:,} of {one.path}", markup=False)
        console.print(f"written: {one.output}", markup=False, soft_wrap=True)
    console.print(f"{report.num_asked:,} asked in {report.seconds:,.1f} s")
    if report.num_failed:
        console.print("run the same command again to retry the failed requests")
        return INCOMPLETE
    return 0


def handler(handler: "Handler | ColumnsFile", console: Console) -> int:
    """Prints the files of a new source format and how to use them."""
    console.out(handler.summary, highlight=False)
    return 0


def scores(report: "ScoreReport", console: Console) -> int:
    """Prints accuracies and counts, overall and by group."""
    from mathcanvas_lightning.evaluation.score_table import (  # needs pyarrow
        ALL,
        chain_rows,
        check_rows,
        score_rows,
    )

    rows = score_rows(report.overall, report.groups)
    model = f" by {report.about.model}" if report.about.model else ""
    table = Table("")
    for name in rows[ALL]:
        table.add_column(name, justify="right", no_wrap=True)
    for label, row in rows.items():
        table.add_row(escape(_shortened(label, 40)), *row.values(), end_section=label == ALL)
    console.width = max(console.width, MIN_SCORES_WIDTH)  # a narrower table drops the names
    _titled(f"Scores of {report.path}{model}", table, console)
    if report.puzzles:
        checks = Table("", "right", "share", "95 %", "chance", title="Steps of the answers")
        for name, row in check_rows(report.puzzles).items():
            checks.add_row(name, *row.values())
        console.print(checks)
    if report.chain is not None:
        chain = Table("", "number", "share", "95 %", title="Drawings and errors, step by step")
        for name, row in chain_rows(report.chain).items():
            chain.add_row(name, *row.values())
        console.print(chain)
    if report.num_without_reference:
        console.print(f"{report.num_without_reference:,} records without a reference: not scored")
    for failure, count in Counter(report.failures).most_common(MAX_LISTED):
        console.print(f"undecided by the judge, {count:,}: {failure}", markup=False)
    console.out(f"written: {report.output}", highlight=False)
    return 0


def report(page: "ReportPage | RunPage", console: Console) -> int:
    """Prints the path of a page and what it shows."""
    from mathcanvas_lightning.training.run.page import RunPage  # needs Pillow

    if isinstance(page, RunPage):
        console.out(
            f"{page.path}: {page.num_curves:,} curves, {page.num_pictures:,} pictures",
            highlight=False,
        )
        return 0
    first = "the first " if page.has_more else ""
    faults = f"; {page.num_faults:,} items can't be shown" if page.num_faults else ""
    console.out(
        f"{page.path}: {first}{page.num_records:,} records, {page.num_pictures:,} pictures{faults}",
        highlight=False,
    )
    return 0


def nothing(result: None, console: Console) -> int:  # noqa: ARG001
    """Prints nothing: the command has shown its result."""
    return 0


def _problems(report: "ShardsReport", console: Console) -> int:
    for problem in report.problems[:MAX_LISTED]:
        uid = "" if problem.uid is None else f" (uid {problem.uid})"
        console.print(f"problem: {problem.place}{uid}: {problem.message}", markup=False)
    if len(report.problems) > MAX_LISTED:
        console.print(f"... and {len(report.problems) - MAX_LISTED} more")
    return 1 if report.problems else 0


def _spread(values: Sequence[int]) -> str:
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}, median {median(values):g}"


def _counts(counts: Mapping[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{_shortened(name, 20)}: {count:,}" for name, count in ranked[:8])
    return listed + (f" and {len(ranked) - 8} more" if len(ranked) > 8 else "") or "-"


def _shortened(text: str, limit: int = MAX_TEXT) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
