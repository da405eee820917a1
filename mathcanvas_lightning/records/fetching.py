"""Prefetches the pictures of records, those at URLs in parallel."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from mathcanvas_lightning.common.parallel import waiting_threads
from mathcanvas_lightning.common.paths import is_remote
from mathcanvas_lightning.records.hosts import FetchSettings, HostReader
from mathcanvas_lightning.records.pictures import Picture, PictureError, read_pictures
from mathcanvas_lightning.records.record import Record

Pictures = tuple[Picture, ...] | PictureError
"""The pictures of a record, or why one of them is unusable."""


class PictureReader:
    """Reads the pictures of records, also ahead.

    Args:
        settings: Settings for URLs.
    """

    def __init__(self, settings: FetchSettings) -> None:
        self._num_parallel = settings.num_parallel
        self._files = HostReader(settings)

    def read(self, record: Record) -> Pictures:
        """Reads the pictures of a record.

        Returns:
            One picture for each reference, in order; or the first error.
        """
        try:
            return read_pictures(record, files=self._files)
        except PictureError as error:
            return error

    def read_ahead(self, records: Iterable[Record]) -> Iterator[tuple[Record, Pictures]]:
        """Reads the pictures of many records.

        Args:
            records: Any number of records; a few more than yielded are taken.

        Yields:
            Each record with its pictures: in order, but a record with pictures at URLs comes when
            they have arrived. So a slow host delays only its own records.
        """
        pending: dict[Future[Pictures], Record] = {}
        with waiting_threads(self._num_parallel, "pictures") as pool:
            for record in records:
                if not _needs_network(record):
                    yield record, self.read(record)
                    continue
                pending[pool.submit(self.read, record)] = record
                yield from _arrived(pending, at_most=2 * self._num_parallel - 1)
            while pending:
                yield from _arrived(pending, at_most=len(pending) - 1)


def _needs_network(record: Record) -> bool:
    """Whether a picture of a record may be at a URL."""
    return any(_is_url(reference, record.image_base) for reference in record.images)


def _is_url(reference: Any, base: str) -> bool:
    if isinstance(reference, Mapping):
        reference = reference.get("path") if reference.get("bytes") is None else None
    return isinstance(reference, str) and (is_remote(reference) or is_remote(base))


def _arrived(
    pending: dict[Future[Pictures], Record], *, at_most: int
) -> Iterator[tuple[Record, Pictures]]:
    """Removes and yields what is done; waits until at most some are pending."""
    while True:
        for future in [one for one in pending if one.done()]:
            yield pending.pop(future), future.result()
        if len(pending) <= at_most:
            return
        wait(pending, return_when=FIRST_COMPLETED)
