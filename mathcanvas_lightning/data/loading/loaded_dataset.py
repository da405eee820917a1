"""Data sets of a run: indexed, checked and ready for planning."""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from mathcanvas_lightning.batch import TokenGeometry
from mathcanvas_lightning.common.paths import is_remote, local_path, plain_path, without_query
from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.index.index import DatasetIndex, build_index
from mathcanvas_lightning.data.loading.config import DatasetConfig, TokenBudget
from mathcanvas_lightning.data.plan.epoch import PlannedDataset
from mathcanvas_lightning.data.rows.left_out import TOO_LONG, LeftOutRow
from mathcanvas_lightning.data.rows.readers import Role
from mathcanvas_lightning.data.rows.source import RowSource
from mathcanvas_lightning.data.sequence.encode import RowSettings
from mathcanvas_lightning.data.sequence.rng import generator, hash64
from mathcanvas_lightning.data.sequence.roles import DropoutConfig, Elements, Ints, longest_lengths
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import ConfigError, DataError
from mathcanvas_lightning.storage.files import Storage

logger = logging.getLogger(__name__)

MAX_LISTED = 10
HELD_OUT = frozenset({"test", "val", "valid", "validation", "eval", "dev"})
_HUB_SHARD = re.compile(r"(\w+)-\d+-of-\d+")
"""Name of a shard on the Hugging Face hub, which begins with its split."""
_DRAWN = (Role.DRAWN_IMAGE, Role.TARGET_IMAGE)
MAX_COUNTED_IMAGES = 2**12 - 1
"""Maximum number of images per row in the size computation; it is stored in 12 bits of a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedDataset:
    """A data set with its index and the rows to train on."""

    config: DatasetConfig
    source: RowSource
    settings: RowSettings
    index: DatasetIndex
    rows: Ints
    """[N] numbers of the used rows in the index."""
    planned: PlannedDataset
    """The used rows as numbers, input of the epoch plan."""
    left_out: tuple[LeftOutRow, ...]
    """Rows that are not used: no training sample, damaged, or too long."""
    fingerprint: str
    """Hash of configuration and contents."""

    @property
    def num_indexed(self) -> int:
        """Rows of all files."""
        return self.index.num_rows + len(self.index.left_out)

    def drawing_sizes(self) -> Counter[tuple[int, int]]:
        """Counts the sizes (width, height) in pixels in which the images to draw are trained."""
        drawn = self.index.widths_px[np.isin(self.index.roles, _DRAWN)]
        heights = self.index.heights_px[np.isin(self.index.roles, _DRAWN)]
        sizes, counts = np.unique(np.stack([drawn, heights], 1), axis=0, return_counts=True)
        sized: Counter[tuple[int, int]] = Counter()
        for (width, height), count in zip(sizes.tolist(), counts.tolist(), strict=True):
            sized[self.settings.vae_transform.output_size(width, height)] += count
        return sized


def index_dataset(
    config: DatasetConfig,
    tokenizer: TextTokenizer,
    storage: Storage,
    limits: ImageLimits,
    *,
    index_dir: str | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> tuple[RowSource, DatasetIndex]:
    """Builds or loads the index of a data set.

    Args:
        config: The data set.
        tokenizer: Tokenizer of the texts.
        storage: Reads the files.
        limits: Maximum sizes of images.
        index_dir: See `build_index`.
        num_workers: See `build_index`.
        progress: See `build_index`.

    Returns:
        The reader of its rows, and their index.

    Raises:
        ConfigError: If a number in the configuration is out of range.
        DataError: If there is no file, or a file can't be opened.
        StorageError: If the server fails.
    """
    config.check()
    source = RowSource(config.format, storage, config.image_dir, limits)
    index = build_index(
        config.path,
        source,
        tokenizer,
        index_dir=index_dir,
        num_workers=num_workers,
        progress=progress,
    )
    return source, index


def load_dataset(
    config: DatasetConfig,
    source: RowSource,
    index: DatasetIndex,
    *,
    geometry: TokenGeometry,
    budget: TokenBudget,
    dropout: DropoutConfig,
) -> LoadedDataset:
    """Counts the tokens of all rows, and checks that they fit the model and the budget.

    Args:
        config: The data set.
        source: Reads the rows.
        index: Index of the rows.
        geometry: Patch sizes and position tables of the model.
        budget: Maximum lengths.
        dropout: Probabilities of dropping conditions.

    Returns:
        The data set.

    Raises:
        ConfigError: If an image doesn't fit a position table.
        DataError: If rows are too long and the budget refuses them.
    """
    settings = RowSettings(
        row_format=config.format,
        vae_transform=config.vae_transform,
        vit_transform=config.vit_transform,
        dropout=dropout,
        limits=source.limits,
    )
    elements = _count_tokens(config, index, settings, geometry)
    lengths = longest_lengths(config.format, elements) if index.num_rows else np.empty(0, np.int64)
    fits = lengths <= budget.max_num_tokens_per_sample
    too_long = _left_out_too_long(config, index, lengths, fits, budget)
    rows = np.flatnonzero(fits)
    if config.fraction < 1:
        count = -(-len(rows) * config.fraction // 1)
        chosen = generator("fraction", config.label).permutation(len(rows))[: int(count)]
        rows = rows[np.sort(chosen)]
    return LoadedDataset(
        config=config,
        source=source,
        settings=settings,
        index=index,
        rows=rows,
        planned=_plan_input(config, index, elements, rows, dropout),
        left_out=tuple(replace(row, dataset=config.label) for row in (*index.left_out, *too_long)),
        fingerprint=f"{hash64(index.digest, asdict(config) | {'path': None}):x}",
    )


def check_datasets(datasets: Sequence[LoadedDataset]) -> None:
    """Checks that each data set has samples and a unique name.

    Raises:
        ConfigError: If two data sets have the same name.
        DataError: If a data set has no sample.
    """
    labels = [data.config.label for data in datasets]
    if doubles := {label for label in labels if labels.count(label) > 1}:
        raise ConfigError(
            "names of the data sets",
            found=f"{', '.join(sorted(doubles))} twice",
            wanted="unique names",
            remedy="Set `name` of each data set.",
        )
    for data in datasets:
        if not len(data.rows):
            reasons = sorted({f"{row.stage}: {row.error}" for row in data.left_out})
            raise DataError(
                without_query(data.config.path),
                found=f"no sample among {data.num_indexed} rows "
                f"({'; '.join(reasons[:3]) or 'its files are empty'})",
                wanted=f"rows of the format {data.config.format}",
                remedy="Check path and format, or leave the data set out.",
            )


def warn_of_repeated_files(datasets: Sequence[LoadedDataset]) -> None:
    """Warns if a data set reaches a file twice, through links: its rows count twice."""
    for data in datasets:
        files = [file for file in data.index.files if not is_remote(file)]
        real = Counter(str(local_path(file).resolve()) for file in files)
        if repeated := sorted(path for path, count in real.items() if count > 1):
            logger.warning(
                "%s: the data set %s reaches %d files more than once, through links, and trains on "
                "their rows each time; the first one is %s",
                without_query(data.config.path),
                data.config.label,
                len(repeated),
                repeated[0],
            )


def warn_of_test_rows(datasets: Sequence[LoadedDataset]) -> None:
    """Warns if a data set to train on holds both training and test rows, as a folder of splits."""
    for data in datasets:
        root = without_query(plain_path(data.config.path)).rstrip("/")
        inside = [without_query(file).removeprefix(root) for file in data.index.files]
        splits = {split for file in inside for split in _splits(file.lower())}
        if "train" in splits and (held_out := sorted(splits & HELD_OUT)):
            logger.warning(
                "%s: the data set %s to train on includes the splits %s; name the folder of the "
                "training rows, or move the other files elsewhere",
                root,
                data.config.label,
                ", ".join(held_out),
            )


def _splits(file: str) -> set[str]:
    """What may be names of splits in a path: folders, and `train` of `train-00000-of-00009`."""
    *folders, name = file.split("/")
    shard = _HUB_SHARD.match(name)
    return {*folders, *([shard[1]] if shard else [])}


def _count_tokens(
    config: DatasetConfig, index: DatasetIndex, settings: RowSettings, geometry: TokenGeometry
) -> Elements:
    """Token counts of all rows; computed once for each image size."""
    images = np.flatnonzero(index.widths_px)
    rows = np.searchsorted(index.offsets, images, side="right") - 1
    per_row = np.bincount(rows, minlength=index.num_rows)[rows] if len(images) else rows
    shared = np.minimum(per_row, settings.num_sharing(MAX_COUNTED_IMAGES))
    keys = (
        (index.widths_px[images].astype(np.int64) << 36)
        | (index.heights_px[images].astype(np.int64) << 12)
        | shared
    )
    sizes, which = np.unique(keys, return_inverse=True)
    tokens = np.zeros((max(1, len(sizes)), 2), np.int32)
    for number, key in enumerate(sizes.tolist()):
        width, height, count = key >> 36, (key >> 12) & 0xFFFFFF, key & MAX_COUNTED_IMAGES
        _check_fits_model(config, settings, geometry, width, height, count)
        tokens[number] = settings.tokens(width, height, count, geometry)
    latent_tokens = np.zeros(len(index.roles), np.int32)
    vit_tokens = np.zeros(len(index.roles), np.int32)
    latent_tokens[images], vit_tokens[images] = tokens[which, 0], tokens[which, 1]
    return Elements(
        offsets=index.offsets,
        roles=index.roles,
        steps=index.steps,
        text_tokens=index.text_tokens,
        latent_tokens=latent_tokens,
        vit_tokens=vit_tokens,
    )


def _check_fits_model(
    config: DatasetConfig,
    settings: RowSettings,
    geometry: TokenGeometry,
    width: int,
    height: int,
    shared: int,
) -> None:
    towers = (
        (
            "vae_transform",
            settings.vae_transform,
            geometry.latent_patch_px,
            geometry.max_latent_side,
        ),
        ("vit_transform", settings.vit_transform, geometry.vit_patch_px, geometry.max_vit_side),
    )
    for name, transform, patch, side in towers:
        if transform.image_stride % patch:
            raise ConfigError(
                f"{name}.image_stride of the data set {config.label}",
                found=str(transform.image_stride),
                wanted=f"a multiple of {patch}, the pixels behind one token",
                remedy="Use the patch size of the model.",
            )
        longest = max(transform.output_size(width, height, shared)) // patch
        if longest > side:
            raise ConfigError(
                f"{name} of the data set {config.label}",
                found=f"{longest} tokens along a side, for images of {width}x{height} pixels",
                wanted=f"at most {side}, the side of the model's position table",
                remedy=f"Lower max_image_size to {side * patch} or less.",
            )


def _left_out_too_long(
    config: DatasetConfig,
    index: DatasetIndex,
    lengths: Ints,
    fits: npt.NDArray[np.bool_],
    budget: TokenBudget,
) -> list[LeftOutRow]:
    rows = np.flatnonzero(~fits).tolist()
    limit = budget.max_num_tokens_per_sample
    if rows and budget.overlong == "refuse":
        listed = ", ".join(f"{index.uids[row]}: {lengths[row]}" for row in rows[:MAX_LISTED])
        more = f" and {len(rows) - MAX_LISTED} more" if len(rows) > MAX_LISTED else ""
        raise DataError(
            without_query(config.path),
            found=f"{len(rows)} of {index.num_rows} samples longer than {limit} tokens "
            f"({listed}{more})",
            wanted=f"at most max_num_tokens_per_sample: {limit}",
            remedy=f"Raise it to {int(lengths.max())}, use smaller images, or set overlong to "
            "quarantine to leave such samples out.",
        )
    return [
        LeftOutRow(
            uid=str(index.uids[row]),
            path=without_query(index.files[index.file_numbers[row]]),
            row_group=int(index.row_groups[row]),
            row=int(index.rows[row]),
            stage=TOO_LONG,
            error=f"up to {lengths[row]} tokens, over {limit}",
        )
        for row in rows
    ]


def _plan_input(
    config: DatasetConfig,
    index: DatasetIndex,
    elements: Elements,
    rows: Ints,
    dropout: DropoutConfig,
) -> PlannedDataset:
    counters = index.offsets[:-1][rows]
    groups = (index.file_numbers.astype(np.int64) << 40) + index.row_groups
    if len(rows) < index.num_rows:
        keep = np.zeros(index.num_rows, bool)
        keep[rows] = True
        elements = _select_rows(elements, keep)
    return PlannedDataset(
        name=config.label,
        row_format=config.format,
        elements=elements,
        counters=counters,
        row_groups=groups[rows],
        weight=config.weight,
        dropout=dropout,
        digest=_digest(index, rows),
    )


def _digest(index: DatasetIndex, rows: Ints) -> str:
    """Hash of the contents of the shards and of the positions of the used rows."""
    found = hashlib.sha256(index.digest.encode())
    for array in (index.file_numbers, index.row_groups, index.rows):
        found.update(np.ascontiguousarray(array[rows], "<i8").data)
    return found.hexdigest()


def _select_rows(elements: Elements, keep: npt.NDArray[np.bool_]) -> Elements:
    counts = np.diff(elements.offsets)
    mask = np.repeat(keep, counts)
    return Elements(
        offsets=np.concatenate([[0], np.cumsum(counts[keep])]),
        roles=elements.roles[mask],
        steps=elements.steps[mask],
        text_tokens=elements.text_tokens[mask],
        latent_tokens=elements.latent_tokens[mask],
        vit_tokens=elements.vit_tokens[mask],
    )
