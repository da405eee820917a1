"""Versions of the pictures at URLs, asked for in parallel before a run."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

from mathcanvas_lightning.common.parallel import waiting_threads
from mathcanvas_lightning.errors import DataError, StorageError
from mathcanvas_lightning.records.hosts import FetchSettings, HostReader

log = logging.getLogger(__name__)


def url_versions(urls: Iterable[str], settings: FetchSettings) -> dict[str, str]:
    """Asks servers for the size and version of files, without reading them.

    Args:
        urls: URLs of pictures.
        settings: Time limits and number of parallel requests.

    Returns:
        URL -> size and ETag (or time of change). URLs are left out, and counted in the log, if
        their server gives neither, or does not answer.
    """
    distinct = list(dict.fromkeys(urls))
    if not distinct:
        return {}
    files = HostReader(settings)
    with waiting_threads(settings.num_parallel, "versions") as pool:
        found = dict(
            zip(distinct, pool.map(lambda url: _version(files, url), distinct), strict=True)
        )
    known = {url: version for url, version in found.items() if version}
    if len(known) < len(distinct):
        log.warning(
            "%d of %d pictures at URLs: the server gives no size; whether they have changed since "
            "they were answered is not known",
            len(distinct) - len(known),
            len(distinct),
        )
    return known


def stamp_with(stamp: int | None, urls: Sequence[str], versions: Mapping[str, str]) -> int | None:
    """Adds the versions of a record's URLs to the stamp of its local files.

    Args:
        stamp: Result of `picture_stamp`.
        urls: The record's pictures at URLs.
        versions: Result of `url_versions`.

    Returns:
        56 bits of a hash; the stamp itself if no version is known.
    """
    known = [versions[url] for url in urls if url in versions]
    if not known:
        return stamp
    digest = blake2b(repr((stamp, known)).encode(), digest_size=7)
    return int.from_bytes(digest.digest())


def _version(files: HostReader, url: str) -> str:
    try:
        status = files.status(url)
    except (DataError, StorageError):  # the request itself will fail with the reason
        return ""
    return f"{status.size_bytes}:{status.version}"
