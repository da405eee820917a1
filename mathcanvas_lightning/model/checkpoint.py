"""Reads checkpoint directories in BAGEL-7B-MoT layout; every key is checked."""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mathcanvas_lightning.common.file_kinds import describe_file
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.model.config import GEN_SUFFIX, BagelConfig
from mathcanvas_lightning.model.layers.quantized import quantized_layers

WEIGHT_FILES = ("ema.safetensors", "model.safetensors")
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
"""Types of stored weights that can be loaded; others are quantized."""
INDEX_FILE = "model.safetensors.index.json"
TABLES = {
    "latent_pos_embed.pos_embed": "max_latent_size",
    "vit_pos_embed.pos_embed": "vit_max_num_patch_per_side",
}
"""Fixed position table -> the field of `BagelConfig` that sets its side."""
REOPEN_BYTES = 64 * 2**20
"""Reopen a memory-mapped file after reading this much, to release the pages read so far."""
DIGEST_BYTES = 2**20
"""Bytes at the start and the end of a weight file that its digest covers."""
MAX_LISTED = 20
"""Maximum number of keys of one kind in an error."""


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Files and shapes of the tensors in a checkpoint directory."""

    files: Mapping[str, Path]
    """Tensor name -> file."""
    shapes: Mapping[str, tuple[int, ...]]
    """Tensor name -> shape."""

    def read(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yields tensors one at a time; copy each one before taking the next.

        Raises:
            DataError: If a tensor holds NaN or infinity.
        """
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        for file, members in by_file.items():
            for group in self._groups(members):
                with safe_open(file, "pt") as opened:
                    for name in group:
                        tensor = opened.get_tensor(name)
                        check_finite(tensor, name, file)
                        yield name, tensor

    def digest(self) -> str:
        """Digest of the names, shapes, file sizes, and of the first and last bytes of each file."""
        found = hashlib.sha256(json.dumps(sorted(self.shapes.items())).encode())
        for file in sorted(set(self.files.values())):
            size = file.stat().st_size
            found.update(str(size).encode())
            with file.open("rb") as opened:
                found.update(opened.read(DIGEST_BYTES))
                opened.seek(max(0, size - DIGEST_BYTES))
                found.update(opened.read(DIGEST_BYTES))
        return found.hexdigest()

    def _groups(self, names: Sequence[str]) -> Iterator[list[str]]:
        group: list[str] = []
        size = 0
        for name in names:
            group.append(name)
            size += 4 * torch.Size(self.shapes[name]).numel()
            if size >= REOPEN_BYTES:
                yield group
                group, size = [], 0
        if group:
            yield group


def find_weights(path: str | Path) -> WeightFiles:
    """Finds the weight files of a checkpoint directory and reads their headers.

    Args:
        path: Directory with `ema.safetensors`, `model.safetensors`, or the index of several files.

    Returns:
        Names, files and shapes.

    Raises:
        DataError: If there are no weights, or a file is damaged.
    """
    folder = local_path(path)
    single = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if single is not None:
        found = [single]
    elif (folder / INDEX_FILE).is_file():
        found = _indexed(folder / INDEX_FILE)
    else:
        raise DataError(
            str(folder),
            found="no weights" if folder.is_dir() else "nothing",
            wanted=f"{', '.join(WEIGHT_FILES)} or {INDEX_FILE}",
            remedy="Download the checkpoint, or make one with mathcanvas make-bagel.",
        )
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in found:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    stored = opened.get_slice(name)
                    files[name], shapes[name] = file, tuple(stored.get_shape())
                    _require_float(file, name, stored.get_dtype())
        except (SafetensorError, OSError) as error:
            raise DataError(
                str(file),
                found=describe_file(file, f"a damaged file ({error})"),
                wanted="a complete safetensors file",
                remedy="Copy or download it again.",
            ) from None
    return WeightFiles(files, shapes)


