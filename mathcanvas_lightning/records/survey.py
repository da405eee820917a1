"""Checks all records of a run in one pass, before a model starts, and reports all faults."""

import difflib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from mathcanvas_lightning.common.paths import is_remote
from mathcanvas_lightning.records.access import Access
from mathcanvas_lightning.records.faults import FaultList
from mathcanvas_lightning.records.files import format_of
from mathcanvas_lightning.records.marks import MarkError, has_marks, place_marks
from mathcanvas_lightning.records.pictures import PictureError, locate_picture, picture_stamp
from mathcanvas_lightning.records.record import (
    INTERLEAVED_COLUMNS,
    NO_INDEX,
    Fields,
    Record,
    RecordError,
    RecordInput,
    has_response,
    is_interleaved,
    parsed_records,
    record_identity,
)
from mathcanvas_lightning.records.versions import stamp_with, url_versions

logger = logging.getLogger(__name__)

NUM_FIELD_RECORDS = 100
"""Number of records that are searched for field names."""
OnFault = Literal["stop", "skip"]
"""stop: any fault is an error. skip: records with faults are left out, and listed in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordKey:
    """The part of a record that stays in memory during a run."""

    label: str
    """Label of the input."""
    uid: str
    position: int
    """Position in the input, from 0."""
    digest: str
    """Digest of the record, see `Record`."""
    has_response: bool
    """Whether the response field already has a value."""
    stamp: int | None = field(default=None, compare=False)
    """Stamp of the picture files, see `picture_stamp`."""
    fault: str | None = None
    """Kind and description of the first fault of a record that is left out; else None."""

    @property
    def identity(self) -> str:
        """Identity of the record's content and picture files."""
        return record_identity(self.digest, self.stamp)


def survey(
    inputs: Sequence[RecordInput],
    filters: Sequence[Callable[[Record], bool]] = (),
    fields: Fields = (),
    on_fault: OnFault = "stop",
) -> list[RecordKey]:
    """Checks all records once, without opening pictures.

    Args:
        inputs: All inputs of a run.
        filters: If one of them rejects a record, only its index is checked.
        fields: Fields whose values are part of the digests.
        on_fault: What happens if records have faults.

    Returns:
        A key for each record that the filters accept, in order; with "skip", also for each record
        with a fault.

    Raises:
        InputError: If there is any fault; its text lists the faults of all inputs. With "skip",
            only faults of inputs and settings count, unless no record is without a fault.
    """
    faults = FaultList()
    skipped = faults if on_fault == "stop" else FaultList()
    _check_names(inputs, faults)
    keys: list[RecordKey] = []
    for source in inputs:
        check = _InputCheck(
            source=source, filters=filters, fields=fields, faults=faults, record_faults=skipped
        )
        found = list(check.run())
        versions = url_versions(chain(*check.urls.values()), source.fetching)
        keys += [
            replace(key, stamp=stamp_with(key.stamp, check.urls[key.uid], versions))
            if key.uid in check.urls
            else key
            for key in found
        ]
    faults.raise_if_any()
    num_skipped = sum(key.fault is not None for key in keys)
    if num_skipped == len(keys):
        names = ", ".join(source.path for source in inputs)
        skipped.add("no record to ask", names, "no records, or the filters reject all of them")
        skipped.raise_if_any()
    if num_skipped:
        logger.warning("%d of %d records are skipped:%s", num_skipped, len(keys), skipped.text)
    return keys


def _check_names(inputs: Sequence[RecordInput], faults: FaultList) -> None:
    """Finds inputs with equal labels, and outputs that would overwrite a file of the run."""
    labels: dict[str, str] = {}
    outputs: dict[str, str] = {}
    paths = {os.path.realpath(source.path) for source in inputs}
    for source in inputs:
        output = os.path.realpath(source.output_path)
        if ":" in source.label:
            message = f"{source.label!r} is the prefix of record ids and ends at a colon; set name"
            faults.add("a name with a colon", source.path, message)
        if source.label in labels:
            message = f"{source.label!r} is also the name of {labels[source.label]}; set name"
            faults.add("two inputs with one name", source.path, message)
        if output in outputs:
            message = f"{source.output_path} is also the output of {outputs[output]}; set output"
            faults.add("two inputs with one output", source.path, message)
        if output in paths or any(str(parent) in paths for parent in Path(output).parents):
            message = f"{source.output_path} is an input, or inside one; set output"
            faults.add("output overwrites an input", source.path, message)
        elif Path(output).is_dir():
            faults.add("output is a folder", source.path, f"{source.output_path}; choose a file")
        else:
            with faults.collect_errors("unknown format"):
                format_of(source.output_path)
        labels.setdefault(source.label, source.path)
        outputs.setdefault(output, source.path)


