"""Builds the network: number types, FSDP2 and HSDP, activation checkpointing, compilation."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.distributed._composable import checkpoint  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.adapters import has_lora
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.checkpoint import TABLES, audit_weights, check_finite, find_weights
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers.attention import default_path
from mathcanvas_lightning.model.layers.basic import without_memory
from mathcanvas_lightning.model.layers.flex import compile_options
from mathcanvas_lightning.model.layers.float8 import use_float8
from mathcanvas_lightning.model.layers.quantized import quantize_frozen, quantized_layers

LAYER_PREFIXES = ("vit_model.vision_model.encoder.layers.", "language_model.model.layers.")
"""Prefixes of the names of parameters in the layers of ViT and decoder."""
VIT_UNITS = 4
"""Maximum number of groups of ViT layers."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class Parallelism:
    """Activation checkpointing, compilation and offloading of the network."""

    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Layers whose activations are recomputed in the backward pass: none, every second one
    ("selective"), or all ("full")."""
    compile: bool = False
    """Compile each layer with torch.compile."""
    compile_backend: str = "inductor"
    """Backend of torch.compile; "aot_eager" needs no compiler, but makes nothing faster."""
    activation_memory_budget: float | None = None
    """Share of each layer's activations that is kept for the backward pass, from 0 to 1; the others
    are recomputed, those first that cost the least time for their memory. Needs `compile`, and
    replaces `activation_checkpointing`. At 0 only the input of each layer is kept."""
    cpu_offload: bool = False
    """Keep sharded parameters, gradients and optimizer state in host memory. Without effect on a
    CPU."""

    def __post_init__(self) -> None:
        """Checks the budget.

        Raises:
            ConfigError: If it is out of range, or contradicts the other settings.
        """
        budget, place = self.activation_memory_budget, "model.parallelism.activation_memory_budget"
        if budget is None:
            return
        if not 0 <= budget <= 1:
            raise ConfigError(
                place, found=str(budget), wanted="a share from 0 to 1", remedy="Start with 0.1."
            )
        if not self.compile or self.activation_checkpointing != "none":
            raise ConfigError(
                place,
                found=f"compile {self.compile}, "
                f"activation_checkpointing {self.activation_checkpointing!r}",
                wanted="compile true and activation_checkpointing 'none' beside a budget",
                remedy="Change these two, or leave the budget out.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Number types of a network."""

    params: torch.dtype
    """Type of the trained parameters, and so of gradients and optimizer state."""
    frozen: torch.dtype | None = None
    """Type of the frozen parameters; by default that of the trained ones."""
    compute: torch.dtype
    """Type of forward and backward."""
    quantized: bool = False
    """Store the frozen linear layers of decoder and ViT in NF4."""
    float8: bool = False
    """Multiply in float8 in the linear layers of the decoder."""


def is_in_layers(name: str) -> bool:
    """Whether a parameter belongs to one of `Bagel.layers`."""
    return name.startswith(LAYER_PREFIXES)


def checkpoint_activations(model: Bagel, parallelism: Parallelism) -> None:
    """Enables activation checkpointing in place; parameter names stay the same."""
    every = {"none": 0, "selective": 2, "full": 1}[parallelism.activation_checkpointing]
    for number, layer in enumerate(model.layers()):
        if every and number % every == 0:
            checkpoint(layer)


def compile_layers(model: Bagel, parallelism: Parallelism, device: torch.device) -> None:
    """Compiles the forward pass of each layer in place. Call it before sharding.

    Hooks of activation checkpointing and sharding stay outside of what is compiled.

    Args:
        model: The network, on any device including "meta".
        parallelism: Whether to compile, and the share of activations to keep.
        device: Device of the computation.
    """
    if not parallelism.compile:
        return
    if parallelism.activation_memory_budget is not None:
        settings: Any = functorch_config
        settings.activation_memory_budget = parallelism.activation_memory_budget
    # Only FlexAttention can be compiled as a whole; the other paths loop over the splits of a pack.
    options = compile_options(fullgraph=default_path(device) == "flex")
    for layer in model.layers():
        compiled = torch.compile(layer.forward, backend=parallelism.compile_backend, **options)
        layer.forward = compiled


