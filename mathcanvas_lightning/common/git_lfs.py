"""Recognises pointer files of Git LFS, which stand for files that were not downloaded."""

from pathlib import Path

POINTER_START = b"version https://git-lfs.github.com/spec/"
POINTER = "a Git LFS pointer instead of the file (run git lfs pull where it comes from)"
"""Description for error messages."""


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that begins with these bytes is a Git LFS pointer."""
    return start.startswith(POINTER_START)


def describe_file(path: Path, otherwise: str) -> str:
    """Description of a file that can't be read: a pointer if it is one."""
    with path.open("rb") as file:
        return POINTER if is_lfs_pointer(file.read(len(POINTER_START))) else otherwise
