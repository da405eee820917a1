"""The events between two moments of an answer."""

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mathcanvas_lightning.generation.bagel.problem import Answer, Step
from mathcanvas_lightning.generation.bagel.rollout.progress import Progress, follow, new_events
from mathcanvas_lightning.generation.events import (
    DrawingEvent,
    EndEvent,
    TextEvent,
    WaitEvent,
)
from mathcanvas_lightning.generation.requests import GenerationRequest

DRAWING = Image.new("RGB", (2, 2))
CONTENTS = (st.text(min_size=1), st.just(DRAWING))


def steps(contents: list[str | Image.Image]) -> tuple[Step, ...]:
    return tuple(Step(number=n, content=one) for n, one in enumerate(contents, start=1))


@given(st.lists(st.one_of(*CONTENTS), min_size=1), st.data())
def test_each_finished_step_is_shown_once(
    contents: list[str | Image.Image], data: st.DataObject
) -> None:
    whole = steps(contents)
    counts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    moments = iter([Progress(steps=whole[:count], number=count + 1) for count in counts])
    answer = Answer(
        uid="a#0", steps=whole, finish_reason="stop", num_input_tokens=1, num_written_tokens=1
    )
    turns = iter([*([[]] * len(counts)), [answer]])
    request = GenerationRequest(uid="a", messages=())
    *events, end = follow(request, lambda: next(turns), lambda: next(moments))
    shown = [event for event in events if not isinstance(event, WaitEvent)]
    assert [event.step for event in shown] == [step.number for step in whole]
    for event, content in zip(shown, contents, strict=True):
        if isinstance(event, TextEvent):
            assert event.text == content
        else:
            assert event.picture is not None
            assert content is DRAWING
    assert isinstance(end, EndEvent)
    assert end.response.outputs[0].finish_reason == "stop"


def test_unfinished_steps_are_shown_when_they_change() -> None:
    writing = Progress(number=1, writing="a")
    longer = Progress(number=1, writing="ab")
    drawing = Progress(steps=steps(["ab"]), number=1, drawn=0.5)
    assert list(new_events(Progress(), writing)) == [TextEvent(step=1, text="a")]
    assert list(new_events(writing, writing)) == [WaitEvent()]
    assert list(new_events(writing, longer)) == [TextEvent(step=1, text="ab")]
    finished = [TextEvent(step=1, text="ab"), DrawingEvent(step=1, share=0.5)]
    assert list(new_events(longer, drawing)) == finished
    assert list(new_events(drawing, drawing)) == [WaitEvent()]
