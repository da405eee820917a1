"""The record of a run, from its module, its Trainer and its data."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.data.loading.config import trained_images
from mathcanvas_lightning.training.checkpoint.record import RunRecord, flat_settings

if TYPE_CHECKING:
    from mathcanvas_lightning.training.module import BagelModule


def make_record(module: "BagelModule") -> RunRecord:
    """Makes the record of a run.

    Before the network is built, the record lacks the names of the weights that are left out.

    Args:
        module: The module; its Trainer is used if it has one.
    """
    freeze = {name: bool(value) for name, value in vars(module.freeze_config).items()}
    start = module.source.checkpoint
    has_frozen = module.lora is not None or any(freeze.values())
    return RunRecord(
        config=replace(
            module.config if module.model is None else module.model.config,
            drawing_size=module.drawing_size,
            trained_images=_trained_images(module),
        ),
        checkpoint=None if start is None else str(local_path(start).absolute()),
        lora=module.lora,
        ema_decay=None if module.ema_config is None else module.ema_config.decay,
        freeze=freeze,
        seed=module.source.initial_seed,
        left_out=module.left_out,
        weights_digest=module.source.digest() if has_frozen else None,
        settings=_settings(module),
    )


def _trained_images(module: "BagelModule") -> Mapping[str, Any] | None:
    """The image sizes of the training data; without such data those of the initial weights."""
    data = getattr(module._trainer, "datamodule", None)
    sets = getattr(data, "train_configs", ())
    if not sets:
        return module.config.trained_images
    settings = getattr(data, "settings", None)
    interpolate = bool(getattr(settings, "interpolate_positions", False))
    return trained_images(sets, interpolate_positions=interpolate).to_json()


def _settings(module: "BagelModule") -> dict[str, Any]:
    """Key in the YAML -> value, of settings that may change when a run is resumed."""
    model: dict[str, Any] = {
        "optimizer": asdict(module.optimizer_config),
        "schedule": asdict(module.schedule_config),
        "loss": asdict(module.loss_config),
        "source": {"checkpoint": module.source.checkpoint},
        **asdict(module.numeric),
    }
    if module.lora is not None:
        model["lora"] = {"dropout": module.lora.dropout}
    if module.ema_config is not None:
        model["ema"] = {"decay": module.ema_config.decay}
    trainer: Any = module._trainer
    if trainer is None:
        return flat_settings({"model": model})
    data = getattr(trainer, "datamodule", None)
    return flat_settings(
        {
            "model": model,
            "data": {"packs_per_step": _packs_per_step(trainer, data)},
            "trainer": {
                "max_steps": trainer.max_steps,
                "max_epochs": _max_epochs(trainer),
                "precision": str(trainer.precision),
                "gradient_clip_val": trainer.gradient_clip_val,
                "ranks": trainer.world_size,
            },
        }
    )


def _packs_per_step(trainer: Any, data: Any) -> int:
    given = getattr(data, "packs_per_step", None)
    return int(given or trainer.world_size * trainer.accumulate_grad_batches)


def _max_epochs(trainer: Any) -> int:
    """The limit of epochs, also before a fit, which sets Lightning's default."""
    if trainer.max_epochs is not None:
        return int(trainer.max_epochs)
    return 1000 if trainer.max_steps == -1 else -1
