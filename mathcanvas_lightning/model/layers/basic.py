"""Small layers: norms, position and time embeddings, connector; layers without memory."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

TIME_FREQUENCIES = 256
MAX_PERIOD = 10_000.0


@contextmanager
def without_memory() -> Iterator[None]:
    """Layers made inside the block have parameters on "meta", and none is initialized.

    torch would initialize them too, without any effect, which takes as long as making them.
    """
    with torch.device("meta"), _NoInitialization():
        yield


class _NoInitialization(TorchFunctionMode):
    """Leaves out the functions of `torch.nn.init`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


class RMSNorm(nn.Module):
    """Root mean square norm in float32, scaled in the input's dtype, as in Qwen2."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Norms the last dimension of [..., size]."""
        full = x.float()
        full = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * full.to(x.dtype)


def rotary_tables(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Computes the cosines and sines of Qwen2's rotary embedding.

    Args:
        position_ids: [T] int64.
        head_dim: H.
        theta: Base of the rotary frequencies.

    Returns:
        Two tensors [T, 1, H] float32.
    """
    exponents = (
        torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    )
    angles = position_ids[:, None].float() * theta ** -exponents.float()
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates [T, heads, H] by the tables of `rotary_tables`."""
    cos, sin = (table.to(x.dtype) for table in tables)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def sincos_table(side: int, size: int) -> Tensor:
    """Computes the fixed 2-D position table of MAE and DiT, columns first.

    Args:
        side: Rows and columns of the grid.
        size: Dimension of an embedding, divisible by 4.

    Returns:
        [side * side, size] float32; row * side + column is the index.
    """
    quarter = size // 4
    frequencies = 1.0 / MAX_PERIOD ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = axis.repeat(side, 1)
    rows = axis.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1).float()


class PositionTable(nn.Module):
    """A fixed table of position embeddings, stored with the weights but never trained."""

    def __init__(self, side: int, size: int) -> None:
        super().__init__()
        self.side = side
        self.pos_embed = nn.Parameter(torch.empty(side * side, size), requires_grad=False)

    def reset(self) -> None:
        """Computes the table."""
        with torch.no_grad():
            self.pos_embed.copy_(sincos_table(self.side, self.pos_embed.shape[1]))

    def forward(self, position_ids: Tensor) -> Tensor:
        """[N] int64 to [N, size]."""
        return self.pos_embed[position_ids]


class TimeEmbedder(nn.Module):
    """Embeds flow-matching timesteps between 0 and 1."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIME_FREQUENCIES, size), nn.SiLU(), nn.Linear(size, size)
        )

    def forward(self, timesteps: Tensor) -> Tensor:
        """[L] shifted timesteps to [L, size]."""
        half = TIME_FREQUENCIES // 2
        steps = torch.arange(half, device=timesteps.device, dtype=torch.float32)
        frequencies = torch.exp(-math.log(MAX_PERIOD) * steps / half)
        angles = timesteps.float()[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        embedded: Tensor = self.mlp(waves.to(next(self.parameters()).dtype))
        return embedded


class Connector(nn.Module):
    """Projects ViT features to the decoder's width."""

    def __init__(self, vit_size: int, size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vit_size, size)
        self.fc2 = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """[V, vit_size] to [V, size]."""
        projected: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return projected
