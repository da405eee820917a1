"""Answers from any OpenAI-compatible chat server: vLLM, SGLang, llama.cpp, a provider."""

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.backends.server.api import (
    ANY_LENGTH,
    chat_body,
    read_models,
    read_response,
)
from mathcanvas_lightning.generation.backends.server.client import (
    RequestFailed,
    RetryPolicy,
    ServerClient,
)
from mathcanvas_lightning.generation.backends.server.process import ServerConfig, ServerProcess
from mathcanvas_lightning.generation.backends.settings import check_least, journal_options
from mathcanvas_lightning.generation.requests import (
    Failure,
    GenerationRequest,
    GenerationResponse,
)
from mathcanvas_lightning.records.pictures import PictureError

PROBE_TIMEOUT_S = 30.0
REFUSALS = frozenset(f"http_{status}" for status in (301, 302, 307, 308, 401, 402, 403, 404))
"""No further request would fare better: the server is elsewhere, or doesn't want us."""
T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class _Session:
    """What is there between start and close."""

    loop: asyncio.AbstractEventLoop
    client: ServerClient
    model: str
    slots: asyncio.Semaphore
    resources: contextlib.ExitStack
    pending: set[Future[GenerationResponse]] = field(default_factory=set)
    done: queue.SimpleQueue[Future[GenerationResponse]] = field(default_factory=queue.SimpleQueue)
    error: BackendError | None = None
    """Why no further request is answered."""

    def check(self) -> None:
        """Raises the error, if there is one."""
        if self.error is not None:
            raise self.error


