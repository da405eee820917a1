"""`mathcanvas fit|validate`: LightningCLI over BagelModule and MathCanvasDataModule."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse.typing import NonNegativeInt
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from mathcanvas_lightning.common.distributed import leave_process_group_at_exit
from mathcanvas_lightning.common.parallel import start_from_a_server
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.data.datamodule import MathCanvasDataModule
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.training.callbacks.monitor import ThroughputMonitor
from mathcanvas_lightning.training.callbacks.pictures import PictureLogger
from mathcanvas_lightning.training.callbacks.stopping import StopOnSignal
from mathcanvas_lightning.training.callbacks.summary import DebugBatches, StartSummary
from mathcanvas_lightning.training.callbacks.totals import EndSummary, ProgressLines
from mathcanvas_lightning.training.checkpoint.reading import read_about, require_readable
from mathcanvas_lightning.training.checkpoint.resume import checkpoint_places, find_checkpoint
from mathcanvas_lightning.training.module import BagelModule
from mathcanvas_lightning.training.strategy import ShardedStrategy, save_atomically

MONITORS: Mapping[str, type[Callback]] = {
    "summary": StartSummary,
    "throughput": ThroughputMonitor,
    "pictures": PictureLogger,
    "totals": EndSummary,
    "progress": ProgressLines,
}
"""Config section -> callback of every run; a section set to null removes its callback."""


class MathCanvasCLI(LightningCLI):
    """Links model, data and accumulation, and finds the checkpoint to resume from."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds options and the sections of the callbacks."""
        parser.add_argument(
            "--auto_resume",
            type=bool | str,
            default=True,
            help="Resume from the last complete checkpoint of this run, if any: where its "
            "ModelCheckpoint writes. Or a folder: resume from the last one below it.",
        )
        parser.add_argument(
            "--debug_batches",
            type=NonNegativeInt,
            default=0,
            help="Number of packs to show before training starts.",
        )
        for name, kind in MONITORS.items():
            parser.add_subclass_arguments(kind, name, required=False, fail_untyped=False)
            parser.set_defaults({name: {"class_path": f"{kind.__module__}.{kind.__name__}"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Reads the configuration.

        Args:
            parser: The parser.
            args: The arguments.

        Raises:
            ConfigError: If the seed is out of range.
        """
        super().parse_arguments(parser, args)
        seed = self.config[self.config.subcommand].seed_everything
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise ConfigError(
                "seed_everything",
                found=str(seed),
                wanted="0 or more, below 2^32",
                remedy="Choose another seed.",
            )

    def before_instantiate_classes(self) -> None:
        """Fills in what follows from other settings: seeds, and the accumulation.

        The accumulation follows from data.packs_per_step and the number of ranks.
        """
        config = self.config[self.subcommand]
        _use_one_seed(config)
        packs = _argument(config, "data", "packs_per_step")
        ranks = _count_ranks(config.trainer)
        if packs and ranks and packs % ranks == 0 and config.trainer.accumulate_grad_batches == 1:
            config.trainer.accumulate_grad_batches = packs // ranks

    def instantiate_classes(self) -> None:
        """Makes model, data and Trainer, and passes the model's geometry and folder to the data.

        Raises:
            ConfigError: If a package is missing, such as that of a logger.
        """
        try:
            super().instantiate_classes()
        except (ModuleNotFoundError, ValueError) as error:  # the parser wraps errors
            missing = _missing_module(error)
            if missing is None:
                raise
            raise ConfigError(
                "trainer",
                found=f"a class whose package is missing ({missing})",
                wanted="an installed package",
                remedy="Install it (for a logger: pip install tensorboard, or wandb), or leave the "
                "class out.",
            ) from error
        if isinstance(self.model, BagelModule) and isinstance(
            self.datamodule, MathCanvasDataModule
        ):
            self.datamodule.use_model(self.model.config.geometry, self.model.source.checkpoint)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the Trainer with the callbacks of `MONITORS`.

        Args:
            kwargs: Arguments of the Trainer that override the configuration.

        Returns:
            The Trainer.

        Raises:
            ConfigError: If Lightning refuses an option.
        """
        config = self.config_init[self.subcommand]
        listed = kwargs.get("callbacks", config.trainer.callbacks) or []
        callbacks = list(listed) if isinstance(listed, Sequence) else [listed]
        present = {type(callback) for callback in callbacks}
        found = [config.get(name) for name in MONITORS]
        callbacks += [c for c in found if c is not None and type(c) not in present]
        if config.debug_batches:
            callbacks.append(DebugBatches(config.debug_batches))
        changed: dict[str, Any] = {**kwargs, "callbacks": callbacks}
        has_lines = any(isinstance(c, ProgressLines) and c.is_needed for c in callbacks)
        if has_lines and config.trainer.enable_progress_bar is None:
            changed["enable_progress_bar"] = False  # it would fill a log file
        if config.get("summary") is not None and config.trainer.enable_model_summary is None:
            changed["enable_model_summary"] = False  # ours replaces it
        try:
            return super().instantiate_trainer(**changed)
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            raise _refused(error) from error

    def before_fit(self) -> None:
        """Finds the checkpoint to resume from, and sets how checkpoints are written."""
        config = self.config_init[self.subcommand]
        if config.ckpt_path is None and config.auto_resume:
            config.ckpt_path = self._find_checkpoint(config)
        if config.ckpt_path is not None:
            self._check_checkpoint(config.ckpt_path)
        save_atomically(self.trainer.strategy)

    def before_validate(self) -> None:
        """Checks the checkpoint to validate, if there is one."""
        config = self.config_init[self.subcommand]
        if config.ckpt_path is not None:
            self._check_checkpoint(config.ckpt_path, weights_only=True)

    def _find_checkpoint(self, config: Any) -> str | None:
        named = self.config[self.subcommand].trainer.default_root_dir is not None
        places: list[Any] = (
            [config.auto_resume]
            if isinstance(config.auto_resume, str)
            else checkpoint_places(self.trainer, root_is_named=named)
        )
        found = find_checkpoint(*places, need_record=isinstance(self.model, BagelModule))
        if found is None and places:
            listed = ", ".join(str(place) for place in places)
            rank_zero_info(f"Starting at step 0: no checkpoint of this run in {listed}")
        elif found is None:
            rank_zero_info(
                "Starting at step 0. This run can't be resumed by the same command: set "
                "trainer.default_root_dir or the dirpath of ModelCheckpoint."
            )
        return found

    def _check_checkpoint(self, path: str, *, weights_only: bool = False) -> None:
        """Compares a checkpoint with the settings of this run, before any weights are loaded."""
        is_ours = isinstance(self.model, BagelModule)
        sharded = isinstance(self.trainer.strategy, ShardedStrategy)
        require_readable(path, sharded, need_record=is_ours, weights_only=weights_only)
        if is_ours and local_path(path).exists():
            self.model.check_record(read_about(local_path(path)), str(path))


def run_cli(args: Sequence[str]) -> None:
    """Runs `fit` or `validate`.

    Args:
        args: The subcommand and its options.

    Raises:
        ConfigError: If settings contradict each other.
    """
    # Packs differ in length: without it, CUDA's free memory falls into pieces.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    leave_process_group_at_exit()
    start_from_a_server([MathCanvasDataModule.__module__])
    try:
        MathCanvasCLI(
            BagelModule,
            MathCanvasDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_callback=SaveConfigCallback,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "reload_dataloaders_every_n_epochs": 1,
                "use_distributed_sampler": False,
                "callbacks": [StopOnSignal()],
            },
            parser_kwargs={"prog": "mathcanvas"},
            args=None if list(args) == sys.argv[1:] else list(args),
        )
    except MisconfigurationException as error:
        raise _refused(error) from error


def _refused(error: Exception) -> ConfigError:
    return ConfigError(
        "trainer",
        found=f"options that Lightning refuses ({' '.join(str(error).split())})",
        wanted="options of lightning.pytorch.Trainer that fit together",
        remedy="Change them in the YAML or on the command line.",
    )


def _missing_module(error: BaseException) -> str | None:
    """Text of the error about a missing package among the causes of an error."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, ModuleNotFoundError):
        found = found.__cause__ or found.__context__
    return None if found is None else str(found).strip().partition("\n")[0]


def _use_one_seed(config: Any) -> None:
    """Sets the seeds of data and initial weights to `seed_everything`, unless they are set."""
    seed = config.seed_everything
    parts = [
        _arguments(config, "data"),
        *(_argument(config, "model", n) for n in ("source", "lora")),
    ]
    for settings in parts:
        if settings and settings.get("seed", 0) is None and not isinstance(seed, bool):
            settings["seed"] = seed


def _argument(config: Any, section: str, name: str) -> Any:
    return _arguments(config, section).get(name)


def _arguments(config: Any, section: str) -> Any:
    found = config.get(section)
    return found.get("init_args", found) if found is not None else {}


def _count_ranks(trainer: Any) -> int | None:
    """Counts the ranks of a Trainer; None if the Trainer determines them itself."""
    if not isinstance(trainer.devices, int | str) or not isinstance(trainer.num_nodes, int):
        return None
    text = str(trainer.devices)
    return int(text) * trainer.num_nodes if text.isdigit() else None
