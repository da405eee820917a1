"""How requests are put together for one step of the predict loop."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.requests import GenerationRequest

T = TypeVar("T")


Batching = Callable[[Iterable[Any]], Iterable[list[Any]]]
"""Puts items (requests, and failures of records that could not be made into one) into batches: each
item once, drawn as they are needed, no batch empty. In YAML: the path of a function, or class_path
and init_args of a class whose objects can be called."""


class FixedSize:
    """Batches in the order of the records.

    Args:
        batch_size: Items of each but the last.

    Raises:
        ConfigError: If it is not positive.
    """

    def __init__(self, batch_size: int = 64) -> None:
        self._batch_size = _positive("batch_size", batch_size)

    def __call__(self, items: Iterable[T]) -> Iterator[list[T]]:
        """Draws items as they are needed."""
        rest = iter(items)
        while batch := list(islice(rest, self._batch_size)):
            yield batch


class ByLength:
    """Batches of texts of like length, so that the answers to a batch end at about one time.

    Args:
        batch_size: Items of each but the last of a window.
        window: So many items are drawn and sorted at a time.

    Raises:
        ConfigError: If one is not positive.
    """

    def __init__(self, batch_size: int = 64, window: int = 1024) -> None:
        self._windows = FixedSize(_positive("window", window))
        self._batches = FixedSize(batch_size)

    def __call__(self, items: Iterable[T]) -> Iterator[list[T]]:
        """Draws items as they are needed."""
        for window in self._windows(items):
            yield from self._batches(sorted(window, key=_num_characters))


def _num_characters(item: object) -> int:
    """Of all texts of a request; 0 of what isn't one."""
    if not isinstance(item, GenerationRequest):
        return 0
    return sum(len(message.text) for message in item.messages)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ConfigError(name, found=str(value), wanted="1 or more", remedy="Change it.")
    return value
