"""A real vLLM server: start, answers, stop."""

from pathlib import Path
from typing import Any

import psutil

from mathcanvas_lightning.generation.backends.base import generate
from mathcanvas_lightning.generation.backends.server.backend import ServerBackend
from mathcanvas_lightning.generation.backends.server.process import ServerConfig
from mathcanvas_lightning.generation.requests import (
    GenerationRequest,
    GenerationResponse,
    Message,
    Part,
    Sampling,
)
from mathcanvas_lightning.records.pictures import Picture
from tests.conftest import png
from tests.generation.backends.server.test_process import wait_until_gone
from tests.generation.engine import engine_lock, real_engine, smollm2  # noqa: F401

pytestmark = real_engine
WINDOW = 128


def ask(uid: str, *parts: Part, **sampling: Any) -> GenerationRequest:
    message = Message(role="user", parts=parts)
    options = Sampling(**{"max_tokens": 8, **sampling})
    return GenerationRequest(uid=uid, messages=(message,), sampling=options)


def text(response: GenerationResponse) -> str:
    assert response.failure is None, response.failure
    return response.outputs[0].text


def kind(response: GenerationResponse) -> str:
    assert response.failure is not None
    return response.failure.kind


def test_real_vllm(smollm2: Path) -> None:  # noqa: F811 - the fixture
    me = psutil.Process()
    before = {process.pid for process in me.children(recursive=True)}
    server = ServerConfig(
        model_path=str(smollm2),
        options={
            "max-model-len": WINDOW,
            "max-num-seqs": 8,
            "dtype": "float32",
            "enforce-eager": True,
            "served-model-name": "smol",
        },
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"},
        start_timeout_s=1200,
    )
    requests = [
        ask("sum", "What is 3+4?", max_tokens=24),
        ask("choice", "Is 7 odd?", choice=("maybe", "perhaps")),
        ask("regex", "Name a number.", regex="[0-9]{3}"),
        ask("schema", "Is 7 odd?", json_schema={"type": "boolean"}),
        ask("two", "Tell a story.", n=2, temperature=1.0),
        ask("again", "Tell a story.", n=2, temperature=1.0),
        ask("same", "Tell a story.", n=2),
        ask("picture", Picture(png()), "What is this?"),
        ask("long", "word " * 2 * WINDOW),
        ask("window", "Go on.", max_tokens=2 * WINDOW, regex="[a-z ]{900}"),
    ]
    backend = ServerBackend(server=server)
    try:
        backend.start()
        assert backend.model_name == "smol"
        started = [child.pid for child in me.children(recursive=True) if child.pid not in before]
        assert len(started) >= 3  # the launcher, the server, its engine
        responses = {response.uid: response for response in generate(backend, requests)}
        some = [requests[0], *requests[4:7]]
        again = {response.uid: response for response in generate(backend, some[::-1])}
    finally:
        backend.close()
    wait_until_gone(started)  # killed processes need a moment
    assert "7" in text(responses["sum"])
    assert responses["sum"].usage.prompt_tokens > 3
    assert text(responses["choice"]) in ("maybe", "perhaps")
    assert len(text(responses["regex"])) == 3
    assert text(responses["regex"]).isdigit()
    assert text(responses["schema"]).strip() in ("true", "false")
    assert kind(responses["picture"]) == "http_400"
    assert kind(responses["long"]) == "prompt_too_long"
    assert responses["window"].outputs[0].finish_reason == "length"
    usage = responses["window"].usage
    assert usage.prompt_tokens + usage.completion_tokens == WINDOW
    # The seed depends on the id: equal for the same request, different for others.
    first, second = (output.text for output in responses["two"].outputs)
    assert first != second
    one, other = responses["same"].outputs  # greedy: vLLM refuses to make both
    assert one == other
    assert responses["two"].outputs == again["two"].outputs
    assert responses["two"].outputs != responses["again"].outputs
