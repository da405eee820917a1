"""Groups requests into the batches of the predict loop."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from mathcanvas_lightning.errors import check_settings
from mathcanvas_lightning.generation.requests import GenerationRequest

T = TypeVar("T")
Batching = Callable[[Iterable[Any]], Iterable[list[Any]]]
"""Groups items (requests, and failures of records without a request) into batches. It must return
each item once, no empty batch, and should read the items lazily. In YAML: the import path of a
function, or class_path and init_args of a class with callable objects."""


class FixedSize:
    """Batches of fixed size, in the order of the records.

    Args:
        batch_size: Number of items in a batch; the last one may be smaller.

    Raises:
        ConfigError: If batch_size is not positive.
    """

    def __init__(self, batch_size: int = 64) -> None:
        self._batch_size = _positive("batch_size", batch_size)

    def __call__(self, items: Iterable[T]) -> Iterator[list[T]]:
        """Yields batches; reads the items lazily."""
        rest = iter(items)
        while batch := list(islice(rest, self._batch_size)):
            yield batch


class ByLength:
    """Batches of texts with similar lengths, so that the answers of a batch finish together.

    Args:
        batch_size: Number of items in a batch; the last one of a window may be smaller.
        window: Number of items that are read and sorted at a time.

    Raises:
        ConfigError: If a value is not positive.
    """

    def __init__(self, batch_size: int = 64, window: int = 1024) -> None:
        self._windows = FixedSize(_positive("window", window))
        self._batches = FixedSize(batch_size)

    def __call__(self, items: Iterable[T]) -> Iterator[list[T]]:
        """Yields batches; reads the items window by window."""
        for window in self._windows(items):
            yield from self._batches(sorted(window, key=_num_characters))


def _num_characters(item: object) -> int:
    """Length of all texts of a request; 0 for a failure."""
    if not isinstance(item, GenerationRequest):
        return 0
    return sum(len(message.text) for message in item.messages)


def _positive(name: str, value: int) -> int:
    check_settings((name, value, value >= 1, "1 or more"))
    return value
