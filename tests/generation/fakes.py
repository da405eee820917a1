"""Backends that each misbehave in one way."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from mathcanvas_lightning.errors import MathCanvasError
from mathcanvas_lightning.generation.backends.base import BackendError, EchoBackend
from mathcanvas_lightning.generation.requests import (
    Failure,
    GenerationRequest,
    GenerationResponse,
    Output,
    Usage,
)

SLOW_ANSWERS = 40
"""Number of answers of a slow process, after which it sleeps."""


class LastFirst(EchoBackend):
    """Answers one request per call, the newest first; records all calls."""

    def __init__(self, max_pending: int = 4) -> None:
        super().__init__("last-first", max_pending)
        self.asked: list[GenerationRequest] = []
        self.starts: list[tuple[int, str]] = []
        self.most_pending = 0
        self.num_closed = 0
        self._started = False

    def start(self, *, local_rank: int = 0, device: str = "cpu") -> None:
        if not self._started:
            self.starts.append((local_rank, device))
        self._started = True

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        assert self._started
        self.asked += requests
        super().submit(requests)
        self.most_pending = max(self.most_pending, self.num_pending)

    def collect(self) -> list[GenerationResponse]:
        return [answer(self.waiting.pop())] if self.waiting else []

    def close(self) -> None:
        super().close()
        self.num_closed += 1


class Failing(EchoBackend):
    """Fails requests that contain a word, while a file exists."""

    def __init__(
        self, word: str, while_exists: str | None = None, *, name: str = "failing"
    ) -> None:
        super().__init__(name)
        self.word = word
        self.while_exists = while_exists

    def collect(self) -> list[GenerationResponse]:
        fails = self.while_exists is None or Path(self.while_exists).exists()
        return [
            GenerationResponse(
                uid=one.uid, failure=Failure(kind="timeout", message="after 3 tries")
            )
            if fails and self.word in one.uid
            else one
            for one in super().collect()
        ]


class Dying(LastFirst):
    """Raises after some answers: an error, or a signal to its own process."""

    def __init__(self, after: int, how: str = "error", max_pending: int = 4) -> None:
        super().__init__(max_pending)
        self.left = after
        self.how = how

    def collect(self) -> list[GenerationResponse]:
        if self.left == 0:
            self._die()
        self.left -= 1
        return super().collect()

    def _die(self) -> None:
        if self.how == "error":
            raise engine_died()
        os.kill(os.getpid(), signal.Signals[self.how])
        time.sleep(10)
        raise AssertionError("still alive")


class Logging(EchoBackend):
    """Writes the uid of each request to a file of its process, slowly.

    A slow process gives few answers, then sleeps: a signal always comes before its end.
    """

    def __init__(self, folder: str, seconds: float = 0.0, max_pending: int = 8) -> None:
        super().__init__("logging", max_pending)
        self.folder = Path(folder)
        self.seconds = seconds
        self.rank = 0
        self.left = SLOW_ANSWERS

    def start(self, *, local_rank: int = 0, device: str = "cpu") -> None:
        self.rank = local_rank

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        with (self.folder / f"asked{self.rank}.txt").open("a") as file:
            file.writelines(f"{one.uid}\n" for one in requests)
        super().submit(requests)

    def collect(self) -> list[GenerationResponse]:
        if self.seconds:
            self.left -= 1
            time.sleep(self.seconds if self.left >= 0 else 600)
        return [answer(self.waiting.popleft())] if self.waiting else []


def answer(request: GenerationRequest) -> GenerationResponse:
    text = f"re: {request.messages[-1].text}"
    usage = Usage(prompt_tokens=1, completion_tokens=2)
    output = Output(text=text, finish_reason="stop")
    return GenerationResponse(uid=request.uid, outputs=(output,) * request.sampling.n, usage=usage)


def engine_died() -> MathCanvasError:
    return BackendError("engine", found="its end", wanted="answers", remedy="Run again.")
