"""Checks of backend settings, and the form in which the journal stores them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mathcanvas_lightning.errors import check_settings
from mathcanvas_lightning.generation.backends.secrets import shown_command, without_secrets


def check_minimum(**settings: tuple[float | None, float]) -> None:
    """Checks that settings are not below their minimum.

    Args:
        settings: Name -> value and minimum; the value None is always allowed.

    Raises:
        ConfigError: At the first value below its minimum.
    """
    check_settings(
        *(
            (name, value, value is None or value >= least, f"{least} or more")
            for name, (value, least) in settings.items()
        )
    )


def resolved_path(path: str) -> str:
    """The absolute path of a local file or folder; other names, such as hub names, unchanged.

    Args:
        path: Path or name of a model or an adapter.
    """
    found = Path(path).expanduser()
    return str(found.resolve()) if found.exists() else path


def journal_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON values, without secrets.

    Args:
        options: Name -> value; a value without a JSON form becomes text.
    """
    values: dict[str, Any] = without_secrets(json.loads(json.dumps(options, default=str)))
    return values


def journal_command(command: Sequence[str]) -> str:
    """A command as one line of text, without secrets.

    Args:
        command: The program and its arguments.
    """
    return shown_command(command)
