"""The files of a report: what it reads by default, and where it is written."""

from dataclasses import dataclass
from glob import escape
from pathlib import Path

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.evaluation.report.selection import Selection
from mathcanvas_lightning.evaluation.score_files import find_scores, scores_path
from mathcanvas_lightning.generation.run.journal.folder import claimed_folders, journal_folder
from mathcanvas_lightning.records.files import FORMATS, read_records


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFiles:
    """Paths that a report reads and writes."""

    input: Path
    """File of answered records."""
    output: Path
    """HTML file to write."""
    folders: Path | None
    """Folder that `ReasoningFolders` wrote, if there is one."""
    scores: Path | None
    """File that `score_responses` wrote, if there is one."""


def find_files(
    path: Path, output: str | None, folders: str | None, scores: str | None, selection: Selection
) -> ReportFiles:
    """Completes the paths of a report by the defaults beside the input.

    Args:
        path: File of answered records.
        output: HTML file to write.
        folders: Folder that `ReasoningFolders` wrote.
        scores: File that `score_responses` wrote.
        selection: Records to show; selecting by verdict needs scores.

    Returns:
        The paths; None for folders and scores that are absent and were not given.

    Raises:
        InputError: If the input or the given folder does not exist.
        ConfigError: If scores are needed and absent, or the output is also an input.
    """
    read_records(path)  # raises if there is no such file
    score_path = _scores_path(path, scores, selection)
    return ReportFiles(
        input=path,
        output=_output_path(path, output, score_path),
        folders=_folders_path(path, folders),
        scores=score_path,
    )


def _page_path(path: Path) -> Path:
    """x.html for x.jsonl; x.jsonl.html if another file of records, such as x.json, is beside it."""
    if path.is_dir():
        return path.with_name(f"{path.name}.html")
    others = (one for one in path.parent.glob(f"{escape(path.stem)}.*") if one != path)
    is_shared = any(one.suffix.lower() in FORMATS and one.stem == path.stem for one in others)
    return path.with_name(f"{path.name if is_shared else path.stem}.html")


def _scores_path(path: Path, scores: str | None, selection: Selection) -> Path | None:
    if scores is not None:
        return local_path(scores)
    if (default := find_scores(path)) is not None:
        return default
    if selection.only in ("right", "wrong"):
        raise ConfigError(
            f"--only {selection.only}",
            found=f"no {scores_path(path)}",
            wanted="verdicts",
            remedy="Run mathcanvas score first, or name its file with --scores.",
        )
    return None


def _output_path(path: Path, output: str | None, score_path: Path | None) -> Path:
    target = _page_path(path) if output is None else local_path(output)
    if target.resolve() in {one.resolve() for one in (path, score_path) if one is not None}:
        raise ConfigError(
            "--output",
            found=f"{target}, which is an input",
            wanted="another file",
            remedy="Name another.",
        )
    return target


def _folders_path(path: Path, folders: str | None) -> Path | None:
    if folders is None:
        default = claimed_folders(journal_folder(path)) or path.with_suffix("")
        return default if default.is_dir() and default != path else None
    if not local_path(folders).is_dir():
        raise InputError(
            f"--folders {folders}",
            found="no such folder",
            wanted="a folder that ReasoningFolders wrote",
            remedy="Check the path, or leave it out.",
        )
    return local_path(folders)
