"""MathCanvasDataModule: from shards to packed micro-batches, resumable to the step."""

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from mathcanvas_lightning.batch import MicroBatch, TokenGeometry
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.index.index import DatasetIndex
from mathcanvas_lightning.data.loading.dataset import DatasetReader, PackDataset, PackTask
from mathcanvas_lightning.data.loading.datasets import (
    DatasetConfig,
    LoadedDataset,
    Overlong,
    TokenBudget,
    check_mixture,
    index_dataset,
    load_dataset,
)
from mathcanvas_lightning.data.loading.loader import PackLoader, WorkerConfig
from mathcanvas_lightning.data.loading.packed_data import PackedData
from mathcanvas_lightning.data.loading.quarantine import BadRow, Quarantine
from mathcanvas_lightning.data.plan.epoch import Plan
from mathcanvas_lightning.data.plan.position import OwnProgress, Position, TrainerProgress
from mathcanvas_lightning.data.plan.schedule import Schedule
from mathcanvas_lightning.data.rows.source import RowSource
from mathcanvas_lightning.data.sequence.rng import hash64
from mathcanvas_lightning.data.sequence.roles import NO_DROPOUT, DropoutConfig
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.storage.config import StorageConfig
from mathcanvas_lightning.storage.files import Storage

BAGEL_7B_GEOMETRY = TokenGeometry(
    vit_patch_px=14, latent_patch_px=16, max_vit_side=70, max_latent_side=64
)


