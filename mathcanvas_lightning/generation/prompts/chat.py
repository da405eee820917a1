"""Builds the conversation for a record: system prompt, examples, question, pictures."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from string import ascii_uppercase
from typing import Any, Literal

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.generation.prompts.python_texts import python_texts
from mathcanvas_lightning.generation.requests import Message, Part
from mathcanvas_lightning.records.files import read_records
from mathcanvas_lightning.records.marks import MarkError, place_marks, without_marks
from mathcanvas_lightning.records.pictures import Picture, PictureError, load_pictures
from mathcanvas_lightning.records.record import Record, as_list

_SLOT = re.compile(r"\{\{([^{}]*)\}\}|\{([^{}]+)\}")
PromptBuilder = Callable[[Record, Sequence[Picture]], tuple[Message, ...]]
"""Builds a conversation from a record and its pictures (one for each image reference, in order).
The last message must be the user's. A MathCanvasError makes only this record fail. In YAML: the
import path of a function, or class_path and init_args of a class with callable objects. The
attribute `fields` lists the fields that the prompt uses besides the query; without it, a change of
any field makes the record be asked again."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class Example:
    """A solved example that comes before the record's question."""

    query: str
    """Question; may contain picture marks, like a record's question."""
    answer: str
    image: str | list[str] | None = None
    """Pictures: paths, URLs or base64."""


class ChatPrompt:
    r"""Builds a conversation: system prompt, examples, then the record's question and pictures.

    The template is applied to each question, also to those of examples. `{query}` is replaced by
    the question and `{name}` by any other field; `{{name}}` gives the literal `{name}`, and `{}`
    stays as it is. Braces inside the inserted values have no special meaning.

    Args:
        system_prompt: Text of the system prompt.
        system_prompt_file: Text file with the system prompt, or a Python file (never executed).
        system_prompt_variable: Name of the variable in that Python file.
        images: "marks" puts each picture at its mark `<image>`, `<image1>` ... and pictures
            without a mark first; "first" puts all pictures before the text and removes the marks.
            If a record has no pictures, marks are text; `\<image>` is always the text `<image>`.
        few_shot: List of examples, or a file of records with the fields query, answer, optionally
            image (paths relative to the file's folder), and other fields of the template.
        template: Text around the question, such as "{query}\nAnswer with a letter."
        options_field: Field with a list (or an object, letter -> option) of options, added to the
            question as lines "(A) ...". Skipped if the options are only letters, because then
            they are in a picture.

    Raises:
        ConfigError: If a file, a variable or an example is invalid.
        InputError: If an example does not fit the template.
    """

    def __init__(
        self,
        system_prompt: str | None = None,
        system_prompt_file: str | None = None,
        system_prompt_variable: str | None = None,
        images: Literal["marks", "first"] = "marks",
        few_shot: list[Example] | str | None = None,
        template: str = "{query}",
        options_field: str | None = None,
    ) -> None:
        if system_prompt_file is not None:
            if system_prompt is not None:
                raise ConfigError(
                    "system_prompt",
                    found="system_prompt_file too",
                    wanted="only one of them",
                    remedy="Remove one.",
                )
            system_prompt = read_system_prompt(system_prompt_file, system_prompt_variable)
        elif system_prompt_variable is not None:
            raise ConfigError(
                "system_prompt_variable",
                found=f"{system_prompt_variable!r} without system_prompt_file",
                wanted="the Python file with this variable",
                remedy="Set system_prompt_file.",
            )
        self.description = {
            "system_prompt": system_prompt,
            "template": template,
            "images": images,
            "few_shot": few_shot if isinstance(few_shot, str) else len(few_shot or ()),
            "options_field": options_field,
        }
        """What the conversations consist of, for readers of the answers."""
        self._images = images
        self._template = template
        self._options_field = options_field
        slots = {name for _, name in _SLOT.findall(template) if name} - {"query"}
        self.fields = frozenset(slots | ({options_field} if options_field else set()))
        """Fields used besides query and pictures; a record is asked again if one changes."""
        system = Message(role="system", parts=(system_prompt,)) if system_prompt else None
        self._start = (*([system] if system else []), *self._examples(few_shot))

    def __call__(self, record: Record, pictures: Sequence[Picture]) -> tuple[Message, ...]:
        """Builds the conversation for a record.

        Args:
            record: The record.
            pictures: One picture for each image reference of the record, in order.

        Returns:
            Messages; the last one is the user's.

        Raises:
            InputError: If the record does not fit the template, or has a mark without a picture.
        """
        question = self._question(record.query, record.values, pictures, place=record.uid)
        return *self._start, question

    def _examples(self, few_shot: list[Example] | str | None) -> list[Message]:
        if isinstance(few_shot, str):
            name, folder = few_shot, str(local_path(few_shot).parent)
            examples = list(read_records(few_shot))
        else:
            name, folder = "few_shot", "."
            examples = [asdict(example) for example in few_shot or ()]
        messages = []
        for number, example in enumerate(examples):
            place = f"{name}, example {number}"
            query, answer = _texts_of_example(example, place)
            try:
                images = as_list(example.get("image"))
                pictures = load_pictures(images, folder, place=place, access="any")
            except PictureError as error:
                raise ConfigError(
                    place, found=str(error), wanted="readable pictures", remedy="Correct it."
                ) from None
            messages.append(self._question(query, example, pictures, place=place))
            messages.append(Message(role="assistant", parts=(answer,)))
        return messages

    def _question(
        self, query: str, values: Mapping[str, Any], pictures: Sequence[Picture], *, place: str
    ) -> Message:
        if self._options_field is not None:
            options = options_text(values.get(self._options_field), place=place)
            query = f"{query}\n{options}" if options else query
        text = fill_template(self._template, {**values, "query": query}, place=place)
        try:
            pieces = place_marks(text, len(pictures))
        except MarkError as error:
            raise InputError(
                place,
                found=str(error),
                wanted="a picture for each mark",
                remedy="Correct the record.",
            ) from None
        parts: tuple[Part, ...] = tuple(
            piece if isinstance(piece, str) else pictures[piece] for piece in pieces
        )
        if self._images == "first" and pictures:
            parts = (*pictures, without_marks(text))
        return Message(role="user", parts=parts)


