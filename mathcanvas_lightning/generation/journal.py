"""The journal of a run: a line a response, appended as it comes, read again to go on.

A journal is a folder beside the output with a file a rank. Nothing in it is ever changed: a later
line of the same record takes the place of an earlier one when it is read.
"""

import dataclasses
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from mathcanvas_lightning.generation.requests import Exchange

log = logging.getLogger(__name__)

FOLDER_SUFFIX = ".journal"
_RANK_FILE = re.compile(r"rank(\d+)\.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a record's response stands, and what is asked of it most."""

    path: Path
    offset: int
    num_bytes: int
    time: float
    """When it was written, in seconds since 1970."""
    digest: str
    """Of the record when it was asked."""
    prompt_digest: str | None
    """Of all texts of the request, None where there was none."""
    failure: str | None
    """Kind of the failure, None for an answer."""
    maker: str
    """Model and sampling, as JSON."""


def journal_folder(output: Path) -> Path:
    """Where the journal of an output lies."""
    return output.with_name(output.name + FOLDER_SUFFIX)


def maker_of(model: str, sampling: Mapping[str, Any]) -> str:
    """A text that is equal where answers were made in the same way."""
    return json.dumps({"model": model, "sampling": sampling}, sort_keys=True)


def line_of(exchange: Exchange, *, model: str, digest: str) -> dict[str, Any]:
    """A response as its line says it.

    Args:
        exchange: What was asked and said.
        model: Name of the model.
        digest: Of the record.

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
        "prompt_digest": request and request.text_digest,
        "model": model,
        "sampling": request and dataclasses.asdict(request.sampling),
        "time": time.time(),
    }


class JournalWriter:
    """Appends lines to one rank's file; what has been written survives a kill at once.

    Args:
        folder: The journal; made if absent.
        rank: Of this process.
        sync_every_s: The disk is asked to keep all so far (which is what a power cut needs) at
            most so often, in seconds.
    """

    def __init__(self, folder: Path, rank: int, sync_every_s: float = 1.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._sync_every_s = sync_every_s
        self._synced_at = time.monotonic()
        self._file: BinaryIO = (folder / f"rank{rank}.jsonl").open("ab")
        _cut_torn_line(self._file)

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes some lines.

        Args:
            lines: JSON objects.
        """
        data = b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)
        self._file.write(data)
        self._file.flush()
        if time.monotonic() - self._synced_at >= self._sync_every_s:
            self._sync()

    def close(self) -> None:
        """Syncs and closes the file."""
        if not self._file.closed:
            self._sync()
            self._file.close()

    def __enter__(self) -> "JournalWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()


def read_journal(folder: Path) -> dict[str, Entry]:
    """Finds the last word on each record.

    The last line of a record wins, but a failure never takes the place of an answer to the same
    question. Lines that were cut by a kill, or damaged, count as never written.

    Args:
        folder: The journal; may be absent.

    Returns:
        An entry for each record that has a line, by its uid.
    """
    found: dict[str, Entry] = {}
    for path in rank_files(folder):
        for uid, entry in _entries(path):
            if uid not in found or _replaces(entry, found[uid]):
                found[uid] = entry
    return found


def rank_files(folder: Path) -> list[Path]:
    """The files of a journal, by rank."""
    matches = [(m, path) for path in folder.glob("*") if (m := _RANK_FILE.fullmatch(path.name))]
    return [path for _, path in sorted(matches, key=lambda pair: int(pair[0][1]))]


@contextmanager
def open_entries() -> Iterator[Callable[[Entry], dict[str, Any]]]:
    """Opens journals to read any of their lines.

    Yields:
        A function from an entry to its whole line.
    """
    with ExitStack() as stack:
        files: dict[Path, BinaryIO] = {}

        def read(entry: Entry) -> dict[str, Any]:
            if entry.path not in files:
                files[entry.path] = stack.enter_context(entry.path.open("rb"))
            files[entry.path].seek(entry.offset)
            line: dict[str, Any] = json.loads(files[entry.path].read(entry.num_bytes))
            return line

        yield read


def _entries(path: Path) -> Iterator[tuple[str, Entry]]:
    offset = num_bad = 0
    makers: dict[str, str] = {}  # equal texts are one object
    with path.open("rb") as file:
        for data in file:
            start, offset = offset, offset + len(data)
            try:
                if not data.endswith(b"\n"):
                    raise ValueError("cut short")
                line = json.loads(data)
                maker = maker_of(line["model"], line["sampling"])
                yield (
                    line["uid"],
                    Entry(
                        path=path,
                        offset=start,
                        num_bytes=len(data),
                        time=line["time"],
                        digest=line["digest"],
                        prompt_digest=line["prompt_digest"],
                        failure=line["error"] and line["error"]["kind"],
                        maker=makers.setdefault(maker, maker),
                    ),
                )
            except (ValueError, KeyError, TypeError):
                num_bad += 1
    if num_bad:
        log.warning("%s: %d damaged lines; their records are asked again", path, num_bad)


def _replaces(new: Entry, old: Entry) -> bool:
    if new.digest == old.digest and bool(new.failure) != bool(old.failure):
        return new.failure is None
    return new.time >= old.time


def _cut_torn_line(file: BinaryIO) -> None:
    """Ends the file after its last whole line, which a kill may have left behind a torn one."""
    size = end = file.tell()
    with Path(file.name).open("rb") as reader:
        while end:
            start = max(0, end - 2**16)
            reader.seek(start)
            if (last := reader.read(end - start).rfind(b"\n")) >= 0:
                end = start + last + 1
                break
            end = start
    if end < size:
        file.truncate(end)
