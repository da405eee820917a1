"""Padding of compiled layers: torch makes separate graphs for lengths and sizes of 0 and 1."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mathcanvas_lightning.batch.layout import BLOCK_TOKENS, SOME_PAIRS
from mathcanvas_lightning.model.layers.attention import TokenLayout

MIN_EXPERT_TOKENS = 2
"""Minimum number of tokens of an expert."""
MIN_TOKENS = BLOCK_TOKENS + 1
"""Minimum number of tokens that attend, so that the mask has two blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """Numbers of padding tokens. Each follows the tokens of its expert, and attends to itself."""

    und: int = 0
    gen: int = 0

    @classmethod
    def of_experts(cls, und: int, gen: int) -> "Padding":
        """The padding of the decoder's tokens.

        Args:
            und: Number of tokens of the understanding expert.
            gen: Number of tokens of the generation expert.
        """
        of_und = max(0, MIN_EXPERT_TOKENS - und)
        of_gen = max(0, MIN_EXPERT_TOKENS - gen, MIN_TOKENS - und - of_und - gen)
        return cls(und=of_und, gen=of_gen)

    @classmethod
    def of_patches(cls, count: int) -> "Padding":
        """The padding of ViT patches, at their end."""
        return cls(gen=max(0, MIN_TOKENS - count))

    def of_layout(self, layout: TokenLayout, und: int) -> TokenLayout:
        """Adds the padding to a layout.

        Args:
            layout: Layout of the tokens of both experts, und first.
            und: Number of tokens of the understanding expert.
        """
        count = self.und + self.gen
        if not count:
            return layout
        device, length = layout.sample_ids.device, len(layout.sample_ids)
        ids = torch.arange(-count, 0, device=device)  # samples of one token
        no = torch.zeros_like(ids, dtype=torch.bool)

        def padded(values: Tensor, added: Tensor) -> Tensor:
            first, second = added[: self.und], added[self.und :]
            return torch.cat([values[:und], first, values[und:], second])

        at_end = not self.und or und == length
        known = layout.blocks is not None and at_end
        return replace(
            layout,
            sample_ids=padded(layout.sample_ids, ids),
            sequence_indexes=padded(layout.sequence_indexes, ids + (length + count)),
            split_ids=padded(layout.split_ids, ids),
            bidirectional=padded(layout.bidirectional, no),
            noisy=padded(layout.noisy, no),
            blocks=_padded_blocks(layout.blocks, length + count) if known else None,
        )


def pad_rows(x: Tensor, count: int) -> Tensor:
    """Appends rows of zeros to the first dimension."""
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, count)) if count else x


def _padded_blocks(blocks: Tensor | None, length: int) -> Tensor:
    """Blocks of the mask after tokens that attend to themselves were added at the end."""
    assert blocks is not None
    before = len(blocks)
    added = -(-length // BLOCK_TOKENS) - before
    result = F.pad(blocks, (0, added, 0, added))
    result.diagonal()[before:].fill_(SOME_PAIRS)
    return result
