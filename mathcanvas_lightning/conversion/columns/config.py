"""Which columns of a data set hold what, as frozen dataclasses."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from mathcanvas_lightning.common.keys import did_you_mean
from mathcanvas_lightning.conversion.columns.marks import DEFAULT_MARKS, mark_pattern
from mathcanvas_lightning.conversion.columns.selectors import parse_selector
from mathcanvas_lightning.errors import ConfigError

Names = tuple[str, ...]
Place = Literal["before", "after", "between"]
Turns = Literal["only", "last"]
ColumnKeys = dict[str, str | list[str] | dict[str, str | list[str]] | None]
"""Keys of `ColumnsConfig` as YAML and options give them."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationConfig:
    """A column with a list of turns; LLaMA-Factory calls these names columns and tags."""

    column: str
    """Column with the turns."""
    role: str = "role"
    """Key of a turn's speaker."""
    content: str = "content"
    """Key of a turn's text, or of its list of content parts."""
    user: Names = ("user", "human")
    """Role names of the user, who asks."""
    assistant: Names = ("assistant", "gpt")
    """Role names of the assistant, who answers."""
    system: Names = ("system",)
    """Role names of instructions, which come before the question."""
    turns: Turns = "only"
    """only: a conversation with several answers is rejected. last: the last answer is the solution,
    and everything before it is the question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnsConfig:
    """The columns of a data set.

    A column is named by a selector: `name`; `name?` if it may be absent; `a | b`, the first that
    has a value; `image_*`, all such columns by their numbers; `list[0]` and `list[1:]`, items of a
    list; `a.b`, a field of an object.
    """

    id: Names = ()
    """Unique id; several columns are joined by underscores. Without one, a hash of the record."""
    question: Names = ()
    """Texts of the question."""
    solution: Names = ()
    """Texts of the reasoning; without any, the record is only for prediction."""
    answer: str | None = None
    """The final answer; without such a column, the text of the solution."""
    answer_pattern: str | None = None
    """Regular expression whose group finds the answer within its column."""
    options: Names = ()
    """Choices, which follow the question as lettered lines: a list, or a column each."""
    images: Names = ()
    """Pictures for the marks in the question, then for those in the solution."""
    question_images: Names = ()
    """Pictures of the question."""
    solution_images: Names = ()
    """Pictures of the solution."""
    conversation: ConversationConfig | None = None
    """Turns instead of columns for question and solution."""
    marks: Names = DEFAULT_MARKS
    """What stands for a picture in the texts: an example of a known mark, or a regular expression
    whose group, if it has one, holds the number, the column or the path of the picture."""
    unmarked: Place | None = None
    """Where pictures without a mark stand: before the text, after it, or between texts in turn. By
    default before the question, and after the solution."""
    strip: Names = ()
    """Regular expressions of what is removed from the texts; a line break keeps words apart."""
    solution_end: str | None = None
    """Text after the solution, such as `Final Answer: {answer}`."""

    def __post_init__(self) -> None:
        """Checks selectors and regular expressions.

        Raises:
            ConfigError: If one can't be parsed, or nothing is the question.
        """
        if not self.question and not self.question_images and self.conversation is None:
            raise _bad("columns", "no question", "question or conversation", "Name the column.")
        for name in self.selectors:
            parse_selector(name)
        for mark in self.marks:
            _check_pattern("marks", mark_pattern(mark))
        for pattern in (*self.strip, self.answer_pattern):
            _check_pattern("strip or answer_pattern", pattern or "")
        if self.solution_end is not None and self.solution_end.count("{answer}") != 1:
            wanted = "a text with {answer}"
            raise _bad("columns.solution_end", repr(self.solution_end), wanted, "Add {answer}.")

    @property
    def selectors(self) -> Names:
        """All selectors of columns."""
        groups = (self.id, self.question, self.solution, self.options)
        images = (self.images, self.question_images, self.solution_images)
        turns = () if self.conversation is None else (self.conversation.column,)
        answer = () if self.answer is None else (self.answer,)
        return tuple(name for group in (*groups, *images, turns, answer) for name in group)


def columns_from(values: Mapping[str, Any], place: str) -> ColumnsConfig:
    """Builds the configuration from the values of a YAML file.

    Args:
        values: Keys of `ColumnsConfig`; one column may stand for a list of one.
        place: Where the values come from, for errors.

    Raises:
        ConfigError: If a key is unknown, or a value has the wrong type.
    """
    values = dict(values)
    if (turns := values.get("conversation")) is not None:
        if not isinstance(turns, Mapping):
            wanted = "an object with column, role, content"
            raise _bad(f"{place}: conversation", repr(turns), wanted, "See tools/README.md.")
        values["conversation"] = _build(ConversationConfig, turns, f"{place}: conversation")
    return _build(ColumnsConfig, values, place)


def _build(kind: type[T], values: Mapping[str, Any], place: str) -> T:
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            remedy = did_you_mean(str(name), known)
            raise _bad(place, f"the key {name!r}", "a key of columns", remedy)
    given = {n: _typed(known[n].type, v, f"{place}: {n}") for n, v in values.items()}
    for one in known.values():
        needs_value = one.default is MISSING and one.default_factory is MISSING
        if needs_value and one.name not in given:
            raise _bad(place, f"no {one.name}", f"the key {one.name}", "Add it.")
    return kind(**given)


def _typed(kind: Any, value: Any, place: str) -> Any:
    """A value of a key; a text stands for a list of one, and null for none."""
    if kind == Names:
        texts = () if value is None else (value,) if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
            raise _bad(place, f"{value!r:.80}", "a text or a list of texts", "Correct it.")
        return tuple(texts)
    choices = [c for part in (kind, *get_args(kind)) for c in get_args(part) if isinstance(c, str)]
    if choices and value is not None and value not in choices:
        wanted = f"one of {', '.join(choices)}"
        raise _bad(place, f"{value!r:.80}", wanted, did_you_mean(str(value), choices))
    is_ours = isinstance(value, ConversationConfig)
    if not is_ours and not isinstance(value, str | None):
        raise _bad(place, f"{value!r:.80}", "a text", "Put it in quotes.")
    return value


def _check_pattern(key: str, pattern: str) -> None:
    try:
        compiled = re.compile(f"(?:{pattern})")
    except re.error as error:
        found = f"{pattern!r}, which is no regular expression ({error})"
        raise _bad(f"columns.{key}", found, "a regular expression", "Escape ( [ * + ?.") from None
    if key == "marks" and compiled.groups > 1:
        found, remedy = f"{pattern!r} with several groups", "Write the others as (?:...)."
        raise _bad("columns.marks", found, "one group at most", remedy)


def _bad(place: str, found: str, wanted: str, remedy: str) -> ConfigError:
    return ConfigError(place, found=found, wanted=wanted, remedy=remedy)
