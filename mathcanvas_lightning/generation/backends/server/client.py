"""Talks to a chat server: asks again where that may help, and says what went wrong where not."""

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

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 30.0
TRANSIENT = (408, 409, 429)
"""Statuses below 500 after which trying again may help: timeout, conflict, rate limit."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a request is tried, and how long to wait between."""

    max_retries: int
    """Further tries after the first."""
    timeout_s: float
    """Of one try; also the longest wait that a server may ask for."""
    backoff_s: float
    """Wait before the first retry at most; doubles each time."""
    max_backoff_s: float
    """It grows no further."""

    def wait_s(self, number: int, asked_s: float, fraction: float) -> float:
        """How long to wait before a retry.

        The full jitter of "Exponential backoff and jitter" (AWS Architecture Blog, 2015), so that
        requests that failed together don't come back together.

        Args:
            number: 0 for the first retry.
            asked_s: What the server asked for, seconds.
            fraction: A random number from 0 to 1.
        """
        longest = min(self.max_backoff_s, self.backoff_s * 2.0 ** min(number, 100))
        return min(asked_s, self.timeout_s) + fraction * longest


class RequestFailed(Exception):
    """A request without an answer.

    Args:
        kind: A short name, as in `Failure`.
        message: What happened.
        transient: Whether trying again may help.
        wait_s: How long the server asks to wait before.
    """

    def __init__(
        self, kind: str, message: str, *, transient: bool = True, wait_s: float = 0.0
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.transient = transient
        self.wait_s = wait_s


class ServerClient:
    """A server's HTTP interface; made, used and closed within one event loop.

    Args:
        base_url: Ends in /v1, as a rule.
        api_key: None sends none.
        retries: How often to ask.
        check: Called after each failed try; raises if there is no use in trying again.
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
        self._random = random.Random()  # noqa: S311 - leaves the state of the global one alone
        headers = {"Content-Type": "application/json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        # Whoever asks bounds the connections; a limit here would run into the timeout.
        self._session = aiohttp.ClientSession(
            headers=headers, connector=aiohttp.TCPConnector(limit=0)
        )

    async def close(self) -> None:
        """Ends all connections."""
        await self._session.close()

    async def ask(
        self,
        path: str,
        read: Callable[[Any], T],
        *,
        body: bytes | None = None,
        timeout_s: float | None = None,
    ) -> T:
        """Asks until an answer comes or the tries are spent.

        Args:
            path: Below the base URL.
            read: Makes of the decoded JSON what is wanted, or raises a `BadBodyError`.
            body: What to POST; None for a GET.
            timeout_s: Of one try, instead of the policy's.

        Returns:
            What `read` gives.

        Raises:
            RequestFailed: If none came.
        """
        tries = 0
        while True:
            try:
                return read(await self._try(path, body, timeout_s or self._retries.timeout_s))
            except BadBodyError as error:
                failed = RequestFailed("bad_body", str(error))
            except RequestFailed as error:
                failed = error
            self._check()
            tries += 1
            if not failed.transient:
                raise failed
            if tries > self._retries.max_retries:
                raise RequestFailed(failed.kind, f"{failed} (the last of {tries} tries)")
            wait_s = self._retries.wait_s(tries - 1, failed.wait_s, self._random.random())
            logger.info("%s%s: %s; again in %.1f s", self.base_url, path, failed, wait_s)
            await asyncio.sleep(wait_s)

    async def _try(self, path: str, body: bytes | None, timeout_s: float) -> Any:
        status, data, retry_after = await self._exchange(path, body, timeout_s)
        if status != 200:
            kind, message = read_error(status, data)
            raise RequestFailed(
                kind,
                f"HTTP {status}: {message}",
                transient=status in TRANSIENT or status >= 500,
                wait_s=parse_retry_after(retry_after),
            )
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise RequestFailed("bad_body", f"not JSON: {error}") from None

    async def _exchange(
        self, path: str, body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes, str]:
        try:
            async with self._session.request(
                "GET" if body is None else "POST",
                self.base_url + path,
                data=body,
                proxy=self._proxy,
                allow_redirects=False,  # which would make a GET of a POST
                timeout=aiohttp.ClientTimeout(
                    total=timeout_s, sock_connect=min(timeout_s, CONNECT_TIMEOUT_S)
                ),
            ) as response:
                data = await response.read()
                return response.status, data, response.headers.get("Retry-After", "")
        except TimeoutError:
            raise RequestFailed("timeout", f"no whole answer within {timeout_s:g} s") from None
        except aiohttp.ClientPayloadError as error:
            raise RequestFailed("bad_body", f"the answer was cut short: {error}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise RequestFailed("connection", str(error) or type(error).__name__) from None


def parse_retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for: a number, or a date (RFC 9110, 10.2.3).

    Args:
        value: Of the header; "" if there is none.

    Returns:
        0 where it says nothing of use.
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
    # Not aiohttp's trust_env: it reads ~/.netrc too, and fails where that names the server and
    # there is an API key.
    parts = urlsplit(url)
    if parts.hostname is None or parts.hostname in LOOPBACK or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)
