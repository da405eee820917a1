"""A judge that needs no model: it obeys marks in the texts that it gets."""

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
    """Extracts what stands in [[...]] of the response; answers in reverse order.

    A response with "fail here" fails in the first phase, an answer with "fail there" in the
    second; "mumble" is answered by neither 0 nor 1.

    Args:
        model_name: What to call it.
    """

    def __init__(self, model_name: str = "marked") -> None:
        super().__init__(model_name, max_pending=3)
        self.requests: list[GenerationRequest] = []
        self.is_closed = False

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Takes requests."""
        self.requests.extend(requests)
        super().submit(requests)

    def collect(self) -> list[GenerationResponse]:
        """Answers all that wait, the last one first."""
        waiting = list(self.waiting)[::-1]
        self.waiting.clear()
        return [self._answer(request) for request in waiting]

    def close(self) -> None:
        """Remembers that it was closed."""
        self.is_closed = True
        super().close()

    def _answer(self, request: GenerationRequest) -> GenerationResponse:
        text = request.messages[-1].text
        is_extraction = request.sampling.choice is None
        if ("fail here" if is_extraction else "fail there") in text:
            return GenerationResponse(
                uid=request.uid, failure=Failure(kind="timeout", message="too slow")
            )
        said = _extracted(text) if is_extraction else _compared(text)
        return GenerationResponse(uid=request.uid, outputs=(Output(text=said),))


class DeadBackend(EchoBackend):
    """Ends while it is asked."""

    num_closed = 0

    def collect(self) -> list[GenerationResponse]:
        """Raises."""
        raise BackendError("engine", found="it is dead", wanted="a live one", remedy="Revive it.")

    def close(self) -> None:
        """Counts."""
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
