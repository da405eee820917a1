"""Folder of one answer with its drawings, in the format of the public benchmark."""

import shutil
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX
from mathcanvas_lightning.data.images.decode import ImageLimits, check_image
from mathcanvas_lightning.generation.requests import GenerationRequest, Part
from mathcanvas_lightning.records.files import json_text
from mathcanvas_lightning.records.pictures import Picture

RESULT_FILE = "reasoning_result.json"
"""File with the texts and drawings of an answer, in order."""
MAX_NAME = 120
"""Maximum length of a folder name; file systems allow 255 bytes."""


def safe_name(text: str) -> str:
    """A unique file name for any text; it never leads out of its folder.

    Args:
        text: Any text, such as a record's index.

    Returns:
        Letters, digits and `_.-~`; other bytes as %XX. Long names are cut and end with a hash.
    """
    name = quote(text, safe="", errors="surrogatepass")
    if set(name) <= {"."}:
        name = name.replace(".", "%2E")
    if len(name) > MAX_NAME:
        digest = blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
        name = f"{name[: MAX_NAME - len(digest) - 1]}-{digest}"
    return name


def folder_name(index: str, number: int) -> str:
    """Name of the folder of an answer.

    Args:
        index: Index of the record.
        number: Number of the answer to this record, from 1.

    Returns:
        `safe_name`, followed by "+" and the number from the second answer on. A safe name never
        contains "+", so names are unique.
    """
    return safe_name(index) + (f"+{number}" if number > 1 else "")


def write_folder(
    target: Path, index: str, steps: Sequence[Part], request: GenerationRequest
) -> None:
    """Writes the folder of one answer; replaces an earlier folder of the same name.

    Args:
        target: Path of the folder.
        index: Index of the record.
        steps: Texts and drawings of the answer.
        request: The request, with the record and its pictures.
    """
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "images").mkdir(parents=True)
    drawings = [step for step in steps if isinstance(step, Picture)]
    for number, drawing in enumerate(drawings, start=1):
        (temporary / _image_path(number)).write_bytes(drawing.data)
    _write_json(temporary / RESULT_FILE, reasoning_result(index, steps))
    _write_json(temporary / "ori.json", request.record)
    _write_originals(temporary / "ori_images", request)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def reasoning_result(index: str, steps: Sequence[Part]) -> dict[str, Any]:
    """Content of `reasoning_result.json` for an answer.

    Args:
        index: Index of the record.
        steps: Texts and drawings. A drawing belongs to the iteration of the text before it. An
            empty text counts as an iteration, but is not listed.

    Returns:
        A JSON object; drawings are relative paths.
    """
    entries: list[dict[str, Any]] = []
    iteration = num_images = 0
    for step in steps:
        if isinstance(step, str):
            iteration += 1
            if step:
                entries.append({"type": "text", "content": step, "iteration": iteration})
        else:
            num_images += 1
            entries.append(
                {
                    "type": "image",
                    "content": _image_path(num_images),
                    "iteration": max(iteration, 1),
                }
            )
    return {
        "id": index,
        "reasoning_steps": entries,
        "summary": {
            "total_steps": len(entries),
            "text_steps": len(entries) - num_images,
            "image_steps": num_images,
        },
    }


def _image_path(number: int) -> str:
    return f"images/reasoning_image_{number}.png"


def _write_originals(folder: Path, request: GenerationRequest) -> None:
    folder.mkdir()
    question = request.messages[-1]  # earlier messages may be examples with pictures
    pictures = [part for part in question.parts if isinstance(part, Picture)]
    for number, picture in enumerate(pictures, start=1):
        kind = check_image(picture.data, ImageLimits(), depth="header").format.lower()
        (folder / f"ori_image_{number}.{kind}").write_bytes(picture.data)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json_text(_without_bytes(value), indent=2) + "\n", encoding="utf-8")


def _without_bytes(value: Any) -> Any:
    """The value with sizes instead of bytes; pictures are in separate files."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, Mapping):
        return {name: _without_bytes(item) for name, item in value.items()}
    return [_without_bytes(item) for item in value] if isinstance(value, list | tuple) else value
