"""Checks of a run's settings before any weights are loaded."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.parts import PARTS

if TYPE_CHECKING:
    from mathcanvas_lightning.training.module import BagelModule

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
REPLACED: Mapping[type[Callback], tuple[str, str]] = {
    StochasticWeightAveraging: (  # it copies the module before the network is built
        "the moving average of this library",
        "Set model.ema, such as {decay: 0.995}",
    ),
    GradientAccumulationScheduler: (  # the data plan whole steps
        "the same number of packs in each step",
        "Set data.packs_per_step",
    ),
}
"""Callback that can't be used -> what is wanted instead, and how to get it."""
METRICS = (
    "epoch",
    "step",
    "lr",
    "data/fill",
    "memory/peak_gib",
    *(f"grad_norm/{part}" for part in PARTS),
    *(f"lr/{part}" for part in PARTS),
    *(f"speed/{name}" for name in ("tokens_per_s", "samples_per_s", "mfu", "data_wait")),
    *(
        f"train/{name}"
        for name in ("loss", "ce", "mse", "ce_tokens", "mse_tokens", "grad_norm", "skipped_steps")
    ),
)
"""Names that a training logs, beside those of its data sets."""
VALIDATION_METRICS = ("ce", "accuracy", "mse")
"""Metrics of each validation set."""


def check_data(config: BagelConfig, data: Any) -> None:
    """Checks that data and network match.

    Args:
        config: Sizes of the network.
        data: The data module; None, or another one, is not checked.

    Raises:
        ConfigError: If the patch sizes or the vocabulary of data and network differ.
    """
    geometry = getattr(data, "geometry", None)
    if geometry is not None and geometry != config.geometry:
        raise ConfigError(
            "data.geometry",
            found=str(geometry),
            wanted=f"the geometry of the network: {config.geometry}",
            remedy="Leave it out on the command line; in Python, pass "
            "BagelConfig.from_directory(checkpoint).geometry.",
        )
    tokenizer = getattr(data, "tokenizer", None)
    if tokenizer is not None and tokenizer.num_ids > config.llm.vocab_size:
        raise ConfigError(
            "data.tokenizer",
            found=f"{tokenizer.num_ids} ids ({tokenizer.folder})",
            wanted=f"at most the {config.llm.vocab_size} ids that the network embeds",
            remedy="Leave it out to use the tokenizer of the network.",
        )


def check_trainer(trainer: Trainer) -> None:
    """Checks options of the Trainer that can't be used.

    Args:
        trainer: The Trainer.

    Raises:
        ConfigError: If its precision or a callback doesn't work with this network.
    """
    if str(trainer.precision) not in PRECISIONS:
        raise ConfigError(
            "trainer.precision",
            found=str(trainer.precision),
            wanted="32-true",
            remedy="Set the number types in the model: model.compute_dtype and model.frozen_dtype "
            "bfloat16, with model.param_dtype float32 as master weights.",
        )
    for callback in _callbacks(trainer):
        for kind, (wanted, remedy) in REPLACED.items():
            if isinstance(callback, kind):
                raise ConfigError(
                    "trainer.callbacks",
                    found=type(callback).__name__,
                    wanted=wanted,
                    remedy=f"{remedy}, and leave the callback out.",
                )


def check_monitors(trainer: Trainer, module: "BagelModule", validation: Sequence[str]) -> None:
    """Checks that the metrics exist by which callbacks choose checkpoints or stop.

    Nothing is checked if a callback or a subclass of the user may log further metrics.

    Args:
        trainer: The Trainer.
        module: The module.
        validation: Names of the validation sets.

    Raises:
        ConfigError: If a metric is never logged.
    """
    known = [*METRICS, *(f"val/{name}/{key}" for name in validation for key in VALIDATION_METRICS)]
    for callback in _callbacks(trainer):
        known += getattr(callback, "metric_names", ())
    own = ("lightning.", "mathcanvas_lightning.")
    if not all(type(o).__module__.startswith(own) for o in (module, *_callbacks(trainer))):
        return
    for callback in (*trainer.checkpoint_callbacks, *_callbacks(trainer)):
        monitor = getattr(callback, "monitor", None)
        of_training = isinstance(monitor, str) and monitor.startswith("train/")
        if monitor is None or monitor in known or (of_training and monitor.count("/") == 2):
            continue
        strict = not isinstance(callback, EarlyStopping) or callback.strict
        if strict:
            raise ConfigError(
                f"{type(callback).__name__}.monitor",
                found=str(monitor),
                wanted=f"one of {', '.join(known)}",
                remedy="Check the name; the metrics of a validation set have its name.",
            )


def _callbacks(trainer: Trainer) -> list[Any]:
    return list(vars(trainer)["callbacks"])
