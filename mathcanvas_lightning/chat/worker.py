"""Answers requests one after the other in a thread, and hands their events to an event loop."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from mathcanvas_lightning.generation.events import Event, StreamingBackend
from mathcanvas_lightning.generation.requests import GenerationRequest


class Worker:
    """The thread of a backend.

    Args:
        backend: A started backend.
    """

    def __init__(self, backend: StreamingBackend) -> None:
        self._backend = backend
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chat")

    async def answer(
        self, request: GenerationRequest, stop: threading.Event
    ) -> AsyncGenerator[Event, None]:
        """Answers a request when all earlier ones are answered.

        Args:
            request: The request.
            stop: Ends the answer when it is set; it is set at the end.

        Yields:
            The events of the backend; without an `EndEvent` if the answer was stopped.
        """
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[Event | None] = asyncio.Queue()

        def put(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(news.put_nowait, event)

        work = loop.run_in_executor(self._thread, _stream, self._backend, request, stop, put)
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # no warning
        work.add_done_callback(lambda _: news.put_nowait(None))
        try:
            while (event := await news.get()) is not None:
                yield event
            await work  # raises its error
        finally:
            stop.set()

    def close(self) -> None:
        """Waits for the end of the current answer, which the caller has stopped."""
        self._thread.shutdown(cancel_futures=True)


def _stream(
    backend: StreamingBackend,
    request: GenerationRequest,
    stop: threading.Event,
    put: Callable[[Event], None],
) -> None:
    if stop.is_set():
        return
    events = cast("Generator[Event]", backend.stream(request))
    with contextlib.closing(events):
        for event in events:
            if stop.is_set():
                return
            put(event)
