"""Frozen linear layers with 4 or 8 bits per weight.

NF4 is the 4-bit type of QLoRA (Dettmers et al. 2023, arXiv:2305.14314).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mathcanvas_lightning.errors import ConfigError

WeightKind = Literal["nf4", "int8"]
"""Type of stored weights."""
BLOCK = 64
"""Weights in NF4 that share a scale; 4.5 bits per weight in all."""
INT8_MAX = 127
REMEDY = "Install it with the extra qlora: pip install 'mathcanvas-lightning[qlora]'."


class QuantizedLinear(nn.Module, ABC):
    """A linear layer whose frozen weight is stored with fewer bits; its bias stays as it is.

    Args:
        linear: The layer to replace. Its weight is not used: call `load`.
        dtype: Type of the computation.
    """

    weight: nn.Parameter

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = dtype
        self.bias = linear.bias

    @property
    def num_weights(self) -> int:
        """Number of weights before they were packed."""
        return self.in_features * self.out_features

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight before it was packed."""
        return self.out_features, self.in_features

    @abstractmethod
    def load(self, weight: Tensor) -> None:
        """Quantizes a weight [out, in] of any float type, on this layer's device."""

    @abstractmethod
    def dequantized(self) -> Tensor:
        """[out, in], the weight with which this layer computes."""


class Int8Linear(QuantizedLinear):
    """Stores a weight as integers from -127 to 127, with a scale for each output."""

    scale: Tensor

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear, dtype)
        device = linear.weight.device
        stored = torch.empty(self.shape, dtype=torch.int8, device=device)
        self.weight = nn.Parameter(stored, requires_grad=False)
        scales = torch.empty(self.out_features, dtype=torch.float32, device=device)
        self.register_buffer("scale", scales, persistent=False)

    @torch.no_grad()
    def load(self, weight: Tensor) -> None:
        """Quantizes a weight [out, in] of any float type, on this layer's device."""
        full = weight.to(self.weight.device, torch.float32)
        largest = full.abs().amax(dim=1)
        self.scale.copy_(torch.where(largest > 0, largest / INT8_MAX, 1.0))
        self.weight.copy_((full / self.scale[:, None]).round())

    def dequantized(self) -> Tensor:
        """[out, in], the weight with which this layer computes."""
        return (self.weight * self.scale[:, None]).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], in the type of the computation."""
        # The integers are exact in bfloat16; the scales are not, so the result is scaled.
        product = F.linear(x.to(self.dtype), self.weight.to(self.dtype))
        result = (product * self.scale).to(self.dtype)
        return result if self.bias is None else result + self.bias.to(self.dtype)


class NF4Linear(QuantizedLinear):
    """Stores two weights in a byte, with a scale for each `BLOCK` weights."""

    absmax: Tensor

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear, dtype)
        count, device = self.num_weights, linear.weight.device
        packed = torch.empty(-(-count // 2), 1, dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        scales = torch.empty(-(-count // BLOCK), dtype=torch.float32, device=device)
        self.register_buffer("absmax", scales, persistent=False)

    @torch.no_grad()
    def load(self, weight: Tensor) -> None:
        """Quantizes a weight [out, in] of any float type, on this layer's device."""
        packed, state = _quantize(weight.to(self.weight.device), self.dtype)
        self.weight.copy_(packed)
        self.absmax.copy_(state.absmax)

    def dequantized(self) -> Tensor:
        """[out, in], the weight with which this layer computes."""
        return _dequantize(self.weight.detach(), self._state((1, self.num_weights))).view(
            self.shape
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], in the type of the computation."""
        x = x.to(self.dtype)
        # Both keep the packed weight for the backward pass, and dequantize it again there.
        if x.device.type == "cpu" and self.in_features % BLOCK:  # see `_dequantize`
            result: Tensor = checkpoint(self._product, x, use_reentrant=False)
        else:
            state = self._state(self.shape)
            result = _bitsandbytes().matmul_4bit(x, self.weight.t(), quant_state=state)
        return result if self.bias is None else result + self.bias.to(result.dtype)

    def _product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantized())

    def _state(self, shape: tuple[int, int]) -> Any:
        functional = _functional()
        return functional.QuantState(
            absmax=self.absmax,
            shape=torch.Size(shape),
            code=functional.get_4bit_type("nf4", device=self.absmax.device),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=self.dtype,
        )


LAYER_OF: Mapping[WeightKind, type[QuantizedLinear]] = {"nf4": NF4Linear, "int8": Int8Linear}


def quantize_frozen(
    layer: nn.Module,
    dtype: torch.dtype,
    kind: WeightKind = "nf4",
    *,
    place: str = "model.frozen_dtype",
) -> int:
    """Replaces the frozen linear layers in a module, also those below adapters.

    Args:
        layer: The module.
        dtype: Type of the computation.
        kind: Type of the stored weights.
        place: The setting that chose it, for errors.

    Returns:
        The number of layers replaced.

    Raises:
        ConfigError: If NF4 is wanted, and bitsandbytes is not installed.
    """
    if kind == "nf4":
        _bitsandbytes(place)
    found = [
        (parent, name, child)
        for parent in layer.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and not child.weight.requires_grad
    ]
    for parent, name, child in found:
        setattr(parent, name, LAYER_OF[kind](child, dtype))
    return len(found)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """Lists the quantized layers by the names of their weights."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            yield f"{name}.weight", module


def through_nf4(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Quantizes a weight [out, in] and dequantizes it again, as a layer in NF4 computes with it."""
    return _dequantize(*_quantize(weight, dtype)).view(weight.shape)


def _quantize(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Any]:
    row = weight.to(dtype).reshape(1, -1)
    found: tuple[Tensor, Any] = _functional().quantize_4bit(row, blocksize=BLOCK, quant_type="nf4")
    return found


def _dequantize(packed: Tensor, state: Any) -> Tensor:
    """The weights as one row, [1, N].

    With more rows, bitsandbytes 0.50 takes wrong scales on processors with AVX-512, unless each row
    is a whole number of blocks.
    """
    found: Tensor = _functional().dequantize_4bit(packed, state)
    return found


def _bitsandbytes(place: str = "model.frozen_dtype") -> Any:
    try:
        import bitsandbytes  # an extra
    except ImportError as error:
        raise ConfigError(
            place,
            found=f"nf4, and no package bitsandbytes ({error})",
            wanted="bitsandbytes",
            remedy=REMEDY,
        ) from None
    return bitsandbytes


def _functional() -> Any:
    return _bitsandbytes().functional
