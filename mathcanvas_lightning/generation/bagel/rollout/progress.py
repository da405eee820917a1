"""The progress of an answer, and the events between two of its states."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mathcanvas_lightning.generation.bagel.problem import Answer, Step
from mathcanvas_lightning.generation.bagel.requests import encoded_drawing, response_of
from mathcanvas_lightning.generation.events import (
    DrawingEvent,
    EndEvent,
    Event,
    TextEvent,
    WaitEvent,
)
from mathcanvas_lightning.generation.requests import GenerationRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The state of an answer in progress."""

    steps: tuple[Step, ...] = ()
    """Finished texts and drawings."""
    number: int = 1
    """Number of the current step."""
    writing: str | None = None
    """Unfinished text of the current step; None if no text is in progress, or it is not known."""
    drawn: float | None = None
    """Finished part of the current drawing, from 0 to 1; None as for `writing`."""


def follow(
    request: GenerationRequest,
    advance: Callable[[], list[Answer]],
    progress: Callable[[], Progress],
) -> Iterator[Event]:
    """Advances the only pending problem until it is answered.

    Args:
        request: The request of the problem.
        advance: Advances the problem; returns its answer when it is finished.
        progress: Returns the state of its answer.

    Yields:
        At least one event after each call of `advance`, at last an `EndEvent`.
    """
    seen = Progress()
    while not (answers := advance()):
        now = progress()
        yield from new_events(seen, now)
        seen = now
    (answer,) = answers
    yield from _steps(answer.steps[len(seen.steps) :])
    yield EndEvent(response=response_of(request, [answer]))


def new_events(before: Progress, after: Progress) -> Iterator[Event]:
    """The events between two states of an answer.

    Args:
        before: The earlier state.
        after: The later one.

    Yields:
        Finished steps, then what is in progress; a `WaitEvent` if nothing is new.
    """
    yield from _steps(after.steps[len(before.steps) :])
    is_same = before.number == after.number
    if after.writing and not (is_same and before.writing == after.writing):
        yield TextEvent(step=after.number, text=after.writing)
    elif after.drawn is not None and not (is_same and before.drawn == after.drawn):
        yield DrawingEvent(step=after.number, share=after.drawn)
    elif len(after.steps) <= len(before.steps):
        yield WaitEvent()


def _steps(steps: tuple[Step, ...]) -> Iterator[Event]:
    for step in steps:
        if isinstance(step.content, str):
            yield TextEvent(step=step.number, text=step.content)
        else:
            picture = encoded_drawing(step.content)
            yield DrawingEvent(step=step.number, share=1.0, picture=picture)
