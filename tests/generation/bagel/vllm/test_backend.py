"""The backend with a fake engine, with the tiny reference checkpoint."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.backends.base import BackendError, GenerationBackend
from mathcanvas_lightning.generation.backends.vllm.messages import ContextResult
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
from mathcanvas_lightning.generation.bagel.vllm import backend as backend_module
from mathcanvas_lightning.generation.bagel.vllm.backend import TextEngineConfig, VLLMBagelBackend
from mathcanvas_lightning.generation.requests import Sampling
from mathcanvas_lightning.generation.run.reasoning_folders import ReasoningFolders
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.records.pictures import Picture
from mathcanvas_lightning.records.record import RecordInput
from tests.conftest import TRAINER_WARNINGS, png
from tests.generation.bagel.test_backend import answers, ask, checkpoint, options, pixels, same
from tests.generation.bagel.test_backend import backend as native_backend
from tests.generation.runs import predict, read_lines, records, write_lines
from tests.generation.text_engine import FakeEngine

pytestmark = [pytest.mark.filterwarnings(text) for text in TRAINER_WARNINGS]

WHOLE = Bagel.from_checkpoint
QUESTIONS = [
    ask("text", "What is drawn?", temperature=0.0),
    ask("picture", "Look:", Picture(png(40, 32)), "What is it?", temperature=0.0),
    ask("system", "Say it.", system="Be brief.", temperature=0.0),
    ask("long", "Go on and on", temperature=0.0, max_tokens=60),
]


class FakeVLLM:
    """Stands for VLLMBackend: its client is a fake engine with the same weights."""

    made: ClassVar[list["FakeVLLM"]] = []
    error: ClassVar[BaseException | None] = None
    """Raised by the next call of `collect`."""

    def __init__(self, model_path: str, **arguments: Any) -> None:
        self.path, self.arguments = model_path, arguments
        self.is_running = False

    def start(self, *, local_rank: int = 0) -> None:
        model = WHOLE(self.path, dtype=torch.float32)
        model.attention_path = "sdpa"
        self.local_rank, self.is_running = local_rank, True
        self.client = FakeEngine(model.eval(), TextTokenizer(self.path).special)
        collect = self.client.collect

        def failing(*, wait: bool = True) -> list[ContextResult]:
            error, FakeVLLM.error = FakeVLLM.error, None
            if error is not None:
                raise error
            return collect(wait=wait)

        self.client.collect = failing  # type: ignore[method-assign]
        self.client.close = self.close  # type: ignore[method-assign]
        FakeVLLM.made.append(self)

    def close(self) -> None:
        self.is_running = False


@pytest.fixture(autouse=True)
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeVLLM]]:
    """Replaces vLLM; lists the engines that were started."""
    monkeypatch.setattr(backend_module, "VLLMBackend", FakeVLLM)
    monkeypatch.setattr(FakeVLLM, "made", [])
    monkeypatch.setattr(FakeVLLM, "error", None)
    yield FakeVLLM.made
    assert not any(engine.is_running for engine in FakeVLLM.made), "an engine still runs"


def backend(**changes: Any) -> VLLMBagelBackend:
    given = {**options(), **changes}
    given["drawing"] = DrawingConfig(**given["drawing"])
    for name in ("vae_transform", "vit_transform"):
        given[name] = ImageTransform(**given[name])
    return VLLMBagelBackend(**given)


@pytest.fixture
def bagel() -> Iterator[VLLMBagelBackend]:
    """A started backend."""
    made = backend()
    made.start()
    yield made
    made.close()


@pytest.mark.parametrize("mode", ["interleaved", "understanding", "image"])
def test_answers_equal_those_of_the_native_backend(mode: str) -> None:
    wanted = answers(native_backend(mode=mode), *QUESTIONS)
    made = backend(mode=mode)
    found = answers(made, *QUESTIONS)
    made.close()
    assert found.keys() == wanted.keys()
    for uid, response in found.items():
        assert response.usage == wanted[uid].usage
        for one, other in zip(response.outputs, wanted[uid].outputs, strict=True):
            same(one, other)


def test_understanding_loads_no_drawer(
    monkeypatch: pytest.MonkeyPatch, fake_vllm: list[FakeVLLM]
) -> None:
    monkeypatch.setattr(Bagel, "from_checkpoint", None)
    made = backend(mode="understanding")
    assert answers(made, QUESTIONS[1])["picture"].outputs[0].text
    made.close()
    assert len(fake_vllm) == 1


def test_the_drawer_has_no_text_head(bagel: VLLMBagelBackend) -> None:
    drawer = bagel.generator.team.drawer  # type: ignore[attr-defined]
    names = {name for name, _ in drawer.workshop.model.named_parameters()}
    whole = {name for name, _ in WHOLE(checkpoint()).named_parameters()}
    assert whole - names == {"language_model.lm_head.weight"}


def test_samples_are_repeatable(bagel: VLLMBagelBackend) -> None:
    question = ask("two", "Which one?", n=2)
    first, second = (answers(bagel, question)["two"] for _ in range(2))
    assert first == second
    assert first.outputs[0].text != first.outputs[1].text


def test_the_engine_gets_the_settings(fake_vllm: list[FakeVLLM]) -> None:
    engine = TextEngineConfig(
        tensor_parallel_size=2, gpu_memory_utilization=0.3, engine_options={"max_num_seqs": 4}
    )
    made = backend(engine=engine, model_name="mine", max_context_tokens=300)
    made.start(local_rank=3)
    made.start(local_rank=3)
    made.close()
    [started] = fake_vllm
    assert started.path == str(checkpoint())
    assert started.local_rank == 3
    assert started.arguments == {
        "model_name": "mine",
        "tensor_parallel_size": 2,
        "max_model_len": 302,
        "dtype": "float32",
        "engine_options": {"max_num_seqs": 4},
        "gpu_memory_utilization": 0.3,
    }


def test_the_window_ends_with_the_model(fake_vllm: list[FakeVLLM]) -> None:
    longest = BagelConfig.from_directory(checkpoint()).llm.max_position_embeddings
    made = backend(max_context_tokens=longest, max_batch_size=1)
    made.start()
    drawer = made.generator.team.drawer  # type: ignore[attr-defined]
    made.close()
    assert fake_vllm[0].arguments["max_model_len"] == longest
    assert drawer.workshop.cache.capacity == longest - 2


def test_bad_settings_are_found_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for engine, name in (
        (TextEngineConfig(engine_options={"model": "other"}), "engine_options.model"),
        (TextEngineConfig(gpu_memory_utilization=2.0), "gpu_memory_utilization"),
        (TextEngineConfig(tensor_parallel_size=0), "tensor_parallel_size"),
    ):
        with pytest.raises(ConfigError, match=name):
            backend(engine=engine)
    with pytest.raises(ConfigError, match="weights: found int8, with VLLMBagelBackend"):
        backend(weights="int8")


def test_settings_contain_what_changes_the_answers() -> None:
    found = backend().settings
    assert json.loads(json.dumps(found)) == {
        **json.loads(json.dumps(native_backend().settings)),
        "text_engine": {"name": "vllm", "options": {}},
    }
    changed = TextEngineConfig(engine_options={"seed": 3})
    assert backend(engine=changed).settings != found
    assert backend(engine=TextEngineConfig(gpu_memory_utilization=0.2)).settings == found


def test_memory_is_said_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        made = backend(max_batch_size=2)
        made.start()
        made.close()
    [line] = [one.message for one in caplog.records if one.message.startswith("Memory:")]
    assert "vLLM: 0.2 million parameters, 1 MiB, and a KV cache of 4.0 GiB" in line
    assert "the drawer: 0.6 million parameters, 2 MiB" in line
    assert "contexts of 2 problems" in line


def test_a_missing_checkpoint_starts_no_engine(tmp_path: Path, fake_vllm: list[FakeVLLM]) -> None:
    with pytest.raises(ConfigError, match="absent"):
        backend(checkpoint=str(tmp_path / "absent")).start()
    assert fake_vllm == []


def test_a_drawer_that_cannot_start_stops_the_engine(
    monkeypatch: pytest.MonkeyPatch, fake_vllm: list[FakeVLLM]
) -> None:
    def fail(*args: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(backend_module, "open_workshop", fail)
    made = backend()
    with pytest.raises(torch.OutOfMemoryError):
        made.start()
    assert len(fake_vllm) == 1
    with pytest.raises(BackendError, match="no loaded model"):
        made.submit([ask("a", "?")])


def test_a_dead_engine_ends_the_run(bagel: VLLMBagelBackend) -> None:
    error = BackendError("vLLM", found="its end", wanted="an engine", remedy="Run again.")
    FakeVLLM.error = error
    bagel.submit([ask("a", "?", n=2), ask("b", "?")])
    with pytest.raises(BackendError) as raised:
        bagel.collect()
    assert raised.value is error
    assert bagel.num_pending == 0
    bagel.close()
    assert answers(bagel, ask("a", "?"))["a"].failure is None


def test_it_is_a_backend(bagel: VLLMBagelBackend) -> None:
    assert isinstance(bagel, GenerationBackend)
    bagel.submit([ask("a", "?")])
    assert bagel.num_pending == 1
    bagel.close()
    assert bagel.num_pending == 0
    assert bagel.collect() == []


def test_reason(bagel: VLLMBagelBackend) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=16)
    native = native_backend().reason(["What is drawn?"], sampling=sampling)
    found = bagel.reason(["What is drawn?"], sampling=sampling)
    assert found.text == native.text
    assert found.finish_reason == native.finish_reason


@pytest.mark.slow
def test_a_run_is_resumed(tmp_path: Path, fake_vllm: list[FakeVLLM]) -> None:
    """After a crash, only the unanswered records are asked, and the files are equal."""

    def run(folder: Path, backend: VLLMBagelBackend) -> Any:
        folder.mkdir(exist_ok=True)
        source = write_lines(folder / "questions.jsonl", records(5))
        output = folder / "answers.jsonl"
        record_input = RecordInput(path=str(source), output=str(output))
        sampling = Sampling(temperature=1.0, max_tokens=20)
        predict(backend, [record_input], ReasoningFolders(), sampling=sampling)
        drawn = (folder / "answers").rglob("*.png")
        return read_lines(output), {p.relative_to(folder): Picture(p.read_bytes()) for p in drawn}

    some: Any = {"mode": "image", "think": True, "max_batch_size": 2}
    wanted = run(tmp_path / "whole", backend(**some))
    crashing = backend(**some)
    collected = []
    real = crashing.collect

    def collect() -> Any:
        if len(collected) >= 2:
            raise BackendError("engine", found="its end", wanted="answers", remedy="Run again.")
        collected.extend(found := real())
        return found

    crashing.collect = collect  # type: ignore[method-assign]
    with pytest.raises(BackendError):
        run(tmp_path / "part", crashing)
    found = run(tmp_path / "part", backend(**some))
    assert (found[0], found[1].keys()) == (wanted[0], wanted[1].keys())
    for path, drawing in found[1].items():  # the crash changes the batches, hence the rounding
        assert np.abs(pixels(drawing) - pixels(wanted[1][path])).max() <= 1
    uids = {request.uid.split("#")[0] for request in fake_vllm[-1].client.requests}
    assert len(uids) == 5 - len(collected)
    assert wanted[1], "no drawing was made"
