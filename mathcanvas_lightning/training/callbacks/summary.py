"""Summary at the start of a run: parameters, devices, data, schedule, memory; first packs."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mathcanvas_lightning.common.display.short import counted
from mathcanvas_lightning.data.datamodule import MathCanvasDataModule
from mathcanvas_lightning.data.loading.packed_data import PackedData
from mathcanvas_lightning.inspection.pack_table import describe_pack, print_blocks
from mathcanvas_lightning.model.adapters import PartParameters, parameter_report
from mathcanvas_lightning.model.vae import count_vae_parameters
from mathcanvas_lightning.training.callbacks.ema import EMAWeights
from mathcanvas_lightning.training.memory.formulas import memory_estimate
from mathcanvas_lightning.training.module import BagelModule
from mathcanvas_lightning.training.optim import count_steps
from mathcanvas_lightning.training.strategy import device_mesh


class StartSummary(Callback):
    """Prints a summary at the start of a fit, on rank zero."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the summary."""
        if not trainer.is_global_zero or not isinstance(pl_module, BagelModule):
            return
        console = Console()
        console.print(parameters_table(parameter_report(pl_module.network)))
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for what, how in describe_run(trainer, pl_module):
            table.add_row(what, escape(how))
        console.print(table)


class DebugBatches(Callback):
    """Prints the first packs of a run before it starts, as `mathcanvas inspect-batch` does.

    Args:
        count: Number of packs, starting at the first step of the first epoch.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Prints the packs."""
        data: Any = getattr(trainer, "datamodule", None)
        if not trainer.is_global_zero or not isinstance(data, MathCanvasDataModule):
            return
        console = Console()
        schedule = data.schedule(0)
        slots = schedule.packs_per_step
        for number in range(min(self.count, schedule.num_steps * slots)):
            step, slot = divmod(number, slots)
            batch = data.micro_batch(0, schedule, step, slot)
            blocks = describe_pack(batch.pack, data.tokenizer.decode)
            console.print(f"Epoch 0, step {step}, pack {slot} of {slots}:")
            print_blocks(console, blocks, [sample.uid for sample in batch.samples])


def parameters_table(report: list[PartParameters]) -> Table:
    """Makes a table of the parameters by part.

    Args:
        report: Counts of `parameter_report`.

    Returns:
        The table.
    """
    table = Table("part", "parameters", "trained", "", title="What is trained")
    for column in table.columns[1:3]:
        column.justify = "right"
    for entry in report:
        if entry.part == "total":
            table.add_section()
        share = {0: "frozen", entry.total: ""}.get(
            entry.trainable, f"{entry.trainable / max(1, entry.total):.2%}"
        )
        table.add_row(escape(entry.part), f"{entry.total:,}", f"{entry.trainable:,}", share)
    return table


def describe_run(trainer: Trainer, module: BagelModule) -> Iterator[tuple[str, str]]:
    """Describes a run as text.

    Args:
        trainer: A Trainer that starts to fit.
        module: The configured module.

    Yields:
        Names and descriptions.
    """
    yield "weights", _source(module, trainer)
    yield (
        "number types",
        f"parameters {_types(module)}, computing in {_name(module.compute_dtype)}"
        + (", products of the decoder in float8" if module.precision.float8 else ""),
    )
    replicas, shards = mesh_sizes(trainer)
    yield "devices", _devices(trainer, replicas, shards)
    yield "attention", _recomputation(module)
    data: Any = getattr(trainer, "datamodule", None)
    if isinstance(data, MathCanvasDataModule):
        yield from _describe_data(trainer, data)
    yield "learning rate", _schedule(trainer, module)
    yield "memory per rank", _memory(module, shards)


def mesh_sizes(trainer: Trainer) -> tuple[int, int]:
    """Returns the number of replicas of the network, and of ranks that share one.

    Args:
        trainer: A Trainer whose strategy is set up.

    Returns:
        (replicas, shards). Without a mesh every rank has a complete network.
    """
    mesh = device_mesh(trainer.strategy)
    if mesh is None:
        return trainer.world_size, 1
    return int(mesh["replicate"].size()), int(mesh["shard"].size())


def _source(module: BagelModule, trainer: Trainer) -> str:
    source = module.source
    found = source.checkpoint or f"preset {source.preset}, random with seed {source.initial_seed}"
    changed = "".join(f", {name} {value}" for name, value in source.overrides.items())
    lora = module.lora
    adapters = (
        ""
        if lora is None
        else f"; LoRA of rank {lora.rank}, alpha {lora.alpha:g} on {', '.join(lora.parts)}"
    )
    resumed = f"; resumed from {trainer.ckpt_path}" if trainer.ckpt_path else ""
    return f"{found}{changed}{adapters}{resumed}"


