"""True drawings of records, for answers that have these instead of the model's own."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from mathcanvas_lightning.data.rows.schema import ImageSegment, example_from_row
from mathcanvas_lightning.data.sequence.rng import generator
from mathcanvas_lightning.errors import DataError, InputError
from mathcanvas_lightning.generation.requests import DrawingsUse
from mathcanvas_lightning.records.access import Access
from mathcanvas_lightning.records.pictures import UNREADABLE, Picture, PictureError, load_pictures
from mathcanvas_lightning.records.record import Record, RecordInput, as_list, iter_records

SOLUTION_COLUMNS = {"solution_interleave", "solution_images"}
BLOCK_RECORDS = 64
"""Number of neighbouring records among which drawings are shuffled; limits the memory."""
T = TypeVar("T")


def true_drawings(record: Record, field: str) -> tuple[Picture, ...]:
    """Reads the drawings of a record's solution, in the order of its steps.

    Args:
        record: A row of an interleaved shard, or a record with a field of pictures.
        field: Name of that field; ignored for a row with an interleaved solution.

    Returns:
        The drawings; none if the record has no solution.

    Raises:
        PictureError: If a drawing is missing or broken.
    """
    if record.values.keys() >= SOLUTION_COLUMNS:
        references = _of_solution(record)
    else:
        references = as_list(record.values.get(field))
    access: Access = "any" if record.allow_any_path else "web"
    place = f"{record.uid}, solution"
    return load_pictures(references, record.image_base, place=place, access=access)


def _of_solution(record: Record) -> list[bytes]:
    other = {"answer": None, "question_interleave": None, "question_images": None}
    try:
        solution = example_from_row({**record.values, **other}, place=record.uid).solution
    except DataError as error:
        raise PictureError(UNREADABLE, str(error)) from None
    return [segment.data for segment in solution if isinstance(segment, ImageSegment)]


def shuffled(drawings: Sequence[Sequence[T]], *key: object) -> list[list[T]]:
    """Gives each problem the drawings of others, step by step.

    Args:
        drawings: The drawings of each problem, in the order of its steps.
        key: Random key.

    Returns:
        For each problem as many drawings as it has; each one is the drawing of the same step of
        another problem, and all are given to one problem. A drawing is left out, with those
        behind it, if no other problem has this step.
    """
    found: list[list[T]] = [[] for _ in drawings]
    for step in range(max(map(len, drawings), default=0)):
        owners = [number for number, own in enumerate(drawings) if len(own) > step]
        if len(owners) < 2:
            break
        order = [owners[index] for index in generator(*key, step).permutation(len(owners))]
        for taker, giver in zip(order, [*order[1:], order[0]], strict=True):
            found[taker].append(drawings[giver][step])
    return found


class GivenDrawings:
    """The drawings that the answers to an input have, if they are not the model's own.

    Shuffled drawings are taken from the `BLOCK_RECORDS` neighbours of a record in its file, so that
    they depend only on the file and the seed, and few records are in memory.

    Args:
        use: "reference" or "shuffled".
        source: The input.
        seed: Seed of the shuffling.
        skipped: Positions of records that are left out.
    """

    def __init__(
        self, use: DrawingsUse, source: RecordInput, *, seed: int, skipped: Collection[int]
    ) -> None:
        self._use, self._field, self._seed = use, source.drawings_field, seed
        records = iter_records(source, skipped=skipped)
        self._blocks = groupby(records, lambda record: record.position // BLOCK_RECORDS)
        self._block: dict[int, Sequence[Picture]] = {}
        self._ready: dict[int, tuple[Picture, ...] | PictureError] = {}

    def passed(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yields records, and makes their drawings ready.

        Args:
            records: Records of the input, in its order.
        """
        for record in records:
            try:
                self._ready[record.position] = self._drawings(record)
            except PictureError as error:
                self._ready[record.position] = error
            yield record

    def take(self, record: Record) -> tuple[Picture, ...]:
        """The drawings for the answer to a record that has passed, in any order.

        Raises:
            PictureError: If one of its drawings is broken.
        """
        found = self._ready.pop(record.position)
        if isinstance(found, PictureError):
            raise found
        return found

    def _drawings(self, record: Record) -> tuple[Picture, ...]:
        if self._use == "reference":
            return true_drawings(record, self._field)
        while record.position not in self._block:
            number, records = next(self._blocks)
            self._block = self._shuffle(number, list(records))
        return tuple(self._block[record.position])

    def _shuffle(self, number: int, records: Sequence[Record]) -> dict[int, Sequence[Picture]]:
        drawings = [list(_readable(record, self._field)) for record in records]
        found = shuffled(drawings, "drawings", self._seed, number)
        return {record.position: one for record, one in zip(records, found, strict=True)}


def _readable(record: Record, field: str) -> tuple[Picture, ...]:
    """The drawings of a record as material for others; a broken record gives none."""
    try:
        return true_drawings(record, field)
    except PictureError:
        return ()


def require_drawings(source: RecordInput, use: DrawingsUse, skipped: Collection[int]) -> None:
    """Checks that an input has true drawings, before a model is started.

    Args:
        source: The input.
        use: Use of the drawings.
        skipped: Positions of records that are left out.

    Raises:
        InputError: If no record has any.
    """
    if not any(_has_drawings(iter_records(source, skipped=skipped), source.drawings_field)):
        raise InputError(
            source.path,
            found=f"no drawings in the solutions of its records (nor in {source.drawings_field!r})",
            wanted=f"records with true drawings, for drawings: {use}",
            remedy="Use shards of interleaved solutions, name the field with drawings_field, or "
            "set drawings to own or none.",
        )


def _has_drawings(records: Iterable[Record], field: str) -> Iterator[bool]:
    for record in records:
        yield bool(_readable(record, field))
