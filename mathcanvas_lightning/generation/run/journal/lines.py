"""Lines of a journal: their content, their checksum, and how they are read back.

Lines are never changed. A line belongs to a record with a certain content and certain pictures: a
record that has changed is asked again.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

from mathcanvas_lightning.generation.requests import Exchange, Sampling
from mathcanvas_lightning.generation.run.journal.folder import rank_files
from mathcanvas_lightning.records.files import json_text
from mathcanvas_lightning.records.record import record_identity

log = logging.getLogger(__name__)

_CHECK = b', "check": "'
_CHECK_LENGTH = len('00000000"}\n')


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Location of a line in the journal, with its most important fields."""

    path: Path
    offset: int
    num_bytes: int
    prompt_digest: str | None
    """Hash of all texts of the request; None if there was no request."""
    failure: str | None
    """Kind of the failure; None for an answer."""
    origin: str
    """Model, settings and sampling of the answer, see `origin_of`."""
    pictures: str | None = None
    """Hash of the pictures of the question; None without pictures, or in an older line."""
    is_checked: bool = True
    """Whether the line has a checksum; lines of older versions have none."""


def journal_line(
    exchange: Exchange,
    *,
    model: str,
    settings: Mapping[str, Any],
    digest: str,
    stamp: int | None = None,
) -> dict[str, Any]:
    """Builds the journal line of a response.

    Args:
        exchange: Response and request.
        model: Name of the model.
        settings: Settings of the backend.
        digest: Digest of the record.
        stamp: Stamp of the record's picture files.

    Returns:
        A JSON object.
    """
    response, request = exchange.response, exchange.request
    return {
        "uid": response.uid,
        "texts": [output.text for output in response.outputs],
        "finish_reasons": [output.finish_reason for output in response.outputs],
        "usage": dataclasses.asdict(response.usage),
        "error": response.failure and dataclasses.asdict(response.failure),
        "digest": digest,
        "stamp": stamp,
        "pictures": request and request.picture_digest,
        "prompt_digest": request and request.prompt_digest,
        "model": model,
        "settings": settings,
        "sampling": request and dataclasses.asdict(request.sampling),
        "time": time.time(),
    }


def encode_line(line: Mapping[str, Any]) -> bytes:
    """Encodes a line, with its checksum as the last field.

    Args:
        line: A JSON object.
    """
    body = json_text(line).encode()
    return body[:-1] + _CHECK + f'{crc32(body):08x}"}}\n'.encode()


def decode_line(data: bytes) -> tuple[dict[str, Any], bool]:
    """Decodes a line.

    Args:
        data: The line with its line break.

    Returns:
        The fields, and whether the line has a checksum.

    Raises:
        ValueError: If the line is incomplete or damaged.
    """
    if not data.endswith(b"\n"):
        raise ValueError("an incomplete line")
    start, mark, check = data.rpartition(_CHECK)
    is_checked = bool(mark) and len(check) == _CHECK_LENGTH
    if is_checked and f"{crc32(start + b'}'):08x}".encode() != check[:8]:
        raise ValueError("another checksum")
    try:
        line = json.loads(data)
    except RecursionError:
        raise ValueError("too many levels") from None
    if not _is_line(line):
        raise ValueError("not a line of a journal")
    return line, is_checked


def _is_line(line: Any) -> bool:
    """Whether the line has all fields that are needed, with the right types."""
    match line:
        case {
            "uid": str(),
            "digest": str(),
            "texts": [*texts],
            "finish_reasons": [*_],
            "usage": {"prompt_tokens": int(), "completion_tokens": int()},
            "error": error,
            "prompt_digest": str() | None,
            "model": str() | None,
            "settings": dict() | None,
            "sampling": dict() | None,
        }:
            match error:
                case None:
                    return bool(texts) and all(isinstance(text, str) for text in texts)
                case {"kind": str(), "message": str()}:
                    return True
    return False


def read_journal(folder: Path) -> dict[tuple[str, str], Entry]:
    """Returns the latest valid entry per uid and identity of the record.

    A failure never replaces an answer. Incomplete and damaged lines count as absent.

    Args:
        folder: The journal; it need not exist.

    Returns:
        (uid, identity of the record) -> entry; see `record_identity`.
    """
    found: dict[tuple[str, str], Entry] = {}
    for path in rank_files(folder):
        for key, entry in _entries(path):
            if entry.failure is None or key not in found or found[key].failure is not None:
                found[key] = entry
    return found


@contextmanager
def open_entries() -> Iterator[Callable[[Entry], dict[str, Any]]]:
    """Reads lines of journals; keeps the files open inside the block.

    Yields:
        A function that takes an entry and returns its line.
    """
    with ExitStack() as stack:
        files: dict[Path, BinaryIO] = {}

        def read(entry: Entry) -> dict[str, Any]:
            if entry.path not in files:
                files[entry.path] = stack.enter_context(entry.path.open("rb"))
            files[entry.path].seek(entry.offset)
            return decode_line(files[entry.path].read(entry.num_bytes))[0]

        yield read


def _entries(path: Path) -> Iterator[tuple[tuple[str, str], Entry]]:
    offset = num_bad = 0
    origins: dict[str, str] = {}  # equal texts share one object in memory
    with path.open("rb") as file:
        for data in file:
            start, offset = offset, offset + len(data)
            try:
                line, is_checked = decode_line(data)
                origin = origin_of(line["model"], line["settings"], line["sampling"])
            except (ValueError, TypeError):
                num_bad += 1
                continue
            entry = Entry(
                path=path,
                offset=start,
                num_bytes=len(data),
                prompt_digest=line["prompt_digest"],
                failure=line["error"] and line["error"]["kind"],
                origin=origins.setdefault(origin, origin),
                pictures=line.get("pictures"),
                is_checked=is_checked,
            )
            yield (line["uid"], record_identity(line["digest"], line.get("stamp"))), entry
    if num_bad:
        log.warning(
            "%s: %d damaged line%s; their records are asked again",
            path,
            num_bad,
            "s" * (num_bad > 1),
        )


def origin_of(
    model: str | None, settings: Mapping[str, Any] | None, sampling: Mapping[str, Any] | None
) -> str:
    """Model, settings and sampling as one text, for comparison.

    Args:
        model: Name of the model; None or "" if unknown.
        settings: Settings of the backend; None if unknown.
        sampling: Sampling of the request; missing fields get their defaults. None if no request
            could be built, or if unknown.

    Returns:
        JSON; equal for equal values.
    """
    full = None if sampling is None else {**dataclasses.asdict(Sampling()), **sampling}
    origin = {"model": model, "settings": settings, "sampling": full}
    return json.dumps(_normalized(json.loads(json_text(origin))), sort_keys=True)


def _normalized(value: Any) -> Any:
    """The value with whole floats as integers, so that 0 equals 0.0."""
    if isinstance(value, dict):
        return {name: _normalized(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_normalized(item) for item in value]
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value
