"""Retries for remote requests, and the errors that remain after them."""

import errno
import logging
import re
from collections.abc import Callable
from typing import TypeVar

import tenacity

from mathcanvas_lightning.errors import DataError, MathCanvasError, StorageError
from mathcanvas_lightning.storage.config import StorageConfig

logger = logging.getLogger(__name__)

MAX_BACKOFF_S = 30.0
FINAL = (
    *(FileNotFoundError, PermissionError, NotImplementedError),
    *(TypeError, NameError, ImportError, MathCanvasError),
)
"""Failures that no retry can fix."""
TRANSIENT_ERRNOS = frozenset(
    {
        *(errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EBUSY),
        *(errno.EINTR, errno.ENOMEM, errno.ENOLCK, errno.ETIMEDOUT, errno.ECONNRESET),
    }
)
"""Errors of a disk or a network disk that say nothing about the file; a retry may fix them."""
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\")]*")
T = TypeVar("T")


class MissingFileError(DataError):
    """A file or folder that does not exist."""


class FileTooLargeError(DataError):
    """A file over the size limit of its reader."""


class AccessDeniedError(StorageError):
    """A file that the server does not give to this user."""


class ContentError(Exception):
    """Received bytes that are not what the file format requires; a retry may fix it."""


class IncompleteReadError(Exception):
    """Missing bytes, or bytes of another version of the file; a retry may fix it."""


class NoRangesError(Exception):
    """The server ignores range requests and sends whole files."""


def with_retries(config: StorageConfig, place: str, action: Callable[[], T]) -> T:
    """Calls a function until it succeeds or the tries are used up.

    Args:
        config: Number of tries and the wait between them.
        place: Path or URL without a query; named in errors and in the log.
        action: The function; any `Exception` means failure. Ctrl-C and exits pass at once.
    """
    text = "%s: try %d of %d failed (%s); next one in %.1f s"

    def log(state: tenacity.RetryCallState) -> None:
        reason = _describe(state.outcome.exception() if state.outcome else None)
        tries = (state.attempt_number, 1 + config.max_retries)
        logger.warning(text, place, *tries, reason, state.upcoming_sleep)

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(1 + config.max_retries),
        wait=tenacity.wait_exponential(multiplier=config.backoff_s, max=MAX_BACKOFF_S),
        retry=tenacity.retry_if_exception(_may_pass),
        before_sleep=log,
        reraise=True,
    )
    try:
        return retrying(action)
    except MathCanvasError:
        raise
    except Exception as error:  # every fsspec backend has its own exceptions
        tries = retrying.statistics["attempt_number"]
        raise _final_error(place, _classify(error), tries) from None


def missing_file(place: str) -> MissingFileError:
    """The error for a file that does not exist."""
    remedy = "Correct the path, or restore the file."
    return MissingFileError(place, found="nothing", wanted="a file", remedy=remedy)


def not_a_file(place: str) -> DataError:
    """The error for a folder or device where a file is expected."""
    found = "a folder or device"
    return DataError(place, found=found, wanted="a file", remedy="Correct the path.")


def damaged_file(place: str, damage: str) -> DataError:
    """The error for a shard that can't be read as Parquet."""
    remedy = "Convert its source again, or copy the file again."
    found = f"damage ({damage})"
    return DataError(place, found=found, wanted="a whole Parquet file", remedy=remedy)


def _final_error(place: str, error: BaseException, tries: int) -> MathCanvasError:
    if isinstance(error, FileNotFoundError):
        return missing_file(place)
    if isinstance(error, ContentError):
        return damaged_file(place, f"{error}; tried {tries} times")
    if isinstance(error, PermissionError):
        found = f"access denied ({_describe(error)})"
        remedy = "Check the credentials in storage_options or the environment."
        return AccessDeniedError(place, found=found, wanted="a successful request", remedy=remedy)
    found = f"a storage failure in each of {tries} tries, the last one: {_describe(error)}"
    remedy = (
        "Check the server and the network, or raise max_retries or timeout_s; "
        "fetched data stays in the cache."
    )
    return StorageError(place, found=found, wanted="a successful request", remedy=remedy)


def _may_pass(error: BaseException) -> bool:
    # tenacity also asks for KeyboardInterrupt and SystemExit, which would be lost in a retry.
    return isinstance(error, Exception) and not isinstance(_classify(error), FINAL)


def _classify(error: BaseException) -> BaseException:
    status = getattr(error, "status", None)  # of an HTTP response
    if status in (404, 410):
        return FileNotFoundError(str(error))
    return PermissionError(str(error)) if status in (401, 403) else error


def _describe(error: BaseException | None) -> str:
    text = _QUERY.sub(r"\1", str(error))  # queries of presigned URLs are credentials
    if isinstance(error, ContentError | IncompleteReadError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
