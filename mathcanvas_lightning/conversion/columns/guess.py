"""Guesses the columns of a data set from its first records, and says why."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mathcanvas_lightning.conversion.columns.marks import DEFAULT_MARKS, KNOWN_MARKS, split_at_marks
from mathcanvas_lightning.conversion.columns.pictures import is_picture
from mathcanvas_lightning.conversion.columns.presets import find_columns, preset_names
from mathcanvas_lightning.conversion.columns.sections import as_items
from mathcanvas_lightning.conversion.columns.selectors import parse_selector, used_columns

Kind = Literal["picture", "turns", "text", "other"]
NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "uid", "pid", "qid", "sample index", "question id", "index", "key"),
    "answer": ("final answer", "answer", "label", "gt", "ground truth", "target"),
    "options": ("options", "choices", "option", "choice"),
    "question": ("question", "problem", "query", "prompt", "instruction", "question interleave"),
    "solution": (
        *("solution", "reasoning trace", "trace", "reasoning", "rationale", "cot"),
        *("chain of thought", "thought", "explanation", "output", "response", "steps"),
    ),
}
"""Key -> names of columns that it may have, most likely first."""
_OF_SOLUTION = re.compile(r"reason|solution|step|output|thought|answer|target")
_OF_QUESTION = re.compile(r"problem|question|input|query|source")
_STRIP = {r"THOUGHT \d+:\s*": "THOUGHT 0:", "</?think>": "<think>", "</?answer>": "<answer>"}
_CONTAINED = (
    ("<image_start>[image_1]<image_end>", "<image_start>"),
    ("<image_start>[image_1]<image_end>", "[image_1]"),
    ("<image>image.png</image>", "<image>"),
)
"""Marks that hold another mark."""
_ROLES = (("role", "content"), ("from", "value"))


@dataclass(slots=True, kw_only=True)
class Guess:
    """Guessed keys of `ColumnsConfig`."""

    values: dict[str, Any] = field(default_factory=dict)
    """Key -> value."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Key -> why."""
    unused: list[str] = field(default_factory=list)
    """Columns that no key uses; scalar ones become columns of the shards."""
    presets: list[str] = field(default_factory=list)
    """Presets whose columns these are."""

    def add(self, key: str, value: Any, reason: str) -> None:
        """Adds a key."""
        self.values[key] = value
        self.reasons[key] = reason


def guess_columns(records: Sequence[Mapping[str, Any]]) -> Guess:
    """Guesses the columns of a data set.

    Args:
        records: Its first records.
    """
    guess = Guess()
    columns = list(dict.fromkeys(name for record in records for name in record))
    kinds = {name: _kind(_values(records, name)) for name in columns}
    _guess_texts(guess, records, {n for n, kind in kinds.items() if kind in ("text", "other")})
    for name in (name for name, kind in kinds.items() if kind == "turns"):
        _guess_turns(guess, records, name)
    _guess_pictures(guess, [name for name, kind in kinds.items() if kind == "picture"])
    _guess_patterns(guess, records)
    if "question" not in guess.values and "conversation" not in guess.values:
        guess.add("question", "TODO", "no column has such a name; write the one of the question")
    guess.presets = fitting_presets(columns)
    used = {n for text in _selectors(guess) for r in records for n in used_columns(r, text)}
    guess.unused = [name for name in columns if name not in used]
    return guess


def fitting_presets(fields: Collection[str]) -> list[str]:
    """Presets whose columns are all among these, best first.

    Some columns of a preset may be absent, but not all of its pictures.
    """
    record = dict.fromkeys(fields, "")
    fits: dict[str, int] = {}
    for name in preset_names():
        used: set[str] = set()
        has_all = True
        config = find_columns(name)
        for text in config.selectors:
            found = set(used_columns(record, text))
            has_all &= bool(found) or parse_selector(text).is_optional
            used |= found
        pictures = (*config.images, *config.question_images, *config.solution_images)
        has_pictures = any(any(used_columns(record, text)) for text in pictures)
        if has_all and (has_pictures or config.conversation is not None):
            fits[name] = len(used)
    return sorted(fits, key=lambda name: -fits[name])[:2]


def _guess_texts(guess: Guess, records: Sequence[Mapping[str, Any]], columns: set[str]) -> None:
    """Finds columns by their names; those of the first key in `NAMES` count first."""
    free = {_plain(name): name for name in sorted(columns)}
    for key, names in NAMES.items():
        exact = [name for name in names if name in free]
        near = [plain for name in names for plain in free if re.search(rf"\b{name}\b", plain)]
        if key == "id":
            near = [plain for plain in free if plain.endswith(" id")]
            exact, near = (
                [name for name in names if _is_unique(records, free[name])]
                for names in (exact, near)
            )
        if found := [*exact, *near]:
            column = free.pop(found[0])
            has_all = all(column in record for record in records)
            guess.add(key, column if has_all else f"{column}?", f"the name {column!r}")


