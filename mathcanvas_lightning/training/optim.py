"""AdamW with its parameter groups, the steps of a run, and the learning rate over them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import Trainer
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mathcanvas_lightning.errors import ConfigError


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class OptimizerConfig:
    """AdamW; defaults are those of the published recipes."""

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-15
    weight_decay: float = 0.0
    """Of matrices; norms and biases never decay."""
    fused: bool | None = None
    """One kernel for all parameters; by default where CUDA has it."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class ScheduleConfig:
    """The learning rate: linear warm-up, then a curve."""

    name: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    """Optimizer steps from 0 to the full rate."""
    min_lr: float = 1e-7
    """Where the cosine ends."""
    total_steps: int | None = None
    """Where it ends; the steps of the run by default."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters, matrices with decay and all else without.

    Args:
        model: Any module.
        weight_decay: Of the matrices.

    Returns:
        Groups for an optimizer; empty ones are left out.

    Raises:
        ConfigError: If nothing is trainable.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError(
            "freeze",
            found="every parameter frozen",
            wanted="something to train",
            remedy="Freeze less, or add lora.",
        )
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW over a model's trainable parameters.

    Args:
        model: Sharded already, if it is to be.
        config: Its settings.

    Returns:
        The optimizer.
    """
    groups = parameter_groups(model, config.weight_decay)
    on_cuda = all(p.device.type == "cuda" for p in _parameters(groups))
    fused = on_cuda if config.fused is None else config.fused
    return AdamW(
        groups,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=fused,
        foreach=False if not fused else None,  # foreach over sharded tensors leaks on torch 2.12
    )


def make_schedule(optimizer: Optimizer, config: ScheduleConfig, total_steps: int) -> LRScheduler:
    """The learning rate as a scheduler that is stepped once an optimizer step.

    Args:
        optimizer: Whose rate it is.
        config: Its settings.
        total_steps: Of the run.

    Returns:
        The scheduler.

    Raises:
        ConfigError: If the warm-up is longer than the run.
    """
    from transformers.optimization import (  # takes a second to import
        get_constant_schedule_with_warmup,
        get_cosine_with_min_lr_schedule_with_warmup,
    )

    end = config.total_steps or total_steps
    if config.warmup_steps > end:
        raise ConfigError(
            "schedule.warmup_steps",
            found=f"{config.warmup_steps}, with {end} steps in all",
            wanted=f"at most {end}",
            remedy="Shorten it, or train longer.",
        )
    scheduler: LRScheduler
    if config.name == "constant":
        scheduler = get_constant_schedule_with_warmup(optimizer, config.warmup_steps)
    else:
        scheduler = get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, config.warmup_steps, end, min_lr=config.min_lr
        )
    return scheduler


def count_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of a run, from its first to its last.

    Args:
        trainer: At the start of its fit.

    Returns:
        Their number; None where a run has no end, or its data can't tell.
    """
    if trainer.max_steps >= 0:
        return int(trainer.max_steps)
    data: Any = getattr(trainer, "datamodule", None)
    if trainer.max_epochs in (None, -1) or not hasattr(data, "total_steps"):
        return None
    return int(data.total_steps(trainer.max_epochs))


def _parameters(groups: Iterable[dict[str, Any]]) -> Iterable[nn.Parameter]:
    return (parameter for group in groups for parameter in group["params"])
