"""Settings of backends: their ranges, and what of them the journal keeps."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mathcanvas_lightning.errors import ConfigError

SECRET = re.compile(r"(?:^|[-_])(?:key|token|secret|password)$", re.IGNORECASE)
"""Names of settings that nobody else should read."""
SECRET_WORD = re.compile(r"((?:\b|_)(?:key|token|secret|password)[= ]+)\S+", re.IGNORECASE)
"""The same in a command: `--api-key abc`, `HF_TOKEN=abc`."""


def check_least(**settings: tuple[float | None, float]) -> None:
    """Compares settings with the least that they may be.

    Args:
        settings: Name -> value and minimum; None always fits.

    Raises:
        ConfigError: At the first that is below.
    """
    for name, (value, least) in settings.items():
        if value is not None and not value >= least:
            raise ConfigError(
                name, found=repr(value), wanted=f"{least} or more", remedy="Change it."
            )


def resolved_path(path: str) -> str:
    """The absolute path of what is on this machine; anything else, such as a hub's name, as it is.

    Args:
        path: Of a model or an adapter.
    """
    found = Path(path).expanduser()
    return str(found.resolve()) if found.exists() else path


def journal_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON values, without secrets.

    Args:
        options: By name. Values that JSON doesn't know are told by their text.
    """
    kept = {name: value for name, value in options.items() if not SECRET.search(name)}
    values: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return values


def journal_command(command: Sequence[str]) -> str:
    """A command as one text, without secrets.

    Args:
        command: The program and its arguments.
    """
    return SECRET_WORD.sub(r"\1...", shlex.join(command))
