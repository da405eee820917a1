"""AdamW with parameter groups, and the learning rate schedule."""

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
    """Settings of AdamW; the defaults are those of the published recipes."""

    lr: float = 1e-5
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two moments."""
    eps: float = 1e-15
    """Added to the denominator of the update."""
    weight_decay: float = 0.0
    """Weight decay of matrices; norms and biases have none."""
    fused: bool | None = None
    """Use the fused kernel; by default on CUDA only."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class ScheduleConfig:
    """Learning rate schedule: linear warm-up, then cosine or constant."""

    name: Literal["cosine", "constant"] = "cosine"
    """Curve after the warm-up."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up from 0 to the peak rate."""
    min_lr: float = 1e-7
    """Learning rate at the end of the cosine."""
    total_steps: int | None = None
    """Optimizer step at which the cosine ends; by default the last step of the run."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups trainable parameters: matrices with weight decay, all others without.

    Args:
        model: Any module.
        weight_decay: Weight decay of the matrices.

    Returns:
        Parameter groups for an optimizer, without empty ones.

    Raises:
        ConfigError: If no parameter is trainable.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError(
            "freeze",
            found="every parameter frozen",
            wanted="at least one trainable parameter",
            remedy="Freeze less, or add lora.",
        )
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """Makes AdamW over the trainable parameters of a model.

    Args:
        model: The model; shard it first.
        config: Settings of AdamW.

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
    """Makes the learning rate scheduler, to be stepped once per optimizer step.

    Args:
        optimizer: The optimizer.
        config: Settings of the schedule.
        total_steps: Optimizer steps of the run.

    Returns:
        The scheduler.

    Raises:
        ConfigError: If the warm-up is longer than the run.
    """
    from transformers.optimization import (  # slow to import
        get_constant_schedule_with_warmup,
        get_cosine_with_min_lr_schedule_with_warmup,
    )

    end = config.total_steps or total_steps
    if config.warmup_steps > end:
        raise ConfigError(
            "schedule.warmup_steps",
            found=f"{config.warmup_steps}, with {end} steps in total",
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
    """Counts the optimizer steps of a run.

    Args:
        trainer: A Trainer that starts to fit.

    Returns:
        The number of steps; None if the run has no end, or its data has no known length.
    """
    if trainer.max_steps >= 0:
        return int(trainer.max_steps)
    data: Any = getattr(trainer, "datamodule", None)
    if trainer.max_epochs in (None, -1) or not hasattr(data, "total_steps"):
        return None
    return int(data.total_steps(trainer.max_epochs))


def _parameters(groups: Iterable[dict[str, Any]]) -> Iterable[nn.Parameter]:
    return (parameter for group in groups for parameter in group["params"])