class MathCanvasDataModule(LightningDataModule):
    """Streams shards as packed sequences, every sample once an epoch.

    Args:
        tokenizer: Checkpoint directory with the tokenizer; single bytes by default, for a try.
        train: Data sets to train on.
        validation: Data sets to validate on; each has a loader of its own.
        max_num_tokens: Capacity of a pack.
        max_num_tokens_per_sample: Longest sample, markers included.
        packs_per_step: Packs an optimizer step, over all ranks; ranks times accumulation by
            default, and always a multiple of the ranks.
        overlong: What becomes of longer samples: `refuse` is an error that lists them,
            `quarantine` leaves them out.
        dropout: Probabilities of dropping conditions in training.
        seed: Decides order and draws.
        workers: Processes that build packs.
        index_workers: Processes that index; one a core by default.
        index_dir: Where index files go; beside the shards, or in the user's cache, by default.
        max_bad_fraction: Damaged rows to leave out, of all; with 0 the first one is an error.
        quarantine_file: Where rows left out are listed; quarantine.jsonl in the Trainer's root
            folder by default.
        geometry: Patch sizes and position tables of the model. By default those of the model that
            the command line links to it, or BAGEL-7B-MoT's.
        interpolate_positions: Spread an image over the whole position table.
        image_limits: Of the images.
        storage: Of remote shards.
        progress: Show a progress bar while indexing.
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
        overlong: Overlong = "refuse",
        dropout: DropoutConfig = DropoutConfig(),
        seed: int = 0,
        workers: WorkerConfig = WorkerConfig(),
        index_workers: int | None = None,
        index_dir: str | None = None,
        max_bad_fraction: float = 0.0,
        quarantine_file: str | None = None,
        geometry: TokenGeometry | None = None,
        interpolate_positions: bool = False,
        image_limits: ImageLimits = ImageLimits(),
        storage: StorageConfig = StorageConfig(),
        progress: bool = True,
    ) -> None:
        super().__init__()
        self.budget = TokenBudget(
            max_num_tokens=max_num_tokens,
            max_num_tokens_per_sample=max_num_tokens_per_sample,
            overlong=overlong,
        )
        self.budget.check()
        self.train_configs, self.validation_configs = tuple(train), tuple(validation)
        self.dropout, self.seed = dropout, seed
        self._geometry = geometry
        self.packs_per_step = packs_per_step
        self.workers = workers
        self._tokenizer_folder = tokenizer
        self._interpolate = interpolate_positions
        self._limits = image_limits
        self._storage = Storage(storage)
        self._index_dir, self._index_workers, self._progress = index_dir, index_workers, progress
        self._max_bad_fraction, self._quarantine_file = max_bad_fraction, quarantine_file
        self._train: PackedData | None = None
        self._validation: tuple[PackedData, ...] = ()
        self._position: Position | None = None

    @property
    def geometry(self) -> TokenGeometry:
        """Patch sizes and position tables that images are cut for."""
        return self._geometry or BAGEL_7B_GEOMETRY

    def use_model(self, geometry: TokenGeometry, checkpoint: str | None) -> None:
        """Takes from a model what isn't set; called before anything is read.

        Args:
            geometry: Of the model.
            checkpoint: Its directory, for the tokenizer.
        """
        self._geometry = self._geometry or geometry
        self._tokenizer_folder = self._tokenizer_folder or checkpoint

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer."""
        return TextTokenizer(self._tokenizer_folder)

    @property
    def train_data(self) -> PackedData:
        """Data sets and plan of the training.

        Raises:
            ConfigError: If there is none.
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
        """Where the training is in its plan."""
        if self._position is None:
            trainer = self.trainer
            self._position = Position(
                self.plan,
                self.fingerprint,
                OwnProgress() if trainer is None else TrainerProgress(trainer),
                packs_per_step=self._count_packs_per_step(),
                num_ranks=self._ranks()[1],
            )
        return self._position

    def total_steps(self, max_epochs: int) -> int:
        """Optimizer steps of a whole run, exactly: epochs differ by a few."""
        return self.plan.total_steps(max_epochs)

    def prepare_data(self) -> None:
        """Indexes what is not indexed yet, on one process of each machine."""
        for config in (*self.train_configs, *self.validation_configs):
            self._index(config)

    def setup(self, stage: str | None = None) -> None:
        """Loads the index and makes the plans.

        Args:
            stage: `fit`, `validate`, or None for both.

        Raises:
            ConfigError: If settings contradict each other or the data.
            DataError: If a data set has nothing to train on, or rows that are refused.
        """
        if stage in (None, "fit") and self.train_configs and self._train is None:
            self._check_ranks()
            loaded = [self._load(config, self.dropout) for config in self.train_configs]
            self._train = self._packed(loaded, shuffle=True)
        if stage in (None, "fit", "validate") and not self._validation:
            self._validation = tuple(
                self._packed([self._load(config, NO_DROPOUT)], shuffle=False)
                for config in self.validation_configs
            )
        self._position = None  # it may be another Trainer
        self._set_up_trainer(self.trainer)

    def train_dataloader(self) -> PackLoader:
        """This rank's micro-batches of the epoch that is under way."""
        data, position = self.train_data, self.position
        length = position.prepare()

        def tasks() -> Iterator[PackTask]:
            place = position.begin()
            if place is None:
                return iter(())
            state, schedule = place
            return data.tasks(state.epoch, schedule, *self._ranks(), first_step=state.step)

        return PackLoader(
            data.dataset, tasks, length, data.quarantine, self._worker_share(), position.progress
        )

    def val_dataloader(self) -> list[PackLoader]:
        """This rank's micro-batches of each validation set, the same in every epoch."""
        rank, num_ranks = self._ranks()
        loaders = []
        for data in self._validation:
            schedule = data.plan.schedule(0)
            tasks = partial(data.tasks, 0, schedule, rank, num_ranks)
            length = schedule.num_steps
            loaders.append(
                PackLoader(data.dataset, tasks, length, data.quarantine, self._worker_share())
            )
        return loaders

    def micro_batch(self, epoch: int, schedule: Schedule, step: int, slot: int) -> MicroBatch:
        """One micro-batch of the training, built in this process.

        Args:
            epoch: From 0.
            schedule: Of it.
            step: Of the schedule.
            slot: From 0 to the packs a step.
        """
        data, slots = self.train_data, schedule.packs_per_step
        tasks = islice(data.tasks(epoch, schedule, slot, slots, step), 1)
        here = WorkerConfig(num_workers=0)
        return next(iter(PackLoader(data.dataset, lambda: tasks, 1, data.quarantine, here)))

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, equal on all ranks: the next whole optimizer step."""
        return {} if self._train is None else self.position.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a place, on as many ranks as there are now.

        Raises:
            ConfigError: If the plan has changed since.
        """
        if state_dict and self._train is not None:
            self.position.restore(state_dict)

    @property
    def fingerprint(self) -> dict[str, str]:
        """Hashes of all that decides the plan, by what they are about."""
        budget = self.budget
        parts: dict[str, object] = {
            "seed": self.seed,
            "tokenizer": self.tokenizer.digest,
            "packing": (budget.max_num_tokens, budget.max_num_tokens_per_sample),
            "dropout": self.dropout,
            "geometry": (self.geometry, self._interpolate),
            **{f"data set {d.config.label}": d.fingerprint for d in self.train_data.datasets},
        }
        return {name: f"{hash64(part) & 0xFFFFFFFF:08x}" for name, part in parts.items()}

    def _set_up_trainer(self, trainer: Any) -> None:
        if trainer is None:
            return
        # Epochs differ in length by a few packs, so each has a loader of its own.
        trainer.reload_dataloaders_every_n_epochs = 1
        if not self.validation_configs:
            trainer.limit_val_batches = 0  # Lightning takes no loaders for a mistake

    def _index(self, config: DatasetConfig) -> tuple[RowSource, DatasetIndex]:
        return index_dataset(
            config,
            self.tokenizer,
            self._storage,
            self._limits,
            index_dir=self._index_dir,
            num_workers=self._index_workers,
            progress=self._progress,
        )

    def _load(self, config: DatasetConfig, dropout: DropoutConfig) -> LoadedDataset:
        source, index = self._index(config)
        return load_dataset(
            config, source, index, geometry=self.geometry, budget=self.budget, dropout=dropout
        )

    def _packed(self, loaded: Sequence[LoadedDataset], *, shuffle: bool) -> PackedData:
        check_mixture(loaded)
        plan = Plan(
            [data.planned for data in loaded],
            seed=self.seed,
            max_num_tokens=self.budget.max_num_tokens,
            packs_per_step=self._count_packs_per_step() if shuffle else self._ranks()[1],
            shuffle=shuffle,
        )
        readers = [
            DatasetReader(data.config.label, data.source, data.settings, plan.stream(number))
            for number, data in enumerate(loaded)
        ]
        dataset = PackDataset(
            readers, self.tokenizer, self.geometry, interpolate_positions=self._interpolate
        )
        quarantine = Quarantine(
            self._quarantine_path(),
            self._max_bad_fraction,
            sum(data.num_indexed for data in loaded),
            {data.config.label: data.index.digest for data in loaded},
        )
        quarantine.add([BadRow(d.config.label, row) for d in loaded for row in d.left_out])
        return PackedData(datasets=tuple(loaded), plan=plan, dataset=dataset, quarantine=quarantine)

    def _quarantine_path(self) -> Path:
        if self._quarantine_file:
            return local_path(self._quarantine_file)
        root = self.trainer.default_root_dir if self.trainer is not None else "."
        return Path(root) / "quarantine.jsonl"

    def _ranks(self) -> tuple[int, int]:
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _worker_share(self) -> WorkerConfig:
        return self.workers.share(self.trainer.num_devices if self.trainer is not None else 1)

    def _count_packs_per_step(self) -> int:
        if self.packs_per_step is not None:
            return self.packs_per_step
        accumulate = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        return self._ranks()[1] * accumulate

    def _check_ranks(self) -> None:
        packs, num_ranks = self._count_packs_per_step(), self._ranks()[1]
        if packs < 1 or packs % num_ranks:
            raise ConfigError(
                "data.packs_per_step",
                found=f"{packs}, on {num_ranks} ranks",
                wanted=f"a multiple of {num_ranks}",
                remedy="Each rank takes as many packs of a step as any other.",
            )
        trainer: Any = self.trainer
        if trainer is None:
            return
        if trainer.accumulate_grad_batches != packs // num_ranks:
            raise ConfigError(
                "trainer.accumulate_grad_batches",
                found=str(trainer.accumulate_grad_batches),
                wanted=f"{packs // num_ranks}: packs_per_step {packs} on {num_ranks} ranks",
                remedy="Set it so, or leave packs_per_step out.",
            )
