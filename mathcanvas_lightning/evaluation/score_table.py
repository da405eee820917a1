"""Scores as a table of texts, with a row for all records and one for each group."""

import json
from collections.abc import Mapping
from typing import Any

from mathcanvas_lightning.evaluation.puzzles import ChainScore, CheckScore
from mathcanvas_lightning.evaluation.verdicts import Scores
from mathcanvas_lightning.generation.run.journal.about import AnswersAbout

ALL = "all"
HIDDEN = frozenset({"weights", "lora_weights"})
"""Settings that are hashes."""
MAX_VALUE = 300
"""Longer values of a setting are cut."""


def score_rows(
    overall: Scores, groups: Mapping[str, Mapping[str, Scores]]
) -> dict[str, dict[str, str]]:
    """Formats scores as a table.

    Args:
        overall: Scores of all records.
        groups: Field -> value -> scores of the records with that value.

    Returns:
        Row -> column -> text; columns that are "-" in every row are left out.
    """
    scores_of = {ALL: overall} | {
        f"{field}: {value}": scores
        for field, values in groups.items()
        for value, scores in values.items()
    }
    rows = {label: _cells(scores) for label, scores in scores_of.items()}
    columns = [name for name in rows[ALL] if any(row[name] != "-" for row in rows.values())]
    return {label: {name: row[name] for name in columns} for label, row in rows.items()}


def check_rows(puzzles: Mapping[str, CheckScore]) -> dict[str, dict[str, str]]:
    """Formats the checks of BlockMoving answers as a table.

    Args:
        puzzles: Check -> score.

    Returns:
        Check -> column -> text.
    """
    return {
        name: {
            "right": f"{score.num_right:,} of {score.num_answers:,}",
            "share": _share(score.share if score.num_answers else None),
            "95 %": " to ".join(map(_share, score.interval)),
            "chance": _share(score.chance),
        }
        for name, score in puzzles.items()
    }


def about_rows(about: AnswersAbout) -> dict[str, str]:
    """Formats the origin of answers as short lines.

    Args:
        about: The origin.

    Returns:
        Name -> text; what is unknown is left out, and so are settings without a value.
    """
    lines = {
        "model": about.model,
        "data set": about.dataset,
        "settings": _values({n: v for n, v in (about.settings or {}).items() if n not in HIDDEN}),
        "sampling": _values(about.sampling),
        "prompt": _values(about.prompt),
    }
    return {name: text for name, text in lines.items() if text}


def _values(values: Mapping[str, Any] | None) -> str:
    known = {n: v for n, v in (values or {}).items() if v not in (None, "", [], {}, ())}
    return ", ".join(f"{name} {_value(value)}" for name, value in known.items())


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."


def chain_rows(chain: ChainScore) -> dict[str, dict[str, str]]:
    """Formats where answers go wrong as a table.

    Args:
        chain: The scores.

    Returns:
        Label -> column -> text.
    """
    scores = {
        **chain.drawings,
        **{f"first error: {name}": score for name, score in chain.first_errors.items()},
        **{f"answers, {name}": score for name, score in chain.answers.items()},
    }
    rows = check_rows(scores)
    return {
        label: {"number": row["right"], **{name: row[name] for name in ("share", "95 %")}}
        for label, row in rows.items()
    }


def _cells(scores: Scores) -> dict[str, str]:
    """Column -> text; "-" for scores that don't apply."""
    has_parts = scores.complete != scores.accuracy
    return {
        "records": f"{scores.num_records:,}",
        "accuracy": _share(scores.accuracy),
        "95 %": " to ".join(map(_share, scores.interval)),
        "bounds": _bounds(scores),
        "complete": _share(scores.complete if has_parts else None),
        "weighted": _share(scores.weighted if has_parts else None),
        "majority": _share(scores.majority),
        "right": f"{scores.num_right:,}",
        "wrong": f"{scores.num_wrong:,}",
        "unanswered": f"{scores.num_unanswered:,}",
        "failed": f"{scores.num_failed:,}",
        "undecided": f"{scores.num_undecided:,}" if scores.num_undecided else "-",
    }


def _bounds(scores: Scores) -> str:
    """Accuracies if the undecided answers are wrong, and if they are right."""
    if not scores.num_undecided or scores.upper is None:
        return "-"
    return f"{_share(scores.accuracy)} to {_share(scores.upper)}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
