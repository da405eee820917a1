"""Reads files of scores: the summary, and the verdicts one record at a time."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import ijson

from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.evaluation.puzzles import CheckScore
from mathcanvas_lightning.evaluation.verdicts import (
    ChainVerdict,
    PartVerdict,
    ScoredResponse,
    Scores,
    Verdict,
)
from mathcanvas_lightning.generation.run.journal.about import AnswersAbout

T = TypeVar("T")
SUFFIX = "_scores.json"
VERDICTS = frozenset(get_args(Verdict))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSummary:
    """The scores of all records, and of groups of them."""

    overall: Scores
    groups: Mapping[str, Mapping[str, Scores]]
    """Field -> value -> scores of the records with that value."""
    puzzles: Mapping[str, CheckScore]
    """Check of the steps of BlockMoving answers -> score."""
    about: AnswersAbout
    """Model, data set, sampling and prompt of the answers, as far as they are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredLine:
    """The verdicts on one record."""

    index: int
    """Position of the record in its file, from 0."""
    uid: str | None
    responses: tuple[ScoredResponse, ...]


def scores_path(records: Path) -> Path:
    """The default file of scores beside a file or folder of records.

    Args:
        records: File or folder of answered records; its suffix is kept, so that answers.json and
            answers.jsonl have separate scores.

    Returns:
        The path, such as answers.jsonl_scores.json.
    """
    return records.parent / f"{records.name}{SUFFIX}"  # the name of . is empty


def find_scores(records: Path) -> Path | None:
    """Finds the scores of a file or folder of records.

    Args:
        records: File or folder of answered records.

    Returns:
        The default file; else a file of an earlier version, named without the suffix of the
        records, if it names these records as its input; None if there is neither.
    """
    path = scores_path(records)
    if path.exists():
        return path
    earlier = records.with_name(f"{records.stem}{SUFFIX}")
    if not earlier.exists():
        return None
    scored = next(_items(earlier, "input", str), "")
    return earlier if Path(scored).name == records.name else None


def read_summary(path: Path) -> ScoreSummary:
    """Reads the scores from a file that `score_responses` wrote.

    Args:
        path: File of scores.

    Returns:
        The scores.

    Raises:
        InputError: If there is no such file, or it is not a file of scores.
    """
    overall = next(_items(path, "overall", _scores), None)
    groups = next(_items(path, "groups", _groups), None)
    if overall is None or groups is None:
        raise _no_scores(path, "no scores")
    puzzles = next(_items(path, "puzzles", _checks), {})  # absent from files of earlier versions
    about = read_scores_about(path)
    return ScoreSummary(overall=overall, groups=groups, puzzles=puzzles, about=about)


def read_scores_about(path: Path) -> AnswersAbout:
    """Reads what a file of scores says about the answers; nothing in files of earlier versions.

    Raises:
        InputError: If there is no such file.
    """
    return next(_items(path, "about", AnswersAbout.from_json), AnswersAbout())


def iter_scored(path: Path) -> Iterator[ScoredLine]:
    """Reads the verdicts from a file that `score_responses` wrote, as a stream.

    Args:
        path: File of scores.

    Returns:
        An iterator over the records that have a reference answer, in file order.

    Raises:
        InputError: At the first malformed record.
    """
    return _items(path, "records.item", _line)


def _items(path: Path, prefix: str, read: Callable[[Any], T]) -> Iterator[T]:
    try:
        with path.open("rb") as file:
            for item in ijson.items(file, prefix, use_float=True):
                yield read(item)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        found = "no such file" if missing else error.strerror or str(error)
        raise _no_scores(path, found) from None
    except (ijson.JSONError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise _no_scores(path, f"{reason} in {prefix}") from None


def _scores(value: Any) -> Scores:
    return Scores(**{**value, "interval": tuple(value["interval"])})


def _checks(value: Any) -> dict[str, CheckScore]:
    return {
        name: CheckScore(**{**one, "interval": tuple(one["interval"])})
        for name, one in value.items()
    }


def _groups(value: Any) -> dict[str, dict[str, Scores]]:
    return {
        field: {name: _scores(one) for name, one in values.items()}
        for field, values in value.items()
    }


def _line(value: Any) -> ScoredLine:
    return ScoredLine(
        index=value["index"],
        uid=value.get("uid"),
        responses=tuple(
            ScoredResponse(
                parts=tuple(map(_part, response["parts"])), chain=_chain(response.get("chain"))
            )
            for response in value["responses"]
        ),
    )


def _chain(value: Any) -> ChainVerdict | None:
    if value is None:
        return None
    return ChainVerdict(drawings=tuple(value["drawings"]), first_error=value["first_error"])


def _part(value: Any) -> PartVerdict:
    part = PartVerdict(**value)
    if part.verdict not in VERDICTS:
        raise ValueError(f"verdict {part.verdict!r:.60}")
    if not all(isinstance(text, str) for text in (part.extracted, part.expected, part.how)):
        raise TypeError("an answer that is not text")
    return part


def _no_scores(path: Path, found: str) -> InputError:
    return InputError(
        str(path),
        found=found,
        wanted="a file that mathcanvas score wrote",
        remedy="Run mathcanvas score on the answers, or correct the path.",
    )
