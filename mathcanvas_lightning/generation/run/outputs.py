"""Writes the output files: the input records with the answers from the journal."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mathcanvas_lightning.generation.run.journal.folder import journal_folder
from mathcanvas_lightning.generation.run.journal.lines import open_entries, read_journal
from mathcanvas_lightning.generation.run.post_processors import PostProcessor
from mathcanvas_lightning.generation.run.summary import InputReport
from mathcanvas_lightning.records.files import write_records
from mathcanvas_lightning.records.record import (
    RecordError,
    RecordInput,
    has_response,
    parsed_records,
    unusable_record,
)
from mathcanvas_lightning.records.survey import RecordKey

NOT_ASKED = "not_asked"
"""Failure kind of a record that has no line in the journal at the end of the run."""


def write_output(
    source: RecordInput,
    wanted: Mapping[str, RecordKey],
    post_processors: Sequence[PostProcessor] = (),
    skipped: Mapping[int, str] = MappingProxyType({}),
) -> InputReport:
    """Writes the records of an input with the answers of its journal in the response field.

    Args:
        source: The input.
        wanted: Uid -> key of the records that need an answer; other records stay unchanged.
        post_processors: Functions that change each answer, applied in order.
        skipped: Position -> fault of the records that were left out.

    Returns:
        Counts of answers and failures.
    """
    tally = _Tally()
    records = _merged(source, wanted, skipped, post_processors, tally)
    like = source.path if source.reader is None else None
    write_records(source.output_path, records, like=like)
    return InputReport(
        path=source.path,
        output=source.output_path,
        num_records=tally.num_records,
        num_answered=tally.num_answered,
        failures=tally.failures,
        num_cut=tally.num_cut,
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
    )


@dataclass(slots=True, kw_only=True)
class _Tally:
    num_records: int = 0
    num_answered: int = 0
    num_cut: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, line: Mapping[str, Any]) -> None:
        if line["error"]:
            self.failures[line["error"]["kind"]] += 1
            return
        self.num_answered += 1
        self.num_cut += any(reason not in (None, "stop") for reason in line["finish_reasons"])
        self.prompt_tokens += line["usage"]["prompt_tokens"]
        self.completion_tokens += line["usage"]["completion_tokens"]


def _merged(
    source: RecordInput,
    wanted: Mapping[str, RecordKey],
    skipped: Mapping[int, str],
    post_processors: Sequence[PostProcessor],
    tally: _Tally,
) -> Iterator[dict[str, Any]]:
    entries = read_journal(journal_folder(source.output_path))
    with open_entries() as read:
        for position, (values, record) in enumerate(parsed_records(source, ())):
            tally.num_records += 1
            merged = dict(values) if isinstance(values, Mapping) else {}
            line: Mapping[str, Any] | None = None
            if position in skipped:
                kind, _, message = skipped[position].partition(": ")
                line = {"error": {"kind": kind, "message": message}}
            elif isinstance(record, RecordError):
                raise unusable_record(source, position, record)
            elif (key := wanted.get(record.uid)) is not None and key.position == position:
                found = entries.get((key.uid, key.identity)) or entries.get((key.uid, key.digest))
                line = _NO_LINE if found is None else read(found)
            if line is None or (position in skipped and has_response(source, merged)):
                tally.num_answered += has_response(source, merged)
                merged.setdefault(source.response_field, None)
            else:
                tally.add(line)
                merged.pop(source.error_field, None)
                merged |= response_fields(line, source, post_processors)
            yield merged


_NO_LINE = {"error": {"kind": NOT_ASKED, "message": "the run ended before it"}}


def response_fields(
    line: Mapping[str, Any],
    source: RecordInput,
    post_processors: Sequence[PostProcessor] = (),
) -> dict[str, Any]:
    """The fields that an answer adds to its record.

    Args:
        line: The error (kind and message, or None) and the texts of the answers.
        source: The input, with the names of the fields.
        post_processors: Functions that change each answer, applied in order.

    Returns:
        The answer, or the list of several; or None and the error.
    """
    if line["error"]:
        error = "{kind}: {message}".format(**line["error"])
        return {source.response_field: None, source.error_field: error}
    answers = [_processed(text, post_processors) for text in line["texts"]]
    return {source.response_field: answers[0] if len(answers) == 1 else answers}


def _processed(text: str, post_processors: Sequence[PostProcessor]) -> str:
    for change in post_processors:
        text = change(text)
    return text
