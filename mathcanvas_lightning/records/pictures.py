"""Pictures of records: resolves references and reads the encoded image files."""

import base64
import binascii
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from PIL import Image

from mathcanvas_lightning.common.paths import is_remote, join_path, without_query
from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits, check_image
from mathcanvas_lightning.data.images.pixels import decode_image
from mathcanvas_lightning.errors import DataError, StorageError
from mathcanvas_lightning.records.access import Access, is_allowed
from mathcanvas_lightning.records.hosts import HostReader
from mathcanvas_lightning.storage.retry import FileTooLargeError, MissingFileError

if TYPE_CHECKING:  # records are checked with the functions of this file
    from mathcanvas_lightning.records.record import Record

MISSING, UNREADABLE, TOO_LARGE = "picture_missing", "picture_unreadable", "picture_too_large"
OUTSIDE = "picture_outside"
MAX_PATH_CHARACTERS = 4096
_DATA_URL = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image file; it is decoded only when its pixels are needed."""

    data: bytes = field(repr=False)
    """Content of the file: PNG, JPEG, WebP, ..."""
    place: str = "a picture"
    """Location, for error messages."""


class PictureError(Exception):
    """A picture is unusable.

    Args:
        kind: `picture_missing`, `picture_unreadable`, `picture_too_large` or `picture_outside`.
        message: Location and description.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, str(self))


def decode_picture(picture: Picture) -> Image.Image:
    """Decodes a picture, see `decode_image`.

    Raises:
        PictureError: If it is broken or too large; names its place.
    """
    try:
        return decode_image(picture.data, ImageLimits())
    except ImageError as error:
        raise PictureError(failure_kind(error), f"{picture.place}: {error}") from None


def read_pictures(record: "Record", files: HostReader | None = None) -> tuple[Picture, ...]:
    """Reads all pictures of a record.

    Args:
        record: Its references may be paths, URLs, base64 (also in data URLs), bytes, or objects
            with bytes and path as in Hugging Face data sets; relative paths are below its
            `image_base`.
        files: Reads files and URLs; by default one that all calls share.

    Returns:
        One picture for each reference, in order.

    Raises:
        PictureError: At the first picture that is missing, broken or too large; names the record.
    """
    access: Access = "any" if record.allow_any_path else "web"
    images, base = record.images, record.image_base
    return load_pictures(images, base, place=record.uid, access=access, files=files)


def load_pictures(
    references: Sequence[Any],
    base: str,
    *,
    place: str,
    access: Access = "web",
    limits: ImageLimits = ImageLimits(),
    files: HostReader | None = None,
) -> tuple[Picture, ...]:
    """Reads pictures from references; like `read_pictures`, but without a record.

    Args:
        references: References as described in `read_pictures`.
        base: Folder or URL for relative paths.
        place: Location of the references, for error messages.
        access: Which files and URLs may be read.
        limits: Larger pictures are rejected before they are decoded.
        files: Reads files and URLs; by default one that all calls share.

    Returns:
        One picture for each reference, in order.

    Raises:
        PictureError: At the first unusable picture.
    """
    pictures = []
    for number, reference in enumerate(references, start=1):
        name = f"{place}, picture {number}"
        try:
            located = locate_picture(reference, base, access)
            if isinstance(located, str):
                name = f"{name} ({without_query(located)})"
                located = _read(located, limits.max_bytes, files or _files())
            check_image(located, limits)
        except PictureError as error:
            raise PictureError(error.kind, f"{name}: {error}") from None
        except ImageError as error:
            raise PictureError(failure_kind(error), f"{name}: {error}") from None
        pictures.append(Picture(located, place=name))
    return tuple(pictures)


def failure_kind(error: ImageError) -> str:
    """The kind of failure that an image error causes."""
    return TOO_LARGE if error.reason == "image_too_large" else UNREADABLE


def locate_picture(reference: Any, base: str, access: Access = "web") -> bytes | str:
    """Resolves a reference without reading or decoding its file.

    A text is, in this order: a data URL, a URL, the path of an existing file, or base64 of an
    image.

    Args:
        reference: A reference as described in `read_pictures`.
        base: Folder or URL for relative paths.
        access: Which files and URLs may be read.

    Returns:
        The bytes if the reference contains them; else the path of an existing file, or a URL
        (which is not checked).

    Raises:
        PictureError: If the file does not exist or may not be read, or the reference has none of
            these forms.
    """
    if isinstance(reference, Mapping) and {"bytes", "path"} & reference.keys():
        data = reference.get("bytes")
        return locate_picture(reference.get("path") if data is None else data, base, access)
    if isinstance(reference, bytes):
        return reference
    if not isinstance(reference, str):
        raise PictureError(UNREADABLE, f"a {type(reference).__name__}, not a path or a picture")
    if not reference.strip():
        raise PictureError(MISSING, "the path is empty")
    if (start := _DATA_URL.match(reference)) is not None:
        data = _decode(reference[start.end() :])
        if data is None:
            raise PictureError(UNREADABLE, "a data URL with invalid base64")
        return data
    path = _join(base, reference)
    if not is_remote(path) and not _is_file(path):
        return _embedded(reference, path)
    if not is_allowed(path, base, access):
        raise PictureError(
            OUTSIDE,
            f"{without_query(path)!r:.{_SHOWN_CHARACTERS}} is outside {without_query(base)!r}; set "
            "image_base_path to the folder of the pictures, or allow_any_path: true",
        )
    return path


def picture_stamp(located: Sequence[bytes | str]) -> int | None:
    """Number that changes if one of the files is changed, replaced or touched.

    Args:
        located: Results of `locate_picture`; bytes and URLs are left out.

    Returns:
        56 bits of a hash of sizes and times; None if there is no local file.
    """
    paths = [path for path in located if isinstance(path, str) and not is_remote(path)]
    if not paths:
        return None
    digest = blake2b(digest_size=7)
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116 - much faster than Path
            seen = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except OSError:  # it has gone since it was located
            seen = (0, 0, 0)
        digest.update(repr(seen).encode())
    return int.from_bytes(digest.digest())


def _embedded(text: str, path: str) -> bytes:
    """Decodes a text that is not a path as a base64 picture."""
    data = _decode(text)
    if data is not None and _begins_image(data):
        return data
    if len(text) > MAX_PATH_CHARACTERS:
        raise PictureError(UNREADABLE, f"neither base64 nor a path ({text[:40]!r} ...)")
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
    """Decodes base64, which may have line breaks; None if the text is invalid."""
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


def _read(location: str, max_bytes: int, files: HostReader) -> bytes:
    """Reads a file or a URL."""
    try:
        return files.read(location, max_bytes)
    except MissingFileError as error:
        raise PictureError(MISSING, f"found {error.found}") from None
    except FileTooLargeError as error:
        raise PictureError(TOO_LARGE, f"found {error.found}") from None
    except DataError as error:
        raise PictureError(UNREADABLE, f"found {error.found}") from None
    except StorageError as error:
        raise PictureError(UNREADABLE, f"found {error.found}") from None


@cache
def _files() -> HostReader:
    return HostReader()
