"""From a record to the conversation that a model is asked to continue."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.generation.prompts.python_texts import python_texts
from mathcanvas_lightning.generation.requests import Message, Part
from mathcanvas_lightning.records.files import read_records
from mathcanvas_lightning.records.marks import MarkError, place_marks, without_marks
from mathcanvas_lightning.records.pictures import Picture, PictureError, load_pictures
from mathcanvas_lightning.records.record import Record, as_list

_SLOT = re.compile(r"\{\{([^{}]*)\}\}|\{([^{}]+)\}")


PromptBuilder = Callable[[Record, Sequence[Picture]], tuple[Message, ...]]
"""Makes a conversation of a record and its pictures, one for each of its references, in their
order; the last message is the user's. May raise a MathCanvasError: the record then fails alone. In
YAML: the path of a function, or class_path and init_args of a class whose objects can be called.
An attribute `fields` names the fields that it reads besides the query; without one, a record is
asked again where any of its fields has changed."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class Example:
    """A question with its answer, shown before the record's question."""

    query: str
    """May have marks for pictures, as a record's."""
    answer: str
    image: str | list[str] | None = None
    """Paths, URLs or base64."""


class ChatPrompt:
    r"""A system prompt, examples, and the record's question with its pictures.

    The template surrounds each question, those of examples too. In it `{query}` is the question
    and `{name}` any other field; `{{name}}` stands for `{name}` itself, and `{}` for itself.
    Braces in what is filled in mean nothing.

    Args:
        system_prompt: Its text.
        system_prompt_file: A text file with it, or a Python file, which is read and never run.
        system_prompt_variable: Which variable of that Python file.
        images: "marks" puts pictures at their marks `<image>`, `<image1>` ... and those without
            one first; "first" puts all before the text, and leaves the marks out.
        few_shot: Examples, or a file of records with the fields query, answer and, if need be,
            image (paths start from the file's folder), and others that the template names.
        template: Text around the question, such as "{query}\nAnswer with a letter."
        options_field: A field with a list (or an object, by letter) of options, added to the
            question as lines "(A) ..."; left out where they only repeat the letters, as do those
            that are in a picture.

    Raises:
        ConfigError: If a file, a variable or an example can't be used.
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
                    wanted="one of them",
                    remedy="Leave one out.",
                )
            system_prompt = read_system_prompt(system_prompt_file, system_prompt_variable)
        elif system_prompt_variable is not None:
            raise ConfigError(
                "system_prompt_variable",
                found=f"{system_prompt_variable!r} without system_prompt_file",
                wanted="the Python file that it is in",
                remedy="Set system_prompt_file.",
            )
        self._images = images
        self._template = template
        self._options_field = options_field
        slots = {name for _, name in _SLOT.findall(template) if name} - {"query"}
        self.fields = frozenset(slots | ({options_field} if options_field else set()))
        """Of a record, read besides query and pictures: where they change, it is asked again."""
        system = Message(role="system", parts=(system_prompt,)) if system_prompt else None
        self._start = (*([system] if system else []), *self._examples(few_shot))

    def __call__(self, record: Record, pictures: Sequence[Picture]) -> tuple[Message, ...]:
        """Lays out texts and pictures.

        Args:
            record: What is asked.
            pictures: One for each reference of the record, in their order.

        Returns:
            Messages, the last of them the user's.

        Raises:
            InputError: If the record does not fit the template, or has a mark without a picture.
        """
        question = self._question(record.query, record.values, pictures, place=record.uid)
        return *self._start, question

    def _examples(self, few_shot: list[Example] | str | None) -> list[Message]:
        if isinstance(few_shot, str):
            name, folder = few_shot, str(Path(few_shot).parent)
            examples = list(read_records(few_shot))
        else:
            name, folder = "few_shot", "."
            examples = [asdict(example) for example in few_shot or ()]
        messages = []
        for number, example in enumerate(examples):
            place = f"{name}, example {number}"
            query, answer = _texts_of_example(example, place)
            try:
                pictures = load_pictures(as_list(example.get("image")), folder, place=place)
            except PictureError as error:
                raise ConfigError(
                    place, found=str(error), wanted="sound pictures", remedy="Correct it."
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
                remedy="Mend the record.",
            ) from None
        parts: tuple[Part, ...] = tuple(
            piece if isinstance(piece, str) else pictures[piece] for piece in pieces
        )
        if self._images == "first":
            parts = (*pictures, without_marks(text))
        return Message(role="user", parts=parts)


def fill_template(template: str, values: Mapping[str, Any], *, place: str) -> str:
    """Puts values into a template.

    Args:
        template: `{name}` is filled in; `{{name}}` stands for `{name}` itself.
        values: Field -> value; null is nothing, lists and objects are written as JSON.
        place: What the values belong to, for messages.

    Returns:
        The text.

    Raises:
        InputError: If the template names a field that is not there.
    """

    def filled(slot: re.Match[str]) -> str:
        literal, name = slot.groups()
        if name is None:
            return f"{{{literal}}}"
        if name not in values:
            raise InputError(
                place,
                found=f"no field {name!r}, which the template names, among {', '.join(values)}",
                wanted="each field of the template",
                remedy=f"Correct the template; for the braces themselves write {{{{{name}}}}}.",
            )
        return _as_text(values[name])

    return _SLOT.sub(filled, template)


def options_text(value: Any, *, place: str) -> str:
    """Options as lines "(A) ...".

    Args:
        value: A list, an object (letter -> option), or null.
        place: What they belong to, for messages.

    Returns:
        The lines; "" if there are none, or if each says no more than its letter.

    Raises:
        InputError: If they are something else, or too many.
    """
    items = as_list(value)
    if isinstance(value, Mapping):
        options = {str(letter): _as_text(option) for letter, option in value.items()}
    elif items == [value] or len(items) > len(ascii_uppercase):
        raise InputError(
            place,
            found=f"the options {value!r:.80}",
            wanted=f"a list of at most {len(ascii_uppercase)}",
            remedy="Mend the record.",
        )
    else:
        options = dict(zip(ascii_uppercase, map(_as_text, items), strict=False))
    if all(text.strip("() .") == letter for letter, text in options.items()):
        return ""
    return "\n".join(f"({letter}) {text}" for letter, text in options.items())


def read_system_prompt(path: str, variable: str | None) -> str:
    """Reads a system prompt from a file.

    Args:
        path: A text file; or a Python file, of which nothing is run.
        variable: In the Python file, the variable whose text it is.

    Returns:
        The text; that of a text file without white space at its ends.

    Raises:
        ConfigError: If there is no such file or variable.
    """
    try:
        source = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "system_prompt_file",
            found=f"{path!r}, which can't be read ({error})",
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
            found=f"{variable!r}, which is no text in {path}",
            wanted=f"one of {', '.join(texts) or 'its texts, of which it has none'}",
            remedy="Correct the name; texts that must be computed are not found.",
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
            wanted="an object with the texts query and answer",
            remedy="Correct the example.",
        )
    return query, answer


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else str(value)
