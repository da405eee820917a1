"""Rows that are left out, and why; the one boundary for whatever a row makes a reader raise."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from mathcanvas_lightning.data.images.decode import ImageError
from mathcanvas_lightning.errors import DataError, MathCanvasError

NO_SAMPLE = "no_sample"
"""Stage of valid rows that are not training samples."""
TOO_LONG = "too_long"
INTACT_STAGES = frozenset({NO_SAMPLE, TOO_LONG})
"""Stages of rows that are left out but not damaged; they don't count as bad rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutRow:
    """A row that is not used for training, and the reason."""

    uid: str
    path: str
    """File of the row, without the query of a presigned URL."""
    row_group: int
    row: int
    """Row number within the row group."""
    stage: str
    """`no_sample`, `too_long`, or the step that failed: `read`, `row`, `image`, `length`."""
    error: str
    """Description of the problem."""
    dataset: str = ""
    """Name of the data set; empty in an index, which has no name."""

    @property
    def place(self) -> str:
        """Location for error messages."""
        return f"{self.path}, row group {self.row_group}, row {self.row} (uid {self.uid})"

    @property
    def is_damaged(self) -> bool:
        """Whether it counts as a bad row."""
        return self.stage not in INTACT_STAGES


class NoSampleError(Exception):
    """A valid row that is not a training sample; the text is the reason."""


ROW_ERRORS = (NoSampleError, ImageError, DataError)
"""Errors that say something about one row. Others are of settings or servers."""


@contextlib.contextmanager
def row_boundary(place: str) -> Iterator[None]:
    """Raises a `DataError` for any exception that is not an error of ours.

    Readers, decoders and tokenizers raise any exception on broken input.

    Args:
        place: File and row.
    """
    try:
        yield
    except (*ROW_ERRORS, MathCanvasError, MemoryError):
        raise
    except Exception as error:
        raise DataError(
            place,
            found=f"a row that can't be read ({type(error).__name__}: {error!s:.200})",
            wanted="a row of the data set's format",
            remedy="Fix the row, or remove it from the data set.",
        ) from error


def stage_of(error: Exception) -> str:
    """The stage of one of `ROW_ERRORS`, see `LeftOutRow`."""
    if isinstance(error, NoSampleError):
        return NO_SAMPLE
    return "image" if isinstance(error, ImageError) else "row"


def require_unicode(text: str, place: str) -> str:
    """Returns a text that tokenizers and files can store.

    Raises:
        DataError: If it holds an unpaired surrogate, as in texts that were cut in two.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            place,
            found=f"half of a character (an unpaired surrogate) in {text[: error.end][-20:]!a}",
            wanted="Unicode text",
            remedy="Fix the text, or remove the row from the data set.",
        ) from None
    return text
