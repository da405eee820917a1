"""Several tensors in one buffer: one file descriptor, one page-locked block, one copy."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT_BYTES = 64
Part = tuple[int, torch.dtype, tuple[int, ...]]
"""First byte of a tensor in a buffer, its type and its shape."""


def find_parts(tensors: Sequence[Tensor]) -> list[Part]:
    """Lays tensors out in one buffer, each at a multiple of `ALIGNMENT_BYTES`."""
    sizes = [-(-tensor.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for tensor in tensors]
    starts = itertools.accumulate([0, *sizes])
    return [(start, t.dtype, tuple(t.shape)) for start, t in zip(starts, tensors, strict=False)]


def to_buffer(tensors: Sequence[Tensor]) -> Tensor:
    """The buffer that the tensors are views of, or a new one with their contents; uint8."""
    buffer = find_buffer(tensors)
    if buffer is None:
        parts = find_parts(tensors)
        buffer = torch.zeros(parts[-1][0] + tensors[-1].nbytes, dtype=torch.uint8)
        for view, tensor in zip(make_views(buffer, parts), tensors, strict=True):
            view.copy_(tensor)
    return buffer


def find_buffer(tensors: Sequence[Tensor]) -> Tensor | None:
    """The buffer that the tensors are views of; None unless it is laid out as by `find_parts`."""
    storage = tensors[0].untyped_storage()
    for tensor, (start, _, _) in zip(tensors, find_parts(tensors), strict=True):
        place = tensor.storage_offset() * tensor.itemsize, tensor.untyped_storage().data_ptr()
        if place != (start, storage.data_ptr() or None) or not tensor.is_contiguous():
            return None
    return torch.empty(0, dtype=torch.uint8, device=tensors[0].device).set_(storage)


def make_views(buffer: Tensor, parts: Sequence[Part]) -> list[Tensor]:
    """Views of the tensors in a buffer."""
    return [
        buffer[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for start, dtype, shape in parts
    ]
