"""Why a record did not become a row."""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """The reason codes of `rejects.jsonl`; your own source formats may add others."""

    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    INVALID_FIELD = "invalid_field"
    DUPLICATE_ID = "duplicate_id"
    WRONG_ANSWER = "wrong_answer"
    RENDER_RESULT = "render_result"
    EMPTY = "empty"
    NO_IMAGE = "no_image"
    NO_QUESTION = "no_question"
    NO_SOLUTION = "no_solution"
    UNCLOSED_TAG = "unclosed_tag"
    UNOPENED_TAG = "unopened_tag"
    EMPTY_TAG = "empty_tag"
    IMAGE_MARK = "image_mark"
    SEVERAL_ANSWERS = "several_answers"
    BAD_TASK_FILE = "bad_task_file"
    IMAGE_MISSING = "image_missing"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_TRUNCATED = "image_truncated"
    IMAGE_TOO_LARGE = "image_too_large"
    PATH_OUTSIDE = "path_outside_image_dir"
    PARSER_FAILED = "parser_failed"


IMAGE_REASONS = frozenset(
    {
        Reason.IMAGE_MISSING,
        Reason.IMAGE_UNREADABLE,
        Reason.IMAGE_TRUNCATED,
        Reason.IMAGE_TOO_LARGE,
        Reason.PATH_OUTSIDE,
    }
)
"""Reasons that concern images. Many of them point to a wrong folder or a failing disk."""


class RejectError(Exception):
    """Raised by a source format for a record that must not become a row.

    Args:
        reason: A reason code: one of `Reason`, or another short name.
        message: What is wrong, with the value found.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


Reject = RejectError
"""The former name, which source formats outside this package import."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """One line of `rejects.jsonl`."""

    record: int
    """Position in the input, from 0."""
    uid: str | None
    """The record's id, None if it has no id."""
    reason: str
    """The reason code."""
    message: str
    """What is wrong, with the value found."""
