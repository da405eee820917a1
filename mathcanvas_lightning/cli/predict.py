"""`mathcanvas predict`: a LightningCLI for any module and data module.

Usually these are GenerationModule and RecordDataModule.
"""

import signal
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from mathcanvas_lightning.cli.settings.errors import OneLineCLI
from mathcanvas_lightning.cli.settings.run_model import run_settings
from mathcanvas_lightning.common.exits import exit_on_signals, leave_process_group_at_exit
from mathcanvas_lightning.generation.backends.secrets import shown_command
from mathcanvas_lightning.generation.run.module import (
    QUIET_TRAINER,
    GenerationModule,
    callbacks_of,
)
from mathcanvas_lightning.generation.run.monitor import GenerationProgress, GenerationSummary
from mathcanvas_lightning.generation.run.reasoning_folders import ReasoningFolders
from mathcanvas_lightning.generation.run.summary import PredictionReport
from mathcanvas_lightning.generation.run.writer import ResponseWriter

_SECTIONS: Mapping[str, type[Callback]] = {
    "folders": ReasoningFolders,
    "writer": ResponseWriter,
    "progress": GenerationProgress,
    "totals": GenerationSummary,
}
"""Section of the YAML file -> callback for runs with a GenerationModule; null turns it off."""


class PredictCLI(OneLineCLI):
    """A LightningCLI that adds writers and a progress bar to runs with a GenerationModule.

    Args:
        arguments: Arguments of LightningCLI.
        command: The command as it was typed, for the journal.
        options: Further arguments of LightningCLI.
    """

    def __init__(self, *arguments: Any, command: str | None = None, **options: Any) -> None:
        self._command = command
        super().__init__(*arguments, **options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds a section for each callback.

        Args:
            parser: Parser of the subcommand.
        """
        for name, kind in _SECTIONS.items():
            parser.add_subclass_arguments(kind, name, required=False, fail_untyped=False)
            parser.set_defaults({name: {"class_path": f"{kind.__module__}.{kind.__name__}"}})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The command of this CLI and the arguments of the Trainer's method to leave out."""
        return {"predict": LightningCLI.subcommands()["predict"]}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the Trainer.

        Args:
            kwargs: Arguments of the Trainer that override the configuration.

        Returns:
            The Trainer, with all callbacks that are not turned off.
        """
        config = self.config_init[self.subcommand]
        listed = kwargs.get("callbacks", config.trainer.callbacks) or []
        callbacks = list(listed) if isinstance(listed, Sequence) else [listed]
        if isinstance(self.model, GenerationModule):
            present = {type(callback) for callback in callbacks}
            found = [config.get(name) for name in _SECTIONS]
            callbacks += [c for c in found if c is not None and type(c) not in present]
        for writer in callbacks:
            if isinstance(writer, ResponseWriter):
                writer.command = self._command
        return super().instantiate_trainer(**{**kwargs, "callbacks": callbacks})

    def before_predict(self) -> None:
        """Discards the responses that the loop returns, because the writer has stored them."""
        if isinstance(self.model, GenerationModule):
            self.config_init[self.subcommand].return_predictions = False


def run_predict(args: Sequence[str]) -> PredictionReport | None:
    """Runs `predict` with any module and data module.

    Args:
        args: `predict` and its options.

    Returns:
        Counts of the ResponseWriter, if there is one, on rank 0.
    """
    with exit_on_signals(signal.SIGINT, signal.SIGTERM):
        return find_report(_run(args).trainer)


def _run(args: Sequence[str]) -> PredictCLI:
    leave_process_group_at_exit()
    with run_settings(args) as given:
        return _cli(given, shown_command(["mathcanvas", *args]))


def _cli(args: Sequence[str], command: str) -> PredictCLI:
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
        args=list(args),
        command=command,
    )


def find_report(trainer: Trainer) -> PredictionReport | None:
    """The report of the Trainer's ResponseWriter, if it has one."""
    writers = [c for c in callbacks_of(trainer) if isinstance(c, ResponseWriter)]
    return writers[0].report if writers else None
