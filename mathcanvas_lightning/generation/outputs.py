"""The finished files: inputs with the answers of their journals merged in."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mathcanvas_lightning.generation.formats import write_records
from mathcanvas_lightning.generation.journal import (
    journal_folder,
    open_entries,
    read_journal,
)
from mathcanvas_lightning.generation.post_processors import PostProcessor
from mathcanvas_lightning.generation.records import RecordInput, iter_records
from mathcanvas_lightning.generation.report import InputReport

ERROR_SUFFIX = "_error"
"""Behind the response field, names the field that says why a record has no answer."""


def write_output(
    source: RecordInput,
    post_processors: Sequence[PostProcessor] = (),
    *,
    keep_old_responses: bool = True,
) -> InputReport:
    """Writes an input with the answers of its journal in the response field.

    Args:
        source: The input, its fields and its output.
        post_processors: Applied to each answer, one after the other.
        keep_old_responses: Whether responses that stand in the input stay where the journal has
            none.

    Returns:
        What became of its records.
    """
    tally = _Tally()
    records = _merged(source, post_processors, keep_old_responses, tally)
    write_records(source.output_path, records, like=source.path)
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
    post_processors: Sequence[PostProcessor],
    keep_old_responses: bool,
    tally: _Tally,
) -> Iterator[dict[str, Any]]:
    entries = read_journal(journal_folder(source.output_path))
    with open_entries() as read:
        for record in iter_records(source):
            tally.num_records += 1
            merged = dict(record.values)
            entry = entries.get(record.uid)
            if entry is not None and entry.digest == record.digest:
                line = read(entry)
                tally.add(line)
                merged |= _response_fields(line, source.response_field, post_processors)
            elif keep_old_responses and merged.get(source.response_field):
                tally.num_answered += 1
            else:
                merged[source.response_field] = None
            yield merged


def _response_fields(
    line: Mapping[str, Any], name: str, post_processors: Sequence[PostProcessor]
) -> dict[str, Any]:
    if line["error"]:
        return {name: None, name + ERROR_SUFFIX: "{kind}: {message}".format(**line["error"])}
    answers = [_processed(text, post_processors) for text in line["texts"]]
    return {name: answers[0] if len(answers) == 1 else answers}


def _processed(text: str, post_processors: Sequence[PostProcessor]) -> str:
    for change in post_processors:
        text = change(text)
    return text
