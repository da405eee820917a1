"""Text and image losses over global token counts: ranks and accumulation change nothing."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mathcanvas_lightning.batch import LossTotals, PackedBatch
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.bagel import BagelOutput

CEReduction = Literal["token", "square", "sample"]
_POWERS: dict[CEReduction, int] = {"token": 0, "square": 1, "sample": 2}


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class LossConfig:
    """How the two losses make one."""

    ce_weight: float = 0.25
    """Of the cross entropy of texts."""
    mse_weight: float = 1.0
    """Of the flow-matching error of images."""
    ce_reduction: CEReduction = "token"
    """What counts alike: each token; each text by the root of its length; each text."""

    def __post_init__(self) -> None:
        """Checks the weights.

        Raises:
            ConfigError: If one is negative, or both are zero.
        """
        if min(self.ce_weight, self.mse_weight) < 0 or not self.ce_weight + self.mse_weight:
            raise ConfigError(
                "loss",
                found=f"ce_weight {self.ce_weight}, mse_weight {self.mse_weight}",
                wanted="no negative weight, and one above zero",
                remedy="The published recipes use 0.25 and 1.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """The losses of one micro-batch, each divided by the token count of the whole step.

    Summed over the micro-batches of a step, on all ranks, they are the step's means.
    """

    ce: Tensor
    """Cross entropy a token (or weight)."""
    mse: Tensor
    """Squared velocity error a latent token."""

    def combined(self, config: LossConfig) -> Tensor:
        """The loss."""
        return config.ce_weight * self.ce + config.mse_weight * self.mse


def loss_terms(
    output: BagelOutput,
    target: Tensor,
    pack: PackedBatch,
    totals: LossTotals,
    reduction: CEReduction,
) -> LossTerms:
    """This micro-batch's share of the step's losses.

    Args:
        output: Of the network.
        target: [M, P] velocities that it should have predicted.
        pack: The micro-batch.
        totals: Of the whole step.
        reduction: Of the cross entropy.

    Returns:
        The terms, float32.
    """
    weights = pack.ce_weights.float() ** _POWERS[reduction]
    ce = (output.ce.float() * weights).sum()
    error = (output.velocities.float() - target.float()).square()
    # A sum over no tokens is zero, yet stays in the graph: every rank runs every backward.
    mse = error.sum() / max(1, error.shape[-1])
    return LossTerms(ce=ce / ce_total(totals, reduction), mse=mse / max(1, totals.mse_tokens))


def ce_total(totals: LossTotals, reduction: CEReduction) -> float:
    """What the sum of cross entropies is divided by; 1 where there is none."""
    found = {
        "token": float(totals.ce_tokens),
        "square": totals.ce_square,
        "sample": totals.ce_sample,
    }[reduction]
    return found or 1.0


def token_accuracy(hidden: Tensor, head: Tensor, labels: Tensor, chunk: int = 1024) -> Tensor:
    """How many tokens are predicted right.

    Args:
        hidden: [E, D] hidden states where a token is predicted.
        head: [V, D] of the language model.
        labels: [E] int64.
        chunk: Positions whose logits are in memory at a time.

    Returns:
        Their number, float32.
    """
    right = torch.zeros((), device=hidden.device)
    for states, wanted in zip(hidden.split(chunk), labels.split(chunk), strict=True):
        right += ((states @ head.T).argmax(dim=-1) == wanted).sum()
    return right
