"""The journal: one line per response, appended at once, and read when a run is resumed.

A journal is a folder beside the output, with one file per rank. Lines are never changed. A line
belongs to a record with a certain content: a record that has changed is asked again.
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
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from mathcanvas_lightning.errors import OutputError
from mathcanvas_lightning.generation.requests import Exchange, Sampling
from mathcanvas_lightning.records.files import json_text

log = logging.getLogger(__name__)

FOLDER_SUFFIX = ".journal"
_RERUN_MARK, _FINISH_SUFFIX = "rerun", ".ended"
_POLL_S = 0.1
_RANK_FILE = re.compile(r"rank(\d+)\.jsonl")


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


def journal_folder(output: Path) -> Path:
    """Path of the journal that belongs to an output file."""
    return output.with_name(output.name + FOLDER_SUFFIX)


def origin_of(model: str, settings: Mapping[str, Any], sampling: Mapping[str, Any] | None) -> str:
    """Model, settings and sampling as one text, for comparison.

    Args:
        model: Name of the model.
        settings: Settings of the backend.
        sampling: Sampling of the request; missing fields get their defaults. None if no request
            could be built.

    Returns:
        JSON; equal for equal values.
    """
    full = sampling and {**dataclasses.asdict(Sampling()), **sampling}
    origin = {"model": model, "settings": settings, "sampling": full}
    return json.dumps(_normalized(json.loads(json.dumps(origin))), sort_keys=True)


def _normalized(value: Any) -> Any:
    """The value with whole floats as integers, so that 0 equals 0.0."""
    if isinstance(value, dict):
        return {name: _normalized(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_normalized(item) for item in value]
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def journal_line(
    exchange: Exchange, *, model: str, settings: Mapping[str, Any], digest: str
) -> dict[str, Any]:
    """Builds the journal line of a response.

    Args:
        exchange: Response and request.
        model: Name of the model.
        settings: Settings of the backend.
        digest: Digest of the record.

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
        "settings": settings,
        "sampling": request and dataclasses.asdict(request.sampling),
        "time": time.time(),
    }


class JournalWriter:
    """Appends lines to the file of one rank, without buffering: a killed process loses nothing.

    Args:
        folder: The journal; created if it does not exist.
        rank: Rank of this process.
        sync_every_s: Minimum interval between two calls of fsync, in seconds; a power failure may
            lose what was written since the last one.

    Raises:
        OutputError: If another process writes to the file of this rank.
    """

    def __init__(self, folder: Path, rank: int, sync_every_s: float = 1.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = acquire_lock(folder / f"rank{rank}.lock")
        self._sync_every_s = sync_every_s
        self._synced_at = time.monotonic()
        self._file = (folder / f"rank{rank}.jsonl").open("ab", buffering=0)
        _cut_torn_line(self._file)

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes lines.

        Args:
            lines: JSON objects.

        Raises:
            OSError: If the disk is full; then none of the lines is kept.
        """
        data = b"".join(json_text(line).encode() + b"\n" for line in lines)
        end = self._file.tell()
        try:
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(end)
            raise
        if time.monotonic() - self._synced_at >= self._sync_every_s:
            self._sync()

    def close(self) -> None:
        """Syncs and closes the file."""
        if not self._file.closed:
            try:
                self._sync()
            finally:
                self._file.close()
                self._lock.release()

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


def acquire_lock(path: Path) -> FileLock:
    """Acquires a lock that the OS releases when the process exits.

    Args:
        path: Path of the lock file.

    Returns:
        The acquired lock.

    Raises:
        OutputError: If another process holds the lock.
    """
    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            str(path.parent),
            found="another run that writes to the same output",
            wanted="one run per output",
            remedy="Wait for the other run, or choose another output.",
        ) from None
    return held


def read_journal(folder: Path) -> dict[tuple[str, str], Entry]:
    """Returns the latest valid entry per (uid, digest).

    A failure never replaces an answer. Incomplete and damaged lines are ignored.

    Args:
        folder: The journal; it need not exist.

    Returns:
        (uid, digest of the record) -> entry.
    """
    found: dict[tuple[str, str], Entry] = {}
    for path in rank_files(folder):
        for key, entry in _entries(path):
            if entry.failure is None or key not in found or found[key].failure is not None:
                found[key] = entry
    return found


def rank_files(folder: Path) -> list[Path]:
    """The files of a journal, ordered by rank."""
    matches = [(m, path) for path in folder.glob("*") if (m := _RANK_FILE.fullmatch(path.name))]
    return [path for _, path in sorted(matches, key=lambda pair: int(pair[0][1]))]


def start_rerun(folder: Path) -> None:
    """Moves all files of a journal to `replaced`, and marks it so that input responses are ignored.

    Args:
        folder: The journal; created if it does not exist.
    """
    aside = folder / "replaced"
    aside.mkdir(parents=True, exist_ok=True)
    for path in rank_files(folder):
        path.replace(aside / path.name)
    (folder / _RERUN_MARK).touch()


def is_rerun(folder: Path) -> bool:
    """Whether records are asked even if the input already has a response."""
    return (folder / _RERUN_MARK).exists()


def clear_finish_marks(folder: Path) -> None:
    """Deletes the finish marks of earlier runs."""
    for path in folder.glob(f"rank*{_FINISH_SUFFIX}"):
        path.unlink()


def mark_finished(folder: Path, rank: int) -> None:
    """Marks a rank as finished: it has written all its lines."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank{rank}{_FINISH_SUFFIX}").touch()


def wait_until_finished(folder: Path, num_ranks: int) -> None:
    """Waits until all ranks are marked as finished.

    Uses files, because a collective would time out if one rank needs much longer than the others.
    """
    while any(not (folder / f"rank{rank}{_FINISH_SUFFIX}").exists() for rank in range(num_ranks)):
        time.sleep(_POLL_S)


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
            line: dict[str, Any] = json.loads(files[entry.path].read(entry.num_bytes))
            return line

        yield read


def _entries(path: Path) -> Iterator[tuple[tuple[str, str], Entry]]:
    offset = num_bad = 0
    origins: dict[str, str] = {}  # equal texts share one object in memory
    with path.open("rb") as file:
        for data in file:
            start, offset = offset, offset + len(data)
            try:
                if not data.endswith(b"\n"):
                    raise ValueError("incomplete line")
                line = json.loads(data)
                origin = origin_of(line["model"], line["settings"], line["sampling"])
                entry = Entry(
                    path=path,
                    offset=start,
                    num_bytes=len(data),
                    prompt_digest=line["prompt_digest"],
                    failure=line["error"] and line["error"]["kind"],
                    origin=origins.setdefault(origin, origin),
                )
                yield (line["uid"], line["digest"]), entry
            except (ValueError, KeyError, TypeError):
                num_bad += 1
    if num_bad:
        log.warning("%s: %d damaged lines; their records are asked again", path, num_bad)


def _cut_torn_line(file: FileIO) -> None:
    """Truncates the file after its last complete line; a kill may have left part of a line."""
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
