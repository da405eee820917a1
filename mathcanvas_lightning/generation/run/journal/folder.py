"""The folder of a journal: its files, its locks, and the marks that say what a run has done."""

import json
import logging
import time
from pathlib import Path
from re import compile as pattern

from filelock import FileLock, Timeout

from mathcanvas_lightning.common import locks
from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.errors import OutputError

log = logging.getLogger(__name__)

FOLDER_SUFFIX = ".journal"
REPLACED = "replaced"
"""Subfolder with the answers that reruns have put aside, in numbered folders."""
_OWNER_MARK, _RERUN_MARK, _FOLDERS_MARK, _FINISH_SUFFIX = "output", "rerun", "folders", ".ended"
_POLL_S = 0.1
_PATIENCE_S = 60.0
"""Time after which a log message names the ranks that are awaited."""
_RANK_FILE = pattern(r"rank(\d+)\.jsonl")


def journal_folder(output: Path) -> Path:
    """Path of the journal that belongs to an output file."""
    return output.parent / f"{output.name}{FOLDER_SUFFIX}"  # the name of . is empty


def rank_files(folder: Path) -> list[Path]:
    """The files of a journal, ordered by rank."""
    matches = [(m, path) for path in folder.glob("*") if (m := _RANK_FILE.fullmatch(path.name))]
    return [path for _, path in sorted(matches, key=lambda pair: int(pair[0][1]))]


def acquire_lock(path: Path) -> FileLock:
    """Acquires a lock that the OS releases when the process exits.

    Args:
        path: Path of the lock file.

    Returns:
        The acquired lock.

    Raises:
        OutputError: If another process holds the lock, or the file can't be locked.
    """
    try:
        return locks.acquire_lock(path, wait=False)
    except Timeout:
        raise OutputError(
            str(path.parent),
            found="another run that writes to the same output",
            wanted="one run per output",
            remedy="Wait for the other run, or choose another output.",
        ) from None


def has_answers(folder: Path) -> bool:
    """Whether a run has written to this journal, also if a rerun has put its answers aside."""
    return bool(rank_files(folder)) or any((folder / n).exists() for n in (_RERUN_MARK, REPLACED))


def owns_output(folder: Path) -> bool:
    """Whether the output of this journal was written by runs of this library."""
    return has_answers(folder) or (folder / _OWNER_MARK).exists()


def mark_owner(folder: Path) -> None:
    """Notes that runs of this library write the output of this journal."""
    (folder / _OWNER_MARK).touch()


def start_rerun(folder: Path) -> None:
    """Puts all answers of a journal aside, and marks it so that input responses are ignored.

    Each rerun has a numbered folder in `replaced`, so answers that were put aside are never lost.

    Args:
        folder: The journal; created if it does not exist.
    """
    aside = folder / REPLACED
    aside.mkdir(parents=True, exist_ok=True)
    if files := rank_files(folder):
        taken = [int(path.name) for path in aside.iterdir() if path.name.isdecimal()]
        numbered = aside / str(max(taken, default=0) + 1)
        numbered.mkdir()
        for path in files:
            path.replace(numbered / path.name)
    _mark_rerun(folder, is_finished=False)  # last: after a kill, the answers are put aside again


def is_rerun(folder: Path) -> bool:
    """Whether records are asked even if the input already has a response."""
    return (folder / _RERUN_MARK).exists()


def is_unfinished_rerun(folder: Path) -> bool:
    """Whether a rerun was started that did not reach its end."""
    try:
        mark = json.loads((folder / _RERUN_MARK).read_bytes())
    except (OSError, ValueError):  # no rerun, or one of an older version
        return False
    return isinstance(mark, dict) and mark.get("is_finished") is False


def finish_rerun(folder: Path) -> None:
    """Notes that the rerun has reached its end, so that the next one starts over."""
    if is_rerun(folder):
        _mark_rerun(folder, is_finished=True)


def _mark_rerun(folder: Path, *, is_finished: bool) -> None:
    with written_whole(folder / _RERUN_MARK) as path:
        path.write_text(json.dumps({"is_finished": is_finished}))


def claimed_folders(folder: Path) -> Path | None:
    """The folder that `ReasoningFolders` uses for this output; None before its first use."""
    try:
        name = (folder / _FOLDERS_MARK).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return folder.parent / name  # a name beside the journal, or an absolute path


def claim_folders(folder: Path, folders: Path) -> None:
    """Notes the folder that `ReasoningFolders` uses for this output.

    Args:
        folder: The journal.
        folders: Parent folder of the answers.
    """
    is_beside = folders.parent == folder.parent
    with written_whole(folder / _FOLDERS_MARK) as path:
        path.write_text(folders.name if is_beside else str(folders.resolve()), encoding="utf-8")


def clear_finish_marks(folder: Path) -> None:
    """Deletes the finish marks of earlier runs."""
    for path in folder.glob(f"rank*{_FINISH_SUFFIX}"):
        path.unlink()


def mark_finished(folder: Path, rank: int) -> None:
    """Marks a rank as finished: it has written all its lines."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank{rank}{_FINISH_SUFFIX}").touch()


def wait_until_finished(folder: Path, num_ranks: int) -> None:
    """Waits until all ranks are marked as finished, and logs which ranks are missing.

    Uses files, because a collective would time out if one rank needs much longer than the others.
    """
    next_message = time.monotonic() + _PATIENCE_S
    while missing := [
        rank for rank in range(num_ranks) if not (folder / f"rank{rank}{_FINISH_SUFFIX}").exists()
    ]:
        if time.monotonic() > next_message:
            log.warning("still waiting for the answers of rank %s", ", ".join(map(str, missing)))
            next_message += _PATIENCE_S
        time.sleep(_POLL_S)
