"""Linear layers of the decoder that multiply in float8, through torchao."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mathcanvas_lightning.errors import ConfigError

PLACE = "model.float8"
MULTIPLE = 16
"""Kernels for float8 need sizes that are multiples of this."""
CAPABILITY = (8, 9)
"""First compute capability with products in float8."""


def use_float8(layers: Iterable[nn.Module], device: torch.device, *, is_compiled: bool) -> None:
    """Makes the linear layers of modules multiply in float8, forward and backward, in place.

    Weights keep their names and types. Each row of an input and each output of a weight has its own
    scale, the largest value ("rowwise" in torchao). A CPU emulates the products: it rounds in the
    same way, and computes in float32.

    Args:
        layers: The modules, on any device including "meta", without adapters.
        device: Device of the computation.
        is_compiled: Whether the layers are compiled afterwards.

    Raises:
        ConfigError: If the device has no float8, torchao is not installed, layers are not compiled
            on CUDA, or the sizes of no layer fit.
    """
    _check_device(device, is_compiled=is_compiled)
    torchao = _torchao()
    config = torchao.Float8LinearConfig.from_recipe_name("rowwise")
    # Numbers of tokens are not multiples of 16: the products that sum over tokens are padded.
    config = replace(config, pad_inner_dim=True, emulate=device.type == "cpu")
    found = [layer for layer in layers if any(_fits(module) for module in layer.modules())]
    for layer in found:
        torchao.convert_to_float8_training(layer, config=config, module_filter_fn=_fits)
    if not found:
        raise ConfigError(
            PLACE,
            found="true, and no linear layer of a size that fits",
            wanted=f"sizes that are multiples of {MULTIPLE}",
            remedy="Leave it out.",
        )


def _fits(module: nn.Module, name: str = "") -> bool:  # noqa: ARG001
    return isinstance(module, nn.Linear) and all(
        size % MULTIPLE == 0 for size in (module.in_features, module.out_features)
    )


def _check_device(device: torch.device, *, is_compiled: bool) -> None:
    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        found = f"true, on a GPU of compute capability {capability[0]}.{capability[1]}"
        wanted = f"{CAPABILITY[0]}.{CAPABILITY[1]} or later (Ada, Hopper, Blackwell)"
        raise ConfigError(PLACE, found=found, wanted=wanted, remedy="Leave it out.")
    if not is_compiled:
        raise ConfigError(
            PLACE,
            found="true, with model.parallelism.compile false",
            wanted="compiled layers: without, scaling takes longer than float8 saves",
            remedy="Set model.parallelism.compile to true.",
        )


def _torchao() -> Any:
    try:
        from torchao import float8  # an extra
    except ImportError as error:
        raise ConfigError(
            PLACE,
            found=f"true, and no package torchao ({error})",
            wanted="torchao",
            remedy="Install it with the extra float8: pip install 'mathcanvas-lightning[float8]'.",
        ) from None
    return float8
