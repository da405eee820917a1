"""A backend that answers by a script, and can be held between two events."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from mathcanvas_lightning.generation.events import DrawingEvent, EndEvent, Event, TextEvent
from mathcanvas_lightning.generation.requests import (
    Failure,
    GenerationRequest,
    GenerationResponse,
    Output,
    Usage,
)
from mathcanvas_lightning.records.pictures import Picture
from tests.conftest import png

DRAWING = png(16, 8, "blue")
MARKUP = "<img src=x onerror=alert(1)> [bold]</script>"
"""A text that a page or a terminal could take for commands."""


@dataclass
class ScriptedBackend:
    """Answers "x" by a text, a drawing and a text."""

    asked: list[GenerationRequest] = field(default_factory=list)
    hold: bool = False
    """Whether answers repeat their first event until they are closed."""
    closed: threading.Event = field(default_factory=threading.Event)
    """Set when an answer is closed before its end."""
    error: Exception | None = None
    """Raised in the middle of an answer."""
    model_name: str = "scripted <model>"

    def start(self, *, local_rank: int = 0, device: str = "cpu") -> None:
        """Has nothing to load."""

    def close(self) -> None:
        """Has nothing to free."""

    def stream(self, request: GenerationRequest) -> Iterator[Event]:
        self.asked.append(request)
        question = request.messages[-1].text
        if question == "fail":
            failure = Failure(kind="prompt_too_long", message="too long by 3 tokens")
            yield EndEvent(response=GenerationResponse(uid=request.uid, failure=failure))
            return
        try:
            yield TextEvent(step=1, text="re")
            while self.hold:
                time.sleep(0.005)  # as a token takes; else nothing but its events is handled
                yield TextEvent(step=1, text="re")
            if self.error is not None:
                raise self.error
        except GeneratorExit:
            self.closed.set()
            raise
        first, last = f"re: {question}", f"seed {request.sampling.seed} {MARKUP}"
        yield TextEvent(step=1, text=first)
        yield DrawingEvent(step=1, share=0.5)
        yield DrawingEvent(step=1, share=1.0, picture=Picture(DRAWING))
        yield TextEvent(step=2, text=last)
        output = Output(
            text=f"{first}\n\n{last}", finish_reason="stop", steps=(first, Picture(DRAWING), last)
        )
        usage = Usage(prompt_tokens=3, completion_tokens=7)
        response = GenerationResponse(uid=request.uid, outputs=(output,), usage=usage)
        yield EndEvent(response=response)
