"""The source format `columns`: records of any data set, by the names of their columns."""

import ast
import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mathcanvas_lightning.conversion.columns.config import ColumnsConfig, ConversationConfig
from mathcanvas_lightning.conversion.columns.identity import record_id
from mathcanvas_lightning.conversion.columns.pictures import as_list, find_pictures
from mathcanvas_lightning.conversion.columns.sections import Section, as_items, texts_of
from mathcanvas_lightning.conversion.columns.selectors import Found, select, used_columns
from mathcanvas_lightning.conversion.files import SourceFiles
from mathcanvas_lightning.conversion.rejection import Reason, RejectError
from mathcanvas_lightning.conversion.sources.base import (
    Draft,
    Part,
    SourceFormat,
    options_text,
)
from mathcanvas_lightning.data.rows.schema import Scalar

DRAWN = "a drawing"
"""Answer of a record whose solution is a picture without words."""


@dataclass(frozen=True, slots=True)
class Columns(SourceFormat):
    """Records whose columns are named by a `ColumnsConfig`."""

    config: ColumnsConfig

    name = "columns"
    fields = frozenset()
    recognised_by = frozenset()

    def uid(self, record: Mapping[str, Any]) -> str | None:
        """Returns the record's id; a hash of the record if no column holds one."""
        try:
            return self.identify(record)
        except RejectError:
            return None

    def extras(self, record: Mapping[str, Any]) -> dict[str, Scalar]:
        """Returns the scalar fields that no selector names; they become columns."""
        used = self._used(record)
        return {
            name: value
            for name, value in record.items()
            if name not in used and (value is None or isinstance(value, str | int | float))
        }

    def parse(self, record: Mapping[str, Any], files: SourceFiles) -> Draft:
        """See `SourceFormat.parse`."""
        uid = self.identify(record)
        question, solution = self._sections(record, files.root)
        answer = self.answer(record)
        if answer is None:
            answer = texts_of(solution) or (DRAWN if solution else "")
        if self.config.solution_end is not None and solution:
            solution.append(self.config.solution_end.replace("{answer}", answer))
        return Draft(uid=uid, question=question, solution=solution, answer=answer)

    def question(self, record: Mapping[str, Any], root: str) -> list[Part]:
        """The texts and pictures of the question.

        Args:
            record: A record.
            root: The image folder.

        Raises:
            RejectError: If a column is absent or can't be read.
        """
        return self._sections(record, root, needs_solution=False)[0]

    def answer(self, record: Mapping[str, Any]) -> str | None:
        """The reference answer; None if no column holds answers.

        Raises:
            RejectError: If there is such a column, but no answer in it.
        """
        selector, pattern = self.config.answer, self.config.answer_pattern
        if selector is None:
            return None
        found = select(record, selector)
        if not found:
            raise RejectError(Reason.MISSING_FIELD, f"column {selector!r} is empty")
        text = ", ".join(_text(value, found[0]) for value in as_list(found[0].value))
        if pattern is not None:
            match = re.search(pattern, text, re.DOTALL)
            if match is None:
                message = f"column {found[0].column!r} holds nothing like {pattern!r}"
                raise RejectError(Reason.MISSING_FIELD, message)
            text = match[1] if match.re.groups else match[0]
        return text.strip()

    def choices(self, record: Mapping[str, Any]) -> Mapping[str, Any] | list[Any] | str:
        """The choices: texts A, B, ..., names with texts, or one text; empty without choices.

        Raises:
            RejectError: If their column is absent.
        """
        found = [one for text in self.config.options for one in select(record, text)]
        if len(found) != 1:
            return [_text(one.value, one) for one in found]
        value = found[0].value
        if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
            value = _literal(value)
        if isinstance(value, str | Mapping):
            return value
        return [_text(one, found[0]) for one in value] if isinstance(value, list) else [value]

    def identify(self, record: Mapping[str, Any]) -> str:
        """The record's id; a hash of the record if no column holds ids.

        Raises:
            RejectError: If there is such a column, but no id in it.
        """
        found = [one for text in self.config.id for one in select(record, text)]
        if self.config.id and not found and not any("?" in text for text in self.config.id):
            raise RejectError(Reason.MISSING_FIELD, f"column {self.config.id[0]!r} is empty")
        return "_".join(_text(one.value, one) for one in found) or self._hash(record)

    def _used(self, record: Mapping[str, Any]) -> set[str]:
        """The columns of a record that a selector names."""
        return {n for text in self.config.selectors for n in used_columns(record, text)}

    def _hash(self, record: Mapping[str, Any]) -> str:
        """An id of the columns in use; further fields, such as an answer, don't change it."""
        return record_id({name: record[name] for name in sorted(self._used(record))})

    def _sections(
        self, record: Mapping[str, Any], root: str, *, needs_solution: bool = True
    ) -> tuple[list[Part], list[Part]]:
        config = self.config
        asked, solved = self._texts(record, needs_solution=needs_solution)
        shared = find_pictures(record, config.images, root)
        own = find_pictures(record, config.question_images, root)
        place = config.unmarked
        question = Section(
            config=config, own=own, shared=shared, root=root, place=place or "before"
        )
        asked_rows = question.rows(self._with_choices(asked, record))
        solution = Section(
            config=config,
            own=find_pictures(record, config.solution_images, root),
            shared=shared,
            placed=question.placed,
            shown=own,
            root=root,
            place=place or "after",
        )
        solved_rows: list[list[Part]] = []
        with contextlib.suppress(*() if needs_solution else (RejectError,)):
            solved_rows = solution.rows(solved)
        # Only now is known which of the shared pictures the solution takes.
        parts = question.parts(asked_rows, takes_shared=True)
        return parts, solution.parts(solved_rows, takes_shared=False)

    def _texts(
        self, record: Mapping[str, Any], *, needs_solution: bool
    ) -> tuple[list[Any], list[Any]]:
        """Texts of the question and of the solution, in which marks are still marks."""
        config = self.config
        asked = [one.value for text in config.question for one in select(record, text)]
        solved: list[Any] = []
        with contextlib.suppress(*() if needs_solution else (RejectError,)):
            solved += [one.value for text in config.solution for one in select(record, text)]
        if config.conversation is not None:
            turns = split_turns(record, config.conversation)
            asked, solved = [*asked, *turns[0]], [*turns[1], *solved]
        return asked, solved

    def _with_choices(self, asked: list[Any], record: Mapping[str, Any]) -> list[Any]:
        choices = self.choices(record)
        text = choices if isinstance(choices, str) else options_text(choices)
        return [*asked, text] if text else asked


