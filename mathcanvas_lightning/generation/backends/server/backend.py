"""Backend for any OpenAI-compatible chat server: vLLM, SGLang, llama.cpp, a cloud provider."""

import asyncio
import contextlib
import logging
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, Unpack

from mathcanvas_lightning.common.display.short import ShortRepr
from mathcanvas_lightning.common.paths import without_query
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.backends.secrets import hide_secrets
from mathcanvas_lightning.generation.backends.server.api import read_models
from mathcanvas_lightning.generation.backends.server.chat import Chat
from mathcanvas_lightning.generation.backends.server.client import (
    RetryPolicy,
    RetrySettings,
    ServerClient,
)
from mathcanvas_lightning.generation.backends.server.event_loop import (
    loop_in_thread,
    run_in,
    stream_answer,
)
from mathcanvas_lightning.generation.backends.server.failures import RequestFailedError
from mathcanvas_lightning.generation.backends.server.process import ServerConfig, ServerProcess
from mathcanvas_lightning.generation.backends.server.streak import FailureStreak
from mathcanvas_lightning.generation.backends.settings import check_minimum, journal_options
from mathcanvas_lightning.generation.events import Event
from mathcanvas_lightning.generation.requests import (
    Failure,
    GenerationRequest,
    GenerationResponse,
    Message,
)
from mathcanvas_lightning.records.pictures import PictureError

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 30.0
TEST_MESSAGES = (Message(role="user", parts=("Write 1.",)),)
T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class _Session:
    """State between `start` and `close`."""

    loop: asyncio.AbstractEventLoop
    chat: Chat
    resources: contextlib.ExitStack
    pending: set[Future[GenerationResponse]] = field(default_factory=set)
    done: queue.SimpleQueue[Future[GenerationResponse]] = field(default_factory=queue.SimpleQueue)
    streak: FailureStreak = field(default_factory=FailureStreak)
    testing: asyncio.Lock = field(default_factory=asyncio.Lock)
    failed_test: BackendError | None = None
    """Error of a test of the server; requests that have not been sent raise it."""
    error: BackendError | None = None
    """Error that stops the backend, None while it works."""

    def check(self) -> None:
        """Raises the error if there is one."""
        if self.error is not None:
            raise self.error

    def require_server(self) -> None:
        """Raises the error of a test if there is one."""
        if self.failed_test is not None:
            raise self.failed_test


