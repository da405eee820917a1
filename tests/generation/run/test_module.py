"""The predict loop: no barrier, each response exactly once, the backend always closed."""

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch.utils.data import DataLoader, IterableDataset

from mathcanvas_lightning.generation.backends.base import BackendError, EchoBackend, generate
from mathcanvas_lightning.generation.requests import (
    Exchange,
    Failure,
    GenerationRequest,
    GenerationResponse,
    Message,
    Sampling,
)
from mathcanvas_lightning.generation.run import module as run_module
from mathcanvas_lightning.generation.run.module import (
    QUIET_TRAINER,
    GenerationModule,
    RequestBatch,
    ResponseCallback,
)
from tests.conftest import TRAINER_WARNINGS, examples
from tests.generation.fakes import Dying, LastFirst

pytestmark = [pytest.mark.filterwarnings(text) for text in TRAINER_WARNINGS]


class Listener(ResponseCallback):
    """Keeps all exchanges."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def on_responses(self, trainer: Any, pl_module: Any, exchanges: Sequence[Exchange]) -> None:
        assert exchanges
        self.exchanges += exchanges

    @property
    def uids(self) -> list[str]:
        return [exchange.response.uid for exchange in self.exchanges]


class Stream(IterableDataset[RequestBatch]):
    """Batches without a known number."""

    def __init__(self, batches: Sequence[RequestBatch]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def request(uid: str, text: str = "?", **options: Any) -> GenerationRequest:
    return GenerationRequest(uid=uid, messages=(Message(role="user", parts=(text,)),), **options)


def batches(sizes: Sequence[int], *, marked: bool = True) -> list[RequestBatch]:
    made = []
    for number, size in enumerate(sizes):
        requests = tuple(request(f"{number}.{n}") for n in range(size))
        is_last = marked and number == len(sizes) - 1
        made.append(RequestBatch(requests=requests, is_last=is_last))
    return made


def predict(
    module: GenerationModule, data: Any, *callbacks: Any, **options: Any
) -> list[GenerationResponse]:
    trainer = Trainer(accelerator="cpu", callbacks=list(callbacks), **QUIET_TRAINER, **options)
    found = trainer.predict(module, DataLoader(data, batch_size=None))
    assert found is not None
    return [response for step in found for response in step]


@settings(
    max_examples=examples(25),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 9), st.booleans())
def test_each_response_once(sizes: list[int], max_pending: int, marked: bool) -> None:
    backend, listener = LastFirst(max_pending), Listener()
    data = Stream(batches(sizes, marked=marked))
    returned = predict(GenerationModule(backend), data, listener)
    wanted = {f"{b}.{n}" for b, size in enumerate(sizes) for n in range(size)}
    assert len(listener.uids) == len(wanted)
    assert set(listener.uids) == wanted
    assert all(
        e.request is not None and e.request.uid == e.response.uid for e in listener.exchanges
    )
    assert {response.uid for response in returned} <= wanted
    if marked:
        assert {response.uid for response in returned} == wanted
    assert backend.most_pending <= max_pending
    assert backend.num_closed == 1


def test_no_barrier_between_batches() -> None:
    backend, listener = LastFirst(max_pending=6), Listener()
    predict(GenerationModule(backend), Stream(batches([4, 4, 4])), listener)
    # The first requests are answered last: later batches were submitted in the meantime.
    assert listener.uids.index("1.0") < listener.uids.index("0.0")
    assert backend.most_pending == 6


def test_limits_are_respected() -> None:
    backend, listener = LastFirst(), Listener()
    made = predict(
        GenerationModule(backend), Stream(batches([3, 3, 3])), listener, limit_predict_batches=2
    )
    assert len(made) == len(listener.uids) == len(backend.asked) == 6


def test_a_list_of_batches_is_data_too() -> None:
    assert len(predict(GenerationModule(EchoBackend()), batches([2, 3], marked=False))) == 5


def test_failures_of_records_reach_the_callbacks() -> None:
    failure = GenerationResponse(uid="x", failure=Failure(kind="picture_unreadable", message="cut"))
    backend, listener = LastFirst(), Listener()
    batch = RequestBatch(requests=(request("a"),), failures=(failure,), is_last=True)
    predict(GenerationModule(backend), Stream([batch]), listener)
    assert listener.exchanges[0] == Exchange(response=failure, request=None)
    assert [one.uid for one in backend.asked] == ["a"]


def test_sampling_of_the_module_overrides_that_of_requests() -> None:
    own = Sampling(max_tokens=5)
    batch = RequestBatch(requests=(request("a", sampling=own),), is_last=True)
    for given_sampling, wanted in ((Sampling(n=2), Sampling(n=2)), (None, own)):
        backend = LastFirst()
        predict(GenerationModule(backend, given_sampling), Stream([batch]))
        assert [one.sampling for one in backend.asked] == [wanted]


def test_starts_once_and_only_for_requests() -> None:
    backend = LastFirst()
    predict(GenerationModule(backend), Stream(batches([2, 2])))
    assert backend.starts == [(0, "cpu")]
    idle = LastFirst()
    predict(GenerationModule(idle), Stream(batches([0])))
    assert idle.starts == []
    assert idle.num_closed == 1


def test_an_error_closes_the_backend(tmp_path: Path) -> None:
    backend, listener = Dying(after=3, max_pending=2), Listener()
    with pytest.raises(BackendError, match="engine"):
        predict(GenerationModule(backend), Stream(batches([10])), listener)
    assert backend.num_closed == 1
    assert len(listener.uids) == 3  # earlier answers are not lost


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_closes_the_backend(name: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    backend, listener = Dying(after=3, how=name, max_pending=2), Listener()
    with pytest.raises(SystemExit):
        predict(GenerationModule(backend), Stream(batches([10])), listener)
    assert backend.num_closed == 1
    assert len(listener.uids) == 3
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_rank_ends_whose_parent_ended_before_its_first_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(launcher=launcher), local_rank=1, callbacks=[]
    )
    module = GenerationModule(EchoBackend())
    (callback,) = module.configure_callbacks()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setattr(run_module, "POLL_S", 0.001)
    with pytest.raises(SystemExit) as end:
        callback.on_predict_start(trainer, module)
        threading.Event().wait(60)
    callback.on_exception(trainer, module, end.value)
    assert end.value.code == 143


def test_generate_reads_requests_lazily() -> None:
    backend = LastFirst(max_pending=3)
    drawn = []

    def requests() -> Any:
        for n in range(10):
            drawn.append(n)
            yield request(str(n))

    responses = generate(backend, requests())
    next(responses)
    assert len(drawn) == 3
    assert len(list(responses)) == 9


def test_echo() -> None:
    parts = ("Look", " here")
    asked = GenerationRequest(
        uid="a", messages=(Message(role="user", parts=parts),), sampling=Sampling(n=2)
    )
    (response,) = generate(EchoBackend(), [asked])
    assert [output.text for output in response.outputs] == ["Look here"] * 2
    assert response.usage.completion_tokens == 4


def texts_of(responses: Any) -> dict[str, str]:
    return {response.uid: response.outputs[0].text for response in responses}


def test_leaving_generate_early_gives_nothing_to_the_next_call() -> None:
    backend = LastFirst(max_pending=4)
    first = [request(str(n)) for n in range(6)]
    for _ in generate(backend, first):
        break
    second = [
        GenerationRequest(uid=one.uid, messages=(Message(role="user", parts=("second",)),))
        for one in first
    ]
    assert texts_of(generate(backend, second)) == {one.uid: "re: second" for one in second}


def test_an_interrupted_call_does_not_lose_responses_silently() -> None:
    backend = LastFirst(max_pending=4)
    first = generate(backend, [request(str(n)) for n in range(6)])
    next(first)
    assert len(list(generate(backend, [request("x")]))) == 1
    with pytest.raises(BackendError, match="another call"):
        list(first)


def test_a_run_after_an_early_end_of_generate_gets_its_own_answers() -> None:
    backend, listener = LastFirst(max_pending=4), Listener()
    next(generate(backend, [request(str(n)) for n in range(6)]))
    predict(GenerationModule(backend), Stream(batches([2])), listener)
    assert sorted(listener.uids) == ["0.0", "0.1"]
