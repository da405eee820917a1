"""Requests to a chat server that fails in every way, and to a real one."""

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.backends.base import BackendError, GenerationBackend, generate
from mathcanvas_lightning.generation.backends.server.backend import (
    TEST_MESSAGES,
    ServerBackend,
)
from mathcanvas_lightning.generation.backends.server.client import RetryPolicy, parse_retry_after
from mathcanvas_lightning.generation.backends.server.process import ServerConfig
from mathcanvas_lightning.generation.backends.server.streak import MAX_FAILURES
from mathcanvas_lightning.generation.events import EndEvent, TextEvent, WaitEvent
from mathcanvas_lightning.generation.requests import (
    GenerationRequest,
    GenerationResponse,
    Message,
    Part,
    Sampling,
)
from mathcanvas_lightning.records.pictures import Picture
from tests.conftest import png
from tests.generation.misbehaving import Answer, ChatServer, ServerFault, chat_server, completion


def named(fault: object) -> str | None:
    """Short name for the test id."""
    if not isinstance(fault, ServerFault):
        return None
    return " ".join(
        f"{field.name}={getattr(fault, field.name)}"
        for field in fields(fault)
        if getattr(fault, field.name) not in (field.default, {})
    )


BUSY = ServerFault(status=500, message="busy")
BAD = [f"bad {number}" for number in range(MAX_FAILURES)]
"""Questions whose failures end the run if a test request fails too."""
TEST_QUESTION = TEST_MESSAGES[0].text
HANG_S = 1.5
"""Time limit where a server hangs: every request without a fault takes far less, also on a busy
machine."""


def ask(question: str, *parts: Part, **sampling: Any) -> GenerationRequest:
    message = Message(role="user", parts=(*parts, question))
    return GenerationRequest(uid=question, messages=(message,), sampling=Sampling(**sampling))


def limit_s(fault: ServerFault) -> float:
    """Time limit of a request."""
    return HANG_S if fault.hang else 60.0


@contextlib.contextmanager
def backend(chat: ChatServer, **options: Any) -> Iterator[ServerBackend]:
    """A started backend with short waits; checks that no thread is left."""
    made = ServerBackend(chat.url, **{"backoff_s": 0.01, "max_retries": 3, **options})
    try:
        made.start()
        yield made
    finally:
        made.close()
        made.close()
        assert "server-backend" not in [thread.name for thread in threading.enumerate()]


def answers(made: GenerationBackend, *requests: GenerationRequest) -> dict[str, GenerationResponse]:
    """Responses by id."""
    return {response.uid: response for response in generate(made, requests)}


def text(response: GenerationResponse) -> str:
    assert response.failure is None
    return response.outputs[0].text


def wait_until_finished(made: ServerBackend, num_requests: int) -> None:
    """Waits until so many requests are finished; they are not collected yet."""
    session = made._session
    assert session is not None
    while session.done.qsize() < num_requests:
        time.sleep(0.01)


def kind(response: GenerationResponse) -> str:
    assert response.failure is not None
    return response.failure.kind


@pytest.mark.slow
def test_concurrency_is_limited() -> None:
    with (
        chat_server(ChatServer(delay_s=0.05, gather=7)) as chat,
        backend(chat, max_concurrency=7) as made,
    ):
        assert isinstance(made, GenerationBackend)
        assert (made.model_name, made.max_pending, made.num_pending) == ("parrot", 14, 0)
        assert made.collect() == []
        requests = [ask(str(number)) for number in range(100)]
        made.submit(requests[:40])  # more than max_pending
        assert made.num_pending == 40
        responses = {response.uid: response for response in made.collect()}
        assert made.num_pending == 40 - len(responses)
        while made.num_pending:  # generate() would drop the responses of other callers
            responses |= {response.uid: response for response in made.collect()}
        responses |= answers(made, *requests[40:])
        assert made.num_pending == 0
        assert {uid: text(response) for uid, response in responses.items()} == {
            str(number): f"re: {number}" for number in range(100)
        }
        assert chat.max_open == 7
        assert set(chat.tries.values()) == {1}


