"""The output folder: its files are written atomically."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import Timeout

from mathcanvas_lightning.common.locks import acquire_lock
from mathcanvas_lightning.common.paths import file_name, is_remote, join_path, local_path
from mathcanvas_lightning.errors import ConfigError, DataError, OutputError
from mathcanvas_lightning.storage.files import Storage
from mathcanvas_lightning.storage.retry import MissingFileError

LOCK_FILE = ".conversion.lock"


class OutputFolder:
    """A local folder, or the fsspec URL of one, whose files are named relative to it.

    Args:
        root: Path or URL; created with the first file.

    Raises:
        ConfigError: If it is empty.
    """

    def __init__(self, root: str) -> None:
        if not root:
            raise ConfigError(
                "--output",
                found="an empty path",
                wanted="a folder",
                remedy="Name it, or write . for the current folder.",
            )
        self.root = root if is_remote(root) else str(local_path(root))
        self._storage = Storage()

    @contextlib.contextmanager
    def locked(self, name: str = LOCK_FILE) -> Iterator[None]:
        """Locks out other conversions.

        Args:
            name: Name of the lock in the folder.

        Raises:
            OutputError: If another conversion holds the lock, or the folder can't be written to.
        """
        if is_remote(self.root):  # object stores have no locks
            yield
            return
        path = Path(self.root, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = acquire_lock(path, wait=False)
        except Timeout:
            raise OutputError(
                self.root,
                found="another conversion running in this folder",
                wanted="a folder that no other process writes to",
                remedy="Wait for it to end, or choose another --output.",
            ) from None
        except OSError as error:
            raise OutputError(
                self.root,
                found=f"a place where no folder can be made ({error})",
                wanted="a folder that can be written to",
                remedy="Choose another --output, or correct its permissions.",
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            lock.release()

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

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file, or None if it does not exist."""
        try:
            return self._storage.read_bytes(self.path(name))
        except MissingFileError:
            return None

    def parquet_metadata(self, name: str) -> Mapping[bytes, bytes]:
        """Returns the key-value metadata of a Parquet file; empty if it is damaged."""
        # Not through Storage.metadata, which tries several times to read a damaged remote footer.
        try:
            with self.open(name) as file:
                return pq.read_metadata(file).metadata or {}
        except (DataError, pa.ArrowException, OSError, ValueError):
            return {}

    def parent(self) -> tuple["OutputFolder | None", str]:
        """Returns the folder around a local one, None around a remote one, and the own name."""
        if is_remote(self.root):
            return None, ""
        path = Path(self.root).resolve()
        return OutputFolder(str(path.parent)), path.name

    def path(self, name: str) -> str:
        """Returns the full path or URL of a file."""
        return join_path(self.root, name) if name else self.root

    def files(self, folder: str = "") -> list[str]:
        """Returns the sorted names of the files in a folder; empty if it does not exist."""
        return self._entries(folder, want_folders=False)

    def folders(self) -> list[str]:
        """Returns the sorted names of the folders in the output folder."""
        return self._entries("", want_folders=True)

    def copy(self, name: str, target: str) -> None:
        """Copies a file in the folder."""
        with self.open(name) as file, self.writing(target) as path, path.open("wb") as copy:
            shutil.copyfileobj(file, copy)

    def remove(self, name: str) -> None:
        """Deletes a file, if it exists."""
        self._storage.remove(self.path(name))

    def remove_folder(self, name: str) -> None:
        """Deletes a local folder if it is empty; remote stores keep none."""
        path = self.path(name)
        if not is_remote(path):
            with contextlib.suppress(OSError):
                Path(path).rmdir()

    def remove_temporaries(self, folder: str, is_ours: Callable[[str], bool]) -> None:
        """Deletes files that a killed process left in a local folder; remote stores keep none.

        Args:
            folder: Name of the folder.
            is_ours: Whether a file with this name may be deleted.
        """
        path = self.path(folder)
        if is_remote(path) or not Path(path).is_dir():
            return
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False) and is_ours(entry.name):
                    Path(entry.path).unlink()

    def _entries(self, folder: str, *, want_folders: bool) -> list[str]:
        try:
            entries = self._storage.list_folder(self.path(folder))
        except MissingFileError:
            return []
        return sorted(file_name(e.path) for e in entries if e.is_folder == want_folders)
