"""HTTP client for a chat server, with retries.

OpenAI's own client is not used: it does not retry after a Retry-After above two minutes, its waits
can't be set, it reads nothing from a server that answers a streamed request with a plain body, and
it needs 80 to 250 us of CPU for each piece of a stream instead of 25.
"""

import asyncio
import contextlib
import copy
import json
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypedDict, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from mathcanvas_lightning.generation.backends.secrets import hide_secrets
from mathcanvas_lightning.generation.backends.server.api import BadBodyError
from mathcanvas_lightning.generation.backends.server.failures import (
    RequestFailedError,
    failed_request,
    failure_in,
)
from mathcanvas_lightning.generation.backends.server.stream import CONTENT_TYPE, StreamedAnswer
from mathcanvas_lightning.generation.backends.settings import check_minimum

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 30.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")
T = TypeVar("T")
Text = TypeVar("Text", str, bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a request is tried, and the waiting time between the tries.

    Raises:
        ConfigError: If a value is too small.
    """

    max_retries: int = 5
    """Maximum number of retries after the first try."""
    timeout_s: float = 600.0
    """Timeout of one try, for a streamed answer until its first piece; also the longest Retry-After
    that is obeyed."""
    idle_timeout_s: float | None = 120.0
    """Maximum wait for the next piece of a streamed answer; None asks for whole answers instead."""
    backoff_s: float = 1.0
    """Maximum wait before the first retry; doubles with each retry."""
    max_backoff_s: float = 60.0
    """Upper limit of the doubled wait."""

    def __post_init__(self) -> None:
        check_minimum(
            max_retries=(self.max_retries, 0),
            timeout_s=(self.timeout_s, 0.001),
            idle_timeout_s=(self.idle_timeout_s, 0.001),
            backoff_s=(self.backoff_s, 0),
            max_backoff_s=(self.max_backoff_s, 0),
        )

    def wait_s(self, number: int, retry_after_s: float, fraction: float) -> float:
        """The waiting time before a retry.

        Uses the full jitter of "Exponential backoff and jitter" (AWS Architecture Blog, 2015), so
        that requests that failed together are not retried together.

        Args:
            number: Number of the retry, from 0.
            retry_after_s: Waiting time that the server asked for.
            fraction: A random number from 0 to 1.
        """
        longest = min(self.max_backoff_s, self.backoff_s * 2.0 ** min(number, 100))
        return min(retry_after_s, self.timeout_s) + fraction * longest


class RetrySettings(TypedDict, total=False):
    """Settings of a ServerBackend for failed requests; see `RetryPolicy`."""

    max_retries: int
    """Maximum number of retries after rate limits (HTTP 429), server errors (5xx, 408, 409), lost
    connections, timeouts, and answers that are truncated or aborted. Default: 5."""
    timeout_s: float
    """Timeout of one try; for a streamed answer, until its first piece. Default: 600."""
    idle_timeout_s: float | None
    """Maximum wait for the next piece of a streamed answer. Default: 120. Null asks for whole
    answers, which costs less CPU but must be complete within timeout_s."""
    backoff_s: float
    """Maximum wait before the first retry; doubles with each retry. The server's Retry-After (at
    most timeout_s) is added. Default: 1."""
    max_backoff_s: float
    """Upper limit of the doubled wait. Default: 60."""


AfterFailure = Callable[[RequestFailedError], Awaitable[None]]
"""Called after each failed try; raises if a retry is useless."""


async def _do_nothing(failed: RequestFailedError) -> None:
    """The default of `AfterFailure`."""


class ServerClient:
    """HTTP connections to one server; must be created, used and closed in the same event loop.

    Args:
        base_url: Base URL of the API, usually ending in /v1.
        api_key: API key; None sends no key. It never appears in errors.
        retries: Number of retries and waiting times.
    """

    def __init__(self, base_url: str, *, api_key: str | None, retries: RetryPolicy) -> None:
        self.base_url = base_url.rstrip("/")
        self.retries = retries
        self._api_key = api_key
        self._proxy = _proxy(self.base_url)
        self._random = random.Random()  # noqa: S311 - does not change the global random state
        self._warned: set[str] = set()
        self._watch: Callable[[str], object] | None = None
        headers = {"Content-Type": "application/json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        # The caller limits the number of requests; a limit here would count as part of the timeout.
        self._session = aiohttp.ClientSession(
            headers=headers, connector=aiohttp.TCPConnector(limit=0)
        )

    def watched(self, watch: Callable[[str], object]) -> "ServerClient":
        """The same client, which also reports streamed answers.

        Args:
            watch: Called in the event loop with the text of the answer so far.
        """
        client = copy.copy(self)
        client._watch = watch
        return client

    @property
    def place(self) -> str:
        """The base URL without a password, for messages."""
        return hide_secrets(self.base_url)

    async def close(self) -> None:
        """Closes all connections."""
        await self._session.close()

    async def ask(
        self,
        path: str,
        read: Callable[[Any], T],
        *,
        body: bytes | None = None,
        retries: RetryPolicy | None = None,
        after_failure: AfterFailure = _do_nothing,
    ) -> T:
        """Sends a request, with retries.

        Args:
            path: Path below the base URL.
            read: Parses the decoded JSON; raises a `BadBodyError` if it is malformed.
            body: Body of a POST request; None for a GET request.
            retries: Number of retries and waiting times; by default those of the client.
            after_failure: Called after each failed try.

        Returns:
            The result of `read`.

        Raises:
            RequestFailedError: If no try succeeded.
        """
        retries = retries or self.retries
        tries = 0
        while True:
            try:
                return read(await self._try(path, body, retries))
            except BadBodyError as error:
                message, is_transient = self._hidden(str(error)), error.transient
                failed = RequestFailedError("bad_body", message, transient=is_transient)
            except RequestFailedError as error:
                failed = error
            await after_failure(failed)
            tries += 1
            if not failed.transient:
                raise failed
            if tries > retries.max_retries:
                raise RequestFailedError(failed.kind, f"{failed} (the last of {tries} tries)")
            wait_s = retries.wait_s(tries - 1, failed.wait_s, self._random.random())
            self._log(f"{self.place}{path}", failed, wait_s)
            await asyncio.sleep(wait_s)

    def _log(self, url: str, failed: RequestFailedError, wait_s: float) -> None:
        """Warns of the first failure of each kind; the others are only information."""
        level = logging.INFO if failed.kind in self._warned else logging.WARNING
        self._warned.add(failed.kind)
        logger.log(level, "%s: %s; retry in %.1f s", url, failed, wait_s)

    async def _try(self, path: str, body: bytes | None, retries: RetryPolicy) -> Any:
        status, answer, retry_after = await self._exchange(path, body, retries)
        if status != 200:
            wait_s = parse_retry_after(retry_after)
            failed = failed_request(status, self._hidden(answer), wait_s=wait_s)
            raise failed
        if isinstance(answer, bytes):
            try:
                answer = json.loads(answer)
            except (ValueError, RecursionError) as error:
                raise RequestFailedError("bad_body", f"not JSON: {error}") from None
        if (failure := failure_in(answer)) is not None:
            raise failure
        return answer

    async def _exchange(
        self, path: str, body: bytes | None, retries: RetryPolicy
    ) -> tuple[int, Any, str]:
        """Returns the status, the body (decoded if it was a stream), and the Retry-After header."""
        found = f"no complete answer in {retries.timeout_s:g} s"
        try:
            async with (
                asyncio.timeout(retries.timeout_s) as deadline,
                self._session.request(
                    "GET" if body is None else "POST",
                    self.base_url + path,
                    data=body,
                    proxy=self._proxy,
                    allow_redirects=False,  # a redirect would turn the POST into a GET
                    timeout=aiohttp.ClientTimeout(
                        total=None, sock_connect=min(retries.timeout_s, CONNECT_TIMEOUT_S)
                    ),
                ) as response,
            ):
                data: Any
                if response.status == 200 and response.content_type == CONTENT_TYPE:
                    answer = StreamedAnswer()
                    async for piece in response.content.iter_any():
                        num_events = answer.num_events
                        answer.feed(piece)
                        if self._watch is not None:
                            self._watch(answer.text)
                        if retries.idle_timeout_s is not None and answer.num_events > num_events:
                            found = f"the answer stalled for {retries.idle_timeout_s:g} s"
                            now = asyncio.get_running_loop().time()
                            deadline.reschedule(now + retries.idle_timeout_s)
                    data = answer.finish()
                else:
                    data = await response.read()
                return response.status, data, response.headers.get("Retry-After", "")
        except aiohttp.ServerTimeoutError as error:  # while connecting
            raise RequestFailedError("timeout", self._hidden(str(error))) from None
        except TimeoutError:
            raise RequestFailedError("timeout", found) from None
        except aiohttp.ClientPayloadError as error:
            raise RequestFailedError("bad_body", f"the answer was truncated: {error}") from None
        except (aiohttp.ClientError, OSError) as error:
            message = self._hidden(str(error) or type(error).__name__)
            raise RequestFailedError("connection", message) from None

    def _hidden(self, message: Text) -> Text:
        """The message without the API key, which some servers quote."""
        if not self._api_key:
            return message
        if isinstance(message, bytes):
            return message.replace(self._api_key.encode(), b"...")
        return message.replace(self._api_key, "...")


def parse_retry_after(value: str) -> float:
    """Parses a Retry-After header: a number of seconds or a date (RFC 9110, 10.2.3).

    Args:
        value: Value of the header; "" without the header.

    Returns:
        Seconds to wait; 0 if the value is missing or invalid.
    """
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError):
        date = parsedate_to_datetime(value)
        return max(
            0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        )
    return 0.0


def _proxy(url: str) -> str | None:
    # aiohttp's trust_env would also read ~/.netrc, and fail if the server is listed there while an
    # API key is set.
    parts = urlsplit(url)
    if parts.hostname is None or parts.hostname in LOOPBACK or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)