def _indexed(path: Path) -> list[Path]:
    """Files that an index names."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return [path.parent / name for name in sorted(set(index["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            str(path),
            found=describe_file(
                path, f"no index of weight files ({type(error).__name__}: {error})"
            ),
            wanted='JSON with a "weight_map"',
            remedy="Copy or download it again.",
        ) from None


def _require_float(file: Path, name: str, dtype: str) -> None:
    if dtype not in FLOAT_TYPES:
        raise DataError(
            str(file),
            found=f"{name} of type {dtype}",
            wanted=f"weights of type {', '.join(FLOAT_TYPES)}",
            remedy="Quantized weights can't be loaded; take the original ones.",
        )


def check_finite(tensor: Tensor, name: str, file: Path | str) -> None:
    """Checks that weights are numbers; reads 12 GiB a second on one core.

    Args:
        tensor: The weights.
        name: Their name.
        file: Their file.

    Raises:
        DataError: If one is NaN or infinite.
    """
    # `isfinite` is 40 times slower in bfloat16.
    if tensor.numel() and not all(math.isfinite(end) for end in tensor.aminmax()):
        raise DataError(
            str(file),
            found=f"{name} with {int((~tensor.isfinite()).sum())} values that are NaN or infinite",
            wanted="finite weights",
            remedy="Take an earlier checkpoint of this training, or download the file again.",
        )


def config_for_weights(config: BagelConfig, weights: WeightFiles) -> BagelConfig:
    """Sets the sizes of the position tables to those of the stored ones."""
    sides = {
        setting: math.isqrt(weights.shapes[name][0])
        for name, setting in TABLES.items()
        if name in weights.shapes
    }
    return config.override(**sides)


def load_weights(
    model: nn.Module, weights: WeightFiles, *, place: str, components: Collection[str] | None
) -> None:
    """Copies weights into a model, tensor by tensor.

    Host memory holds the model and one more tensor. Fixed position tables that are absent or have
    another size are not loaded.

    Args:
        model: Any module with the published parameter names; quantized layers quantize theirs.
        weights: Files and shapes of the weights.
        place: The directory, for errors.
        components: First part of the names to load; None loads all.

    Raises:
        DataError: If keys are missing, unexpected or of another shape: all of them are listed.
    """
    state, quantized = model.state_dict(), dict(quantized_layers(model))
    wanted = {name for name in state if components is None or name.split(".")[0] in components}
    shapes = {name: tuple((quantized.get(name) or state[name]).shape) for name in wanted}
    audit_weights(shapes, weights, place, model, partial=components is not None)
    loaders: dict[str, Callable[[Tensor], object]] = {n: t.copy_ for n, t in state.items()}
    loaders |= {name: layer.load for name, layer in quantized.items()}
    _copy(loaders, weights, {n: n for n in wanted if weights.shapes.get(n) == shapes[n]})


def load_qwen2(language_model: nn.Module, weights: WeightFiles, *, place: str) -> None:
    """Copies a plain Qwen2 into the understanding expert, tensor by tensor.

    Args:
        language_model: The target; its q/k norms keep their values. If the file ties the head to
            the embeddings, the head becomes a copy of them.
        weights: Weights of the Qwen2 checkpoint.
        place: The directory, for errors.

    Raises:
        DataError: If keys are missing or of another shape.
    """
    state = language_model.state_dict()
    sources = {name: name for name in state if GEN_SUFFIX not in name and "_norm." not in name}
    if "lm_head.weight" not in weights.shapes:
        sources["lm_head.weight"] = "model.embed_tokens.weight"
    shapes = {source: tuple(state[name].shape) for name, source in sources.items()}
    audit_weights(shapes, weights, place, language_model, partial=True)
    _copy({name: state[name].copy_ for name in sources}, weights, sources)


@torch.no_grad()
def _copy(
    loaders: Mapping[str, Callable[[Tensor], object]],
    weights: WeightFiles,
    sources: Mapping[str, str],
) -> None:
    """Loads tensors (name -> name in the files); reads each tensor once."""
    targets: dict[str, list[str]] = {}
    for name, source in sources.items():
        targets.setdefault(source, []).append(name)
    for source, tensor in weights.read(sorted(targets)):
        for name in targets[source]:
            loaders[name](tensor)


def audit_weights(
    shapes: Mapping[str, tuple[int, ...]],
    weights: WeightFiles,
    place: str,
    model: nn.Module,
    *,
    partial: bool = False,
) -> None:
    """Compares the keys and shapes of stored weights with those of a model.

    Args:
        shapes: Shapes of the model's parameters; fixed position tables may differ.
        weights: The stored weights.
        place: The directory, for errors.
        model: The model; errors name its class.
        partial: Whether the files may hold more keys.

    Raises:
        DataError: If keys are missing, unexpected or of another shape: all of them are listed.
    """
    missing = sorted(shapes.keys() - weights.shapes.keys() - TABLES.keys())
    unexpected = [] if partial else sorted(weights.shapes.keys() - shapes.keys())
    wrong = [
        f"{name}: {list(weights.shapes[name])} in the file, {list(shape)} in the model"
        for name, shape in sorted(shapes.items())
        if weights.shapes.get(name, shape) != shape and name not in TABLES
    ]
    problems = [
        f"{len(names)} {kind}: {'; '.join(names[:MAX_LISTED])}"
        + (f"; and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong-shaped", wrong),
        )
        if names
    ]
    if problems:
        raise DataError(
            place,
            found=f"keys that don't match. {'. '.join(problems)}",
            wanted=f"the {len(shapes)} keys of {type(model).__name__}",
            remedy="Check that the config files belong to these weights.",
        )
