"""What is asked of a model and what it answers: the records at the seams of generation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.records.pictures import Picture

Role = Literal["system", "user", "assistant"]


Part = str | Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A turn of a conversation: texts and pictures in the order they are read."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """All its texts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class Sampling:
    """How tokens are chosen, and when to stop.

    Raises:
        ConfigError: If a value is out of its range, or more than one kind of guidance is set.
    """

    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Only the likeliest tokens that make up this probability are drawn from."""
    max_tokens: int = 1024
    """Tokens of an answer at most."""
    repetition_penalty: float = 1.0
    """Above 1, tokens seen before (in the prompt too) become less likely."""
    seed: int = 0
    """With the request's id, decides all draws."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are left out of it."""
    n: int = 1
    """Answers a request."""
    json_schema: dict[str, Any] | None = None
    """Answers are JSON values that fit this schema."""
    choice: tuple[str, ...] | None = None
    """Answers are one of these texts."""
    regex: str | None = None
    """Answers match this regular expression."""

    def __post_init__(self) -> None:
        limits = {
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "n": (self.n >= 1, "1 or more"),
            "choice": (self.choice is None or len(self.choice) > 0, "at least one text, or null"),
        }
        for name, (fits, wanted) in limits.items():
            if not fits:
                raise ConfigError(
                    f"sampling.{name}",
                    found=repr(getattr(self, name)),
                    wanted=wanted,
                    remedy="Change it.",
                )
        guides = [n for n in ("json_schema", "choice", "regex") if getattr(self, n) is not None]
        if len(guides) > 1:
            raise ConfigError(
                "sampling", found=" and ".join(guides), wanted="one of them", remedy="Keep one."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One conversation to be answered."""

    uid: str
    """Names it within a run."""
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the model's chat template, such as `enable_thinking`."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What it was made of, for writers; no backend looks at it."""

    @property
    def seed(self) -> int:
        """Seed of this request's draws: 31 bits, the same in any batch, order or process."""
        key = f"{self.sampling.seed}:{self.uid}".encode(errors="surrogatepass")
        return int.from_bytes(blake2b(key, digest_size=4).digest()) >> 1

    @property
    def text_digest(self) -> str:
        """A short hash of all that it says, and of where its pictures stand."""
        said = [
            [message.role, *(part if isinstance(part, str) else None for part in message.parts)]
            for message in self.messages
        ]
        key = json.dumps([said, dict(self.template_options)], sort_keys=True, default=repr)
        return blake2b(key.encode(errors="surrogatepass"), digest_size=8).hexdigest()

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures, in the order they are read."""
        parts = (part for message in self.messages for part in message.parts)
        return tuple(part for part in parts if isinstance(part, Picture))


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One answer."""

    text: str
    finish_reason: str | None = None
    """Why it ended: "stop" (a stop text, or the model's own end), "length" (`max_tokens`); where
    the model draws too, "max_steps", "max_images", or "window" (its context is full); ..."""
    token_ids: tuple[int, ...] = ()
    """Its tokens, where the backend tells them."""
    steps: tuple[Part, ...] = ()
    """Texts and drawings in order, where the model makes both; an empty text stands for one that
    the model left out before it drew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a request has no answer."""

    kind: str
    """A short name: `prompt_too_long`, `picture_unreadable`, `timeout`, `http_500`, ..."""
    message: str
    """What happened, with the values found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResponse:
    """What became of a request: `sampling.n` outputs, or a failure; never both."""

    uid: str
    outputs: tuple[Output, ...] = ()
    usage: Usage = Usage()
    failure: Failure | None = None

    def __post_init__(self) -> None:
        assert bool(self.outputs) != (self.failure is not None), self


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A response and what it answers."""

    response: GenerationResponse
    request: GenerationRequest | None
    """None where the record could not be made into a request."""
