"""Failed requests: their causes, and which of them are worth another try."""

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_MESSAGE_CHARS = 2000
TRANSIENT = (408, 409, 425, 429)
"""HTTP status codes below 500 that are worth a retry: timeout, conflict, too early, rate limit."""
FINAL = (501, 505)
"""HTTP status codes from 500 that no retry can change: not implemented."""
QUOTA = "quota"
"""Kind of the failure of an account without money or quota."""
TOO_LONG = "prompt_too_long"
LIMIT_TOO_HIGH = "max_tokens"
REFUSALS = frozenset({QUOTA, *(f"http_{s}" for s in (301, 302, 307, 308, 401, 402, 403, 404))})
"""Kinds of failures that may affect all requests: wrong address, no permission, no money."""

_TOO_LONG_STATUSES = (400, 413, 422)
_TOO_LONG = re.compile(
    "|".join(
        (
            # OpenAI, Azure, DeepSeek, OpenRouter, vLLM, SGLang, llama.cpp, LM Studio
            r"context.?(length|window|size|limit|overflow)|model_max_prompt_tokens_exceeded",
            r"longer than the (model|maximum)|(greater than|exceed\w* the) max_model_len",
            r"maximum (prompt|input|sequence) length|input tokens exceed|exceed\w* max_seq_len",
            r"requested token count exceeds",
            # Anthropic, Bedrock, Fireworks, Zhipu
            r"(prompt|input) is too long|prompt exceeds max|prompt 超长",
            # Mistral, Google, Cohere, GitHub, watsonx
            r"too large for model with|input token count|too many (input )?tokens",
            r"prompt token count|number of input tokens|token limit",
            # Groq and Cerebras, Together and TGI, Alibaba, TensorRT-LLM
            r"reduce the length of the messages|`?inputs`? (tokens|must have less than)",
            r"range of input length|exceed max_num_tokens",
        )
    ),
    re.IGNORECASE,
)
"""Matches the error of a prompt that is too long, by itself or together with `max_tokens`."""
_ANSWER_TOO_LONG = re.compile(
    r"max_(completion_|new_)?tokens\W.{0,200}("
    r"too (large|high|big)|at most|maximum allowed|valid range|less than or equal|>|exceed)",
    re.IGNORECASE | re.DOTALL,
)
"""Matches the error of a `max_tokens` that no answer of the model can have."""
_NO_QUOTA = re.compile(
    r"insufficient[_ ](quota|balance|credits?|funds)|billing_hard_limit|billing hard limit"
    r"|credit balance is too low|out of credits|arrearage",
    re.IGNORECASE,
)
_NO_QUOTA_UNLESS_TIMED = re.compile(r"exceeded your (current |monthly )?quota", re.IGNORECASE)
_TIMED = re.compile(r"retry|per (minute|hour|day)|try again in", re.IGNORECASE)
"""Words of a quota that fills again in time."""


class RequestFailedError(Exception):
    """A request got no usable answer.

    Args:
        kind: Short name of the failure, as in `Failure`.
        message: Description.
        transient: Whether a retry may succeed.
        wait_s: Waiting time that the server asked for.
    """

    def __init__(
        self, kind: str, message: str, *, transient: bool = True, wait_s: float = 0.0
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.transient = transient
        self.wait_s = wait_s

    @property
    def is_bad_request(self) -> bool:
        """Whether the server refuses something in the body of the request."""
        return self.kind in ("http_400", "http_422", "http_501")


def failed_request(status: int, data: bytes, *, wait_s: float = 0.0) -> RequestFailedError:
    """The failure that an HTTP error describes.

    Args:
        status: HTTP status code.
        data: Body of the answer.
        wait_s: Waiting time that the server asked for.
    """
    kind, message = read_error(status, data)
    is_transient = status in TRANSIENT or (status >= 500 and status not in FINAL)
    return RequestFailedError(
        kind,
        f"HTTP {status}: {message}",
        transient=is_transient and kind != QUOTA,
        wait_s=wait_s,
    )


def failure_in(answer: Any) -> RequestFailedError | None:
    """The failure in a body that came with status 200: gateways put the real status there.

    Args:
        answer: The decoded JSON body.
    """
    if not isinstance(answer, Mapping) or answer.get("choices"):
        return None
    error = answer.get("error")
    code = error.get("code") if isinstance(error, Mapping) else None
    if isinstance(code, str) and code.isdecimal():
        code = int(code)
    if not isinstance(code, int) or not 400 <= code < 600:
        return None
    return failed_request(code, json.dumps(answer).encode())


def read_error(status: int, data: bytes) -> tuple[str, str]:
    """Parses an HTTP error into a kind and a message.

    Args:
        status: HTTP status code.
        data: Body of the answer: JSON in one of the usual forms, or plain text.

    Returns:
        `prompt_too_long`, `max_tokens`, `quota` or `http_STATUS`, and the server's message.
    """
    text = data.decode(errors="replace").strip()
    try:
        error = json.loads(text)
        error = error[0] if isinstance(error, list) else error  # Google puts it into a list
        error = error.get("error", error)
        message = str(error.get("message") or error.get("detail") or text)
    except (ValueError, AttributeError, IndexError, RecursionError):
        message = text
    return _kind(status, text), message[:MAX_MESSAGE_CHARS] or "no message"


def _kind(status: int, text: str) -> str:
    if status in _TOO_LONG_STATUSES and _TOO_LONG.search(text):
        return TOO_LONG
    if status in _TOO_LONG_STATUSES and _ANSWER_TOO_LONG.search(text):
        return LIMIT_TOO_HIGH
    has_no_quota = _NO_QUOTA.search(text) or (
        _NO_QUOTA_UNLESS_TIMED.search(text) and not _TIMED.search(text)
    )
    return QUOTA if status in (400, 402, 403, 429) and has_no_quota else f"http_{status}"
