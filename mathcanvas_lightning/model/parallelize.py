"""Sharding (FSDP2, HSDP), activation checkpointing and compilation of the network."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed._composable import checkpoint  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.checkpoint import TABLES, audit_weights, find_weights
from mathcanvas_lightning.model.config import BagelConfig


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class Parallelism:
    """What is done to the layers of the network."""

    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Recompute activations in the backward pass: of no layer, of every second one, of all."""
    compile: bool = False
    """Compile each layer."""
    cpu_offload: bool = False
    """Keep sharded parameters, gradients and optimizer state in host memory; on a processor they
    are there anyway."""


def layers(model: Bagel) -> list[nn.Module]:
    """The layers of the ViT and the decoder, in the order they run."""
    return [*model.vit_model.vision_model.encoder.layers, *model.language_model.model.layers]


def checkpoint_activations(model: Bagel, parallelism: Parallelism) -> None:
    """Has layers recompute their activations; nothing about their names changes."""
    every = {"none": 0, "selective": 2, "full": 1}[parallelism.activation_checkpointing]
    for number, layer in enumerate(layers(model)):
        if every and number % every == 0:
            checkpoint(layer)


def compile_layers(model: Bagel, parallelism: Parallelism) -> None:
    """Compiles each layer in place; before it is sharded, if it is to be."""
    if parallelism.compile:
        for layer in layers(model):
            layer.compile(dynamic=True)


def shard(
    model: Bagel,
    mesh: DeviceMesh,
    *,
    compute_dtype: torch.dtype,
    parallelism: Parallelism,
) -> None:
    """Shards parameters over the mesh, layer by layer, in place.

    Args:
        model: On any device, "meta" too.
        mesh: With the dimensions "replicate" and "shard".
        compute_dtype: Of forward and backward; gradients are reduced in float32.
        parallelism: Whether shards lie in host memory.
    """
    used = mesh["replicate", "shard"] if mesh["replicate"].size() > 1 else mesh["shard"]
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    elsewhere = parallelism.cpu_offload and mesh.device_type != "cpu"
    offload = CPUOffloadPolicy() if elsewhere else OffloadPolicy()
    wrapped = layers(model)
    for layer in wrapped:
        fully_shard(layer, mesh=used, mp_policy=policy, offload_policy=offload)
    for layer, following in pairwise(wrapped):
        layer.set_modules_to_forward_prefetch([following])  # type: ignore[operator]
    # The root too: an unsharded parameter would get no gradient of other ranks.
    root = fully_shard(model, mesh=used, mp_policy=policy, offload_policy=offload)
    # Every part takes part in every pack; should one not, its rank must still reduce zeros.
    if hasattr(root, "set_reduce_scatter_unused_params"):  # an older torch lacks it
        root.set_reduce_scatter_unused_params(True)


def build_sharded(
    config: BagelConfig,
    checkpoint_folder: str | None,
    mesh: DeviceMesh,
    *,
    device: torch.device,
    param_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    parallelism: Parallelism,
    prepare: Callable[[Bagel], None],
    seed: int,
) -> Bagel:
    """Builds a sharded network; no rank ever holds more than its shards and one layer.

    Args:
        config: Sizes.
        checkpoint_folder: Directory with weights; None draws them.
        mesh: With the dimensions "replicate" and "shard".
        device: Of this rank.
        param_dtype: Of the shards.
        compute_dtype: Of forward and backward.
        parallelism: Recomputation, compilation, offloading.
        prepare: Freezes parameters, or adds adapters; called before sharding.
        seed: Of what is drawn.

    Returns:
        The network, equal to one built on a single device.

    Raises:
        DataError: If weights are missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        model = Bagel(config)
    model.to(dtype=param_dtype)
    adapters = _prepare_without_memory(model, prepare)
    checkpoint_activations(model, parallelism)
    compile_layers(model, parallelism)
    shard(model, mesh, compute_dtype=compute_dtype, parallelism=parallelism)
    model.to_empty(device="cpu" if parallelism.cpu_offload else device)
    if checkpoint_folder is None:
        _draw_shards(model, config, param_dtype, seed)
    else:
        _load_shards(model, checkpoint_folder)
    state = model.state_dict()
    for name, value in adapters.items():
        _fill(state[name], value)
    return model


@torch.no_grad()
def _prepare_without_memory(model: Bagel, prepare: Callable[[Bagel], None]) -> dict[str, Tensor]:
    """Prepares a network on "meta"; the first values of its adapters are given back.

    Adapters are drawn on the device of the layer that they adapt: for them to be drawn at all, and
    as on one device, each weight poses as a single number repeated.
    """
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            posed = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
            setattr(module, name, nn.Parameter(posed, weight.requires_grad))
    prepare(model)
    adapters = {n: p.detach() for n, p in model.named_parameters() if _is_adapter(n)}
    model.to(device="meta")
    return adapters


@torch.no_grad()
def _draw_shards(model: Bagel, config: BagelConfig, dtype: torch.dtype, seed: int) -> None:
    """The same values as on one device: small models alone start from nothing."""
    whole = Bagel.empty(config, dtype=dtype, device="cpu")
    whole.reset_parameters(seed)
    values = whole.state_dict()
    for name, target in model.state_dict().items():
        if (source := _base_name(name)) in values:
            _fill(target, values[source])


@torch.no_grad()
def _load_shards(model: Bagel, folder: str) -> None:
    """Reads of each tensor only the rows that this rank holds."""
    weights = find_weights(folder)
    targets = {_base_name(name): tensor for name, tensor in model.state_dict().items()}
    targets = {name: tensor for name, tensor in targets.items() if not _is_adapter(name)}
    audit_weights(
        {name: tuple(tensor.shape) for name, tensor in targets.items()}, weights, folder, model
    )
    tables = Bagel.fixed_tables(model.config)
    for name, target in targets.items():
        if weights.shapes.get(name) == tuple(target.shape):
            with safe_open(weights.files[name], "pt") as file:
                _fill(target, file.get_slice(name))
        else:
            assert name in TABLES
            _fill(target, tables[name])


def _fill(target: Tensor, source: Any) -> None:
    """Copies this rank's rows of a tensor, or of a slice of a file."""
    if not isinstance(target, DTensor):
        target.copy_(source[:])
        return
    shape, offset = compute_local_shape_and_global_offset(
        target.shape, target.device_mesh, target.placements
    )
    first = offset[0] if offset else 0
    rows = shape[0] if shape else 0
    if rows:
        target.to_local().copy_(source[first : first + rows])


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _base_name(name: str) -> str:
    return name.replace(".base_layer", "")
