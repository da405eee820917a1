"""Norms of gradients by part of the network, clipping, and steps that are skipped."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from mathcanvas_lightning.errors import TrainingError
from mathcanvas_lightning.model.parts import PARTS, part_of

EPS = 1e-6
"""Added to the norm when clipping, as in torch."""


def local_tensor(tensor: Tensor) -> Tensor:
    """Returns this rank's shard of a sharded tensor, and any other tensor unchanged."""
    if isinstance(tensor, DTensor):
        local: Tensor = tensor.to_local()
        return local
    return tensor


class Gradients:
    """Gradients of one optimizer step: on this rank complete, or its shards.

    Args:
        parameters: Names and parameters of the network.
        group: Ranks that share one network; None if each rank holds complete gradients.
        device: Device of the group's communication.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        group: ProcessGroup | None,
        device: torch.device,
    ) -> None:
        trained = [(n, p) for n, p in parameters if p.requires_grad]
        self._parameters = [(n, p) for n, p in trained if p.grad is not None]
        self._parts = [part for part in PARTS if any(part_of(n) == part for n, _ in trained)]
        self._group, self._device = group, device

    @torch.no_grad()
    def norms(self) -> Mapping[str, Tensor]:
        """Computes the norm of each trained part, and "total"; float32 scalars."""
        parts: dict[str, list[Tensor]] = {part: [] for part in self._parts}
        for name, parameter in self._parameters:
            parts[part_of(name)].append(_gradient(parameter))
        squares = torch.zeros(len(parts), dtype=torch.float64, device=self._device)
        for number, gradients in enumerate(parts.values()):
            if gradients:
                norms = torch.stack(torch._foreach_norm(gradients, 2.0))
                squares[number] = norms.double().square().sum()
        if self._group is not None:
            torch.distributed.all_reduce(squares, group=self._group)
        found = dict(zip(parts, squares.sqrt().float().unbind(), strict=True))
        return {**found, "total": squares.sum().sqrt().float()}

    @torch.no_grad()
    def clip_norm(self, limit: float, total: Tensor) -> None:
        """Scales all gradients so that their norm is at most `limit`.

        Args:
            limit: Maximum norm.
            total: Their norm, on the device of `norms`.
        """
        gradients = [_gradient(parameter) for _, parameter in self._parameters]
        if gradients:
            scale = (limit / (total + EPS)).clamp(max=1.0)
            torch._foreach_mul_(gradients, scale.to(gradients[0].device))

    @torch.no_grad()
    def clip_values(self, limit: float) -> None:
        """Limits each entry to -limit .. limit."""
        for _, parameter in self._parameters:
            _gradient(parameter).clamp_(-limit, limit)

    def drop(self) -> None:
        """Removes all gradients, so that the optimizer changes neither weights nor moments."""
        for _, parameter in self._parameters:
            parameter.grad = None


class SkippedSteps:
    """Counts the steps that were skipped because a gradient was not finite.

    Args:
        max_in_a_row: Number of such steps in a row that is tolerated.
    """

    def __init__(self, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self.total = self.in_a_row = 0

    def check(self, norm: Tensor, step: int) -> bool:
        """Counts a step; returns whether to skip it. The norm is equal on all ranks.

        Args:
            norm: Norm of the gradients.
            step: Number of the optimizer step, for the error.

        Raises:
            TrainingError: If too many steps in a row were skipped.
        """
        if bool(torch.isfinite(norm)):
            self.in_a_row = 0
            return False
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row > self.max_in_a_row:
            raise TrainingError(
                f"optimizer step {step}",
                found=f"gradients that are not finite in {self.in_a_row} steps in a row",
                wanted=f"at most {self.max_in_a_row} in a row (model.max_skipped_steps)",
                remedy="Resume from an earlier checkpoint with a lower learning rate "
                "(model.optimizer.lr), and look at the last packs with --debug_batches.",
            )
        return True


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return local_tensor(parameter.grad)
