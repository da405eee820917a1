"""Reads the image files that records name, and never a file outside the image folder."""
# Paths are strings here: for small pictures, making Path objects costs more than reading the files.
# ruff: noqa: PTH117, PTH118

import errno
import os
import posixpath
import stat
from dataclasses import dataclass, field

from mathcanvas_lightning.common.file_names import is_outside, near_miss
from mathcanvas_lightning.common.paths import is_remote, join_path, local_path
from mathcanvas_lightning.conversion.rejection import Reason, RejectError
from mathcanvas_lightning.errors import InputError, StorageError
from mathcanvas_lightning.storage.files import Storage
from mathcanvas_lightning.storage.retry import FileTooLargeError, MissingFileError, with_retries

MAX_FOLDERS = 4096
MISSING_ERRNOS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
UNREADABLE_ERRNOS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL, errno.EILSEQ}
)
RECORD_ERRNOS = MISSING_ERRNOS | UNREADABLE_ERRNOS | {None}
"""Errors that say something about a file. Any other one, such as a stale file handle, an I/O error
or too many open files, says something about the storage, and no record is rejected for it."""


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """Reads files by the relative paths in records. Small enough to pickle for worker processes."""

    root: str
    """The image folder: a local path or an fsspec URL."""
    storage: Storage = field(default_factory=Storage)
    """Reads remote files."""
    link_root: str | None = None
    """Folder into which links below the root may lead; None for the root itself."""
    _folders: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Folders and their real paths."""

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
        try:
            outcome = self._try_local(relative, max_bytes)
        except OSError:
            outcome = self._retry_local(relative, max_bytes)
        if isinstance(outcome, RejectError):
            raise outcome
        return outcome

    def read_optional(self, relative: str, *, max_bytes: int) -> bytes | None:
        """Reads a file as `read` does, but returns None if it does not exist."""
        try:
            return self.read(relative, max_bytes=max_bytes)
        except RejectError as rejection:
            if rejection.reason == Reason.IMAGE_MISSING:
                return None
            raise

    def _try_local(self, relative: str, max_bytes: int) -> bytes | RejectError:
        """Reads a local file; raises OSError if its storage fails."""
        try:
            path = self._resolve(relative)
            if isinstance(path, RejectError):
                return path
            with open(path, "rb", opener=_open_nonblocking) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    return RejectError(Reason.IMAGE_UNREADABLE, f"{relative!r} is no regular file")
                if status.st_size > max_bytes:
                    return _too_large(relative, status.st_size, max_bytes)
                return file.read()
        except ValueError:  # a NUL or half a surrogate pair in the name
            return _missing(relative)
        except OSError as error:
            if error.errno in MISSING_ERRNOS:
                hint = near_miss(str(local_path(self.root)), relative)
                return _outside(relative) if is_outside(relative) else _missing(relative, hint)
            if error.errno in UNREADABLE_ERRNOS:
                return RejectError(Reason.IMAGE_UNREADABLE, f"{relative!r}: {error.strerror}")
            raise

    def _retry_local(self, relative: str, max_bytes: int) -> bytes | RejectError:
        place = join_path(self.root, relative)
        try:
            return with_retries(
                self.storage.config, place, lambda: self._try_local(relative, max_bytes)
            )
        except StorageError as error:
            raise _storage_failure(error) from None

    def _read_remote(self, relative: str, max_bytes: int) -> bytes:
        inside = posixpath.normpath(relative)
        if is_outside(relative) or "://" in relative:
            raise _outside(relative)
        try:
            return self.storage.read_bytes(join_path(self.root, inside), max_bytes=max_bytes)
        except MissingFileError:
            raise _missing(relative) from None
        except FileTooLargeError as error:
            raise RejectError(Reason.IMAGE_TOO_LARGE, f"{relative!r}: {error.found}") from None
        except StorageError as error:
            raise _storage_failure(error) from None

    def _resolve(self, relative: str) -> str | RejectError:
        """The real path of a file below the root, or below `link_root` if a link leads there."""
        root = self._real_folder(str(local_path(self.root)))
        folder, name = os.path.split(relative)
        path = os.path.join(self._real_folder(os.path.join(root, folder)), name)
        if name in ("", ".", "..") or stat.S_ISLNK(os.lstat(path).st_mode):
            path = os.path.realpath(path, strict=True)
        if path.startswith(os.path.join(root, "")) and not os.path.isabs(relative):
            return path
        if path == root:
            return RejectError(Reason.IMAGE_UNREADABLE, f"{relative!r} is the image folder")
        if is_outside(relative):
            return _outside(relative)
        if self.link_root is None:
            return _link_outside(relative)
        links = self._real_folder(str(local_path(self.link_root)))
        return path if path.startswith(os.path.join(links, "")) else _link_outside(relative)

    def _real_folder(self, path: str) -> str:
        if path not in self._folders:
            if len(self._folders) >= MAX_FOLDERS:
                self._folders.clear()
            # Strict: otherwise a link that can't be read for a moment would count as a folder.
            self._folders[path] = os.path.realpath(path, strict=True)
        return self._folders[path]


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would block until it has a writer


def _outside(relative: str) -> RejectError:
    reason = "is an absolute path" if posixpath.isabs(relative) else "leaves the image folder"
    return RejectError(Reason.PATH_OUTSIDE, f"{relative!r} {reason}")


def _link_outside(relative: str) -> RejectError:
    return RejectError(
        Reason.PATH_OUTSIDE,
        f"{relative!r} leaves the image folder through a link; --link_root names the folder into "
        "which links may lead",
    )


def _missing(relative: str, hint: str = "") -> RejectError:
    return RejectError(Reason.IMAGE_MISSING, f"no file {relative!r:.200} in the image folder{hint}")


def _too_large(relative: str, size: int, limit: int) -> RejectError:
    return RejectError(Reason.IMAGE_TOO_LARGE, f"{relative!r}: {size} bytes, over {limit}")


def _storage_failure(error: StorageError) -> InputError:
    return InputError(
        error.place,
        found=error.found,
        wanted="the file's bytes",
        remedy="Finished shards stay; run the same command again to resume.",
    )
