"""Lists, brackets, matrices and equations in an answer."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mathcanvas_lightning.evaluation.comparison.notation import partner

MAX_ITEMS = 20
_SEPARATOR = re.compile(r"[,;]|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|&")
_GROUPED = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)")
_NAME = re.compile(
    r"[一-鿿]{1,8}|m?[∠△]?[A-Za-zα-ωΑ-Ω](?:[A-Za-z'\s]{0,30}|[A-Za-z]*_\{?\w+(?:,\w)?\}?'*|\^\{-1\})(?:\([A-Za-zα-ω0-9,\s]{1,12}\))?"
    r"|\\(?:overline|vec|overrightarrow|bar|hat)\{?[A-Za-z]{1,3}\}?|∠\d+|\\(?:sin|cos|tan|cot)\s?\(?(?:∠?[A-Z]{1,3}|[α-ω])\)?|\\?(?:det|rank|tr|dim|deg)\s?\(?[A-Za-z]\)?|\|[A-Za-z]{1,2}\|"
)
_MATRIX = re.compile(r"([^⟦⟧=]*(?<!det))⟦([^⟦⟧]*)⟧")
_SCALED = re.compile(r"(-|[-+]?\d+(?:\.\d+)?|[-+]?\\frac\{[^{}]+\}\{[^{}]+\})[*\s]*([(⟨].*[)⟩])")
_TRANSPOSED = re.compile(r"(?<=[)\]⟧])\^\{(?:T|\\top|'|\\intercal|\\mathsf\{T\})\}$")
_CHAIN = re.compile(r"(?<![<>≤≥≠!])=(?!=)")


@dataclass(frozen=True, slots=True)
class Bracketed:
    """Items in brackets."""

    left: str
    right: str
    items: tuple[str, ...]

    @property
    def is_ordered(self) -> bool:
        """Whether the order of the items matters."""
        return self.left not in ("⦃", "")


@dataclass(frozen=True, slots=True)
class Statement:
    """A value with the name it is given: x = 5."""

    name: str
    values: tuple[str, ...]
    """The value; several for "value ≈ decimal", either of which may be meant."""


def split_top(text: str, separator: re.Pattern[str]) -> list[str]:
    """Splits a text at separators outside brackets.

    Args:
        text: A text in canonical form.
        separator: What to split at.

    Returns:
        The pieces, which may be empty.
    """
    pieces, start, position = [], 0, 0
    while position < len(text):
        if text[position] in "([{⦃⟨⟦":
            end = partner(text, position)
            position = end if end > 0 else position
        elif (found := separator.match(text, position)) and found[0]:
            pieces.append(text[start:position])
            start = position = found.end()
            continue
        position += 1
    return [*pieces, text[start:]]


def split_items(text: str, *, in_brackets: bool = False) -> list[str]:
    """Splits a list at commas, semicolons, "and" and "or" outside brackets.

    Args:
        text: A text in canonical form.
        in_brackets: Whether a comma without a space separates digits too: (100,200).

    Returns:
        The items, without empty ones; a single one if the text is no list.
    """
    if not in_brackets or re.search(r",\s|;", text):
        text = _GROUPED.sub(lambda number: number[0].replace(",", ""), text)
    return [item.strip() for item in split_top(text, _SEPARATOR) if item.strip()]


def readings(text: str) -> Iterator[list[str]]:
    """The items of a list, in each way that its commas can be read: 100,200 is one or two numbers.

    Args:
        text: A text in canonical form.

    Yields:
        The items with ± written out.
    """
    found = _written_out(split_items(text))
    yield [one for item in found for one in plus_minus(item)]
    if _GROUPED.search(text):
        loose = [item.strip() for item in split_top(text, _SEPARATOR) if item.strip()]
        if loose != found:
            yield [one for item in loose for one in plus_minus(item)]


def _written_out(items: list[str]) -> list[str]:
    """Writes out "1, 2, ..., 10"."""
    if "..." not in items or items.index("...") < 2 or items[-1] == "...":
        return items
    at = items.index("...")
    known = [*items[:at], *items[at + 1 :]]
    if not all(re.fullmatch(r"-?\d{1,4}", one) for one in known):
        return items
    first, second, last = int(items[at - 2]), int(items[at - 1]), int(items[at + 1])
    step = second - first
    if not step or (last - second) % step or not 0 < (last - second) // step <= MAX_ITEMS:
        return items
    middle = [str(value) for value in range(second + step, last, step)]
    return [*items[:at], *middle, *items[at + 1 :]]


def plus_minus(text: str) -> tuple[str, ...]:
    """Writes out ±: 1 ± 2 becomes 1 + 2 and 1 - 2.

    Args:
        text: A text in canonical form.
    """
    if "±" not in text and "∓" not in text:
        return (text,)
    upper = text.replace("±", "+").replace("∓", "-")
    lower = text.replace("±", "-").replace("∓", "+")
    return tuple(re.sub(r"(^|[=({,])\+", r"\1", one) for one in (upper, lower))


def bracketed(text: str) -> Bracketed | None:
    """Reads a tuple, an interval, a set, or a matrix with one row or column.

    Args:
        text: A text in canonical form.

    Returns:
        Its items; None if the first bracket's partner is not the last character, or there is
        nothing to separate.
    """
    if (plain := _TRANSPOSED.sub("", text)) != text:
        found = bracketed(plain)
        return None if found is None else Bracketed("⟦", "⟧", found.items)
    if matrix := rows_of(text):
        if len(matrix) == 1 or all(len(row) == 1 for row in matrix):
            cells = tuple(cell for row in matrix for cell in row)
            return Bracketed("⟦", "⟧", cells) if len(cells) > 1 else None
        return None
    if (scaled := _SCALED.fullmatch(text)) and (found := bracketed(scaled[2])):
        scale = f"{scaled[1]}1" if scaled[1] == "-" else scaled[1]
        return Bracketed(
            found.left, found.right, tuple(f"({scale})*({item})" for item in found.items)
        )
    if text[:1] in ("(", "[", "⦃", "⟨") and partner(text, 0) == len(text) - 1:
        inner, left, right = text[1:-1], text[0].replace("⟨", "("), text[-1].replace("⟩", ")")
    else:
        return None
    items = split_items(inner, in_brackets=True)
    if len(items) < 2 and left != "⦃":
        return None
    return Bracketed(left, right, tuple(one for item in items for one in plus_minus(item)))


def rows_of(text: str) -> list[list[str]]:
    """The rows of a matrix; empty if the text is not a matrix.

    Args:
        text: A text in canonical form, such as ⟦1&2;3&4⟧ or [[1,2],[3,4]].
    """
    if (plain := _TRANSPOSED.sub("", text)) != text:
        return [list(column) for column in zip(*rows_of(plain), strict=True)]
    if diagonal := re.fullmatch(r"\\?diag\((.*)\)", text):
        entries = split_items(diagonal[1], in_brackets=True)
        return [[one if at == row else "0" for at in range(len(entries))]
                for row, one in enumerate(entries)]  # fmt: skip
    if scaled := _MATRIX.fullmatch(text):
        cells = [row.split("&") for row in scaled[2].split(";")]
        scale = scaled[1].rstrip("* ")
        scale = "-1" if scale == "-" else scale
        return [[f"({scale})*({cell})" if scale else cell for cell in row] for row in cells]
    if not (text[:2] in ("[[", "((") and partner(text, 0) == len(text) - 1):
        return _plain_rows(text)
    rows = [row.strip() for row in split_top(text[1:-1], re.compile(r"[,;]"))]
    if not all(row[:1] in ("[", "(") and partner(row, 0) == len(row) - 1 for row in rows):
        return []
    found = [split_items(row[1:-1], in_brackets=True) for row in rows]
    return found if len({len(row) for row in found}) == 1 and text[0] == "[" else []


def _plain_rows(text: str) -> list[list[str]]:
    """The rows of "[1, 2; 3, 4]"."""
    if text[:1] != "[" or ";" not in text or partner(text, 0) != len(text) - 1:
        return []
    rows = [re.split(r"\s*,\s*|\s+", row.strip()) for row in text[1:-1].split(";")]
    is_matrix = len(rows[0]) > 1 and len({len(row) for row in rows}) == 1
    return rows if is_matrix else []


def statement(text: str) -> Statement:
    """Splits "x = 2 + 3 = 5" into name and value; equations have no name.

    Args:
        text: A text in canonical form.

    Returns:
        The name, empty without one, and the value.
    """
    sides = [one.strip() for one in split_top(text, re.compile("≈"))]
    first, values = sides[0], [one for one in sides[1:] if one]
    chain = [one.strip() for one in split_top(first, _CHAIN)]
    name = ""
    if len(chain) > 1 and is_name(chain[0]):
        name = chain[0]
        first = chain[-1]
    elif len(chain) > 1 and not any(
        re.search("[A-Za-zα-ω]", _without_functions(one)) for one in chain
    ):
        first = chain[-1]
    elif len(sides) > 1 and is_name(first) and len(chain) == 1:
        name, first = first, ""
    return Statement(_plain_name(name), tuple(one for one in (first, *values) if one))


def item_names(items: Sequence[str]) -> list[str]:
    """The name of each item; empty without one."""
    return [statement(item).name for item in items]


def named_values(items: Sequence[str]) -> list[str]:
    """The values of items, in the order of their names: y = 4, x = 3 is (3, 4).

    Args:
        items: Items in canonical form.
    """
    found = [statement(item) for item in items]
    if all(one.name for one in found) and len({one.name for one in found}) == len(found):
        found.sort(key=lambda one: one.name)
    return [one.values[0] if one.values else "" for one in found]


def is_name(text: str) -> bool:
    """Whether a text may be the name of a value: x, x_1, AB, f(x), the area."""
    return _NAME.fullmatch(text) is not None


def equation(text: str) -> tuple[str, str] | None:
    """The two sides of an equation; None unless there are exactly two."""
    sides = [one.strip() for one in split_top(text, _CHAIN)]
    return (sides[0], sides[1]) if len(sides) == 2 and all(sides) else None


def names_of(text: str) -> Sequence[str]:
    """The names in "(x, y) = (1, 2)"; empty if the text is no tuple of names."""
    found = bracketed(text)
    return found.items if found and all(map(is_name, found.items)) else ()


def _plain_name(name: str) -> str:
    return re.sub(r"[{}\s]|^m(?=∠)", "", name)


def _without_functions(text: str) -> str:
    return re.sub(r"\\[A-Za-z]+", "", text).replace("π", "")
