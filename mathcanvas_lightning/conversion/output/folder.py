"""The output folder: its files are written atomically."""

import contextlib
import posixpath
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from filelock import FileLock, Timeout

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX, written_whole
from mathcanvas_lightning.common.paths import is_remote, local_path
from mathcanvas_lightning.errors import OutputError

LOCK_FILE = ".conversion.lock"
ATOMIC_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "memory"})
"""Stores in which an object becomes visible only after a complete upload."""


class OutputFolder:
    """A local folder, or the fsspec URL of one, addressed by names relative to it.

    Args:
        root: Path or URL; created with the first file.
    """

    def __init__(self, root: str) -> None:
        self.root = root if is_remote(root) else str(local_path(root))
        self._remote = is_remote(root)
        self._fs: Any = fsspec.core.url_to_fs(root)[0] if self._remote else None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks out other conversions, and deletes temporary files of a killed one.

        Raises:
            OutputError: If another conversion holds the lock.
        """
        if self._remote:  # object stores have no locks; uploads are atomic anyway
            yield
            return
        Path(self.root).mkdir(parents=True, exist_ok=True)
        lock = Path(self.root, LOCK_FILE)
        try:
            with FileLock(lock, timeout=0):
                for leftover in Path(self.root).rglob(f"{TEMPORARY_PREFIX}*"):
                    leftover.unlink()
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
        except Timeout:
            raise OutputError(
                self.root,
                found="another conversion running in this folder",
                wanted="a folder that no other process writes to",
                remedy="Wait for it to end, or choose another --output.",
            ) from None

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yields a temporary local path, and moves its file to `name` if the block raises nothing.

        Args:
            name: Path of the file, relative to the folder.

        Yields:
            Temporary path to write to.
        """
        final = self.path(name)
        if self._remote:
            with tempfile.TemporaryDirectory(prefix="mathcanvas-") as folder:
                temporary = Path(folder, "file")
                yield temporary
                self._upload(temporary, final)
            return
        with written_whole(Path(final)) as temporary:
            yield temporary

    def path(self, name: str) -> str:
        """Returns the full path or URL of a file."""
        return posixpath.join(self.root, name) if name else self.root

    def open(self, name: str) -> BinaryIO:
        """Opens a file for reading."""
        file: BinaryIO = (self._fs.open if self._remote else open)(self.path(name), "rb")
        return file

    def files(self, folder: str = "") -> list[str]:
        """Returns the sorted names of the files in a folder; empty if it does not exist."""
        return self._entries(folder, "file")

    def folders(self) -> list[str]:
        """Returns the sorted names of the folders in the output folder."""
        return self._entries("", "directory")

    def remove(self, name: str) -> None:
        """Deletes a file, if it exists."""
        if self._remote:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm(self.path(name))
        else:
            Path(self.path(name)).unlink(missing_ok=True)

    def _entries(self, folder: str, kind: str) -> list[str]:
        path = self.path(folder)
        if not self._remote:
            found = Path(path).iterdir() if Path(path).is_dir() else ()
            return sorted(entry.name for entry in found if entry.is_dir() == (kind == "directory"))
        self._fs.invalidate_cache()
        try:
            entries = self._fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        names = (posixpath.basename(e["name"].rstrip("/")) for e in entries if e["type"] == kind)
        return sorted(names)

    def _upload(self, temporary: Path, final: str) -> None:
        protocols = self._fs.protocol
        names = {protocols} if isinstance(protocols, str) else set(protocols)
        if names & ATOMIC_STORES:
            self._fs.put_file(str(temporary), final)
            return
        folder, name = posixpath.split(final)
        self._fs.makedirs(folder, exist_ok=True)
        halfway = posixpath.join(folder, f"{TEMPORARY_PREFIX}{name}")
        self._fs.put_file(str(temporary), halfway)
        self._fs.mv(halfway, final)
