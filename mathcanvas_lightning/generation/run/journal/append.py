"""JournalWriter: appends lines so that a kill, a crash or a full disk loses no finished answer."""

import os
import time
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from mathcanvas_lightning.common.atomic import write_errors
from mathcanvas_lightning.generation.run.journal.folder import acquire_lock
from mathcanvas_lightning.generation.run.journal.lines import encode_line


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
            OutputError: If the disk is full; then none of the lines is kept.
        """
        data = b"".join(map(encode_line, lines))
        end = self._file.tell()
        with write_errors(Path(self._file.name)):
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sync(self) -> None:
        with write_errors(Path(self._file.name)):
            os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()


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
