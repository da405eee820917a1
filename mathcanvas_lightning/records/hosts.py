"""Reads files from disk and from the web: with time limits, and not from hosts that are down."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp

from mathcanvas_lightning.common.paths import is_http, is_remote
from mathcanvas_lightning.errors import StorageError, check_settings
from mathcanvas_lightning.storage.config import FileStatus, StorageConfig
from mathcanvas_lightning.storage.files import Storage
from mathcanvas_lightning.storage.retry import AccessDeniedError

T = TypeVar("T")
MAX_FAILURES = 3
"""Failures in a row after which a host counts as down."""
REST_S = 300.0
"""Time until a host that is down is tried again."""
MAX_RECENT_BYTES = 64 * 2**20
"""Maximum size of the pictures that are kept for records that share them."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class FetchSettings:
    """How pictures at URLs are read; local files need none of these settings.

    Raises:
        ConfigError: If a value is too small.
    """

    timeout_s: float = 20.0
    """Time limit of one try, from the connection to the last byte."""
    max_retries: int = 2
    """Maximum number of retries after a failed try."""
    num_parallel: int = 16
    """Number of records whose pictures are read at a time; twice as many are read ahead."""
    check_changes: bool = False
    """Whether servers are asked before a run for the size and ETag of the pictures (a HEAD request
    for each), so that answered records whose picture has changed are asked again."""

    def __post_init__(self) -> None:
        check_settings(
            ("fetching.timeout_s", self.timeout_s, self.timeout_s > 0, "above 0"),
            ("fetching.max_retries", self.max_retries, self.max_retries >= 0, "0 or more"),
            ("fetching.num_parallel", self.num_parallel, self.num_parallel >= 1, "1 or more"),
        )


class HostReader:
    """Reads files and URLs; keeps recent ones, and remembers which hosts are down.

    Threads may share it.

    Args:
        settings: Settings for URLs.
    """

    def __init__(self, settings: FetchSettings = FetchSettings()) -> None:
        self._plain = Storage(
            StorageConfig(timeout_s=settings.timeout_s, max_retries=settings.max_retries)
        )
        # The timeout of a storage restarts with each byte, so a slow server could take forever.
        limit = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=settings.timeout_s)}}
        self._web = Storage(replace(self._plain.config, storage_options=limit))
        self._hosts = HostHealth()
        self._recent = _RecentFiles()

    def read(self, location: str, max_bytes: int) -> bytes:
        """Reads a file or a URL.

        Args:
            location: Path or URL.
            max_bytes: Maximum size.

        Raises:
            DataError: If the file does not exist, or is too large.
            StorageError: If the host does not answer, or is down.
        """
        if not is_remote(location):
            return self._plain.read_bytes(location, max_bytes=max_bytes)
        if (data := self._recent.get(location)) is not None:
            return data
        data = self._ask(location, lambda files: files.read_bytes(location, max_bytes=max_bytes))
        self._recent.add(location, data)
        return data

    def status(self, url: str) -> FileStatus:
        """Size and version of a file, without reading it.

        Args:
            url: URL.

        Raises:
            DataError: If the file does not exist.
            StorageError: If the host does not answer, is down, or gives no size.
        """
        return self._ask(url, lambda files: files.status(url))

    def _ask(self, url: str, request: Callable[[Storage], T]) -> T:
        """Sends a request, unless the host is down; notes whether the host answers."""
        host = urlsplit(url).netloc.rpartition("@")[2]
        self._hosts.require(host)
        try:
            answer = request(self._web if is_http(url) else self._plain)
        except StorageError as error:
            self._hosts.note(host, is_up=isinstance(error, AccessDeniedError))
            raise
        except Exception:
            self._hosts.note(host, is_up=True)  # it answered: no such file, or too large
            raise
        self._hosts.note(host, is_up=True)
        return answer


@dataclass(slots=True)
class HostHealth:
    """Hosts that failed several times in a row; threads may share it."""

    failures: dict[str, int] = field(default_factory=dict)
    """Host -> failures since its last answer."""
    down_until: dict[str, float] = field(default_factory=dict)
    """Host -> time until which it is not asked."""
    clock: Callable[[], float] = time.monotonic
    """Returns the time in seconds."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def require(self, host: str) -> None:
        """Checks that a host may be asked.

        Raises:
            StorageError: If it is down.
        """
        with self.lock:
            now = self.clock()
            if self.down_until.get(host, now) <= now:
                if host in self.down_until:  # one request tries it; the others wait for its result
                    self.down_until[host] = now + REST_S
                return
            count = self.failures[host]
        raise StorageError(
            host,
            found=f"no answer {count} times in a row, so the host is not asked for now",
            wanted="a host that answers",
            remedy="Start the run again when it is up: only records without an answer are asked.",
        )

    def note(self, host: str, *, is_up: bool) -> None:
        """Notes the result of a request."""
        with self.lock:
            if is_up:
                self.failures.pop(host, None)
                self.down_until.pop(host, None)
                return
            self.failures[host] = self.failures.get(host, 0) + 1
            if self.failures[host] >= MAX_FAILURES:
                self.down_until[host] = self.clock() + REST_S


class _RecentFiles:
    """The most recently used files, up to a total size; threads may share it."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, location: str) -> bytes | None:
        with self._lock:
            if location in self._files:
                self._files.move_to_end(location)
            return self._files.get(location)

    def add(self, location: str, data: bytes) -> None:
        with self._lock:
            self._num_bytes += len(data) - len(self._files.pop(location, b""))
            self._files[location] = data
            while self._num_bytes > MAX_RECENT_BYTES:
                self._num_bytes -= len(self._files.popitem(last=False)[1])