def test_a_streamed_answer_grows() -> None:
    with chat_server(ChatServer()) as chat, backend(chat) as made:
        *events, end = made.stream(ask("a question", Picture(png())))
        assert isinstance(end, EndEvent)
        assert text(end.response) == "re: a question"
        texts = [event.text for event in events if isinstance(event, TextEvent)]
        assert texts[-1] == "re: a question"
        assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
        assert made.num_pending == 0


def test_a_stream_ends_with_a_failure_and_the_next_one_works() -> None:
    plans = {"refused": [ServerFault(status=400)], "cut": [ServerFault(cut=True)]}
    with chat_server(ChatServer(plans=plans)) as chat, backend(chat) as made:
        broken = ask("broken", Picture(b"none"))
        kinds = [list(made.stream(one))[-1] for one in (ask("refused"), broken)]
        assert [kind(end.response) for end in kinds if isinstance(end, EndEvent)] == [
            "http_400",
            "picture_unreadable",
        ]
        end = list(made.stream(ask("cut")))[-1]  # tried again
        assert isinstance(end, EndEvent)
        assert text(end.response) == "re: cut"


def test_a_closed_stream_frees_its_place() -> None:
    hanging = {"hang": [ServerFault(hang=True)]}
    with chat_server(ChatServer(plans=hanging)) as chat, backend(chat, max_concurrency=1) as made:
        stream = made.stream(ask("hang"))
        assert next(stream) == WaitEvent()
        stream.close()  # type: ignore[attr-defined]
        end = list(made.stream(ask("next")))[-1]
        assert isinstance(end, EndEvent)
        assert text(end.response) == "re: next"


def test_several_outputs_and_pictures() -> None:
    with chat_server(ChatServer()) as chat, backend(chat, extra_body={"top_k": 9}) as made:
        drawn = ask("two", n=2, temperature=1.0)
        responses = answers(made, drawn, ask("see", Picture(png())))
        assert [output.text for output in responses["two"].outputs] == ["re: two"] * 2
        assert responses["two"].usage.completion_tokens == 4
        assert text(responses["see"]) == "re: see"
        assert [body["top_k"] for body in chat.bodies] == [9, 9]


@pytest.mark.parametrize(
    "fault",
    [
        BUSY,
        ServerFault(status=503),
        ServerFault(status=429),
        ServerFault(status=429, headers={"Retry-After": "nonsense"}),
        ServerFault(status=408),
        ServerFault(status=409),
        ServerFault(drop=True),
        ServerFault(cut=True),
        pytest.param(ServerFault(hang=True), marks=pytest.mark.slow),
        ServerFault(body=b'{"choices": '),
        ServerFault(body=b"\xff\xfe"),
        ServerFault(body=b"[]"),
        ServerFault(body=b'{"error": {"message": "busy"}}'),
        ServerFault(body=b"[" * 100_000),
        ServerFault(body=json.dumps(completion("re: b", reason="abort")).encode()),
    ],
    ids=named,
)
def test_transient_failures_are_retried(fault: ServerFault) -> None:
    with (
        chat_server(ChatServer(plans={"bad": [fault, fault]})) as chat,
        backend(chat, timeout_s=limit_s(fault)) as made,
    ):
        responses = answers(made, ask("bad"), ask("good"))
        assert {uid: text(response) for uid, response in responses.items()} == {
            "bad": "re: bad",
            "good": "re: good",
        }
        assert chat.tries == {"bad": 3, "good": 1}