def shard(
    model: Bagel,
    mesh: DeviceMesh,
    *,
    compute_dtype: torch.dtype,
    parallelism: Parallelism,
) -> None:
    """Shards parameters over the mesh, layer by layer, in place.

    Args:
        model: The network, on any device including "meta".
        mesh: A mesh with the dimensions "replicate" and "shard".
        compute_dtype: Type of forward and backward; gradients are reduced in float32.
        parallelism: Whether shards are kept in host memory, and which layers are recomputed.
    """
    used = mesh["replicate", "shard"] if mesh["replicate"].size() > 1 else mesh["shard"]
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    offloads = parallelism.cpu_offload and mesh.device_type != "cpu"
    offload = CPUOffloadPolicy() if offloads else OffloadPolicy()
    # torch before 2.13 expects that either all layers of a group are recomputed, or none.
    wrapped = units(model, grouped=parallelism.activation_checkpointing != "selective")
    for unit in wrapped:
        fully_shard(unit, mesh=used, mp_policy=policy, offload_policy=offload)
    for unit, following in pairwise(wrapped):
        unit[0].set_modules_to_forward_prefetch([following[0]])  # type: ignore[operator]
    # Shard the root too: the gradients of unsharded parameters would not be reduced over ranks.
    root = fully_shard(model, mesh=used, mp_policy=policy, offload_policy=offload)
    # If a pack gives a parameter no gradient, its rank must still take part in the reduction.
    if hasattr(root, "set_reduce_scatter_unused_params"):  # missing in older versions of torch
        root.set_reduce_scatter_unused_params(True)


