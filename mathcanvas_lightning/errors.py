"""The errors of the package: location, what was found, what is wanted, and a remedy."""

from functools import partial
from typing import Any, TypeVar

T = TypeVar("T", bound=BaseException)


class MathCanvasError(Exception):
    """An error that the user can fix; its text is complete without a traceback.

    Args:
        place: Location: a file (with line and column if known), a setting or a row.
        found: What was found there.
        wanted: What should be there.
        remedy: What the user can do.
    """

    def __init__(self, place: str, *, found: str, wanted: str, remedy: str) -> None:
        super().__init__(f"{place}: found {found}; wanted {wanted}. {remedy}")
        self.place = place
        self.found = found
        self.wanted = wanted
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes pickle errors; by default, pickle drops keyword arguments.
        words = {"found": self.found, "wanted": self.wanted, "remedy": self.remedy}
        return partial(type(self), self.place, **words), ()


class ConfigError(MathCanvasError):
    """A setting that can't be used."""


class InputError(MathCanvasError):
    """A source file that can't be read or has the wrong content."""


class OutputError(MathCanvasError):
    """An output folder that must not be overwritten."""


class DataError(MathCanvasError):
    """A shard or row that violates the format."""


class StorageError(MathCanvasError):
    """A server or remote file that can't be read."""


class WorkerError(MathCanvasError):
    """A worker process that ended before its work was finished."""


class TrainingError(MathCanvasError):
    """A training that has diverged."""


def cause_of_kind(error: BaseException | None, kind: type[T]) -> T | None:
    """Finds an error of a kind in the chain of causes; argument parsers wrap errors."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def check_settings(*checks: tuple[str, object, bool, str], remedy: str = "Change it.") -> None:
    """Checks values of settings, in their order.

    Args:
        checks: Name of a setting, its value, whether the value is right, and what is wanted.
        remedy: What the user can do about a wrong value.

    Raises:
        ConfigError: At the first wrong value.
    """
    for name, value, is_right, wanted in checks:
        if not is_right:
            raise ConfigError(name, found=str(value), wanted=wanted, remedy=remedy)