@pytest.mark.parametrize(
    ("fault", "kind_wanted", "tries", "words"),
    [
        (BUSY, "http_500", 4, "HTTP 500: busy (the last of 4 tries)"),
        (ServerFault(status=429), "http_429", 4, "HTTP 429: as planned (the last of 4 tries)"),
        pytest.param(
            *(ServerFault(hang=True), "timeout", 2),
            "no complete answer in 1.5 s (the last of 2 tries)",
            marks=pytest.mark.slow,
        ),
        (ServerFault(drop=True), "connection", 4, "Server disconnected (the last of 4 tries)"),
        (ServerFault(cut=True), "bad_body", 4, "the answer was truncated"),
        (ServerFault(body=b"{"), "bad_body", 4, "not JSON: "),
        (ServerFault(body=b"{}"), "bad_body", 4, "not a chat completion: {} (the last of 4 tries)"),
        (ServerFault(status=400, message="no role"), "http_400", 1, "HTTP 400: no role"),
        (
            ServerFault(status=400, message="This model's maximum context length is 8 tokens."),
            "prompt_too_long",
            2,
            "HTTP 400: This model's maximum context length is 8 tokens.",
        ),
    ],
    ids=named,
)
def test_failures_are_reported(
    fault: ServerFault, kind_wanted: str, tries: int, words: str
) -> None:
    with (
        chat_server(ChatServer(plans={"bad": [fault] * 9})) as chat,
        backend(chat, timeout_s=limit_s(fault), max_retries=1 if fault.hang else 3) as made,
    ):
        responses = answers(made, ask("bad"), ask("good"))
        assert text(responses["good"]) == "re: good"
        failure = responses["bad"].failure
        assert failure is not None
        assert failure.kind == kind_wanted
        assert failure.message.startswith(words)
        assert chat.tries["bad"] == tries


def test_a_broken_picture_fails_only_its_request() -> None:
    with chat_server(ChatServer()) as chat, backend(chat) as made:
        broken = Picture(b"GIF89a", place="drawing.gif")
        responses = answers(made, ask("see", broken), ask("good"))
        assert kind(responses["see"]) == "picture_unreadable"
        assert responses["see"].failure is not None
        assert "drawing.gif" in responses["see"].failure.message
        assert text(responses["good"]) == "re: good"
        assert chat.tries == {"good": 1}


@pytest.mark.slow
def test_a_hanging_request_does_not_block_others() -> None:
    plans = {"bad": [ServerFault(hang=True)] * 9}
    with chat_server(ChatServer(plans=plans)) as chat, backend(chat, max_concurrency=2) as made:
        made.submit([ask("bad"), *(ask(str(number)) for number in range(30))])
        collected = []
        while made.num_pending > 1:
            collected += made.collect()
        assert {response.uid for response in collected} == {str(number) for number in range(30)}
        began = time.monotonic()
        made.close()
        assert time.monotonic() - began < 50  # the server hangs for 60 s
        assert made.num_pending == 0
        assert made.collect() == []


def test_close_wakes_a_waiting_collect() -> None:
    plans = {"bad": [ServerFault(hang=True)]}
    with chat_server(ChatServer(plans=plans)) as chat, backend(chat) as made:
        made.submit([ask("bad")])
        collected: list[list[GenerationResponse]] = []
        waiting = threading.Thread(target=lambda: collected.append(made.collect()))
        waiting.start()
        time.sleep(0.2)
        assert waiting.is_alive()
        made.close()
        waiting.join(50)
        assert collected == [[]]


def test_it_can_be_started_again() -> None:
    with chat_server(ChatServer()) as chat, backend(chat) as made:
        for question in ("before", "after"):
            made.start()
            made.start()
            assert text(answers(made, ask(question))[question]) == f"re: {question}"
            made.close()
        with pytest.raises(BackendError, match="before start"):
            made.submit([ask("too late")])


@pytest.mark.slow
@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_obeyed(as_date: bool) -> None:
    seconds = 3 if as_date else 1
    when = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
    value = format_datetime(when, usegmt=True) if as_date else str(seconds)
    fault = ServerFault(status=429, headers={"Retry-After": value})
    with chat_server(ChatServer(plans={"bad": [fault]})) as chat, backend(chat) as made:
        assert text(answers(made, ask("bad"))["bad"]) == "re: bad"
        first, second = chat.times["bad"]
        if as_date:
            assert datetime.now(UTC) > when - timedelta(seconds=0.1)
        else:
            assert second - first > 0.9


def test_retry_after_is_parsed() -> None:
    assert parse_retry_after("2.5") == 2.5
    for value in ("", "-3", "nan", "soon", "Fri, 31 Dec 1999 23:59:59 GMT"):
        assert parse_retry_after(value) == 0
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=10_000))
    assert 9000 < parse_retry_after(date) <= 10_000


