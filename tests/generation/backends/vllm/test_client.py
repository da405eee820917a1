"""The client of an engine process: results in any order, withdrawals, failures."""

import os
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.backends.vllm.client import EngineClient
from mathcanvas_lightning.generation.backends.vllm.messages import (
    ContextRequest,
    ContextResult,
    EngineFailure,
    EngineSettings,
    Ready,
    Withdrawal,
)
from tests.conftest import lasting_processes

SETTINGS = EngineSettings(arguments={}, lora_path=None, local_rank=0, num_gpus=1)


def patient(descriptor: int) -> None:
    """An engine that answers on a request named go, the newest first, also withdrawn ones."""
    connection = Connection(descriptor)
    connection.recv()
    connection.send(Ready(64))
    waiting: list[str] = []
    while True:
        message = connection.recv()
        if isinstance(message, Withdrawal):
            continue
        waiting.append(message.uid)
        if message.uid == "go":
            for uid in reversed(waiting):
                connection.send(ContextResult(uid=uid, finish_reason="stop"))
            waiting = []
        if message.uid == "fail":
            connection.send(EngineFailure("ValueError: lost"))


def request(uid: str) -> ContextRequest:
    return ContextRequest(uid=uid, context=((1,),), end_id=2, max_tokens=3)


@pytest.fixture
def client() -> Iterator[EngineClient]:
    found = EngineClient(f"{__name__}:patient", SETTINGS, os.environ, name="an engine")
    yield found
    found.close()
    assert not lasting_processes()


@pytest.mark.slow  # processes start
def test_results_and_withdrawals(client: EngineClient) -> None:
    assert client.window == 64
    assert client.collect() == []
    client.submit([request("a"), request("b"), request("c")])
    assert client.num_pending == 3
    assert client.collect(wait=False) == []
    client.withdraw(["b"])
    assert client.num_pending == 2
    client.submit([request("go")])
    found: list[str] = []
    while client.num_pending:
        found += [result.uid for result in client.collect()]
    assert found == ["go", "c", "a"]


@pytest.mark.slow
def test_a_failure_is_raised_by_every_call(client: EngineClient) -> None:
    client.submit([request("a"), request("fail")])
    for call in (client.collect, lambda: client.submit([request("b")]), client.check):
        with pytest.raises(BackendError, match="an engine: found ValueError: lost"):
            call()
    assert client.num_pending == 2
