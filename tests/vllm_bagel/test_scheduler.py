"""Both kinds of vLLM's scheduler get chunks of whole images."""

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.slow,  # the import takes seconds
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