@given(
    number=st.integers(0, 10_000),
    asked_s=st.floats(0, allow_nan=False),
    backoff_s=st.floats(0, 100),
    max_backoff_s=st.floats(0, 1000),
    timeout_s=st.floats(0.01, 1000),
    fraction=st.floats(0, 1),
)
def test_waits_are_bounded(
    number: int,
    asked_s: float,
    backoff_s: float,
    max_backoff_s: float,
    timeout_s: float,
    fraction: float,
) -> None:
    policy = RetryPolicy(
        max_retries=1, timeout_s=timeout_s, backoff_s=backoff_s, max_backoff_s=max_backoff_s
    )
    asked = min(asked_s, timeout_s)
    wait_s = policy.wait_s(number, asked_s, fraction)
    most = min(max_backoff_s, backoff_s * 2 ** min(number, 100))
    assert asked <= wait_s <= (asked + most) * (1 + 1e-9)


def test_a_stopped_server_ends_the_run() -> None:
    with contextlib.ExitStack() as stack:
        serving = contextlib.ExitStack()
        chat = serving.enter_context(chat_server(ChatServer()))
        made = stack.enter_context(backend(chat))
        assert text(answers(made, ask("good"))["good"]) == "re: good"
        serving.close()
        with pytest.raises(BackendError, match="restart the server") as raised:
            answers(made, *(ask(str(number)) for number in range(300)))
        assert chat.url in str(raised.value)
        with pytest.raises(BackendError):
            made.collect()


@contextlib.contextmanager
def finished_but_not_collected() -> Iterator[ServerBackend]:
    """A backend with one answer and several failures."""
    plans = {name: [ServerFault(status=404)] for name in (*BAD, TEST_QUESTION)}
    with chat_server(ChatServer(plans=plans)) as chat, backend(chat) as made:
        made.submit([ask("good"), *map(ask, BAD)])
        wait_until_finished(made, 1 + len(BAD))
        yield made


def test_answers_come_before_the_error() -> None:
    with finished_but_not_collected() as made:
        assert "re: good" in [text(one) for one in made.collect() if one.outputs]
        with pytest.raises(BackendError, match="HTTP 404"):
            made.collect()


def test_an_error_is_raised_if_nothing_else_is_pending() -> None:
    with finished_but_not_collected() as made:
        collected = []
        with pytest.raises(BackendError, match="HTTP 404"):
            while made.num_pending:
                collected += made.collect()
        assert [text(one) for one in collected if one.outputs] == ["re: good"]
        for call in (
            made.start,
            lambda: made.submit([ask("more")]),
        ):  # both raise it
            with pytest.raises(BackendError, match="HTTP 404"):
                call()
        assert made.num_pending >= 1
        made.close()
        made.start()
        assert text(answers(made, ask("more"))["more"]) == "re: more"


def test_unexpected_errors_are_raised_after_the_answers() -> None:
    with chat_server(ChatServer()) as chat, backend(chat) as made:
        unspeakable = replace(ask("bad"), template_options={"key": object()})
        made.submit([ask("good"), unspeakable, ask("fine")])
        wait_until_finished(made, 3)
        assert {text(response) for response in made.collect()} == {"re: good", "re: fine"}
        with pytest.raises(BackendError, match=r"TypeError: .*not JSON serializable") as raised:
            made.collect()
        assert isinstance(raised.value.__cause__, TypeError)


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_the_window_ends_an_answer(limit: str) -> None:
    words = "max_tokens=99 cannot be greater than max_model_len=64."
    plans = {"long": [ServerFault(status=400, message=words)]}
    extra = {"max_tokens": None, limit: 99}
    with chat_server(ChatServer(plans=plans)) as chat, backend(chat, extra_body=extra) as made:
        assert text(answers(made, ask("long"))["long"]) == "re: long"
        first, second = chat.bodies
        assert first.pop(limit) == 99
        assert first == second  # except for the limit


