"""Answered records, reduced to the fields that scoring needs."""

import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from mathcanvas_lightning.conversion.columns.sections import texts_of
from mathcanvas_lightning.conversion.rejection import RejectError
from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.evaluation.extraction import reference_parts
from mathcanvas_lightning.generation.prompts.chat import named_options
from mathcanvas_lightning.records.files import format_of, read_records
from mathcanvas_lightning.records.record import ERROR_SUFFIX, columns_of

UID_FIELDS = ("uid", "id")
NO_GROUP = "(none)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Names of the fields of a record."""

    answer: str
    response: str
    options: str
    question: str
    by: tuple[str, ...]
    """Fields that records are grouped by."""
    preset: str | None = None
    """Preset whose columns hold answer, options and question instead of these fields."""
    has_listed_responses: bool = False
    """Whether responses are JSON lists of samples, as in a CSV file of several samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A record with a reference answer."""

    index: int
    """Position of the record in its file, from 0."""
    uid: str | None
    question: str
    options: tuple[str, ...]
    """Texts of the choices A, B, ...; empty for open questions."""
    expected: tuple[str, ...]
    """The reference answer of each part of the question."""
    responses: tuple[str | None, ...]
    """The response of each sample; None for a request that failed."""
    groups: Mapping[str, str]
    """Field -> value, for the fields that records are grouped by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredFile:
    """The answered records of a file."""

    records: Sequence[Answered]
    """Records with a reference answer."""
    num_without_reference: int
    """Number of records without a reference answer, which can't be scored."""


def read_answered(path: str | Path, fields: Fields) -> AnsweredFile:
    """Reads a file of answered records.

    Args:
        path: File in any format that `records.files.read_records` reads.
        fields: Names of the fields.

    Returns:
        The records with a reference answer, and the number of the others.

    Raises:
        InputError: If there is no such file, it is malformed, a field is in no record, or no
            record has a reference answer.
    """
    fields = replace(fields, has_listed_responses=has_listed_responses(path, fields.response))
    found: dict[str, None] = {}
    records: list[Answered] = []
    num_records = 0
    for index, record in enumerate(read_records(path)):
        num_records += 1
        checked = require_object(record, f"{path}, record {index}")
        found.update(dict.fromkeys(map(str, checked)))
        answered = answered_of(index, checked, fields)
        if answered.expected:
            records.append(answered)
    for option, name in (
        *(() if fields.preset else (("answer_field", fields.answer),)),
        ("response_field", fields.response),
        *(("by", name) for name in fields.by),
    ):
        if name not in found:
            raise _no_field(path, f"--{option} {name}", found)
    if not records:
        raise InputError(
            f"{path}, field {fields.answer}",
            found=f"no value in any of {num_records} records",
            wanted="reference answers",
            remedy="Name the field with the reference answers with --answer_field, or --preset.",
        )
    return AnsweredFile(records=records, num_without_reference=num_records - len(records))


def has_listed_responses(path: str | Path, field: str) -> bool:
    """Whether a CSV file, which has no lists, has several samples per record as JSON text.

    The text of one response may be such a list too; so all of them must be.

    Args:
        path: File of answered records.
        field: Name of the field with the responses.
    """
    if format_of(path) != "csv":
        return False
    records = (record for record in read_records(path) if isinstance(record, Mapping))
    texts = [text for record in records if (text := record.get(field))]
    return bool(texts) and all(isinstance(_listed(text), list) for text in texts)


def require_object(record: Any, place: str) -> Mapping[str, Any]:
    """Checks that a record has fields.

    Args:
        record: A record as read from a file.
        place: Location of the record, for the message.

    Returns:
        The record.

    Raises:
        InputError: If it is anything but an object.
    """
    if isinstance(record, Mapping):
        return record
    raise InputError(
        place,
        found=f"{record!r:.60}",
        wanted="an object with fields",
        remedy="Give each record its question and answers in fields.",
    )


def answered_of(index: int, record: Mapping[str, Any], fields: Fields) -> Answered:
    """Takes from a record the fields that scoring needs.

    Args:
        index: Position of the record in its file, from 0.
        record: The record.
        fields: Names of the fields.

    Returns:
        The answered record; `expected` is empty if it has no reference answer.
    """
    if fields.preset is not None:
        record = {**record, **_by_columns(fields.preset, record, fields)}
    uid = next((record[name] for name in UID_FIELDS if record.get(name) is not None), None)
    question = record.get(fields.question)
    has_failed = bool(record.get(fields.response + ERROR_SUFFIX))  # CSV has no null
    return Answered(
        index=index,
        uid=None if uid is None else str(uid),
        question=question if isinstance(question, str) else "",
        options=_options(record.get(fields.options)),
        expected=reference_parts(_listed(record.get(fields.answer))),
        responses=(None,) if has_failed else _responses(record.get(fields.response), fields),
        groups={name: _group(record.get(name)) for name in fields.by},
    )


def _by_columns(preset: str, record: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """The fields that the columns of a preset hold; null where a record lacks them."""
    columns = columns_of(preset)
    values: dict[str, Any] = dict.fromkeys((fields.answer, fields.options, fields.question))
    with contextlib.suppress(RejectError):
        values["uid"] = columns.identify(record)
        values[fields.question] = texts_of(columns.question(record, "."))
        values[fields.options] = columns.choices(record)
    with contextlib.suppress(RejectError):
        values[fields.answer] = columns.answer(record)
    return values


def _options(value: Any) -> tuple[str, ...]:
    """Texts of the options A, B, ...; empty for a letter without an option."""
    value = _listed(value)
    if not isinstance(value, Mapping | list | tuple):
        return ()
    options = {name.upper(): text for name, text in sorted(named_options(value).items())}
    if not options.keys() <= set(ascii_uppercase):
        return tuple(options.values())
    letters = ascii_uppercase[: ascii_uppercase.index(max(options)) + 1] if options else ""
    return tuple(options.get(letter, "") for letter in letters)


def _responses(value: Any, fields: Fields) -> tuple[str | None, ...]:
    samples = _listed(value) if fields.has_listed_responses else value
    if not isinstance(samples, list | tuple):
        return (_text(samples),)
    return tuple(map(_text, samples)) or (None,)


def _text(value: Any) -> str | None:
    is_text = isinstance(value, str | int | float) and value == value  # nan isn't
    return str(value) if is_text else None


def _group(value: Any) -> str:
    return NO_GROUP if value is None or value == "" else str(value)


def _listed(value: Any) -> Any:
    """Parses a list of texts that a CSV file contains as JSON text; returns other values as is."""
    if isinstance(value, str) and value.startswith(('["', "[null")):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        if isinstance(found, list) and all(one is None or isinstance(one, str) for one in found):
            return found
    return value


def listed_fields(names: Collection[str]) -> str:
    """Lists names of fields for an error message, the first 40 of them."""
    return ", ".join([*names][:40]) + (", ..." if len(names) > 40 else "") or "none"


def _no_field(path: str | Path, option: str, found: Collection[str]) -> InputError:
    return InputError(
        f"{path}, {option}",
        found=f"no record with this field; there are: {listed_fields(found)}",
        wanted="the name of a field",
        remedy=f"Name one of them with {option.split()[0]}.",
    )
