"""Checks of backend settings, and the form in which the journal stores them."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mathcanvas_lightning.errors import ConfigError

SECRET = re.compile(r"(?:^|[-_])(?:key|token|secret|password)$", re.IGNORECASE)
"""Names of settings whose values are secret."""
SECRET_WORD = re.compile(r"((?:\b|_)(?:key|token|secret|password)[= ]+)\S+", re.IGNORECASE)
"""Secrets in a command line: `--api-key abc`, `HF_TOKEN=abc`."""


def check_minimum(**settings: tuple[float | None, float]) -> None:
    """Checks that settings are not below their minimum.

    Args:
        settings: Name -> value and minimum; the value None is always allowed.

    Raises:
        ConfigError: At the first value below its minimum.
    """
    for name, (value, minimum) in settings.items():
        if value is not None and not value >= minimum:
            raise ConfigError(
                name, found=repr(value), wanted=f"{minimum} or more", remedy="Change it."
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
    kept = {name: value for name, value in options.items() if not SECRET.search(name)}
    values: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return values


def journal_command(command: Sequence[str]) -> str:
    """A command as one line of text, without secrets.

    Args:
        command: The program and its arguments.
    """
    return SECRET_WORD.sub(r"\1...", shlex.join(command))
