"""The event loop of a server backend, which runs in a separate thread, and calls into it."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from mathcanvas_lightning.common.parallel import result_of
from mathcanvas_lightning.generation.backends.server.chat import Chat
from mathcanvas_lightning.generation.backends.server.failures import RequestFailedError
from mathcanvas_lightning.generation.events import EndEvent, Event, TextEvent, WaitEvent
from mathcanvas_lightning.generation.requests import Failure, GenerationRequest, GenerationResponse
from mathcanvas_lightning.records.pictures import PictureError

POLL_S = 0.5
"""Longest time between two events of a streamed answer."""
T = TypeVar("T")


@contextlib.contextmanager
def loop_in_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """Runs an event loop in a thread until the block ends."""
    # Closing the runner cancels the remaining tasks and stops the loop's threads.
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    loop = runner.get_loop()

    def work() -> None:
        with runner:
            loop.run_forever()

    thread = threading.Thread(target=work, name="server-backend", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def run_in(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in a loop of another thread, and waits for its result."""
    return result_of(asyncio.run_coroutine_threadsafe(work, loop))


def stream_answer(
    loop: asyncio.AbstractEventLoop, chat: Chat, request: GenerationRequest
) -> Iterator[Event]:
    """Answers a request, and yields its text so far.

    Args:
        loop: Event loop of the chat.
        chat: Sends the request.
        request: Request for one sample.

    Yields:
        Events, at least one every half second; the last one has the response.

    Raises:
        BackendError: If the server has ended.
    """
    news: queue.SimpleQueue[str | Future[GenerationResponse]] = queue.SimpleQueue()
    watched = replace(chat, client=chat.client.watched(news.put))
    future = asyncio.run_coroutine_threadsafe(_answer(watched, request), loop)
    future.add_done_callback(news.put)
    seen = ""
    try:
        while not isinstance(text := _next(news), Future):
            yield WaitEvent() if text in (None, seen) else TextEvent(step=1, text=text)
            seen = text or seen
        response = future.result()
        for output in response.outputs:
            if output.text != seen:
                yield TextEvent(step=1, text=output.text)
        yield EndEvent(response=response)
    finally:
        future.cancel()


async def _answer(chat: Chat, request: GenerationRequest) -> GenerationResponse:
    try:
        return await chat.answer(request)
    except (PictureError, RequestFailedError) as error:
        failure = Failure(kind=error.kind, message=str(error))
    return GenerationResponse(uid=request.uid, failure=failure)


def _next(news: queue.SimpleQueue[T]) -> T | None:
    """The next item; None after half a second."""
    with contextlib.suppress(queue.Empty):
        return news.get(timeout=POLL_S)
    return None