def units(model: Bagel, *, grouped: bool) -> list[list[nn.Module]]:
    """Lists the layers that are gathered together: each of the decoder, and groups of the ViT's.

    A layer of BAGEL's ViT has 15 million parameters, too few to use the links between GPUs well.

    Args:
        model: The network.
        grouped: Whether to group the layers of the ViT.
    """
    vit = list(model.vit_model.vision_model.encoder.layers)
    size = max(1, -(-len(vit) // VIT_UNITS)) if grouped else 1
    groups = [vit[start : start + size] for start in range(0, len(vit), size)]
    return [*groups, *([layer] for layer in model.language_model.model.layers)]


@contextmanager
def gathered(model: Bagel) -> Iterator[None]:
    """Holds all shards on each rank inside the block, so that ranks can run the network by itself.

    All ranks must enter and leave the block together. It does nothing for a network that is not
    sharded.

    Args:
        model: The network, not within a forward or backward pass. Each rank needs memory for all
            its weights in the type of the computation.
    """
    # Without hooks, no layer gathers or reshards by itself, and the order of the collectives that
    # FSDP2 derives from its hooks stays that of the training, on all ranks.
    with without_hooks(model):
        sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
        try:
            for module in sharded:
                module.unshard()
            yield
        finally:
            for module in sharded:
                module.reshard()


@contextmanager
def without_hooks(model: Bagel) -> Iterator[None]:
    """Takes the forward hooks of sharded and checkpointed layers away inside the block."""
    kept = [
        (module, module._forward_pre_hooks, module._forward_hooks) for module in model.modules()
    ]
    for module, *_ in kept:
        module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for module, before, after in kept:
            module._forward_pre_hooks, module._forward_hooks = before, after


def build_network(
    config: BagelConfig,
    checkpoint_folder: str | None,
    mesh: DeviceMesh | None,
    *,
    device: torch.device,
    precision: Precision,
    parallelism: Parallelism,
    prepare: Callable[[Bagel], None],
    seed: int,
) -> Bagel:
    """Builds the network without a temporary copy: complete, or on each rank its shards.

    Args:
        config: Sizes of the model.
        checkpoint_folder: Directory with weights; None initializes them randomly.
        mesh: A mesh with the dimensions "replicate" and "shard"; None builds it on one device.
        device: Device of this rank.
        precision: Types of the parameters and of the computation.
        parallelism: Activation checkpointing, compilation and offloading.
        prepare: Freezes parameters or adds adapters; called before sharding.
        seed: Random seed of initialized weights.

    Returns:
        The network, equal to one built on a single device.

    Raises:
        ConfigError: If the precision can't be had.
        DataError: If weights are missing, unexpected or of another shape.
    """
    with without_memory():
        model = Bagel(config)
    adapters = prepare_without_memory(model, prepare)
    _set_dtypes(model, precision)
    if precision.quantized:
        _quantize(model, precision, is_sharded=mesh is not None)
    if precision.float8:
        _use_float8(model, device, is_compiled=parallelism.compile)
    checkpoint_activations(model, parallelism)
    compile_layers(model, parallelism, device)
    if mesh is not None:
        shard(model, mesh, compute_dtype=precision.compute, parallelism=parallelism)
    on_host = mesh is not None and parallelism.cpu_offload
    model.to_empty(device="cpu" if on_host else device)
    if checkpoint_folder is None:
        _initialize_shards(model, config, seed)
    else:
        _load_shards(model, checkpoint_folder)
    state = model.state_dict()
    for name, value in adapters.items():
        fill(state[name], value)
    return model


@torch.no_grad()
def prepare_without_memory(model: Bagel, prepare: Callable[[Bagel], None]) -> dict[str, Tensor]:
    """Prepares a network on "meta", and returns the initial values of its adapters.

    peft initializes adapters on the device of the layer they adapt. To get the same values as on
    one device, each weight is temporarily a zero-stride tensor (an expanded scalar), which needs
    no memory.
    """
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            expanded = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
            setattr(module, name, nn.Parameter(expanded, weight.requires_grad))
    prepare(model)
    adapters = {n: p.detach() for n, p in model.named_parameters() if is_adapter(n)}
    model.to(device="meta")
    return adapters


def _set_dtypes(model: Bagel, precision: Precision) -> None:
    """Sets the types of trained and frozen parameters of a network on "meta".

    The fixed position tables are never trained. Without adapters they have the type of the trained
    parameters.
    """
    tables = set() if has_lora(model) else TABLES.keys()
    for prefix, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            trained = parameter.requires_grad or f"{prefix}.{name}" in tables
            dtype = precision.params if trained else precision.frozen or precision.params
            typed = nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
            setattr(module, name, typed)


def _quantize(model: Bagel, precision: Precision, *, is_sharded: bool) -> None:
    if is_sharded:  # FSDP2 would turn the packed weights into plain ones
        raise ConfigError(
            "model.frozen_dtype",
            found="nf4 together with ShardedStrategy",
            wanted="nf4 on one GPU, or on several with a copy each",
            remedy="Set trainer.strategy to auto or ddp, or frozen_dtype to bfloat16.",
        )
    if not sum(quantize_frozen(layer, precision.compute) for layer in model.layers()):
        raise ConfigError(
            "model.frozen_dtype",
            found="nf4, and no frozen layers",
            wanted="layers that are not trained",
            remedy="Add model.lora, or leave frozen_dtype out.",
        )


def _use_float8(model: Bagel, device: torch.device, *, is_compiled: bool) -> None:
    if has_lora(model):
        raise ConfigError(
            "model.float8",
            found="true, together with model.lora",
            wanted="float8 where all weights are trained",
            remedy="Leave one of them out.",
        )
    use_float8(model.language_model.model.layers, device, is_compiled=is_compiled)
    model.pads = True  # a scale needs at least one token


@torch.no_grad()
def _initialize_shards(model: Bagel, config: BagelConfig, seed: int) -> None:
    """Initializes as on one device, from a complete copy: only small models start untrained."""
    whole = Bagel.empty(config, dtype=torch.float32, device="cpu")
    whole.reset_parameters(seed)
    values = whole.state_dict()
    quantized = dict(quantized_layers(model))
    for name, target in model.state_dict().items():
        if name in quantized:
            quantized[name].load(values[base_name(name)])
        elif (source := base_name(name)) in values:
            fill(target, values[source])


@torch.no_grad()
def _load_shards(model: Bagel, folder: str) -> None:
    """Loads weights; of each tensor, reads only the rows that this rank holds."""
    weights = find_weights(folder)
    targets = {base_name(name): tensor for name, tensor in model.state_dict().items()}
    targets = {name: tensor for name, tensor in targets.items() if not is_adapter(name)}
    quantized = {base_name(name): layer for name, layer in quantized_layers(model)}
    shapes = {name: tuple(tensor.shape) for name, tensor in targets.items()}
    shapes |= {name: layer.shape for name, layer in quantized.items()}
    audit_weights(shapes, weights, folder, model)
    tables = Bagel.fixed_tables(model.config)
    for name, target in targets.items():
        if weights.shapes.get(name) == shapes[name]:
            with safe_open(weights.files[name], "pt") as file:
                if name in quantized:
                    loaded = file.get_tensor(name)
                    quantized[name].load(loaded)
                else:
                    loaded = fill(target, file.get_slice(name))
                check_finite(loaded, name, weights.files[name])
        else:
            assert name in TABLES
            fill(target, tables[name])


def fill(target: Tensor, source: Any) -> Tensor:
    """Copies this rank's rows of a tensor or of a safetensors slice, and returns them."""
    if not isinstance(target, DTensor):
        return target.copy_(source[:])
    shape, offset = compute_local_shape_and_global_offset(
        target.shape, target.device_mesh, target.placements
    )
    first = offset[0] if offset else 0
    rows = shape[0] if shape else 0
    local = target.to_local()
    return local.copy_(source[first : first + rows]) if rows else local


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to a LoRA adapter."""
    return ".lora_" in name


def base_name(name: str) -> str:
    """Published name of a parameter that may have an adapter."""
    return name.replace(".base_layer", "")
