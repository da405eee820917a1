"""The journal of an output: one line per response, appended at once, read when a run is resumed.

In: responses, and the earlier files of an output. Out: which records are answered, by which model
and for which pictures; the finished answers.
"""

from mathcanvas_lightning.generation.run.journal.append import JournalWriter
from mathcanvas_lightning.generation.run.journal.folder import (
    acquire_lock,
    is_rerun,
    journal_folder,
    rank_files,
    start_rerun,
)
from mathcanvas_lightning.generation.run.journal.lines import (
    Entry,
    journal_line,
    open_entries,
    origin_of,
    read_journal,
)

__all__ = [
    "Entry",
    "JournalWriter",
    "acquire_lock",
    "is_rerun",
    "journal_folder",
    "journal_line",
    "open_entries",
    "origin_of",
    "rank_files",
    "read_journal",
    "start_rerun",
]
