"""Messages between a process and its engine process; both import this file."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from mathcanvas_lightning.generation.requests import (
    Failure,
    GenerationRequest,
    GenerationResponse,
)
from mathcanvas_lightning.vllm_bagel.blocks import ContextPart


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The first message to the engine."""

    arguments: dict[str, Any]
    """Arguments of `vllm.LLM`."""
    lora_path: str | None
    local_rank: int
    num_gpus: int
    """Number of GPUs that this engine needs."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Message of the engine: it accepts requests now."""

    window: int = 0
    """Maximum length of a prompt with its answer, in tokens."""


@dataclass(frozen=True, slots=True)
class EngineFailure:
    """The last message of an engine that cannot start or cannot continue."""

    error: str


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Message to the engine: drop these requests; nothing is sent for them from then on."""

    uids: Collection[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextRequest:
    """A text that BAGEL writes after a context of tokens and images."""

    uid: str
    """Id, unique among all pending requests."""
    context: tuple[ContextPart, ...]
    """Token ids and image blocks in order; ends with the start token of the text."""
    end_id: int
    """Token that ends the text."""
    max_tokens: int
    """Maximum length of the text with its end token."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    """Random seed of the text."""
    wants_action: bool = False
    """Whether to choose one more token after the end token: the model's next action."""
    wants_logprobs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextResult:
    """A text after a context, or why it failed."""

    uid: str
    token_ids: tuple[int, ...] = ()
    """The text without its end token."""
    finish_reason: Literal["stop", "length"] | None = None
    """stop: the end token was chosen. length: `max_tokens` or the engine's window is reached. None
    with a failure."""
    action_id: int | None = None
    """The token after the end token; None if it was not wanted, the text has no end token, or the
    window is full."""
    logprobs: tuple[float, ...] = ()
    """Log probability of each chosen token: text, end token, action. Empty if not wanted."""
    num_context_tokens: int = 0
    """Length of the context, with image tokens and markers."""
    num_cached_tokens: int = 0
    """How many of them were found in the prefix cache."""
    failure: Failure | None = None


EngineRequest = GenerationRequest | ContextRequest
EngineResult = GenerationResponse | ContextResult


def failed(request: EngineRequest, failure: Failure) -> EngineResult:
    """The result of a request that cannot be answered."""
    if isinstance(request, ContextRequest):
        return ContextResult(uid=request.uid, failure=failure)
    return GenerationResponse(uid=request.uid, failure=failure)
