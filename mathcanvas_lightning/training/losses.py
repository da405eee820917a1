"""Text and drawing losses, normalized by the token counts of the global step, and by data set.

So the number of ranks and the accumulation do not change the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from mathcanvas_lightning.batch import LossTotals, MicroBatch, PackedBatch
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.bagel import BagelOutput

DATASET_COLUMNS = ("ce", "ce_tokens", "mse", "mse_tokens", "tokens")
"""Sums of the cross entropy and its tokens, of the drawing loss and its tokens, and all tokens."""
CEReduction = Literal["token", "square", "sample"]
_POWERS: dict[CEReduction, int] = {"token": 0, "square": 1, "sample": 2}


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class LossConfig:
    """Weights of the text loss and the drawing loss."""

    ce_weight: float = 0.25
    """Weight of the cross entropy of texts."""
    mse_weight: float = 1.0
    """Weight of the flow-matching error of drawings."""
    ce_reduction: CEReduction = "token"
    """Weighting of the cross entropy: "token" weights all tokens equally, "sample" all texts
    equally, "square" weights a text by the square root of its length."""

    def __post_init__(self) -> None:
        """Checks the weights.

        Raises:
            ConfigError: If one is negative, or both are zero.
        """
        if min(self.ce_weight, self.mse_weight) < 0 or not self.ce_weight + self.mse_weight:
            raise ConfigError(
                "loss",
                found=f"ce_weight {self.ce_weight}, mse_weight {self.mse_weight}",
                wanted="no negative weight, and at least one above zero",
                remedy="The published recipes use 0.25 and 1.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """Losses of one micro-batch, divided by the token counts of the global step.

    Their sums over all micro-batches of a step, on all ranks, are the mean losses of the step.
    """

    ce: Tensor
    """Share of the mean cross entropy."""
    mse: Tensor
    """Share of the mean squared velocity error."""

    def combined(self, config: LossConfig) -> Tensor:
        """Returns the weighted sum of both."""
        return config.ce_weight * self.ce + config.mse_weight * self.mse


def loss_terms(
    output: BagelOutput,
    target: Tensor,
    pack: PackedBatch,
    totals: LossTotals,
    reduction: CEReduction,
) -> LossTerms:
    """Computes a micro-batch's share of the losses of its step.

    Args:
        output: Output of the network.
        target: [M, P] target velocities.
        pack: The micro-batch.
        totals: Token counts of the global step.
        reduction: Weighting of the cross entropy.

    Returns:
        The terms, float32.
    """
    weights = pack.ce_weights.float() ** _POWERS[reduction]
    ce = (output.ce.float() * weights).sum()
    error = (output.velocities.float() - target.float()).square()
    # A sum over no tokens is zero but stays in the graph: every rank must run every backward.
    mse = error.sum() / max(1, error.shape[-1])
    return LossTerms(ce=ce / ce_total(totals, reduction), mse=mse / max(1, totals.mse_tokens))


def ce_total(totals: LossTotals, reduction: CEReduction) -> float:
    """Returns the denominator of the cross entropy; 1 for a step without text loss."""
    found = {
        "token": float(totals.ce_tokens),
        "square": totals.ce_square,
        "sample": totals.ce_sample,
    }[reduction]
    return found or 1.0


def token_accuracy(hidden: Tensor, head: Tensor, labels: Tensor, chunk: int = 1024) -> Tensor:
    """Counts the tokens that are predicted correctly.

    Args:
        hidden: [E, D] hidden states at the positions with text loss.
        head: [V, D] weight of the language model's head.
        labels: [E] int64.
        chunk: Number of positions whose logits are in memory at a time.

    Returns:
        The count, float32.
    """
    correct = torch.zeros((), device=hidden.device)
    for states, wanted in zip(hidden.split(chunk), labels.split(chunk), strict=True):
        correct += ((states.to(head.dtype) @ head.T).argmax(dim=-1) == wanted).sum()
    return correct


@torch.no_grad()
def dataset_sums(
    batch: MicroBatch, output: BagelOutput, target: Tensor, names: Sequence[str]
) -> Tensor:
    """Sums the losses and tokens of a micro-batch for each data set.

    Args:
        batch: The micro-batch.
        output: Output of the network for it.
        target: [M, P] target velocities.
        names: Names of the data sets, in the same order on all ranks.

    Returns:
        [len(names), len(DATASET_COLUMNS)] float32 on the output's device.
    """
    device = output.ce.device
    sums = torch.zeros(
        len(names) + 1, len(DATASET_COLUMNS), device=device
    )  # the last row is not used
    if not names or batch.is_filler:
        return sums[:-1]
    numbers = {name: number for number, name in enumerate(names)}
    of_sample = [numbers.get(sample.dataset, len(names)) for sample in batch.samples]
    of_sample += [len(names)] * (len(batch.pack.sample_lens) - len(of_sample))
    ends = torch.tensor(list(accumulate(batch.pack.sample_lens)), device=device)
    owners = torch.tensor(of_sample, device=device)
    mse = (output.velocities.float() - target.float()).square().mean(dim=-1)
    for column, indexes, values in (
        (0, batch.pack.ce_indexes, output.ce.float()),
        (2, batch.pack.mse_indexes, mse),
    ):
        rows = owners[torch.bucketize(indexes, ends, right=True)]
        sums[:, column].index_add_(0, rows, values)
        sums[:, column + 1].index_add_(0, rows, torch.ones_like(values))
    for row, sample in zip(of_sample, batch.samples, strict=False):
        sums[row, 4] += 0 if sample.is_hole else sample.num_tokens
    return sums[:-1]


def dataset_metrics(sums: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Computes the values to log from sums over micro-batches, steps and ranks.

    Args:
        sums: Sums of `dataset_sums`.
        names: Names of the data sets.

    Returns:
        `train/NAME/ce` and `train/NAME/mse`, mean losses of the data sets that had such tokens, and
        the counts `train/NAME/ce_tokens`, `.../mse_tokens` and `.../tokens`.
    """
    found: dict[str, float] = {}
    for name, row in zip(names, sums.tolist(), strict=True):
        values = dict(zip(DATASET_COLUMNS, row, strict=True))
        for loss in ("ce", "mse"):
            total, count = values.pop(loss), values[f"{loss}_tokens"]
            if count:
                found[f"train/{name}/{loss}"] = total / count
        found |= {f"train/{name}/{column}": value for column, value in values.items()}
    return found
