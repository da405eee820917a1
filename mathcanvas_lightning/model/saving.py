"""Writes checkpoint directories in BAGEL-7B-MoT layout."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from torch import Tensor

from mathcanvas_lightning.common.atomic import write_json, written_whole
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.model.checkpoint import INDEX_FILE
from mathcanvas_lightning.model.config import BAGEL_FILE, BagelConfig
from mathcanvas_lightning.model.vae import VAE_FILE

SHARD_PATTERN = "ema{suffix}.safetensors"
"""Names of the files that are written."""
MAX_SHARD_BYTES = 5 * 10**9
"""Maximum size of a file that is written, as on the Hugging Face hub."""
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
VLLM_CORRECTS_VIT_LAYERS = 27
"""vLLM drops the last ViT layer by itself only if the config has this many."""


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
    folder = local_path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in config.files().items():
        if name == BAGEL_FILE:
            content = _for_vllm(content)
        write_json(folder / name, content)
    write_json(folder / PROCESSOR_FILE, _processor(config))
    files = write_shards(folder, state, dtype, shapes)
    # Without an index vLLM would read every safetensors file, also the autoencoder's.
    weight_map = {name: file for file, names in files.items() for name in names}
    write_json(folder / INDEX_FILE, {"weight_map": dict(sorted(weight_map.items()))})
    if source is not None:
        for name in (*TOKENIZER_FILES, VAE_FILE):
            if (local_path(source) / name).is_file():
                _link_or_copy(local_path(source) / name, folder / name)


def other_files(folder: Path, config: BagelConfig) -> list[str]:
    """Lists what `write_checkpoint` never writes, in the folder of an earlier export.

    Args:
        folder: The folder.
        config: Sizes of any model; they do not change the names.

    Returns:
        Sorted names of files and folders.
    """
    written = {*config.files(), PROCESSOR_FILE, INDEX_FILE, VAE_FILE, *TOKENIZER_FILES}
    weights = SHARD_PATTERN.format(suffix="*")
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() or not (path.name in written or path.match(weights))
    )


def write_shards(
    folder: Path,
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, list[str]]:
    """Writes weights as files of at most `MAX_SHARD_BYTES`, one after the other.

    Memory holds one file. Files of an earlier, differently divided export are removed.

    Args:
        folder: Folder to write to.
        state: Tensors by name, on any device.
        dtype: Type of the stored tensors.
        shapes: Shapes by name; by default those of `state`.

    Returns:
        File name -> names of its tensors; a single file is `ema.safetensors`.
    """
    if shapes is None:
        shapes = {name: tensor.shape for name, tensor in state.items()}
    split = split_state_dict_into_shards_factory(
        dict(shapes),
        get_storage_size=lambda shape: prod(shape) * dtype.itemsize,
        filename_pattern=SHARD_PATTERN,
        max_shard_size=MAX_SHARD_BYTES,
    )
    files: dict[str, list[str]] = split.filename_to_tensors
    for file, names in files.items():
        write_safetensors(folder / file, _Selected(state, names), dtype)
    for path in folder.glob(SHARD_PATTERN.format(suffix="*")):
        if path.name not in files:
            path.unlink()
    return files


def write_safetensors(path: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Writes a file of tensors; it appears only when it is complete.

    Args:
        path: File to write.
        state: Tensors by name, on any device.
        dtype: Type of the stored tensors.
    """
    stored = {
        name: tensor.detach().to(device="cpu", dtype=dtype, copy=True).contiguous()
        for name, tensor in state.items()
    }
    with written_whole(path) as temporary:
        save_file(stored, temporary, metadata={"format": "pt"})


class _Selected(Mapping[str, Tensor]):
    """Some entries of a lazy mapping."""

    def __init__(self, state: Mapping[str, Tensor], names: Sequence[str]) -> None:
        self._state, self._names = state, names

    def __getitem__(self, name: str) -> Tensor:
        return self._state[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


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


def _link_or_copy(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    target.unlink(missing_ok=True)
    with suppress(OSError):
        os.link(source.resolve(), target)
        return
    shutil.copy2(source, target)
