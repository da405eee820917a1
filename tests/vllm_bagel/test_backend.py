"""BAGEL in the engine process and behind the OpenAI API answers as the native generator does."""

import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from mathcanvas_lightning.generation.backends.server.backend import ServerBackend
from mathcanvas_lightning.generation.backends.server.process import ServerConfig
from mathcanvas_lightning.generation.backends.vllm.backend import VLLMBackend
from mathcanvas_lightning.generation.backends.vllm.client import EngineClient
from mathcanvas_lightning.generation.backends.vllm.messages import ContextRequest, ContextResult
from mathcanvas_lightning.generation.bagel.backend import BagelBackend
from mathcanvas_lightning.generation.requests import GenerationRequest, Message
from mathcanvas_lightning.records.pictures import Picture
from tests.conftest import golden_folder, lasting_processes
from tests.generation.drawing import picture
from tests.generation.engine import ONE_PROCESS, SMALL_CACHE, answers, ask, engine_lock, real_engine
from tests.parity.test_generation import transforms
from tests.vllm_bagel.contexts import Case, Written, cases, native_cases
from tests.vllm_bagel.plugin import registered_plugin

__all__ = ["engine_lock", "registered_plugin"]
pytestmark = [
    *real_engine,
    pytest.mark.usefixtures("registered_plugin"),
    pytest.mark.skipif(not (golden_folder() / "tiny_bagel").is_dir(), reason="no golden files"),
]
FOLDER = golden_folder() / "tiny_bagel"
WINDOW = 640


def encoded(seed: int, width: int, height: int, mode: str = "RGB") -> Picture:
    image = picture(seed, width, height)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return Picture(buffer.getvalue())


QUESTIONS = [
    ask("text", "What is <|im_end|> 3+4?"),
    ask("picture", encoded(1, 90, 40), " What is this? "),
    ask("pictures", "First ", encoded(2, 33, 77), "then ", encoded(3, 60, 60, "RGBA"), "?"),
    ask("only", encoded(4, 200, 100)),
]
SYSTEM = replace(
    QUESTIONS[1],
    uid="system",
    messages=(Message(role="system", parts=("Be brief.",)), *QUESTIONS[1].messages),
)


def processor_options() -> dict[str, object]:
    vae, vit = transforms()
    return {"vae_transform": asdict(vae), "vit_transform": asdict(vit)}


@pytest.fixture(scope="module")
def native() -> dict[str, str]:
    """The native generator's answers to all questions."""
    vae, vit = transforms()
    backend = BagelBackend(
        str(FOLDER),
        mode="understanding",
        vae_transform=vae,
        vit_transform=vit,
        max_context_tokens=WINDOW,
        dtype="float32",
    )
    found = answers(backend, [*QUESTIONS, SYSTEM])
    backend.close()
    return {uid: response.outputs[0].text for uid, response in found.items()}


