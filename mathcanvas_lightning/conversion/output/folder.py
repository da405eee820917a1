"""The output folder: its files are written atomically."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX
from mathcanvas_lightning.common.paths import file_name, is_remote, join_path, local_path
from mathcanvas_lightning.errors import OutputError
from mathcanvas_lightning.storage.files import Storage
from mathcanvas_lightning.storage.retry import MissingFileError

LOCK_FILE = ".conversion.lock"


class OutputFolder:
    """A local folder, or the fsspec URL of one, whose files are named relative to it.

    Args:
        root: Path or URL; created with the first file.
    """

    def __init__(self, root: str) -> None:
        self.root = root if is_remote(root) else str(local_path(root))
        self._storage = Storage()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks out other conversions, and deletes temporary files of a killed one.

        Raises:
            OutputError: If another conversion holds the lock.
        """
        if is_remote(self.root):  # object stores have no locks, and no temporary files are left
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
        with self._storage.writing(self.path(name)) as temporary:
            yield temporary

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Opens a file for reading, a temporary copy of it if it is remote."""
        with self._storage.fetched(self.path(name)) as path, path.open("rb") as file:
            yield file

    def path(self, name: str) -> str:
        """Returns the full path or URL of a file."""
        return join_path(self.root, name) if name else self.root

    def files(self, folder: str = "") -> list[str]:
        """Returns the sorted names of the files in a folder; empty if it does not exist."""
        return self._entries(folder, want_folders=False)

    def folders(self) -> list[str]:
        """Returns the sorted names of the folders in the output folder."""
        return self._entries("", want_folders=True)

    def remove(self, name: str) -> None:
        """Deletes a file, if it exists."""
        self._storage.remove(self.path(name))

    def _entries(self, folder: str, *, want_folders: bool) -> list[str]:
        try:
            entries = self._storage.list_folder(self.path(folder))
        except MissingFileError:
            return []
        return sorted(file_name(e.path) for e in entries if e.is_folder == want_folders)
