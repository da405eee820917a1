"""Checks a PNG chunk by chunk and keeps only the chunks that decide its pixels."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

from mathcanvas_lightning.data.images.errors import ImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PROSE = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})
"""Texts and colour profiles, which decoding does not use. Pillow refuses files with large ones."""
CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
"""All critical chunks of the standard. With another one, the pixels mean something else."""
CHUNK_BYTES = 12
"""Bytes of a chunk without its content: length, kind, checksum."""
HEADER = SIGNATURE + b"\0\0\0\x0dIHDR"
_HEAD = struct.Struct(">I4s")
_SIZE = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class Png:
    """A complete PNG file."""

    data: bytes
    """The file up to its end chunk, without texts, colour profiles and damaged ancillary chunks."""
    is_damaged: bool
    """Whether ancillary chunks were damaged. If so, decode the file to be sure of its pixels."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    kind: bytes
    start: int
    end: int
    is_intact: bool

    @property
    def is_ancillary(self) -> bool:
        """Whether the pixels do not depend on it; transparency (tRNS) counts as pixels."""
        return self.kind.isalpha() and self.kind[:1].islower() and self.kind != b"tRNS"


def png_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG in pixels; None if the file does not begin with them."""
    if not data.startswith(HEADER) or len(data) < len(HEADER) + _SIZE.size:
        return None
    width, height = _SIZE.unpack_from(data, len(HEADER))
    return (width, height) if width and height else None


def read_png(data: bytes, *, only_pixels: bool = False) -> Png:
    """Verifies the checksums of a PNG, which cover every byte of its content.

    Args:
        data: The encoded file; bytes after its end chunk are ignored.
        only_pixels: Leave out all chunks that don't decide pixels, which may hold nonsense.

    Raises:
        ImageError: If it is cut short, or a chunk that decides pixels is damaged.
    """
    kept: list[tuple[int, int]] = [(0, len(SIGNATURE))]
    is_damaged = False
    for chunk in _chunks(data):
        if not chunk.is_intact:
            if not chunk.is_ancillary:
                name = chunk.kind.decode("latin-1")
                message = f"the PNG is damaged (checksum of the chunk {name!r})"
                raise ImageError("image_unreadable", message)
            is_damaged = True
        elif not chunk.is_ancillary and chunk.kind not in (*CRITICAL, b"tRNS"):
            name = chunk.kind.decode("latin-1")
            hint = ", as Xcode writes it for apps" if chunk.kind == b"CgBI" else ""
            message = f"the PNG has the non-standard chunk {name!r}{hint}: convert it first"
            raise ImageError("image_unreadable", message)
        elif chunk.kind not in PROSE and not (only_pixels and chunk.is_ancillary):
            start, end = kept[-1]
            if end == chunk.start:
                kept[-1] = (start, chunk.end)
            else:
                kept.append((chunk.start, chunk.end))
    if kept == [(0, len(data))]:
        return Png(data, is_damaged)
    return Png(b"".join(data[start:end] for start, end in kept), is_damaged)


def _chunks(data: bytes) -> Iterator[_Chunk]:
    view, position = memoryview(data), len(SIGNATURE)
    while position + CHUNK_BYTES <= len(data):
        length, kind = _HEAD.unpack_from(data, position)
        end = position + CHUNK_BYTES + length
        if end > len(data):
            break
        checksum = int.from_bytes(view[end - 4 : end], "big")
        is_intact = crc32(view[position + 4 : end - 4]) == checksum
        yield _Chunk(kind, position, end, is_intact)
        if kind == b"IEND":
            return
        position = end
    raise ImageError("image_truncated", "the PNG has no end chunk")
