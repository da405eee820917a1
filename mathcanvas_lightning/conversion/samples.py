"""Converts one record into one complete example, or into a rejection with its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mathcanvas_lightning.conversion.files import RECORD_ERRNOS, SourceFiles
from mathcanvas_lightning.conversion.rejection import Reason, RejectError, Rejection
from mathcanvas_lightning.conversion.sources import Draft, Part, Picture, SourceFormat
from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits, check_image
from mathcanvas_lightning.data.images.pixels import upright_image
from mathcanvas_lightning.data.rows.schema import (
    ImageSegment,
    InterleavedExample,
    Scalar,
    Segment,
    TextSegment,
)
from mathcanvas_lightning.data.rows.stored_images import StoredImage, StoredRow
from mathcanvas_lightning.errors import InputError, MathCanvasError

MAX_SAMPLE_BYTES = 2**30
"""Limit for all images of a sample together; an Arrow array holds at most 2 GiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedExample(InterleavedExample):
    """A converted record."""

    num_oriented: int = 0
    """Number of images with an EXIF orientation other than upright."""
    stored_images: StoredRow = ((), ())
    """Sizes of the images of the question and of the solution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordConverter:
    """Converts records one by one without state. Small enough to pickle for worker processes."""

    source: SourceFormat
    """The source format, which parses the records."""
    files: SourceFiles
    """Reads the image files."""
    limits: ImageLimits
    """Images beyond these limits are rejected without being decoded."""
    allow_no_solution: bool
    """Whether a sample without a solution becomes a row."""
    apply_orientation: bool = False
    """Whether images with an EXIF orientation are turned, and stored as PNG."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Field -> extra column, for fields that can't keep their names."""

    def convert(self, number: int, record: Any) -> ConvertedExample | Rejection:
        """Converts one record.

        Args:
            number: Position of the record in the input, from 0.
            record: Any JSON value.

        Returns:
            The complete example, or a rejection; malformed records never raise.

        Raises:
            InputError: If the storage of the images fails.
        """
        uid = self.source.uid(record) if isinstance(record, dict) else None
        try:
            if not isinstance(record, dict):
                raise _not_an_object(record)
            draft = self.source.parse(record, self.files)
            uid = draft.uid
            return self._complete(draft, record)
        except RejectError as reject:
            reason, message = reject.reason, reject.message
        except MathCanvasError:
            raise
        except OSError as error:  # a source format may read files by itself
            if error.errno not in RECORD_ERRNOS:
                raise _storage_failure(number, uid, error) from None
            reason, message = Reason.PARSER_FAILED, f"{type(error).__name__}: {error}"
        except Exception as error:  # a user's source format may raise anything
            reason, message = Reason.PARSER_FAILED, f"{type(error).__name__}: {error}"
        return Rejection(record=number, uid=uid, reason=str(reason), message=message)

    def renamed_extras(self, extras: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """The extra columns with the names that they have in the shards."""
        return {self.renamed.get(name, name): value for name, value in extras.items()}

    def _complete(self, draft: Draft, record: dict[str, Any]) -> ConvertedExample:
        question, solution = self._segments(draft.question), self._segments(draft.solution)
        example = ConvertedExample(
            uid=draft.uid,
            question=question.segments,
            solution=solution.segments,
            answer=draft.answer,
            extras=self.renamed_extras(self.source.extras(record)),
            num_oriented=question.num_oriented + solution.num_oriented,
            stored_images=(question.images, solution.images),
        )
        size = sum(len(image.data) for image in example.images)
        if size > MAX_SAMPLE_BYTES:
            raise RejectError(
                Reason.IMAGE_TOO_LARGE, f"{size} bytes of images, over {MAX_SAMPLE_BYTES}"
            )
        _check_encodable(example)
        if not example.question:
            raise RejectError(Reason.NO_QUESTION, "the question holds neither text nor image")
        if not example.solution and not self.allow_no_solution:
            raise RejectError(
                Reason.NO_SOLUTION, "no solution to train on (see --allow_no_solution)"
            )
        return example

    def _segments(self, parts: Sequence[Part]) -> "_Section":
        segments: list[Segment] = []
        images: list[StoredImage] = []
        num_oriented = 0
        for part in parts:
            if isinstance(part, Picture):
                data, image, is_oriented = self._read(part)
                segments.append(ImageSegment(data=data, path=part.path))
                images.append(image)
                num_oriented += is_oriented
            elif part.strip():
                segments.append(TextSegment(text=part.strip()))
        return _Section(tuple(segments), tuple(images), num_oriented)

    def _read(self, picture: Picture) -> tuple[bytes, StoredImage, bool]:
        """An image, what is stored of it, and whether its source has an EXIF orientation."""
        path, data = picture.path, picture.data
        if data is None:
            data = self.files.read(path, max_bytes=self.limits.max_bytes)
        try:
            info = check_image(data, self.limits)
            is_oriented = info.orientation != 1
            if is_oriented and self.apply_orientation:
                data = upright_image(data, self.limits)
                info = check_image(data, self.limits, depth="header")
        except ImageError as error:
            raise RejectError(error.reason, f"{path!r}: {error}") from None
        return data, StoredImage.of(data, info), is_oriented


@dataclass(frozen=True, slots=True)
class _Section:
    """A question or a solution."""

    segments: tuple[Segment, ...]
    images: tuple[StoredImage, ...]
    num_oriented: int


def _storage_failure(number: int, uid: str | None, error: OSError) -> InputError:
    return InputError(
        f"record {number} ({uid})",
        found=f"a failure of its storage ({error})",
        wanted="all files that its source format reads",
        remedy="Finished shards stay; run the same command again to resume.",
    )


def _not_an_object(record: Any) -> RejectError:
    hint = "; is the file one JSON array? Then its name must end in .json"
    is_array = isinstance(record, list) and bool(record) and isinstance(record[0], dict)
    message = f"{record!r:.80} is not a JSON object{hint if is_array else ''}"
    return RejectError(Reason.NOT_AN_OBJECT, message)


def _check_encodable(example: InterleavedExample) -> None:
    texts = [
        segment.text
        for segment in (*example.question, *example.solution)
        if isinstance(segment, TextSegment)
    ]
    strings = [value for value in example.extras.values() if isinstance(value, str)]
    strings += [image.path for image in example.images if image.path is not None]
    try:
        "".join([example.uid, example.answer, *texts, *strings]).encode()
    except UnicodeEncodeError as error:
        raise RejectError(
            Reason.INVALID_FIELD, f"a text holds half a character ({error})"
        ) from None
