"""Question and solution of a record: its texts with their pictures at the marks."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from mathcanvas_lightning.conversion.columns.config import ColumnsConfig, Place
from mathcanvas_lightning.conversion.columns.marks import Mark, split_at_marks
from mathcanvas_lightning.conversion.columns.pictures import NamedPicture, to_picture
from mathcanvas_lightning.conversion.columns.selectors import parsed_json
from mathcanvas_lightning.conversion.rejection import Reason, RejectError
from mathcanvas_lightning.conversion.sources.base import Part, Picture

_Item = str | Mark | Picture | int
"""A text, a mark, a picture, or the position of a picture from 0."""
_IMAGE_TYPES = ("image", "image_url", "input_image")
_PARTS = re.compile(r'\s*\[\s*\{\s*"(type|text|content|index)"\s*:')
"""The start of a JSON text of content parts."""
_TEXT_TYPES = ("text", "input_text", "output_text")


@dataclass(slots=True, kw_only=True)
class Section:
    """Places the pictures of a question or of a solution into its texts."""

    config: ColumnsConfig
    own: Sequence[NamedPicture]
    """Pictures of this section."""
    shared: Sequence[NamedPicture]
    """Pictures of both sections."""
    placed: set[int] = field(default_factory=set)
    """Positions in `shared` of pictures that have their place."""
    shown: Sequence[NamedPicture] = ()
    """Pictures of the section before; a mark of one of them is removed."""
    root: str
    """The image folder."""
    place: Place
    """Where pictures without a mark stand."""
    used: set[int] = field(default_factory=set)
    """Positions in `own` of pictures that have their place."""

    def rows(self, texts: Sequence[Any]) -> list[list[Part]]:
        """The texts, each with the pictures at its marks.

        Args:
            texts: Texts, or lists of texts and content parts.

        Raises:
            RejectError: If a mark has no picture, or a content part can't be read.
        """
        items = [list(self._items(value)) for text in texts for value in _parts_or_text(text)]
        return [self._placed(row) for row in items]

    def parts(self, rows: list[list[Part]], *, takes_shared: bool) -> list[Part]:
        """Texts and pictures in reading order.

        Args:
            rows: What `rows` returned, of this section and of all others.
            takes_shared: Whether shared pictures without a mark belong to this section.
        """
        left = [one.picture for n, one in enumerate(self.own) if n not in self.used]
        if takes_shared:
            left += [one.picture for n, one in enumerate(self.shared) if n not in self.placed]
        return _with_unmarked(rows, left, self.place, pictures_first=takes_shared)

    def _items(self, value: Any) -> Iterator[_Item]:
        """The texts, marks and pictures of a text or of a content part."""
        if isinstance(value, list | tuple) and value:
            value = value[0]  # several wordings of the same text
        if isinstance(value, Mapping):
            kind = value.get("type")
            if kind in _IMAGE_TYPES:
                yield self._picture_part(value)
                return
            value = next((value[k] for k in ("text", "content") if value.get(k) is not None), "")
            if kind not in _TEXT_TYPES or not isinstance(value, str):
                message = f"a content part of type {kind!r} with {value!r:.80}"
                raise RejectError(Reason.INVALID_FIELD, message)
        if not isinstance(value, str | int | float):
            raise RejectError(Reason.INVALID_FIELD, f"{value!r:.80} is no text")
        text = str(value)
        for pattern in self.config.strip:
            text = re.sub(pattern, _gap, text)
        yield from split_at_marks(text, self.config.marks)

    def _picture_part(self, part: Mapping[str, Any]) -> _Item:
        """The picture of a content part: its own, or one of the columns by number or in turn."""
        index = part.get("index")
        if isinstance(index, int | float) and index == index and self._pool:
            if index % 1 or isinstance(index, bool):
                raise RejectError(Reason.INVALID_FIELD, f"a picture with the index {index!r}")
            return int(index)
        for key in ("image_url", "image", "url", "path", "content"):
            if (value := part.get(key)) is not None and value != "":
                return to_picture(value, str(part.get("type")), self.root)
        return Mark(f"a content part of type {part.get('type')}", "")

    @property
    def _pool(self) -> list[NamedPicture]:
        return [*self.own, *self.shared]

    def _placed(self, items: Sequence[_Item]) -> list[Part]:
        parts: list[Part] = []
        for item in items:
            for part in self._picture(item) if isinstance(item, Mark | int) else [item]:
                if isinstance(part, str) and parts and isinstance(parts[-1], str):
                    parts[-1] += part
                else:
                    parts.append(part)
        return parts

    def _picture(self, item: Mark | int) -> list[Part]:
        """The picture of a mark; nothing if it has its place already."""
        taken = self.used | {len(self.own) + number for number in self.placed}
        number = item if isinstance(item, int) else _find(item, self._pool, taken)
        if number is None and isinstance(item, Mark):
            if _find(item, self.shown, set()) is not None:
                return []
            if item.text.startswith(("![", "<image>")) and item.target:
                return [to_picture(item.target, item.target, self.root)]
            if item.text.startswith("["):  # brackets that name no picture
                return [item.text]
        if number is None or not 0 <= number < len(self._pool):
            name = item.text if isinstance(item, Mark) else f"the picture {item}"
            message = f"{name} refers to none of {len(self._pool)} pictures"
            raise RejectError(Reason.IMAGE_MARK, message)
        if number in taken:
            return []
        if number < len(self.own):
            self.used.add(number)
        else:
            self.placed.add(number - len(self.own))
        return [self._pool[number].picture]


def _gap(removed: re.Match[str]) -> str:
    """What takes the place of a removed text: a line break where two words would touch."""
    before, after = removed.string[: removed.start()], removed.string[removed.end() :]
    touches = before[-1:].strip() and after[:1].strip()
    return "\n" if touches else ""


def as_items(value: Any) -> list[Any]:
    """The items of a text column: a list, a JSON text of one, or a single text."""
    if isinstance(value, str) and re.match(r"\s*\[\s*\{\s*\"", value):
        value = parsed_json(value)
    return list(value) if isinstance(value, list | tuple) else [value]


def _parts_or_text(text: Any) -> list[Any]:
    """See `as_items`; raises for a JSON text of content parts that is cut short."""
    items = as_items(text)
    if items == [text] and isinstance(text, str) and _PARTS.match(text):
        raise RejectError(Reason.INVALID_FIELD, f"{text!r:.80} is no whole JSON text")
    return items


def _find(mark: Mark, pool: Sequence[NamedPicture], taken: set[int]) -> int | None:
    """Position in the pool of the picture that a mark means; None if no picture fits."""
    positions = range(len(pool))
    if not mark.target:
        return next((n for n in positions if n not in taken), None)
    if mark.target.isdecimal():
        if len(pool) == 1:
            return 0
        return next((n for n in positions if pool[n].number == int(mark.target)), None)
    names = {mark.target, mark.target.removeprefix("./")}
    return next(
        (n for n in positions if pool[n].column in names or pool[n].picture.path in names), None
    )


def _with_unmarked(
    rows: list[list[Part]], left: list[Picture], place: Place, *, pictures_first: bool
) -> list[Part]:
    """Adds the pictures without a mark; texts of several columns or items stay apart."""
    if place == "between" and left:
        texts: list[list[Part]] = [row for row in rows if row]
        pictures: list[list[Part]] = [[picture] for picture in left]
        starts = len(pictures) > len(texts) or (pictures_first and len(pictures) == len(texts))
        pairs = (pictures, texts) if starts else (texts, pictures)
        rows = [row or [] for pair in zip_longest(*pairs) for row in pair]
        left = []
    parts = [part for row in rows for part in row]
    return [*left, *parts] if place == "before" else [*parts, *left]


def texts_of(parts: Sequence[Part]) -> str:
    """The texts of a section, without its pictures."""
    return "\n".join(part.strip() for part in parts if isinstance(part, str) and part.strip())
