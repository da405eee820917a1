"""`mathcanvas fit|validate`: LightningCLI over BagelModule and MathCanvasDataModule."""

import logging
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeInt
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from mathcanvas_lightning.cli.settings.errors import OneLineCLI, missing_module
from mathcanvas_lightning.cli.settings.runs import place_run, set_up_run, start_over, validated_run
from mathcanvas_lightning.common.exits import leave_process_group_at_exit
from mathcanvas_lightning.common.logs import FILE_ONLY, is_quiet, log_file
from mathcanvas_lightning.common.parallel import start_from_a_server
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.data.datamodule import MathCanvasDataModule
from mathcanvas_lightning.data.loading.loader import PackLoader
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.training.callbacks.monitor import ThroughputMonitor
from mathcanvas_lightning.training.callbacks.pictures import PictureLogger
from mathcanvas_lightning.training.callbacks.progress import ProgressLines
from mathcanvas_lightning.training.callbacks.stopping import StopOnSignal
from mathcanvas_lightning.training.callbacks.summary import DebugBatches, StartSummary
from mathcanvas_lightning.training.callbacks.totals import EndSummary
from mathcanvas_lightning.training.checkpoint.resume import find_checkpoint
from mathcanvas_lightning.training.checkpoint.verify import read_about, require_readable
from mathcanvas_lightning.training.module import BagelModule
from mathcanvas_lightning.training.run.callback import RunFiles
from mathcanvas_lightning.training.run.finished import check_unfinished
from mathcanvas_lightning.training.run.folder import RunFolder
from mathcanvas_lightning.training.settings import make_record
from mathcanvas_lightning.training.strategy import ShardedStrategy, save_atomically

log = logging.getLogger(__name__)

WORKER_MODULES = (
    "mathcanvas_lightning.data.loading.fork_server",
    PackLoader.__module__,
    "transformers.models.qwen2.tokenization_qwen2",
)
"""Modules that workers import to build packs, without Lightning and the network."""
MONITORS: Mapping[str, type[Callback]] = {
    "summary": StartSummary,
    "throughput": ThroughputMonitor,
    "pictures": PictureLogger,
    "progress": ProgressLines,  # closes its bar before the box is printed
    "totals": EndSummary,
}
"""Config section -> callback of every run; a section set to null removes its callback."""


