"""Finds out which records of a run have an answer in the journals of its outputs."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mathcanvas_lightning.generation.requests import hash_pictures
from mathcanvas_lightning.generation.run.journal.folder import is_rerun, journal_folder
from mathcanvas_lightning.generation.run.journal.lines import Entry, read_journal
from mathcanvas_lightning.records.pictures import PictureError, read_pictures
from mathcanvas_lightning.records.record import Fields, RecordInput, iter_records
from mathcanvas_lightning.records.survey import RecordKey

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Selection:
    """The records of a run, sorted by whether they have an answer."""

    wanted: dict[str, RecordKey] = field(default_factory=dict)
    """Uid -> key of the records that need an answer: all but those that filters reject, those with
    a response in the input, and those that are left out because of a fault."""
    pending: dict[str, RecordKey] = field(default_factory=dict)
    """Uid -> key of the records that this run answers, over all ranks."""
    answered: dict[str, Entry] = field(default_factory=dict)
    """Uid -> journal entry of the answers from earlier runs."""
    skipped: dict[str, dict[int, str]] = field(default_factory=dict)
    """Label of the input -> position -> fault of the records that are left out."""


def select_records(
    inputs: Sequence[RecordInput], keys: Iterable[RecordKey], fields: Fields
) -> Selection:
    """Compares the records of a run with the journals of its outputs.

    A record keeps its answer as long as its own content and its pictures are the same. Picture
    files whose size or times have changed are read and compared by content.

    Args:
        inputs: All inputs of the run.
        keys: Keys of their records, from `survey`.
        fields: Fields whose values are part of the digests.

    Returns:
        The records, sorted.
    """
    journals = {one.label: _Journal(one) for one in inputs}
    selection = Selection(skipped={one.label: {} for one in inputs})
    doubtful: dict[str, list[tuple[int, Entry]]] = {}
    for key in keys:
        journal = journals[key.label]
        entry = journal.find(key)
        if key.fault is not None:
            selection.skipped[key.label][key.position] = key.fault
            continue
        if entry is None and key.has_response and not journal.is_rerun:
            continue
        selection.wanted[key.uid] = key
        if entry is not None and entry.failure is None:
            selection.answered[key.uid] = entry
            continue
        selection.pending[key.uid] = key
        if others := journal.with_other_pictures(key):
            doubtful[key.uid] = others
    _keep_same_pictures(inputs, fields, selection, doubtful)
    for journal in journals.values():
        journal.log_age()
    return selection


class _Journal:
    """Entries of the journal of one input."""

    def __init__(self, source: RecordInput) -> None:
        self._folder = journal_folder(source.output_path)
        self.is_rerun = is_rerun(self._folder)
        self._entries = read_journal(self._folder)
        self._by_digest: dict[tuple[str, str], list[tuple[int, Entry]]] | None = None

    def find(self, key: RecordKey) -> Entry | None:
        """The entry of a record; entries of older versions fit any pictures."""
        found = self._entries.get((key.uid, key.identity))
        return found or self._entries.get((key.uid, key.digest))

    def with_other_pictures(self, key: RecordKey) -> list[tuple[int, Entry]]:
        """Stamp and entry of the answers to the same record with other picture files."""
        if key.stamp is None:
            return []
        if self._by_digest is None:
            self._by_digest = {}
            for (uid, identity), entry in self._entries.items():
                digest, mark, stamp = identity.partition("@")
                if mark and entry.failure is None:
                    self._by_digest.setdefault((uid, digest), []).append((int(stamp), entry))
        return self._by_digest.get((key.uid, key.digest), [])

    def log_age(self) -> None:
        """Says once that answers of older versions can't be compared completely."""
        old = sum(not entry.is_checked for entry in self._entries.values())
        if old:
            log.warning(
                "%s: %d lines of an older version, without checksums; whether the model's weights "
                "or the pictures have changed since then is not known",
                self._folder,
                old,
            )


def _keep_same_pictures(
    inputs: Sequence[RecordInput],
    fields: Fields,
    selection: Selection,
    doubtful: Mapping[str, Sequence[tuple[int, Entry]]],
) -> None:
    """Keeps the answers of records whose picture files differ only in their times."""
    num_changed = 0
    for source in inputs:
        doubted = [selection.wanted[uid] for uid in doubtful]
        keys = {key.position: key for key in doubted if key.label == source.label}
        records = iter_records(source, fields, skipped=selection.skipped[source.label])
        for record in records if keys else ():
            if record.position not in keys:
                continue
            key = keys.pop(record.position)
            try:
                pictures = hash_pictures(read_pictures(record))
            except PictureError:
                pictures = None  # unreadable now; the request will fail with the reason
            same = [one for one in doubtful[key.uid] if one[1].pictures == pictures]
            if same and pictures is not None:
                stamp, entry = same[-1]
                selection.wanted[key.uid] = replace(key, stamp=stamp)
                selection.answered[key.uid] = entry
                del selection.pending[key.uid]
            else:
                num_changed += 1
            if not keys:
                break
    if num_changed:
        log.warning("%d records are asked again, because their pictures have changed", num_changed)
