"""Where the pictures of a text stand: at the marks `<image>`, `<image1>`, `<image2>` ..."""

import re

_MARK = re.compile(r"<image(\d{0,9})>")


class MarkError(Exception):
    """A mark that stands for no picture; its text says which."""


def place_marks(text: str, num_pictures: int) -> list[str | int]:
    """Puts pictures where a text marks them.

    `<imageN>` stands for the N-th picture; where there is but one, for that one whatever N is,
    since data sets often join all pictures of a problem. `<image>` stands for the next picture
    that no number names. A second mark of a picture is dropped, and pictures without a mark come
    before the text.

    Args:
        text: With marks or without.
        num_pictures: How many there are.

    Returns:
        Texts, as they are in training: stripped, without empty ones; and pictures as their
        numbers from 0. Each picture occurs once.

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
    """The text alone, stripped."""
    return _MARK.sub("", text).strip()


def _index(number: str, num_pictures: int) -> int | None:
    """The picture that a mark names, None if it names none."""
    if not number:
        return None
    index = 0 if num_pictures == 1 else int(number) - 1
    if not 0 <= index < num_pictures:
        raise MarkError(f"<image{number}> stands for none of {num_pictures} pictures")
    return index


def _joined(pieces: list[str | int]) -> list[str | int]:
    """Puts texts together that no picture divides, and strips them."""
    joined: list[str | int] = [""]
    for piece in pieces:
        last = joined[-1]
        if isinstance(piece, str) and isinstance(last, str):
            joined[-1] = last + piece
        else:
            joined.append(piece)
    stripped = (piece.strip() if isinstance(piece, str) else piece for piece in joined)
    return [piece for piece in stripped if piece != ""]