class ServerBackend(ShortRepr):
    """Sends requests to a chat server, many at a time.

    A request without success after all retries gets a response with a failure. If several fail in a
    row (or the first one is refused), a harmless request tests the server: if it is answered, the
    records are at fault and the run continues; if it fails too, or if the server no longer lists
    its models, a `BackendError` ends the run. The next run answers the remaining requests.

    Answers are streamed, so that a stalled server is noticed early and long answers need no long
    timeout. An answer may fill the rest of the window, as with vLLM's own engine: if the server
    reports that prompt and `max_tokens` together are too long, the request is sent again without
    `max_tokens`. If the server does not know `n`, samples are asked for one at a time.

    `choice`, `regex`, a `repetition_penalty` other than 1, and template options use vLLM's fields;
    everything else uses OpenAI's. For values that a request does not set, such as top_k, the server
    uses its own defaults. vLLM reads these from the model's generation_config.json unless it is
    started with `--generation-config vllm`; a server started by this backend has that option.

    Args:
        base_url: URL of a running server with /v1: http://127.0.0.1:8000/v1.
        server: Starts a server instead; it is stopped with this backend.
        model_name: Name of the model on the server; by default the only model that it offers.
        api_key: API key; by default the environment variable OPENAI_API_KEY, which is safer
            because this setting is saved with the other settings.
        max_concurrency: Maximum number of requests in flight, including those that wait for a
            retry.
        max_pending: Maximum number of pending requests; by default twice max_concurrency.
        extra_body: Additional fields of each request, such as `top_k: 20`. They override the
            backend's own fields; null removes a field.
        retries: Retries and timeouts, see `RetrySettings`.

    Raises:
        ConfigError: If a setting is invalid.
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
        extra_body: dict[str, Any] | None = None,
        **retries: Unpack[RetrySettings],
    ) -> None:
        _check_address(base_url, server)
        max_pending = 2 * max_concurrency if max_pending is None else max_pending
        check_minimum(max_concurrency=(max_concurrency, 1), max_pending=(max_pending, 1))
        self._base_url, self._server = base_url, server
        self._model_name = model_name
        self._api_key = api_key
        self._max_concurrency = max_concurrency
        self._max_pending = max_pending
        self._retries = RetryPolicy(**retries)
        self._extra_body = extra_body or {}
        self._session: _Session | None = None

    @property
    def model_name(self) -> str:
        """Name of the model in the journal; "" before `start` if only the server knows it."""
        return self._session.chat.model if self._session else self._model_name or ""

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that change the answers, for the journal."""
        server = None if self._server is None else self._server.settings
        base_url = self._base_url and hide_secrets(without_query(self._base_url)).rstrip("/")
        options = journal_options(self._extra_body)
        return {"base_url": base_url, "extra_body": options, "server": server}

    @property
    def max_pending(self) -> int:
        """Maximum number of pending requests."""
        return self._max_pending

    @property
    def num_pending(self) -> int:
        """Number of requests that were submitted but not yet collected."""
        return len(self._session.pending) if self._session else 0

    def start(self, *, local_rank: int = 0, device: str = "cpu") -> None:  # noqa: ARG002
        """Starts the server if `server` is set, and requests its list of models.

        Args:
            local_rank: Rank of this process on its machine; each process starts its own server.
            device: Not used: the GPUs of a server follow from `local_rank`.

        Raises:
            BackendError: If the server does not start or does not answer. Also after an earlier
                failure until `close` is called, so that pending requests are not lost silently.
            ConfigError: If the server offers several models and `model_name` is not set.
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
            loop = resources.enter_context(loop_in_thread())
            client = run_in(loop, self._connect(base_url))
            resources.callback(lambda: run_in(loop, client.close()))
            chat = Chat(
                client=client,
                model=run_in(loop, _find_model(client, self._model_name)),
                extra=self._extra_body,
                slots=asyncio.Semaphore(self._max_concurrency),
                after_failure=partial(_check_server, client, check),
            )
            self._session = _Session(loop=loop, chat=chat, resources=resources.pop_all())

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Sends requests; returns at once.

        Raises:
            BackendError: If the backend is not started, or has failed.
        """
        session = self._started()
        session.check()
        for request in requests:
            answer = _answer(session, request)
            future = asyncio.run_coroutine_threadsafe(answer, session.loop)
            session.pending.add(future)
            future.add_done_callback(session.done.put)

    def collect(self) -> list[GenerationResponse]:
        """Waits until at least one pending request is finished.

        Returns:
            The responses of all finished requests; empty only if nothing is pending.

        Raises:
            BackendError: If the server no longer answers.
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
                    pass  # cancelled by `close` in another thread
                except Exception as error:  # first return these responses; the next call raises
                    session.error = session.error or _as_backend_error(error)
                    continue  # the request stays pending, so that there is a next call
                session.pending.discard(future)
        return responses

    def close(self) -> None:
        """Cancels all pending requests, and stops the server if this backend started it."""
        session, self._session = self._session, None
        if session is None:
            return
        with session.resources:
            for future in list(session.pending):
                future.cancel()

    def stream(self, request: GenerationRequest) -> Iterator[Event]:
        """Answers one request, and yields its text while the server writes it.

        Closing the iterator drops the answer.

        Args:
            request: Request for one sample.

        Yields:
            Events, at least one every half second; the last one has the response.

        Raises:
            BackendError: If the backend is not started, or its server has ended.
        """
        session = self._started()
        yield from stream_answer(session.loop, session.chat, request)

    def _started(self) -> _Session:
        if self._session is None:
            raise BackendError(
                "the server backend",
                found="a request before start()",
                wanted="a started backend",
                remedy="Call start() first.",
            )
        return self._session

    async def _connect(self, base_url: str) -> ServerClient:
        api_key = self._api_key or os.environ.get("OPENAI_API_KEY")
        return ServerClient(base_url, api_key=api_key, retries=self._retries)


async def _answer(session: _Session, request: GenerationRequest) -> GenerationResponse:
    session.require_server()
    try:
        response = await session.chat.answer(request)
    except PictureError as error:
        failure = Failure(kind=error.kind, message=str(error))
    except RequestFailedError as failed:
        session.streak.add_failure(failed.kind)
        if failed.transient:
            await _require_models(session.chat.client, failed)
        await _test_server(session, request, failed)
        failure = Failure(kind=failed.kind, message=str(failed))
    else:
        session.streak.add_answer()
        return response
    return GenerationResponse(uid=request.uid, failure=failure)


async def _test_server(
    session: _Session, request: GenerationRequest, failed: RequestFailedError
) -> None:
    """Sends a harmless request after several failures; raises a BackendError if it fails too."""
    async with session.testing:
        session.require_server()
        if not session.streak.needs_test:
            return
        try:
            await session.chat.test(replace(request, messages=TEST_MESSAGES))
        except RequestFailedError as again:
            session.failed_test = _no_answers(session.chat.client, again)
            raise session.failed_test from None
        text = "%d requests in a row failed (%s); the run continues, as a test request was answered"
        logger.warning(text, session.streak.num_failures, failed)
        session.streak.add_answer()


async def _check_server(
    client: ServerClient, check: Callable[[], None], failed: RequestFailedError
) -> None:
    """Raises a BackendError after a failed try if the server has ended or hangs."""
    check()
    if failed.kind == "timeout":
        await _require_models(client, failed)


async def _require_models(client: ServerClient, failed: RequestFailedError) -> None:
    """Raises a BackendError if the server does not even list its models."""
    try:
        await _list_models(client)
    except RequestFailedError as probe:
        if probe.transient:
            raise _no_answers(client, failed) from None


async def _list_models(client: ServerClient) -> list[str]:
    timeout_s = min(PROBE_TIMEOUT_S, client.retries.timeout_s)
    retries = replace(client.retries, timeout_s=timeout_s)
    return await client.ask("/models", read_models, retries=retries)


def _as_backend_error(error: Exception) -> BackendError:
    if isinstance(error, BackendError):
        return error
    unexpected = BackendError(
        "the server backend",
        found=f"{type(error).__name__}: {error}",
        wanted="requests and answers that can be encoded and decoded",
        remedy="Finished answers are kept. Check the latest change of the requests.",
    )
    unexpected.__cause__ = error
    return unexpected


async def _find_model(client: ServerClient, wanted: str | None) -> str:
    try:
        names = await _list_models(client)
    except RequestFailedError as failed:
        if wanted is None or failed.transient or failed.kind == "http_401":
            raise _no_answers(client, failed) from None
        return wanted  # the server has no list of models
    if wanted is None and len(names) != 1:
        raise ConfigError(
            "model_name",
            found=f"none, while {client.place} offers {', '.join(names) or 'no model'}",
            wanted="one of its models",
            remedy="Set it.",
        )
    return wanted or names[0]


def _no_answers(client: ServerClient, failed: RequestFailedError) -> BackendError:
    return BackendError(
        client.place,
        found=str(failed),
        wanted="a running OpenAI-compatible server that accepts the requests",
        remedy="Check base_url (it usually ends in /v1), model_name, extra_body, OPENAI_API_KEY "
        "and the account's quota, or restart the server.",
    )


def _no_check() -> None:
    """Does nothing: only the process of a server that this backend started can be checked."""


def _drain(done: queue.SimpleQueue[T]) -> Iterator[T]:
    yield done.get()
    with contextlib.suppress(queue.Empty):
        while True:
            yield done.get_nowait()


def _check_address(base_url: str | None, server: ServerConfig | None) -> None:
    if (base_url is None) == (server is None):
        raise ConfigError(
            "server backend",
            found="neither base_url nor server" if server is None else "base_url and server",
            wanted="exactly one of them",
            remedy="Set base_url for a running server, or server to start one.",
        )
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise ConfigError(
            "base_url",
            found=repr(hide_secrets(base_url)),
            wanted="a URL such as http://127.0.0.1:8000/v1",
            remedy="Correct it.",
        )
