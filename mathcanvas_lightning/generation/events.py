"""Events while a model answers one request: texts and drawings as they are made, and the end."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from mathcanvas_lightning.generation.requests import GenerationRequest, GenerationResponse
from mathcanvas_lightning.records.pictures import Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEvent:
    """The text of a step so far; it replaces that of earlier events of the same step."""

    step: int
    """Number of the step, from 1."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingEvent:
    """The drawing of a step, in progress or finished."""

    step: int
    """Number of the step, from 1: that of the text before the drawing."""
    share: float
    """Finished part of the drawing, from 0 to 1."""
    picture: Picture | None = None
    """The finished drawing as PNG."""


@dataclass(frozen=True, slots=True)
class WaitEvent:
    """Nothing new; a caller can stop here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndEvent:
    """The end of the answer; always the last event."""

    response: GenerationResponse


Event = TextEvent | DrawingEvent | WaitEvent | EndEvent


class StreamingBackend(Protocol):
    """A backend that shows an answer while it is made."""

    @property
    def model_name(self) -> str:
        """Name of the model."""
        ...

    def start(self, *, local_rank: int = 0, device: str = "cpu") -> None:
        """Loads the model, or connects to its server; does nothing if that is done."""
        ...

    def stream(self, request: GenerationRequest) -> Iterator[Event]:
        """Answers a request for one sample; closing the iterator drops the answer."""
        ...

    def close(self) -> None:
        """Frees the model; pending requests are dropped."""
        ...