@pytest.fixture(scope="module")
def backend(engine_lock: None, registered_plugin: None) -> Iterator[VLLMBackend]:
    """Two tensor parallel ranks."""
    engine = VLLMBackend(
        str(FOLDER),
        dtype="float32",
        max_model_len=WINDOW,
        tensor_parallel_size=2,
        engine_options={**SMALL_CACHE, "mm_processor_kwargs": processor_options()},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # two ranks on one NUMA node
        engine.start()
    yield engine
    engine.close()
    assert not lasting_processes()


@pytest.fixture
def client(backend: VLLMBackend) -> EngineClient:
    return backend.client


def test_chats(backend: VLLMBackend, native: dict[str, str]) -> None:
    found = answers(backend, [*QUESTIONS, SYSTEM])
    assert {uid: response.outputs[0].text for uid, response in found.items()} == native
    assert len(set(native.values())) > 2


def test_impossible_chats_fail_alone(backend: VLLMBackend) -> None:
    found = answers(
        backend,
        [
            ask("empty", "  "),
            ask("damaged", Picture(b"no image", place="a.png")),
            ask("long", "word " * WINDOW),
            ask("fine", "Hi."),
        ],
    )
    kinds = {uid: one.failure.kind for uid, one in found.items() if one.failure}
    assert kinds == {
        "empty": "unsupported",
        "damaged": "picture_unreadable",
        "long": "prompt_too_long",
    }


def request(case: Case, written: Written, **more: object) -> ContextRequest:
    """Ends at the fifth token of the native text, whose next token is the action."""
    return ContextRequest(
        uid=case.name,
        context=case.context,
        end_id=written.ids[4],
        max_tokens=len(written.ids),
        **more,  # type: ignore[arg-type]
    )


def test_contexts(client: EngineClient) -> None:
    """Text, end token and action equal the native text; the second time, caches are warm."""
    found = cases()
    written = native_cases()
    requests = [
        request(case, written[case.name], wants_action=True, wants_logprobs=True) for case in found
    ]
    for _ in range(2):
        client.submit(requests)
        results: dict[str, ContextResult] = {}
        while client.num_pending:
            for result in client.collect():
                assert isinstance(result, ContextResult)
                results[result.uid] = result
        assert results.keys() == written.keys()
        for case in found:
            result, own = results[case.name], written[case.name]
            assert result.failure is None
            assert result.finish_reason == "stop"
            end = own.ids.index(own.ids[4])
            assert list(result.token_ids) == own.ids[:end]
            assert result.action_id == own.ids[end + 1]
            assert result.logprobs == pytest.approx(own.logprobs[: end + 2], abs=1e-4)
            assert result.num_context_tokens == 1 + sum(i.num_tokens for i in case.items)


def test_limits(client: EngineClient) -> None:
    [case] = cases()[:1]
    written = native_cases()[case.name]
    start = case.context[-1]
    assert isinstance(start, tuple)
    base = replace(request(case, written, wants_action=True), end_id=written.unused_id)
    too_long = (tuple(range(100)) * 7, start)
    client.submit(
        [replace(base, uid="short", max_tokens=3), replace(base, uid="long", context=too_long)]
    )
    results = {}
    while client.num_pending:
        results |= {result.uid: result for result in client.collect()}
    short, long = results["short"], results["long"]
    assert isinstance(short, ContextResult)
    assert (short.finish_reason, short.action_id) == ("length", None)
    assert list(short.token_ids) == written.ids[:3]
    assert isinstance(long, ContextResult)
    assert long.failure is not None
    assert long.failure.kind == "prompt_too_long"
    assert client.window == WINDOW


def test_withdrawal(client: EngineClient) -> None:
    found = cases()[:2]
    written = [native_cases()[case.name] for case in found]
    pairs = zip(found, written, strict=True)
    requests = [replace(request(c, w), end_id=w.unused_id) for c, w in pairs]
    slow = replace(requests[0], uid="slow", max_tokens=WINDOW)
    client.submit([slow, requests[1]])
    assert client.num_pending == 2
    client.withdraw(["slow"])
    assert [result.uid for result in client.collect()] == [found[1].name]
    assert client.collect() == client.collect(wait=False) == []


def test_server(engine_lock: None, native: dict[str, str], tmp_path: Path) -> None:
    """Two pictures in a message, through the OpenAI API."""
    config = ServerConfig(
        model_path=str(FOLDER),
        options={
            "dtype": "float32",
            "max_model_len": WINDOW,
            "mm_processor_kwargs": processor_options(),
            **SMALL_CACHE,
        },
        env=ONE_PROCESS,  # beside the process of the server
        log_file=str(tmp_path / "server.log"),
    )
    server = ServerBackend(server=config)
    plain: list[GenerationRequest] = [*QUESTIONS[1:], SYSTEM]  # a broken token differs there
    server.start()
    try:
        found = answers(server, plain)
    finally:
        server.close()
    texts = {uid: shown(one.outputs[0].text) for uid, one in found.items() if one.outputs}
    assert texts == {one.uid: shown(native[one.uid]) for one in plain}


def shown(text: str) -> str:
    """What a server keeps of a random text: no special tokens; broken characters may differ."""
    text = re.sub(r"<\|\w+\|>", "", text)
    return "".join(one for one in text if one.isascii() and one.isprintable())
