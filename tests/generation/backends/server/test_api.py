"""Bodies of requests to a chat server, and the parsing of its answers."""

import json
from base64 import b64decode
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mathcanvas_lightning.generation.backends.server.api import (
    BadBodyError,
    chat_body,
    read_models,
    read_response,
)
from mathcanvas_lightning.generation.requests import (
    GenerationRequest,
    Message,
    Output,
    Part,
    Sampling,
    Usage,
)
from mathcanvas_lightning.records.pictures import Picture, PictureError
from tests.conftest import encoded, png
from tests.generation.misbehaving import completion

DATA_URL = "data:{};base64,"


def request(*parts: Part, **sampling: Any) -> GenerationRequest:
    message = Message(role="user", parts=parts or ("hello",))
    return GenerationRequest(uid="1", messages=(message,), sampling=Sampling(**sampling))


def sent(request: GenerationRequest, **extra: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(json.dumps(chat_body(request, "parrot", extra)))
    return body


def test_texts_without_pictures_are_one_string() -> None:
    messages = (
        Message(role="system", parts=("Be brief.",)),
        Message(role="user", parts=("What is ", "3+4?")),
        Message(role="assistant", parts=("7",)),
        Message(role="user", parts=()),
    )
    body = sent(GenerationRequest(uid="1", messages=messages))
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 3+4?"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": ""},
    ]
    assert body["model"] == "parrot"
    assert "chat_template_kwargs" not in body


@given(st.lists(st.text() | st.sampled_from([b"red", b"blue"]), max_size=6))
def test_texts_and_pictures_keep_their_order(drawn: list[str | bytes]) -> None:
    parts = [
        part if isinstance(part, str) else Picture(png(colour=part.decode())) for part in drawn
    ]
    content = sent(GenerationRequest(uid="1", messages=(Message(role="user", parts=(*parts,)),)))
    content = content["messages"][0]["content"]
    if isinstance(content, str):
        assert content == "".join(map(str, parts))
        return
    read = [
        part["text"] if part["type"] == "text" else Picture(decoded(part["image_url"]["url"]))
        for part in content
    ]
    assert read == parts
    assert any(isinstance(part, Picture) for part in parts)


def decoded(url: str, mime_type: str = "image/png") -> bytes:
    assert url.startswith(DATA_URL.format(mime_type))
    return b64decode(url.partition(",")[2], validate=True)


@pytest.mark.parametrize(
    ("kind", "mime_type"),
    [
        ("PNG", "image/png"),
        ("JPEG", "image/jpeg"),
        ("MPO", "image/jpeg"),
        ("WEBP", "image/webp"),
        ("GIF", "image/gif"),
    ],
)
def test_pictures_are_sent_as_they_are(kind: str, mime_type: str) -> None:
    data = encoded(kind)
    part = sent(request(Picture(data)))["messages"][0]["content"][0]
    assert decoded(part["image_url"]["url"], mime_type) == data


@pytest.mark.parametrize(("kind", "mode"), [("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "RGBA")])
def test_unsupported_formats_become_png(kind: str, mode: str) -> None:
    part = sent(request(Picture(encoded(kind, mode=mode))))["messages"][0]["content"][0]
    image = Image.open(BytesIO(decoded(part["image_url"]["url"])))
    assert image.format == "PNG"
    assert image.size == (8, 6)
    assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("data", [b"", b"no picture", encoded("TIFF")[:-40]])
def test_a_broken_picture_is_named(data: bytes) -> None:
    with pytest.raises(PictureError, match=r"puzzle 7\.png: ") as raised:
        sent(request(Picture(data, place="puzzle 7.png")))
    assert raised.value.kind == "picture_unreadable"


def test_sampling_fields() -> None:
    greedy = sent(request(max_tokens=7))
    assert (greedy["temperature"], greedy["top_p"], greedy["max_tokens"]) == (0, 1, 7)
    optional = {"seed", "stop", "n", "repetition_penalty", "response_format", "structured_outputs"}
    assert not optional & set(greedy)
    drawn = request(
        temperature=0.7, top_p=0.9, stop=("\n", "END"), n=3, repetition_penalty=1.1, seed=5
    )
    fields = {
        "temperature": 0.7,
        "top_p": 0.9,
        "stop": ["\n", "END"],
        "n": 3,
        "repetition_penalty": 1.1,
        "seed": drawn.seed,
    }
    assert sent(drawn).items() >= fields.items()


def test_guidance_fields() -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}}}
    wanted = sent(request(json_schema=schema))["response_format"]
    assert wanted["type"] == "json_schema"
    assert wanted["json_schema"]["schema"] == schema
    assert sent(request(choice=("A", "B")))["structured_outputs"] == {"choice": ["A", "B"]}
    assert sent(request(regex="[0-9]+"))["structured_outputs"] == {"regex": "[0-9]+"}


