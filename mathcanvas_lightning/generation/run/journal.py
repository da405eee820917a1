"""The journal of a run: a line a response, appended as it comes, read again to go on.

A journal is a folder beside the output with a file a rank. Nothing in it is ever changed. Lines
belong to a record as it was when it was asked: one that has changed begins anew.
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
_REPLACES, _END_SUFFIX = "rerun", ".ended"
_POLL_S = 0.1
_RANK_FILE = re.compile(r"rank(\d+)\.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a record's response stands, and what is asked of it most."""

    path: Path
    offset: int
    num_bytes: int
    prompt_digest: str | None
    """Of all texts of the request, None where there was none."""
    failure: str | None
    """Kind of the failure, None for an answer."""
    maker: str
    """How it was made; see `maker_of`."""


def journal_folder(output: Path) -> Path:
    """Where the journal of an output lies."""
    return output.with_name(output.name + FOLDER_SUFFIX)


def maker_of(model: str, settings: Mapping[str, Any], sampling: Mapping[str, Any] | None) -> str:
    """How answers are made, as a text that is equal for equal ways.

    Args:
        model: Its name.
        settings: Of the backend.
        sampling: Of the request; fields that it lacks have their defaults. None for a record that
            never became a request.

    Returns:
        JSON.
    """
    full = sampling and {**dataclasses.asdict(Sampling()), **sampling}
    made = {"model": model, "settings": settings, "sampling": full}
    return json.dumps(_plain(json.loads(json.dumps(made))), sort_keys=True)


def _plain(value: Any) -> Any:
    """The value with whole floats as integers, so that 0 and 0.0 are one."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def line_of(
    exchange: Exchange, *, model: str, settings: Mapping[str, Any], digest: str
) -> dict[str, Any]:
    """A response as its line says it.

    Args:
        exchange: What was asked and said.
        model: Name of the model.
        settings: Of the backend.
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
        "settings": settings,
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

    Raises:
        OutputError: If another process writes this rank's file.
    """

    def __init__(self, folder: Path, rank: int, sync_every_s: float = 1.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = take_lock(folder / f"rank{rank}.lock")
        self._sync_every_s = sync_every_s
        self._synced_at = time.monotonic()
        self._file = (folder / f"rank{rank}.jsonl").open("ab", buffering=0)
        _cut_torn_line(self._file)

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes some lines.

        Args:
            lines: JSON objects.

        Raises:
            OSError: If the disk is full; nothing of these lines stays.
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


def take_lock(path: Path) -> FileLock:
    """Takes a lock that ends with this process at the latest.

    Args:
        path: Of the lock.

    Returns:
        The lock, held.

    Raises:
        OutputError: If another process holds it.
    """
    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            str(path.parent),
            found="another run that writes there",
            wanted="one run an output",
            remedy="Wait for it, or name another output.",
        ) from None
    return held


def read_journal(folder: Path) -> dict[tuple[str, str], Entry]:
    """Finds the last word on each record as it was asked.

    The last line wins, but a failure never takes the place of an answer. Lines that were cut by a
    kill, or damaged, count as never written.

    Args:
        folder: The journal; may be absent.

    Returns:
        An entry for each record that has a line, by its uid and digest.
    """
    found: dict[tuple[str, str], Entry] = {}
    for path in rank_files(folder):
        for key, entry in _entries(path):
            if entry.failure is None or key not in found or found[key].failure is not None:
                found[key] = entry
    return found


def rank_files(folder: Path) -> list[Path]:
    """The files of a journal, by rank."""
    matches = [(m, path) for path in folder.glob("*") if (m := _RANK_FILE.fullmatch(path.name))]
    return [path for _, path in sorted(matches, key=lambda pair: int(pair[0][1]))]


def begin_anew(folder: Path) -> None:
    """Puts all lines of a journal aside, and marks it as one that replaces the input's responses.

    Args:
        folder: The journal; made if absent.
    """
    aside = folder / "replaced"
    aside.mkdir(parents=True, exist_ok=True)
    for path in rank_files(folder):
        path.replace(aside / path.name)
    (folder / _REPLACES).touch()


def replaces_responses(folder: Path) -> bool:
    """Whether records are asked whatever responses stand in the input."""
    return (folder / _REPLACES).exists()


def clear_ends(folder: Path) -> None:
    """Forgets which ranks of earlier runs have ended."""
    for path in folder.glob(f"rank*{_END_SUFFIX}"):
        path.unlink()


def note_end(folder: Path, rank: int) -> None:
    """Notes that a rank has written all its lines."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank{rank}{_END_SUFFIX}").touch()


def wait_for_ends(folder: Path, num_ranks: int) -> None:
    """Waits until all ranks have noted their end.

    By files, not by a collective, which would time out where some ranks have an hour more to do.
    """
    while any(not (folder / f"rank{rank}{_END_SUFFIX}").exists() for rank in range(num_ranks)):
        time.sleep(_POLL_S)


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


def _entries(path: Path) -> Iterator[tuple[tuple[str, str], Entry]]:
    offset = num_bad = 0
    makers: dict[str, str] = {}  # equal texts are one object
    with path.open("rb") as file:
        for data in file:
            start, offset = offset, offset + len(data)
            try:
                if not data.endswith(b"\n"):
                    raise ValueError("cut short")
                line = json.loads(data)
                maker = maker_of(line["model"], line["settings"], line["sampling"])
                entry = Entry(
                    path=path,
                    offset=start,
                    num_bytes=len(data),
                    prompt_digest=line["prompt_digest"],
                    failure=line["error"] and line["error"]["kind"],
                    maker=makers.setdefault(maker, maker),
                )
                yield (line["uid"], line["digest"]), entry
            except (ValueError, KeyError, TypeError):
                num_bad += 1
    if num_bad:
        log.warning("%s: %d damaged lines; their records are asked again", path, num_bad)


def _cut_torn_line(file: FileIO) -> None:
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
