"""Torchmetrics of answers for a training or predict loop; states are summed over ranks."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torchmetrics import Metric

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.evaluation.credit import CREDITS, Parts


class AnswerAccuracy(Metric):
    """Mean over questions of the share of their parts that are answered correctly.

    For questions with one part this is the usual accuracy.

    Args:
        options: Arguments of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    credit: ClassVar[str] = "accuracy"
    """Key of the credit of a question in `credit.CREDITS`."""
    total: torch.Tensor
    count: torch.Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, verdicts: Sequence[Parts | bool] | torch.Tensor) -> None:
        """Adds questions.

        Args:
            verdicts: For each question whether its answer is right, or a list of this for each of
                its parts; as a tensor, [N] or [N, parts].
        """
        for parts in _listed(verdicts):
            self.total += CREDITS[self.credit](parts)
            self.count += 1

    def compute(self) -> torch.Tensor:
        """The mean, a float64 scalar; nan without questions."""
        return self.total / self.count


class CompleteAccuracy(AnswerAccuracy):
    """Share of the questions whose parts are all answered correctly."""

    credit = "complete"


class WeightedAccuracy(AnswerAccuracy):
    """Mean over questions; later parts of a question weigh more (see `part_weights`)."""

    credit = "weighted"


class GroupedAccuracy(Metric):
    """An accuracy for each group of questions, such as a subject or a level.

    Args:
        groups: Names of the groups, the same on all ranks.
        credit: "accuracy", "complete" or "weighted".
        options: Arguments of `torchmetrics.Metric`.

    Raises:
        ConfigError: If there are no groups, or a name occurs twice.
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
                wanted="one or more names, each once",
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
        """Adds questions.

        Args:
            verdicts: See `AnswerAccuracy.update`.
            groups: The group of each question.

        Raises:
            ConfigError: If a group was not given to the constructor.
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
        """Group -> mean, a float64 scalar; groups without questions are left out."""
        means = self.totals / self.counts
        return {
            group: means[index]
            for index, group in enumerate(self.groups)
            if int(self.counts[index]) > 0
        }


def _listed(verdicts: Sequence[Parts | bool] | torch.Tensor) -> list[Parts]:
    listed = verdicts.tolist() if isinstance(verdicts, torch.Tensor) else verdicts
    return [[bool(one)] if isinstance(one, bool | int) else one for one in listed]
