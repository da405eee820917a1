"""Atomic writing of local files: a file appears complete or not at all."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mathcanvas_lightning.errors import OutputError

TEMPORARY_PREFIX = ".tmp-"
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Errors that only writing causes: a full or read-only disk, a quota, a limit of file sizes."""


@contextlib.contextmanager
def write_errors(target: Path) -> Iterator[None]:
    """Raises an error that names the file if the block finds no room to write it.

    Args:
        target: Path of the file.

    Raises:
        OutputError: If the disk is full or read-only, a quota is used up, or a folder has the name.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EISDIR and target.is_dir():
            raise _is_folder(target, "the name of a file to write") from None
        if error.errno not in NO_ROOM:
            raise
        raise OutputError(
            str(target),
            found=f"no room to write it ({os.strerror(error.errno)})",
            wanted="enough space on a disk that can be written to",
            remedy="Free some space and run the same command again, or choose another folder; "
            "finished work is kept.",
        ) from None


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Writes to a temporary path beside the target and renames it when the block succeeds.

    Args:
        target: Path of the finished file; `~` is expanded, and its folder is made if missing.

    Yields:
        The temporary path to write to.

    Raises:
        OutputError: If a folder has the name of the file or the temporary name, if its folder
            can't be made, or if the disk is full.
    """
    target = target.expanduser()
    with write_errors(target), _written(target) as temporary:
        yield temporary


@contextlib.contextmanager
def _written(target: Path) -> Iterator[Path]:
    make_folder(target.parent)
    if target.is_dir():
        raise _is_folder(target, "the name of a file to write")
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}")
    if temporary.is_dir():
        raise _is_folder(temporary, "a free name for a temporary file")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(target: Path, content: object) -> None:
    """Writes a value as indented JSON, see `written_whole`."""
    with written_whole(target) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def copy_whole(source: Path, target: Path) -> None:
    """Copies a file. A hard link of the target to another file is replaced, not written through.

    Args:
        source: The file.
        target: Path of the copy.

    Raises:
        OutputError: See `written_whole`.
    """
    with written_whole(target) as temporary:
        shutil.copyfile(source, temporary)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, if they are missing.

    Raises:
        OutputError: If it can't be made, such as where a file has its name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            str(path),
            found=f"a place where no folder can be made ({error.strerror})",
            wanted="a folder that can be written to",
            remedy="Choose another folder, or correct its permissions.",
        ) from None


def _is_folder(path: Path, wanted: str) -> OutputError:
    remedy = "Choose another name, or move the folder away."
    return OutputError(str(path), found="a folder", wanted=wanted, remedy=remedy)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
