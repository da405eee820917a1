"""What happens to an output file that exists although it has no journal."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from mathcanvas_lightning.errors import OutputError
from mathcanvas_lightning.generation.run.journal.append import JournalWriter
from mathcanvas_lightning.generation.run.journal.folder import journal_folder, owns_output
from mathcanvas_lightning.records.files import format_of
from mathcanvas_lightning.records.record import (
    Fields,
    Record,
    RecordInput,
    as_list,
    has_response,
    parsed_records,
)
from mathcanvas_lightning.records.survey import RecordKey

ExistingOutput = Literal["refuse", "seed", "replace"]
"""refuse: an error. seed: its answers are kept, as if this run had made them. replace: it is
overwritten."""


def is_foreign(source: RecordInput) -> bool:
    """Whether the output exists, and no run with this journal has written it."""
    return source.output_path.exists() and not owns_output(journal_folder(source.output_path))


def require_own_output(source: RecordInput) -> None:
    """Checks that the output is not a file of someone else.

    Args:
        source: An input with its output.

    Raises:
        OutputError: If the output exists without a journal.
    """
    if is_foreign(source):
        raise OutputError(
            str(source.output_path),
            found="a file without a journal, so these answers may come from anywhere",
            wanted="no file, or one that an earlier run wrote",
            remedy="Choose another output, or set existing_output: seed to keep its answers and "
            "ask only the other records, or replace to overwrite it.",
        )


def seed_journal(source: RecordInput, keys: Iterable[RecordKey], fields: Fields) -> int:
    """Writes the answers of an existing output into its new journal.

    A record keeps its answer if the output has the same index and content. Which model made it, and
    for which pictures, is not known and not compared.

    Args:
        source: The input with its output.
        keys: Keys of the input's records.
        fields: Fields whose values are part of the digests.

    Returns:
        Number of answers.

    Raises:
        OutputError: If the output has no answer to any record.
        InputError: If the output is not a readable file of records.
    """
    digests = {key.uid: key.digest for key in keys if key.label == source.label}
    output = source.output_path
    existing = replace(source, path=str(output), output=None, reader=None, name=source.label)
    records = (record for _, record in parsed_records(existing, fields))
    lines = [
        _seed_line(record.uid, record.digest, _texts(existing, record.values))
        for record in records
        if isinstance(record, Record)
        and digests.get(record.uid) == record.digest
        and has_response(existing, record.values)
        and not record.values.get(source.error_field)
    ]
    if not lines:
        raise OutputError(
            str(output),
            found="no answer to a record of the input",
            wanted=f"records with the same {source.index_field}, question and pictures, and "
            f"answers in {source.response_field}",
            remedy="Choose another output, or set existing_output: replace to overwrite it.",
        )
    with JournalWriter(journal_folder(output), 0) as journal:
        journal.append(lines)
    return len(lines)


def _texts(source: RecordInput, values: Mapping[str, Any]) -> list[str]:
    """The answers of a record; a cell of a CSV file may hold several as JSON."""
    value = values[source.response_field]
    if isinstance(value, str):
        several = as_list(value) if format_of(source.path) == "csv" else []
        is_list = len(several) > 1 and all(isinstance(one, str) for one in several)
        return several if is_list else [value]
    return list(map(str, _listed(value)))


def _listed(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, list | tuple) else [value]


def _seed_line(uid: str, digest: str, texts: list[str]) -> dict[str, Any]:
    return {
        "uid": uid,
        "texts": texts,
        "finish_reasons": [None for _ in texts],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0},
        "error": None,
        "digest": digest,
        "stamp": None,
        "pictures": None,
        "prompt_digest": None,
        "model": None,
        "settings": None,
        "sampling": None,
        "time": time.time(),
    }
