"""Errors of servers: their kinds, their messages, and whether another try is worthwhile."""

import json

import pytest

from mathcanvas_lightning.generation.backends.server.failures import (
    failed_request,
    failure_in,
    read_error,
)


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (500, {"error": {"message": "no memory", "code": 500}}, "http_500", "no memory"),
        (400, {"object": "error", "message": "bad role"}, "http_400", "bad role"),
        (422, {"detail": [{"msg": "missing"}]}, "http_422", "[{'msg': 'missing'}]"),
        (404, {"error": "no such model"}, "http_404", '{"error": "no such model"}'),
        (400, [{"error": {"code": 400, "message": "bad"}}], "http_400", "bad"),
        (
            400,
            {"error": {"message": "too long", "code": "context_length_exceeded"}},
            "prompt_too_long",
            "too long",
        ),
        (500, {"message": "lost the context length"}, "http_500", "lost the context length"),
    ],
)
def test_errors_are_read(status: int, body: object, kind: str, message: str) -> None:
    assert read_error(status, json.dumps(body).encode()) == (kind, message)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "no message"), (b"<h1>\xff", "<h1>\ufffd"), (b"[1]", "[1]"), (b"[]", "[]")],
)
def test_errors_of_any_form_are_read(data: bytes, message: str) -> None:
    assert read_error(502, data) == ("http_502", message)


@pytest.mark.parametrize(
    "message",
    [
        # OpenAI, Azure, DeepSeek, vLLM
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
        "Input tokens exceed the configured limit of 272000 tokens.",
        "The decoder prompt (length 3000) is longer than the maximum model length of 2048.",
        "max_tokens=99 cannot be greater than max_model_len=64.",
        "The engine prompt length 9000 exceeds the max_model_len 8192. Please reduce prompt.",
        # SGLang
        "The input (9 tokens) is longer than the model's context length (8).",
        "Requested token count exceeds the model's maximum context length of 4096 tokens.",
        # llama.cpp, LM Studio, Ollama
        "the request exceeds the available context size (4096 tokens), try increasing it",
        '{"error": {"type": "exceed_context_size_error"}}',
        "Trying to keep the first 5000 tokens when context the overflows. However, the model is "
        "loaded with context length of only 4096 tokens",
        "the input length exceeds the context length",
        # Anthropic, Bedrock, Fireworks
        "prompt is too long: 208310 tokens > 200000 maximum",
        "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
        "Input is too long for requested model.",
        "The prompt is too long: 5000, model maximum context length: 4096",
        # Google, Mistral, Cohere, xAI, GitHub
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum "
        "context length",
        "too many tokens: total number of tokens in the prompt cannot exceed 4081",
        "This model's maximum prompt length is 131072 but the request contains 200000 tokens.",
        "prompt token count of 13013 exceeds the limit of 12288",
        # Groq, Cerebras, Together, TGI
        "Please reduce the length of the messages or completion.",
        "`inputs` tokens + `max_new_tokens` must be <= 4097. Given: 5000",
        "`inputs` must have less than 1024 tokens. Given: 1500",
        # Alibaba, Moonshot, MiniMax, Zhipu, watsonx, TensorRT-LLM
        "Range of input length should be [1, 30720]",
        "Invalid request: Your request exceeded model token limit: 8192",
        "invalid params, context window exceeds limit",
        "Prompt exceeds max length",
        "the number of input tokens 5000 cannot exceed the total tokens limit 4096",
        "The sum of prompt length (9000) and query length should not exceed max_num_tokens (8192)",
    ],
)
def test_prompts_that_are_too_long_are_recognised(message: str) -> None:
    for status in (400, 413, 422):
        assert read_error(status, json.dumps({"message": message}).encode())[0] == "prompt_too_long"


@pytest.mark.parametrize(
    "message",
    [
        "Invalid role: sytem",
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead.",
        "n must be 1 when using greedy sampling",
        "Unrecognized request argument supplied: structured_outputs",
        "image too large: 9000 x 9000",
    ],
)
def test_other_errors_are_not_taken_for_long_prompts(message: str) -> None:
    assert read_error(400, json.dumps({"message": message}).encode())[0] == "http_400"


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 100000. This model supports at most 16384 completion tokens.",
        "max_tokens: 100000 > 8192, which is the maximum allowed number of output tokens",
        "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]",
        "`max_tokens` must be less than or equal to `8192`",
    ],
)
def test_limits_that_the_model_does_not_reach_are_recognised(message: str) -> None:
    assert read_error(400, json.dumps({"message": message}).encode())[0] == "max_tokens"


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (429, "You exceeded your current quota, please check your plan.", "quota"),
        (402, "Insufficient Balance", "quota"),
        (400, "Your credit balance is too low to access the API", "quota"),
        (402, "This request requires more credits", "http_402"),
        (429, "You exceeded your current quota. Please retry in 34.5s.", "http_429"),
        (429, "Rate limit reached: 3 requests per minute", "http_429"),
        (500, "insufficient_quota", "http_500"),
    ],
)
def test_an_empty_account_is_no_rate_limit(status: int, message: str, kind: str) -> None:
    failed = failed_request(status, json.dumps({"error": {"message": message}}).encode())
    assert failed.kind == kind
    assert failed.transient == (kind in ("http_429", "http_500"))


@pytest.mark.parametrize(
    ("status", "is_transient"),
    [(408, True), (409, True), (425, True), (429, True), (500, True), (503, True), (529, True)]
    + [(status, False) for status in (301, 400, 401, 403, 404, 405, 413, 415, 422, 501, 505)],
)
def test_which_statuses_are_worth_another_try(status: int, is_transient: bool) -> None:
    assert failed_request(status, b"").transient == is_transient


def test_failures_in_a_body_with_status_200() -> None:
    for code in (502, "502"):
        failed = failure_in({"error": {"code": code, "message": "provider is down"}})
        assert failed is not None
        assert (failed.kind, failed.transient) == ("http_502", True)
    for answer in (
        {"choices": [{}], "error": {"code": 502}},
        {"error": {"code": "server_error"}},
        {"error": "busy"},
        [],
        None,
    ):
        assert failure_in(answer) is None
