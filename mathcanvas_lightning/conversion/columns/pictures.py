"""The pictures of a record: paths, encoded bytes, Hugging Face structs, data URLs, base64."""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mathcanvas_lightning.common.paths import is_remote, plain_path
from mathcanvas_lightning.conversion.columns.selectors import number_of, parsed_json, select
from mathcanvas_lightning.conversion.rejection import Reason, RejectError
from mathcanvas_lightning.conversion.sources.base import Picture

_DATA_URL = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
"""Base64 of the first bytes of PNG, JPEG, GIF and WebP."""
_SHORTEST_BASE64 = 64
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPicture:
    """A picture, and what marks may call it."""

    picture: Picture
    column: str
    """Name of its column."""
    number: int
    """Number at the end of the column's name, or position in its list, from 1."""


def find_pictures(
    record: Mapping[str, Any], selectors: Sequence[str], root: str
) -> list[NamedPicture]:
    """The pictures in columns, in order; null values are left out.

    Args:
        record: A record.
        selectors: Selectors of columns with one picture or a list of them.
        root: The image folder; absolute paths in it become relative ones.

    Raises:
        RejectError: If a column is absent, or holds something else.
    """
    found: list[NamedPicture] = []
    for selector in selectors:
        columns = select(record, selector)
        for one in columns:
            values = as_list(one.value)
            is_numbered = "*" in selector and len(values) == 1
            for value in values:
                place = one.column if len(values) == 1 else f"{one.column}[{len(found)}]"
                number = number_of(one.column) if is_numbered else None
                picture = to_picture(value, place, root)
                number = len(found) + 1 if number is None else number
                found.append(NamedPicture(picture=picture, column=one.column, number=number))
    return found


def to_picture(value: Any, place: str, root: str) -> Picture:
    """Reads a reference to a picture.

    Args:
        value: A path, bytes, an object with bytes and path or with a url, a data URL, or base64.
        place: Name for a picture that has none.
        root: The image folder.

    Raises:
        RejectError: If it is something else.
    """
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path") or value.get("url")
        name = path if isinstance(path, str) and not _DATA_URL.match(path) else place
        if isinstance(data, bytes):
            return Picture(name, data)
        value = path if data is None else data
    if isinstance(value, bytes):
        return Picture(place, value)
    if not isinstance(value, str) or not value.strip():
        raise RejectError(Reason.INVALID_FIELD, f"{place} is {value!r:.80}, not a picture")
    value = value.strip()
    if start := _DATA_URL.match(value):
        return Picture(place, _decoded(value[start.end() :], place))
    if len(value) >= _SHORTEST_BASE64 and value.startswith(_BASE64_STARTS):
        return Picture(place, _decoded(value, place))
    return Picture(_relative(value, root))


def is_picture(value: Any) -> bool:
    """Whether a value looks like a picture: bytes, a struct of an image, a path, a data URL."""
    if isinstance(value, Mapping):
        return {"bytes", "path"} <= value.keys()
    if not isinstance(value, str):
        return isinstance(value, bytes)
    is_text = value.startswith(_BASE64_STARTS) or _DATA_URL.match(value) is not None
    return is_text or value.lower().endswith(IMAGE_SUFFIXES)


def as_list(value: Any) -> list[Any]:
    """A list of the values that are not null; a text with a JSON array is that array."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parsed_json(value)
    values = value if isinstance(value, list | tuple) else [value]
    return [one for one in values if one is not None and one != ""]


def _decoded(text: str, place: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RejectError(Reason.IMAGE_UNREADABLE, f"{place} is no valid base64") from None


def _relative(path: str, root: str) -> str:
    """The path below the image folder, also where a record holds the absolute path."""
    if is_remote(path):
        return path
    path = plain_path(path) if path.startswith("file://") else path
    return path.removeprefix(f"{root.rstrip('/')}/") if path.startswith("/") else path
