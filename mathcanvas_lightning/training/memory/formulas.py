"""Formulas for the memory of one rank: states, gathered layers, activations, work space.

The activations were measured with `torch.autograd.graph.saved_tensors_hooks` on single layers of
many sizes, see `tests/training/memory/`. Nothing here was measured on a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers.cross_entropy import CHUNK_LOGITS
from mathcanvas_lightning.model.parallelize import Parallelism
from mathcanvas_lightning.model.vae import MAX_IMAGES

FULL = torch.float32.itemsize
NF4_BYTES = 4.5 / 8
"""Bytes of a weight in NF4, with its share of a scale."""
GPU_RESERVE = 2 * 2**30
"""Bytes of a GPU for the CUDA context, kernels, NCCL and fragmentation; an estimate."""
LIVE_FEATURE_MAPS = 4
"""Outputs of full resolution that the autoencoder holds at once; an estimate."""
PACK_BYTES_PER_TOKEN = 1_500
"""Bytes of a pack in a data worker, with pictures as uint8; an estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Numbers of parameters."""

    total: int
    """Parameters of the network, with adapters."""
    trained: int
    """Trained parameters of the network."""
    layer: int
    """Parameters of a decoder layer."""
    layer_trained: int
    """Trained parameters of a decoder layer."""
    root: int
    """Parameters outside of the layers: embeddings, head and connectors."""
    root_trained: int
    """Trained parameters outside of the layers."""
    autoencoder: int
    """Parameters of the autoencoder."""
    sizes: tuple[int, ...]
    """Parameters of each tensor of the network."""
    packed: int = 0
    """Frozen weights that are stored in NF4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankWork:
    """What one rank trains."""

    config: BagelConfig
    counts: Counts
    parallelism: Parallelism
    params: torch.dtype
    """Type of trained weights, gradients and moments."""
    frozen: torch.dtype
    """Type of frozen weights."""
    compute: torch.dtype
    """Type of forward and backward."""
    shards: int
    """Number of ranks that share the network."""
    is_sharded: bool
    """Whether FSDP shards the network, which it also does on one rank."""
    average_on_gpu: bool
    average_on_host: bool
    tokens: int
    """Maximum length of a pack."""
    vit_share: float = 0.4
    """Share of a pack's tokens that are ViT patches."""
    image_side: int = 512
    """Side of the largest pictures, in pixels."""
    num_workers: int = 8
    """Data workers of the rank."""
    async_save: bool = False
    """Whether checkpoints are written in the background."""

    @property
    def offloads(self) -> bool:
        """Whether weights, gradients and optimizer state are in host memory."""
        return self.is_sharded and self.parallelism.cpu_offload


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryItem:
    """Memory of one rank for one purpose."""

    name: str
    gpu: int = 0
    """Bytes on the GPU."""
    host: int = 0
    """Bytes in host memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes that one rank holds during the whole training, without activations."""

    weights: int
    """Shard of all weights."""
    gradients: int
    """Gradients of the trainable weights."""
    moments: int
    """AdamW's two moments."""
    ema: int
    """Moving average of the trainable weights."""
    autoencoder: int
    """Weights of the autoencoder, which is not sharded."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.gradients + self.moments + self.ema + self.autoencoder


def memory_estimate(
    *,
    parameters: int,
    trainable: int,
    param_dtype: torch.dtype,
    frozen_dtype: torch.dtype | None = None,
    shards: int = 1,
    ema: bool = False,
    vae_parameters: int = 0,
    compute_dtype: torch.dtype | None = None,
) -> MemoryEstimate:
    """Estimates the memory of a rank without activations.

    Args:
        parameters: Number of parameters of the network.
        trainable: Number of trainable parameters.
        param_dtype: Type of trained weights, gradients and moments.
        frozen_dtype: Type of frozen weights; by default that of the trained ones.
        shards: Number of ranks that share one network.
        ema: Whether a float32 average of the weights is on the device.
        vae_parameters: Number of parameters of the autoencoder.
        compute_dtype: Type of the autoencoder; by default that of the weights.

    Returns:
        The bytes. Temporarily gathered layers and copies in the compute type are not included.
    """
    trained = -(-trainable // shards)
    frozen = -(-parameters // shards) - trained
    frozen_size = (frozen_dtype or param_dtype).itemsize
    return MemoryEstimate(
        weights=trained * param_dtype.itemsize + frozen * frozen_size,
        gradients=trained * param_dtype.itemsize,
        moments=2 * trained * param_dtype.itemsize,
        ema=trained * FULL if ema else 0,
        autoencoder=vae_parameters * (compute_dtype or param_dtype).itemsize,
    )


def rank_memory(work: RankWork) -> list[MemoryItem]:
    """Lists the memory of one rank at the peak of a training step.

    Args:
        work: What the rank trains.

    Returns:
        One item per purpose; items without memory are left out.
    """
    items = [*_states(work), *_gathered(work), *_step(work), *_host(work)]
    return [item for item in items if item.gpu or item.host]


def layer_activation_bytes(
    config: BagelConfig,
    compute: torch.dtype,
    *,
    is_compiled: bool,
    has_adapters: bool = False,
) -> tuple[int, int]:
    """Bytes per token that a layer keeps for the backward pass if nothing is recomputed.

    Args:
        config: Sizes of the model.
        compute: Type of the computation.
        is_compiled: Whether torch.compile fuses norms, rotary embedding and SwiGLU.
        has_adapters: Whether adapters are trained, which keep the result of SwiGLU.

    Returns:
        Bytes of a decoder layer and of a ViT layer.
    """
    llm, vit = config.llm, config.vit
    hidden, inner = llm.hidden_size, llm.intermediate_size
    keys = llm.num_key_value_heads * llm.head_dim
    if is_compiled:
        values = 7 * hidden + 3 * inner + 3 * keys
    else:
        values = 10 * hidden + (3 if has_adapters else 2) * inner + 4 * keys
    decoder = values * compute.itemsize
    if not is_compiled and compute.itemsize < FULL:  # norms keep their input in float32, too
        decoder += 7 * hidden + 2 * keys
    return decoder, (8 * vit.hidden_size + 2 * vit.intermediate_size) * compute.itemsize


def activation_bytes(work: RankWork) -> int:
    """Bytes of the activations of all layers, at the start of the backward pass.

    Args:
        work: What the rank trains.
    """
    config, parallelism = work.config, work.parallelism
    kept = _layer_bytes(work)
    stacks = (
        (config.llm.num_hidden_layers, config.llm.hidden_size, kept[0], work.tokens),
        (config.vit.num_layers_used, config.vit.hidden_size, kept[1], _vit_tokens(work)),
    )
    total = 0
    for layers, hidden, whole, tokens in stacks:
        least = hidden * work.compute.itemsize
        share = _kept_share(parallelism)
        total += int(layers * tokens * (least + share * (whole - least)))
    return total


def pinned_bytes(sizes: Sequence[int], itemsize: int) -> int:
    """Bytes of page-locked memory for tensors.

    torch's allocator of page-locked memory rounds each tensor up to a power of two (see
    `CachingHostAllocator.h`): 29.2 GB of BAGEL's weights become 55.1 GB.

    Args:
        sizes: Numbers of values of the tensors.
        itemsize: Bytes of a value.
    """
    return sum(1 << max(0, size * itemsize - 1).bit_length() for size in sizes if size)


def _states(work: RankWork) -> list[MemoryItem]:
    counts = work.counts
    states = memory_estimate(
        parameters=counts.total,
        trainable=counts.trained,
        param_dtype=work.params,
        frozen_dtype=work.frozen,
        shards=work.shards,
        ema=work.average_on_gpu,
        vae_parameters=counts.autoencoder,
        compute_dtype=work.compute,
    )
    trained = (("gradients", states.gradients), ("Adam's moments", states.moments))
    vae = MemoryItem(name="autoencoder", gpu=states.autoencoder)
    if not work.offloads:
        saved = int(counts.packed * (work.frozen.itemsize - NF4_BYTES))
        listed = (("weights", states.weights - saved), *trained, ("moving average", states.ema))
        return [*(MemoryItem(name=name, gpu=size) for name, size in listed), vae]
    size_of = states.weights // max(1, -(-counts.total // work.shards))
    shares = [-(-size // work.shards) for size in counts.sizes]
    weights = pinned_bytes(shares, max(1, size_of))
    return [
        MemoryItem(name="weights, page-locked", host=max(weights, states.weights)),
        *(MemoryItem(name=name, host=size) for name, size in trained),
        vae,
    ]


def _gathered(work: RankWork) -> list[MemoryItem]:
    """Copies of weights and gradients in the type of the computation."""
    counts, size = work.counts, work.compute.itemsize
    if not work.is_sharded:
        copies = counts.trained * size if work.params != work.compute else 0
        if work.frozen != work.compute:
            copies += (counts.total - counts.trained) * size
        if counts.packed:  # one weight at a time is dequantized
            largest = work.config.llm.hidden_size * work.config.llm.intermediate_size
            copies += largest * size
        return [MemoryItem(name="weights in the type of the computation", gpu=copies)]
    # The layer that computes, the next one, and the root, which stays gathered.
    weights = (2 * counts.layer + counts.root) * size
    gradients = (counts.layer_trained + counts.root_trained) * (size + FULL)
    return [
        MemoryItem(name="gathered weights", gpu=weights),
        MemoryItem(name="gradients before they are reduced", gpu=gradients),
    ]


def _step(work: RankWork) -> list[MemoryItem]:
    config, size = work.config, work.compute.itemsize
    hidden = config.llm.hidden_size
    whole, _ = _layer_bytes(work)
    recomputed = work.tokens * whole if _kept_share(work.parallelism) < 1 else 0
    backward = work.tokens * (3 * config.llm.intermediate_size + 4 * hidden) * size
    logits = min(CHUNK_LOGITS, work.tokens * config.llm.vocab_size)
    head = config.llm.vocab_size * hidden * FULL if work.counts.root_trained else 0
    pixels = MAX_IMAGES * work.image_side**2
    vae = LIVE_FEATURE_MAPS * pixels * config.vae.ch * size
    return [
        MemoryItem(name="activations", gpu=activation_bytes(work)),
        MemoryItem(name="a recomputed layer", gpu=recomputed),
        # The peaks of these three are at different times.
        MemoryItem(
            name="work space (a layer's backward, the text loss, or the autoencoder)",
            gpu=max(backward, logits * (2 * FULL + size) + head, vae),
        ),
        MemoryItem(name="CUDA context, kernels, fragmentation", gpu=GPU_RESERVE),
    ]


def _host(work: RankWork) -> list[MemoryItem]:
    trained = -(-work.counts.trained // work.shards) * work.params.itemsize
    average = -(-work.counts.trained // work.shards) * FULL
    packs = work.num_workers * 2 * work.tokens * PACK_BYTES_PER_TOKEN
    has_average = work.average_on_gpu or work.average_on_host
    copied = 3 * trained + (average if has_average else 0)
    return [
        MemoryItem(name="packs that data workers have ready", host=packs),
        MemoryItem(name="moving average", host=average if work.average_on_host else 0),
        MemoryItem(
            name="copy of a checkpoint while it is written", host=copied if work.async_save else 0
        ),
    ]


def _layer_bytes(work: RankWork) -> tuple[int, int]:
    return layer_activation_bytes(
        work.config,
        work.compute,
        is_compiled=work.parallelism.compile,
        has_adapters=work.counts.layer_trained < work.counts.layer // 2,
    )


def _kept_share(parallelism: Parallelism) -> float:
    """Share of a layer's activations that is kept, beside its input."""
    if parallelism.activation_memory_budget is not None:
        return parallelism.activation_memory_budget
    return {"none": 1.0, "selective": 0.5, "full": 0.0}[parallelism.activation_checkpointing]


def _vit_tokens(work: RankWork) -> int:
    return int(work.tokens * work.vit_share)
