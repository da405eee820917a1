"""`mathcanvas fit|validate`: LightningCLI over BagelModule and MathCanvasDataModule."""

import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from mathcanvas_lightning.data.datamodule import MathCanvasDataModule
from mathcanvas_lightning.training.module import BagelModule
from mathcanvas_lightning.training.resume import find_checkpoint

SUBCOMMANDS = ("fit", "validate")
AUTO = "auto"


class MathCanvasCLI(LightningCLI):
    """Links model, data and accumulation, and finds the checkpoint to go on from."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what Lightning hasn't."""
        parser.add_argument(
            "--auto_resume",
            type=bool,
            default=True,
            help="Go on from the last whole checkpoint below trainer.default_root_dir, if any.",
        )

    def before_instantiate_classes(self) -> None:
        """Sets the accumulation where the data tells it.

        Raises:
            ConfigError: If it contradicts the data.
        """
        config = self.config[self.subcommand]
        packs = _argument(config, "data", "packs_per_step")
        ranks = _count_ranks(config.trainer)
        if packs and ranks and packs % ranks == 0 and config.trainer.accumulate_grad_batches == 1:
            config.trainer.accumulate_grad_batches = packs // ranks

    def instantiate_classes(self) -> None:
        """Makes model, data and Trainer, and links the first two."""
        super().instantiate_classes()
        if isinstance(self.model, BagelModule) and isinstance(
            self.datamodule, MathCanvasDataModule
        ):
            self.datamodule.use_model(self.model.config.geometry, self.model.source.checkpoint)

    def before_fit(self) -> None:
        """Finds where to go on."""
        config = self.config_init[self.subcommand]
        if config.ckpt_path is None and config.auto_resume:
            config.ckpt_path = find_checkpoint(self.trainer.default_root_dir)


def run_cli(args: Sequence[str]) -> None:
    """Runs `fit` or `validate`.

    Args:
        args: The subcommand and its options.
    """
    MathCanvasCLI(
        BagelModule,
        MathCanvasDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        save_config_callback=SaveConfigCallback,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"reload_dataloaders_every_n_epochs": 1, "use_distributed_sampler": False},
        parser_kwargs={"prog": "mathcanvas"},
        args=None if list(args) == sys.argv[1:] else list(args),
    )


def _argument(config: Any, section: str, name: str) -> Any:
    found = config.get(section)
    init = found.get("init_args", found) if found is not None else {}
    return init.get(name)


def _count_ranks(trainer: Any) -> int | None:
    """Ranks that a Trainer will have, None where it is to find out."""
    if not isinstance(trainer.devices, int | str) or not isinstance(trainer.num_nodes, int):
        return None
    text = str(trainer.devices)
    return int(text) * trainer.num_nodes if text.isdigit() else None
