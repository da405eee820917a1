"""Checks before vLLM runs; causes and remedies from vLLM's messages."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.backends.base import BackendError, GenerationBackend, generate
from mathcanvas_lightning.generation.backends.gpus import share_of_gpus
from mathcanvas_lightning.generation.backends.vllm import backend as vllm_backend
from mathcanvas_lightning.generation.backends.vllm.backend import (
    VLLMBackend,
    find_model,
)
from mathcanvas_lightning.generation.backends.vllm.diagnosis import find_cause, find_remedy
from mathcanvas_lightning.generation.backends.vllm.engine import read_result
from mathcanvas_lightning.generation.requests import Usage
from mathcanvas_lightning.records.record import RecordInput
from tests.conftest import TRAINER_WARNINGS, lasting_processes
from tests.generation.backends.vllm import engines
from tests.generation.engine import ask, engine_lock, needs_engine  # noqa: F401 - a fixture
from tests.generation.runs import predict, records, write_lines


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"tensor_parallel_size": 0}, "tensor_parallel_size: found 0; wanted 1 or more"),
        ({"pipeline_parallel_size": 0}, "pipeline_parallel_size"),
        ({"max_model_len": 1}, "max_model_len: found 1; wanted 2 or more"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
        ({"max_images": -1}, "max_images"),
        ({"max_pending": 0}, "max_pending"),
        ({"engine_options": {"dtype": "half"}}, r"engine_options\.dtype.*setting dtype"),
        ({"engine_options": {"model": "x"}}, r"engine_options\.model.*setting model_path"),
        ({"engine_options": {"enable_lora": True}}, "setting lora_path"),
        ({"max_images": 1, "engine_options": {"limit_mm_per_prompt": {}}}, "setting max_images"),
    ],
)
def test_bad_settings(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        VLLMBackend("model", **settings)


def test_close_is_allowed_at_any_time() -> None:
    backend = VLLMBackend("some/model-7b/", engine_options={"limit_mm_per_prompt": {"image": 2}})
    assert isinstance(backend, GenerationBackend)
    assert backend.model_name == "model-7b"
    assert backend.num_pending == 0
    backend.close()
    with pytest.raises(BackendError, match="start"):
        backend.submit([ask("a", "Hi.")])
    assert backend.collect() == []


def test_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_backend, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"pip install '\.\[vllm\]'"):
        VLLMBackend("model").start()


def test_model_path_is_a_folder_or_a_hub_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "demo" / "model"
    for missing in (str(folder), "demo", "./demo/model", "~/no/such/model"):
        with pytest.raises(ConfigError, match="no such folder"):
            find_model(missing)
    assert find_model("Qwen/Qwen2.5-VL-7B-Instruct") == "Qwen/Qwen2.5-VL-7B-Instruct"
    folder.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"without config\.json"):
        find_model("demo/model")
    with pytest.raises(ConfigError, match="no such folder"):
        find_model("demo/other")  # the folder demo exists, so this is not a hub name
    (folder / "config.json").write_text("{}")
    assert find_model("demo/model") == "demo/model"


@pytest.mark.parametrize("config", [None, "{", "{}", '{"r": 513}', '{"r": "x"}'])
def test_invalid_adapters(config: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(ConfigError, match=r"lora_path.*peft.*512"):
        VLLMBackend(str(tmp_path), lora_path=str(tmp_path)).start()


@given(rank=st.integers(1, 512))
def test_max_lora_rank_fits_the_adapter(
    rank: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("adapter")
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    room = vllm_backend.lora_arguments(str(folder))["max_lora_rank"]
    assert rank <= room
    assert not [size for size in vllm_backend.LORA_RANKS if rank <= size < room]


def test_launcher_variables_are_removed() -> None:
    kept = {"HOME": "/h", "CUDA_VISIBLE_DEVICES": "2", "VLLM_LOGGING_LEVEL": "INFO", "RANKS": "1"}
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK ROLE_NAME NODE_RANK MASTER_ADDR"
    names += " MASTER_PORT TORCHELASTIC_USE_AGENT_STORE TORCHELASTIC_RUN_ID"
    found = vllm_backend.engine_environment({**kept, **dict.fromkeys(names.split(), "1")})
    assert found == {"VLLM_NO_USAGE_STATS": "1", **kept}


@given(st.integers(1, 8), st.integers(1, 4))
def test_engines_share_all_gpus(num_engines: int, count: int) -> None:
    visible = [f"GPU-{n}" for n in range(num_engines * count)]
    shares = [share_of_gpus(visible, rank, count) for rank in range(num_engines)]
    assert [name for share in shares for name in share] == visible
    with pytest.raises(BackendError, match=f"found {len(visible)} visible GPUs"):
        share_of_gpus(visible, num_engines, count)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that looks like a model, for an engine without vLLM."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(vllm_backend, "find_spec", lambda name: name)
    monkeypatch.setattr(vllm_backend, "ENGINE", f"{engines.__name__}:faulty")
    return str(tmp_path)


@pytest.mark.slow
def test_answers_before_a_failure_are_kept(model: str) -> None:
    backend = VLLMBackend(model, max_pending=2)
    responses = generate(backend, [ask(uid, "Hi.") for uid in "abc"])
    assert next(responses).uid == "a"
    with pytest.raises(BackendError, match="KeyError: 'lost'"):
        next(responses)
    with pytest.raises(BackendError, match="KeyError: 'lost'"):
        backend.submit([ask("d", "Hi.")])
    with pytest.raises(BackendError, match="KeyError: 'lost'"):
        backend.start()  # the pending request would be lost
    assert backend.num_pending in (1, 2)  # "c" may have been sent before the failure arrived
    backend.close()
    backend.start()  # starts again
    assert backend.num_pending == 0
    backend.submit([ask("d", "Hi.")])
    backend.close()
    assert not lasting_processes()


@pytest.mark.slow
@pytest.mark.filterwarnings(*TRAINER_WARNINGS)
def test_an_engine_that_dies_ends_the_run(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vllm_backend, "ENGINE", f"{engines.__name__}:mortal")
    source = write_lines(tmp_path / "questions.jsonl", records(engines.LIFE + 5))
    run = RecordInput(path=str(source), output=str(tmp_path / "answers.jsonl"))
    with pytest.raises(BackendError, match="exit status -9"):
        predict(VLLMBackend(model, max_pending=5), [run])
    assert not lasting_processes()


def test_settings_contain_what_changes_the_answers(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    options = {"quantization": "fp8", "hf_token": "hidden", "revision": tmp_path}
    one, other = (
        VLLMBackend(str(path), lora_path=str(path), engine_options=options, **more).settings
        for path, more in (
            (tmp_path, {}),
            (tmp_path / "link", {"tensor_parallel_size": 2, "max_pending": 3}),
        )
    )
    assert one == other == json.loads(json.dumps(one))
    assert one["model"] == one["lora"] == str(tmp_path.resolve())
    assert one["engine_options"] == {"quantization": "fp8", "revision": str(tmp_path)}
    assert VLLMBackend("Qwen/Qwen3").settings["model"] == "Qwen/Qwen3"
    for more in ({"dtype": "half"}, {"max_model_len": 9}, {"lora_path": "x"}):
        assert VLLMBackend(str(tmp_path), **more).settings != one


@pytest.mark.slow
def test_a_failure_at_the_start(model: str) -> None:
    backend = VLLMBackend(model, dtype="never")
    with pytest.raises(BackendError, match=r"CUDA out of memory.*tensor_parallel_size"):
        backend.start()
    assert not lasting_processes()


LINES = [
    "(EngineCore pid=1) WARNING 01-01 [x.py:1] ImportError: only a warning",
    "(EngineCore pid=1) ERROR 01-01 [core.py:9] Traceback (most recent call last):",
    '(EngineCore pid=1) ERROR 01-01 [core.py:9]     raise ValueError("No available memory")',
    "(EngineCore pid=1) ERROR 01-01 [core.py:9] ValueError: No available memory for the blocks.",
    "RuntimeError: Engine core initialization failed. See root cause above.",
]


def test_causes() -> None:
    assert find_cause("KeyError: 3", LINES) == "KeyError: 3"
    root = "ValueError: No available memory for the blocks."
    assert find_cause("RuntimeError: failed. See root cause above.", LINES) == root
    assert find_cause("", LINES) == root
    assert find_cause("", ["nothing", "to see"]) == ""
    assert find_cause("x. See root cause above.", []) == "x. See root cause above."
    assert find_cause("E: bad value [type=value_error, input=1]\n more", []) == "E: bad value"


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        ("ValueError: No available memory for the blocks.", "gpu_memory_utilization"),
        ("torch.OutOfMemoryError: CUDA out of memory.", "tensor_parallel_size"),
        ("RuntimeError: operator torchvision::nms does not exist", "torchvision"),
        ("max_model_len (9) is greater than the derived", "Lower max_model_len"),
        ("its process ended with exit status -9", "ran out of memory"),
        ("OSError: x is not a local folder and is not a valid model identifier", "model_path"),
        ("SomethingElse: never seen", "VLLM_LOGGING_LEVEL=INFO"),
    ],
)
def test_remedies(cause: str, remedy: str) -> None:
    assert remedy in find_remedy(cause)


@needs_engine
def test_unknown_option_of_the_engine(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    backend = VLLMBackend(str(tmp_path), engine_options={"max_num_seq": 3})
    with pytest.raises(BackendError, match=r"max_num_seq: .*such as max_num_seqs"):
        backend.start()
    assert not lasting_processes()


@pytest.mark.parametrize(("temperature", "num_made"), [(0.0, 1), (1.0, 16)])
def test_tokens_of_equal_answers_count_once(temperature: float, num_made: int) -> None:
    made = SimpleNamespace(text="t", finish_reason="stop", token_ids=[1] * 100)
    result: Any = SimpleNamespace(outputs=[made] * num_made, prompt_token_ids=[1, 2])
    response = read_result(ask("q", "?", n=16, temperature=temperature), result)
    assert len(response.outputs) == 16
    assert response.usage == Usage(prompt_tokens=2, completion_tokens=100 * num_made)
