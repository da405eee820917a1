"""What is sent to an OpenAI-compatible chat server, and what its answers say.

Source: https://platform.openai.com/docs/api-reference/chat, and for the fields that only vLLM knows
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
    "MPO": "image/jpeg",  # a JPEG with further pictures behind it, as some cameras make them
    "WEBP": "image/webp",
    "GIF": "image/gif",
}
"""Formats that servers read; pictures of others are sent as PNG."""
PROMPT_TOO_LONG = re.compile(
    r"context.length|context.window|longer than the (model|maximum)|greater than max_model_len",
    re.IGNORECASE,
)
"""What servers say of a prompt that is too long, alone or with the answer that is asked for:
OpenAI's code, vLLM, SGLang, llama.cpp."""
ANY_LENGTH: Mapping[str, Any] = {"max_tokens": None, "max_completion_tokens": None}
"""Further fields of a body that asks for whatever fits into the window."""
GIVEN_UP = ("abort", "error")
"""Reasons why an answer ended that make it none; another try may get one."""
NO_ANSWER = {
    "content_filter": "the server's filter held the answer back",
    "tool_calls": "the model called tools instead of answering",
    "function_call": "the model called a function instead of answering",
}
"""Reasons that make an answer without text none."""
MAX_MESSAGE_CHARS = 2000


class BadBodyError(ValueError):
    """An answer that isn't what the API promises."""


def chat_body(request: GenerationRequest, model: str, extra: Mapping[str, Any]) -> bytes:
    """The body of a chat completion.

    Args:
        request: What is asked.
        model: The name that the server knows the model by.
        extra: Further fields; they replace ours, and those that are None are left out.

    Returns:
        A JSON object.

    Raises:
        PictureError: If a picture can't be read.
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
    # Defaults are sent too, where every server knows the field: a model may bring its own.
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
    """The outputs of a chat completion.

    Args:
        request: What was asked.
        answer: The decoded JSON body.

    Returns:
        One output for each that was wanted. An empty one is what the server made: no text, and a
        reason why it ended. A failure where a filter held the text back, or tools were called.

    Raises:
        BadBodyError: If anything that must be there is not, or the server gave the answer up.
    """
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        outputs = tuple(_output(choice) for choice in choices)
        usage = answer.get("usage")
    except (KeyError, TypeError, AttributeError):
        said = json.dumps(answer)[:MAX_MESSAGE_CHARS]
        raise BadBodyError(f"not a chat completion: {said}") from None
    if len(outputs) != request.sampling.n:
        raise BadBodyError(f"{len(outputs)} answers came, {request.sampling.n} were asked for")
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
    """Tokens; 0 where the server tells no number of them."""
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
    if reason in GIVEN_UP:
        raise BadBodyError(f"the server gave it up: {reason}")
    return Output(
        text=content, finish_reason=reason, token_ids=tuple(choice.get("token_ids") or ())
    )


def read_models(answer: Any) -> list[str]:
    """The names in a list of models.

    Args:
        answer: The decoded JSON body.

    Raises:
        BadBodyError: If it is no such list.
    """
    try:
        return [str(model["id"]) for model in answer["data"]]
    except (KeyError, TypeError):
        raise BadBodyError("not a list of models") from None


def read_error(status: int, data: bytes) -> tuple[str, str]:
    """Kind and message of an answer that is no success.

    Args:
        status: Of HTTP.
        data: The body: JSON in one of the usual forms, or any text.

    Returns:
        `prompt_too_long` or `http_STATUS`, and the server's words.
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