def _types(module: BagelModule) -> str:
    frozen = module.precision.frozen or module.param_dtype
    is_same = frozen == module.param_dtype and not module.precision.quantized
    if is_same or not module.left_out:
        return _name(module.param_dtype)
    kind = "nf4" if module.precision.quantized else _name(frozen)
    return f"{_name(module.param_dtype)}, frozen ones {kind}"


def _devices(trainer: Trainer, replicas: int, shards: int) -> str:
    kind = trainer.strategy.root_device.type
    if trainer.world_size == 1:
        return f"one, {kind}"
    how = f"{replicas} x {shards}" if shards > 1 else f"{replicas} complete networks"
    explained = f" (replicas x shards, {trainer.num_nodes} machines)" if shards > 1 else ""
    return f"{trainer.world_size}, {kind}: {how}{explained}"


def _recomputation(module: BagelModule) -> str:
    parallelism = module.parallelism
    path = module.network.attention_path or "chosen by device"
    compiled = "compiled layers" if parallelism.compile else "layers not compiled"
    return f"{path}; activation checkpointing {parallelism.activation_checkpointing}; {compiled}"


def _describe_data(trainer: Trainer, data: MathCanvasDataModule) -> Iterator[tuple[str, str]]:
    ranks, accumulate = trainer.world_size, trainer.accumulate_grad_batches
    packs = data.position.packs_per_step
    yield "packs per step", f"{packs}: ranks {ranks} x accumulated {accumulate}"
    plan = data.plan
    planned, schedule = plan.epoch(0), plan.schedule(0, packs)
    yield (
        "an epoch",
        f"{len(planned.rows):,} samples in {planned.num_packs:,} packs of "
        f"{planned.capacity:,} tokens, {planned.fill:.1%} full; {schedule.num_steps:,} steps, "
        f"{counted(schedule.num_fillers, 'filler')}",
    )
    yield "total steps", _length(trainer, schedule.num_steps)
    yield "training data", "; ".join(_datasets(data.train_data))
    if data.validation_data:
        texts = [text for each in data.validation_data for text in _datasets(each)]
        yield "validation data", "; ".join(texts)


def _length(trainer: Trainer, steps_per_epoch: int) -> str:
    steps = count_steps(trainer)
    if steps is None:
        return "unlimited"
    # Epochs differ by a few steps, so a number of epochs that was set is not computed from steps.
    epochs = trainer.max_epochs if trainer.max_steps < 0 else f"{steps / steps_per_epoch:.2f}"
    return f"{steps:,}: {epochs} epochs"


def _datasets(data: PackedData) -> Iterator[str]:
    for loaded in data.datasets:
        left_out = f", {len(loaded.left_out):,} left out" if loaded.left_out else ""
        weight = f", weight {loaded.config.weight:g}" if loaded.config.weight is not None else ""
        yield f"{loaded.config.label}: {len(loaded.rows):,} rows{left_out}{weight}"


def _schedule(trainer: Trainer, module: BagelModule) -> str:
    schedule, lr = module.schedule_config, module.optimizer_config.lr
    warmup = f"{schedule.warmup_steps} steps of warm-up to " if schedule.warmup_steps else ""
    if schedule.name == "constant":
        return f"{warmup}{lr:g}, then constant" if warmup else f"{lr:g}, constant"
    end = schedule.total_steps or count_steps(trainer)
    return f"{warmup}{lr:g}, cosine to {schedule.min_lr:g} at step {end or 0:,}"


def _memory(module: BagelModule, shards: int) -> str:
    total = parameter_report(module.network)[-1]
    estimate = memory_estimate(
        parameters=total.total,
        trainable=total.trainable,
        param_dtype=module.param_dtype,
        frozen_dtype=module.precision.frozen,
        shards=shards,
        ema=has_average(module),
        vae_parameters=count_vae_parameters(module.config.vae),
        compute_dtype=module.compute_dtype,
    )
    parts = {
        "weights": estimate.weights,
        "gradients": estimate.gradients,
        "Adam": estimate.moments,
        "average": estimate.ema,
        "autoencoder": estimate.autoencoder,
    }
    listed = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size)
    where = " (in host memory)" if module.parallelism.cpu_offload else ""
    return f"{_gib(estimate.total)} GiB{where} without activations: {listed}"


def has_average(module: LightningModule) -> bool:
    """Whether there are averages of the weights on the same device as the weights."""
    return any(isinstance(m, EMAWeights) and not m.config.on_cpu for m in module.modules())


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f}" if size >= 2**30 / 100 else f"{size / 2**30:.2g}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
