"""Compares where answers come from: model, settings and sampling of two runs."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mathcanvas_lightning.errors import OutputError
from mathcanvas_lightning.generation.run.journal.lines import Entry

FINGERPRINTS = frozenset({"weights", "lora_weights", "base_url"})
"""Settings that older journals lack; a missing one agrees with any value."""


def differences(before: str, now: str) -> dict[str, tuple[Any, Any]]:
    """Compares two origins; a part that is unknown in one of them agrees with any value.

    Args:
        before: Origin of an earlier answer.
        now: Origin of this run.

    Returns:
        Dotted name -> value before and now, for each value that differs.
    """
    old, new = json.loads(before), json.loads(now)
    parts = [name for name in new if old[name] not in (None, "") and new[name] not in (None, "")]
    old_values = dict(_leaves({name: old[name] for name in parts}))
    new_values = dict(_leaves({name: new[name] for name in parts}))
    found = {}
    for name in {**old_values, **new_values}:
        pair = old_values.get(name), new_values.get(name)
        is_optional = name.rpartition(".")[2] in FINGERPRINTS
        if pair[0] != pair[1] and not (is_optional and None in pair):
            found[name] = pair
    return found


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, item in value.items():
        yield from _leaves(item, f"{name}.{key}" if name else key)


def has_same_origin(entries: Iterable[Entry], now: str) -> bool:
    """Whether all entries agree with an origin, as in `differences`."""
    return _first_other(entries, now) is None


def require_same_origin(entries: Iterable[Entry], now: str) -> None:
    """Compares the origins of earlier answers with that of this run.

    Args:
        entries: Earlier answers.
        now: Origin of this run.

    Raises:
        OutputError: If one of them differs; names the values.
    """
    other = _first_other(entries, now)
    if other is None:
        return
    path, before = other
    changed = differences(before, now)
    model = json.loads(before)["model"]
    of_model = f" of model {json.dumps(model)}" if model and "model" not in changed else ""
    listed = ", ".join(
        f"{name} {json.dumps(old)} -> {json.dumps(new)}" for name, (old, new) in changed.items()
    )
    raise OutputError(
        str(path.parent),
        found=f"answers{of_model} with {listed}",
        wanted="answers with the present settings",
        remedy="Set rerun: true to answer all records again, or choose another output. (weights is "
        "a hash of the model's files; a different one means that they have changed.)"
        if any(name.endswith("weights") for name in changed)
        else "Set rerun: true to answer all records again, or choose another output.",
    )


def _first_other(entries: Iterable[Entry], now: str) -> tuple[Path, str] | None:
    seen = {now}
    for entry in entries:
        if entry.origin not in seen:
            seen.add(entry.origin)
            if differences(entry.origin, now):
                return entry.path, entry.origin
    return None
