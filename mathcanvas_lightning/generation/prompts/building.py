"""Builds the request for a record: its conversation, or the failure that replaces it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mathcanvas_lightning.errors import MathCanvasError
from mathcanvas_lightning.generation.prompts.chat import PromptBuilder
from mathcanvas_lightning.generation.prompts.drawings import GivenDrawings
from mathcanvas_lightning.generation.requests import (
    Failure,
    GenerationRequest,
    GenerationResponse,
    hash_pictures,
)
from mathcanvas_lightning.records.fetching import Pictures
from mathcanvas_lightning.records.pictures import PictureError
from mathcanvas_lightning.records.record import Record

PROMPT_FAILURE = "prompt"
"""Failure kind of a record that does not fit the prompt."""
Prepared = GenerationRequest | GenerationResponse
"""A request, or the failure of a record from which no request could be built."""


def build_request(
    record: Record,
    pictures: Pictures,
    prompt: PromptBuilder,
    template_options: Mapping[str, Any] = MappingProxyType({}),
    drawings: GivenDrawings | None = None,
) -> Prepared:
    """Builds the request for a record.

    Args:
        record: The record.
        pictures: Its pictures, or why one of them is unusable.
        prompt: Builds the conversation.
        template_options: More variables for the model's chat template.
        drawings: Drawings for the answers; None for the model's own.

    Returns:
        The request; a failure if a picture is unusable or the record does not fit the prompt.
    """
    try:
        if isinstance(pictures, PictureError):
            raise pictures
        messages = prompt(record, pictures)
        given = None if drawings is None else drawings.take(record)
    except PictureError as error:
        failure = Failure(kind=error.kind, message=str(error))
    except MathCanvasError as error:
        failure = Failure(kind=PROMPT_FAILURE, message=str(error))
    else:
        return GenerationRequest(
            uid=record.uid,
            messages=messages,
            template_options=template_options,
            record=record.values,
            picture_digest=hash_pictures(pictures),
            drawings=given,
        )
    return GenerationResponse(uid=record.uid, failure=failure)
