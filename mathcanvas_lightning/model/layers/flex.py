"""FlexAttention with a block mask, compiled so that it never computes all pairs of tokens.

Options of torch.compile for packs of any length are here, too.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from mathcanvas_lightning.batch.layout import ALL_PAIRS, BLOCK_TOKENS, SOME_PAIRS

MAX_GRAPHS = 64
"""Maximum number of graphs of one compiled function."""
Stack = Literal["decoder", "vit"]
"""The layers that attend. Each stack has a separate compiled function."""
Rule = Callable[[Tensor, Tensor], Tensor]
"""Indexes of queries and of keys to whether they attend."""


def compile_options(*, fullgraph: bool) -> dict[str, Any]:
    """Returns options for `torch.compile` and `Module.compile`, and raises the limit of graphs.

    Training and validation need a graph each, and so do frozen inputs. At torch's limit of 8 graphs
    a function would run uncompiled from then on, without a message. With `fullgraph`, an error is
    raised at the raised limit instead.

    Args:
        fullgraph: Whether a function that can't be compiled completely is an error.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, MAX_GRAPHS)
    return {"dynamic": True, "fullgraph": fullgraph}


def flex_attend(query: Tensor, key: Tensor, value: Tensor, block_mask: Any, stack: Stack) -> Tensor:
    """Computes attention; compiled on CUDA.

    Args:
        query: [T, N, H].
        key: [T, K, H], with N a multiple of K.
        value: [T, K, H].
        block_mask: A mask of `make_block_mask`.
        stack: The layers that attend.

    Returns:
        [T, N, H].
    """
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    function = _compiled(stack) if query.device.type == "cuda" else ATTEND[stack]
    attended: Tensor = function(q, k, v, block_mask)[0]
    return attended.transpose(0, 1)


def make_block_mask(
    rule: Rule, length: int, device: torch.device, blocks: Tensor | None = None
) -> Any:
    """Makes the mask of FlexAttention.

    Args:
        rule: The mask rule.
        length: Number of tokens, at least 1.
        device: Device of the tokens.
        blocks: [B, B] uint8, see `batch.layout.mask_blocks`; None evaluates the rule for all pairs.

    Returns:
        A `BlockMask`.
    """
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        return rule(query, key)

    if blocks is not None:
        return BlockMask.from_kv_blocks(
            *_listed(blocks == SOME_PAIRS),
            *_listed(blocks == ALL_PAIRS),
            BLOCK_SIZE=BLOCK_TOKENS,
            mask_mod=mask_mod,
            seq_lengths=(length, length),
        )
    # Compiled, it never allocates the full matrix: 2.5 GB at 50,000 tokens.
    make = create_block_mask
    if device.type == "cuda":
        make = torch.compile(create_block_mask, **compile_options(fullgraph=False))
    return make(mask_mod, None, None, length, length, device=str(device))


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """[1, 1, B] number of chosen keys of each query, and [1, 1, B, B] keys, chosen ones first."""
    counts = blocks.sum(dim=-1, dtype=torch.int32)
    keys = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True).to(torch.int32)
    return counts[None, None], keys[None, None].contiguous()


# Two functions with the same body: torch counts the variants of a compiled function by its code.
def _attend_decoder(query: Tensor, key: Tensor, value: Tensor, block_mask: Any) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(query, key, value, block_mask=block_mask, enable_gqa=True)


def _attend_vit(query: Tensor, key: Tensor, value: Tensor, block_mask: Any) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(query, key, value, block_mask=block_mask)


ATTEND: Mapping[Stack, Callable[[Tensor, Tensor, Tensor, Any], Any]] = {
    "decoder": _attend_decoder,
    "vit": _attend_vit,
}
"""Attention of each stack, not compiled: [1, heads, T, H] q, k and v, and a mask, to the same."""


@cache
def _compiled(stack: Stack) -> Any:
    # Uncompiled, FlexAttention computes every pair: 294 GB of scores at 51,200 tokens.
    return torch.compile(ATTEND[stack], **compile_options(fullgraph=True))