def fill_template(template: str, values: Mapping[str, Any], *, place: str) -> str:
    """Fills a template with values.

    Args:
        template: `{name}` is replaced by a value; `{{name}}` gives the literal `{name}`.
        values: Field -> value; null becomes empty text, lists and objects become JSON.
        place: Location of the values, for error messages.

    Returns:
        The filled text.

    Raises:
        InputError: If the template names a field that does not exist.
    """

    def filled(slot: re.Match[str]) -> str:
        literal, name = slot.groups()
        if name is None:
            return f"{{{literal}}}"
        if name not in values:
            raise InputError(
                place,
                found=f"no field {name!r} of the template, only {', '.join(values)}",
                wanted="all fields of the template",
                remedy=f"Correct the template; for literal braces write {{{{{name}}}}}.",
            )
        return _as_text(values[name])

    return _SLOT.sub(filled, template)


def options_text(value: Any, *, place: str) -> str:
    """Formats options as lines "(A) ...".

    Args:
        value: A list, an object (letter -> option), or null.
        place: Location of the options, for error messages.

    Returns:
        The lines; "" if there are no options, or if each option is only its own letter.

    Raises:
        InputError: If the value has another type, or too many options.
    """
    items = as_list(value)
    if not isinstance(value, Mapping) and (items == [value] or len(items) > len(ascii_uppercase)):
        raise InputError(
            place,
            found=f"the options {value!r:.80}",
            wanted=f"a list of at most {len(ascii_uppercase)}",
            remedy="Correct the record.",
        )
    options = named_options(value if isinstance(value, Mapping) else items)
    if all(text.strip("() .") == letter for letter, text in options.items()):
        return ""
    return "\n".join(f"({letter}) {text}" for letter, text in options.items())


def named_options(value: Mapping[Any, Any] | Sequence[Any]) -> dict[str, str]:
    """Texts of the options by their letters.

    Args:
        value: A list, or an object (letter -> option).

    Returns:
        Letter -> text, without the options that are null: a struct of Parquet has null where
        another record has more options. The others keep their letters.
    """
    pairs = (
        value.items() if isinstance(value, Mapping) else zip(ascii_uppercase, value, strict=False)
    )
    return {str(letter): _as_text(option) for letter, option in pairs if option is not None}


def read_system_prompt(path: str, variable: str | None) -> str:
    """Reads a system prompt from a file.

    Args:
        path: A text file or a Python file; a Python file is parsed but not executed.
        variable: Variable of the Python file that holds the text.

    Returns:
        The system prompt; the content of a text file is stripped.

    Raises:
        ConfigError: If the file or the variable does not exist.
    """
    try:
        source = local_path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "system_prompt_file",
            found=f"{path!r}, which cannot be read ({error})",
            wanted="a text file in UTF-8",
            remedy="Correct the path.",
        ) from None
    is_python = path.endswith(".py")
    if is_python != (variable is not None):
        raise ConfigError(
            "system_prompt_variable",
            found=f"{variable!r} with the file {path!r}",
            wanted="the name of a variable for a Python file, null for a text file",
            remedy="Set it." if is_python else "Leave it out.",
        )
    if variable is None:
        return source.strip()
    texts = python_texts(source, place=path)
    if variable not in texts:
        raise ConfigError(
            "system_prompt_variable",
            found=f"{variable!r}, which is not a text variable of {path}",
            wanted=f"one of {', '.join(texts)}" if texts else "a variable that holds a text",
            remedy="Correct the name; only literal texts are found, not computed ones.",
        )
    return texts[variable]


def _texts_of_example(example: Any, place: str) -> tuple[str, str]:
    names = ("query", "answer")
    values = [example.get(name) if isinstance(example, Mapping) else None for name in names]
    query, answer = values
    if not isinstance(query, str) or not isinstance(answer, str):
        raise ConfigError(
            place,
            found=f"{example!r:.80}",
            wanted="an object with the text fields query and answer",
            remedy="Correct the example.",
        )
    return query, answer


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else str(value)
