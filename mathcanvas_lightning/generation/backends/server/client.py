"""HTTP client for a chat server, with retries."""

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from mathcanvas_lightning.generation.backends.server.api import BadBodyError, read_error
from mathcanvas_lightning.generation.backends.settings import check_minimum

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 30.0
TRANSIENT = (408, 409, 429)
"""HTTP status codes below 500 that are worth a retry: timeout, conflict, rate limit."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a request is tried, and the waiting time between the tries.

    Raises:
        ConfigError: If a value is too small.
    """

    max_retries: int = 5
    """Maximum number of retries after the first try."""
    timeout_s: float = 600.0
    """Timeout of one try; also the longest Retry-After that is obeyed."""
    backoff_s: float = 1.0
    """Maximum wait before the first retry; doubles with each retry."""
    max_backoff_s: float = 60.0
    """Upper limit of the doubled wait."""

    def __post_init__(self) -> None:
        check_minimum(
            max_retries=(self.max_retries, 0),
            timeout_s=(self.timeout_s, 0.001),
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


class RequestFailedError(Exception):
    """A request got no usable answer.

    Args:
        kind: Short name of the failure, as in `Failure`.
        message: Description.
        transient: Whether a retry may succeed.
        wait_s: Waiting time that the server asked for.
    """

    def __init__(
        self, kind: str, message: str, *, transient: bool = True, wait_s: float = 0.0
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.transient = transient
        self.wait_s = wait_s


class ServerClient:
    """HTTP connections to one server; must be created, used and closed in the same event loop.

    Args:
        base_url: Base URL of the API, usually ending in /v1.
        api_key: API key; None sends no key.
        retries: Number of retries and waiting times.
        check: Called after each failed try; raises if a retry is useless.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        retries: RetryPolicy,
        check: Callable[[], None],
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._proxy = _proxy(self.base_url)
        self._retries = retries
        self._check = check
        self._random = random.Random()  # noqa: S311 - does not change the global random state
        headers = {"Content-Type": "application/json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        # The caller limits the number of requests; a limit here would count as part of the timeout.
        self._session = aiohttp.ClientSession(
            headers=headers, connector=aiohttp.TCPConnector(limit=0)
        )

    async def close(self) -> None:
        """Closes all connections."""
        await self._session.close()

    async def ask(
        self,
        path: str,
        read: Callable[[Any], T],
        *,
        body: bytes | None = None,
        timeout_s: float | None = None,
    ) -> T:
        """Sends a request, with retries.

        Args:
            path: Path below the base URL.
            read: Parses the decoded JSON; raises a `BadBodyError` if it is malformed.
            body: Body of a POST request; None for a GET request.
            timeout_s: Timeout of one try; by default that of the retry policy.

        Returns:
            The result of `read`.

        Raises:
            RequestFailedError: If no try succeeded.
        """
        tries = 0
        while True:
            try:
                return read(await self._try(path, body, timeout_s or self._retries.timeout_s))
            except BadBodyError as error:
                failed = RequestFailedError("bad_body", str(error))
            except RequestFailedError as error:
                failed = error
            self._check()
            tries += 1
            if not failed.transient:
                raise failed
            if tries > self._retries.max_retries:
                raise RequestFailedError(failed.kind, f"{failed} (the last of {tries} tries)")
            wait_s = self._retries.wait_s(tries - 1, failed.wait_s, self._random.random())
            logger.info("%s%s: %s; retry in %.1f s", self.base_url, path, failed, wait_s)
            await asyncio.sleep(wait_s)

    async def _try(self, path: str, body: bytes | None, timeout_s: float) -> Any:
        status, data, retry_after = await self._exchange(path, body, timeout_s)
        if status != 200:
            kind, message = read_error(status, data)
            raise RequestFailedError(
                kind,
                f"HTTP {status}: {message}",
                transient=status in TRANSIENT or status >= 500,
                wait_s=parse_retry_after(retry_after),
            )
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise RequestFailedError("bad_body", f"not JSON: {error}") from None

    async def _exchange(
        self, path: str, body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes, str]:
        try:
            async with self._session.request(
                "GET" if body is None else "POST",
                self.base_url + path,
                data=body,
                proxy=self._proxy,
                allow_redirects=False,  # a redirect would turn the POST into a GET
                timeout=aiohttp.ClientTimeout(
                    total=timeout_s, sock_connect=min(timeout_s, CONNECT_TIMEOUT_S)
                ),
            ) as response:
                data = await response.read()
                return response.status, data, response.headers.get("Retry-After", "")
        except TimeoutError:
            raise RequestFailedError("timeout", f"no complete answer in {timeout_s:g} s") from None
        except aiohttp.ClientPayloadError as error:
            raise RequestFailedError("bad_body", f"the answer was truncated: {error}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise RequestFailedError("connection", str(error) or type(error).__name__) from None


def parse_retry_after(value: str) -> float:
    """Parses a Retry-After header: a number of seconds or a date (RFC 9110, 10.2.3).

    Args:
        value: Value of the header; "" if there is none.

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
