"""A remote file for reading, fetched in blocks."""

import io
from collections.abc import Callable
from typing import Any

BLOCK_BYTES = 2**20


class BlockFile(io.RawIOBase):
    """Reads whole blocks at multiples of `BLOCK_BYTES`, so that neighbours share them.

    Args:
        read_block: Returns the block of a number; the last one is shorter, and those after it are
            empty.
        size_bytes: Length of the file.
    """

    def __init__(self, read_block: Callable[[int], bytes], size_bytes: int) -> None:
        super().__init__()
        self._read_block = read_block
        self._size_bytes = size_bytes
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to an offset, see `io.IOBase.seek`."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}
        self._position = max(0, start[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Reads up to the end of a block; 0 bytes at the end of the file."""
        number, start = divmod(self._position, BLOCK_BYTES)
        data = self._read_block(number)[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
