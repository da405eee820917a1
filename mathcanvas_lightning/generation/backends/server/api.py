"""JSON bodies of OpenAI's chat API: builds requests, parses answers and errors.

Source: https://platform.openai.com/docs/api-reference/chat; for the fields that only vLLM has
`vllm/entrypoints/openai/chat_completion/protocol.py`.
"""

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits, check_image
from mathcanvas_lightning.data.images.resize import decode_image
from mathcanvas_lightning.generation.backends.special_tokens import with_plain_text
from mathcanvas_lightning.generation.requests import (
    Failure,
    GenerationRequest,
    GenerationResponse,
    Message,
    Output,
    Sampling,
    Usage,
)
from mathcanvas_lightning.records.pictures import Picture, PictureError, failure_kind

MIME_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # a JPEG file with more pictures appended, written by some cameras
    "WEBP": "image/webp",
    "GIF": "image/gif",
}
"""Image formats that servers accept; other pictures are converted to PNG."""
PROMPT_TOO_LONG = re.compile(
    r"context.length|context.window|longer than the (model|maximum)|greater than max_model_len",
    re.IGNORECASE,
)
"""Matches the error of a prompt that is too long, by itself or together with `max_tokens`
(OpenAI's code, vLLM, SGLang, llama.cpp)."""
ANY_LENGTH: Mapping[str, Any] = {"max_tokens": None, "max_completion_tokens": None}
"""Extra fields that remove the length limit: the answer may fill the window."""
ABORTED = ("abort", "error")
"""Finish reasons of an answer that the server aborted; a retry may succeed."""
NO_ANSWER = {
    "content_filter": "the server's content filter blocked the answer",
    "tool_calls": "the model called tools instead of answering",
    "function_call": "the model called a function instead of answering",
}
"""Finish reason -> failure message, for an answer without text."""
MAX_MESSAGE_CHARS = 2000


class BadBodyError(ValueError):
    """The body of an answer does not follow the API."""


def chat_body(request: GenerationRequest, model: str, extra: Mapping[str, Any]) -> bytes:
    """Builds the body of a chat completion request.

    Args:
        request: The request.
        model: Name of the model on the server.
        extra: Extra fields. They override the others; a field with the value None is removed.

    Returns:
        A JSON object.

    Raises:
        PictureError: If a picture cannot be read.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in request.messages],
    }
    body |= _sampling(request.sampling, request.seed)
    if request.template_options:
        body["chat_template_kwargs"] = dict(request.template_options)
    body |= extra
    fields = {name: value for name, value in body.items() if value is not None}
    return json.dumps(fields).encode()


def _message(message: Message) -> dict[str, Any]:
    message = with_plain_text(message)
    content: str | list[dict[str, Any]] = message.text
    if any(isinstance(part, Picture) for part in message.parts):
        content = [
            {"type": "image_url", "image_url": {"url": _data_url(part)}}
            if isinstance(part, Picture)
            else {"type": "text", "text": part}
            for part in message.parts
        ]
    return {"role": message.role, "content": content}


def _data_url(picture: Picture) -> str:
    try:
        data = picture.data
        mime_type = MIME_TYPES.get(check_image(data, ImageLimits(), depth="header").format)
        if mime_type is None:
            buffer = BytesIO()
            decode_image(data, ImageLimits()).save(buffer, "PNG")
            data, mime_type = buffer.getvalue(), "image/png"
    except ImageError as error:
        raise PictureError(failure_kind(error), f"{picture.place}: {error}") from None
    return f"data:{mime_type};base64,{b64encode(data).decode()}"


def _sampling(sampling: Sampling, seed: int) -> dict[str, Any]:
    # Default values are sent too (if all servers know the field): a model may have other defaults.
    fields: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.temperature > 0:
        fields["seed"] = seed
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.n != 1:
        fields["n"] = sampling.n
    if sampling.repetition_penalty != 1:
        fields["repetition_penalty"] = sampling.repetition_penalty
    if sampling.json_schema is not None:
        schema = {"name": "answer", "schema": sampling.json_schema, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    if sampling.choice is not None:
        fields["structured_outputs"] = {"choice": list(sampling.choice)}
    if sampling.regex is not None:
        fields["structured_outputs"] = {"regex": sampling.regex}
    return fields


def read_response(request: GenerationRequest, answer: Any) -> GenerationResponse:
    """Parses the answer to a chat completion request.

    Args:
        request: The request.
        answer: The decoded JSON body.

    Returns:
        `sampling.n` outputs; an output may be empty if the server returned no text. Or a failure,
        if a content filter blocked the text or the model called tools.

    Raises:
        BadBodyError: If a required field is missing, or the server aborted the answer.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        outputs = tuple(_output(choice) for choice in choices)
        usage = answer.get("usage")
    except (KeyError, TypeError, AttributeError):
        body = json.dumps(answer)[:MAX_MESSAGE_CHARS]
        raise BadBodyError(f"not a chat completion: {body}") from None
    if len(outputs) != request.sampling.n:
        raise BadBodyError(f"{len(outputs)} answers instead of {request.sampling.n}")
    for output in outputs:
        if not output.text and output.finish_reason in NO_ANSWER:
            kind = str(output.finish_reason)
            return GenerationResponse(
                uid=request.uid, failure=Failure(kind=kind, message=NO_ANSWER[kind])
            )
    return GenerationResponse(
        uid=request.uid,
        outputs=outputs,
        usage=Usage(
            prompt_tokens=_count(usage, "prompt_tokens"),
            completion_tokens=_count(usage, "completion_tokens"),
        ),
    )


def _count(usage: Any, name: str) -> int:
    """Number of tokens; 0 if the server does not report it."""
    try:
        return int(usage[name])
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0


def _output(choice: dict[str, Any]) -> Output:
    content, reason = choice["message"].get("content"), choice.get("finish_reason")
    if content is None:  # refused, or all tokens went into thinking
        content = choice["message"].get("refusal") or ""
    if not isinstance(content, str) or not isinstance(reason, str):
        raise TypeError
    if reason in ABORTED:
        raise BadBodyError(f"the server aborted the answer: {reason}")
    return Output(
        text=content, finish_reason=reason, token_ids=tuple(choice.get("token_ids") or ())
    )


def read_models(answer: Any) -> list[str]:
    """Parses a list of models and returns their names.

    Args:
        answer: The decoded JSON body.

    Raises:
        BadBodyError: If the body is not a list of models.
    """
    try:
        return [str(model["id"]) for model in answer["data"]]
    except (KeyError, TypeError):
        raise BadBodyError("not a list of models") from None


def read_error(status: int, data: bytes) -> tuple[str, str]:
    """Parses an HTTP error into a kind and a message.

    Args:
        status: HTTP status code.
        data: Body of the answer: JSON in one of the usual forms, or plain text.

    Returns:
        `prompt_too_long` or `http_STATUS`, and the server's message.
    """
    text = data.decode(errors="replace").strip()
    try:
        error = json.loads(text)
        error = error.get("error", error)
        message = str(error.get("message") or error.get("detail") or text)
    except (ValueError, AttributeError):
        message = text
    too_long = status in (400, 413, 422) and PROMPT_TOO_LONG.search(text)
    kind = "prompt_too_long" if too_long else f"http_{status}"
    return kind, message[:MAX_MESSAGE_CHARS] or "no message"
