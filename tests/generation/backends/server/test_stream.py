"""Streamed answers, cut into pieces anywhere."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.generation.backends.server.api import BadBodyError, read_response
from mathcanvas_lightning.generation.backends.server.stream import StreamedAnswer
from mathcanvas_lightning.generation.requests import GenerationRequest, Message, Sampling
from tests.generation.misbehaving import completion, events

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def written(parts: list[Any], *, line_end: str = "\n") -> bytes:
    texts = [part if isinstance(part, str) else json.dumps(part) for part in parts]
    return "".join(f"data: {text}{line_end}{line_end}" for text in texts).encode()


def fed(data: bytes, *cuts: int) -> StreamedAnswer:
    answer = StreamedAnswer()
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        answer.feed(data[start:end])
    return answer


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=3),
    line_end=st.sampled_from(["\n", "\r\n"]),
    drawn=st.data(),
)
def test_any_cuts_give_the_same_answer(
    texts: list[str], line_end: str, drawn: st.DataObject
) -> None:
    plain = completion(*texts)
    data = b": comment\n\n" + written(events(plain), line_end=line_end)
    cuts = sorted(drawn.draw(st.lists(st.integers(0, len(data)), max_size=5)))
    request = GenerationRequest(
        uid="1",
        messages=(Message(role="user", parts=("x",)),),
        sampling=Sampling(n=len(texts)),
    )
    assert read_response(request, fed(data, *cuts).finish()) == read_response(request, plain)


def test_an_early_end_is_noticed() -> None:
    parts = events(completion("one", "two"))
    for count in (1, 2, 4, 5):  # the finish reasons are parts 3 and 6
        with pytest.raises(BadBodyError, match="truncated") as raised:
            fed(written(parts[:count])).finish()
        assert raised.value.transient
    assert len(fed(written(parts[:6])).finish()["choices"]) == 2  # no [DONE], as some servers do


def test_an_end_without_finish_reasons_is_an_end() -> None:
    parts = [{"choices": [{"delta": {"content": "hi"}}]}, "[DONE]"]
    (choice,) = fed(written(parts)).finish()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("hi", None)


def test_an_error_in_the_stream_is_the_answer() -> None:
    error = {"error": {"message": "out of memory", "code": 500}}
    parts = [*events(completion("one"))[:2], error, "[DONE]"]
    assert fed(written(parts)).finish() == error


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"choices": 7}', '{"choices": [7]}'])
def test_malformed_events_are_rejected(text: str) -> None:
    with pytest.raises(BadBodyError, match="not an event"):
        fed(written([text])).finish()


def test_comments_are_no_events() -> None:
    answer = fed(b": still waiting\n\n: still waiting\n\n")
    assert answer.num_events == 0
    answer.feed(written(events(completion("x"))[:1]))
    assert answer.num_events == 1


def test_tokens_are_joined() -> None:
    parts = [
        {"choices": [{"index": 0, "delta": {"content": "a"}, "token_ids": [1]}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "token_ids": [2, 3]}]},
    ]
    (choice,) = fed(written(parts)).finish()["choices"]
    assert choice["token_ids"] == [1, 2, 3]
