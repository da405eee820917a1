"""Reads and writes checkpoint directories in BAGEL-7B-MoT layout; every key is checked."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isqrt, prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.model.config import BAGEL_FILE, GEN_SUFFIX, BagelConfig
from mathcanvas_lightning.model.vae import VAE_FILE

WEIGHT_FILES = ("ema.safetensors", "model.safetensors")
INDEX_FILE = "model.safetensors.index.json"
PROCESSOR_FILE = "preprocessor_config.json"
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
)
TABLES = {
    "latent_pos_embed.pos_embed": "max_latent_size",
    "vit_pos_embed.pos_embed": "vit_max_num_patch_per_side",
}
"""Fixed position table -> the field of `BagelConfig` that sets its side."""
REOPEN_BYTES = 64 * 2**20
"""Reopen a memory-mapped file after reading this much, to release the pages read so far."""
DIGEST_BYTES = 2**20
"""Bytes at the start and the end of a weight file that its digest covers."""
VLLM_CORRECTS_VIT_LAYERS = 27
"""vLLM drops the last ViT layer by itself only if the config has this many."""
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
        """Yields tensors one at a time; copy each one before taking the next."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        for file, members in by_file.items():
            for group in self._groups(members):
                with safe_open(file, "pt") as opened:
                    for name in group:
                        yield name, opened.get_tensor(name)

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
    folder = Path(path)
    single = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if single is not None:
        found = [single]
    elif (folder / INDEX_FILE).is_file():
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        found = [folder / name for name in sorted(set(index["weight_map"].values()))]
    else:
        raise DataError(
            str(folder),
            found="no weights" if folder.is_dir() else "nothing",
            wanted=f"{', '.join(WEIGHT_FILES)} or {INDEX_FILE}",
            remedy="Download the checkpoint, or make one with tools/make_tiny_bagel.py.",
        )
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in found:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    files[name] = file
                    shapes[name] = tuple(opened.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise DataError(
                str(file),
                found=f"a damaged file ({error})",
                wanted="a complete safetensors file",
                remedy="Copy or download it again.",
            ) from None
    return WeightFiles(files, shapes)


def config_for_weights(config: BagelConfig, weights: WeightFiles) -> BagelConfig:
    """Sets the sizes of the position tables to those of the stored ones."""
    sides = {
        setting: isqrt(weights.shapes[name][0])
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
        model: Any module with the published parameter names.
        weights: Files and shapes of the weights.
        place: The directory, for errors.
        components: First part of the names to load; None loads all.

    Raises:
        DataError: If keys are missing, unexpected or of another shape: all of them are listed.
    """
    state = model.state_dict()
    wanted = {name for name in state if components is None or name.split(".")[0] in components}
    shapes = {name: tuple(state[name].shape) for name in wanted}
    audit_weights(shapes, weights, place, model, partial=components is not None)
    _copy(state, weights, {n: n for n in wanted if weights.shapes.get(n) == shapes[n]})


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
    _copy(state, weights, sources)


@torch.no_grad()
def _copy(state: Mapping[str, Tensor], weights: WeightFiles, sources: Mapping[str, str]) -> None:
    """Copies tensors into parameters (name -> name in the files); reads each tensor once."""
    targets: dict[str, list[str]] = {}
    for name, source in sources.items():
        targets.setdefault(source, []).append(name)
    for source, tensor in weights.read(sorted(targets)):
        for name in targets[source]:
            state[name].copy_(tensor)


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


def write_checkpoint(
    state: Mapping[str, Tensor],
    config: BagelConfig,
    path: str | Path,
    *,
    dtype: torch.dtype,
    source: str | Path | None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Writes a directory that the reference, this library and vLLM read.

    Args:
        state: All weights, by their published names.
        config: Sizes of the model.
        path: Directory to write; created if absent.
        dtype: Type of the stored weights.
        source: Directory from which tokenizer and autoencoder are taken, if it has them: hard
            links where the file system allows it, else copies.
        shapes: Shapes of the weights, for a lazy `state`: each tensor is then computed only once.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in config.files().items():
        if name == BAGEL_FILE:
            content = _for_vllm(content)
        _write_json(folder / name, content)
    _write_json(folder / PROCESSOR_FILE, _processor(config))
    write_safetensors(folder / WEIGHT_FILES[0], state, dtype, shapes)
    # Without an index vLLM would read every safetensors file, also the autoencoder's.
    _write_json(folder / INDEX_FILE, {"weight_map": dict.fromkeys(sorted(state), WEIGHT_FILES[0])})
    if source is not None:
        for name in (*TOKENIZER_FILES, VAE_FILE):
            if Path(source, name).is_file():
                _link_or_copy(Path(source, name), folder / name)


def write_safetensors(
    path: Path,
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Writes tensors one by one, so that memory holds one converted tensor at a time.

    `save_file` of safetensors converts all of them to bytes first.

    Args:
        path: File to write; it appears only when it is complete.
        state: Tensors by name, on any device.
        dtype: Type of the stored tensors.
        shapes: Shapes by name; by default those of `state`.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    if shapes is None:
        shapes = {name: tensor.shape for name, tensor in state.items()}
    for name, shape in shapes.items():
        start, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in shapes:
            stored = state[name].detach().to(device="cpu", dtype=dtype).contiguous().flatten()
            file.write(stored.view(torch.uint8).numpy().data)


_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def _for_vllm(content: dict[str, object]) -> dict[str, object]:
    """Leaves out the last ViT layer in the config where vLLM does not do it by itself."""
    vit = dict(content["vit_config"])  # type: ignore[call-overload]
    if vit["num_hidden_layers"] != VLLM_CORRECTS_VIT_LAYERS:
        vit["num_hidden_layers"] -= 1
    return content | {"vit_config": vit}


def _processor(config: BagelConfig) -> dict[str, object]:
    side = config.vit.image_size
    return {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"height": side, "width": side},
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _link_or_copy(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    target.unlink(missing_ok=True)
    with suppress(OSError):
        os.link(source.resolve(), target)
        return
    shutil.copy2(source, target)
