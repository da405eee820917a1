"""Requests to remote files through fsspec, each made once; `retry` repeats them."""

import errno
import os
import posixpath
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import fsspec

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX
from mathcanvas_lightning.common.paths import is_http, without_query
from mathcanvas_lightning.errors import StorageError
from mathcanvas_lightning.storage.config import Entry, FileStatus, StorageConfig
from mathcanvas_lightning.storage.retry import IncompleteReadError, NoRangesError

VERSION_KEYS = (  # blob_id: of hf://, whose listings have no other
    *("blob_id", "ETag", "etag", "generation", "LastModified", "Last-Modified", "last_modified"),
    *("mtime", "modified", "updated", "created"),
)
S3 = frozenset({"s3", "s3a"})
ATOMIC_STORES = S3 | {"gs", "gcs", "az", "abfs", "abfss", "memory"}
"""Stores where an object appears when its upload is complete."""
_FILESYSTEMS: dict[tuple[int, str, str], Any] = {}
"""By process, protocol and options. A forked process shares sockets and event loop with its parent;
the finalizers of inherited filesystems would close them, so none is ever dropped."""


class RemoteFiles:
    """Remote files with the given timeouts and options."""

    def __init__(self, config: StorageConfig) -> None:
        self._config = config
        self._without_ranges: set[str] = set()

    def find_status(self, url: str) -> FileStatus | None:
        """Size and version of a file, None for a folder."""
        filesystem, inside = self._locate(url)
        try:
            info = filesystem.info(inside)
        except FileNotFoundError as error:
            # fsspec raises this for any failure over HTTP, and keeps the real one as the cause.
            raise (is_http(url) and error.__cause__) or error from None
        if info.get("type") == "directory":
            return None
        status = status_of(info)
        if status is None:
            found = "an answer without the size of the file"
            remedy = "Copy the file to a local folder, or use another server."
            place = without_query(url)
            raise StorageError(place, found=found, wanted="a Content-Length", remedy=remedy)
        return status

    def list_folder(self, url: str) -> list[Entry]:
        """The entries of a folder, without hidden ones."""
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
                status = None if is_folder else status_of(info)
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
        data = self._read(url, start, end, status)
        if len(data) != end - start:
            raise IncompleteReadError(f"received {len(data)} bytes instead of {end - start}")
        return data

    def read_bytes(self, url: str, max_bytes: int | None) -> bytes:
        """Reads a whole file; of one that is too large, only the first max_bytes + 1 bytes."""
        if max_bytes is not None:
            any_version = FileStatus(size_bytes=max_bytes + 1, version="")
            return self._read(url, 0, max_bytes + 1, any_version)
        filesystem, inside = self._locate(url)
        return cast("bytes", filesystem.cat_file(inside))

    def download(self, url: str, path: Path) -> None:
        """Copies a whole file to a local one."""
        filesystem, inside = self._locate(url)
        filesystem.get_file(inside, str(path))

    def upload(self, path: Path, url: str) -> None:
        """Copies a local file to a server, where it appears complete or not at all."""
        filesystem, inside = self._locate(url)
        if _protocol(url) in ATOMIC_STORES:
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

    def _read(self, url: str, start: int, end: int, status: FileStatus) -> bytes:
        """Reads the bytes [start, end) of a version of a file, fewer at its end."""
        filesystem, inside = self._locate(url)
        is_s3 = _protocol(url) in S3
        if not is_s3 and not is_http(url):
            return cast("bytes", filesystem.cat_file(inside, start=start, end=end))
        options: dict[str, Any] = {"size": status.size_bytes, "cache_type": "none"}
        if is_http(url):
            options["raise_for_status"] = partial(_check_version, status.version)
        try:
            with filesystem.open(inside, **options) as file:
                if is_s3:  # what the answer must match
                    wanted = {"ETag": status.version} if status.version else {}
                    file.details = {"name": inside, "size": status.size_bytes, **wanted}
                file.seek(start)
                return cast("bytes", file.read(end - start))
        except ValueError as error:
            if is_s3 or not start:
                raise
            self._without_ranges.add(url)  # the file object found no range in the answer
            raise NoRangesError from error
        except OSError as error:
            if error.errno == errno.EINVAL:  # S3: after the end
                return b""
            if error.errno == errno.EBUSY:  # S3: changed or busy
                raise IncompleteReadError(str(error)) from None
            raise

    def _locate(self, url: str) -> tuple[Any, str]:
        """The filesystem of a URL, and the path of the URL in it."""
        protocol = _protocol(url)
        try:
            kind = fsspec.get_filesystem_class(protocol)
            options = filesystem_options(protocol, self._config)
            options |= kind._get_kwargs_from_urls(url)
            key = (os.getpid(), protocol, repr(options))
            if key not in _FILESYSTEMS:
                _FILESYSTEMS[key] = filesystem = kind(**options)
                if protocol in S3:
                    filesystem.retries = 1  # each of our tries would be five requests
        except (ImportError, ValueError, TypeError) as error:
            raise StorageError(
                without_query(url),
                found=f"no way to reach it ({error})",
                wanted="a storage that fsspec knows, and options that it takes",
                remedy="Install its package (for s3: mathcanvas-lightning[s3]), "
                "or correct the URL or storage_options.",
            ) from error
        return _FILESYSTEMS[key], kind._strip_protocol(url)


def filesystem_options(protocol: str, config: StorageConfig) -> dict[str, Any]:
    """Options for fsspec: the user's, and ours where the user sets none, also in nested ones."""
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in S3:
        options["max_concurrency"] = 1  # otherwise a HEAD request precedes each whole object
        options["local_expiry_check"] = True  # compare the ETag of each answer
        options["config_kwargs"] = {
            "connect_timeout": config.timeout_s,
            "read_timeout": config.timeout_s,
            "retries": {"total_max_attempts": 1},
        }
    elif protocol in ("http", "https"):
        import aiohttp

        waits = {"sock_connect": config.timeout_s, "sock_read": config.timeout_s}
        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, **waits)}
        options["headers"] = {"Accept-Encoding": "identity"}  # ranges are of uncompressed bytes
    for name, value in config.storage_options.items():
        is_nested = isinstance(value, Mapping) and isinstance(options.get(name), dict)
        options[name] = {**options[name], **value} if is_nested else value
    return options | {"skip_instance_cache": True}


async def _check_version(version: str, response: Any) -> None:
    if response.status < 400 and version not in ("", _version(response.headers) or version):
        response.close()
        raise IncompleteReadError("the file has changed")


def _protocol(url: str) -> str:
    return url.partition("://")[0]


def status_of(info: Mapping[str, Any]) -> FileStatus | None:
    """Size and version of a file, as fsspec describes it; None if it has no size."""
    if info.get("size") is None:
        return None
    return FileStatus(size_bytes=int(info["size"]), version=_version(info))


def _version(info: Mapping[str, Any]) -> str:
    return next((str(info[key]) for key in VERSION_KEYS if info.get(key)), "")
