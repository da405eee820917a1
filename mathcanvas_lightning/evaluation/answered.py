"""Answered records: the few of their fields that scores need."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.evaluation.extraction import reference_parts
from mathcanvas_lightning.records.files import read_records
from mathcanvas_lightning.records.record import ERROR_SUFFIX

UID_FIELDS = ("uid", "id")
NO_GROUP = "(none)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """What the fields of the records are called."""

    answer: str
    response: str
    options: str
    question: str
    by: tuple[str, ...]
    """Fields that records are grouped by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A record with a reference answer."""

    index: int
    """Where it stands among all records of the file, from 0."""
    uid: str | None
    question: str
    options: tuple[str, ...]
    """Texts of the choices A, B, ..."""
    expected: tuple[str, ...]
    """The reference answer of each part of the question."""
    responses: tuple[str | None, ...]
    """Each sample's; None for a request that failed."""
    groups: Mapping[str, str]
    """The value of each field that records are grouped by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredFile:
    """What a file holds."""

    records: Sequence[Answered]
    num_without_reference: int
    """Records that can't be scored, as they have no reference answer."""


def read_answered(path: str | Path, fields: Fields) -> AnsweredFile:
    """Reads a file of answered records.

    Args:
        path: In any format that `generation.formats.read_records` reads.
        fields: What to take of each record.

    Returns:
        The records with a reference answer, and how many have none.

    Raises:
        InputError: If there is no such file, it is malformed, no record has one of the fields, or
            none has a reference answer.
    """
    found: dict[str, None] = {}
    records: list[Answered] = []
    num_records = 0
    for index, record in enumerate(read_records(path)):
        num_records += 1
        if not isinstance(record, Mapping):
            raise InputError(
                f"{path}, record {index}",
                found=f"{record!r:.60}",
                wanted="an object with fields",
                remedy="Give each record its answers in fields.",
            )
        found.update(dict.fromkeys(map(str, record)))
        one = answered_of(index, record, fields)
        if one.expected:
            records.append(one)
    for option, name in (
        ("answer_field", fields.answer),
        ("response_field", fields.response),
        *(("by", name) for name in fields.by),
    ):
        if name not in found:
            raise _no_field(path, f"--{option} {name}", list(found))
    if not records:
        raise InputError(
            f"{path}, field {fields.answer}",
            found=f"no value in any of {num_records} records",
            wanted="reference answers",
            remedy="Name the field that has them with --answer_field.",
        )
    return AnsweredFile(records=records, num_without_reference=num_records - len(records))


def answered_of(index: int, record: Mapping[str, Any], fields: Fields) -> Answered:
    """What scoring takes of a record.

    Args:
        index: Its place in the file, from 0.
        record: The record.
        fields: What to take.

    Returns:
        Its reference answers, none if it has none, and its responses.
    """
    uid = next((record[name] for name in UID_FIELDS if record.get(name) is not None), None)
    question = record.get(fields.question)
    has_failed = bool(record.get(fields.response + ERROR_SUFFIX))  # CSV has no null
    return Answered(
        index=index,
        uid=None if uid is None else str(uid),
        question=question if isinstance(question, str) else "",
        options=_options(record.get(fields.options)),
        expected=reference_parts(_listed(record.get(fields.answer))),
        responses=(None,) if has_failed else _responses(record.get(fields.response)),
        groups={name: _group(record.get(name)) for name in fields.by},
    )


def _options(value: Any) -> tuple[str, ...]:
    value = _listed(value)
    if isinstance(value, Mapping):
        value = [value[name] for name in sorted(value, key=str)]
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()


def _responses(value: Any) -> tuple[str | None, ...]:
    samples = _listed(value)
    if not isinstance(samples, list | tuple):
        return (_text(samples),)
    return tuple(map(_text, samples)) or (None,)


def _text(value: Any) -> str | None:
    is_text = isinstance(value, str | int | float) and value == value  # nan isn't
    return str(value) if is_text else None


def _group(value: Any) -> str:
    return NO_GROUP if value is None or value == "" else str(value)


def _listed(value: Any) -> Any:
    """A list of texts that a CSV file has as JSON text, as a list; anything else as it is."""
    if isinstance(value, str) and value.startswith(('["', "[null")):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        if isinstance(found, list) and all(one is None or isinstance(one, str) for one in found):
            return found
    return value


def _no_field(path: str | Path, option: str, found: Sequence[str]) -> InputError:
    listed = ", ".join(found[:40]) + (", ..." if len(found) > 40 else "")
    return InputError(
        f"{path}, {option}",
        found=f"no record with this field; there are: {listed or 'none'}",
        wanted="the name of a field",
        remedy=f"Name one of them with {option.split()[0]}.",
    )
