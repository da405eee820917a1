"""An exponential moving average of the trained weights, sharded as they are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mathcanvas_lightning.errors import ConfigError

CHUNK = 32
"""Tensors averaged at a time: so many are copied at most where dtype or device differ."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class EMAConfig:
    """Whether and how the trained weights are averaged over the steps."""

    decay: float
    """Of what was averaged before, at each optimizer step; such as 0.999."""
    on_cpu: bool = False
    """Keep the average in host memory; slower, as each step sends the weights there."""

    def __post_init__(self) -> None:
        """Checks the decay.

        Raises:
            ConfigError: If it is out of range.
        """
        if not 0 <= self.decay < 1:
            raise ConfigError(
                "model.ema.decay",
                found=str(self.decay),
                wanted="at least 0 and below 1",
                remedy="The published recipes use 0.999 and 0.995; short runs want less, such "
                "as 0.99.",
            )


class EMAWeights(nn.Module):
    """Float32 averages of a network's trainable parameters, saved and resharded with the module.

    Each is a tensor as its parameter is: on a sharded network, a shard. Parameters rather than
    buffers, since DDP sends buffers around at every step.

    Args:
        network: Loaded, sharded, and with `requires_grad` as it will be trained.
        config: Decay and place.
    """

    def __init__(self, network: nn.Module, config: EMAConfig) -> None:
        super().__init__()
        self.config = config
        self._kept: dict[str, Tensor] = {}  # training weights, while the averages stand in
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                device = torch.device("cpu") if config.on_cpu else parameter.device
                copy = parameter.detach().to(device=device, dtype=torch.float32, copy=True)
                self.register_parameter(stored_name(name), nn.Parameter(copy, requires_grad=False))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes in the weights after an optimizer step: ema = decay * ema + (1 - decay) * weight.

        Args:
            network: Just stepped.
        """
        pairs = list(self._pairs(network))
        for start in range(0, len(pairs), CHUNK):
            chunk = pairs[start : start + CHUNK]
            averages = [average for _, average, _ in chunk]
            weights = [weight.to(average) for _, average, weight in chunk]
            torch._foreach_lerp_(averages, weights, 1 - self.config.decay)

    def swap_in(self, network: nn.Module) -> None:
        """Puts the averages in the place of the weights, which are kept until `swap_out`.

        Args:
            network: Between two passes.
        """
        if self._kept:
            return
        _reshard(network)  # a gathered copy would be used in the shards' stead
        with torch.inference_mode(False), torch.no_grad():
            for name, average, weight in self._pairs(network):
                self._kept[name] = weight.to(average.device, copy=True)
                weight.copy_(average)

    def swap_out(self, network: nn.Module) -> None:
        """Puts the training weights back, bit for bit; nothing happens where they are in place.

        Args:
            network: The one of `swap_in`.
        """
        if not self._kept:
            return
        _reshard(network)
        with torch.inference_mode(False), torch.no_grad():
            for name, _, weight in self._pairs(network):
                weight.copy_(self._kept[name])
        self._kept = {}

    def _pairs(self, network: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, average and weight; of sharded ones, what this rank holds."""
        weights: Mapping[str, Tensor] = dict(network.named_parameters())
        for name, average in self.named_parameters():
            yield name, _local(average), _local(weights[parameter_name(name)])

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # The Trainer moves the whole module to the device.
        return self if self.config.on_cpu else super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class EMAValidation(Callback):
    """Validates the averages.

    As a callback of the module it runs behind the user's and before those that save checkpoints.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Puts the averages in place."""
        averages, network = _parts(pl_module)
        averages.swap_in(network)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Puts the training weights back."""
        averages, network = _parts(pl_module)
        averages.swap_out(network)

    def on_exception(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Puts the training weights back before anything is saved."""
        if getattr(pl_module, "ema_weights", None) is not None:
            averages, network = _parts(pl_module)
            averages.swap_out(network)


def stored_name(parameter: str) -> str:
    """A parameter's name as one word, as modules want the names of their own parameters."""
    return parameter.replace(".", "/")


def parameter_name(stored: str) -> str:
    """Undoes `stored_name`."""
    return stored.replace("/", ".")


def _parts(module: LightningModule) -> tuple[EMAWeights, nn.Module]:
    averages, network = module.ema_weights, module.network
    assert isinstance(averages, EMAWeights)
    assert isinstance(network, nn.Module)
    return averages, network


def _reshard(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _local(tensor: Tensor) -> Tensor:
    if isinstance(tensor, DTensor):
        local: Tensor = tensor.to_local()
        return local
    return tensor
