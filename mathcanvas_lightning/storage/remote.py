"""What is asked of servers, and asked again where they fail."""

import errno
import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import fsspec

from mathcanvas_lightning.common.paths import user_cache
from mathcanvas_lightning.errors import ConfigError, DataError, MathCanvasError, StorageError

logger = logging.getLogger(__name__)

MAX_BACKOFF_S = 30.0
VERSION_KEYS = (
    *("ETag", "etag", "generation", "LastModified", "Last-Modified", "last_modified"),
    *("mtime", "modified", "updated", "created"),
)
FINAL = (FileNotFoundError, PermissionError, TypeError, NameError, ImportError)
"""Failures that trying again doesn't mend."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class StorageConfig:
    """How files are read from servers; nothing of it matters for local ones."""

    cache_dir: str | None = None
    """Where row groups of remote shards are kept, for all processes of this machine; by default
    mathcanvas_lightning/shards in $XDG_CACHE_HOME or ~/.cache."""
    max_cache_bytes: int = 32 * 2**30
    """The cache takes no more; what was used least recently goes first."""
    max_retries: int = 5
    """Further tries after the first."""
    backoff_s: float = 0.5
    """Wait before the first retry; doubles each time, up to 30 s."""
    timeout_s: float = 60.0
    """A server that is silent for so long has stalled."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """Passed to fsspec: credentials, endpoint."""

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: If one is out of its range.
        """
        for name in ("max_cache_bytes", "max_retries", "backoff_s", "timeout_s"):
            value = getattr(self, name)
            if value < 0 or (name == "timeout_s" and value == 0):
                raise ConfigError(
                    f"storage, {name}",
                    found=str(value),
                    wanted="a positive number" if name == "timeout_s" else "0 or more",
                    remedy="Leave it out for the default.",
                )

    @property
    def cache_folder(self) -> Path:
        """Where the cache is, by the environment of this process."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        return user_cache() / "shards"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStatus:
    """What a storage says about a file without giving it."""

    size_bytes: int
    """Its length."""
    version: str
    """Changes when the file does: the ETag, else a time of change; "" where nothing is known."""


class Damage(Exception):
    """Bytes that came but aren't what they should be; may differ at the next try."""


class CutShort(Exception):
    """Fewer or other bytes than were asked for."""


class RangesRefused(Exception):
    """A server that gives whole files only."""


