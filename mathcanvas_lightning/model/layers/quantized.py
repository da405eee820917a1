"""Frozen linear layers in NF4, the 4-bit type of QLoRA (Dettmers et al. 2023, arXiv:2305.14314)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mathcanvas_lightning.errors import ConfigError

BLOCK = 64
"""Weights that share a scale; 4.5 bits a weight in all."""
REMEDY = "Install it with the extra qlora: pip install 'mathcanvas-lightning[qlora]'."


class NF4Linear(nn.Module):
    """A linear layer whose frozen weight is stored in NF4; its bias stays as it is.

    Args:
        linear: The layer to replace. Its weight is not used: call `load`.
        dtype: Type of the computation.
    """

    absmax: Tensor

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = dtype
        count, device = self.num_weights, linear.weight.device
        packed = torch.empty(-(-count // 2), 1, dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        scales = torch.empty(-(-count // BLOCK), dtype=torch.float32, device=device)
        self.register_buffer("absmax", scales, persistent=False)
        self.bias = linear.bias

    @property
    def num_weights(self) -> int:
        """Number of weights, of which two are in a byte of `weight`."""
        return self.in_features * self.out_features

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight before it was packed."""
        return self.out_features, self.in_features

    @torch.no_grad()
    def load(self, weight: Tensor) -> None:
        """Quantizes a weight [out, in] of any float type, on this layer's device."""
        packed, state = _quantize(weight.to(self.weight.device), self.dtype)
        self.weight.copy_(packed)
        self.absmax.copy_(state.absmax)

    def dequantized(self) -> Tensor:
        """[out, in], the weight with which this layer computes."""
        found: Tensor = _functional().dequantize_4bit(self.weight.detach(), self._state())
        return found

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], in the type of the computation."""
        # It keeps the packed weight for the backward pass, and dequantizes it again there.
        result: Tensor = _bitsandbytes().matmul_4bit(
            x.to(self.dtype), self.weight.t(), quant_state=self._state()
        )
        return result if self.bias is None else result + self.bias.to(result.dtype)

    def _state(self) -> Any:
        functional = _functional()
        return functional.QuantState(
            absmax=self.absmax,
            shape=torch.Size(self.shape),
            code=functional.get_4bit_type("nf4", device=self.absmax.device),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=self.dtype,
        )


def quantize_frozen(layer: nn.Module, dtype: torch.dtype) -> int:
    """Replaces the frozen linear layers in a module, also those below adapters.

    Args:
        layer: The module.
        dtype: Type of the computation.

    Returns:
        The number of layers replaced.

    Raises:
        ConfigError: If bitsandbytes is not installed.
    """
    _bitsandbytes()
    found = [
        (parent, name, child)
        for parent in layer.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and not child.weight.requires_grad
    ]
    for parent, name, child in found:
        setattr(parent, name, NF4Linear(child, dtype))
    return len(found)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, NF4Linear]]:
    """Lists the layers in NF4 by the names of their weights."""
    for name, module in model.named_modules():
        if isinstance(module, NF4Linear):
            yield f"{name}.weight", module


def through_nf4(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Quantizes a weight [out, in] and dequantizes it again, as a layer in NF4 computes with it."""
    found: Tensor = _functional().dequantize_4bit(*_quantize(weight, dtype))
    return found


def _quantize(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Any]:
    found: tuple[Tensor, Any] = _functional().quantize_4bit(
        weight.to(dtype).contiguous(), blocksize=BLOCK, quant_type="nf4"
    )
    return found


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes  # an extra
    except ImportError as error:
        raise ConfigError(
            "model.frozen_dtype",
            found=f"nf4, and no package bitsandbytes ({error})",
            wanted="bitsandbytes",
            remedy=REMEDY,
        ) from None
    return bitsandbytes


def _functional() -> Any:
    return _bitsandbytes().functional
