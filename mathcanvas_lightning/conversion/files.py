"""Reads the image files that records name, and never a file outside the image folder."""
# Paths are strings here: for small pictures, making Path objects costs more than reading the files.
# ruff: noqa: PTH114, PTH117, PTH118

import errno
import os
import posixpath
import stat
from dataclasses import dataclass, field
from functools import lru_cache

from mathcanvas_lightning.common.paths import is_remote, join_path, local_path
from mathcanvas_lightning.conversion.rejection import Reason, RejectError
from mathcanvas_lightning.errors import InputError, StorageError
from mathcanvas_lightning.storage.files import Storage
from mathcanvas_lightning.storage.retry import FileTooLargeError, MissingFileError


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """Reads files by the relative paths in records. Small enough to pickle for worker processes."""

    root: str
    """The image folder: a local path or an fsspec URL."""
    storage: Storage = field(default_factory=Storage)
    """Reads remote files."""

    def read(self, relative: str, *, max_bytes: int) -> bytes:
        """Reads a whole file.

        Args:
            relative: Path below the root, with forward slashes.
            max_bytes: A larger file is rejected without being read.

        Returns:
            The file's bytes.

        Raises:
            RejectError: If the path leaves the root, or the file is missing or can't be used.
            InputError: If the storage fails; the sample itself may be fine.
        """
        if is_remote(self.root):
            return self._read_remote(relative, max_bytes)
        return self._read_local(relative, max_bytes)

    def read_optional(self, relative: str, *, max_bytes: int) -> bytes | None:
        """Reads a file as `read` does, but returns None if it does not exist."""
        try:
            return self.read(relative, max_bytes=max_bytes)
        except RejectError as rejection:
            if rejection.reason == Reason.IMAGE_MISSING:
                return None
            raise

    def _read_local(self, relative: str, max_bytes: int) -> bytes:
        try:
            path = _resolve(self.root, relative)
            with open(path, "rb", opener=_open_nonblocking) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise RejectError(Reason.IMAGE_UNREADABLE, f"{relative!r} is no regular file")
                if status.st_size > max_bytes:
                    raise _too_large(relative, status.st_size, max_bytes)
                return file.read()
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
            raise _missing(relative) from None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # no such file can exist
                raise _missing(relative) from None
            raise RejectError(Reason.IMAGE_UNREADABLE, f"{relative!r}: {error.strerror}") from None

    def _read_remote(self, relative: str, max_bytes: int) -> bytes:
        inside = posixpath.normpath(relative)
        if posixpath.isabs(relative) or inside.split("/")[0] == ".." or "://" in relative:
            raise _outside(relative)
        try:
            return self.storage.read_bytes(join_path(self.root, inside), max_bytes=max_bytes)
        except MissingFileError:
            raise _missing(relative) from None
        except FileTooLargeError as error:
            raise RejectError(Reason.IMAGE_TOO_LARGE, f"{relative!r}: {error.found}") from None
        except StorageError as error:
            raise InputError(
                error.place,
                found=error.found,
                wanted="the file's bytes",
                remedy="Finished shards stay; run the same command again to resume.",
            ) from None


def _resolve(root: str, relative: str) -> str:
    """Resolves links; the real path of the file must be below the root."""
    real_root = _real_folder(str(local_path(root)))
    folder, name = os.path.split(relative)
    path = os.path.join(_real_folder(os.path.join(real_root, folder)), name)
    if name in ("", ".", "..") or os.path.islink(path):
        path = os.path.realpath(path)
    if os.path.isabs(relative) or not path.startswith(os.path.join(real_root, "")):
        raise _outside(relative)
    return path


@lru_cache(maxsize=4096)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would block until it has a writer


def _outside(relative: str) -> RejectError:
    return RejectError(Reason.PATH_OUTSIDE, f"{relative!r} leaves the image folder")


def _missing(relative: str) -> RejectError:
    return RejectError(Reason.IMAGE_MISSING, f"no file {relative!r} in the image folder")


def _too_large(relative: str, size: int, limit: int) -> RejectError:
    return RejectError(Reason.IMAGE_TOO_LARGE, f"{relative!r}: {size} bytes, over {limit}")
