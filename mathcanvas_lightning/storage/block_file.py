"""A remote file for reading, fetched in blocks."""

from collections.abc import Callable

from fsspec.spec import AbstractBufferedFile

BLOCK_BYTES, MAX_BLOCKS = 2**20, 8


class BlockFile(AbstractBufferedFile):  # type: ignore[misc] # fsspec has no types
    """Reads whole blocks at multiples of `BLOCK_BYTES`, so that neighbours share them.

    Args:
        read_range: Returns the bytes [start, end) of the file.
        size_bytes: Length of the file.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size_bytes: int) -> None:
        self._read_range = read_range
        super().__init__(
            *(None, ""),
            size=size_bytes,
            block_size=BLOCK_BYTES,
            cache_type="blockcache",
            cache_options={"maxblocks": MAX_BLOCKS},
        )

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._read_range(start, min(end, self.size))