def test_settings_contain_what_changes_the_answers(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1/v1"
    plain = ServerBackend(url).settings
    same = ServerBackend(url, api_key="hidden", max_concurrency=2, max_retries=0, timeout_s=9)
    assert same.settings == plain
    assert ServerBackend("http://127.0.0.1:2/v1").settings != plain
    assert ServerBackend(url, extra_body={"top_k": 3}).settings != plain
    (tmp_path / "link").symlink_to(tmp_path)
    options = {"api-key": "hidden", "dtype": "float32", "tensor_parallel_size": 2}
    command = ["serve", "{port}", "--api-key", "hidden", "--token=hidden", "sh -c 'A_KEY=hidden x'"]
    one, other = (
        ServerBackend(
            server=ServerConfig(
                model_path=path, command=command, options=options | more, env={"TOKEN": "hidden"}
            )
        ).settings
        for path, more in ((str(tmp_path / "link"), {}), (str(tmp_path), {"api_key": "hidden"}))
    )
    assert one == other == json.loads(json.dumps(one))
    assert one["server"]["model"] == str(tmp_path.resolve())
    assert one["server"]["options"] == {"dtype": "float32"}
    assert "hidden" not in json.dumps(one)


@pytest.mark.parametrize("status", [301, 302, 307, 308, 401, 402, 403, 404])
def test_a_server_that_refuses_everything_ends_the_run(status: int) -> None:
    fault = ServerFault(status=status, message="not for you")
    with chat_server(ChatServer(fault=fault)) as chat, backend(chat, max_concurrency=1) as made:
        with pytest.raises(BackendError, match="not for you"):
            answers(made, *(ask(str(number)) for number in range(50)))
        assert chat.tries.total() <= 3  # one request, a test request, and one that came between


@pytest.mark.parametrize("place", [0, 7])
@pytest.mark.parametrize("status", [402, 403, 404])
def test_a_refused_input_fails_alone(status: int, place: int) -> None:
    """OpenRouter answers 403 to an input that its moderation has flagged."""
    refusal = ServerFault(status=status, message="your input was flagged")
    questions = [str(number) for number in range(20)]
    plans = {questions[place]: [refusal]}
    with chat_server(ChatServer(plans=plans)) as chat, backend(chat, max_concurrency=2) as made:
        responses = answers(made, *map(ask, questions))
        assert kind(responses.pop(questions[place])) == f"http_{status}"
        assert {text(response) for response in responses.values()} == {
            f"re: {question}" for question in questions if question != questions[place]
        }
        assert chat.tries[questions[place]] == 1


def test_many_refused_inputs_in_a_row_do_not_end_the_run() -> None:
    refusal = ServerFault(status=403, message="your input was flagged")
    plans = {str(number): [refusal] for number in range(40)}
    with chat_server(ChatServer(plans=plans)) as chat, backend(chat, max_concurrency=2) as made:
        responses = answers(made, *(ask(str(number)) for number in range(41)))
        assert text(responses.pop("40")) == "re: 40"
        assert {kind(response) for response in responses.values()} == {"http_403"}


@pytest.mark.parametrize(
    "fault",
    [
        ServerFault(
            status=429,
            body=b'{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}',
        ),
        ServerFault(status=402, message="Insufficient Balance"),
    ],
    ids=["quota", "balance"],
)
@pytest.mark.parametrize("num_before", [0, 20])
def test_an_exhausted_quota_ends_the_run(fault: ServerFault, num_before: int) -> None:
    with chat_server(ChatServer()) as chat, backend(chat, max_concurrency=4) as made:
        answers(made, *(ask(f"before {number}") for number in range(num_before)))
        chat.fault = fault
        with pytest.raises(BackendError, match="quota"):
            answers(made, *(ask(str(number)) for number in range(200)))
        assert chat.tries.total() - num_before < 20
        assert set(chat.tries.values()) == {1}  # nothing is retried, and one test is enough


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (ServerFault(status=400, message="unknown field top_q"), "unknown field top_q"),
        (ServerFault(status=500, message="CUDA error"), "CUDA error"),
        (ServerFault(body=b'{"choices": [7]}'), "not a chat completion"),
    ],
    ids=named,
)
def test_a_server_that_answers_nothing_ends_the_run(fault: ServerFault, words: str) -> None:
    with (
        chat_server(ChatServer(fault=fault)) as chat,
        backend(chat, max_concurrency=4, max_retries=1) as made,
        pytest.raises(BackendError, match=words),
    ):
        answers(made, *(ask(str(number)) for number in range(200)))
    assert chat.tries.total() < 60


