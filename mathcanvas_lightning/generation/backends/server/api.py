"""JSON bodies of OpenAI's chat API: builds requests, parses answers.

Source: https://platform.openai.com/docs/api-reference/chat; for the fields that only vLLM has
`vllm/entrypoints/openai/chat_completion/protocol.py`.
"""

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits, check_image
from mathcanvas_lightning.data.images.pixels import encode_png
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

MAX_MESSAGE_CHARS = 2000
MIME_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # a JPEG file with more pictures appended, written by some cameras
    "WEBP": "image/webp",
    "GIF": "image/gif",
}
"""Image formats that servers accept; other pictures are converted to PNG."""
ABORTED = ("abort", "error")
"""Finish reasons of an answer that the server aborted; a retry may succeed."""
NO_ANSWER = {
    "content_filter": "the server's content filter blocked the answer",
    "tool_calls": "the model called tools instead of answering",
    "function_call": "the model called a function instead of answering",
}
"""Finish reason -> failure message, for an answer without text."""
MAX_MESSAGE_CHARS = 2000
THOUGHTS = ("reasoning_content", "reasoning")
"""Fields of a message with the thoughts of the model (DeepSeek and vLLM, OpenRouter)."""


class BadBodyError(ValueError):
    """The body of an answer does not follow the API.

    Args:
        message: Description, with the start of the body.
        transient: Whether another try may give a better one.
    """

    def __init__(self, message: str, *, transient: bool = True) -> None:
        super().__init__(message)
        self.transient = transient


def chat_body(request: GenerationRequest, model: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Builds the body of a chat completion request.

    Args:
        request: The request.
        model: Name of the model on the server.
        extra: Extra fields. They override the others; a field with the value None is removed.

    Returns:
        Field -> JSON value.

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
    return {name: value for name, value in body.items() if value is not None}


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
            data, mime_type = encode_png(decode_image(data, ImageLimits())), "image/png"
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

    Servers differ: an index or a finish reason may be missing, the content may be a list of parts,
    and a model that ran out of tokens while it thought has thoughts but no content.

    Args:
        request: The request.
        answer: The decoded JSON body.

    Returns:
        At most `sampling.n` outputs, fewer if the server does not know `n`; an output may be empty
        if the server returned no text. Or a failure, if a content filter blocked the text or the
        model called tools.

    Raises:
        BadBodyError: If the body holds no answer, or the server aborted the answer (transient); or
            if the answer has an unknown form: another try would be paid and give the same.
    """
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or not choices:
        raise BadBodyError(
            f"not a chat completion: {_start(answer)}", transient=not _has_content(answer)
        )
    try:
        numbers = [_index(choice, position) for position, choice in enumerate(choices)]
        ordered = [choices[i] for i in sorted(range(len(choices)), key=lambda i: numbers[i])]
        outputs = tuple(map(_output, ordered))[: request.sampling.n]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, BadBodyError):
            raise
        raise BadBodyError(f"not a chat completion: {_start(answer)}", transient=False) from None
    for output in outputs:
        if not output.text and output.finish_reason in NO_ANSWER:
            kind = str(output.finish_reason)
            return GenerationResponse(
                uid=request.uid, failure=Failure(kind=kind, message=NO_ANSWER[kind])
            )
    usage = answer.get("usage")
    return GenerationResponse(
        uid=request.uid,
        outputs=outputs,
        usage=Usage(
            prompt_tokens=_count(usage, "prompt_tokens"),
            completion_tokens=_count(usage, "completion_tokens"),
        ),
    )


def _has_content(answer: Any) -> bool:
    """Whether a body without choices is an answer in another form, and no failure of a gateway."""
    if not isinstance(answer, Mapping) or not answer or "error" in answer:
        return False
    return "choices" not in answer or _count(answer.get("usage"), "completion_tokens") > 0


def _start(answer: Any) -> str:
    return json.dumps(answer)[:MAX_MESSAGE_CHARS]


def _count(usage: Any, name: str) -> int:
    """Number of tokens; 0 if the server does not report it."""
    try:
        return int(usage[name])
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0


def _index(choice: Mapping[str, Any], position: int) -> int:
    index = choice.get("index")
    return position if index is None else int(index)


def _output(choice: Mapping[str, Any]) -> Output:
    message, reason = choice["message"], choice.get("finish_reason")
    if reason in ABORTED:
        raise BadBodyError(f"the server aborted the answer: {reason}")
    content, thoughts = text_of(message.get("content")), thoughts_of(message)
    if content is None and reason is None and thoughts is None:
        raise TypeError
    if content is None:
        content = text_of(message.get("refusal"))
    if content is None and thoughts is not None:
        # The parser of thoughts took all of the text, or all tokens went into thinking.
        content = f"<think>{thoughts}" if reason == "length" else thoughts
    if not isinstance(reason, str | None):
        raise TypeError
    return Output(
        text=content or "", finish_reason=reason, token_ids=tuple(choice.get("token_ids") or ())
    )


def text_of(content: Any) -> str | None:
    """The text of a message's content.

    Args:
        content: A text, a list of parts (only those with a text count), or null.

    Returns:
        The text; None if there is no content.

    Raises:
        TypeError: If the content has another form.
    """
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TypeError
    parts = [part if isinstance(part, str) else part.get("text") for part in content]
    return "".join(part for part in parts if isinstance(part, str))


def thoughts_of(message: Mapping[str, Any]) -> str | None:
    """The thoughts in a message; None without thoughts."""
    found = (message.get(name) for name in THOUGHTS)
    return next((value for value in found if isinstance(value, str) and value), None)


def read_models(answer: Any) -> list[str]:
    """Parses a list of models and returns their names.

    Args:
        answer: The decoded JSON body: `{"data": [{"id": ...}]}`, or the list alone, or
            `{"models": [...]}`; a model may be its name alone.

    Raises:
        BadBodyError: If the body is not a list of models.
    """
    models = answer
    if isinstance(answer, Mapping):
        models = answer.get("data", answer.get("models"))
    if not isinstance(models, list):
        raise BadBodyError("not a list of models", transient=False)
    try:
        return [model if isinstance(model, str) else _model_name(model) for model in models]
    except (KeyError, TypeError, AttributeError):
        raise BadBodyError("not a list of models", transient=False) from None


def _model_name(model: Mapping[str, Any]) -> str:
    return str(model["id"] if "id" in model else model["name"])
