"""The pictures of a record: where its references lead, and the encoded files they lead to."""

import base64
import binascii
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from mathcanvas_lightning.common.paths import is_remote, join_path, without_query
from mathcanvas_lightning.data.images.decode import Depth, ImageError, ImageLimits, check_image
from mathcanvas_lightning.errors import DataError, StorageError
from mathcanvas_lightning.storage.files import Storage
from mathcanvas_lightning.storage.retry import FileTooLargeError, MissingFileError

if TYPE_CHECKING:  # records are checked with the functions of this file
    from mathcanvas_lightning.records.record import Record

MISSING, UNREADABLE, TOO_LARGE = "picture_missing", "picture_unreadable", "picture_too_large"
MAX_PATH_CHARACTERS = 4096
_DATA_URL = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image file, as it was read; decoded only where its pixels are needed."""

    data: bytes = field(repr=False)
    """The file: PNG, JPEG, WebP, ..."""
    place: str = "a picture"
    """Where it came from, for messages."""


class PictureError(Exception):
    """A picture that can't be used.

    Args:
        kind: `picture_missing`, `picture_unreadable` or `picture_too_large`.
        message: Which, and what is wrong with it.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, str(self))


def read_pictures(
    record: "Record",
    base: str | None = None,
    *,
    limits: ImageLimits = ImageLimits(),
    depth: Depth = "checksums",
) -> tuple[Picture, ...]:
    """Reads all pictures of a record.

    Args:
        record: Its references may be paths, URLs, base64 (also in data URLs), bytes, or what
            Hugging Face data sets write: an object of bytes and path.
        base: Folder or URL that paths start from; by default the record's `image_base`.
        limits: Larger ones are refused undecoded.
        depth: How much of each is checked; see `check_image`.

    Returns:
        A picture for each reference, in their order.

    Raises:
        PictureError: At the first that is missing, broken or too large; names the record.
    """
    base = record.image_base if base is None else base
    return load_pictures(record.images, base, place=record.uid, limits=limits, depth=depth)


def load_pictures(
    references: Sequence[Any],
    base: str,
    *,
    place: str,
    limits: ImageLimits = ImageLimits(),
    depth: Depth = "checksums",
) -> tuple[Picture, ...]:
    """Like `read_pictures`, for references without a record.

    Args:
        references: See `read_pictures`.
        base: Folder or URL that paths start from.
        place: What they belong to, for messages.
        limits: Larger ones are refused undecoded.
        depth: How much of each is checked.

    Returns:
        A picture for each reference, in their order.

    Raises:
        PictureError: At the first that can't be used.
    """
    pictures = []
    for number, reference in enumerate(references, start=1):
        name = f"{place}, picture {number}"
        try:
            located = locate_picture(reference, base)
            if isinstance(located, str):
                name = f"{name} ({without_query(located)})"
                located = _read(located, limits.max_bytes)
            check_image(located, limits, depth=depth)
        except PictureError as error:
            raise PictureError(error.kind, f"{name}: {error}") from None
        except ImageError as error:
            raise PictureError(failure_kind(error), f"{name}: {error}") from None
        pictures.append(Picture(located, place=name))
    return tuple(pictures)


def failure_kind(error: ImageError) -> str:
    """What a failure by such an image is called."""
    return TOO_LARGE if error.reason == "image_too_large" else UNREADABLE


def locate_picture(reference: Any, base: str) -> bytes | str:
    """Finds out what a reference is, without reading or decoding what it leads to.

    A text is a data URL, a URL, the path of a file that is there, or base64 that begins an image:
    the first of these that fits.

    Args:
        reference: See `read_pictures`.
        base: Folder or URL that paths start from.

    Returns:
        The bytes, where the reference holds them; else the path of a file that is there, or a
        URL, whose file may be there or not.

    Raises:
        PictureError: If there is no such file, or the reference is nothing of the above.
    """
    if isinstance(reference, Mapping) and {"bytes", "path"} & reference.keys():
        data = reference.get("bytes")
        return locate_picture(reference.get("path") if data is None else data, base)
    if isinstance(reference, bytes):
        return reference
    if not isinstance(reference, str):
        raise PictureError(UNREADABLE, f"a {type(reference).__name__} is no path and no picture")
    if not reference.strip():
        raise PictureError(MISSING, "the path is empty")
    if (start := _DATA_URL.match(reference)) is not None:
        data = _decode(reference[start.end() :])
        if data is None:
            raise PictureError(UNREADABLE, "a data URL whose base64 is broken")
        return data
    path = _join(base, reference)
    if is_remote(path):
        return path
    return path if _is_file(path) else _embedded(reference, path)


def _embedded(text: str, path: str) -> bytes:
    """The picture that a text without a file is itself."""
    data = _decode(text)
    if data is not None and _begins_image(data):
        return data
    if len(text) > MAX_PATH_CHARACTERS:
        raise PictureError(UNREADABLE, f"no picture in base64, nor a path ({text[:40]!r} ...)")
    raise PictureError(MISSING, f"no file {path!r:.{_SHOWN_CHARACTERS}}")


def _join(base: str, reference: str) -> str:
    if is_remote(reference):
        return reference
    reference = reference.removeprefix("file://")
    if is_remote(base):
        reference = reference.lstrip("/")
    return join_path(base, reference)


def _is_file(path: str) -> bool:
    if len(path) > MAX_PATH_CHARACTERS:
        return False
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 - much faster than Path
    except (OSError, ValueError):  # ValueError: a NUL or half a surrogate pair in the name
        return False


def _decode(text: str) -> bytes | None:
    """What a text is base64 of, None if it isn't; line breaks are allowed."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        return None


def _begins_image(data: bytes) -> bool:
    try:
        check_image(data, ImageLimits(max_bytes=len(data)), depth="header")
    except ImageError as error:
        return error.reason == "image_too_large"
    return True


def _read(location: str, max_bytes: int) -> bytes:
    """All bytes of a file, or the first of one that is too large."""
    try:
        return _storage().read_bytes(location, max_bytes=max_bytes)
    except MissingFileError as error:
        raise PictureError(MISSING, f"found {error.found}") from None
    except FileTooLargeError as error:
        raise PictureError(TOO_LARGE, f"found {error.found}") from None
    except DataError as error:
        raise PictureError(UNREADABLE, f"found {error.found}") from None
    except StorageError as error:
        raise PictureError(UNREADABLE, f"found {error.found}") from None


@cache
def _storage() -> Storage:
    return Storage()
