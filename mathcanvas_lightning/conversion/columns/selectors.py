"""Selectors: which values of a record a name means, such as `image_*`, `a | b`, `list[1:]`."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mathcanvas_lightning.common.keys import nearest
from mathcanvas_lightning.conversion.rejection import Reason, RejectError
from mathcanvas_lightning.conversion.sources.base import is_nan
from mathcanvas_lightning.errors import ConfigError

_ITEMS = re.compile(r"(.*?)\[(-?\d+)?(:)?(-?\d+)?\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column, or several by a pattern."""

    name: str
    """Name, path with dots, or pattern with stars."""
    items: int | slice | None = None
    """Which items of a list; None for the whole value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Columns of which the first with a value counts."""

    text: str
    """The selector as it was written."""
    columns: tuple[Column, ...]
    is_optional: bool
    """Whether all of them may be absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A value of a record."""

    column: str
    """Name of its column."""
    value: Any
    """Never null."""


@lru_cache(maxsize=1024)
def parse_selector(text: str) -> Selector:
    """Parses a selector, see `ColumnsConfig`.

    Raises:
        ConfigError: If it names no column.
    """
    pieces = [piece.strip() for piece in text.split("|")]
    is_optional = any(piece.endswith("?") for piece in pieces) or "*" in text
    columns = tuple(_column(piece.removesuffix("?").strip(), text) for piece in pieces)
    return Selector(text=text, columns=columns, is_optional=is_optional)


def select(record: Mapping[str, Any], text: str) -> list[Found]:
    """The values that a selector means; null, NaN and empty texts are left out.

    Raises:
        RejectError: If no column of a selector that needs one is in the record.
    """
    if text in record:  # the name itself, whatever its characters
        return [] if _is_none(record[text]) else [Found(column=text, value=record[text])]
    selector = parse_selector(text)
    is_present = False
    for column in selector.columns:
        names = list(_names(record, column))
        is_present |= bool(names)
        found = [Found(column=n, value=v) for n in names if not _is_none(v := _get(record, n))]
        if column.items is not None:
            found = [_picked(one, column.items) for one in found]
        if found := [one for one in found if not _is_none(one.value)]:
            return found
    if is_present or selector.is_optional:
        return []
    near = nearest(selector.columns[0].name, record)
    hint = f"; did you mean {near!r}?" if near else f"; there are {', '.join(record)}"
    raise RejectError(Reason.MISSING_FIELD, f"column {text!r} is absent{hint}")


def used_columns(record: Mapping[str, Any], text: str) -> Iterator[str]:
    """The columns of a record that a selector names, whether they have values or not."""
    if text in record:
        yield text
        return
    for column in parse_selector(text).columns:
        for name in _names(record, column):
            yield name if name in record else name.split(".")[0]


def _column(text: str, selector: str) -> Column:
    items: int | slice | None = None
    if found := _ITEMS.fullmatch(text):
        text, start, colon, stop = found.groups()
        first, last = (None if one is None else int(one) for one in (start, stop))
        items = slice(first, last) if colon else first
    if not text or (items is None and found):
        raise ConfigError(
            f"columns: {selector!r}",
            found="an empty name",
            wanted="the name of a column, such as question, image_* or images[0]",
            remedy="Correct it.",
        )
    return Column(name=text, items=items)


def _names(record: Mapping[str, Any], column: Column) -> Iterator[str]:
    if column.name in record:
        yield column.name
    elif "*" in column.name:
        pattern = re.compile(re.escape(column.name).replace(r"\*", "(.+)"))
        names = [name for name in record if pattern.fullmatch(name)]
        yield from sorted(names, key=_by_number)
    elif "." in column.name and _get(record, column.name) is not None:
        yield column.name


def _by_number(name: str) -> tuple[int, str]:
    return number_of(name) or 0, name


def number_of(name: str) -> int | None:
    """The number at the end of a column's name; None without one."""
    found = re.search(r"(\d+)$", name)
    return int(found[1]) if found else None


def _get(record: Mapping[str, Any], name: str) -> Any:
    if name in record:
        return record[name]
    value: Any = record
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _picked(found: Found, items: int | slice) -> Found:
    value = found.value
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parsed_json(value)
    if not isinstance(value, list | tuple):
        message = f"column {found.column!r} is {value!r:.80}, not a list"
        raise RejectError(Reason.INVALID_FIELD, message)
    if isinstance(items, slice):
        return Found(column=found.column, value=list(value[items]) or None)
    is_inside = -len(value) <= items < len(value)
    return Found(column=found.column, value=value[items] if is_inside else None)


def parsed_json(text: str) -> Any:
    """The JSON value of a text; the text itself if it is something else."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_none(value: Any) -> bool:
    is_blank = isinstance(value, str) and not value.strip()
    return value is None or is_nan(value) or is_blank
