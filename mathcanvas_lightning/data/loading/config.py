"""Configuration of the data: data sets, token limits, workers, and the other settings of a run."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mathcanvas_lightning.common.parallel import usable_cores
from mathcanvas_lightning.common.paths import file_name
from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.images.trained import TrainedImages
from mathcanvas_lightning.data.rows.readers import RowFormat
from mathcanvas_lightning.data.sequence.roles import DropoutConfig
from mathcanvas_lightning.errors import ConfigError, check_settings
from mathcanvas_lightning.storage.config import StorageConfig

Overlong = Literal["refuse", "quarantine"]
MAX_WORKERS = 8


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class DatasetConfig:
    """One data set."""

    path: str
    """A folder of shards or one file, local or an fsspec URL (s3://, http://, ...)."""
    format: RowFormat = "interleaved"
    """Layout of its rows; see `data.rows.readers`."""
    name: str | None = None
    """Name in logs, also a seed of its random numbers; by default the last part of the path."""
    weight: float | None = None
    """Share of the samples, relative to the other weights; None: each row once an epoch."""
    fraction: float = 1.0
    """Part of the rows to use; the same rows in every run."""
    vae_transform: ImageTransform = field(default_factory=ImageTransform)
    """Sizes of images for the VAE."""
    vit_transform: ImageTransform = field(default_factory=lambda: ImageTransform(image_stride=14))
    """Sizes of images for the ViT."""
    image_dir: str | None = None
    """Folder of the image paths in conversations; by default the folder of the file."""

    @property
    def label(self) -> str:
        """The name, or the last part of the path."""
        return self.name or posixpath.splitext(file_name(self.path))[0]

    def check(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: If one is out of range.
        """
        if not 0 < self.fraction <= 1:
            raise ConfigError(
                f"fraction of the data set {self.label}",
                found=str(self.fraction),
                wanted="more than 0, at most 1",
                remedy="Leave it out to use all rows.",
            )
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ConfigError(
                f"weight of the data set {self.label}",
                found=str(self.weight),
                wanted="a positive number",
                remedy="To exclude the data set, remove it from the list.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBudget:
    """Maximum lengths of packs and samples."""

    max_num_tokens: int
    """Maximum length of a pack, in tokens."""
    max_num_tokens_per_sample: int
    """Maximum length of a sample, in tokens, markers included."""
    overlong: Overlong
    """What to do with longer samples."""

    def check(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: If a sample could be longer than a pack.
        """
        if not 0 < self.max_num_tokens_per_sample <= self.max_num_tokens:
            raise ConfigError(
                "max_num_tokens_per_sample",
                found=f"{self.max_num_tokens_per_sample}, with max_num_tokens "
                f"{self.max_num_tokens}",
                wanted="a positive number, at most max_num_tokens",
                remedy="Lower it, or raise max_num_tokens: a sample must fit into a pack.",
            )


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class WorkerConfig:
    """The processes that build packs."""

    num_workers: int | None = None
    """Processes per rank; 0 builds packs in the training process. None: the cores of the machine
    divided by its ranks, at most 8."""
    prefetch_factor: int = 2
    """Packs that each process prefetches."""
    pin_memory: bool | None = None
    """Page-lock the packs, so that they are copied to a GPU while it computes. None: if there is a
    GPU."""
    start_method: str | None = None
    """How processes start: fork, forkserver or spawn. None: forkserver with `mathcanvas fit`,
    since a fork copies the locks of other threads and may hang; else Python's default."""

    def share(self, num_local_ranks: int) -> "WorkerConfig":
        """The same configuration with a number of workers.

        Args:
            num_local_ranks: Ranks on this machine.
        """
        if self.num_workers is not None:
            return self
        return replace(
            self, num_workers=max(1, min(MAX_WORKERS, usable_cores() // num_local_ranks))
        )


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class DataSettings:
    """The less used settings of `MathCanvasDataModule`.

    Args:
        overlong: What to do with samples over `max_num_tokens_per_sample`: `refuse` raises an
            error that lists them, `quarantine` leaves them out.
        dropout: Probabilities of dropping conditions in training.
        seed: Seed of the order and of all random numbers; by default `seed_everything` of the same
            configuration, or 0.
        workers: Processes that build packs.
        index_workers: Processes that build the index; by default one per core.
        index_dir: Folder of the index files; by default beside the shards, or in the user's cache
            if the shards are remote or read-only.
        max_bad_fraction: Maximum share of damaged rows to leave out; with 0 the first damaged row
            is an error.
        quarantine_file: List of the rows that are left out; by default quarantine.jsonl in the
            Trainer's root folder.
        interpolate_positions: Spread an image's positions over the whole position table.
        image_limits: Maximum sizes of images.
        storage: Access to remote shards.
        progress: Show a progress bar while indexing.
    """

    overlong: Overlong = "refuse"
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    seed: int | None = None
    workers: WorkerConfig = field(default_factory=WorkerConfig)
    index_workers: int | None = None
    index_dir: str | None = None
    max_bad_fraction: float = 0.0
    quarantine_file: str | None = None
    interpolate_positions: bool = False
    image_limits: ImageLimits = field(default_factory=ImageLimits)
    storage: StorageConfig = field(default_factory=StorageConfig)
    progress: bool = True

    def __post_init__(self) -> None:
        """Checks the share of damaged rows.

        Raises:
            ConfigError: If it is no share.
        """
        share = self.max_bad_fraction
        check_settings(
            ("data.max_bad_fraction", share, 0 <= share <= 1, "a fraction from 0 to 1"),
            remedy="Write 0.01 for one percent.",
        )


def trained_images(
    datasets: Sequence[DatasetConfig], *, interpolate_positions: bool
) -> TrainedImages:
    """The image sizes that a model remembers of its training.

    Args:
        datasets: Data sets of the training, at least one.
        interpolate_positions: See `DataSettings`.

    Returns:
        The sizes of the first interleaved data set, which has questions; else of the first one.
    """
    first = next((one for one in datasets if one.format == "interleaved"), datasets[0])
    return TrainedImages(
        vae_transform=first.vae_transform,
        vit_transform=first.vit_transform,
        interpolate_positions=interpolate_positions,
    )


def check_steps(packs_per_step: int, num_ranks: int, trainer: Any) -> None:
    """Checks that ranks and accumulation make up a step, and that no option cuts a step.

    Args:
        packs_per_step: Packs of an optimizer step.
        num_ranks: Number of ranks.
        trainer: The Trainer, or None.

    Raises:
        ConfigError: If they don't.
    """
    if packs_per_step < 1 or packs_per_step % num_ranks:
        raise ConfigError(
            "data.packs_per_step",
            found=f"{packs_per_step}, on {num_ranks} ranks",
            wanted=f"a multiple of {num_ranks}",
            remedy="Choose a multiple: each rank takes the same number of packs per step.",
        )
    if trainer is None:
        return
    per_rank = packs_per_step // num_ranks
    if trainer.accumulate_grad_batches != per_rank:
        raise ConfigError(
            "trainer.accumulate_grad_batches",
            found=str(trainer.accumulate_grad_batches),
            wanted=f"{per_rank}: packs_per_step {packs_per_step} on {num_ranks} ranks",
            remedy="Set this value, or leave packs_per_step out.",
        )
    limit = trainer.limit_train_batches  # overfit_batches and fast_dev_run set it, too
    is_cut = limit != 1 if isinstance(limit, float) else limit % per_rank != 0
    if per_rank > 1 and is_cut and not trainer.fast_dev_run:
        raise ConfigError(
            f"trainer.{'overfit' if trainer.overfit_batches else 'limit_train'}_batches",
            found=str(limit),
            wanted=f"a multiple of {per_rank}, the micro-batches of an optimizer step on each rank",
            remedy=f"Set {per_rank} for one step, {10 * per_rank} for ten: the loss of a step that "
            "is cut short would be divided by the tokens of all its packs.",
        )
