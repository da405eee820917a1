"""Text loss of each token, computed in chunks to save memory."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

CHUNK_LOGITS = 2**28
"""Maximum number of logits in memory at a time: 1 GiB in float32."""


def token_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each token over the vocabulary.

    The logits of a chunk of tokens are freed after use and recomputed in the backward pass. The
    chunks' gradients of the head are summed in float32, also if the computation is in bfloat16.
    torch's `linear_cross_entropy` saves a little more memory, but took seven times longer
    (2,048 tokens, vocabulary of 151,000, CPU), and it can't be compiled.

    Args:
        hidden: [E, D].
        weight: [V, D], of the head.
        labels: [E] int64.

    Returns:
        [E] float32.
    """
    rows = max(1, CHUNK_LOGITS // weight.shape[0])
    if len(hidden) <= rows:
        return F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="none")
    losses: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, labels, rows)  # type: ignore[no-untyped-call]
    return losses


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross entropy of chunks of `rows` tokens; stores no logits for the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, rows: int) -> Tensor:
        kind = hidden.device.type
        ctx.rows = rows
        ctx.dtype = (
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        )
        ctx.save_for_backward(hidden, weight, labels)
        head = weight.to(ctx.dtype)
        with torch.autocast(kind, enabled=False):
            return torch.cat(
                [
                    F.cross_entropy(F.linear(h.to(ctx.dtype), head).float(), y, reduction="none")
                    for h, y in zip(hidden.split(rows), labels.split(rows), strict=True)
                ]
            )

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        head = weight.to(ctx.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), ctx.rows):
                part = slice(start, start + ctx.rows)
                states = hidden[part].to(ctx.dtype)
                errors = torch.softmax(F.linear(states, head).float(), dim=-1)
                errors[torch.arange(len(states), device=errors.device), labels[part]] -= 1
                errors = errors.mul_(outputs[0][part, None]).to(ctx.dtype)
                if of_hidden is not None:
                    of_hidden[part] = errors @ head
                if of_weight is not None:
                    _add_product(of_weight, errors, states)
        return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None, None


def _add_product(total: Tensor, errors: Tensor, states: Tensor) -> None:
    """Adds [n, V]^T @ [n, D] to a float32 total without rounding the product first."""
    if errors.dtype == torch.float32:
        total.addmm_(errors.T, states)
    elif errors.is_cuda:
        total.add_(torch.mm(errors.T, states, out_dtype=torch.float32))
    else:
        total.addmm_(errors.T.float(), states.float())