@dataclass(slots=True, kw_only=True)
class _InputCheck:
    """Checks the records of one input."""

    source: RecordInput
    filters: Sequence[Callable[[Record], bool]]
    fields: Fields
    faults: FaultList
    """Faults of the input and its settings."""
    record_faults: FaultList
    """Faults of single records; the same list if they stop the run too."""
    positions: dict[str, int] = field(default_factory=dict)
    """Index as text -> position of its record."""
    num_objects: int = 0
    absent: Counter[str] = field(default_factory=Counter)
    """Required field -> number of records without it."""
    found: dict[str, None] = field(default_factory=dict)
    """Fields of the first records."""
    urls: dict[str, list[str]] = field(default_factory=dict)
    """Uid -> pictures at URLs whose versions are to be asked for."""
    num_unplaced: int = 0
    """Number of records with picture marks but without pictures."""

    def run(self) -> Iterator[RecordKey]:
        with self.faults.collect_errors("unreadable file"):
            for position, (values, record) in enumerate(parsed_records(self.source, self.fields)):
                if isinstance(values, Mapping):
                    self.num_objects += 1
                    if position < NUM_FIELD_RECORDS:
                        self.found |= dict.fromkeys(values)
                place = f"{self.source.path}, record {position}"
                if isinstance(record, RecordError):
                    fault = self._error_fault(record, values, place)
                    yield self._bad_key(f"{self.source.label}:#{position}", position, fault)
                    continue
                duplicate = self._duplicate_fault(record, place)
                if not all(accepts(record) for accepts in self.filters):
                    continue
                if duplicate is not None:
                    yield self._bad_key(record.uid, position, duplicate)
                else:
                    yield self._checked(record, f"{place} ({record.uid})")
            self._check_fields()

    def _checked(self, record: Record, place: str) -> RecordKey:
        """Checks a record that has a unique index."""
        faults = [self._query_fault(record, place)]
        located: list[bytes | str] = []
        access: Access = "any" if record.allow_any_path else "web"
        for reference in record.images:
            try:
                located.append(locate_picture(reference, record.image_base, access))
            except PictureError as error:
                faults.append(self._add(error.kind, place, str(error)))
        try:
            place_marks(record.query, len(record.images))
        except MarkError as error:
            faults.append(self._add("a mark without picture", place, str(error)))
        if self.source.fetching.check_changes:
            urls = [one for one in located if isinstance(one, str) and is_remote(one)]
            self.urls |= {record.uid: urls} if urls else {}
        self.num_unplaced += not record.images and has_marks(record.query)
        return RecordKey(
            label=self.source.label,
            uid=record.uid,
            position=record.position,
            digest=record.digest,
            has_response=has_response(self.source, record.values),
            stamp=picture_stamp(located),
            fault=next(filter(None, faults), None),
        )

    def _bad_key(self, uid: str, position: int, fault: str) -> RecordKey:
        return RecordKey(
            label=self.source.label,
            uid=uid,
            position=position,
            digest="",
            has_response=False,
            fault=fault,
        )

    def _error_fault(self, error: RecordError, values: Any, place: str) -> str:
        absent = []
        has_names = self.source.preset is None and isinstance(values, Mapping)
        if has_names and not is_interleaved(self.source, values):
            names = (self.source.index_field, self.source.query_field)
            absent = [name for name in names if name not in values]
        for name in absent:
            self._add_absent(name, place)
        if error.kind != NO_INDEX or self.source.index_field not in absent:
            self.record_faults.add(error.kind, place, str(error))
        return f"{error.kind}: {error}"

    def _duplicate_fault(self, record: Record, place: str) -> str | None:
        first = self.positions.setdefault(str(record.index), record.position)
        if first == record.position:
            return None
        message = f"{record.index!r} is also the index of record {first}"
        return self._add("duplicate index", place, message)

    def _query_fault(self, record: Record, place: str) -> str | None:
        name = self.source.query_field
        has_name = self.source.preset is None
        if has_name and name not in record.values and not record.query:
            return self._add_absent(name, place)
        if not record.query.strip():
            return self._add("no query", place, f"{name} is {record.values.get(name)!r:.80}")
        return None

    def _add(self, kind: str, place: str, message: str) -> str:
        self.record_faults.add(kind, place, message)
        return f"{kind}: {message}"

    def _add_absent(self, name: str, place: str) -> str:
        self.absent[name] += 1
        self.record_faults.add(self._no_field(name), place, "it is absent")
        return f"no query: no field {name!r}"

    def _check_fields(self) -> None:
        """Reports a field that no record has as one fault instead of one fault per record."""
        if self.source.preset is not None:
            return
        name = self.source.image_field
        is_absent = name not in self.found and not self.found.keys() >= INTERLEAVED_COLUMNS
        if is_absent and self.source.has_images and self.num_objects:
            self._add_wrong_name(name)
        elif is_absent and (close := self._like(name)):
            text = "%s: no record has the field %r, so none has pictures; did you mean %r?"
            logger.warning(text, self.source.path, name, close)
        if self.num_unplaced:
            text = "%s: %d records have picture marks but no pictures; the marks stay as text"
            logger.warning(text, self.source.path, self.num_unplaced)
        for name, count in self.absent.items():
            if count == self.num_objects:
                self.record_faults.drop(self._no_field(name))
                self._add_wrong_name(name)

    def _add_wrong_name(self, name: str) -> None:
        message = f"no record has the field {name!r}; they have {', '.join(self.found)}"
        message += f"; did you mean {close!r}?" if (close := self._like(name)) else ""
        self.faults.add("wrong field name", self.source.path, message)

    def _like(self, name: str) -> str | None:
        """An existing field with a similar name."""
        return next(iter(difflib.get_close_matches(name, self.found, n=1)), None)

    def _no_field(self, name: str) -> str:
        return f"no {name!r} in {self.source.path}"
