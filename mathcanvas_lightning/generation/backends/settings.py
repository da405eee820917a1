"""Checks of backend settings, and the form in which the journal stores them."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mathcanvas_lightning.errors import ConfigError

SECRET = re.compile(
    r"(?:^|[-_])(?:(?:api)?key|token|secret|password|passwd|authorization|credentials?|headers?)$",
    re.IGNORECASE,
)
"""Names of settings whose values are secret."""
SECRET_FLAG = re.compile(r"-{1,2}\w[-\w]*")
SECRET_WORD = re.compile(
    r"((?:\b|_)(?:key|token|secret|password|passwd)[= ]+)(?:'[^']*'|\"[^\"]*\"|\S+)"
    r"|(\bauthorization[:=] *)[^'\"]+",
    re.IGNORECASE,
)
"""Secrets inside an argument: `HF_TOKEN=abc`, `Authorization: Bearer abc`."""
HIDDEN = "..."


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
    values: dict[str, Any] = json.loads(json.dumps(_without_secrets(options), default=str))
    return values


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {name: item for name, item in value.items() if not SECRET.search(str(name))}
        return {name: _without_secrets(item) for name, item in kept.items()}
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value


def journal_command(command: Sequence[str]) -> str:
    """A command as one line of text, without secrets.

    Args:
        command: The program and its arguments.
    """
    shown: list[str] = []
    is_secret = False
    for argument in command:
        name, separator, _ = argument.partition("=")
        is_flag = SECRET_FLAG.fullmatch(name) is not None and SECRET.search(name) is not None
        if is_secret:
            shown.append(HIDDEN)
        elif is_flag and separator:
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(SECRET_WORD.sub(lambda match: f"{match[1] or match[2]}{HIDDEN}", argument))
        is_secret = not is_secret and is_flag and not separator
    return shlex.join(shown)
