"""Which sample is trained on when: a pure function of the index, the seed and the epoch.

It does not depend on ranks, on workers, or on where a run was interrupted.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from mathcanvas_lightning.batch import LossTotals
from mathcanvas_lightning.data.plan.bin_packing import fill_packs
from mathcanvas_lightning.data.plan.schedule import FILLER, Schedule, schedule
from mathcanvas_lightning.data.rows.readers import RowFormat
from mathcanvas_lightning.data.sequence.rng import element_uniforms, generator, hash64
from mathcanvas_lightning.data.sequence.roles import (
    NO_DROPOUT,
    DropoutConfig,
    Elements,
    Ints,
    assign_roles,
    find_dropped,
    loss_totals,
    packed_lengths,
)
from mathcanvas_lightning.errors import ConfigError

WINDOW_ROWS = 2_000
"""Samples that are packed together."""
KEPT_QUARTERS = 3
"""Quarters of a window's packs that are kept; the samples of the rest move to the next window."""
DIGEST_LENGTH = 16
MAX_SAMPLES = 2**31 - 1
"""Maximum number of samples of a data set in an epoch."""
CHUNK_ROWS = 50_000
CHUNK_ELEMENTS = 500_000
"""Rows and elements whose random numbers are in memory at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDataset:
    """The rows of a data set as numbers; each row fits into a pack."""

    name: str
    """Unique name of the data set."""
    row_format: RowFormat
    elements: Elements
    """Elements of the N rows."""
    counters: Ints
    """[N] number of each row's first element, the counter of its random numbers."""
    row_groups: Ints
    """[N] row group of each row; rows of a group are consecutive."""
    weight: float | None
    """Share of the samples, relative to the other weights; None: each row once per epoch."""
    dropout: DropoutConfig
    digest: str = ""
    """Hash of the contents and of which rows are used."""

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.row_groups)

    @property
    def has_fixed_lengths(self) -> bool:
        """Whether no random choice changes the length of a row."""
        return self.row_format in ("interleaved", "vlm") and self.dropout == NO_DROPOUT


@dataclass(frozen=True, kw_only=True)  # no slots: a property is cached
class EpochPlan:
    """The packs of an epoch: [S] samples in order, [P] packs."""

    epoch: int
    datasets: Ints
    """[S] int16, number of the data set."""
    rows: Ints
    """[S] int32, row of the data set."""
    visits: Ints
    """[S] int64, number of earlier visits to the data set, over all epochs."""
    lengths: Ints
    """[S] int32, tokens of each sample."""
    losses: npt.NDArray[np.float32]
    """[S, 4] contribution of each sample to `LossTotals`, in the order of its fields."""
    pack_ends: Ints
    """[P] end of each pack: one after its last sample."""
    capacity: int
    """Tokens that a pack may hold."""
    source: str = ""
    """Digest of the input of the plan."""

    @property
    def num_packs(self) -> int:
        """P."""
        return len(self.pack_ends)

    @property
    def fill(self) -> float:
        """Used share of the packs' capacity, 0 to 1."""
        return float(self.lengths.sum(dtype=np.int64)) / max(1, self.num_packs * self.capacity)

    @cached_property
    def digest(self) -> str:
        """Hash of the input of the plan, and of which sample is in which pack."""
        found = hashlib.sha256(f"{self.source} {self.epoch}".encode())
        for array in (self.datasets, self.rows, self.visits, self.lengths, self.pack_ends):
            found.update(np.ascontiguousarray(array, "<i8").data)
        return found.hexdigest()[:DIGEST_LENGTH]

    def loss_totals(self, packs: Sequence[int]) -> LossTotals:
        """Denominators of the losses over some packs; fillers contribute nothing."""
        indexes = [index for pack in packs if pack != FILLER for index in self.samples(pack)]
        ce, square, sample, mse = self.losses[indexes].sum(axis=0, dtype=np.float64).tolist()
        return LossTotals(
            ce_tokens=round(ce), ce_square=square, ce_sample=sample, mse_tokens=round(mse)
        )

    def samples(self, pack: int) -> range:
        """Indexes of a pack's samples in the arrays."""
        return range(int(self.pack_ends[pack - 1]) if pack else 0, int(self.pack_ends[pack]))


