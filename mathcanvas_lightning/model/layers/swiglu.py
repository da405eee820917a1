"""SwiGLU that keeps two tensors for the backward pass instead of four."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def gated_down(gate: Tensor, up: Tensor, down: nn.Module) -> Tensor:
    """Computes down(silu(gate) * up), and keeps only gate and up for the backward pass.

    With adapters or autocast, `down` keeps its input as well. Compiled, it is computed plainly:
    there torch decides what is recomputed.

    Args:
        gate: [n, inner].
        up: [n, inner].
        down: The projection [inner] to [D].

    Returns:
        [n, D].
    """
    result: Tensor
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        result = down(F.silu(gate) * up)
    elif type(down) is nn.Linear and down.bias is None and not _casts(gate):
        result = _Gated.apply(gate, up, down.weight)
    else:
        result = down(_Gated.apply(gate, up, None))  # type: ignore[no-untyped-call]
    return result


def _casts(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


class _Gated(torch.autograd.Function):
    """silu(gate) * up, multiplied by a weight if there is one."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        product = F.silu(gate) * up
        return product if weight is None else F.linear(product, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        wants_input, wants_weight = any(ctx.needs_input_grad[:2]), ctx.needs_input_grad[2]
        active = F.silu(gate)
        of_weight = gradient.T @ (active * up) if wants_weight else None
        if not wants_input:
            return None, None, of_weight
        of_product = gradient if weight is None else gradient @ weight
        of_gate = torch.ops.aten.silu_backward(of_product * up, gate)
        return of_gate, of_product * active, of_weight
