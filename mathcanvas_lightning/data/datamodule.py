"""The LightningDataModule: shards to packed micro-batches, resumable at any optimizer step."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from mathcanvas_lightning.batch import MicroBatch, TokenGeometry
from mathcanvas_lightning.common.display.short import ShortRepr
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.data.index.index import DatasetIndex
from mathcanvas_lightning.data.loading.config import (
    DatasetConfig,
    DataSettings,
    TokenBudget,
    WorkerConfig,
    check_steps,
)
from mathcanvas_lightning.data.loading.loaded_dataset import (
    LoadedDataset,
    check_datasets,
    index_dataset,
    load_dataset,
    warn_of_repeated_files,
    warn_of_test_rows,
)
from mathcanvas_lightning.data.loading.loader import PackLoader
from mathcanvas_lightning.data.loading.origin import plan_origin
from mathcanvas_lightning.data.loading.pack_dataset import PackTask
from mathcanvas_lightning.data.loading.packed_data import PackedData, assemble
from mathcanvas_lightning.data.plan.epoch import Plan
from mathcanvas_lightning.data.plan.origin import PlanOrigin
from mathcanvas_lightning.data.plan.position import Position
from mathcanvas_lightning.data.plan.schedule import Schedule
from mathcanvas_lightning.data.rows.source import RowSource
from mathcanvas_lightning.data.sequence.roles import NO_DROPOUT, DropoutConfig
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.storage.files import Storage

BAGEL_7B_GEOMETRY = TokenGeometry(
    vit_patch_px=14, latent_patch_px=16, max_vit_side=70, max_latent_side=64
)


class MathCanvasDataModule(ShortRepr, LightningDataModule):
    """Streams shards as packed sequences; every sample occurs once per epoch.

    Args:
        tokenizer: Checkpoint directory with the tokenizer; by default one of single bytes, to try.
        train: Data sets to train on.
        validation: Data sets to validate on; each has its own loader.
        max_num_tokens: Capacity of a pack, in tokens.
        max_num_tokens_per_sample: Maximum length of a sample, in tokens, markers included.
        packs_per_step: Packs per optimizer step, over all ranks, a multiple of the number of ranks;
            by default the number of ranks times the accumulation.
        geometry: Patch sizes and position tables of the model; by default those of the model in
            the same configuration, or of BAGEL-7B-MoT.
        settings: Fields of `DataSettings`: overlong, dropout, seed, workers, index_workers,
            index_dir, max_bad_fraction, quarantine_file, interpolate_positions, image_limits,
            storage, progress.
    """

    def __init__(
        self,
        tokenizer: str | None = None,
        train: Sequence[DatasetConfig] = (),
        validation: Sequence[DatasetConfig] = (),
        *,
        max_num_tokens: int = 51_200,
        max_num_tokens_per_sample: int = 25_600,
        packs_per_step: int | None = None,
        geometry: TokenGeometry | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        # From this call jsonargparse resolves the names, types and defaults of `settings`. With
        # Unpack[TypedDict] it has no defaults, and rejects keys whose type is a dataclass.
        self.settings = DataSettings(**settings)
        self.budget = TokenBudget(
            max_num_tokens=max_num_tokens,
            max_num_tokens_per_sample=max_num_tokens_per_sample,
            overlong=self.settings.overlong,
        )
        self.budget.check()
        self.train_configs, self.validation_configs = tuple(train), tuple(validation)
        self.packs_per_step = packs_per_step
        self.dropout, self.seed = self.settings.dropout, self.settings.seed or 0
        self.workers = self.settings.workers
        self._geometry = geometry
        self._tokenizer_folder = tokenizer
        self._storage = Storage(self.settings.storage)
        self._train: PackedData | None = None
        self._validation: tuple[PackedData, ...] = ()
        self._position: Position | None = None
        self._rank: tuple[int, int] | None = None

    @property
    def geometry(self) -> TokenGeometry:
        """Patch sizes and position tables of the model."""
        return self._geometry or BAGEL_7B_GEOMETRY

    def use_model(self, geometry: TokenGeometry, checkpoint: str | None) -> None:
        """Fills in geometry and tokenizer from a model, if they are not set.

        Call it before anything is read.

        Args:
            geometry: Geometry of the model.
            checkpoint: Directory of the model, with a tokenizer.
        """
        self._geometry = self._geometry or geometry
        self._tokenizer_folder = self._tokenizer_folder or checkpoint

    def use_rank(self, rank: int, num_ranks: int) -> None:
        """Sets the rank, for loops without a Trainer and without torch.distributed.

        Args:
            rank: Rank of this process, from 0.
            num_ranks: Number of ranks.
        """
        self._rank = rank, num_ranks

    @property
    def rank(self) -> int:
        """Rank of this process, from 0."""
        return self._find_rank()[0]

    @property
    def num_ranks(self) -> int:
        """Number of ranks that share the packs of a step."""
        return self._find_rank()[1]

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer."""
        return TextTokenizer(self._tokenizer_folder)

    @property
    def train_data(self) -> PackedData:
        """Data sets and plan of the training.

        Raises:
            ConfigError: If there are no data sets.
        """
        if self._train is None:
            raise ConfigError(
                "data.train",
                found="no call of setup() yet" if self.train_configs else "no data set",
                wanted="one or more data sets",
                remedy="List them with their paths, or call prepare_data() and setup() first.",
            )
        return self._train

    @property
    def validation_data(self) -> tuple[PackedData, ...]:
        """Data and plan of each validation set."""
        return self._validation

    @property
    def plan(self) -> Plan:
        """Plan of the training."""
        return self.train_data.plan

    @property
    def position(self) -> Position:
        """Position of the training in its plan."""
        if self._position is None:
            self._position = Position(
                self.plan,
                self._origin,
                packs_per_step=self._count_packs_per_step(),
                num_ranks=self.num_ranks,
                trainer=self.trainer,
            )
        return self._position

    @property
    def drawing_size(self) -> tuple[int, int] | None:
        """Most frequent (width, height) in pixels of the images to draw; None without any."""
        sizes = sum((d.drawing_sizes() for d in self.train_data.datasets), Counter())
        return sizes.most_common(1)[0][0] if sizes else None

    def total_steps(self, max_epochs: int) -> int:
        """Exact number of optimizer steps of a run; epochs differ by a few steps."""
        return self.plan.total_steps(max_epochs, self._count_packs_per_step())

    def schedule(self, epoch: int) -> Schedule:
        """The optimizer steps of an epoch of the training."""
        return self.plan.schedule(epoch, self._count_packs_per_step())

    def prepare_data(self) -> None:
        """Builds missing indexes, on one process of each machine."""
        for config in (*self.train_configs, *self.validation_configs):
            self._index(config)

    def setup(self, stage: str | None = None) -> None:
        """Loads the indexes and makes the plans.

        Args:
            stage: `fit`, `validate`, or None for both.

        Raises:
            ConfigError: If settings contradict each other or the data.
            DataError: If a data set has no samples, or rows that are not allowed.
        """
        if stage in (None, "fit") and self.train_configs:
            check_steps(self._count_packs_per_step(), self.num_ranks, self.trainer)
            if self._train is None:
                loaded = [self._load(config, self.dropout) for config in self.train_configs]
                warn_of_test_rows(loaded)
                warn_of_repeated_files(loaded)
                self._train = self._plan_packs(loaded, shuffle=True)
        if stage in (None, "fit", "validate") and not self._validation:
            self._validation = tuple(
                self._plan_packs([self._load(config, NO_DROPOUT)], shuffle=False)
                for config in self.validation_configs
            )
        if self.trainer is None or not self._follows_trainer():
            self._position = None
        self._set_up_trainer(self.trainer)

    def train_dataloader(self) -> PackLoader:
        """This rank's micro-batches of the current epoch."""
        data, position = self.train_data, self.position
        if getattr(self.trainer, "overfit_batches", 0):
            return self._repeating_loader(data, self.schedule(0))
        length = position.prepare()

        def tasks() -> Iterator[PackTask]:
            begun = position.begin()
            if begun is None:
                return iter(())
            start, schedule = begun
            return data.tasks(
                start.epoch, schedule, self.rank, self.num_ranks, first_step=start.step
            )

        return PackLoader(
            data.dataset, tasks, length, data.quarantine, self._worker_share(), position
        )

    def val_dataloader(self) -> list[PackLoader]:
        """This rank's micro-batches of each validation set, the same in every epoch."""
        return [
            self._repeating_loader(data, data.plan.schedule(0, self.num_ranks))
            for data in self._validation
        ]

    def transfer_batch_to_device(
        self,
        batch: MicroBatch,
        device: torch.device,
        dataloader_idx: int,  # noqa: ARG002
    ) -> MicroBatch:
        """Copies a micro-batch to the device, without waiting if it is page-locked.

        Args:
            batch: The micro-batch.
            device: The device of the training.
            dataloader_idx: Number of its loader.

        Returns:
            The copy.
        """
        return batch.to(device, non_blocking=True)

    def micro_batch(self, epoch: int, schedule: Schedule, step: int, slot: int) -> MicroBatch:
        """Builds one micro-batch of the training in this process.

        Args:
            epoch: Epoch, from 0.
            schedule: Schedule of this epoch.
            step: Step of the schedule.
            slot: Number of the pack within the step, from 0.
        """
        data, slots = self.train_data, schedule.packs_per_step
        tasks = islice(data.tasks(epoch, schedule, slot, slots, step), 1)
        in_process = WorkerConfig(num_workers=0)
        return next(iter(PackLoader(data.dataset, lambda: tasks, 1, data.quarantine, in_process)))

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, equal on all ranks: the next whole optimizer step."""
        return {} if self._train is None else self.position.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from a saved position; the number of ranks may differ.

        Raises:
            ConfigError: If the plan has changed since then.
        """
        if state_dict and self._train is not None:
            self.position.restore(state_dict)

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hashes of everything that the plan depends on, by topic."""
        return dict(self._origin.fingerprint)

    @property
    def _origin(self) -> PlanOrigin:
        return plan_origin(
            self.train_data.datasets,
            seed=self.seed,
            budget=self.budget,
            geometry=self.geometry,
            tokenizer=self.tokenizer,
            settings=replace(self.settings, dropout=self.dropout),
        )

    def _repeating_loader(self, data: PackedData, schedule: Schedule) -> PackLoader:
        """The micro-batches of the first epoch, the same in every iteration."""
        tasks = partial(data.tasks, 0, schedule, self.rank, self.num_ranks)
        length = schedule.num_steps * schedule.packs_per_step // self.num_ranks
        return PackLoader(data.dataset, tasks, length, data.quarantine, self._worker_share())

    def _follows_trainer(self) -> bool:
        """Whether the position is that of the current Trainer."""
        position = self._position
        return (
            position is not None
            and position.trainer is self.trainer
            and position.packs_per_step == self._count_packs_per_step()
            and position.num_ranks == self.num_ranks
        )

    def _set_up_trainer(self, trainer: Any) -> None:
        if trainer is None:
            return
        # Epochs differ in length by a few packs, so each needs a new loader.
        trainer.reload_dataloaders_every_n_epochs = 1
        if not self.validation_configs:
            trainer.limit_val_batches = 0  # Lightning raises if there are no loaders

    def _index(self, config: DatasetConfig) -> tuple[RowSource, DatasetIndex]:
        return index_dataset(
            config,
            self.tokenizer,
            self._storage,
            self.settings.image_limits,
            index_dir=self.settings.index_dir,
            num_workers=self.settings.index_workers,
            progress=self.settings.progress,
        )

    def _load(self, config: DatasetConfig, dropout: DropoutConfig) -> LoadedDataset:
        source, index = self._index(config)
        return load_dataset(
            config, source, index, geometry=self.geometry, budget=self.budget, dropout=dropout
        )

    def _plan_packs(self, loaded: Sequence[LoadedDataset], *, shuffle: bool) -> PackedData:
        check_datasets(loaded)
        plan = Plan(
            [data.planned for data in loaded],
            seed=self.seed,
            max_num_tokens=self.budget.max_num_tokens,
            shuffle=shuffle,
        )
        return assemble(
            loaded,
            plan,
            self.tokenizer,
            self.geometry,
            interpolate_positions=self.settings.interpolate_positions,
            quarantine_file=self._quarantine_path(),
            max_bad_fraction=self.settings.max_bad_fraction,
        )

    def _quarantine_path(self) -> Path:
        if self.settings.quarantine_file:
            return local_path(self.settings.quarantine_file)
        root = self.trainer.default_root_dir if self.trainer is not None else "."
        return Path(root) / "quarantine.jsonl"

    def _find_rank(self) -> tuple[int, int]:
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if self._rank is not None:
            return self._rank
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _worker_share(self) -> WorkerConfig:
        return self.workers.share(self.trainer.num_devices if self.trainer is not None else 1)

    def _count_packs_per_step(self) -> int:
        if self.packs_per_step is not None:
            return self.packs_per_step
        accumulate = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        return self.num_ranks * accumulate
