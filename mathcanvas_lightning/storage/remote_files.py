"""Requests to remote files through fsspec, each made once; `retry` repeats them."""

import errno
import os
import posixpath
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import sync

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX
from mathcanvas_lightning.common.paths import is_http, without_query
from mathcanvas_lightning.errors import StorageError
from mathcanvas_lightning.storage.config import Entry, FileStatus, StorageConfig
from mathcanvas_lightning.storage.retry import IncompleteReadError, NoRangesError

VERSION_KEYS = (
    *("ETag", "etag", "generation", "LastModified", "Last-Modified", "last_modified"),
    *("mtime", "modified", "updated", "created"),
)
ATOMIC_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "memory"})
"""Stores where an object appears when its upload is complete."""
CHUNK_BYTES = 2**20


class RemoteFiles:
    """Remote files as one process reads and writes them.

    Its filesystems are kept out of fsspec's cache of instances, which is cleared after a fork.

    Args:
        config: Timeouts and options.
    """

    def __init__(self, config: StorageConfig) -> None:
        self._config = config
        self._filesystems: dict[tuple[str, str], Any] = {}
        self._without_ranges: set[str] = set()
        _LIVE.add(self)

    def find_status(self, url: str) -> FileStatus | None:
        """Size and version of a file, None for a folder.

        Raises:
            FileNotFoundError: If there is neither.
            StorageError: If the server does not send the size.
        """
        info = self._info(url)
        if info.get("type") == "directory":
            return None
        status = _status(info)
        if status is None:
            raise StorageError(
                without_query(url),
                found="an answer without the size of the file",
                wanted="a Content-Length",
                remedy="Copy the file to a local folder, or use another server.",
            )
        return status

    def list_folder(self, url: str) -> list[Entry]:
        """The entries of a folder, without hidden ones.

        Raises:
            FileNotFoundError: If there is no such folder.
        """
        filesystem, inside = self._locate(without_query(url))
        start = inside.rstrip("/") + "/"
        entries = []
        for info in filesystem.ls(inside, detail=True):
            name = info["name"]
            tail = name.removeprefix(start).strip("/")
            # Web pages also link to their parent, to other sites and to sorted views.
            if name.startswith(start) and tail and "/" not in tail and tail[0] not in ".?#":
                path = filesystem.unstrip_protocol(name)
                is_folder = info["type"] == "directory"
                status = None if is_folder else _status(info)
                entries.append(Entry(path=path, is_folder=is_folder, status=status))
        return entries

    def read_range(self, url: str, start: int, end: int, status: FileStatus) -> bytes:
        """Reads exactly the bytes [start, end) of a file.

        Raises:
            NoRangesError: If the server sends whole files only.
            IncompleteReadError: If it sends other bytes, or those of another version.
        """
        if url in self._without_ranges:
            raise NoRangesError
        filesystem, inside = self._locate(url)
        try:
            if is_http(url):
                data = sync(filesystem.loop, self._get, url, start, end, status.version)
            elif "s3" in filesystem.protocol:
                with filesystem.open(inside, size=status.size_bytes, cache_type="none") as file:
                    details = {"name": inside, "size": status.size_bytes, "ETag": status.version}
                    file.details = details  # what the answer must match
                    file.seek(start)
                    data = file.read(end - start)
            else:
                data = filesystem.cat_file(inside, start=start, end=end)
        except NoRangesError:
            self._without_ranges.add(url)
            raise
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EBUSY):  # S3: past the end, changed or busy
                raise
            raise IncompleteReadError(str(error)) from None
        if len(data) != end - start:
            raise IncompleteReadError(f"received {len(data)} bytes instead of {end - start}")
        return bytes(data)

    def read_bytes(self, url: str, max_bytes: int | None) -> bytes:
        """Reads a whole file; of one that is too large, only the first max_bytes + 1 bytes."""
        filesystem, inside = self._locate(url)
        data: bytes
        if max_bytes is None:
            data = filesystem.cat_file(inside)
        elif is_http(url):
            data = sync(filesystem.loop, self._get, url, 0, max_bytes + 1, "")
        else:
            try:
                data = filesystem.cat_file(inside, start=0, end=max_bytes + 1)
            except OSError:  # S3 refuses any range of an empty object
                status = self.find_status(url)
                if status is None or status.size_bytes:
                    raise
                data = b""
        return data

    def download(self, url: str, path: Path, size_bytes: int | None) -> None:
        """Copies a whole file to an existing local one.

        Args:
            url: The file.
            path: Where to copy it.
            size_bytes: Expected length; None if unknown.

        Raises:
            IncompleteReadError: If another number of bytes is received.
        """
        filesystem, inside = self._locate(url)
        if is_http(url):
            with path.open("r+b") as file:  # keeps the disk space that the cache has reserved
                filesystem.get_file(inside, file)
                file.truncate()
        else:
            filesystem.get_file(inside, str(path))
        received = path.stat().st_size
        if size_bytes not in (None, received):
            raise IncompleteReadError(f"received {received} bytes instead of {size_bytes}")

    def find_size(self, url: str) -> int | None:
        """Length of a file, None if the server does not send it."""
        size: int | None = self._info(url).get("size")
        return size

    def upload(self, path: Path, url: str) -> None:
        """Copies a local file to a server, where it appears complete or not at all."""
        filesystem, inside = self._locate(url)
        protocols = filesystem.protocol
        if ATOMIC_STORES & ({protocols} if isinstance(protocols, str) else set(protocols)):
            filesystem.put_file(str(path), inside)
            return
        folder, name = posixpath.split(inside)
        filesystem.makedirs(folder, exist_ok=True)
        temporary = posixpath.join(folder, f"{TEMPORARY_PREFIX}{name}")
        filesystem.put_file(str(path), temporary)
        filesystem.mv(temporary, inside)

    def remove(self, url: str) -> None:
        """Deletes a file."""
        filesystem, inside = self._locate(url)
        filesystem.rm(inside)

    async def _get(self, url: str, start: int, end: int, version: str) -> bytes:
        """Reads a range over HTTP; from a server without ranges, only the start of a file."""
        filesystem, inside = self._locate(url)
        session = await filesystem.set_session()
        options = dict(filesystem.kwargs)
        options["headers"] = {**options.get("headers", {}), "Range": f"bytes={start}-{end - 1}"}
        async with session.get(filesystem.encode_url(inside), **options) as response:
            if response.status == 416:  # the range is after the end of the file
                return b""
            response.raise_for_status()
            if version not in ("", _version(response.headers) or version):
                raise IncompleteReadError("the file has changed")
            if response.status != 206 and start > 0:
                raise NoRangesError
            data = bytearray()
            while len(data) < end - start:
                chunk = await response.content.read(min(CHUNK_BYTES, end - start - len(data)))
                if not chunk:
                    break
                data += chunk
            return bytes(data)

    def _info(self, url: str) -> dict[str, Any]:
        filesystem, inside = self._locate(url)
        try:
            info: dict[str, Any] = filesystem.info(inside)
        except FileNotFoundError as error:
            # fsspec raises this for any failure over HTTP, and keeps the real one as the cause.
            if is_http(url) and isinstance(error.__cause__, Exception):
                raise error.__cause__ from None
            raise
        return info

    def _locate(self, url: str) -> tuple[Any, str]:
        """The filesystem of a URL, and the path of the URL in it."""
        protocol = url.partition("://")[0]
        try:
            kind = fsspec.get_filesystem_class(protocol)
            parts = kind._get_kwargs_from_urls(url)
            key = (protocol, repr(sorted(parts.items())))
            if key not in self._filesystems:
                options = filesystem_options(protocol, self._config) | parts
                self._filesystems[key] = filesystem = kind(**options)
                if protocol in ("s3", "s3a"):
                    filesystem.retries = 1  # each of our tries would be five requests
        except (ImportError, ValueError, TypeError) as error:
            raise StorageError(
                without_query(url),
                found=f"no way to reach it ({error})",
                wanted="a storage that fsspec knows, and options that it takes",
                remedy="Install its package (for s3: mathcanvas-lightning[s3]), "
                "or correct the URL or storage_options.",
            ) from error
        return self._filesystems[key], kind._strip_protocol(url)


