"""Local files: status, listing, and their errors."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.storage.config import Entry, FileStatus
from mathcanvas_lightning.storage.retry import ContentError, damaged_file, missing_file


def local_status(path: Path) -> FileStatus:
    """Size and time of change of a file.

    Raises:
        DataError: If it is missing, or no regular file.
    """
    with local_errors(str(path)):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        found = "a folder or device"
        raise DataError(str(path), found=found, wanted="a file", remedy="Correct the path.")
    return _status(status)


def list_local(folder: Path) -> list[Entry]:
    """The entries of a folder, without hidden ones; links are followed."""
    entries = []
    with local_errors(str(folder)), os.scandir(folder) as found:
        for item in found:
            if not item.name.startswith("."):
                is_folder = item.is_dir()
                status = None
                if not is_folder:
                    with contextlib.suppress(OSError):  # a link to nothing: reading it will fail
                        status = _status(item.stat())
                entries.append(
                    Entry(path=str(folder / item.name), is_folder=is_folder, status=status)
                )
    return entries


@contextlib.contextmanager
def local_errors(place: str) -> Iterator[None]:
    """Raises a `DataError` that names the place for any failure to read."""
    try:
        yield
    except ContentError as error:
        raise damaged_file(place, str(error)) from None
    except (FileNotFoundError, NotADirectoryError):
        raise missing_file(place) from None
    except OSError as error:
        raise DataError(
            place,
            found=f"something that can't be read ({error.strerror or error})",
            wanted="a readable file",
            remedy="Check its permissions and its disk.",
        ) from None


def _status(status: os.stat_result) -> FileStatus:
    return FileStatus(size_bytes=status.st_size, version=str(status.st_mtime_ns))
