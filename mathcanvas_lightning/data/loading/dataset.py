"""From a planned pack to its tensors: runs in workers, keeps nothing but a cache."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from mathcanvas_lightning.batch import LossTotals, PackedBatch, SampleInfo, TokenGeometry
from mathcanvas_lightning.common.paths import without_query
from mathcanvas_lightning.data.images.decode import ImageError
from mathcanvas_lightning.data.index.index import LeftOut
from mathcanvas_lightning.data.loading.quarantine import BadRow
from mathcanvas_lightning.data.rows.readers import Element, NoSampleError
from mathcanvas_lightning.data.rows.source import RowCache, RowSource
from mathcanvas_lightning.data.sequence.encode import RowSettings, measure, prepare
from mathcanvas_lightning.data.sequence.pack import PackItem, filler, pack_samples
from mathcanvas_lightning.data.sequence.rng import element_draws, hash64
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import DataError, MathCanvasError


@dataclass(frozen=True, slots=True)
class SampleRef:
    """A planned sample: where its row stands, and what the plan knows of it."""

    dataset: int
    path: str
    row_group: int
    row: int
    """In the row group."""
    uid: str
    counter: int
    """Number of its first element, for its draws."""
    visit: int
    """How often its data set was visited before."""
    length: int
    """Tokens it takes in the pack."""


@dataclass(frozen=True, slots=True)
class PackTask:
    """A planned pack; without samples it is a filler."""

    epoch: int
    step: int
    samples: tuple[SampleRef, ...]
    step_totals: LossTotals


@dataclass(frozen=True, slots=True)
class DatasetReader:
    """How the rows of a data set are read and made into tokens."""

    name: str
    source: RowSource
    settings: RowSettings
    stream: int
    """Of its draws."""


@dataclass(frozen=True, slots=True)
class LoadedPack:
    """What a worker made of a task."""

    task: PackTask
    pack: PackedBatch
    samples: tuple[SampleInfo, ...]
    image_seeds: tuple[int, ...]
    bad: tuple[BadRow, ...]
    """Rows in whose place there are holes."""


class PackDataset(Dataset[LoadedPack | MathCanvasError]):
    """Builds packs; any process builds the same from the same task.

    Args:
        readers: Of the data sets.
        tokenizer: For their texts.
        geometry: Patch sizes and position tables.
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
        self._cache = RowCache()

    def __getitem__(self, task: PackTask) -> LoadedPack | MathCanvasError:
        """Builds a pack.

        Args:
            task: What it holds.

        Returns:
            The pack, or the error that stands against it: torch can't carry ours from a worker.
        """
        try:
            return self._build(task)
        except MathCanvasError as error:
            return error

    def _build(self, task: PackTask) -> LoadedPack:
        special = self._tokenizer.special
        if not task.samples:
            return LoadedPack(task, filler(self._geometry, special), (), (0,), ())
        items: list[PackItem] = []
        infos: list[SampleInfo] = []
        seeds: list[int] = []
        bad: list[BadRow] = []
        for ref in task.samples:
            made = self._prepare(ref)
            hole = isinstance(made, BadRow)
            infos.append(
                SampleInfo(
                    uid=ref.uid,
                    dataset=self._readers[ref.dataset].name,
                    num_tokens=ref.length,
                    is_hole=hole,
                )
            )
            if isinstance(made, BadRow):
                bad.append(made)
                items.append(PackItem(hole_tokens=ref.length))
            else:
                items.append(made)
                seeds += self._image_seeds(ref, made)
        pack = pack_samples(items, self._geometry, special, interpolate_positions=self._interpolate)
        return LoadedPack(task, pack, tuple(infos), tuple(seeds), tuple(bad))

    def _prepare(self, ref: SampleRef) -> PackItem | BadRow:
        try:
            item, length = self._read(ref)
        except NoSampleError as error:
            return self._bad(ref, "row", f"no training sample any more: {error}")
        except ImageError as error:
            return self._bad(ref, "image", str(error))
        except _ReadError as error:
            return self._bad(ref, "read", str(error))
        except DataError as error:
            return self._bad(ref, "row", str(error))
        if length != ref.length:
            message = f"{length} tokens, but {ref.length} by the index: build it again"
            return self._bad(ref, "length", message)
        return item

    def _read(self, ref: SampleRef) -> tuple[PackItem, int]:
        reader = self._readers[ref.dataset]
        source = reader.source
        try:
            rows = self._cache.read(ref.dataset, source, ref.path, ref.row_group)
        except DataError as error:
            raise _ReadError(str(error)) from None
        sample = source.sample(rows, ref.path, ref.row_group, ref.row)

        def read_image(element: Element) -> bytes:
            return source.read_image(element, ref.path)

        measured = measure(sample, self._tokenizer, source.limits, read_image)
        stop = ref.counter + len(measured.elements)
        draws = element_draws(reader.stream, ref.visit, ref.counter, stop)
        return prepare(measured, reader.settings, self._geometry, self._tokenizer, draws)

    def _image_seeds(self, ref: SampleRef, item: PackItem) -> list[int]:
        stream = self._readers[ref.dataset].stream
        return [
            hash64("noise", stream, ref.visit, ref.counter + element) >> 1  # torch takes 63 bits
            for element in item.vae_pixels
        ]

    def _bad(self, ref: SampleRef, stage: str, error: str) -> BadRow:
        row = LeftOut(
            uid=ref.uid,
            path=without_query(ref.path),
            row_group=ref.row_group,
            row=ref.row,
            stage=stage,
            error=error,
        )
        return BadRow(self._readers[ref.dataset].name, row)


class _ReadError(Exception):
    """The bytes of a row's group can't be read."""
