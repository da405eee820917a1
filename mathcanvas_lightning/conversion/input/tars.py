"""Streams the samples of WebDataset tars: members with the same key are one record."""

import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mathcanvas_lightning.errors import InputError

TEXT_ENDS = ("txt", "text", "cls", "cls2", "transcript")
IMAGE_ENDS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
MAX_MEMBER_BYTES = 2**30


def read_tar(path: Path, place: str) -> Iterator[dict[str, Any]]:
    """Yields the samples of a tar file, which may be compressed.

    A record has `__key__`, and a field for each member by the end of its name: `key.jpg` becomes
    the field `jpg` with bytes and path, `key.txt` a text, and the fields of the object in
    `key.json` become fields of the record. All other members are left out: no pickle is ever read.

    Args:
        path: A local file.
        place: Name of the file in errors.

    Raises:
        InputError: If the file is damaged, or a member holds no valid JSON or text.
    """
    record: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if not member.isfile() or _is_hidden(member.name):
                    continue
                key, end = split_name(member.name)
                if record and record["__key__"] != key:
                    yield record
                    record = {}
                record["__key__"] = key
                if (read := _reader(end)) is not None:
                    _check_size(member, place)
                    file = archive.extractfile(member)
                    assert file is not None  # isfile
                    _add(record, end, read(file.read(), member.name, place))
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(
            place,
            found=f"a damaged tar file ({error or type(error).__name__})",
            wanted="a whole tar file of samples",
            remedy="Copy it again; finished work is kept.",
        ) from None
    if record:
        yield record


def split_name(name: str) -> tuple[str, str]:
    """Splits a member's name at the first dot of its last part: key, and end in small letters."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, end = file.partition(".")
    return f"{folder}{slash}{stem}", end.lower()


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


def _reader(end: str) -> Any:
    last = end.rpartition(".")[2]
    if last == "json":
        return _json
    if last in TEXT_ENDS:
        return _text
    return _image if last in IMAGE_ENDS else None


def _image(data: bytes, name: str, place: str) -> dict[str, Any]:  # noqa: ARG001
    return {"bytes": data, "path": name.removeprefix("./")}


def _text(data: bytes, name: str, place: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _bad_member(place, name, f"a byte that is not UTF-8 ({error})") from None


def _json(data: bytes, name: str, place: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _bad_member(place, name, f"malformed JSON ({error})") from None


def _add(record: dict[str, Any], end: str, value: Any) -> None:
    if end == "json" and isinstance(value, dict):
        record.update({name: item for name, item in value.items() if name != "__key__"})
    else:
        record[end] = value


def _check_size(member: tarfile.TarInfo, place: str) -> None:
    if member.size > MAX_MEMBER_BYTES:
        raise _bad_member(place, member.name, f"{member.size} bytes, over {MAX_MEMBER_BYTES}")


def _bad_member(place: str, name: str, found: str) -> InputError:
    return InputError(
        f"{place}, member {name}",
        found=found,
        wanted="a text or JSON in UTF-8, or an image",
        remedy="Correct the file and run again; finished work is kept.",
    )