_LIVE: "weakref.WeakSet[RemoteFiles]" = weakref.WeakSet()
_INHERITED: list[RemoteFiles] = []


def _keep_inherited() -> None:
    # A forked process shares sockets and event loop with its parent. The finalizers of filesystems
    # would close them, so the objects are kept alive.
    _INHERITED.extend(_LIVE)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_inherited)


def filesystem_options(protocol: str, config: StorageConfig) -> dict[str, Any]:
    """Options for fsspec: the user's, and ours where the user sets none, also in nested ones."""
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        options["max_concurrency"] = 1  # otherwise a HEAD request precedes each whole object
        options["local_expiry_check"] = True  # compare the ETag of each answer
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
        options["headers"] = {"Accept-Encoding": "identity"}  # ranges are of uncompressed bytes
    for name, value in config.storage_options.items():
        ours = options.get(name)
        if isinstance(ours, dict) and isinstance(value, Mapping):
            options[name] = {**ours, **value}
        else:
            options[name] = value
    return options | {"skip_instance_cache": True}


def _status(info: Mapping[str, Any]) -> FileStatus | None:
    if info.get("size") is None:
        return None
    return FileStatus(size_bytes=int(info["size"]), version=_version(info))


def _version(info: Mapping[str, Any]) -> str:
    return next((str(info[key]) for key in VERSION_KEYS if info.get(key)), "")