class RemoteFiles:
    """The servers as one process talks to them; asks once, `persist` asks again.

    Its filesystems are kept out of fsspec's store of instances, which drops them after a fork.

    Args:
        config: Timeouts and options.
    """

    def __init__(self, config: StorageConfig) -> None:
        self._config = config
        self._filesystems: dict[tuple[str, str], Any] = {}
        self._rangeless: set[str] = set()
        _LIVE.add(self)

    def status(self, url: str) -> FileStatus:
        """What the server says about a file.

        Raises:
            FileNotFoundError: If there is none, or a folder.
            StorageError: If the server doesn't tell the size.
        """
        info = self._info(url)
        if info.get("type") == "directory":
            raise FileNotFoundError(f"{url} is a folder")
        if info.get("size") is None:
            raise StorageError(
                url,
                found="a server that doesn't tell the size of the file",
                wanted="a Content-Length",
                remedy="Copy the file to a local folder, or serve it otherwise.",
            )
        version = next((str(info[key]) for key in VERSION_KEYS if info.get(key)), "")
        return FileStatus(size_bytes=int(info["size"]), version=version)

    def is_file(self, url: str, suffix: str) -> bool:
        """Whether a URL names a file rather than a folder.

        Raises:
            FileNotFoundError: If it names nothing.
        """
        if _is_http(url):  # where everything is a file: folders are pages of links
            if not urlsplit(url).path.endswith(suffix):
                return False
            self._info(url)
            return True
        return bool(self._info(url)["type"] == "file")

    def list_folder(self, url: str) -> list[tuple[str, bool]]:
        """The entries of a folder, hidden ones left out.

        Returns:
            URL, and whether it is a folder.

        Raises:
            FileNotFoundError: If there is no such folder.
        """
        filesystem, inside = self._locate(url)
        start = inside.rstrip("/") + "/"
        entries = []
        for entry in filesystem.ls(inside, detail=True):
            name = entry["name"]
            tail = name.removeprefix(start).strip("/")
            # Pages of links also name their parent, other sites and orders of sorting.
            if name.startswith(start) and tail and "/" not in tail and tail[0] not in ".?#":
                entries.append((filesystem.unstrip_protocol(name), entry["type"] == "directory"))
        return entries

    def read_range(self, url: str, start: int, end: int, *, size_bytes: int) -> bytes:
        """The bytes [start, end) of a file of known size; exactly these.

        Raises:
            RangesRefused: If the server gives whole files only.
            CutShort: If other than end - start bytes came.
        """
        filesystem, inside = self._locate(url)
        if url in self._rangeless:
            raise RangesRefused
        if _is_http(url):
            data = self._http_range(url, start, end, size_bytes=size_bytes)
        else:
            try:
                data = filesystem.cat_file(inside, start=start, end=end)
            except OSError as error:
                if error.errno != errno.EINVAL:  # which is S3's word for "after its end"
                    raise
                raise CutShort(str(error)) from None
        if len(data) != end - start:
            raise CutShort(f"{len(data)} bytes came instead of {end - start}")
        return data

    def read_bytes(self, url: str, max_bytes: int | None) -> bytes:
        """A whole file of unknown size, or of a larger one the first max_bytes + 1 bytes."""
        filesystem, inside = self._locate(url)
        data: bytes
        if max_bytes is None:
            data = filesystem.cat_file(inside)
        elif _is_http(url):
            data = self._http_range(url, 0, max_bytes + 1, size_bytes=max_bytes + 1)
        else:
            try:
                data = filesystem.cat_file(inside, start=0, end=max_bytes + 1)
            except OSError:  # an empty object has no range, says S3
                if self.status(url).size_bytes:
                    raise
                data = b""
        return data

    def download(self, url: str, file: BinaryIO, size_bytes: int) -> None:
        """Writes a whole file into an open one.

        Raises:
            CutShort: If its length isn't the one that the server told.
        """
        filesystem, inside = self._locate(url)
        filesystem.get_file(inside, file)
        if file.tell() != size_bytes:
            raise CutShort(f"{file.tell()} bytes came instead of {size_bytes}")

    def _info(self, url: str) -> dict[str, Any]:
        filesystem, inside = self._locate(url)
        try:
            info: dict[str, Any] = filesystem.info(inside)
        except FileNotFoundError as error:
            # fsspec says so of any failure over HTTP, and keeps the real one as the cause.
            if _is_http(url) and isinstance(error.__cause__, Exception):
                raise error.__cause__ from None
            raise
        return info

    def _http_range(self, url: str, start: int, end: int, *, size_bytes: int) -> bytes:
        filesystem, inside = self._locate(url)
        # Told the size, `open` asks nothing; unlike `cat_file`, it notices a server that sends
        # the whole file instead of the range before all of it has come.
        with filesystem.open(inside, size=size_bytes, cache_type="none") as file:
            file.seek(start)
            try:
                data: bytes = file.read(end - start)
            except ValueError as error:
                if type(error) is not ValueError:  # aiohttp has some of its own below it
                    raise
                self._rangeless.add(url)
                raise RangesRefused from None
        return data

    def _locate(self, url: str) -> tuple[Any, str]:
        protocol = url.partition("://")[0]
        try:
            kind = fsspec.get_filesystem_class(protocol)
            parts = kind._get_kwargs_from_urls(url)
            key = (protocol, repr(sorted(parts.items())))
            if key not in self._filesystems:
                options = _filesystem_options(protocol, self._config) | parts
                self._filesystems[key] = filesystem = kind(**options)
                if protocol in ("s3", "s3a"):
                    filesystem.retries = 1  # its loop in a loop would try 25 times for each of ours
        except (ImportError, ValueError, TypeError) as error:
            raise StorageError(
                url,
                found=f"no way to reach it ({error})",
                wanted="a storage that fsspec knows, and options that it takes",
                remedy="Install its package (for s3: mathcanvas-lightning[s3]), "
                "or correct the URL or storage_options.",
            ) from error
        return self._filesystems[key], kind._strip_protocol(url)


