"""`mathcanvas plan-memory`: the memory of a run on given GPUs, and how to save some."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import check_settings
from mathcanvas_lightning.inspection.batch import instantiate_section, read_sections
from mathcanvas_lightning.model.adapters import LoRASettings
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.layers.basic import without_memory
from mathcanvas_lightning.model.parallelize import is_in_layers, prepare_without_memory
from mathcanvas_lightning.model.vae import count_vae_parameters
from mathcanvas_lightning.training.memory.formulas import (
    Counts,
    MemoryItem,
    RankWork,
    rank_memory,
)
from mathcanvas_lightning.training.module import BagelModule
from mathcanvas_lightning.training.source import FreezeConfig, choose_trainable

FIT = 0.95
"""Share of a GPU's memory that a plan may use."""
MAX_NUM_TOKENS, MAX_WORKERS, GPUS_PER_HOST = 51_200, 8, 8
"""Defaults of the data module and of a host."""
MIN_TOKENS = 4_096
"""Shortest pack that is advised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A change of the configuration that saves memory."""

    change: str
    gpu: int
    """Bytes on a GPU after the change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The memory of a run, as computed."""

    items: tuple[MemoryItem, ...]
    """What one rank holds at the peak of a step."""
    gpus: int
    shards: int
    """Number of GPUs that share one copy of the network."""
    gpu_memory: int
    """Bytes of a GPU."""
    ranks_per_host: int
    advice: tuple[Advice, ...]
    """Changes that save memory, the mildest first; up to the first one that fits."""
    note: str | None
    """Assumption of the plan about the model, if the configuration doesn't set it."""

    @property
    def gpu(self) -> int:
        """Bytes on each GPU."""
        return sum(item.gpu for item in self.items)

    @property
    def host(self) -> int:
        """Bytes in the memory of each host, for all its ranks."""
        return self.ranks_per_host * sum(item.host for item in self.items)

    @property
    def fits(self) -> bool:
        """Whether the run fits on the GPUs."""
        return self.gpu <= FIT * self.gpu_memory


def plan_memory(
    config: Sequence[str],
    *,
    gpus: int | None = None,
    gpu_memory_gb: float = 80.0,
    preset: str | None = None,
    image_side: int = 512,
    vit_share: float = 0.4,
) -> MemoryPlan:
    """Computes the memory that a run needs on each GPU and host, without loading anything.

    Args:
        config: YAML files of the run; later files override earlier ones.
        gpus: Number of GPUs; by default that of the section trainer.
        gpu_memory_gb: Memory of a GPU, in GB (10^9 bytes).
        preset: Size of the network (tiny, small, 7b); by default that of the section model, or 7b
            if its checkpoint is not on this machine.
        image_side: Side of the largest pictures, in pixels.
        vit_share: Share of a pack's tokens that are ViT patches, 0 to 1.

    Returns:
        The plan.

    Raises:
        ConfigError: If a file can't be read, or an option is out of range.
    """
    _check_options(gpus, gpu_memory_gb, vit_share)
    trainer = read_sections(config, "trainer")
    module, note = _read_module(config, preset)
    devices = trainer.get("devices", 1)
    per_host = devices if isinstance(devices, int) and devices > 0 else 1
    count = gpus or per_host * int(trainer.get("num_nodes", 1))
    work = _make_work(module, trainer, read_sections(config, "data"), count)
    work = replace(work, image_side=image_side, vit_share=vit_share)
    memory = int(gpu_memory_gb * 1e9)
    items = tuple(rank_memory(work))
    return MemoryPlan(
        items=items,
        gpus=count,
        shards=work.shards,
        gpu_memory=memory,
        ranks_per_host=min(count, per_host) if gpus is None else min(count, GPUS_PER_HOST),
        advice=tuple(_advice(work, memory, count)),
        note=note,
    )


def _read_module(config: Sequence[str], preset: str | None) -> tuple[BagelModule, str | None]:
    arguments = read_sections(config, "model")
    source = dict(arguments.get("source") or {})
    checkpoint, note = source.get("checkpoint"), None
    if preset is None and checkpoint and not local_path(checkpoint).exists():
        preset, note = "7b", f"no checkpoint {checkpoint} here: computed with the published sizes"
    if preset is not None:
        overrides = source.get("overrides", {}) if not checkpoint else {}
        source = {"preset": preset, "overrides": overrides}
    arguments = {**arguments, "source": source}
    module: BagelModule = instantiate_section(BagelModule, arguments, "model", config)[0]
    return module, note


