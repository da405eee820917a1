"""Exports a run's checkpoint as a directory for this library, the reference and vLLM."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX
from mathcanvas_lightning.common.paths import is_vacant, local_path
from mathcanvas_lightning.errors import ConfigError, InputError, OutputError
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.checkpoint import (
    WeightFiles,
    audit_weights,
    find_weights,
)
from mathcanvas_lightning.model.config import LLM_FILE, BagelConfig
from mathcanvas_lightning.model.layers.basic import without_memory
from mathcanvas_lightning.model.saving import other_files, write_checkpoint
from mathcanvas_lightning.training.checkpoint.record import RunRecord
from mathcanvas_lightning.training.checkpoint.weights import (
    NetworkWeights,
    initial_weights,
    open_checkpoint,
    published_shapes,
)
from mathcanvas_lightning.training.checkpoint.writing import move_over
from mathcanvas_lightning.training.run.folder import RunFolder
from mathcanvas_lightning.training.run.newest import find_checkpoint_file

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """Summary of an export."""

    path: str
    """The directory that was written."""
    step: int
    """Optimizer step of the checkpoint."""
    num_parameters: int
    """Number of parameters."""
    num_averaged: int
    """Number of tensors taken from the moving average."""
    num_merged: int
    """Number of projections with merged adapters."""
    source: str | None
    """Directory with tokenizer and autoencoder; None if the run started from a preset."""


def export_checkpoint(
    checkpoint: str,
    *,
    output: str | None = None,
    ema: bool = False,
    merge_lora: bool = False,
    dtype: Literal["bf16", "fp32"] = "bf16",
    source: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Exports a run's checkpoint as a directory for this library, the reference and vLLM.

    Args:
        checkpoint: A .ckpt of mathcanvas fit, or the folder of a run for its newest checkpoint.
        output: Directory to write; it appears only when it is complete. By default
            <run>/exports/step<N> below the folder of a run.
        ema: Export the moving average instead of the weights of the last step.
        merge_lora: Add the adapters to the weights they adapt.
        dtype: Type of the weights, bf16 or fp32.
        source: Directory from which tokenizer and autoencoder are taken; by default the one with
            the initial weights of the run.
        overwrite: Replace an earlier export.

    Returns:
        A summary.

    Raises:
        ConfigError: If there is no average, or there are adapters and `merge_lora` is not set.
        DataError: If the checkpoint is damaged, was not written by a run, or lacks weights.
        InputError: If the checkpoint or the source directory doesn't exist.
        OutputError: If the output directory is not empty.
    """
    given, checkpoint = checkpoint, str(find_checkpoint_file(checkpoint))
    saved = open_checkpoint(local_path(checkpoint))
    if output is None:
        output = _default_output(given, int(saved.about["global_step"]), ema)
    record = RunRecord.from_checkpoint(saved.about, checkpoint)
    folder = _source_folder(source or record.checkpoint, is_option=source is not None)
    initial = initial_weights(record, folder, checkpoint)
    weights = NetworkWeights(saved, record, initial, average=ema, place=checkpoint)
    _check_adapters(weights, merge_lora, checkpoint)
    target = local_path(output).resolve()
    _check_output(target, [local_path(checkpoint), *([folder] if folder else [])])
    if not is_vacant(target):
        _check_replaced(target, record.config, overwrite)
    _audit(weights, record, checkpoint, folder)
    _write(weights, record.config, target, DTYPES[dtype], folder)
    return ExportReport(
        path=output,
        step=int(saved.about["global_step"]),
        num_parameters=sum(torch.Size(shape).numel() for shape in weights.shapes.values()),
        num_averaged=len(weights.averaged),
        num_merged=len(weights.adapters),
        source=None if folder is None else str(folder),
    )


def export_name(step: int, *, ema: bool) -> str:
    """Name of the folder of an export, below a run's `exports`."""
    return f"step{step}-ema" if ema else f"step{step}"


def _default_output(given: str, step: int, ema: bool) -> str:
    run = RunFolder(local_path(given))
    if not run.config.is_file():
        raise ConfigError(
            "--output",
            found="no directory",
            wanted="the directory to write",
            remedy="Set it; only the folder of a run has a default.",
        )
    return str(run.exports / export_name(step, ema=ema))


def _check_adapters(weights: NetworkWeights, merge: bool, place: str) -> None:
    if weights.adapters and not merge:
        raise ConfigError(
            place,
            found=f"LoRA adapters on {len(weights.adapters)} projections",
            wanted="weights without adapters",
            remedy="Give --merge_lora to add the adapters to the exported weights.",
        )


def _source_folder(path: str | None, *, is_option: bool) -> Path | None:
    if path is None:
        return None
    if not local_path(path).is_dir():
        raise InputError(
            "--source" if is_option else "the checkpoint's source directory",
            found=f"no directory {path}",
            wanted="the directory with the initial weights of the run",
            remedy="Give its path with --source; tokenizer and autoencoder are taken from it.",
        )
    return local_path(path).resolve()


def _check_output(target: Path, inputs: list[Path]) -> None:
    if any(target in (path, *path.parents) for path in (given.resolve() for given in inputs)):
        raise _occupied(target, "the input of the export in it")


def _check_replaced(target: Path, config: BagelConfig, overwrite: bool) -> None:
    """Accepts only a folder that has nothing but an earlier export."""
    if not overwrite:
        raise _occupied(target, "existing files", "or give --overwrite to replace an export")
    if not (target / LLM_FILE).is_file():
        raise _occupied(target, "no export in it, but other files")
    if others := other_files(target, config):
        raise _occupied(target, f"an export, and other files: {', '.join(others[:5])}")


def _occupied(target: Path, found: str, remedy: str = "") -> OutputError:
    return OutputError(
        str(target),
        found=found,
        wanted="an empty or absent directory" if remedy else "another directory, or only an export",
        remedy=" ".join(("Choose another --output,", remedy)).strip(" ,") + ".",
    )


def _audit(weights: NetworkWeights, record: RunRecord, place: str, folder: Path | None) -> None:
    """Compares names and shapes with those of the network and of the source directory."""
    with without_memory():
        model = Bagel(record.config)
    audit_weights(published_shapes(record), WeightFiles({}, weights.shapes), place, model)
    if folder is not None:
        audit_weights(weights.shapes, find_weights(folder), str(folder), model)


def _write(
    weights: NetworkWeights,
    config: BagelConfig,
    target: Path,
    dtype: torch.dtype,
    source: Path | None,
) -> None:
    """Writes to a temporary folder, then replaces the target."""
    temporary = target.with_name(TEMPORARY_PREFIX + target.name)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write_checkpoint(
            weights, config, temporary, dtype=dtype, source=source, shapes=weights.shapes
        )
        move_over(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
