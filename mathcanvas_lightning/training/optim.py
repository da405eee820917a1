"""AdamW with parameter groups, and the learning rate schedule."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lightning.pytorch import Trainer
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mathcanvas_lightning.errors import ConfigError, check_settings
from mathcanvas_lightning.model.parts import PARTS, part_of

LR, ADAPTER_LR = 1e-5, 1e-4
"""Default learning rates, of weights and of LoRA adapters."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class OptimizerConfig:
    """Settings of AdamW; the defaults are those of the published recipes."""

    lr: float | None = None
    """Peak learning rate; by default 1e-5, or 1e-4 for LoRA adapters."""
    part_lr: Mapping[str, float] = field(default_factory=dict)
    """Peak learning rates of parts that differ: of und, gen, vit, connector, head."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two moments."""
    eps: float = 1e-15
    """Added to the denominator of the update."""
    weight_decay: float = 0.0
    """Weight decay of matrices; norms and biases have none."""
    fused: bool | None = None
    """Use the fused kernel; by default on CUDA and CPU."""

    def __post_init__(self) -> None:
        """Checks the numbers and the parts.

        Raises:
            ConfigError: If a number is out of range, or a part is unknown.
        """
        rates = {"lr": self.lr, **{f"part_lr.{part}": lr for part, lr in self.part_lr.items()}}
        place, decay = "model.optimizer", self.weight_decay
        check_settings(
            *(
                (f"{place}.{name}", lr, lr is None or 0 < lr < float("inf"), "above 0")
                for name, lr in rates.items()
            ),
            (
                f"{place}.betas",
                self.betas,
                all(0 <= b < 1 for b in self.betas),
                "0 or more, below 1",
            ),
            (f"{place}.eps", self.eps, self.eps > 0, "above 0"),
            (f"{place}.weight_decay", decay, decay >= 0, "0 or more"),
            remedy="Leave it out to use the default.",
        )
        if unknown := self.part_lr.keys() - set(PARTS):
            raise ConfigError(
                "model.optimizer.part_lr",
                found=", ".join(sorted(unknown)),
                wanted=f"parts of the network: {', '.join(PARTS)}",
                remedy="Check their spelling.",
            )

    def with_lr(self, *, adapters: bool) -> "OptimizerConfig":
        """The same settings with the default learning rate, if none is set.

        Args:
            adapters: Whether adapters are trained.
        """
        default = ADAPTER_LR if adapters else LR
        return replace(self, lr=default if self.lr is None else self.lr)


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

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: If one is out of range.
        """
        place, end = "model.schedule", self.total_steps
        check_settings(
            (f"{place}.warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "0 or more"),
            (f"{place}.min_lr", self.min_lr, self.min_lr >= 0, "0 or more"),
            (f"{place}.total_steps", end, end is None or end >= 1, "1 or more"),
            remedy="Leave it out to use the default.",
        )


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups trainable parameters: matrices with weight decay, all others without.

    Args:
        model: Any module; a `Bagel`, if some of its parts have their own learning rate.
        config: Settings of AdamW, with a learning rate.

    Returns:
        Parameter groups for an optimizer, without empty ones; those of each part with its own
        learning rate come last.

    Raises:
        ConfigError: If no parameter is trainable, or no parameter of a part that has a learning
            rate.
    """
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError(
            "freeze",
            found="every parameter frozen",
            wanted="at least one trainable parameter",
            remedy="Freeze less, or add lora.",
        )
    parts: dict[str, list[nn.Parameter]] = {"": [], **{part: [] for part in config.part_lr}}
    for name, parameter in trainable:
        part = part_of(name) if config.part_lr else ""
        parts[part if part in parts else ""].append(parameter)
    if empty := [part for part in config.part_lr if not parts[part]]:
        raise ConfigError(
            "model.optimizer.part_lr",
            found=f"{', '.join(empty)}, without trained parameters",
            wanted="parts that are trained",
            remedy="Leave them out, or change freeze or lora.",
        )
    groups = [
        {
            "params": [p for p in members if (p.ndim >= 2) == is_matrix],
            "weight_decay": config.weight_decay if is_matrix else 0.0,
            "lr": config.part_lr.get(part, config.lr),
        }
        for part, members in parts.items()
        for is_matrix in (True, False)
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """Makes AdamW over the trainable parameters of a model.

    Args:
        model: The model; shard it first.
        config: Settings of AdamW, with a learning rate.

    Returns:
        The optimizer.
    """
    assert config.lr is not None
    groups = parameter_groups(model, config)
    has_kernel = all(p.device.type in ("cuda", "cpu") for p in _parameters(groups))
    fused = has_kernel if config.fused is None else config.fused
    return AdamW(
        groups,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=fused,
        foreach=False if not fused else None,  # foreach over sharded tensors leaks on torch 2.12
    )


def apply_settings(
    optimizer: Optimizer, schedule: LambdaLR, model: nn.Module, config: OptimizerConfig
) -> None:
    """Replaces the settings that a checkpoint restored by those of the configuration.

    If they are equal, nothing changes. Otherwise the run continues with the new ones, at the
    position of the schedule that it has reached.

    Args:
        optimizer: The optimizer of `make_optimizer`.
        schedule: Its schedule of `make_schedule`.
        model: The model.
        config: Settings of AdamW, with a learning rate.
    """
    groups = parameter_groups(model, config)
    schedule.base_lrs = [group["lr"] for group in groups]
    for group, new, factor in zip(optimizer.param_groups, groups, schedule.lr_lambdas, strict=True):
        group |= {"betas": config.betas, "eps": config.eps, "weight_decay": new["weight_decay"]}
        group["initial_lr"] = new["lr"]
        group["lr"] = new["lr"] * factor(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]


def part_rates(optimizer: Optimizer, config: OptimizerConfig) -> dict[str, float]:
    """Present learning rates of the parts that have their own one, by the name to log.

    Args:
        optimizer: The optimizer of `make_optimizer`, with a schedule.
        config: Settings of AdamW.
    """
    group = optimizer.param_groups[0]
    factor = float(group["lr"]) / float(group["initial_lr"])
    return {f"lr/{part}": lr * factor for part, lr in config.part_lr.items()}


def make_schedule(optimizer: Optimizer, config: ScheduleConfig, total_steps: int) -> LambdaLR:
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
    scheduler: LambdaLR
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


def require_steps(trainer: Trainer) -> int:
    """Counts the optimizer steps of a run, as `count_steps`.

    Args:
        trainer: A Trainer that starts to fit.

    Returns:
        The number of steps, at least 1.

    Raises:
        ConfigError: If the run has no end.
    """
    steps = count_steps(trainer)
    if steps is None:
        raise ConfigError(
            "schedule.total_steps",
            found="a run of unlimited length",
            wanted="the number of steps",
            remedy="Set trainer.max_steps, trainer.max_epochs or schedule.total_steps.",
        )
    return max(1, steps)


def _parameters(groups: Iterable[dict[str, Any]]) -> Iterable[nn.Parameter]:
    return (parameter for group in groups for parameter in group["params"])
