"""One record -> one whole example, or the reason why not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mathcanvas_lightning.conversion.input.images import SourceFiles
from mathcanvas_lightning.conversion.rejection import Reason, Reject, Rejection
from mathcanvas_lightning.conversion.sources import Draft, Part, Picture, SourceFormat
from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits, check_image
from mathcanvas_lightning.data.rows.schema import (
    ImageSegment,
    InterleavedExample,
    Segment,
    TextSegment,
)
from mathcanvas_lightning.errors import MathCanvasError

MAX_SAMPLE_BYTES = 2**30
"""Of all images of a sample; Arrow addresses no more than 2 GiB in an array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordConverter:
    """Converts records one by one, keeping no state; small enough to send to workers."""

    source: SourceFormat
    """Understands the records."""
    files: SourceFiles
    """Where their pictures are."""
    limits: ImageLimits
    """Which pictures are refused undecoded."""
    allow_no_solution: bool
    """Whether a sample without a solution becomes a row."""

    def convert(self, number: int, record: Any) -> InterleavedExample | Rejection:
        """Converts one record.

        Args:
            number: Its position in the input, from 0.
            record: Any JSON value.

        Returns:
            The whole example, or why there is none; broken input never raises.

        Raises:
            InputError: If a remote storage fails.
        """
        uid = self.source.uid(record) if isinstance(record, dict) else None
        try:
            if not isinstance(record, dict):
                raise Reject(Reason.NOT_AN_OBJECT, f"{record!r:.80} is not a JSON object")
            draft = self.source.parse(record, self.files)
            uid = draft.uid
            return self._complete(draft, record)
        except Reject as reject:
            reason, message = reject.reason, reject.message
        except MathCanvasError:
            raise
        except Exception as error:  # a format of the user's own may fail on any record
            reason, message = Reason.PARSER_FAILED, f"{type(error).__name__}: {error}"
        return Rejection(record=number, uid=uid, reason=str(reason), message=message)

    def _complete(self, draft: Draft, record: dict[str, Any]) -> InterleavedExample:
        example = InterleavedExample(
            uid=draft.uid,
            question=self._segments(draft.question),
            solution=self._segments(draft.solution),
            answer=draft.answer,
            extras=self.source.extras(record),
        )
        size = sum(len(image.data) for image in example.images)
        if size > MAX_SAMPLE_BYTES:
            raise Reject(Reason.IMAGE_TOO_LARGE, f"{size} bytes of images, over {MAX_SAMPLE_BYTES}")
        _check_encodable(example)
        if not example.question:
            raise Reject(Reason.NO_QUESTION, "the question holds neither text nor image")
        if not example.solution and not self.allow_no_solution:
            raise Reject(Reason.NO_SOLUTION, "no solution to train on (see --allow_no_solution)")
        return example

    def _segments(self, parts: Sequence[Part]) -> tuple[Segment, ...]:
        segments: list[Segment] = []
        for part in parts:
            if isinstance(part, Picture):
                segments.append(ImageSegment(data=self._read(part.path), path=part.path))
            elif part.strip():
                segments.append(TextSegment(text=part.strip()))
        return tuple(segments)

    def _read(self, path: str) -> bytes:
        data = self.files.read(path, max_bytes=self.limits.max_bytes)
        try:
            check_image(data, self.limits)
        except ImageError as error:
            raise Reject(error.reason, f"{path!r}: {error}") from None
        return data


def _check_encodable(example: InterleavedExample) -> None:
    texts = [
        segment.text
        for segment in (*example.question, *example.solution)
        if isinstance(segment, TextSegment)
    ]
    strings = [value for value in example.extras.values() if isinstance(value, str)]
    try:
        "".join([example.uid, example.answer, *texts, *strings]).encode()
    except UnicodeEncodeError as error:
        raise Reject(Reason.INVALID_FIELD, f"a text holds half a character ({error})") from None
