"""Exporting a run's checkpoint as a directory that this library, the reference and vLLM load."""

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
from mathcanvas_lightning.training.strategy import replace_whole

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
STATE = "state_dict"
NETWORK, AVERAGE = "model.", "ema_weights."
"""Beginnings of names in a checkpoint: BagelModule's own names for its parts."""
BASE, LORA_A, LORA_B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
DAMAGE = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    EOFError,
    pickle.UnpicklingError,
    CheckpointException,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was written."""

    path: str
    step: int
    """Optimizer steps of the checkpoint."""
    num_parameters: int
    num_averaged: int
    """Tensors that are the moving average's."""
    num_merged: int
    """Projections with adapters merged into them."""
    source: str | None
    """Where tokenizer and autoencoder are from; None if there was nowhere to take them from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """A checkpoint whose tensors are read one at a time."""

    about: Mapping[str, Any]
    """All but the tensors."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the tensors, by name."""
    read: Callable[[str], Tensor]


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
    """Exports a run's checkpoint as a directory that this library, the reference and vLLM load.

    Args:
        checkpoint: A .ckpt of mathcanvas fit: a file, or the folder that a sharded run writes.
        output: Directory to write; it appears whole or not at all.
        ema: Take the moving average instead of the weights of the last step.
        merge_lora: Add the adapters to the weights they adapt.
        dtype: Of the weights: bf16, or fp32.
        source: Directory to take tokenizer and autoencoder from; by default the one that the run
            started from.
        overwrite: Replace an earlier export.

    Returns:
        What was written.

    Raises:
        ConfigError: If there is no average, or there are adapters that aren't to be merged.
        DataError: If the checkpoint is damaged, of something else, or lacks weights.
        InputError: If there is no checkpoint, or no source directory.
        OutputError: If the output directory has something in it.
    """
    saved = open_checkpoint(Path(checkpoint))
    record = RunRecord.from_checkpoint(saved.about, checkpoint)
    weights = NetworkWeights(saved, record, average=ema, place=checkpoint)
    _check_adapters(weights, merge_lora, checkpoint)
    folder = _source_folder(source or record.checkpoint, asked=source is not None)
    target = Path(output).resolve()
    _check_output(target, overwrite, [Path(checkpoint), *([folder] if folder else [])])
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
    """The network's weights by their published names, each made when it is asked for.

    Args:
        saved: The checkpoint.
        record: Of its run.
        average: Whether to take the moving average where there is one.
        place: The checkpoint, for errors.

    Raises:
        ConfigError: If an average is wanted and there is none.
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
        self._stored = {  # published name -> the network's
            name.replace(BASE, "."): name
            for name in (n.removeprefix(NETWORK) for n in saved.shapes if n.startswith(NETWORK))
            if LORA_A not in name and LORA_B not in name
        }
        self._scale = record.lora.alpha / record.lora.rank if record.lora is not None else 0.0
        self.adapters = {  # published name of what is adapted -> beginning of its adapter's names
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
        path: A file, or the folder of a sharded checkpoint.

    Returns:
        The checkpoint.

    Raises:
        DataError: If it can't be read.
        InputError: If it isn't there.
    """
    if not path.exists():
        raise InputError(
            str(path),
            found="nothing",
            wanted="a checkpoint of a run",
            remedy="They are below the run's trainer.default_root_dir, named *.ckpt.",
        )
    try:
        return _open_folder(path) if path.is_dir() else _open_file(path)
    except DAMAGE as error:
        reason = str(error).strip().partition("\n")[0]
        raise _damaged(path, f"{type(error).__name__}: {reason}") from error


def _open_file(path: Path) -> SavedState:
    # weights_only: what comes from elsewhere must not run code here.
    content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    state = content.pop(STATE) if isinstance(content, dict) and STATE in content else {}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return SavedState(
        about=content if isinstance(content, dict) else {}, shapes=shapes, read=state.__getitem__
    )


class _Reader(FileSystemReader):
    """Reads the list of tensors once, not with each tensor."""

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
                warnings.simplefilter("ignore")  # that a single process reads is meant
                load({f"{STATE}.{name}": tensor}, storage_reader=reader, no_dist=True)
        except DAMAGE as error:
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
        found=f"something unreadable ({found})",
        wanted="a whole checkpoint of mathcanvas fit",
        remedy="Name another checkpoint of the run; one that was cut off can't be used.",
    )


def _check_adapters(weights: NetworkWeights, merge: bool, place: str) -> None:
    if weights.adapters and not merge:
        raise ConfigError(
            place,
            found=f"LoRA adapters on {len(weights.adapters)} projections",
            wanted="plain weights",
            remedy="Give --merge_lora: the exported weights then have the adapters in them.",
        )


def _source_folder(path: str | None, *, asked: bool) -> Path | None:
    if path is None:
        return None
    if not Path(path).is_dir():
        raise InputError(
            "--source" if asked else "the checkpoint's source directory",
            found=f"no directory {path}",
            wanted="the checkpoint directory that the run started from",
            remedy="Give its place with --source; tokenizer and autoencoder are taken from it.",
        )
    return Path(path).resolve()


def _check_output(target: Path, overwrite: bool, inputs: list[Path]) -> None:
    if any(target in (path, *path.parents) for path in (given.resolve() for given in inputs)):
        raise OutputError(
            str(target),
            found="what is to be exported in it",
            wanted="a directory of its own",
            remedy="Choose another --output.",
        )
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite or not (target / LLM_FILE).is_file():
        raise OutputError(
            str(target),
            found="something there" if overwrite else "something there already",
            wanted="an earlier export" if overwrite else "an empty or absent directory",
            remedy="Choose another --output."
            if overwrite
            else "Choose another --output, or give --overwrite to replace an earlier export.",
        )


def _audit(weights: NetworkWeights, record: RunRecord, place: str, folder: Path | None) -> None:
    """Compares the names and shapes with those of the network, and of the source's files."""
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
    """Writes beside the target, and takes its place when all is there."""
    temporary = target.with_name(TEMPORARY_PREFIX + target.name)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write_checkpoint(
            weights, config, temporary, dtype=dtype, source=source, shapes=weights.shapes
        )
        replace_whole(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
