"""Metrics of answers for a training or predict loop; their states are summed over ranks."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torchmetrics import Metric

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.evaluation.credit import CREDITS, Parts


class AnswerAccuracy(Metric):
    """Mean over questions of the share of their parts that are answered rightly.

    Questions of one part make it the usual accuracy.

    Args:
        options: Of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    credit: ClassVar[str] = "accuracy"
    """Name of the credit of one question, in `credit.CREDITS`."""
    total: torch.Tensor
    count: torch.Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, verdicts: Sequence[Parts | bool] | torch.Tensor) -> None:
        """Takes some questions.

        Args:
            verdicts: For each question whether it is answered rightly, or whether each of its
                parts is; as a tensor, [N] or [N, parts].
        """
        for parts in _listed(verdicts):
            self.total += CREDITS[self.credit](parts)
            self.count += 1

    def compute(self) -> torch.Tensor:
        """The mean, a float64 scalar; nan without questions."""
        return self.total / self.count


class CompleteAccuracy(AnswerAccuracy):
    """Share of the questions with all their parts answered rightly."""

    credit = "complete"


class WeightedAccuracy(AnswerAccuracy):
    """Mean over questions, where later parts of a question weigh more (see `part_weights`)."""

    credit = "weighted"


class GroupedAccuracy(Metric):
    """One of the accuracies for each group of questions, such as a subject or a level.

    Args:
        groups: Their names, the same on all ranks.
        credit: "accuracy", "complete" or "weighted".
        options: Of `torchmetrics.Metric`.

    Raises:
        ConfigError: If groups are missing or named twice.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    totals: torch.Tensor
    counts: torch.Tensor

    def __init__(
        self,
        groups: Sequence[str],
        credit: Literal["accuracy", "complete", "weighted"] = "accuracy",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not groups or len(set(groups)) < len(groups):
            raise ConfigError(
                "GroupedAccuracy.groups",
                found=repr(list(groups)),
                wanted="one name or more, each once",
                remedy="List the values of the field that the questions are grouped by.",
            )
        self.groups = tuple(groups)
        self.credit = CREDITS[credit]
        size = len(groups)
        self.add_state("totals", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, verdicts: Sequence[Parts | bool] | torch.Tensor, groups: Sequence[str]
    ) -> None:
        """Takes some questions.

        Args:
            verdicts: As of `AnswerAccuracy`.
            groups: The group of each.

        Raises:
            ConfigError: If a group is not one of those named at first.
        """
        for parts, group in zip(_listed(verdicts), groups, strict=True):
            if group not in self.groups:
                raise ConfigError(
                    "GroupedAccuracy.groups",
                    found=f"a question of the group {group!r}",
                    wanted=f"one of {', '.join(map(repr, self.groups))}",
                    remedy="Add it.",
                )
            index = self.groups.index(group)
            self.totals[index] += self.credit(parts)
            self.counts[index] += 1

    def compute(self) -> dict[str, torch.Tensor]:
        """Group -> its mean, a float64 scalar; groups without questions are left out."""
        means = self.totals / self.counts
        return {
            group: means[index]
            for index, group in enumerate(self.groups)
            if int(self.counts[index]) > 0
        }


def _listed(verdicts: Sequence[Parts | bool] | torch.Tensor) -> list[Parts]:
    listed = verdicts.tolist() if isinstance(verdicts, torch.Tensor) else verdicts
    return [[bool(one)] if isinstance(one, bool | int) else one for one in listed]
