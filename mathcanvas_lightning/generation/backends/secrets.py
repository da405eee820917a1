"""Keeps API keys, tokens and headers out of journals, logs and errors."""

import json
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

HIDDEN = "..."
MIN_CHARACTERS = 4
"""Shorter values are not searched in texts, since they occur everywhere."""
_NAME = re.compile(
    r"(?:^|[-_.\s])(?:\w*api[-_]?keys?|keys?|token|secret|pass(?:word|wd|phrase)|credentials?"
    r"|auth|authorization|bearer|cookies?|headers?)$",
    re.IGNORECASE,
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_ASSIGNMENT = re.compile(r"([\w.-]+)([=:]).+", re.DOTALL)
_LOOKS_SECRET = re.compile(
    r"\bBearer\s+[\w.~+/=-]{8,}"
    r"|\b(?:sk|pk|rk|hf|gsk|xai|ghp|glpat|nvapi)[-_](?=[\w-]*\d)[\w-]{16,}|\bAIza[\w-]{20,}"
)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")  # a password may contain @


def is_secret(name: str) -> bool:
    """Whether the value of a setting with this name must not be shown."""
    return _NAME.search(_CAMEL.sub("_", name)) is not None


def without_secrets(value: Any) -> Any:
    """JSON values without secret settings, at any depth.

    Args:
        value: A JSON value.

    Returns:
        The value without the entries whose names are secret; secrets in texts are hidden.
    """
    if isinstance(value, Mapping):
        kept = {name: item for name, item in value.items() if not is_secret(str(name))}
        return {name: without_secrets(item) for name, item in kept.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return hide_secrets(value) if isinstance(value, str) else value


def hide_secrets(text: str, values: Collection[str] = ()) -> str:
    """Replaces secrets in a text, such as the log of a server.

    Args:
        text: Any text.
        values: Known secrets. What looks like a key, a bearer token or the credentials of a URL is
            hidden too.
    """
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= MIN_CHARACTERS:
            text = text.replace(value, HIDDEN)
    return _CREDENTIALS.sub("", _LOOKS_SECRET.sub(HIDDEN, text))


def shown_command(command: Sequence[str]) -> str:
    """A command as one line of text, without secrets.

    Args:
        command: The program and its arguments.
    """
    found: list[str] = []
    words = _masked(command, found)
    return hide_secrets(" ".join(words), found)


def secrets_of(command: Sequence[str], environment: Mapping[str, str]) -> frozenset[str]:
    """The secrets of a command, to hide them in what the command writes.

    Args:
        command: The program and its arguments.
        environment: Environment variables that were set for it.
    """
    found = [value for name, value in environment.items() if is_secret(name)]
    _masked(command, found)
    return frozenset(found)


def _masked(command: Sequence[str], found: list[str]) -> list[str]:
    """Quoted words with secrets replaced; appends the secrets to `found`."""
    words: list[str] = []
    is_value = False  # of a secret option; it may have several
    for word in command:
        is_value = is_value and not word.startswith("--")
        assignment = _ASSIGNMENT.fullmatch(word)
        if is_value:
            found += [word, *word.split()[-1:]]  # "Authorization: Bearer KEY": KEY too
            words.append(HIDDEN)
        elif assignment is not None and is_secret(assignment[1]):
            found.append(word[assignment.end(2) :].strip())
            words.append(f"{assignment[1]}{assignment[2]}{HIDDEN}")
        elif word.startswith("-"):
            is_value = word == "-H" or is_secret(word)
            words.append(shlex.quote(hide_secrets(word)))
        else:
            words.append(shlex.quote(_masked_word(word, found)))
    return words


def _masked_word(word: str, found: list[str]) -> str:
    """A JSON object, a command in one word, or any other text, without secrets."""
    if word.startswith(("{", "[")):
        try:
            value = json.loads(word)
        except (ValueError, RecursionError):
            return hide_secrets(word)
        found += _secret_texts(value)
        return json.dumps(without_secrets(value))
    try:
        inner = shlex.split(word) if " " in word else []
    except ValueError:  # quotes that are not closed
        inner = []
    masked = _masked(inner, found)
    is_changed = masked != list(map(shlex.quote, inner))
    return " ".join(masked) if is_changed else hide_secrets(word)


def _secret_texts(value: Any, *, is_named: bool = False) -> Iterator[str]:
    if isinstance(value, str) and is_named:
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _secret_texts(item, is_named=is_named or is_secret(str(name)))
    elif isinstance(value, list):
        for item in value:
            yield from _secret_texts(item, is_named=is_named)
