"""Engines without vLLM for tests: they import little, so that their processes start at once."""

import os
import signal
from multiprocessing.connection import Connection

from mathcanvas_lightning.generation.backends.vllm.messages import EngineFailure, Ready
from mathcanvas_lightning.generation.requests import GenerationResponse, Output

LIFE = 15


def faulty(descriptor: int) -> None:
    """An engine that answers the first request and fails at the second."""
    connection = Connection(descriptor)
    settings = connection.recv()
    if settings.arguments["dtype"] == "never":
        connection.send(EngineFailure("ValueError: CUDA out of memory"))
        return
    connection.send(Ready())
    first, _ = connection.recv(), connection.recv()
    connection.send(GenerationResponse(uid=first.uid, outputs=(Output(text="fine"),)))
    connection.send(EngineFailure("KeyError: 'lost'"))


def mortal(descriptor: int) -> None:
    """An engine that is killed after `LIFE` requests."""
    connection = Connection(descriptor)
    connection.recv()
    connection.send(Ready())
    for _ in range(LIFE):
        request = connection.recv()
        connection.send(GenerationResponse(uid=request.uid, outputs=(Output(text="fine"),)))
    os.kill(os.getpid(), signal.SIGKILL)
