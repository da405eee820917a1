"""Builds the tensors of planned packs, in worker processes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch.utils.data import Dataset, get_worker_info

from mathcanvas_lightning.batch import LossTotals, PackedBatch, SampleInfo, TokenGeometry
from mathcanvas_lightning.common.paths import without_query
from mathcanvas_lightning.data.rows.left_out import (
    ROW_ERRORS,
    LeftOutRow,
    NoSampleError,
    row_boundary,
    stage_of,
)
from mathcanvas_lightning.data.rows.readers import Element
from mathcanvas_lightning.data.rows.row_cache import RowCache
from mathcanvas_lightning.data.rows.source import Rows, RowSource, row_place
from mathcanvas_lightning.data.sequence.encode import RowSettings, measure, prepare
from mathcanvas_lightning.data.sequence.pack import PackItem, filler_pack, pack_samples
from mathcanvas_lightning.data.sequence.rng import element_uniforms, hash64
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import DataError, MathCanvasError

RowGroupKey = tuple[int, str, int]
CACHE_BYTES = 2 * 2**30
"""Memory for rows that are needed soon, of all workers of a rank together."""


@dataclass(frozen=True, slots=True)
class SampleRef:
    """A planned sample: the location of its row, and its planned length."""

    dataset: int
    """Number of the data set."""
    path: str
    row_group: int
    row: int
    """Row number within the row group."""
    uid: str
    counter: int
    """Number of the first element, the counter of its random numbers."""
    visit: int
    """Number of earlier visits to the data set."""
    length: int
    """Tokens in the pack."""

    @property
    def group(self) -> RowGroupKey:
        """Data set, file and row group."""
        return self.dataset, self.path, self.row_group


@dataclass(frozen=True, slots=True)
class PackTask:
    """A planned pack; a filler if it has no samples."""

    epoch: int
    step: int
    samples: tuple[SampleRef, ...]
    step_totals: LossTotals
    wanted: Mapping[RowGroupKey, frozenset[int]] = field(default_factory=dict)
    """Rows that the same worker will need soon, of the row groups of these samples."""


@dataclass(frozen=True, slots=True)
class DatasetReader:
    """Reads and encodes the rows of a data set."""

    name: str
    source: RowSource
    settings: RowSettings
    stream: int
    """Key of its random numbers."""


@dataclass(frozen=True, slots=True)
class LoadedPack:
    """A pack as a worker built it."""

    task: PackTask
    pack: PackedBatch
    samples: tuple[SampleInfo, ...]
    image_seeds: tuple[int, ...]
    bad: tuple[LeftOutRow, ...]
    """Unreadable rows; holes replace them in the pack."""

    def __post_init__(self) -> None:
        """Makes the layout of the pack here, in the worker."""
        _ = self.pack.layout

    def pin_memory(self) -> "LoadedPack":
        """Copies the tensors to page-locked memory; the DataLoader calls it."""
        return replace(self, pack=self.pack.pin_memory())


class PackDataset(Dataset[LoadedPack | MathCanvasError]):
    """Builds packs; the same task gives the same pack in every process.

    Args:
        readers: Readers of the data sets, by number.
        tokenizer: Tokenizer of the texts.
        geometry: Patch sizes and position tables of the model.
        interpolate_positions: See `pack_samples`.
    """

    def __init__(
        self,
        readers: Sequence[DatasetReader],
        tokenizer: TextTokenizer,
        geometry: TokenGeometry,
        *,
        interpolate_positions: bool = False,
    ) -> None:
        self._readers = tuple(readers)
        self._tokenizer = tokenizer
        self._geometry = geometry
        self._interpolate = interpolate_positions
        self._cache: RowCache | None = None  # made in the worker

    def __getitem__(self, task: PackTask) -> LoadedPack | MathCanvasError:
        """Builds a pack.

        Args:
            task: The planned pack.

        Returns:
            The pack, or the exception: DataLoader rebuilds worker exceptions from their message
            and would lose our fields.
        """
        try:
            return self._build(task)
        except MathCanvasError as error:
            return error

    def _build(self, task: PackTask) -> LoadedPack:
        special = self._tokenizer.special
        if not task.samples:
            return LoadedPack(task, filler_pack(self._geometry, special), (), (0,), ())
        items: list[PackItem] = []
        infos: list[SampleInfo] = []
        seeds: list[int] = []
        bad: list[LeftOutRow] = []
        for ref in task.samples:
            prepared = self._prepare(ref, task.wanted.get(ref.group, ()))
            hole = isinstance(prepared, LeftOutRow)
            infos.append(
                SampleInfo(
                    uid=ref.uid,
                    dataset=self._readers[ref.dataset].name,
                    num_tokens=ref.length,
                    is_hole=hole,
                )
            )
            if isinstance(prepared, LeftOutRow):
                bad.append(prepared)
                items.append(PackItem(hole_tokens=ref.length))
            else:
                items.append(prepared)
                seeds += self._image_seeds(ref, prepared)
        pack = pack_samples(items, self._geometry, special, interpolate_positions=self._interpolate)
        return LoadedPack(task, pack, tuple(infos), tuple(seeds), tuple(bad))

    def _prepare(self, ref: SampleRef, wanted: Collection[int]) -> PackItem | LeftOutRow:
        source = self._readers[ref.dataset].source
        if self._cache is None:
            worker = get_worker_info()
            self._cache = RowCache(CACHE_BYTES // (1 if worker is None else worker.num_workers))
        try:
            rows = self._cache.read(
                ref.group, ref.row, wanted, partial(source.read, ref.path, ref.row_group)
            )
        except DataError as error:
            return self._left_out(ref, "read", str(error))
        try:
            with row_boundary(row_place(ref.path, ref.row_group, ref.row)):
                item, length = self._encode(ref, rows)
        except NoSampleError as error:
            return self._left_out(ref, "row", f"no longer a training sample: {error}")
        except ROW_ERRORS as error:
            return self._left_out(ref, stage_of(error), str(error))
        if length != ref.length:
            message = f"{length} tokens, but {ref.length} in the index: build the index again"
            return self._left_out(ref, "length", message)
        return item

    def _encode(self, ref: SampleRef, rows: Rows) -> tuple[PackItem, int]:
        reader = self._readers[ref.dataset]
        source = reader.source
        sample = source.sample(rows, ref.path, ref.row_group, ref.row)
        if sample.uid != ref.uid:
            raise DataError(
                row_place(ref.path, ref.row_group, ref.row),
                found=f"the row {sample.uid:.80}",
                wanted=f"the row {ref.uid:.80}, as in the index",
                remedy="The file has changed: start again, and the index is built again.",
            )

        def read_image(element: Element) -> bytes:
            return source.read_image(element, ref.path)

        measured = measure(sample, self._tokenizer, source.limits, read_image)
        stop = ref.counter + len(measured.elements)
        uniforms = element_uniforms(reader.stream, ref.visit, ref.counter, stop)
        return prepare(measured, reader.settings, self._geometry, self._tokenizer, uniforms)

    def _image_seeds(self, ref: SampleRef, item: PackItem) -> list[int]:
        stream = self._readers[ref.dataset].stream
        return [
            hash64("noise", stream, ref.visit, ref.counter + element) >> 1  # torch takes 63 bits
            for element in item.vae_pixels
        ]

    def _left_out(self, ref: SampleRef, stage: str, error: str) -> LeftOutRow:
        return LeftOutRow(
            uid=ref.uid,
            path=without_query(ref.path),
            row_group=ref.row_group,
            row=ref.row,
            stage=stage,
            error=error,
            dataset=self._readers[ref.dataset].name,
        )
