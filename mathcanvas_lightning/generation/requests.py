"""Requests to a model and its responses: the data classes that all backends share."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from math import inf
from typing import Any, Literal

from mathcanvas_lightning.common.display.notebook import view
from mathcanvas_lightning.common.display.short import counted, short_repr
from mathcanvas_lightning.common.html_page import Notice, Piece
from mathcanvas_lightning.data.images.shown import shown_image
from mathcanvas_lightning.errors import ConfigError, check_settings
from mathcanvas_lightning.records.pictures import Picture

Role = Literal["system", "user", "assistant"]
Part = str | Picture
DrawingsUse = Literal["own", "none", "shuffled", "reference"]
"""What an interleaved answer has where the model wants to draw. own: what the model draws. none:
nothing, the next text follows at once. shuffled: the true drawing of this step of another problem.
reference: the true drawing of this step. The last two need solutions with drawings in the records;
where a step has none, the next text follows at once."""
GIVEN_DRAWINGS = ("shuffled", "reference")
"""Uses of drawings that come from the records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation: texts and pictures in reading order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """All texts of the message, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class Sampling:
    """How tokens are sampled, and when an answer ends.

    Raises:
        ConfigError: If a value is out of range, or more than one of json_schema, choice and regex
            is set.
    """

    temperature: float = 0.0
    """Sampling temperature; 0 always takes the most likely token."""
    top_p: float = 1.0
    """Nucleus sampling: sample from the most likely tokens whose probabilities sum to this."""
    max_tokens: int = 1024
    """Maximum length of an answer, in tokens."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that occurred before (in the prompt too) become less likely."""
    seed: int = 0
    """Seed of all random choices, together with the id of the request."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are removed from it."""
    n: int = 1
    """Number of answers for each request."""
    json_schema: dict[str, Any] | None = None
    """JSON schema that the answers must follow."""
    choice: tuple[str, ...] | None = None
    """List of allowed answers."""
    regex: str | None = None
    """Regular expression that the answers must match."""
    guide_strictly: bool = True
    """Whether a request fails if a server cannot keep to json_schema, choice or regex; if false, it
    is then answered freely."""

    def __post_init__(self) -> None:
        heat, penalty, choice = self.temperature, self.repetition_penalty, self.choice
        check_settings(
            ("sampling.temperature", heat, 0 <= heat < inf, "0 or more"),
            ("sampling.top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            ("sampling.max_tokens", self.max_tokens, self.max_tokens >= 1, "1 or more"),
            ("sampling.repetition_penalty", penalty, 0 < penalty < inf, "above 0"),
            ("sampling.n", self.n, self.n >= 1, "1 or more"),
            (
                "sampling.choice",
                choice,
                choice is None or len(choice) > 0,
                "at least one text, or null",
            ),
        )
        guides = [n for n in ("json_schema", "choice", "regex") if getattr(self, n) is not None]
        if len(guides) > 1:
            raise ConfigError(
                "sampling", found=" and ".join(guides), wanted="one of them", remedy="Keep one."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One conversation that the model continues."""

    uid: str
    """Id of the request, unique within a run."""
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """More variables for the model's chat template, such as `enable_thinking`."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the record that the request was built from. Only writers use it, not backends."""
    picture_digest: str | None = None
    """Hash of the record's pictures, see `hash_pictures`. Only writers use it."""
    drawings: tuple[Picture, ...] | None = None
    """Drawings that the answer has instead of the model's own, for `drawings: reference` or
    `shuffled` of a backend that draws; None if they were not asked for."""

    @property
    def seed(self) -> int:
        """Random seed of this request (31 bits): the same in any batch, order or process."""
        key = f"{self.sampling.seed}:{self.uid}".encode(errors="surrogatepass")
        return int.from_bytes(blake2b(key, digest_size=4).digest()) >> 1

    @property
    def text_digest(self) -> str:
        """Short hash of all texts and of the positions of the pictures."""
        contents = [
            [message.role, *(part if isinstance(part, str) else None for part in message.parts)]
            for message in self.messages
        ]
        key = json.dumps([contents, dict(self.template_options)], sort_keys=True, default=repr)
        return blake2b(key.encode(errors="surrogatepass"), digest_size=8).hexdigest()

    @property
    def prompt_digest(self) -> str:
        """Short hash of everything but the pictures of the question: equal for equal prompts."""
        pictures = _hashes(_pictures(self.messages[:-1]))
        key = "".join((self.text_digest, *pictures)).encode()
        return blake2b(key, digest_size=8).hexdigest() if pictures else self.text_digest

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures, in reading order."""
        return tuple(_pictures(self.messages))


def hash_pictures(pictures: Iterable[Picture]) -> str | None:
    """Short hash of the content of pictures.

    Args:
        pictures: Pictures in order.

    Returns:
        The hash; None if there are no pictures.
    """
    hashes = _hashes(pictures)
    return blake2b("".join(hashes).encode(), digest_size=8).hexdigest() if hashes else None


def _hashes(pictures: Iterable[Picture]) -> list[str]:
    return [blake2b(picture.data, digest_size=8).hexdigest() for picture in pictures]


def _pictures(messages: Iterable[Message]) -> list[Picture]:
    parts = (part for message in messages for part in message.parts)
    return [part for part in parts if isinstance(part, Picture)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One answer."""

    text: str
    finish_reason: str | None = None
    """Why the answer ended: "stop" (a stop text or the end token), "length" (`max_tokens`). A model
    that draws also has "max_steps", "max_images" and "window" (its context is full)."""
    token_ids: tuple[int, ...] = ()
    """Token ids of the answer; empty if the backend does not return them."""
    steps: tuple[Part, ...] = ()
    """Texts and drawings in order, if the model makes both. An empty text means that the model drew
    without writing a text first."""

    @property
    def num_drawings(self) -> int:
        """Number of drawings."""
        return sum(isinstance(step, Picture) for step in self.steps)

    def __repr__(self) -> str:
        facts = (counted(self.num_drawings, "drawing"),) if self.steps else ()
        return short_repr(self, *facts, text=self.text, finish_reason=self.finish_reason)

    def _repr_html_(self) -> str:
        return view("answer", {"": self.shown}, facts={"finish reason": self.finish_reason})

    @property
    def shown(self) -> list[Piece]:
        """Texts and pictures for a page or a notebook."""
        return [
            shown_image(step.data, step.place) if isinstance(step, Picture) else step
            for step in self.steps or (self.text,)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Number of tokens that a request used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a request has no answer."""

    kind: str
    """Short name: `prompt_too_long`, `picture_unreadable`, `timeout`, `http_500`, ..."""
    message: str
    """Description of the failure, with the values found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResponse:
    """Result of a request: either `sampling.n` outputs or a failure."""

    uid: str
    outputs: tuple[Output, ...] = ()
    usage: Usage = Usage()
    failure: Failure | None = None

    def __post_init__(self) -> None:
        assert bool(self.outputs) != (self.failure is not None), self

    def __repr__(self) -> str:
        if self.failure is not None:
            return short_repr(self, repr(self.uid), failure=self.failure.kind)
        return short_repr(self, repr(self.uid), *map(repr, self.outputs))

    def _repr_html_(self) -> str:
        if self.failure is not None:
            notice = Notice(f"{self.failure.kind}: {self.failure.message}")
            return view(self.uid, {"no answer": [notice]})
        many = len(self.outputs) > 1
        sections = {
            f"answer {n}" if many else "answer": one.shown for n, one in enumerate(self.outputs, 1)
        }
        return view(self.uid, sections)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A response together with its request."""

    response: GenerationResponse
    request: GenerationRequest | None
    """None if no request could be built from the record."""
