"""Positions and attention of contexts with images: pure functions without vllm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class SplitImageError(Exception):
    """A forward pass ends inside an image, whose tokens must see each other."""


@dataclass(frozen=True, slots=True)
class ImageRange:
    """Place of an image block in a context."""

    start: int
    """Index of the start marker."""
    length: int
    """Number of tokens, with markers."""
    is_latent: bool
    """Whether its inner tokens belong to the generation expert."""


def rope_positions(num_tokens: int, images: Sequence[ImageRange]) -> tuple[Tensor, int]:
    """RoPE positions of a context, and the experts of its tokens.

    Args:
        num_tokens: Length of the context.
        images: Its images, in any order.

    Returns:
        Positions [3, num_tokens] int64, and the shift from an index after the context to its
        position. A text token takes the next position; all tokens of an image share one. Rows 0 and
        2 are equal; row 1 differs from them where a token belongs to the generation expert, see
        `gen_mask`.
    """
    steps = torch.ones(num_tokens, dtype=torch.int64)
    is_gen = torch.zeros(num_tokens, dtype=torch.int64)
    for image in images:
        end = image.start + image.length
        steps[image.start + 1 : end] = 0
        if image.is_latent:
            is_gen[image.start + 1 : end - 1] = 1
    positions = steps.cumsum(0) - 1
    shift = int(steps.sum()) - num_tokens
    return torch.stack([positions, positions + is_gen, positions]), shift


def gen_mask(positions: Tensor) -> Tensor:
    """[T] bool: which tokens belong to the generation expert.

    Args:
        positions: [3, T], as `rope_positions` makes them; tokens after the context have equal rows.
    """
    return positions[1] != positions[0]


@dataclass(frozen=True, slots=True)
class Segment:
    """New tokens of one request that attend in the same way."""

    request: int
    """Number of the request in the batch."""
    length: int
    """Number of tokens."""
    end: int
    """Number of tokens of the request up to the end of the segment: what its tokens may see."""
    is_causal: bool
    """Whether a token sees only itself and the tokens before it; otherwise it sees all up to
    `end`."""


def attention_segments(
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    image_ranges: Mapping[int, Sequence[tuple[int, int]]],
) -> list[Segment]:
    """Divides the new tokens of a batch into texts (causal) and images (full attention).

    Args:
        query_lens: Number of new tokens of each request.
        seq_lens: Number of tokens of each request, with the new ones.
        image_ranges: Request -> first and last token of each image.

    Returns:
        The segments in the order of the tokens. Requests without new image tokens have one.

    Raises:
        SplitImageError: If the new tokens of a request end inside an image. They may begin inside
            one, because its first part can come from the prefix cache.
    """
    segments: list[Segment] = []
    for request, (length, end) in enumerate(zip(query_lens, seq_lens, strict=True)):
        done = end - length
        for first, last in sorted(image_ranges.get(request, ())):
            if last < done or first >= end:
                continue
            if last >= end:
                raise SplitImageError(
                    f"request {request} of the batch computes tokens {end - length} to {end - 1}, "
                    f"but an image has tokens {first} to {last}"
                )
            if first > done:
                segments.append(Segment(request, first - done, first, is_causal=True))
                done = first
            segments.append(Segment(request, last + 1 - done, last + 1, is_causal=False))
            done = last + 1
        if done < end:
            segments.append(Segment(request, end - done, end, is_causal=True))
    return segments


def whole_images(done: int, num_new: int, images: Sequence[tuple[int, int]]) -> int:
    """Shortens a chunk of a prompt so that it does not end inside an image.

    Args:
        done: Number of tokens that are computed.
        num_new: Number of tokens that fit into this forward pass.
        images: First token and length of each image.

    Returns:
        Number of tokens to compute, maybe 0: the image then waits for an emptier pass.
    """
    for first, length in images:
        if first < done + num_new < first + length:
            return max(first - done, 0)
    return num_new
