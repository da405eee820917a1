"""Held-out records: read, checked and made into requests once, before the network is built."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.evaluation.answered import Fields, answered_of, listed_fields
from mathcanvas_lightning.evaluation.puzzles import read_task
from mathcanvas_lightning.generation.prompts.building import Prepared, build_request
from mathcanvas_lightning.generation.prompts.chat import PromptBuilder
from mathcanvas_lightning.generation.requests import GenerationResponse
from mathcanvas_lightning.records.fetching import PictureReader
from mathcanvas_lightning.records.record import Record, RecordInput, iter_records

OPTIONS_FIELD = "options"
"""Field with the texts of the choices, as for `score_responses`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A record with its request."""

    record: Record
    prepared: Prepared
    """The request, or the failure of a record without a readable picture or a fitting prompt."""

    @property
    def index(self) -> str:
        """Index of the record, as a text."""
        return str(self.record.index)


def read_held_out(source: RecordInput, num_records: int, prompt: PromptBuilder) -> list[HeldOut]:
    """Reads the first records of a file and builds their requests.

    Args:
        source: The file and the names of its fields.
        num_records: Maximum number of records.
        prompt: Builds a conversation from a record.

    Returns:
        The records in the order of the file.

    Raises:
        InputError: If the file can't be read, has no records or two with one index, or if no
            request can be built from any of them.
    """
    fields = getattr(prompt, "fields", None)
    records = list(islice(iter_records(source, fields), num_records))
    if not records:
        raise InputError(
            source.path, found="no records", wanted="one or more", remedy="Check the path."
        )
    _require_different([record.uid for record in records], source)
    read = PictureReader(source.fetching).read
    found = [HeldOut(record=one, prepared=build_request(one, read(one), prompt)) for one in records]
    failures = [one.prepared for one in found if isinstance(one.prepared, GenerationResponse)]
    if len(failures) == len(found):
        assert failures[0].failure is not None
        raise InputError(
            source.path,
            found=f"an error with each of the first {len(found)} records "
            f"({failures[0].failure.message})",
            wanted="records with questions",
            remedy="Check the names of the fields, the paths of the pictures and the prompt.",
        )
    return found


def require_references(
    held_out: Sequence[HeldOut], source: RecordInput, answer_field: str | None, puzzles: str | None
) -> None:
    """Checks that answers can be scored.

    Args:
        held_out: The records.
        source: Their file.
        answer_field: Field with the reference answer; None scores nothing.
        puzzles: Folder of puzzles, or None.

    Raises:
        InputError: If no record has a reference answer, or a puzzle is missing.
        ConfigError: If puzzles are given, but no reference answers.
    """
    if answer_field is None:
        if puzzles is not None:
            raise ConfigError(
                "AnswerSampler.puzzles",
                found=f"{puzzles}, with answer_field null",
                wanted="the field with the answers too",
                remedy="Set answer_field, or leave puzzles out.",
            )
        return
    fields = _fields(source, answer_field)
    answered = [answered_of(n, one.record.values, fields) for n, one in enumerate(held_out)]
    if not any(one.expected for one in answered):
        names: list[Any] = list(held_out[0].record.values)
        raise InputError(
            f"{source.path}, field {answer_field}",
            found=f"no reference answer in {len(held_out)} records; the first has the fields "
            f"{listed_fields([str(name) for name in names])}",
            wanted="the reference answers of held-out records",
            remedy="Name their field in answer_field; with null, nothing is scored.",
        )
    for one in answered if puzzles is not None else ():
        if one.expected:
            read_task(local_path(str(puzzles)), one.uid or "")


def _fields(source: RecordInput, answer_field: str) -> Fields:
    return Fields(
        answer=answer_field,
        response=source.response_field,
        options=OPTIONS_FIELD,
        question=source.query_field,
        by=(),
    )


def _require_different(uids: Sequence[str], source: RecordInput) -> None:
    twice = sorted({uid for uid in uids if uids.count(uid) > 1})
    if twice:
        raise InputError(
            source.path,
            found=f"several records {', '.join(twice[:3])}",
            wanted="a different index for each record",
            remedy="Correct the field that index_field names.",
        )
