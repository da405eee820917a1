"""The files that a source's records point to: read from one folder, and never from outside it."""
# Paths are strings here: for small pictures, making Path objects costs more than reading the files.
# ruff: noqa: PTH114, PTH117, PTH118

import errno
import os
import posixpath
import stat
from dataclasses import dataclass
from functools import lru_cache

import fsspec

from mathcanvas_lightning.common.paths import is_remote, local_path
from mathcanvas_lightning.conversion.rejection import Reason, Reject
from mathcanvas_lightning.errors import InputError


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """Reads files by the relative paths that records name; small enough to send to workers."""

    root: str
    """A local folder, or the fsspec URL of one."""

    def read(self, relative: str, *, max_bytes: int) -> bytes:
        """Reads a whole file.

        Args:
            relative: Path below the root, with forward slashes.
            max_bytes: A larger file is refused unread.

        Returns:
            Its bytes.

        Raises:
            Reject: If the path leaves the root, or names nothing that can be read.
            InputError: If the storage fails, which says nothing about the sample.
        """
        if is_remote(self.root):
            return self._read_remote(relative, max_bytes)
        return self._read_local(relative, max_bytes)

    def read_optional(self, relative: str, *, max_bytes: int) -> bytes | None:
        """Like `read`, but None where there is no such file."""
        try:
            return self.read(relative, max_bytes=max_bytes)
        except Reject as rejection:
            if rejection.reason == Reason.IMAGE_MISSING:
                return None
            raise

    def _read_local(self, relative: str, max_bytes: int) -> bytes:
        try:
            path = _resolve(self.root, relative)
            with open(path, "rb", opener=_open_without_waiting) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise Reject(Reason.IMAGE_UNREADABLE, f"{relative!r} is no regular file")
                if status.st_size > max_bytes:
                    raise _too_large(relative, status.st_size, max_bytes)
                return file.read()
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
            raise _missing(relative) from None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # no such file can exist
                raise _missing(relative) from None
            raise Reject(Reason.IMAGE_UNREADABLE, f"{relative!r}: {error.strerror}") from None

    def _read_remote(self, relative: str, max_bytes: int) -> bytes:
        inside = posixpath.normpath(relative)
        if posixpath.isabs(relative) or inside.split("/")[0] == ".." or "://" in relative:
            raise _outside(relative)
        url = f"{self.root.rstrip('/')}/{inside}"
        try:
            filesystem, path = fsspec.core.url_to_fs(url)
            with filesystem.open(path, "rb") as file:
                data: bytes = file.read(max_bytes + 1)
        except FileNotFoundError:
            raise _missing(relative) from None
        except Exception as error:  # every storage has errors of its own
            raise InputError(
                url,
                found=f"a storage failure ({type(error).__name__}: {error})",
                wanted="the file's bytes",
                remedy="Finished shards stay; run the same command again to go on.",
            ) from error
        if len(data) > max_bytes:
            raise _too_large(relative, len(data), max_bytes)
        return data


def _resolve(root: str, relative: str) -> str:
    """The real path of a file, which must be below the root whatever links are on the way."""
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


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would wait for its other end


def _outside(relative: str) -> Reject:
    return Reject(Reason.PATH_OUTSIDE, f"{relative!r} leaves the image folder")


def _missing(relative: str) -> Reject:
    return Reject(Reason.IMAGE_MISSING, f"no file {relative!r} in the image folder")


def _too_large(relative: str, size: int, limit: int) -> Reject:
    return Reject(Reason.IMAGE_TOO_LARGE, f"{relative!r}: {size} bytes, over {limit}")