class Plan:
    """All epochs of a run.

    Args:
        datasets: One or more data sets, none of them empty.
        seed: Seed of the order and of all random numbers.
        max_num_tokens: Capacity of a pack, in tokens; no row is longer.
        shuffle: False keeps rows and packs in order, as for validation.
    """

    def __init__(
        self,
        datasets: Sequence[PlannedDataset],
        *,
        seed: int,
        max_num_tokens: int,
        shuffle: bool = True,
    ) -> None:
        self.datasets = tuple(datasets)
        self.seed = seed
        self.max_num_tokens = max_num_tokens
        self.shuffle = shuffle
        self.quotas = _quotas(self.datasets)
        self.epoch = lru_cache(maxsize=2)(self._epoch)
        self._num_packs: dict[int, int] = {}

    def num_packs(self, epoch: int) -> int:
        """Number of packs of an epoch; planned once, or not at all if all epochs have as many."""
        if self._packs_of_any_epoch is not None:
            return self._packs_of_any_epoch
        if epoch not in self._num_packs:
            self._num_packs[epoch] = self.epoch(epoch).num_packs
        return self._num_packs[epoch]

    @cached_property
    def _packs_of_any_epoch(self) -> int | None:
        """Number of packs of each epoch if it is known without planning, else None.

        It is known if a pack holds as many of the longest rows as of the shortest: each pack but
        the last one has this number of rows, whatever their order is.
        """
        if not all(data.has_fixed_lengths for data in self.datasets):
            return None
        lengths = [packed_lengths(data.elements, data.elements.roles) for data in self.datasets]
        rows_per_pack = {
            self.max_num_tokens // int(length)
            for of_set in lengths
            for length in (of_set.min(), of_set.max())
        }
        if len(rows_per_pack) > 1:
            return None
        return -(-sum(self.quotas) // rows_per_pack.pop())

    @cached_property
    def digest(self) -> str:
        """Hash of the data sets, in their order, and the settings of the plan."""
        datasets = [
            (d.name, d.row_format, d.num_rows, d.weight, d.dropout, d.digest) for d in self.datasets
        ]
        described = repr((self.seed, self.max_num_tokens, self.shuffle, datasets))
        return hashlib.sha256(described.encode()).hexdigest()[:DIGEST_LENGTH]

    def schedule(
        self, epoch: int, packs_per_step: int, segments: Sequence[tuple[int, int]] = ()
    ) -> Schedule:
        """The steps of an epoch.

        Args:
            epoch: Epoch, from 0.
            packs_per_step: B, packs of an optimizer step.
            segments: Parts of the epoch that were done with other numbers of packs per step:
                (packs per step, steps).

        Returns:
            The remaining steps.
        """
        return schedule(self.num_packs(epoch), segments, packs_per_step)

    def total_steps(self, max_epochs: int, packs_per_step: int) -> int:
        """Exact number of optimizer steps of a run; epochs differ by a few steps.

        Args:
            max_epochs: Number of epochs.
            packs_per_step: B, packs of an optimizer step.

        Returns:
            The sum over its epochs.
        """
        return sum(-(-self.num_packs(epoch) // packs_per_step) for epoch in range(max_epochs))

    def stream(self, dataset: int) -> int:
        """Key of the random numbers of a data set, see `element_uniforms`."""
        # The word is part of the key: another one would change the packs of every run.
        return hash64("draws", self.seed, self.datasets[dataset].name)

    def _epoch(self, epoch: int) -> EpochPlan:
        random = generator("order", self.seed, epoch)
        parts = [self._visits(d, epoch, random) for d in range(len(self.datasets))]
        datasets = np.concatenate(
            [np.full(len(rows), d, np.int16) for d, (rows, *_) in enumerate(parts)]
        )
        rows, visits, lengths, losses = (np.concatenate(a) for a in zip(*parts, strict=True))
        order = np.argsort(
            np.concatenate([(np.arange(len(r)) + 0.5) / len(r) for r, *_ in parts]),
            kind="stable",
        )
        sequence, pack_ends = _pack(lengths[order], self.max_num_tokens, random, self.shuffle)
        order = order[sequence]
        return EpochPlan(
            epoch=epoch,
            datasets=datasets[order],
            rows=rows[order],
            visits=visits[order],
            lengths=lengths[order],
            losses=losses[order],
            pack_ends=pack_ends,
            capacity=self.max_num_tokens,
            source=self.digest,
        )

    def _visits(self, dataset: int, epoch: int, random: np.random.Generator) -> tuple[Ints, ...]:
        """Rows, visits, lengths and losses of one data set; row groups in random order."""
        data, quota = self.datasets[dataset], self.quotas[dataset]
        whole, rest = divmod(quota, data.num_rows)
        num_visits = whole + (rest > 0)
        visits = epoch * num_visits + np.arange(num_visits)
        rows = _row_orders(data.row_groups, num_visits, random if self.shuffle else None)
        lengths, losses = self._measure(dataset, visits)
        chosen = np.ones(rows.shape, bool)
        if rest:
            chosen[-1] = _rotating_part(data.num_rows, epoch * rest, rest, self.seed)[rows[-1]]
        number, _ = np.nonzero(chosen)
        rows = rows[chosen]
        return rows.astype(np.int32), visits[number], lengths[number, rows], losses[number, rows]

    def _measure(self, dataset: int, visits: Ints) -> tuple[Ints, npt.NDArray[np.float32]]:
        """[V, N] lengths and [V, N, 4] losses of all rows of a data set in V visits."""
        data = self.datasets[dataset]
        shape = (len(visits), data.num_rows)
        lengths = np.empty(shape, np.int32)
        losses = np.empty((*shape, len(fields(LossTotals))), np.float32)
        for start, stop in _chunks(data.counters, data.elements):
            chunk, counters = data.elements.rows(start, stop), data.counters[start:stop]
            # A small data set is visited often: many of its visits make one chunk.
            at_once = max(1, min(CHUNK_ROWS // (stop - start), CHUNK_ELEMENTS // len(chunk.roles)))
            for first in range(0, len(visits), at_once):
                some = visits[first : first + at_once]
                repeated = chunk.repeated(len(some))
                uniforms = np.concatenate(
                    [self._uniforms(dataset, int(visit), chunk, counters) for visit in some]
                )
                roles = assign_roles(data.row_format, repeated, uniforms)
                drop, drop_vit = find_dropped(roles, uniforms, data.dropout)
                here = slice(first, first + len(some)), slice(start, stop)
                found = packed_lengths(repeated, roles, drop, drop_vit)
                lengths[here] = found.reshape(len(some), -1)
                found_losses = loss_totals(repeated, roles, drop)
                losses[here] = found_losses.reshape(len(some), stop - start, -1)
        return lengths, losses

    def _uniforms(self, dataset: int, visit: int, chunk: Elements, counters: Ints) -> np.ndarray:
        """[E, 4] random numbers of some rows; their counters increase, with gaps."""
        counts = np.diff(chunk.offsets)
        first, last = int(counters[0]), int(counters[-1] + counts[-1])
        uniforms = element_uniforms(self.stream(dataset), visit, first, last)
        if last - first == len(chunk.roles):
            return uniforms
        within = np.arange(len(chunk.roles)) - np.repeat(chunk.offsets[:-1], counts)
        return uniforms[np.repeat(counters - first, counts) + within]


def _quotas(datasets: Sequence[PlannedDataset]) -> tuple[int, ...]:
    """Samples of each data set in an epoch.

    Without a weight: each row once. The shares of the data sets with weights are their weights, and
    the one with the smallest weight per row is visited once per epoch.

    Raises:
        ConfigError: If the weights differ too much.
    """
    per_row = min((d.weight / d.num_rows for d in datasets if d.weight is not None), default=1.0)
    shares = [d.num_rows if d.weight is None else d.weight / per_row for d in datasets]
    for data, share in zip(datasets, shares, strict=True):
        if share > MAX_SAMPLES:
            raise ConfigError(
                f"weight of the data set {data.name}",
                found=f"{data.weight}, {share:.2g} samples an epoch: so often would be visited once"
                " each row of the data set with the smallest weight per row",
                wanted=f"weights for at most {MAX_SAMPLES:.2g} samples",
                remedy="Choose weights that differ less; they are shares of the samples.",
            )
    return tuple(max(d.num_rows, round(s)) for d, s in zip(datasets, shares, strict=True))


def _chunks(counters: Ints, elements: Elements) -> Iterator[tuple[int, int]]:
    """Splits rows by their number and by the span of their counters, which may have gaps."""
    ends = counters + np.diff(elements.offsets)
    start = 0
    while start < len(counters):
        stop = int(np.searchsorted(ends, counters[start] + CHUNK_ELEMENTS, side="right"))
        stop = min(max(stop, start + 1), start + CHUNK_ROWS)
        yield start, stop
        start = stop


def _row_orders(row_groups: Ints, num_visits: int, random: np.random.Generator | None) -> Ints:
    """[V, N] all rows for each visit, group by group; the groups are shuffled."""
    num_rows = len(row_groups)
    within = np.arange(num_visits * num_rows) % num_rows
    if random is None:
        return within.reshape(num_visits, num_rows)
    starts = np.flatnonzero(np.diff(row_groups, prepend=row_groups[0] - 1))
    counts = np.diff(np.append(starts, num_rows))
    shuffled = np.stack([random.permutation(len(starts)) for _ in range(num_visits)])
    counts = counts[shuffled]
    before = np.cumsum(counts, axis=1) - counts
    order: Ints = within + np.repeat(starts[shuffled] - before, counts.ravel())
    return order.reshape(num_visits, num_rows)


def _rotating_part(num_rows: int, start: int, count: int, seed: int) -> np.ndarray:
    """[N] bool: `count` rows, rotated from epoch to epoch, so that all occur equally often."""
    fixed = generator("rest", seed, num_rows).permutation(num_rows)
    chosen = np.zeros(num_rows, bool)
    chosen[fixed[(start + np.arange(count)) % num_rows]] = True
    return chosen


def _pack(
    lengths: Ints, capacity: int, random: np.random.Generator, shuffle: bool
) -> tuple[Ints, Ints]:
    """Packs window by window; samples of the packs filled last move to the next window.

    Returns:
        [S] indexes in the order of training, [P] end of each pack.
    """
    sequence = [np.zeros(0, np.int64)]
    sizes = [np.zeros(0, np.int64)]
    left = np.zeros(0, np.int64)
    for start, stop in _windows(len(lengths)):
        rows = np.concatenate([left, np.arange(start, stop)])
        packs = fill_packs(lengths[rows], capacity, random)
        rows = rows[np.fromiter(itertools.chain.from_iterable(packs), np.int64, len(rows))]
        counts = np.fromiter(map(len, packs), np.int64, len(packs))
        kept = len(packs) if stop == len(lengths) else len(packs) * KEPT_QUARTERS // 4
        num_kept = counts[:kept].sum()
        rows, left = rows[:num_kept], rows[num_kept:]
        order = random.permutation(kept) if shuffle else np.arange(kept)
        sequence.append(rows[_runs(counts[:kept], order)])
        sizes.append(counts[order])
    return np.concatenate(sequence), np.cumsum(np.concatenate(sizes))


def _runs(counts: Ints, order: Ints) -> Ints:
    """Indexes of the elements of consecutive runs, when the runs are put into this order."""
    starts = np.cumsum(counts) - counts
    ordered = counts[order]
    before = np.cumsum(ordered) - ordered
    found: Ints = np.arange(counts.sum()) + np.repeat(starts[order] - before, ordered)
    return found


def _windows(num_rows: int) -> Iterator[tuple[int, int]]:
    """Splits rows into windows of at least `WINDOW_ROWS` rows; fewer rows are one window."""
    count = max(1, num_rows // WINDOW_ROWS)
    bounds = np.linspace(0, num_rows, count + 1).astype(np.int64).tolist()
    return itertools.pairwise(bounds)
