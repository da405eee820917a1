"""vLLM with a real small language model: right answers, continuous batching, no process left."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.backends.vllm.backend import VLLMBackend
from mathcanvas_lightning.records.pictures import Picture
from tests.conftest import child_processes, lasting_processes, png
from tests.generation.engine import (  # noqa: F401 - fixtures
    MAX_GAP,
    SMALL_CACHE,
    answers,
    ask,
    engine_lock,
    gaps,
    in_one_process,
    real_engine,
    smollm2,
    text,
)
from tests.generation.tiny_idefics3 import make_tiny_idefics3

pytestmark = real_engine
WINDOW = 96


@pytest.fixture(scope="module")
def backend(engine_lock: None, smollm2: Path) -> Iterator[VLLMBackend]:  # noqa: F811
    engine = VLLMBackend(
        str(smollm2),
        max_model_len=WINDOW,
        dtype="float32",
        max_pending=8,
        engine_options=SMALL_CACHE,
    )
    with in_one_process():
        engine.start()
    engine.start()  # does nothing
    yield engine
    engine.close()
    engine.close()
    assert not lasting_processes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_greedy_answers_equal_transformers(
    backend: VLLMBackend,
    smollm2: Path,  # noqa: F811
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    questions = ["What is 3+4?", "What is 12-5?", "Which is larger, 7 or 9?", "Count to five."]
    found = answers(backend, [ask(q, q, max_tokens=20) for q in questions])
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype="float32")
    for question in questions:
        chat = [{"role": "user", "content": question}]
        prompt_ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=False
        )
        (output,) = found[question].outputs
        assert max(gaps(model, prompt_ids, output.token_ids)) <= MAX_GAP
        assert output.text == tokenizer.decode(output.token_ids, skip_special_tokens=True)
        assert found[question].usage.prompt_tokens == len(prompt_ids)
        assert found[question].usage.completion_tokens == len(output.token_ids)
        ended = output.token_ids[-1] == tokenizer.eos_token_id
        assert output.finish_reason == ("stop" if ended else "length")
    assert "7" in text(found["What is 3+4?"])


@pytest.mark.slow
def test_an_answer_depends_only_on_its_request(backend: VLLMBackend) -> None:
    greedy = ask("greedy", "Tell me about squares.")
    drawn = ask("drawn", "Tell me about squares.", temperature=1.0, top_p=0.9)
    alone = {**answers(backend, [greedy]), **answers(backend, [drawn])}
    others = [ask(f"other {n}", f"Say {n}. " * (n + 1), max_tokens=n % 9 + 1) for n in range(10)]
    among = answers(backend, [*others[:5], drawn, *others[5:], greedy])
    assert {uid: among[uid] for uid in alone} == alone
    assert text(alone["drawn"]) != text(alone["greedy"])
    again = ask("drawn", "Tell me about squares.", temperature=1.0, seed=1)
    assert text(answers(backend, [again])["drawn"]) != text(alone["drawn"])


@pytest.mark.slow
def test_batching_is_continuous(backend: VLLMBackend) -> None:
    backend.submit([ask("long", "Tell a story.", max_tokens=30, regex=r"[a-z ]{900}")])
    backend.submit([ask("short", "Hi.", max_tokens=1)])
    assert backend.num_pending == 2
    assert [response.uid for response in backend.collect()] == ["short"]
    backend.submit([ask("late", "Hello.", max_tokens=1)])
    assert [response.uid for response in backend.collect()] == ["late"]
    assert [response.uid for response in backend.collect()] == ["long"]
    assert backend.collect() == []


def test_several_answers(backend: VLLMBackend) -> None:
    found = answers(
        backend,
        [
            ask("drawn", "Name a colour.", n=3, temperature=1.5, max_tokens=8),
            ask("greedy", "Name a colour.", n=3, max_tokens=8),
        ],
    )
    assert len({output.text for output in found["drawn"].outputs}) > 1
    first, *more = found["greedy"].outputs
    assert more == [first, first]
    drawn = found["drawn"]
    total = sum(len(output.token_ids) for output in drawn.outputs)
    assert drawn.usage.completion_tokens == total
    assert found["greedy"].usage.completion_tokens == len(first.token_ids)  # made once


def test_stop_texts_are_removed(backend: VLLMBackend) -> None:
    whole = text(answers(backend, [ask("a", "What is 3+4?", max_tokens=20)])["a"])
    word = whole.split()[2]
    found = answers(backend, [ask("a", "What is 3+4?", max_tokens=20, stop=("%%", word))])
    assert text(found["a"]) == whole.partition(word)[0]
    assert found["a"].outputs[0].finish_reason == "stop"


def test_guided_answers(backend: VLLMBackend) -> None:
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer"}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    found = answers(
        backend,
        [
            ask("choice", "Is 3 odd?", choice=("perhaps", "never")),
            ask("regex", "A number, please.", regex=r"\d{3}-\d{2}", max_tokens=16),
            ask("json", "What is 3+4? JSON.", json_schema=schema, max_tokens=64),
            ask("penalty", "Say a a a a.", repetition_penalty=1.5),
            ask("plain", "Say a a a a."),
        ],
    )
    assert text(found["choice"]) in ("perhaps", "never")
    assert re.fullmatch(r"\d{3}-\d{2}", text(found["regex"]))
    assert isinstance(json.loads(text(found["json"]))["sum"], int)
    assert text(found["penalty"]) != text(found["plain"])


@pytest.mark.slow
def test_the_window_ends_an_answer(backend: VLLMBackend) -> None:
    request = ask("a", "Continue forever.", max_tokens=10_000, regex=r"[a-z ]{9000}")
    (response,) = answers(backend, [request]).values()
    assert response.outputs[0].finish_reason == "length"
    assert response.usage.prompt_tokens + response.usage.completion_tokens == WINDOW


@pytest.mark.slow
def test_an_impossible_request_fails_without_others(backend: VLLMBackend) -> None:
    found = answers(
        backend,
        [
            ask("long", "word " * 2 * WINDOW),
            ask("picture", "What is this?", Picture(png())),
            ask("damaged", "What is this?", Picture(png()[:20], place="a.png")),
            ask("guide", "Hi.", regex="("),
            ask("fine", "Hi."),
        ],
    )
    failures = {uid: response.failure for uid, response in found.items() if response.failure}
    assert {uid: failure.kind for uid, failure in failures.items()} == {
        "long": "prompt_too_long",
        "picture": "unsupported",
        "damaged": "picture_unreadable",
        "guide": "unsupported",
    }
    numbers = [int(n) for n in re.findall(r"\d+", failures["long"].message)]
    assert numbers[0] > 2 * WINDOW
    assert numbers[1] == WINDOW
    assert "a.png" in failures["damaged"].message
    assert text(found["fine"])


@pytest.mark.slow
def test_a_dead_engine_is_an_error_of_every_call(tmp_path: Path) -> None:
    """An engine in several processes, as by default; its core is killed during its work."""
    make_tiny_idefics3(tmp_path / "model")
    backend = VLLMBackend(
        str(tmp_path / "model"), dtype="float32", max_images=0, engine_options=SMALL_CACHE
    )
    others = {one.pid for one in child_processes()}
    backend.start()
    backend.submit([ask("long", "Tell.", max_tokens=900, regex=r"[a-z ]{900}")])
    processes = [one for one in child_processes() if one.pid not in others]
    (core,) = [one for one in processes if "EngineCore" in one.name()]
    core.kill()
    with pytest.raises(BackendError, match=r"EngineCore: -9.*ran out of memory"):
        backend.collect()
    _, alive = psutil.wait_procs(processes, timeout=240)
    assert not alive
    for call in (backend.collect, lambda: backend.submit([ask("more", "Hi.")])):
        with pytest.raises(BackendError, match="EngineCore: -9"):
            call()
    backend.close()
    with pytest.raises(BackendError, match=r"Call start\(\)"):
        backend.submit([ask("more", "Hi.")])
    assert backend.collect() == []
