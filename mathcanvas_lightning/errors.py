"""What can go wrong: each error names the place, what was found, what is wanted, the remedy."""

from functools import partial
from typing import Any


class MathCanvasError(Exception):
    """An error that the user can act on; its text is complete without a traceback.

    Args:
        place: Where it is: a file (with line and column where known), a setting, a row.
        found: What stands there.
        wanted: What should stand there.
        remedy: What to do about it.
    """

    def __init__(self, place: str, *, found: str, wanted: str, remedy: str) -> None:
        super().__init__(f"{place}: found {found}; wanted {wanted}. {remedy}")
        self.place = place
        self.found = found
        self.wanted = wanted
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes send errors back by pickle, which knows nothing of keyword arguments.
        words = {"found": self.found, "wanted": self.wanted, "remedy": self.remedy}
        return partial(type(self), self.place, **words), ()


class ConfigError(MathCanvasError):
    """A setting that can't be used."""


class InputError(MathCanvasError):
    """A source file that can't be read, or isn't what it should be."""


class OutputError(MathCanvasError):
    """An output folder that must not be written to as it stands."""


class DataError(MathCanvasError):
    """A shard, or a row of one, that breaks the format."""


class StorageError(MathCanvasError):
    """A server that does not give what it holds."""


class WorkerError(MathCanvasError):
    """A worker process that ended before its work did."""
