"""The attention mask of a pack at reduced resolution.

Shape letters: T packed tokens, N cells along a side of the picture, P pieces of the sequence.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mathcanvas_lightning.batch import PackedBatch
from mathcanvas_lightning.inspection.pack_table import Ints, to_numpy
from mathcanvas_lightning.model.layers.attention import TokenLayout, attends, make_layout

MAX_MASK_PX = 1000
"""Maximum number of cells along a side; in longer packs, several tokens share a cell."""
_PIECE = 64
"""Maximum length of a piece, in tokens."""

Floats: TypeAlias = npt.NDArray[np.float32]


def mask_image(batch: PackedBatch, max_px: int = MAX_MASK_PX) -> Floats:
    """Computes the attention mask at reduced resolution.

    Args:
        batch: A pack; only its splits are used.
        max_px: Maximum number of cells along a side.

    Returns:
        [N, N] float32, queries by keys, with N = min(T, max_px): the share of a cell's pairs that
        attend. With N = T it is the mask itself.

    Raises:
        ValueError: If `max_px` is less than 1.
    """
    edges = torch.from_numpy(cell_edges(batch.sequence_length, max_px))
    layout = make_layout(batch.sample_lens, batch.splits, torch.device("cpu"))
    # Exact without T x T pairs: a piece lies within one split and one cell, so of the pairs of two
    # pieces either all attend or none, and the rule is evaluated for one pair. Pieces are short,
    # so for the pairs within a piece the rule can be evaluated for each.
    ends = torch.tensor([split.length for split in batch.splits], dtype=torch.int64).cumsum(0)
    short = torch.arange(0, batch.sequence_length, _PIECE)
    cuts = torch.unique(torch.cat([edges, ends, short]))
    starts, lengths = cuts[:-1], cuts.diff()
    cells = torch.searchsorted(edges, starts, right=True) - 1
    weights = lengths / edges.diff()[cells]
    image = torch.zeros(len(edges) - 1, len(edges) - 1)
    for first in range(0, len(starts), _PIECE):
        some = torch.arange(first, min(first + _PIECE, len(starts)))
        shares = attends(layout, starts[some, None], starts[None]).float()
        shares[torch.arange(len(some)), some] = _own_shares(layout, starts[some], lengths[some])
        rows = torch.zeros(len(some), image.shape[1]).index_add_(1, cells, shares * weights)
        image.index_add_(0, cells[some], rows * weights[some, None])
    # A sum of rounded weights may slightly exceed 1.
    return to_numpy(image.clamp(0, 1))


def cell_edges(num_tokens: int, max_px: int) -> Ints:
    """[N + 1] boundaries of cells of about equal length."""
    if max_px < 1:
        raise ValueError(f"max_px: found {max_px}, wanted at least 1")
    count = min(num_tokens, max_px)
    return np.arange(count + 1, dtype=np.int64) * num_tokens // max(count, 1)


def _own_shares(layout: TokenLayout, starts: Tensor, lengths: Tensor) -> Tensor:
    """[P] share of the pairs within each piece that attend."""
    steps = torch.arange(int(lengths.max()))
    inside = steps < lengths[:, None]
    indexes = (starts[:, None] + steps).clamp(max=len(layout.sequence_indexes) - 1)
    pairs = attends(layout, indexes[:, :, None], indexes[:, None, :])
    pairs &= inside[:, :, None] & inside[:, None, :]
    return pairs.sum((1, 2)) / lengths.square()