def split_turns(
    record: Mapping[str, Any], config: ConversationConfig
) -> tuple[list[Any], list[Any]]:
    """The contents of a conversation before its last answer, and that answer.

    Raises:
        RejectError: If a turn can't be read, or there are more answers than the settings allow.
    """
    found = select(record, config.column)
    turns = as_items(found[0].value) if found else []
    roles = [_role(turn, config) for turn in turns]
    answers = [number for number, role in enumerate(roles) if role in config.assistant]
    if len(answers) > 1 and config.turns == "only":
        message = f"{len(answers)} answers; set turns: last, or train with the row format vlm"
        raise RejectError(Reason.SEVERAL_ANSWERS, message)
    # A conversation that ends with a question has no solution.
    last = answers[-1] if answers and answers[-1] == len(turns) - 1 else len(turns)
    contents = [turn.get(config.content) for turn in turns]
    is_system = [role in config.system for role in roles]
    asked = [c for c, system in zip(contents[:last], is_system[:last], strict=True) if system]
    asked += [c for c, system in zip(contents[:last], is_system[:last], strict=True) if not system]
    return [c for c in asked if c is not None], [c for c in contents[last:] if c is not None]


def _role(turn: Any, config: ConversationConfig) -> str:
    role = turn.get(config.role) if isinstance(turn, Mapping) else None
    known = (*config.user, *config.assistant, *config.system)
    if role not in known:
        message = f"a turn of {role!r:.80}; known are {', '.join(known)}"
        raise RejectError(Reason.INVALID_FIELD, message)
    return str(role)


def _text(value: Any, found: Found) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        message = f"column {found.column!r} holds {value!r:.80}, not text"
        raise RejectError(Reason.INVALID_FIELD, message)
    return str(value).strip()


def _literal(text: str) -> Any:
    """The list or object that a text holds as JSON or as Python; the text if it is neither."""
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return parse(text)
    return text
