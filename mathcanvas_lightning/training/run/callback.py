"""Keeps the files of a run up to date while it trains."""

from lightning.pytorch import Callback, LightningModule, Trainer

from mathcanvas_lightning.training.run.logger import RunLogger


class RunFiles(Callback):
    """Continues the metrics of a run where it resumes."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Removes the metrics of steps that are done again."""
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.resume_at(trainer.global_step)
