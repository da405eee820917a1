"""Local files: status, listing, reading, and their errors."""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.storage.config import Entry, FileStatus
from mathcanvas_lightning.storage.retry import (
    TRANSIENT_ERRNOS,
    ContentError,
    damaged_file,
    missing_file,
    not_a_file,
)


class LocalFiles:
    """Local files, with the methods of `RemoteFiles` and `CachedRanges` that reading needs."""

    def find_status(self, path: str) -> FileStatus | None:
        """Size and time of change of a file, None for a folder."""
        status = local_path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            return None
        if not stat.S_ISREG(status.st_mode):
            raise not_a_file(path)
        return _status(status)

    def list_folder(self, path: str) -> list[Entry]:
        """The entries of a folder, without hidden ones; links are followed."""
        entries = []
        with os.scandir(local_path(path)) as found:
            for item in found:
                if not item.name.startswith("."):
                    is_folder, status = False, None
                    # A link to nothing or to itself is listed as a file, and fails when read.
                    with contextlib.suppress(OSError):
                        is_folder = item.is_dir()
                        status = None if is_folder else _status(item.stat())
                    entries.append(Entry(path=item.path, is_folder=is_folder, status=status))
        return entries

    def read(self, path: str, _: FileStatus, start: int, end: int) -> bytes:
        """Reads the bytes [start, end) of a file, fewer at its end."""
        with self.open(path) as file:
            file.seek(start)
            return file.read(end - start)

    def read_bytes(self, path: str, max_bytes: int | None) -> bytes:
        """Reads a whole file; of one that is too large, only the first max_bytes + 1 bytes."""
        with self.open(path) as file:
            return file.read(-1 if max_bytes is None else max_bytes + 1)

    def open(self, path: str) -> BinaryIO:
        """Opens a file for reading."""
        if self.find_status(path) is None:  # opening a pipe would wait for its other end
            raise not_a_file(path)
        return local_path(path).open("rb")


@contextlib.contextmanager
def local_errors(place: str) -> Iterator[None]:
    """Raises a `DataError` that names the place for a file that can't be read.

    An `OSError` that says nothing about the file passes, see `TRANSIENT_ERRNOS`.
    """
    try:
        yield
    except ContentError as error:
        raise damaged_file(place, str(error)) from None
    except (FileNotFoundError, NotADirectoryError):
        raise missing_file(place) from None
    except ValueError as error:  # a NUL in the name
        found = f"a name that no file can have ({error})"
        raise DataError(place, found=found, wanted="a file", remedy="Correct the name.") from None
    except OSError as error:
        if error.errno in TRANSIENT_ERRNOS:
            raise
        found = f"something that can't be read ({error.strerror or error})"
        remedy = "Check its permissions and its disk."
        raise DataError(place, found=found, wanted="a readable file", remedy=remedy) from None


def _status(status: os.stat_result) -> FileStatus:
    return FileStatus(size_bytes=status.st_size, version=str(status.st_mtime_ns))
