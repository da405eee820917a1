"""Picture marks in texts: `<image>`, `<image1>`, `<image2>` ..."""

import re

_MARK = re.compile(r"<image(\d{0,9})>")


class MarkError(Exception):
    """A mark has no picture."""


def place_marks(text: str, num_pictures: int) -> list[str | int]:
    """Splits a text at its picture marks.

    `<imageN>` is replaced by the N-th picture. If there is only one picture, every number means
    this picture, since data sets often join all pictures of a problem into one. `<image>` is
    replaced by the next picture that has no numbered mark. A second mark for the same picture is
    removed, and pictures without a mark come before the text.

    Args:
        text: Text with or without marks.
        num_pictures: Number of pictures.

    Returns:
        Texts (stripped and without empty ones, as in training), and pictures as numbers from 0.
        Each picture occurs once.

    Raises:
        MarkError: If there are more marks than pictures.
    """
    start, *marked = _MARK.split(text)  # text, number, text, number, text ...
    marks = [_index(number, num_pictures) for number in marked[::2]]
    unnamed = iter([index for index in range(num_pictures) if index not in marks])
    pieces: list[str | int] = [start]
    placed: set[int] = set()
    for mark, after in zip(marks, marked[1::2], strict=True):
        index = next(unnamed, None) if mark is None else mark
        if index is None:
            raise MarkError(f"more <image> marks than pictures ({num_pictures})")
        pieces += [after] if index in placed else [index, after]
        placed.add(index)
    first = [index for index in range(num_pictures) if index not in placed]
    return [*first, *_joined(pieces)]


def without_marks(text: str) -> str:
    """The stripped text without its marks."""
    return _MARK.sub("", text).strip()


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