class ServerBackend:
    """Asks a chat server, many requests at a time.

    A request whose tries are spent becomes a failed response, as long as the server still answers
    a question for its models. If it doesn't, or refuses us altogether (HTTP 401 to 404, or a
    redirection), a `BackendError` ends the run, so that the remaining requests can be asked later.

    An answer ends where the window does, as vLLM's own engine has it: where a server says that
    prompt and `max_tokens` are too long together, it is asked once more without `max_tokens`.

    `choice` and `regex` of a request's sampling, a `repetition_penalty` other than 1, and template
    options are asked for in the way of vLLM, the rest in that of OpenAI. What a request doesn't
    set, such as top_k, is up to the server; vLLM takes it from the model's generation_config.json
    unless it is started with `--generation-config vllm`, as it is here.

    Args:
        base_url: Of a running server, /v1 included: http://127.0.0.1:8000/v1.
        server: How to start one instead; it ends with this backend.
        model_name: What the server calls the model; by default the only one that it offers.
        api_key: By default the environment variable OPENAI_API_KEY, which, unlike this setting,
            is not saved with the settings.
        max_concurrency: Requests open, or waiting for their next try, at a time.
        max_pending: Requests held at a time, by default twice as many.
        max_retries: Further tries of a request after rate limits (HTTP 429), errors of the server
            (5xx, 408, 409), lost connections, timeouts, and answers that are cut short, given up
            or not as promised.
        timeout_s: Of one try.
        backoff_s: Wait before the first retry at most; doubles each time. A server's Retry-After
            comes on top, up to timeout_s.
        max_backoff_s: The wait grows no further.
        extra_body: Further fields of each request, such as `top_k: 20`; they replace the
            backend's own, and null leaves one out.

    Raises:
        ConfigError: If a setting can't be used.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        server: ServerConfig | None = None,
        model_name: str | None = None,
        api_key: str | None = None,
        max_concurrency: int = 64,
        max_pending: int | None = None,
        max_retries: int = 5,
        timeout_s: float = 600.0,
        backoff_s: float = 1.0,
        max_backoff_s: float = 60.0,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        _check_server(base_url, server)
        max_pending = 2 * max_concurrency if max_pending is None else max_pending
        check_least(
            max_concurrency=(max_concurrency, 1),
            max_pending=(max_pending, 1),
            max_retries=(max_retries, 0),
            timeout_s=(timeout_s, 0.001),
            backoff_s=(backoff_s, 0),
            max_backoff_s=(max_backoff_s, 0),
        )
        self._base_url = base_url
        self._server = server
        self._model_name = model_name
        self._api_key = api_key
        self._max_concurrency = max_concurrency
        self._max_pending = max_pending
        self._retries = RetryPolicy(
            max_retries=max_retries,
            timeout_s=timeout_s,
            backoff_s=backoff_s,
            max_backoff_s=max_backoff_s,
        )
        self._extra_body = extra_body or {}
        self._session: _Session | None = None

    @property
    def model_name(self) -> str:
        """The model's name, for the journal; "" before `start` where the server is to tell it."""
        return self._session.model if self._session else self._model_name or ""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its answers besides the request, for the journal."""
        server = None if self._server is None else self._server.settings
        return {"extra_body": journal_options(self._extra_body), "server": server}

    @property
    def max_pending(self) -> int:
        """Requests that keep it busy."""
        return self._max_pending

    @property
    def num_pending(self) -> int:
        """Requests submitted and not yet collected."""
        return len(self._session.pending) if self._session else 0

    def start(self, *, local_rank: int = 0, device: str = "cpu") -> None:  # noqa: ARG002
        """Starts the server if it is ours, and asks it for its models.

        Args:
            local_rank: Of this process on its machine; each starts a server of its own.
            device: Not used: a server takes its GPUs by `local_rank`.

        Raises:
            BackendError: If the server doesn't start, or doesn't answer. Also if it failed and
                `close` hasn't been called since: pending requests are not forgotten in silence.
            ConfigError: If it offers several models and none is chosen.
        """
        if self._session is not None:
            self._session.check()
            return
        with contextlib.ExitStack() as resources:
            base_url, check = self._base_url, _no_check
            if self._server is not None:
                process = ServerProcess(self._server, local_rank=local_rank)
                resources.enter_context(process)
                base_url, check = process.base_url, process.check
            assert base_url is not None
            loop = resources.enter_context(_loop_in_thread())
            client = _run(loop, self._connect(base_url, check))
            resources.callback(lambda: _run(loop, client.close()))
            self._session = _Session(
                loop=loop,
                client=client,
                model=_run(loop, _find_model(client, self._model_name)),
                slots=asyncio.Semaphore(self._max_concurrency),
                resources=resources.pop_all(),
            )

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Takes requests, without waiting for their answers.

        Raises:
            BackendError: If it isn't started, or can't go on.
        """
        session = self._session
        if session is None:
            raise BackendError(
                "the server backend",
                found="requests before `start`",
                wanted="a started backend",
                remedy="Call `start` first.",
            )
        session.check()
        for request in requests:
            answer = self._answer(session, request)
            future = asyncio.run_coroutine_threadsafe(answer, session.loop)
            session.pending.add(future)
            future.add_done_callback(session.done.put)

    def collect(self) -> list[GenerationResponse]:
        """Waits until a pending request is done.

        Returns:
            All that are; none only if nothing is pending.

        Raises:
            BackendError: If the server doesn't answer any more.
        """
        session = self._session
        responses: list[GenerationResponse] = []
        while session is not None and not responses:
            session.check()
            if not session.pending:
                break
            for future in _drain(session.done):
                try:
                    responses.append(future.result())
                except CancelledError:
                    pass  # by `close`, in another thread
                except Exception as error:  # which the next call raises, after these responses
                    session.error = session.error or _as_backend_error(error)
                    continue  # still pending, so that there is a next call
                session.pending.discard(future)
        return responses

    def close(self) -> None:
        """Ends all pending requests, and the server if it is ours."""
        session, self._session = self._session, None
        if session is None:
            return
        with session.resources:
            for future in list(session.pending):
                future.cancel()

    async def _connect(self, base_url: str, check: Callable[[], None]) -> ServerClient:
        api_key = self._api_key or os.environ.get("OPENAI_API_KEY")
        return ServerClient(base_url, api_key=api_key, retries=self._retries, check=check)

    async def _answer(self, session: _Session, request: GenerationRequest) -> GenerationResponse:
        async with session.slots:
            try:
                return await self._ask(session, request)
            except PictureError as error:
                failure = Failure(kind=error.kind, message=str(error))
            except RequestFailed as failed:
                await _check_others_get_through(session.client, failed)
                failure = Failure(kind=failed.kind, message=str(failed))
        return GenerationResponse(uid=request.uid, failure=failure)

    async def _ask(self, session: _Session, request: GenerationRequest) -> GenerationResponse:
        try:
            return await _complete(session, request, self._extra_body)
        except RequestFailed as failed:
            if failed.kind != "prompt_too_long":
                raise
        return await _complete(session, request, {**self._extra_body, **ANY_LENGTH})


