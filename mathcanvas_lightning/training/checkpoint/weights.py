"""The weights of a run's checkpoint by their published names, read one at a time."""

import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError, DataError, InputError
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.checkpoint import WeightFiles, check_finite, find_weights
from mathcanvas_lightning.model.layers.basic import without_memory
from mathcanvas_lightning.model.layers.quantized import through_nf4
from mathcanvas_lightning.model.parallelize import base_name, fill, is_adapter, is_in_layers
from mathcanvas_lightning.training.callbacks.ema import stored_name
from mathcanvas_lightning.training.checkpoint.record import RunRecord
from mathcanvas_lightning.training.checkpoint.verify import METADATA_FILE
from mathcanvas_lightning.training.numeric import DTYPES

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
class SavedState:
    """An open checkpoint whose tensors are read one at a time."""

    about: Mapping[str, Any]
    """Everything but the tensors."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the tensors, by name."""
    read: Callable[[str], Tensor]
    """Reads a tensor by name."""


class NetworkWeights(Mapping[str, Tensor]):
    """Lazy mapping from published names to the weights of the network.

    Args:
        saved: The checkpoint.
        record: Record of its run.
        initial: Initial weights of the run, for those that the checkpoint leaves out.
        average: Use the moving averages, for the weights that have one.
        place: The checkpoint, for errors.

    Raises:
        ConfigError: If `average` is set and the checkpoint has no average.
    """

    def __init__(
        self,
        saved: SavedState,
        record: RunRecord,
        initial: Mapping[str, Tensor],
        *,
        average: bool,
        place: str,
    ) -> None:
        if average and not any(name.startswith(AVERAGE) for name in saved.shapes):
            raise ConfigError(
                "--ema",
                found=f"no moving average in {place}",
                wanted="a checkpoint of a run with model.ema",
                remedy="Leave --ema out; set model.ema.decay in the next run.",
            )
        self._saved, self._average, self._place = saved, average, place
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
        left_out = {name.replace(BASE, ".") for name in record.left_out} - self._stored.keys()
        self._initial = initial
        types = record.settings
        is_nf4 = types.get("model.frozen_dtype") == "nf4"
        self._quantized = DTYPES[types["model.compute_dtype"]] if is_nf4 else None
        self.shapes = {new: saved.shapes[NETWORK + old] for new, old in self._stored.items()}
        if left_out:
            shapes = published_shapes(record)
            self.shapes |= {name: shapes[name] for name in sorted(left_out)}
        self.averaged = [n for n in saved.shapes if average and n.startswith(AVERAGE)]

    def __getitem__(self, name: str) -> Tensor:
        left_out = name not in self._stored
        tensor = self._initial[name] if left_out else self._read(self._stored[name])
        if left_out and self._quantized is not None and is_in_layers(name) and tensor.ndim == 2:
            tensor = through_nf4(tensor, self._quantized)  # as the adapters were trained beside it
        if name in self.adapters:
            start = self.adapters[name]
            lower, upper = self._read(start + LORA_A).float(), self._read(start + LORA_B).float()
            tensor = tensor.float() + (upper @ lower) * self._scale
        check_finite(tensor, name, self._place)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def _read(self, name: str) -> Tensor:
        averaged = AVERAGE + stored_name(name)
        use = self._average and averaged in self._saved.shapes
        return self._saved.read(averaged if use else NETWORK + name)


class InitialWeights(Mapping[str, Tensor]):
    """Lazy mapping from names to the tensors of a checkpoint directory."""

    def __init__(self, weights: WeightFiles) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        [(_, tensor)] = self._weights.read([name])
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights.files)

    def __len__(self) -> int:
        return len(self._weights.files)


def initial_weights(record: RunRecord, folder: Path | None, place: str) -> Mapping[str, Tensor]:
    """Opens the initial weights of a run, if its checkpoint leaves some out.

    Args:
        record: Record of the run.
        folder: Directory with the weights; None for random ones.
        place: The checkpoint, for errors.

    Returns:
        Name -> tensor.

    Raises:
        DataError: If the directory holds other weights.
    """
    if not record.left_out:
        return {}
    if record.checkpoint is None:
        model = Bagel.empty(record.config, dtype=torch.float32, device="cpu")
        model.reset_parameters(record.seed)
        return model.state_dict()
    assert folder is not None
    weights = find_weights(folder)
    record.check_initial_weights(weights.digest(), place)
    return InitialWeights(weights)


def published_shapes(record: RunRecord) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of all weights of a run's network."""
    with without_memory():
        model = Bagel(record.config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


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


def load_run_weights(network: Bagel, path: str, *, average: bool) -> None:
    """Copies the weights of an earlier run into a network; adapters of that run are merged.

    Args:
        network: The network, complete or sharded, with or without adapters.
        path: A .ckpt of the run.
        average: Take the moving averages, for the weights that have one.

    Raises:
        ConfigError: If the checkpoint is of another network, or has no averages.
        DataError: If it is damaged, or its frozen weights are missing.
        InputError: If it doesn't exist.
    """
    saved = open_checkpoint(local_path(path))
    record = RunRecord.from_checkpoint(saved.about, path)
    folder = None if record.checkpoint is None else local_path(record.checkpoint)
    initial = initial_weights(record, folder, path)
    weights = NetworkWeights(saved, record, initial, average=average, place=path)
    shapes = published_shapes(record)
    targets = {base_name(n): t for n, t in network.state_dict().items() if not is_adapter(n)}
    wanted = {name: tuple(tensor.shape) for name, tensor in targets.items()}
    if shapes != wanted:
        differing = sorted(n for n in shapes.keys() | wanted if shapes.get(n) != wanted.get(n))
        raise ConfigError(
            "model.source.weights",
            found=f"{path} of another network: {', '.join(differing[:3])}",
            wanted="weights of the network of model.source",
            remedy="Set source.checkpoint or source.preset, and overrides, as in that run.",
        )
    with torch.no_grad():
        for name, target in targets.items():
            fill(target, weights[name])
