"""Divides all stacks into training, validation and test, so that no picture is shared."""

from hashlib import blake2b
from typing import Literal, get_args

from mathcanvas_lightning.blockmoving.rules import Stack

Part = Literal["all", "train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
_VALIDATION_PERCENT, _TEST_PERCENT = 10, 15


def part_of(stack: Stack) -> Part:
    """Returns the part that a stack belongs to, by a hash of its cubes.

    Every stack that is drawn after a move belongs to the part of its puzzle. The picture of a
    question ends with such a stack too, so two parts have no picture in common.
    """
    digest = blake2b(repr((stack.size, stack.columns)).encode(), digest_size=8).digest()
    percent = int.from_bytes(digest, "little") % 100
    if percent < _TEST_PERCENT:
        return "test"
    return "validation" if percent < _TEST_PERCENT + _VALIDATION_PERCENT else "train"


def belongs_to(stack: Stack, part: Part) -> bool:
    """Whether a stack may be drawn in a part; "all" takes every stack."""
    return part in ("all", part_of(stack))
