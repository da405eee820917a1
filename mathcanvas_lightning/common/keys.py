"""Keys of settings: dotted ones of nested settings, and the one that a misspelt one may mean."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any


def flatten(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted keys and the values of nested settings, in order.

    Args:
        settings: Nested mappings.
        prefix: What each key begins with, such as "model.".
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merges nested settings; those of `changes` win."""
    both = {
        key: merged(base[key], value)
        if isinstance(base.get(key), Mapping) and isinstance(value, Mapping)
        else value
        for key, value in changes.items()
    }
    return {**base, **both}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The most similar known name; None if none is similar."""
    lower = {one.lower(): one for one in known}
    cutoff = 0.5 if len(name) < 6 else 0.6  # one exchange of letters makes short names differ more
    found = get_close_matches(name.lower(), lower, n=1, cutoff=cutoff)
    return lower[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Asks whether the most similar name was meant; lists the known names if none is similar."""
    known = list(known)
    near = nearest(name, known)
    return f"Did you mean {near}?" if near else f"Known: {', '.join(known)}."
