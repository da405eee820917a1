"""State of callbacks as plain types, so that every checkpoint can be read back safely."""

import io
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

_LEAVES = (bool, int, float, complex, str, bytes)
_TENSORS = ("state_dict", "optimizer_states")
"""Sections of a checkpoint that hold only tensors and plain types."""


class NotPlainError(Exception):
    """A value that reading with `weights_only=True` would refuse."""


def readable(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a checkpoint to types that can be read back with `weights_only=True`.

    NumPy numbers and arrays, paths and enums are converted. The state of a callback that holds
    anything else is left out, with a warning: otherwise the whole checkpoint could not be read.

    Args:
        checkpoint: The checkpoint.

    Returns:
        The checkpoint to write; tensors are not copied.
    """
    found: dict[str, Any] = {}
    for name, value in checkpoint.items():
        if name in _TENSORS:
            found[name] = value
        elif name == "callbacks":
            found[name] = _sections(value, "the state of callback ")
        else:
            found |= _sections({name: value}, "the section ")
    return found


def _sections(sections: Mapping[str, Any], what: str) -> dict[str, Any]:
    found = {}
    for name, value in sections.items():
        try:
            found[name] = plain(value)
        except NotPlainError as error:
            rank_zero_warn(
                f"The checkpoint leaves out {what}{name}: it holds {error}, which can't be read "
                "back safely. Keep only numbers, texts, lists, dicts and tensors in state_dict()."
            )
    return found


def plain(value: Any) -> Any:
    """Converts a value to plain types and tensors.

    Args:
        value: Any value.

    Returns:
        The converted value.

    Raises:
        NotPlainError: If it holds anything else.
    """
    if value is None or type(value) in _LEAVES or isinstance(value, Tensor):
        return value
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.copy())
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, dict):
        pairs = [(plain(key), plain(inner)) for key, inner in value.items()]
        return _like(value, dict(pairs))
    if type(value) in (list, tuple, set):
        return type(value)(plain(inner) for inner in value)
    for kind in _LEAVES:
        if isinstance(value, kind):  # a subclass of a plain type
            convert: Any = kind
            return convert(value)
    return _checked(value)


def _like(original: dict[Any, Any], content: dict[Any, Any]) -> Any:
    """Keeps the classes of dicts that can be read, such as OrderedDict and Counter."""
    if type(original) is dict:
        return content
    try:
        return _checked(type(original)(content))
    except (NotPlainError, TypeError):
        return content


def _checked(value: Any) -> Any:
    """Returns a value that survives saving and loading; other types of torch do."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception as error:  # whatever pickling the user's object raises
        raise NotPlainError(f"a {type(value).__module__}.{type(value).__qualname__}") from error
    return value