def test_prompts_that_are_too_long_are_no_sign_of_a_broken_server() -> None:
    fault = ServerFault(status=400, message="Prompt is too long")
    with chat_server(ChatServer(fault=fault)) as chat, backend(chat) as made:
        responses = answers(made, *(ask(str(number)) for number in range(20)))
    assert {kind(response) for response in responses.values()} == {"prompt_too_long"}


@pytest.mark.slow
def test_a_hanging_server_is_noticed_after_one_timeout() -> None:
    hang = ServerFault(hang=True)
    with chat_server(ChatServer()) as chat:
        with backend(chat, timeout_s=HANG_S, max_retries=1, max_concurrency=1) as made:
            chat.fault = chat.models_fault = hang
            with pytest.raises(BackendError, match=r"no complete answer in 1\.5 s"):
                answers(made, ask("hello"))
        assert chat.tries == {"hello": 1}


@pytest.mark.slow
def test_a_stalled_stream_is_retried() -> None:
    plans = {"bad": [ServerFault(stall=True)] * 2}
    with (
        chat_server(ChatServer(plans=plans)) as chat,
        backend(chat, idle_timeout_s=HANG_S, timeout_s=60) as made,
    ):
        assert text(answers(made, ask("bad"))["bad"]) == "re: bad"
        assert chat.tries == {"bad": 3}


@pytest.mark.slow
def test_a_stream_may_take_longer_than_the_timeout() -> None:
    """The timeout is for the first piece; then only the wait for the next piece counts."""

    with chat_server(ChatServer(pause_s=0.4)) as chat:
        with backend(chat, timeout_s=HANG_S, idle_timeout_s=60, max_retries=0) as made:
            began = time.monotonic()
            assert text(answers(made, ask("long"))["long"]) == "re: long"
            assert time.monotonic() - began > HANG_S
        with backend(chat, timeout_s=60, idle_timeout_s=0.05, max_retries=0) as made:
            failure = answers(made, ask("long"))["long"].failure
            assert failure is not None
            assert failure.message.startswith("the answer stalled for 0.05 s")


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("idle_timeout_s", [60.0, None])
def test_streams_are_optional(streams: bool, idle_timeout_s: float | None) -> None:
    with (
        chat_server(ChatServer(streams=streams)) as chat,
        backend(chat, idle_timeout_s=idle_timeout_s) as made,
    ):
        response = answers(made, ask("hello", n=2, temperature=1.0))["hello"]
        assert [output.text for output in response.outputs] == ["re: hello"] * 2
        assert response.usage.completion_tokens == 4
        assert ("stream" in chat.bodies[0]) == (idle_timeout_s is not None)


def refuse_field(name: str, message: str) -> Any:
    return lambda body: message if name in body else None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stream", "Streaming is not supported"),
        ("stream_options", "Unrecognized request argument supplied: stream_options"),
        (
            "max_tokens",
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
        ),
    ],
)
def test_a_refused_field_is_left_out(name: str, message: str) -> None:
    with (
        chat_server(ChatServer(refuse=refuse_field(name, message))) as chat,
        backend(chat, max_concurrency=1) as made,
    ):
        responses = answers(made, *(ask(str(number), max_tokens=9) for number in range(10)))
        assert len({text(response) for response in responses.values()}) == 10
        assert sum(chat.tries.values()) == 11  # only the first request is refused
        last = chat.bodies[-1]
        assert last.get("max_tokens", last.get("max_completion_tokens")) == 9


STRICT = refuse_field(
    "structured_outputs", "Unrecognized request argument supplied: structured_outputs"
)


def test_a_server_without_guided_output() -> None:
    with chat_server(ChatServer(refuse=STRICT)) as chat, backend(chat) as made:
        guided = ask("strict", choice=("0", "1"))
        assert kind(answers(made, guided)["strict"]) == "http_400"
        free = [ask(f"free {i}", choice=("0", "1"), guide_strictly=False) for i in range(9)]
        responses = answers(made, free[0]) | answers(made, *free[1:])
        assert text(responses["free 8"]) == "re: free 8"
        assert chat.tries["free 0"] == 2
        assert chat.tries["free 8"] == 1


