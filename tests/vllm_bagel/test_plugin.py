"""Settings of the engine; both kinds of vLLM's scheduler get chunks of whole images."""

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from mathcanvas_lightning.errors import ConfigError
from tests.conftest import golden_folder

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.slow,  # the import takes seconds
    pytest.mark.xdist_group("engine"),
    pytest.mark.filterwarnings("ignore"),
]
IMAGE = SimpleNamespace(mm_position=SimpleNamespace(offset=3, length=4))


@pytest.mark.parametrize("is_async", [False, True])
def test_chunks_are_shortened(is_async: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    from mathcanvas_lightning.vllm_bagel.scheduler import make_scheduler

    def scheduled(self: Scheduler, request: Any, done: int, num_new: int, *rest: int) -> Any:
        return [], num_new, rest[0], [], []

    monkeypatch.setattr(Scheduler, "__init__", lambda self, **settings: None)
    monkeypatch.setattr(AsyncScheduler, "__init__", lambda self, **settings: None)
    monkeypatch.setattr(Scheduler, "_try_schedule_encoder_inputs", scheduled)
    config = SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=is_async))
    scheduler = make_scheduler(config)
    assert isinstance(scheduler, AsyncScheduler) == is_async
    request = SimpleNamespace(mm_features=[IMAGE])
    found = {
        (done, num_new): scheduler._try_schedule_encoder_inputs(request, done, num_new, 9)[1]
        for done, num_new in ((0, 2), (0, 5), (0, 7), (3, 3), (3, 4), (5, 2))
    }
    assert found == {(0, 2): 2, (0, 5): 3, (0, 7): 7, (3, 3): 0, (3, 4): 4, (5, 2): 2}


def engine_config(**scheduler: Any) -> Any:
    """The parts of vLLM's configuration that the plugin reads."""
    model = str(golden_folder() / "tiny_bagel")
    settings = {"max_num_batched_tokens": 8, "max_num_seqs": 4, "scheduler_cls": None}
    settings |= {"long_prefill_token_threshold": 0, **scheduler}
    hf_config = SimpleNamespace()
    return SimpleNamespace(
        model_config=SimpleNamespace(model=model, hf_config=hf_config, max_model_len=1000),
        scheduler_config=SimpleNamespace(**settings),
        speculative_config=None,
    )


@pytest.mark.skipif(not (golden_folder() / "tiny_bagel").is_dir(), reason="no golden files")
def test_settings_of_the_engine() -> None:
    from mathcanvas_lightning.vllm_bagel.directory import read_directory
    from mathcanvas_lightning.vllm_bagel.plugin import EngineDefaults

    config = engine_config()
    EngineDefaults.verify_and_update_model_config(config.model_config)
    assert config.model_config.hf_config.mrope_section == [1, 1, 1]
    for _ in range(2):
        EngineDefaults.verify_and_update_config(config)
        assert config.model_config.enforce_eager
        assert config.scheduler_config.scheduler_cls.endswith("make_scheduler")
        largest = read_directory(config.model_config.model).max_block_tokens
        assert config.scheduler_config.max_num_batched_tokens == largest + 4
    roomy = engine_config(max_num_batched_tokens=5000)
    EngineDefaults.verify_and_update_config(roomy)
    assert roomy.scheduler_config.max_num_batched_tokens == 5000


@pytest.mark.parametrize(
    "options", [{"scheduler_cls": "another"}, {"long_prefill_token_threshold": 5}]
)
def test_options_that_would_split_images(options: dict[str, Any]) -> None:
    from mathcanvas_lightning.vllm_bagel.plugin import EngineDefaults

    with pytest.raises(ConfigError, match=f"engine_options.{next(iter(options))}"):
        EngineDefaults.verify_and_update_config(engine_config(**options))
