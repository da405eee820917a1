"""What the options of a conversion mean."""

import os
import re

from mathcanvas_lightning.common.paths import is_remote, local_path, parent_folder, without_query
from mathcanvas_lightning.conversion.sources import BLOCKMOVING_PROMPT, BlockMoving, SourceFormat
from mathcanvas_lightning.errors import ConfigError

MAX_PATH_CHARACTERS = 4096


def make_source(format_class: type[SourceFormat], question_prompt: str) -> SourceFormat:
    """An instance of a format, with the prompt if it takes one.

    Raises:
        ConfigError: If a prompt is given for a format that takes none, or names no file.
    """
    if issubclass(format_class, BlockMoving):
        return format_class(prompt=_read_prompt(question_prompt))
    if question_prompt != "builtin":
        raise ConfigError(
            "--question_prompt",
            found=f"a prompt for the source {format_class.name}",
            wanted="one for blockmoving",
            remedy="Leave it out; put the text into the questions themselves.",
        )
    return format_class()


def _read_prompt(value: str) -> str | None:
    if value in ("builtin", "none"):
        return BLOCKMOVING_PROMPT if value == "builtin" else None
    path = local_path(value)
    if len(value) < MAX_PATH_CHARACTERS and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    if path.suffix in (".txt", ".md") and not re.search(r"\s", value):
        raise ConfigError(
            "--question_prompt",
            found=f"{value!r}, which looks like a file, but there is none",
            wanted="a text, a file, builtin or none",
            remedy="Check the path.",
        )
    return value


def check_image_dir(image_dir: str | None) -> str | None:
    """The same folder.

    Raises:
        ConfigError: If it is local and not there.
    """
    if image_dir is not None and not is_remote(image_dir) and not local_path(image_dir).is_dir():
        raise ConfigError(
            "--image_dir",
            found=f"{image_dir!r}, which is no folder",
            wanted="the folder that image paths are relative to",
            remedy="Check the path, or leave it out for the input's own folder.",
        )
    return image_dir


def folder_of(source: str) -> str:
    """The folder or URL that holds an input."""
    if is_remote(source):
        return parent_folder(source)
    return str(local_path(source).resolve().parent)


def relative_image_dir(image_dir: str | None, source: str) -> str:
    """The image folder as seen from the input: the same wherever the data lies."""
    if image_dir is None:
        return "."
    if is_remote(image_dir) or is_remote(source):
        return without_query(image_dir)
    return os.path.relpath(local_path(image_dir).resolve(), folder_of(source))