def first_only(answer: Answer) -> Answer:
    return answer | {"choices": answer["choices"][-1:]}


@pytest.mark.parametrize(
    "options",
    [
        {"shape": first_only},
        {"refuse": lambda body: "n must be 1" if body.get("n", 1) > 1 else None},
        {"refuse": lambda body: "Only one completion choice is allowed" if "n" in body else None},
    ],
    ids=["ignored", "refused", "llama.cpp"],
)
def test_samples_are_asked_for_one_at_a_time(options: dict[str, Any]) -> None:
    with chat_server(ChatServer(**options)) as chat, backend(chat) as made:
        response = answers(made, ask("four", n=4, temperature=1.0))["four"]
        assert [output.text for output in response.outputs] == ["re: four"] * 4
        paid = [body for body in chat.bodies if body.get("n", 1) == 1 or "shape" in options]
        assert len(paid) == 4
        assert len({body["seed"] for body in paid}) == 4


def test_equal_samples_are_made_once() -> None:
    """VLLM refuses several greedy samples."""
    refuse = lambda body: "n must be 1" if body.get("n") and not body["temperature"] else None  # noqa: E731
    with chat_server(ChatServer(refuse=refuse)) as chat, backend(chat) as made:
        response = answers(made, ask("four", n=4))["four"]
        assert [output.text for output in response.outputs] == ["re: four"] * 4
        assert response.usage.completion_tokens == 2
        assert chat.tries == {"four": 1}


def changed_choice(**fields: Any) -> Any:
    """Changes fields of the first choice; None removes one."""

    def shape(answer: Answer) -> Answer:
        (choice,) = answer["choices"]
        return answer | {"choices": [{k: v for k, v in (choice | fields).items() if v is not ...}]}

    return shape


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"index": ...}, "re: x"),
        ({"finish_reason": None}, "re: x"),
        ({"message": {"content": [{"type": "text", "text": "re: "}, {"text": "x"}]}}, "re: x"),
        ({"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "stop"}, "hm"),
        (
            {"message": {"content": None, "reasoning": "hm"}, "finish_reason": "length"},
            "<think>hm",
        ),
        ({"message": {"content": "yes", "reasoning_content": "hm"}}, "yes"),
    ],
)
def test_other_forms_of_answers_are_understood(
    fields: dict[str, Any], wanted: str, streams: bool
) -> None:
    with (
        chat_server(ChatServer(shape=changed_choice(**fields), streams=streams)) as chat,
        backend(chat) as made,
    ):
        assert text(answers(made, ask("x"))["x"]) == wanted
        assert chat.tries == {"x": 1}


def test_an_unknown_form_is_paid_once() -> None:
    shape = changed_choice(message={"content": {"text": "x"}})
    with chat_server(ChatServer(shape=shape, streams=False)) as chat, backend(chat) as made:
        assert kind(answers(made, ask("x"))["x"]) == "bad_body"
        assert chat.tries == {"x": 1}


def test_keys_do_not_appear_in_errors(caplog: pytest.LogCaptureFixture) -> None:
    fault = ServerFault(status=500, message="wrong key: Bearer sk-secret")
    options: dict[str, Any] = {"api_key": "sk-secret", "max_retries": 1}
    with (
        caplog.at_level("INFO"),
        chat_server(ChatServer(plans={"bad": [fault] * 9})) as chat,
        backend(chat, **options) as made,
    ):
        failure = answers(made, ask("bad"))["bad"].failure
        assert failure is not None
        assert failure.message.startswith("HTTP 500: wrong key: Bearer ...")
    assert "sk-secret" not in caplog.text
    closed = ServerBackend("http://me:sk-secret@127.0.0.1:1/v1", max_retries=0)
    with pytest.raises(BackendError) as raised:
        closed.start()
    closed.close()
    assert "sk-secret" not in str(raised.value)
    with pytest.raises(ConfigError) as refused:
        ServerBackend("ftp://me:sk-secret@127.0.0.1:1/v1")
    assert "sk-secret" not in str(refused.value)


