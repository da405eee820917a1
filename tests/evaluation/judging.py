"""Backends for tests of the judge, controlled by marks in the texts."""

import re
from collections.abc import Sequence

from mathcanvas_lightning.generation.backends.base import BackendError, EchoBackend
from mathcanvas_lightning.generation.requests import (
    Failure,
    GenerationRequest,
    GenerationResponse,
    Output,
)


class MarkedBackend(EchoBackend):
    """Extracts the text in [[...]] from the response; answers in reverse order.

    A response with "fail here" fails in the first phase, an answer with "fail there" in the
    second; the verdict on "mumble" is neither 0 nor 1.

    Args:
        model_name: Name of the model.
    """

    def __init__(self, model_name: str = "marked") -> None:
        super().__init__(model_name, max_pending=3)
        self.requests: list[GenerationRequest] = []
        self.is_closed = False

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Records the requests."""
        self.requests.extend(requests)
        super().submit(requests)

    def collect(self) -> list[GenerationResponse]:
        """Answers all pending requests, the last one first."""
        pending = self.requests[len(self.requests) - self.num_pending :]
        super().collect()
        return [self.answer(request) for request in reversed(pending)]

    def close(self) -> None:
        """Records the call."""
        self.is_closed = True
        super().close()

    def answer(self, request: GenerationRequest) -> GenerationResponse:
        text = request.messages[-1].text
        is_extraction = "of the student:" not in text
        if ("fail here" if is_extraction else "fail there") in text:
            return GenerationResponse(
                uid=request.uid, failure=Failure(kind="timeout", message="too slow")
            )
        reply = _extracted(text) if is_extraction else _compared(text)
        return GenerationResponse(uid=request.uid, outputs=(Output(text=reply),))


class FailingBackend(MarkedBackend):
    """Fails all requests with a word, like a server that refuses them.

    Args:
        word: The word.
    """

    def __init__(self, word: str = "Reference answer") -> None:
        super().__init__()
        self.word = word

    def answer(self, request: GenerationRequest) -> GenerationResponse:
        if self.word not in request.messages[-1].text:
            return super().answer(request)
        failure = Failure(kind="http_400", message="Unrecognized request argument")
        return GenerationResponse(uid=request.uid, failure=failure)


class MortalBackend(MarkedBackend):
    """Raises a BackendError after some answers.

    Args:
        lives: Number of answers.
    """

    def __init__(self, lives: int) -> None:
        super().__init__()
        self.lives = lives

    def collect(self) -> list[GenerationResponse]:
        """Answers one request at a time."""
        if self.lives == 0:
            raise BackendError(
                "engine", found="its end", wanted="a live one", remedy="Start again."
            )
        self.lives -= 1
        request = self.waiting.popleft()
        return [self.answer(request)]


class DeadBackend(EchoBackend):
    """Raises a BackendError instead of answering."""

    num_closed = 0

    def collect(self) -> list[GenerationResponse]:
        """Raises."""
        raise BackendError("engine", found="it is dead", wanted="a live one", remedy="Revive it.")

    def close(self) -> None:
        """Counts the calls."""
        DeadBackend.num_closed += 1


def _extracted(text: str) -> str:
    marked = re.findall(r"\[\[(.*?)\]\]", text)
    return "<think>hm</think> " + (" ".join(marked) or "NONE")


def _compared(text: str) -> str:
    if "mumble" in text:
        return "perhaps"
    reference = re.search(r"Reference answer.*:\n(.*)\n", text)
    answer = re.search(r"of the student:\n(.*)\n", text)
    assert reference is not None
    assert answer is not None
    return "1" if reference[1] in answer[1] else "0"