def _is_unique(records: Sequence[Mapping[str, Any]], column: str) -> bool:
    return len({str(record.get(column)) for record in records}) == len(records)


def _guess_turns(guess: Guess, records: Sequence[Mapping[str, Any]], name: str) -> None:
    turns = [turn for value in _values(records, name) for turn in as_items(value)]
    role, content = next(pair for pair in _ROLES if pair[0] in turns[0])
    value = {"column": name, "role": role, "content": content}
    roles = sorted({str(turn.get(role)) for turn in turns})
    guess.add("conversation", value, f"a list of turns of {', '.join(roles)}")
    for key in ("question", "solution"):
        guess.values.pop(key, None)
    if any("system" in record for record in records):
        guess.add("question", "system?", "instructions before the turns")


def _guess_pictures(guess: Guess, columns: Sequence[str]) -> None:
    """Groups numbered columns, and sorts pictures to question, solution or both."""
    groups: dict[str, list[str]] = {}
    for name in columns:
        stem = re.sub(r"(?<=_)\d+$", "*", name)  # further numbers may come in later records
        groups.setdefault(stem, []).append(name)
    sections: dict[str, list[str]] = {}
    for stem, names in groups.items():
        selector = stem if "*" in stem else names[0]
        if _OF_SOLUTION.search(stem.lower()):
            sections.setdefault("solution_images", []).append(selector)
        elif _OF_QUESTION.search(stem.lower()):
            sections.setdefault("question_images", []).append(selector)
        else:
            sections.setdefault("images", []).append(selector)
    for key, names in sections.items():
        reason = "pictures" if key == "images" else "pictures, by their names"
        guess.add(key, names if len(names) > 1 else names[0], reason)


def _guess_patterns(guess: Guess, records: Sequence[Mapping[str, Any]]) -> None:
    """Finds marks, texts to strip, and answers within texts."""
    texts = [text for key in ("question", "solution") for text in _texts(guess, records, key)]
    solutions = _texts(guess, records, "solution")
    found = [mark for mark in KNOWN_MARKS if any(len(split_at_marks(t, [mark])) > 1 for t in texts)]
    for longer, shorter in _CONTAINED:
        if longer in found and shorter in found:
            found.remove(shorter)
    if set(found) - set(DEFAULT_MARKS):
        order = sorted(found, key=lambda mark: mark not in DEFAULT_MARKS)
        guess.add("marks", order, "they are in the texts")
    strip = [pattern for pattern in _STRIP if any(re.search(pattern, text) for text in texts)]
    if strip:
        guess.add("strip", strip, f"{', '.join(_STRIP[s] for s in strip)} in the texts")
    has_tag = bool(solutions) and all("</answer>" in text for text in solutions)
    if "answer" not in guess.values and has_tag:
        guess.add("answer", guess.values["solution"], "each solution has an <answer>")
        guess.add("answer_pattern", "<answer>(.*?)</answer>", "each solution has an <answer>")
    elif "answer" in guess.values and solutions:
        answers = [str(record.get(guess.values["answer"])) for record in records]
        pairs = zip(answers, solutions, strict=False)
        if sum(answer not in text for answer, text in pairs) > len(solutions) // 2:
            guess.add("solution_end", "Final Answer: {answer}", "most solutions lack the answer")


def _texts(guess: Guess, records: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    name = str(guess.values.get(key, "")).removesuffix("?")
    values = [item for value in _values(records, name) for item in as_items(value)]
    return [value for value in values if isinstance(value, str)]


def _values(records: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    values = (record.get(name) for record in records)
    return [value for value in values if value is not None and value not in ("", [])]


def _kind(values: Sequence[Any]) -> Kind:
    items = [item for value in values for item in as_items(value)]
    if items and all(map(is_picture, items)):
        return "picture"
    if items and all(isinstance(item, Mapping) for item in items):
        is_turns = any(all(set(pair) <= set(item) for item in items) for pair in _ROLES)
        return "turns" if is_turns else "other"
    return "text" if any(isinstance(item, str) for item in items) else "other"


def _plain(name: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


def _selectors(guess: Guess) -> list[str]:
    keys = ("id", "question", "solution", "answer", "options", "images")
    values = [guess.values.get(key, []) for key in (*keys, "question_images", "solution_images")]
    names = [name for v in values for name in ([v] if isinstance(v, str) else v)]
    turns = guess.values.get("conversation")
    return [*names, *([turns["column"]] if turns else [])]
