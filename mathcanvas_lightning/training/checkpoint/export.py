"""Exports a run's checkpoint as a directory for this library, the reference and vLLM."""

import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError, DataError, InputError, OutputError
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.checkpoint import (
    WeightFiles,
    audit_weights,
    find_weights,
    write_checkpoint,
)
from mathcanvas_lightning.model.config import LLM_FILE, BagelConfig
from mathcanvas_lightning.training.callbacks.ema import stored_name
from mathcanvas_lightning.training.checkpoint.record import RunRecord
from mathcanvas_lightning.training.checkpoint.resume import METADATA_FILE
from mathcanvas_lightning.training.strategy import move_over

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
STATE = "state_dict"
NETWORK, AVERAGE = "model.", "ema_weights."
"""Prefixes of names in a checkpoint: BagelModule's names of its parts."""
BASE, LORA_A, LORA_B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
READ_ERRORS = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    EOFError,
    pickle.UnpicklingError,
    CheckpointException,
)
"""Errors that reading a damaged checkpoint raises."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """An open checkpoint whose tensors are read one at a time."""

    about: Mapping[str, Any]
    """Everything but the tensors."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the tensors, by name."""
    read: Callable[[str], Tensor]
    """Reads a tensor by name."""


def export_checkpoint(
    checkpoint: str,
    *,
    output: str,
    ema: bool = False,
    merge_lora: bool = False,
    dtype: Literal["bf16", "fp32"] = "bf16",
    source: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Exports a run's checkpoint as a directory for this library, the reference and vLLM.

    Args:
        checkpoint: A .ckpt of mathcanvas fit: a file, or the folder that a sharded run writes.
        output: Directory to write; it appears only when it is complete.
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
    saved = open_checkpoint(local_path(checkpoint))
    record = RunRecord.from_checkpoint(saved.about, checkpoint)
    weights = NetworkWeights(saved, record, average=ema, place=checkpoint)
    _check_adapters(weights, merge_lora, checkpoint)
    folder = _source_folder(source or record.checkpoint, is_option=source is not None)
    target = local_path(output).resolve()
    _check_output(target, overwrite, [local_path(checkpoint), *([folder] if folder else [])])
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


class NetworkWeights(Mapping[str, Tensor]):
    """Lazy mapping from published names to the weights of the network.

    Args:
        saved: The checkpoint.
        record: Record of its run.
        average: Use the moving averages, for the weights that have one.
        place: The checkpoint, for errors.

    Raises:
        ConfigError: If `average` is set and the checkpoint has no average.
    """

    def __init__(self, saved: SavedState, record: RunRecord, *, average: bool, place: str) -> None:
        if average and not any(name.startswith(AVERAGE) for name in saved.shapes):
            raise ConfigError(
                "--ema",
                found=f"no moving average in {place}",
                wanted="a checkpoint of a run with model.ema",
                remedy="Leave --ema out; set model.ema.decay in the next run.",
            )
        self._saved, self._average = saved, average
        self._stored = {  # published name -> name in the checkpoint
            name.replace(BASE, "."): name
            for name in (n.removeprefix(NETWORK) for n in saved.shapes if n.startswith(NETWORK))
            if LORA_A not in name and LORA_B not in name
        }
        self._scale = record.lora.alpha / record.lora.rank if record.lora is not None else 0.0
        self.adapters = {  # published name of an adapted weight -> prefix of its adapter
            name.removesuffix(LORA_A) + ".weight": name.removesuffix(LORA_A)
            for name in (n.removeprefix(NETWORK) for n in saved.shapes)
            if name.endswith(LORA_A)
        }
        self.shapes = {new: saved.shapes[NETWORK + old] for new, old in self._stored.items()}
        self.averaged = [n for n in saved.shapes if average and n.startswith(AVERAGE)]

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._read(self._stored[name])
        if name in self.adapters:
            start = self.adapters[name]
            lower, upper = self._read(start + LORA_A).float(), self._read(start + LORA_B).float()
            tensor = tensor.float() + (upper @ lower) * self._scale
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def _read(self, name: str) -> Tensor:
        averaged = AVERAGE + stored_name(name)
        use = self._average and averaged in self._saved.shapes
        return self._saved.read(averaged if use else NETWORK + name)


def open_checkpoint(path: Path) -> SavedState:
    """Opens a checkpoint without reading its tensors.

    Args:
        path: Path of a file, or of the folder of a sharded checkpoint.

    Returns:
        The checkpoint.

    Raises:
        DataError: If it can't be read.
        InputError: If it doesn't exist.
    """
    if not path.exists():
        raise InputError(
            str(path),
            found="nothing",
            wanted="a checkpoint of a run",
            remedy="Checkpoints are below the run's trainer.default_root_dir, named *.ckpt.",
        )
    try:
        return _open_folder(path) if path.is_dir() else _open_file(path)
    except READ_ERRORS as error:
        reason = str(error).strip().partition("\n")[0]
        raise _damaged(path, f"{type(error).__name__}: {reason}") from error


def _open_file(path: Path) -> SavedState:
    # weights_only: a checkpoint from elsewhere must not execute code.
    content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    state = content.pop(STATE) if isinstance(content, dict) and STATE in content else {}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return SavedState(
        about=content if isinstance(content, dict) else {}, shapes=shapes, read=state.__getitem__
    )


class _Reader(FileSystemReader):
    """Reads the metadata once, instead of once per tensor."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._metadata: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._metadata is None:
            self._metadata = super().read_metadata(*args, **kwargs)
        return self._metadata


def _open_folder(path: Path) -> SavedState:
    reader = _Reader(path)
    tensors = {
        name.removeprefix(f"{STATE}."): entry
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(f"{STATE}.") and isinstance(entry, TensorStorageMetadata)
    }

    def read(name: str) -> Tensor:
        entry = tensors[name]
        tensor = torch.empty(entry.size, dtype=entry.properties.dtype)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about reading in a single process
                load({f"{STATE}.{name}": tensor}, storage_reader=reader, no_dist=True)
        except READ_ERRORS as error:
            raise _damaged(path, f"{name}: {type(error).__name__}") from error
        return tensor

    return SavedState(
        about=torch.load(path / METADATA_FILE, map_location="cpu", weights_only=True),
        shapes={name: tuple(entry.size) for name, entry in tensors.items()},
        read=read,
    )


def _damaged(path: Path, found: str) -> DataError:
    return DataError(
        str(path),
        found=f"an unreadable checkpoint ({found})",
        wanted="a complete checkpoint of mathcanvas fit",
        remedy="Give another checkpoint of the run; a truncated one can't be used.",
    )


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


def _check_output(target: Path, overwrite: bool, inputs: list[Path]) -> None:
    if any(target in (path, *path.parents) for path in (given.resolve() for given in inputs)):
        raise OutputError(
            str(target),
            found="the input of the export in it",
            wanted="another directory",
            remedy="Choose another --output.",
        )
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite or not (target / LLM_FILE).is_file():
        raise OutputError(
            str(target),
            found="other files" if overwrite else "existing files",
            wanted="an earlier export" if overwrite else "an empty or absent directory",
            remedy="Choose another --output."
            if overwrite
            else "Choose another --output, or give --overwrite to replace an earlier export.",
        )


def _audit(weights: NetworkWeights, record: RunRecord, place: str, folder: Path | None) -> None:
    """Compares names and shapes with those of the network and of the source directory."""
    with torch.device("meta"):
        model = Bagel(record.config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    audit_weights(wanted, WeightFiles({}, weights.shapes), place, model)
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