@pytest.mark.parametrize(
    "list_models",
    [lambda names: names, lambda names: [{"id": names[0]}], lambda names: {"models": names}],
)
def test_other_lists_of_models(list_models: Any) -> None:
    with chat_server(ChatServer(list_models=list_models)) as chat, backend(chat) as made:
        assert made.model_name == "parrot"


def test_a_list_of_models_in_an_unknown_form() -> None:
    with chat_server(ChatServer(list_models=len)) as chat:
        with pytest.raises(BackendError, match="not a list of models"), backend(chat):
            pass
        with backend(chat, model_name="parrot") as made:
            assert text(answers(made, ask("hello"))["hello"]) == "re: hello"


@pytest.mark.parametrize(
    "fault", [ServerFault(status=401), ServerFault(status=500), ServerFault(drop=True)], ids=named
)
def test_start_needs_an_answer(fault: ServerFault) -> None:
    with chat_server(ChatServer(models_fault=fault)) as chat:
        for options in ({}, {"model_name": "parrot"}):
            with pytest.raises(BackendError), backend(chat, **options):
                pass


def test_no_server_at_the_url() -> None:
    with chat_server(ChatServer()) as chat:
        pass
    with pytest.raises(BackendError, match="base_url"), backend(chat):
        pass


def test_a_server_without_a_list_of_models() -> None:
    with chat_server(ChatServer(models_fault=ServerFault(status=404))) as chat:
        with pytest.raises(BackendError, match="model_name"), backend(chat):
            pass
        with backend(chat, model_name="mine") as made:
            assert text(answers(made, ask("hello"))["hello"]) == "re: hello"
        assert chat.bodies[0]["model"] == "mine"


def test_one_of_several_models_must_be_chosen() -> None:
    with chat_server(ChatServer(models=("parrot", "myna"))) as chat:
        with pytest.raises(ConfigError, match="parrot, myna"), backend(chat):
            pass
        with backend(chat, model_name="myna") as made:
            assert made.model_name == "myna"
            answers(made, ask("hello"))
        assert chat.bodies[0]["model"] == "myna"


def test_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(ChatServer()) as chat:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        for key, environment, shown in (
            (None, None, None),
            (None, "from-env", "Bearer from-env"),
            ("given", "from-env", "Bearer given"),
        ):
            if environment:
                monkeypatch.setenv("OPENAI_API_KEY", environment)
            with backend(chat, api_key=key) as made:
                answers(made, ask("hello"))
            assert chat.authorization == shown


def test_proxies_are_for_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with chat_server(ChatServer()) as proxy, chat_server(ChatServer()) as chat:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        with backend(chat) as made:
            answers(made, ask("here"))
        assert chat.tries == {"here": 1}
        far = ServerBackend("http://chat.invalid/v1", max_retries=0)
        far.start()  # only the proxy can resolve this host
        far.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_url": None}, "neither base_url nor server"),
        ({"server": ServerConfig(model_path="m")}, "base_url and server"),
        ({"base_url": "127.0.0.1:8000"}, "base_url"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_pending": 0}, "max_pending"),
        ({"max_retries": -1}, "max_retries"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"backoff_s": -1}, "backoff_s"),
        ({"max_backoff_s": -1}, "max_backoff_s"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServerBackend(**{"base_url": "http://127.0.0.1:1/v1", **options})


def test_configured_from_yaml(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        """
backend:
  class_path: mathcanvas_lightning.generation.backends.server.backend.ServerBackend
  init_args:
    max_concurrency: 8
    extra_body: {top_k: 20}
    server:
      model_path: some/model
      options: {max-model-len: 512, enforce-eager: true}
      env: {VLLM_CPU_KVCACHE_SPACE: "1"}
"""
    )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--backend", type=GenerationBackend)
    made = parser.instantiate(parser.parse_args([f"--config={config}"])).backend
    assert isinstance(made, ServerBackend)
    assert (made.max_pending, made.model_name, made.num_pending) == (16, "", 0)
    made.close()
