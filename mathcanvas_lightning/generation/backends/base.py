"""What answers requests: the one interface, its use from Python, and a backend without a model."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from mathcanvas_lightning.errors import MathCanvasError
from mathcanvas_lightning.generation.requests import (
    GenerationRequest,
    GenerationResponse,
    Output,
    Usage,
)


class BackendError(MathCanvasError):
    """A backend that can't start, or can't go on; what it has answered is safe."""


@runtime_checkable
class GenerationBackend(Protocol):
    """Answers requests, many at a time, in the order they get ready.

    A request that can't be answered becomes a response with a failure. What ends all of them, such
    as an engine that dies, is raised as a `BackendError`.
    """

    @property
    def model_name(self) -> str:
        """The model's name, for the journal."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides its answers besides the request: the model's path, its precision, ...

        JSON values, for the journal, which never mixes answers made by different ones.
        """
        ...

    @property
    def max_pending(self) -> int:
        """Requests that keep it busy; more of them only wait in it."""
        ...

    @property
    def num_pending(self) -> int:
        """Requests submitted and not yet collected."""
        ...

    def start(self, *, local_rank: int = 0, device: str = "cpu") -> None:
        """Gets ready; does nothing if it is.

        Args:
            local_rank: Of this process on its machine, where several answer a part each.
            device: Where the Trainer puts this process's tensors.

        Raises:
            BackendError: If it can't.
        """
        ...

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Takes requests, without waiting for their answers."""
        ...

    def collect(self) -> list[GenerationResponse]:
        """Waits until a pending request is done.

        Returns:
            All that are; none only if nothing is pending.

        Raises:
            BackendError: If no pending request can be answered any more.
        """
        ...

    def close(self) -> None:
        """Ends all it has started, pending requests too. May be called at any time, repeatedly."""
        ...


def generate(
    backend: GenerationBackend, requests: Iterable[GenerationRequest]
) -> Iterator[GenerationResponse]:
    """Answers any number of requests, drawing them as they are needed.

    Args:
        backend: Started if it isn't; left running.
        requests: With ids that differ.

    Yields:
        A response for each, in the order they get ready.
    """
    backend.start()
    for request in requests:
        backend.submit([request])
        while backend.num_pending >= backend.max_pending:
            yield from backend.collect()
    while backend.num_pending:
        yield from backend.collect()


class EchoBackend:
    """Answers each request with the text of its last message: for tests and dry runs.

    Args:
        model_name: What to call it.
        max_pending: Requests held at a time.
    """

    def __init__(self, model_name: str = "echo", max_pending: int = 64) -> None:
        self._model_name = model_name
        self._max_pending = max_pending
        self._waiting: deque[GenerationRequest] = deque()

    @property
    def model_name(self) -> str:
        """The model's name, for the journal."""
        return self._model_name

    @property
    def settings(self) -> Mapping[str, Any]:
        """None."""
        return {}

    @property
    def max_pending(self) -> int:
        """Requests held at a time."""
        return self._max_pending

    @property
    def num_pending(self) -> int:
        """Requests submitted and not yet collected."""
        return len(self._waiting)

    def start(self, *, local_rank: int = 0, device: str = "cpu") -> None:
        """Nothing to start."""

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Takes requests."""
        self._waiting.extend(requests)

    def collect(self) -> list[GenerationResponse]:
        """Answers all that wait."""
        responses = [_echo(request) for request in self._waiting]
        self._waiting.clear()
        return responses

    def close(self) -> None:
        """Drops what waits."""
        self._waiting.clear()


def _echo(request: GenerationRequest) -> GenerationResponse:
    said = request.messages[-1].text
    words = len(said.split())
    output = Output(text=said, finish_reason="stop", steps=request.messages[-1].parts)
    usage = Usage(
        prompt_tokens=sum(len(message.text.split()) for message in request.messages),
        completion_tokens=words * request.sampling.n,
    )
    return GenerationResponse(uid=request.uid, outputs=(output,) * request.sampling.n, usage=usage)