async def _complete(
    session: _Session, request: GenerationRequest, extra: Mapping[str, Any]
) -> GenerationResponse:
    return await session.client.ask(
        "/chat/completions",
        partial(read_response, request),
        body=chat_body(request, session.model, extra),
    )


def _as_backend_error(error: Exception) -> BackendError:
    if isinstance(error, BackendError):
        return error
    unforeseen = BackendError(
        "the server backend",
        found=f"{type(error).__name__}: {error}",
        wanted="requests and answers that can be written and read",
        remedy="What has been answered is kept; what is new in the requests may be the cause.",
    )
    unforeseen.__cause__ = error
    return unforeseen


async def _check_others_get_through(client: ServerClient, failed: RequestFailed) -> None:
    if failed.kind in REFUSALS:
        raise _no_answers(client, failed)
    if failed.transient:
        try:
            await client.ask("/models", read_models, timeout_s=PROBE_TIMEOUT_S)
        except RequestFailed as probe:
            if probe.transient:
                raise _no_answers(client, failed) from None


async def _find_model(client: ServerClient, wanted: str | None) -> str:
    try:
        names = await client.ask("/models", read_models, timeout_s=PROBE_TIMEOUT_S)
    except RequestFailed as failed:
        if wanted is None or failed.transient or failed.kind == "http_401":
            raise _no_answers(client, failed) from None
        return wanted  # a server without a list of models
    if wanted is None and len(names) != 1:
        raise ConfigError(
            "model_name",
            found=f"none, while {client.base_url} offers {', '.join(names) or 'no model'}",
            wanted="one of its models",
            remedy="Set it.",
        )
    return wanted or names[0]


def _no_answers(client: ServerClient, failed: RequestFailed) -> BackendError:
    return BackendError(
        client.base_url,
        found=str(failed),
        wanted="a running OpenAI-compatible server that accepts us",
        remedy="Check base_url (it ends in /v1, as a rule), model_name and OPENAI_API_KEY, or "
        "start the server again.",
    )


def _no_check() -> None:
    """A server that isn't ours tells by its answers alone."""


def _drain(done: queue.SimpleQueue[T]) -> Iterator[T]:
    yield done.get()
    with contextlib.suppress(queue.Empty):
        while True:
            yield done.get_nowait()


@contextlib.contextmanager
def _loop_in_thread() -> Iterator[asyncio.AbstractEventLoop]:
    # Closing the runner cancels what is left and ends the loop's own threads.
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


def _run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(work, loop).result()


def _check_server(base_url: str | None, server: ServerConfig | None) -> None:
    if (base_url is None) == (server is None):
        raise ConfigError(
            "server backend",
            found="neither base_url nor server" if server is None else "base_url and server",
            wanted="one of them",
            remedy="Give the URL of a running server, or say how to start one.",
        )
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise ConfigError(
            "base_url",
            found=repr(base_url),
            wanted="a URL such as http://127.0.0.1:8000/v1",
            remedy="Correct it.",
        )