def _make_work(
    module: BagelModule, trainer: Mapping[str, Any], data: Mapping[str, Any], gpus: int
) -> RankWork:
    strategy = trainer.get("strategy")
    options = strategy.get("init_args", {}) if isinstance(strategy, Mapping) else {}
    is_sharded = isinstance(strategy, Mapping) and "Sharded" in strategy.get("class_path", "")
    replicas = min(gpus, int(options.get("replicas", 1)))
    precision, average = module.precision, module.ema_config
    with without_memory():
        model = Bagel(module.config)
    on_host = average is not None and (average.on_cpu or module.parallelism.cpu_offload)
    workers = (data.get("workers") or {}).get("num_workers")
    return RankWork(
        config=module.config,
        counts=count_network(
            model,
            lambda m: choose_trainable(m, module.freeze_config, module.lora),
            quantized=precision.quantized,
        ),
        parallelism=module.parallelism,
        params=precision.params,
        frozen=precision.frozen or precision.params,
        compute=precision.compute,
        shards=gpus // replicas if is_sharded else 1,
        is_sharded=is_sharded,
        average_on_gpu=average is not None and not on_host,
        average_on_host=on_host,
        tokens=int(data.get("max_num_tokens", MAX_NUM_TOKENS)),
        num_workers=MAX_WORKERS if workers is None else int(workers),
        async_save=bool(options.get("async_save", False)),
    )


def count_network(
    model: Bagel, prepare: Callable[[Bagel], None], *, quantized: bool = False
) -> Counts:
    """Counts the parameters of a network on "meta", without allocating them.

    Args:
        model: The network; it gets adapters or frozen parts.
        prepare: Freezes parameters or adds adapters.
        quantized: Whether the frozen linear layers are stored in NF4.
    """
    prepare_without_memory(model, prepare)
    packed = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if is_in_layers(name) and parameter.ndim == 2 and not parameter.requires_grad
    )
    stacks = [_count(layer) for layer in model.layers()]
    total, trained = _count(model)
    return Counts(
        total=total,
        trained=trained,
        layer=stacks[-1][0],
        layer_trained=stacks[-1][1],
        root=total - sum(number for number, _ in stacks),
        root_trained=trained - sum(number for _, number in stacks),
        autoencoder=count_vae_parameters(model.config.vae),
        sizes=tuple(parameter.numel() for parameter in model.parameters()),
        packed=packed if quantized else 0,
    )


def _count(module: nn.Module) -> tuple[int, int]:
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)


def _advice(work: RankWork, memory: int, gpus: int) -> Iterator[Advice]:
    """Changes one after the other, each on top of those before, until the run fits."""
    if _gpu_bytes(work) <= FIT * memory:
        return
    for change, changed in _changes(work, gpus):
        size = _gpu_bytes(changed)
        if size < _gpu_bytes(work):
            yield Advice(change=change, gpu=size)
            if size <= FIT * memory:
                return
            work = changed


def _changes(work: RankWork, gpus: int) -> Iterator[tuple[str, RankWork]]:
    """Changes of a configuration, the mildest first, each on top of those before."""
    if work.parallelism.activation_memory_budget is None:
        full = replace(work.parallelism, activation_checkpointing="full")
        text = "model.parallelism.activation_checkpointing: full"
    else:
        full = replace(work.parallelism, activation_memory_budget=0.0)
        text = "model.parallelism.activation_memory_budget: 0"
    work = replace(work, parallelism=full)
    yield text, work
    if not work.is_sharded or work.shards < gpus:
        work = replace(work, is_sharded=True, shards=gpus)
        if gpus > 1:
            yield "trainer.strategy: ShardedStrategy with replicas 1", work
    tokens = work.tokens
    while tokens // 2 >= MIN_TOKENS:
        tokens //= 2
        yield f"data.max_num_tokens: {tokens:,}", replace(work, tokens=tokens)
    work = replace(work, tokens=min(work.tokens, max(tokens, MIN_TOKENS)))
    if work.average_on_gpu:
        work = replace(work, average_on_gpu=False, average_on_host=True)
        yield "model.ema.on_cpu: true", work
    if work.counts.trained > work.counts.total // 10:
        yield "model.lora: {parts: [und, gen], rank: 16}", (work := _with_adapters(work))
    if not work.counts.packed and gpus == 1:
        packed = replace(work.counts, packed=_frozen_in_layers(work.counts))
        yield (
            "model.frozen_dtype: nf4, with trainer.strategy: auto",
            replace(work, counts=packed, is_sharded=False),
        )
    offloaded = replace(work.parallelism, cpu_offload=True)
    yield (
        "model.parallelism.cpu_offload: true, with ShardedStrategy",
        replace(work, is_sharded=True, parallelism=offloaded),
    )


def _frozen_in_layers(counts: Counts) -> int:
    return counts.total - counts.root - (counts.trained - counts.root_trained)


def _with_adapters(work: RankWork) -> RankWork:
    with without_memory():
        model = Bagel(work.config)
    lora = LoRASettings(parts=("und", "gen"), rank=16)
    counts = count_network(model, lambda m: choose_trainable(m, FreezeConfig(), lora))
    return replace(work, counts=counts, frozen=work.compute)


def _gpu_bytes(work: RankWork) -> int:
    return sum(item.gpu for item in rank_memory(work))


def _check_options(gpus: int | None, gpu_memory_gb: float, vit_share: float) -> None:
    check_settings(
        ("--gpus", gpus, gpus is None or gpus >= 1, "1 or more"),
        ("--gpu_memory_gb", gpu_memory_gb, 0 < gpu_memory_gb < float("inf"), "above 0"),
        ("--vit_share", vit_share, 0 <= vit_share <= 1, "from 0 to 1"),
        remedy="Choose another value.",
    )
