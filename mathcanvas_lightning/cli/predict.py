"""`mathcanvas predict`: LightningCLI over GenerationModule and RecordDataModule, or any others."""

import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from mathcanvas_lightning.common.distributed import leave_process_group_at_exit
from mathcanvas_lightning.generation.run.module import (
    QUIET_TRAINER,
    GenerationModule,
    callbacks_of,
    ending_on,
)
from mathcanvas_lightning.generation.run.monitor import GenerationProgress
from mathcanvas_lightning.generation.run.reasoning_folders import ReasoningFolders
from mathcanvas_lightning.generation.run.report import PredictionReport
from mathcanvas_lightning.generation.run.writer import ResponseWriter

_SECTIONS: Mapping[str, type[Callback]] = {
    "folders": ReasoningFolders,
    "writer": ResponseWriter,
    "progress": GenerationProgress,
}
"""Callbacks of a run with a GenerationModule, by the section that sets them; null: without."""


class PredictCLI(LightningCLI):
    """Adds writers and a progress bar to runs with a GenerationModule."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the sections of the callbacks.

        Args:
            parser: Of the subcommand.
        """
        for name, kind in _SECTIONS.items():
            parser.add_subclass_arguments(kind, name, required=False, fail_untyped=False)
            parser.set_defaults({name: {"class_path": f"{kind.__module__}.{kind.__name__}"}})

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the Trainer.

        Args:
            kwargs: Arguments of the Trainer that win over the configuration.

        Returns:
            The Trainer, with the callbacks that aren't left out.
        """
        config = self.config_init[self.subcommand]
        listed = kwargs.get("callbacks", config.trainer.callbacks) or []
        callbacks = list(listed) if isinstance(listed, Sequence) else [listed]
        if isinstance(self.model, GenerationModule):
            present = {type(callback) for callback in callbacks}
            found = [config.get(name) for name in _SECTIONS]
            callbacks += [c for c in found if c is not None and type(c) not in present]
        return super().instantiate_trainer(**{**kwargs, "callbacks": callbacks})

    def before_predict(self) -> None:
        """Keeps responses out of memory: the writer has them."""
        if isinstance(self.model, GenerationModule):
            self.config_init[self.subcommand].return_predictions = False


def run_predict(args: Sequence[str]) -> PredictionReport | None:
    """Runs `predict` with any module and data module.

    Args:
        args: `predict` and its options.

    Returns:
        What became of the run, where a ResponseWriter tells it: on rank 0.
    """
    with ending_on(signal.SIGINT, signal.SIGTERM):
        return find_report(_run(args).trainer)


def _run(args: Sequence[str]) -> PredictCLI:
    leave_process_group_at_exit()
    return PredictCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        save_config_callback=None,
        trainer_defaults={**QUIET_TRAINER, "use_distributed_sampler": False},
        parser_kwargs={"prog": "mathcanvas"},
        args=None if list(args) == sys.argv[1:] else list(args),
    )


def find_report(trainer: Trainer) -> PredictionReport | None:
    """What the ResponseWriter of a Trainer, if it has one, says of the run."""
    writers = [c for c in callbacks_of(trainer) if isinstance(c, ResponseWriter)]
    return writers[0].report if writers else None