_LIVE: "weakref.WeakSet[RemoteFiles]" = weakref.WeakSet()
_INHERITED: list[RemoteFiles] = []


def _hold_inherited() -> None:
    # A forked process shares sockets and event loop with its parent: closing them, as the
    # finalizers of filesystems do, would disturb the parent.
    _INHERITED.extend(_LIVE)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hold_inherited)


def persist(config: StorageConfig, place: str, action: Callable[[], T]) -> T:
    """Does something until it works, or the tries are spent.

    Args:
        config: How often, and how long to wait between.
        place: The object it is about, named in errors and in the log.
        action: What to do; fails with any exception.

    Returns:
        What the action gives.

    Raises:
        DataError: If there is no such file, or what came was damaged to the last.
        StorageError: If access is denied, or the server failed to the last.
    """
    number = 0
    while True:
        number += 1
        try:
            return action()
        except MathCanvasError:
            raise
        except Exception as error:  # every storage has errors of its own
            failure = _meaning(error)
            if isinstance(failure, FINAL) or number > config.max_retries:
                raise _given_up(place, failure, number) from error
        wait_s = min(config.backoff_s * 2 ** (number - 1), MAX_BACKOFF_S)
        logger.warning(
            "%s: try %d of %d failed (%s); next one in %.1f s",
            place,
            number,
            1 + config.max_retries,
            _words(failure),
            wait_s,
        )
        time.sleep(wait_s)


def missing_file(place: str) -> DataError:
    """The error for a file that isn't there."""
    return DataError(
        place, found="nothing", wanted="a file", remedy="Correct the path, or restore the file."
    )


def damaged_file(place: str, damage: str) -> DataError:
    """The error for a file that can't be what was written."""
    return DataError(
        place,
        found=f"damage ({damage})",
        wanted="a whole Parquet file",
        remedy="Convert its source again, or copy the file again.",
    )


def _given_up(place: str, failure: Exception, tries: int) -> MathCanvasError:
    if isinstance(failure, FileNotFoundError):
        return missing_file(place)
    if isinstance(failure, Damage):
        return damaged_file(place, f"{failure}; tried {tries} times")
    if isinstance(failure, PermissionError):
        return StorageError(
            place,
            found=f"access denied ({_words(failure)})",
            wanted="the right to read",
            remedy="Check the credentials in storage_options or the environment.",
        )
    return StorageError(
        place,
        found=f"a failure in each of {tries} tries, at last: {_words(failure)}",
        wanted="the object's bytes",
        remedy="Check the server and the network, or raise max_retries or timeout_s; "
        "what was fetched stays in the cache.",
    )


def _meaning(error: Exception) -> Exception:
    status = getattr(error, "status", None)  # of an HTTP response
    if status in (404, 410):
        return FileNotFoundError(str(error))
    if status in (401, 403):
        return PermissionError(str(error))
    return error


def _words(error: Exception) -> str:
    if isinstance(error, Damage | CutShort):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _filesystem_options(protocol: str, config: StorageConfig) -> dict[str, Any]:
    """The user's options over ours, nested ones key by key."""
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        options["max_concurrency"] = 1  # more would ask for the size before each whole object
        options["config_kwargs"] = {
            "connect_timeout": config.timeout_s,
            "read_timeout": config.timeout_s,
            "retries": {"total_max_attempts": 1},
        }
    elif protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=config.timeout_s, sock_read=config.timeout_s
        )
        options["client_kwargs"] = {"timeout": timeout}
        options["headers"] = {"Accept-Encoding": "identity"}  # compressed, ranges mean others
    for name, value in config.storage_options.items():
        ours = options.get(name)
        if isinstance(ours, dict) and isinstance(value, Mapping):
            options[name] = {**ours, **value}
        else:
            options[name] = value
    return options | {"skip_instance_cache": True}
