"""Stores drawings in the folder of a journal, for runs that write no folders of answers."""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.generation.requests import Output, Part
from mathcanvas_lightning.records.pictures import Picture

DRAWINGS = "drawings"
"""Subfolder of a journal."""


def store_drawings(folder: Path, outputs: Iterable[Output]) -> list[list[dict[str, str]]] | None:
    """Writes the drawings of answers to files.

    Args:
        folder: The journal.
        outputs: Answers of a request.

    Returns:
        The steps of each answer in order, as `{"text": ...}` or `{"drawing": path}` with the path
        below the journal; None if there are no drawings.
    """
    steps = [output.steps for output in outputs]
    if not any(isinstance(part, Picture) for parts in steps for part in parts):
        return None
    return [[_stored(folder, part) for part in parts] for parts in steps]


def stored_steps(folder: Path, line: Mapping[str, Any]) -> list[list[Part]]:
    """Reads the steps of answers back.

    Args:
        folder: The journal.
        line: A line of it.

    Returns:
        Texts and drawings of each answer; empty if the line has none, or a drawing is missing.
    """
    steps = line.get("steps") or []
    paths = [folder / part["drawing"] for parts in steps for part in parts if "drawing" in part]
    if not all(path.is_file() for path in paths):
        return []
    return [[_part(folder, part) for part in parts] for parts in steps]


def _part(folder: Path, part: Mapping[str, str]) -> Part:
    if "text" in part:
        return part["text"]
    return Picture((folder / part["drawing"]).read_bytes())


def _stored(folder: Path, part: Part) -> dict[str, str]:
    if isinstance(part, str):
        return {"text": part}
    name = f"{DRAWINGS}/{blake2b(part.data, digest_size=16).hexdigest()}.png"
    if not (folder / name).exists():
        with written_whole(folder / name) as path:
            path.write_bytes(part.data)
    return {"drawing": name}
