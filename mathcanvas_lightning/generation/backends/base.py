"""The interface of all backends, a function to use one from Python, and the echo backend."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from mathcanvas_lightning.common.display.short import ShortRepr
from mathcanvas_lightning.errors import MathCanvasError
from mathcanvas_lightning.generation.requests import (
    GenerationRequest,
    GenerationResponse,
    Output,
    Usage,
)


class BackendError(MathCanvasError):
    """A backend cannot start or cannot continue. Answers that it returned before stay valid."""


@runtime_checkable
class GenerationBackend(Protocol):
    """Answers many requests at a time and returns each response when it is ready.

    A request that cannot be answered gets a response with a failure. An error that affects all
    requests, such as a crash of the engine, is raised as a `BackendError`.
    """

    @property
    def model_name(self) -> str:
        """Name of the model in the journal."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that change the answers: the model's path, its precision, ...

        JSON values. The journal stores them and never mixes answers made with different settings.
        """
        ...

    @property
    def max_pending(self) -> int:
        """Number of pending requests that keeps the backend busy."""
        ...

    @property
    def num_pending(self) -> int:
        """Number of requests that were submitted but not yet collected."""
        ...

    def start(self, *, local_rank: int = 0, device: str = "cpu") -> None:
        """Loads the model or connects to it; does nothing if this was done before.

        Args:
            local_rank: Rank of this process on its machine, if several processes share the work.
            device: Device that the Trainer chose for this process.

        Raises:
            BackendError: If the backend cannot start.
        """
        ...

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Adds requests to the queue; returns at once."""
        ...

    def collect(self) -> list[GenerationResponse]:
        """Waits until at least one pending request is finished.

        Returns:
            The responses of all finished requests; empty only if nothing is pending.

        Raises:
            BackendError: If the pending requests can no longer be answered.
        """
        ...

    def close(self) -> None:
        """Stops everything that `start` started and drops pending requests; may be repeated."""
        ...


def generate(
    backend: GenerationBackend, requests: Iterable[GenerationRequest]
) -> Iterator[GenerationResponse]:
    """Answers any number of requests; takes the next one only when the backend has room for it.

    The iteration may be left early: the next call waits for the requests that are still pending,
    and drops their responses.

    Args:
        backend: Backend to use. It is started if needed, and left running.
        requests: Requests with different ids.

    Yields:
        One response for each request, as soon as it is ready.

    Raises:
        BackendError: If the backend stops working, or another call took the responses.
    """
    backend.start()
    drop_pending(backend)
    waiting: set[str] = set()

    def collected(max_pending: int) -> Iterator[GenerationResponse]:
        while backend.num_pending >= max_pending:
            for response in backend.collect():
                waiting.discard(response.uid)
                yield response

    for request in requests:
        waiting.add(request.uid)
        backend.submit([request])
        yield from collected(backend.max_pending)
    yield from collected(1)
    if waiting:
        raise BackendError(
            "generate()",
            found=f"no response to {len(waiting)} requests, because another call has used the "
            "same backend in the meantime",
            wanted="one call at a time for each backend",
            remedy="Finish the first call before the second one, or use two backends.",
        )


def drop_pending(backend: GenerationBackend) -> None:
    """Waits for pending requests of an earlier caller, and drops their responses.

    Args:
        backend: A started backend.
    """
    while backend.num_pending:
        backend.collect()


class EchoBackend(ShortRepr):
    """Answers each request with the text of its last message, for tests and dry runs.

    Args:
        model_name: Name of the model in the journal.
        max_pending: Maximum number of pending requests.
    """

    def __init__(self, model_name: str = "echo", max_pending: int = 64) -> None:
        self._model_name = model_name
        self._max_pending = max_pending
        self.waiting: deque[GenerationRequest] = deque()
        """Pending requests, the oldest first."""

    @property
    def model_name(self) -> str:
        """Name of the model in the journal."""
        return self._model_name

    @property
    def settings(self) -> Mapping[str, Any]:
        """Empty: no setting changes the answers."""
        return {}

    @property
    def max_pending(self) -> int:
        """Maximum number of pending requests."""
        return self._max_pending

    @property
    def num_pending(self) -> int:
        """Number of requests that were submitted but not yet collected."""
        return len(self.waiting)

    def start(self, *, local_rank: int = 0, device: str = "cpu") -> None:
        """Does nothing: there is no model to load."""

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Adds requests to the queue."""
        self.waiting.extend(requests)

    def collect(self) -> list[GenerationResponse]:
        """Answers all pending requests."""
        responses = [_echo(request) for request in self.waiting]
        self.waiting.clear()
        return responses

    def close(self) -> None:
        """Drops all pending requests."""
        self.waiting.clear()


def _echo(request: GenerationRequest) -> GenerationResponse:
    text = request.messages[-1].text
    num_words = len(text.split())
    output = Output(text=text, finish_reason="stop", steps=request.messages[-1].parts)
    usage = Usage(
        prompt_tokens=sum(len(message.text.split()) for message in request.messages),
        completion_tokens=num_words * request.sampling.n,
    )
    return GenerationResponse(uid=request.uid, outputs=(output,) * request.sampling.n, usage=usage)