class SaveRunConfig(SaveConfigCallback):
    """Writes the settings of a fit to the run's folder; a validation writes none."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the settings on rank zero."""
        if stage == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Writes the settings."""
        path = RunFolder(Path(trainer.default_root_dir)).config
        path.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=False)


class MathCanvasCLI(OneLineCLI):
    """Links model, data and accumulation, and finds the checkpoint to resume from."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds options and the sections of the callbacks."""
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="Name of the run: its files are in runs/NAME, or in NAME if that is a path.",
        )
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

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # only of one command
        """The command that runs and the arguments of the Trainer's method to leave out."""
        return {self._words[0]: LightningCLI.subcommands()[self._words[0]]}

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
        """Fills in what follows from other settings: the run's folder, seeds, the accumulation.

        The accumulation follows from data.packs_per_step and the number of ranks.
        """
        config = self.config[self.subcommand]
        if self.subcommand == "fit":
            place_run(config)
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
            missing = missing_module(error)
            if missing is None:
                raise
            raise ConfigError(
                "trainer",
                found=f"a class whose package is missing ({missing})",
                wanted="an installed package",
                remedy=f"pip install {missing}, or leave the class out.",
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
        found = [config.get(name) for name in MONITORS if not (name == "summary" and is_quiet())]
        callbacks += [c for c in found if c is not None and type(c) not in present]
        if self.subcommand == "fit":
            callbacks.append(RunFiles())
        if config.debug_batches:
            callbacks.append(DebugBatches(config.debug_batches))
        changed: dict[str, Any] = {**kwargs, "callbacks": callbacks}
        ours = [c for c in callbacks if isinstance(c, ProgressLines)]
        has_progress = any(self.subcommand == "fit" or c.is_needed for c in ours)
        if has_progress and config.trainer.enable_progress_bar is None:
            changed["enable_progress_bar"] = False  # ours replaces it
        if config.get("summary") is not None and config.trainer.enable_model_summary is None:
            changed["enable_model_summary"] = False  # ours replaces it
        logger = config.trainer.logger
        if logger is None or self.subcommand != "fit":
            changed.setdefault("logger", logger or False)
        try:
            trainer = super().instantiate_trainer(**changed)
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            raise _refused(error) from error
        if self.subcommand == "fit":
            self._locations = set_up_run(trainer, logger)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs `fit` with a log file in the folder of the run, `validate` without."""
        path = RunFolder(Path(self.trainer.default_root_dir)).log
        is_logged = subcommand == "fit" and vars(rank_zero_only).get("rank", 0) == 0
        with log_file(path if is_logged else None):
            try:
                super()._run_subcommand(subcommand)
            except BaseException as error:
                if isinstance(error, Exception):
                    log.error("error: %s", error, extra=FILE_ONLY)
                if (launcher := self.trainer.strategy.launcher) is not None:
                    launcher.kill(signal.SIGKILL)  # other ranks would wait for it in a collective
                raise

    def before_fit(self) -> None:
        """Finds the checkpoint to resume from, and sets how checkpoints are written."""
        config = self.config_init[self.subcommand]
        if config.ckpt_path is None and config.auto_resume:
            config.ckpt_path = self._find_checkpoint(config)
        elif config.ckpt_path is None:
            start_over(Path(self.trainer.default_root_dir))
        if config.ckpt_path is not None:
            self._check_checkpoint(config.ckpt_path)
        save_atomically(self.trainer.strategy)

    def before_validate(self) -> None:
        """Checks the checkpoint to validate, if there is one."""
        config = self.config_init[self.subcommand]
        if config.ckpt_path is not None:
            self._check_checkpoint(config.ckpt_path, weights_only=True)

    def _find_checkpoint(self, config: Any) -> str | None:
        locations: list[Any] = (
            [config.auto_resume] if isinstance(config.auto_resume, str) else self._locations
        )
        found = find_checkpoint(*locations, need_record=isinstance(self.model, BagelModule))
        if found is None:
            listed = ", ".join(str(place) for place in locations)
            rank_zero_info(f"Starting at step 0: no checkpoint of this run in {listed}")
        return found

    def _check_checkpoint(self, path: str, *, weights_only: bool = False) -> None:
        """Compares a checkpoint with the settings of this run, before any weights are loaded."""
        is_ours = isinstance(self.model, BagelModule)
        sharded = isinstance(self.trainer.strategy, ShardedStrategy)
        require_readable(path, sharded, need_record=is_ours, weights_only=weights_only)
        if not is_ours or not local_path(path).exists():
            return
        about = read_about(local_path(path))
        self.model.trainer = self.trainer  # for the settings to compare
        record = self.model.check_record(about, str(path))
        if not weights_only:
            changes = record.changes(make_record(self.model))
            root = Path(self.trainer.default_root_dir)
            if remark := check_unfinished(about, self.trainer, changes, root):
                rank_zero_info(remark)


def run_cli(args: Sequence[str]) -> None:
    """Runs `fit` or `validate`.

    Args:
        args: The subcommand and its options.

    Raises:
        ConfigError: If settings contradict each other.
    """
    args = validated_run(args)
    # Packs differ in length: without it, CUDA's free memory falls into pieces.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    leave_process_group_at_exit()
    start_from_a_server(WORKER_MODULES)
    try:
        MathCanvasCLI(
            BagelModule,
            MathCanvasDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={
                "reload_dataloaders_every_n_epochs": 1,
                "use_distributed_sampler": False,
                "log_every_n_steps": 10,
                "callbacks": [StopOnSignal()],
            },
            parser_kwargs={"prog": "mathcanvas"},
            args=list(args),
        )
    except MisconfigurationException as error:
        raise _refused(error) from error


def _refused(error: Exception) -> ConfigError:
    text = " ".join(str(error).split())
    no_gpu = "backend found" in text or "No CUDA GPUs" in text
    return ConfigError(
        "trainer",
        found="accelerator gpu on a machine without one"
        if no_gpu
        else f"options that Lightning refuses ({text})",
        wanted="options of lightning.pytorch.Trainer that fit together",
        remedy="Run on a machine with GPUs, or add --config configs/trainer/cpu.yaml (for small "
        "networks)."
        if no_gpu
        else "Change them in the YAML or on the command line.",
    )


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
