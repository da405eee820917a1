"""Exponential moving average (EMA) of the trained weights, sharded like the weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.training.gradients import local_tensor

CHUNK = 32
"""Number of tensors averaged at a time. Limits the copies that are needed if the dtype or device
of weights and averages differ."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class EMAConfig:
    """Settings of the moving average of the trained weights."""

    decay: float
    """Weight of the previous average at each optimizer step, such as 0.999."""
    on_cpu: bool = False
    """Keep the average in host memory. Slower: each step copies the weights there."""

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
                remedy="The published recipes use 0.999 and 0.995; use less for short "
                "runs, such as 0.99.",
            )


class EMAWeights(nn.Module):
    """Float32 averages of a network's trainable parameters, saved and resharded with the module.

    The average of a sharded parameter is sharded in the same way. Averages are parameters, not
    buffers, because DDP broadcasts buffers at every step.

    Args:
        network: The network, loaded and sharded, with `requires_grad` set as it is trained.
        config: Decay and device.
    """

    def __init__(self, network: nn.Module, config: EMAConfig) -> None:
        super().__init__()
        self.config = config
        self._backup: dict[str, Tensor] = {}  # training weights, while the averages are in use
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                device = torch.device("cpu") if config.on_cpu else parameter.device
                copy = parameter.detach().to(device=device, dtype=torch.float32, copy=True)
                self.register_parameter(stored_name(name), nn.Parameter(copy, requires_grad=False))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Updates the averages: ema = decay * ema + (1 - decay) * weight.

        Args:
            network: The network after an optimizer step.
        """
        average_weights = get_ema_multi_avg_fn(self.config.decay)
        pairs = list(self._pairs(network))
        for start in range(0, len(pairs), CHUNK):
            chunk = pairs[start : start + CHUNK]
            averages = [average for _, average, _ in chunk]
            weights = [weight.to(average) for _, average, weight in chunk]
            average_weights(averages, weights, None)

    def swap_in(self, network: nn.Module) -> None:
        """Copies the averages into the model and backs up the training weights until `swap_out`.

        Args:
            network: The network, not within a forward or backward pass.
        """
        if self._backup:
            return
        _reshard(network)  # otherwise FSDP would keep using the gathered training weights
        with torch.inference_mode(False), torch.no_grad():
            for name, average, weight in self._pairs(network):
                self._backup[name] = weight.to(average.device, copy=True)
                weight.copy_(average)

    def swap_out(self, network: nn.Module) -> None:
        """Restores the training weights exactly. Does nothing without a preceding `swap_in`.

        Args:
            network: The network of `swap_in`.
        """
        if not self._backup:
            return
        _reshard(network)
        with torch.inference_mode(False), torch.no_grad():
            for name, _, weight in self._pairs(network):
                weight.copy_(self._backup[name])
        self._backup = {}

    def _pairs(self, network: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yields name, average and weight; for sharded ones, the shards of this rank."""
        weights: Mapping[str, Tensor] = dict(network.named_parameters())
        for name, average in self.named_parameters():
            yield name, local_tensor(average), local_tensor(weights[parameter_name(name)])

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Called when the Trainer moves the module to the device.
        return self if self.config.on_cpu else super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class EMAValidation(Callback):
    """Runs validation with the averaged weights.

    A callback of the module runs after those of the user and before those that save checkpoints.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Copies the averages into the model."""
        averages, network = _parts(pl_module)
        averages.swap_in(network)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Restores the training weights."""
        averages, network = _parts(pl_module)
        averages.swap_out(network)

    def on_exception(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Restores the training weights before anything is saved."""
        if getattr(pl_module, "ema_weights", None) is not None:
            averages, network = _parts(pl_module)
            averages.swap_out(network)


def stored_name(parameter: str) -> str:
    """Encodes a parameter's name without dots, which `register_parameter` doesn't allow."""
    return parameter.replace(".", "/")


def parameter_name(stored: str) -> str:
    """Decodes a name of `stored_name`."""
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
