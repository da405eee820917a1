"""Compares two models on the same records: the difference of their accuracies, record by record."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb, sqrt

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.evaluation.score_files import iter_scored

Z_95 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Two sets of verdicts on the same records."""

    num_records: int
    num_first: int
    """Records that the first model answers correctly."""
    num_second: int
    """Records that the second model answers correctly."""
    num_first_only: int
    """Records that only the first model answers correctly."""
    num_second_only: int
    """Records that only the second model answers correctly."""

    @property
    def difference(self) -> float:
        """Accuracy of the first model minus that of the second one."""
        return (self.num_first_only - self.num_second_only) / self.num_records

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference.

        Source: Agresti and Min (2005), half a record added to each of the four counts.
        """
        total = self.num_records + 2
        first, second = (self.num_first_only + 0.5) / total, (self.num_second_only + 0.5) / total
        spread = Z_95 * sqrt((first + second - (first - second) ** 2) / total)
        return max(-1.0, first - second - spread), min(1.0, first - second + spread)

    @property
    def p_value(self) -> float:
        """McNemar's exact test of the null hypothesis that both models are equally good."""
        fewer = min(self.num_first_only, self.num_second_only)
        total = self.num_first_only + self.num_second_only
        return min(1.0, float(2 * sum(comb(total, k) for k in range(fewer + 1)) / 2**total))


def compare_scores(first: str, second: str) -> PairedDifference:
    """Compares two models by their scores of the same records.

    Args:
        first: File of scores, such as with.jsonl_scores.json.
        second: File of scores of the same records, answered by another model.

    Returns:
        The counts; of several answers to a record the first one is compared.

    Raises:
        InputError: If a file is no file of scores, or the records differ.
    """
    one, other = _verdicts(first), _verdicts(second)
    if not one or one.keys() != other.keys():
        odd = sorted(map(str, one.keys() ^ other.keys()))
        raise InputError(
            f"{first} and {second}",
            found=f"{len(odd):,} records in only one of them, such as {odd[0]}"
            if odd
            else "no records",
            wanted="scores of the same records",
            remedy="Answer and score the same records with both models.",
        )
    return paired_difference(one, other)


def paired_difference(
    first: Mapping[str | int, bool], second: Mapping[str | int, bool]
) -> PairedDifference:
    """Counts the records that one, both or none of two models answer correctly.

    Args:
        first: Record -> whether the first model is right; at least one record.
        second: The same of the second model, with the same records.

    Returns:
        The counts.
    """
    return PairedDifference(
        num_records=len(first),
        num_first=sum(first.values()),
        num_second=sum(second.values()),
        num_first_only=sum(first[key] and not second[key] for key in first),
        num_second_only=sum(second[key] and not first[key] for key in first),
    )


def _verdicts(path: str) -> Mapping[str | int, bool]:
    return {
        line.index if line.uid is None else line.uid: line.responses[0].verdict == "right"
        for line in iter_scored(local_path(path))
    }