def test_extra_fields_override_and_remove() -> None:
    asked = GenerationRequest(
        uid="1",
        messages=(Message(role="user", parts=("hello",)),),
        template_options={"enable_thinking": False},
    )
    body = sent(asked, top_k=20, top_p=0.5, max_tokens=None, max_completion_tokens=9)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert (body["top_k"], body["top_p"], body["max_completion_tokens"]) == (20, 0.5, 9)
    assert "max_tokens" not in body


def test_outputs_are_read_in_order() -> None:
    answer = completion("first", "second")
    answer["choices"][0]["token_ids"] = [4, 5]
    response = read_response(request(n=2), answer)
    assert response.outputs == (
        Output(text="first", finish_reason="stop"),
        Output(text="second", finish_reason="stop", token_ids=(4, 5)),
    )
    assert response.usage == Usage(prompt_tokens=3, completion_tokens=4)


@pytest.mark.parametrize(
    ("content", "refusal", "text"),
    [("", None, ""), (None, None, ""), (None, "I won't.", "I won't.")],
)
def test_an_empty_answer_with_a_finish_reason_is_valid(
    content: str | None, refusal: str | None, text: str
) -> None:
    answer = completion(content, reason="length") | {"usage": None}
    answer["choices"][0]["message"]["refusal"] = refusal
    response = read_response(request(), answer)
    assert response.outputs == (Output(text=text, finish_reason="length"),)
    assert response.usage == Usage()


@pytest.mark.parametrize(
    ("usage", "wanted"),
    [
        ({"prompt_tokens": "7", "completion_tokens": 2.0}, (7, 2)),
        ({"prompt_tokens": None}, (0, 0)),
        ({"prompt_tokens": "many", "completion_tokens": [3]}, (0, 0)),
        ({"prompt_tokens": float("inf"), "completion_tokens": float("nan")}, (0, 0)),
        ("none", (0, 0)),
        ([], (0, 0)),
        (3, (0, 0)),
    ],
)
def test_invalid_token_counts_do_not_lose_the_answer(
    usage: object, wanted: tuple[int, int]
) -> None:
    response = read_response(request(), completion("yes") | {"usage": usage})
    assert response.outputs[0].text == "yes"
    assert response.usage == Usage(prompt_tokens=wanted[0], completion_tokens=wanted[1])


@pytest.mark.parametrize("reason", ["content_filter", "tool_calls"])
def test_blocked_answers_and_tool_calls_are_failures(reason: str) -> None:
    for content in ("", None):
        response = read_response(request(n=2), completion(content, content, reason=reason))
        assert response.failure is not None
        assert response.failure.kind == reason
    (output,) = read_response(request(), completion("The answer is", reason=reason)).outputs
    assert output == Output(text="The answer is", finish_reason=reason)


@pytest.mark.parametrize(
    ("answer", "is_transient"),
    [
        (None, True),
        ([], True),
        ("text", True),
        ({}, True),
        ({"error": {"message": "busy"}}, True),
        ({"choices": []}, True),
        ({"choices": None}, True),
        ({"choices": None, "usage": {"completion_tokens": 0}}, True),
        ({"choices": None, "usage": {"completion_tokens": 900}}, False),
        ({"message": {"role": "assistant", "content": "7"}, "done": True}, False),
        (completion("cut off", reason="abort"), True),
        (completion("cut off", reason="error"), True),
        ({"choices": [{"index": 0}]}, False),
        ({"choices": [{"index": 0, "message": None}]}, False),
        ({"choices": [{"index": "first", "message": {"content": "x"}}]}, False),
        ({"choices": ["x"]}, False),
        (completion(None, reason=None), False),
        (completion(3), False),  # type: ignore[arg-type]
        (completion("x", reason=7), False),  # type: ignore[arg-type]
    ],
)
def test_malformed_answers_are_rejected(answer: object, is_transient: bool) -> None:
    with pytest.raises(BadBodyError) as raised:
        read_response(request(), answer)
    assert raised.value.transient == is_transient


def test_other_numbers_of_answers() -> None:
    (output,) = read_response(request(), completion("one", "too many")).outputs
    assert output.text == "one"
    assert len(read_response(request(n=3), completion("one", "two")).outputs) == 2


def test_models_are_read() -> None:
    for answer in (
        {"data": [{"id": "a"}, {"id": "b"}]},
        [{"id": "a"}, {"id": "b"}],
        {"models": [{"name": "a"}, {"name": "b"}]},
        ["a", "b"],
    ):
        assert read_models(answer) == ["a", "b"]
    assert read_models([]) == []
    for answer in ({}, {"data": None}, {"data": [{}]}, 3, None, [None]):
        with pytest.raises(BadBodyError):
            read_models(answer)
