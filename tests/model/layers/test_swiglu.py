"""SwiGLU that recomputes: equal results and gradients, and fewer tensors kept."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mathcanvas_lightning.model.layers.swiglu import gated_down

TOKENS, INNER, SIZE = 6, 10, 4


def inputs(dtype: torch.dtype = torch.float64, tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    gate, up = (torch.randn(tokens, INNER, dtype=dtype, requires_grad=True) for _ in range(2))
    return gate, up


def projection(dtype: torch.dtype = torch.float64, *, wrapped: bool = False) -> nn.Module:
    torch.manual_seed(1)
    plain = nn.Linear(INNER, SIZE, bias=False, dtype=dtype)
    return nn.Sequential(plain) if wrapped else plain


def kept(down: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of the activations that autograd keeps."""
    found: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape[0] == TOKENS:
            found.append(tuple(tensor.shape))
        return tensor

    gate, up = inputs()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        assert gated_down(gate * 1, up * 1, down).requires_grad
    return found


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients(wrapped: bool, frozen: bool) -> None:
    down = projection(wrapped=wrapped).requires_grad_(not frozen)
    weights = [] if frozen else list(down.parameters())
    assert torch.autograd.gradcheck(
        lambda gate, up, *_: gated_down(gate, up, down), (*inputs(), *weights)
    )


@pytest.mark.parametrize("tokens", [0, 1, TOKENS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_to_the_formula(tokens: int, dtype: torch.dtype) -> None:
    gate, up = inputs(dtype, tokens)
    down = projection(dtype)
    results = gated_down(gate, up, down), down(F.silu(gate) * up)
    assert torch.equal(*results)
    wanted: tuple[Tensor, ...] = (gate, up, *down.parameters())
    ours, plain = (torch.autograd.grad(x.square().sum(), wanted) for x in results)
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])
    torch.testing.assert_close(ours[2], plain[2])


def test_frozen_inputs() -> None:
    gate, up = (x.detach() for x in inputs())
    down = projection()
    gated_down(gate, up, down).sum().backward()
    [weight] = down.parameters()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, (F.silu(gate) * up).sum(0).expand(SIZE, -1))


def test_keeps_gate_and_up() -> None:
    assert kept(projection()) == [(TOKENS, INNER)] * 2
    assert kept(projection(wrapped=True)) == [(TOKENS, INNER)] * 3


def test_autocast_and_compiled() -> None:
    gate, up = inputs(torch.float32)
    down = projection(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert gated_down(gate, up, down).dtype == torch.bfloat16
    compiled = torch.compile(gated_down, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(gate, up, down), gated_down(gate, up, down))
    with torch.no_grad():
        assert not gated_down(gate, up, down).requires_grad
