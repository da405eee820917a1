r"""Picture marks in texts: `<image>`, `<image1>`, `<image2>` ...; `\<image>` is ordinary text."""

import re

_MARK = re.compile(r"(?<!\\)((?:\\\\)*)<image(\d{0,9})>")
"""A mark. One backslash before it makes it a text; two are a line break of LaTeX."""
_ESCAPED = re.compile(r"(?<!\\)((?:\\\\)*)\\(<image\d{0,9}>)")


class MarkError(Exception):
    """A mark has no picture."""


def place_marks(text: str, num_pictures: int) -> list[str | int]:
    r"""Splits a text at its picture marks.

    `<imageN>` is replaced by the N-th picture. If there is only one picture, every number means
    this picture, since data sets often join all pictures of a problem into one. `<image>` is
    replaced by the next picture that has no numbered mark. A second mark for the same picture is
    removed, and pictures without a mark come before the text. Without pictures, marks are ordinary
    text. `\<image>` always gives the text `<image>`.

    Args:
        text: Text with or without marks.
        num_pictures: Number of pictures.

    Returns:
        Texts (stripped and without empty ones, as in training), and pictures as numbers from 0.
        Each picture occurs once.

    Raises:
        MarkError: If there are pictures, but fewer than marks.
    """
    if num_pictures == 0:
        return [literal] if (literal := _unescaped(text).strip()) else []
    start, *rest = _split(text)
    marks = [_index(number, num_pictures) for number in rest[::2]]
    unnamed = iter([index for index in range(num_pictures) if index not in marks])
    pieces: list[str | int] = [start]
    placed: set[int] = set()
    for mark, after in zip(marks, rest[1::2], strict=True):
        index = next(unnamed, None) if mark is None else mark
        if index is None:
            raise MarkError(f"more <image> marks than pictures ({num_pictures})")
        pieces += [after] if index in placed else [index, after]
        placed.add(index)
    first = [index for index in range(num_pictures) if index not in placed]
    return [*first, *_joined(pieces)]


def without_marks(text: str) -> str:
    """The stripped text without its marks."""
    return "".join(_split(text)[::2]).strip()


def has_marks(text: str) -> bool:
    """Whether the text has picture marks."""
    return _MARK.search(text) is not None


def escape_marks(text: str) -> str:
    """The text with its marks escaped, so that `place_marks` keeps them as text."""
    return _MARK.sub(r"\1\\<image\2>", text)


def _split(text: str) -> list[str]:
    """Text, number, text, number, text ...: the texts around the marks, and their numbers."""
    pieces, end = [], 0
    for mark in _MARK.finditer(text):
        pieces += [_unescaped(text[end : mark.start()] + mark[1]), mark[2]]
        end = mark.end()
    return [*pieces, _unescaped(text[end:])]


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(r"\1\2", text)


def _index(number: str, num_pictures: int) -> int | None:
    """Index of the picture that a mark names; None for a mark without number."""
    if not number:
        return None
    index = 0 if num_pictures == 1 else int(number) - 1
    if not 0 <= index < num_pictures:
        raise MarkError(f"<image{number}> has no picture, there are {num_pictures}")
    return index


def _joined(pieces: list[str | int]) -> list[str | int]:
    """Joins neighbouring texts and strips them."""
    joined: list[str | int] = [""]
    for piece in pieces:
        last = joined[-1]
        if isinstance(piece, str) and isinstance(last, str):
            joined[-1] = last + piece
        else:
            joined.append(piece)
    stripped = (piece.strip() if isinstance(piece, str) else piece for piece in joined)
    return [piece for piece in stripped if piece != ""]
