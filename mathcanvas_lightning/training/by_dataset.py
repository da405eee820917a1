"""Losses and token counts of each training data set."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from mathcanvas_lightning.batch import MicroBatch
from mathcanvas_lightning.model.bagel import BagelOutput

COLUMNS = ("ce", "ce_tokens", "mse", "mse_tokens", "tokens")
"""Sums of the cross entropy and its tokens, of the image loss and its tokens, and all tokens."""


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
        [len(names), len(COLUMNS)] float32 on the output's device.
    """
    device = output.ce.device
    sums = torch.zeros(len(names) + 1, len(COLUMNS), device=device)  # the last row is not used
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
        values = dict(zip(COLUMNS, row, strict=True))
        for loss in ("ce", "mse"):
            total, count = values.pop(loss), values[f"{loss}_tokens"]
            if count:
                found[f"train/{name}/{loss}"] = total / count
        found |= {f"train/{name}/{column}": value for column, value in values.items()}
    return found
