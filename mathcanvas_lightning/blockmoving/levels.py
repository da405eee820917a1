"""The difficulty of generated puzzles: five named levels and the long, three-view wording."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mathcanvas_lightning.blockmoving.drawing import COLOURS, VIEWS
from mathcanvas_lightning.errors import ConfigError, check_settings

Wording = Literal["short", "long"]
Question = Literal["moves", "stack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What puzzles look like and how hard they are."""

    size: int = 3
    """Columns along each side of the board, and the maximum height."""
    min_blocks: int = 4
    """Minimum number of cubes."""
    max_blocks: int = 8
    """Maximum number of cubes."""
    num_colours: int = len(COLOURS)
    """Number of colours; all cubes of a puzzle have different ones."""
    num_moves: int = 3
    """Moves of each option."""
    vertical: bool = True
    """Whether cubes may also be moved up and down."""
    swaps: bool = True
    """Whether a cube may be moved into an occupied cell, which swaps the two cubes."""
    views: tuple[str, ...] = VIEWS
    """Views that pictures show, side by side."""
    view_px: int = 192
    """Side of a view, in pixels."""
    wording: Wording = "long"
    """Length of the chain of thought: whole sentences, or as few tokens as possible."""
    question: Question = "moves"
    """Which moves turn one stack into another, or which stack given moves lead to."""

    def with_settings(self, **settings: Any) -> "Level":
        """Returns a copy with other values; None keeps the value of the level.

        Args:
            settings: Fields of this class.
        """
        return replace(self, **{name: v for name, v in settings.items() if v is not None})

    def check(self) -> None:
        """Checks that the numbers fit together.

        Raises:
            ConfigError: If one does not.
        """
        floors = 1 if self.views == ("above",) else self.size - 1  # from above, cubes hide others
        most = min(self.size * self.size * floors, self.num_colours)
        for option, good, wanted in (
            ("size", 2 <= self.size <= 6, "2 to 6"),
            ("min_blocks", self.min_blocks >= 2, "2 or more"),
            (
                "max_blocks",
                self.min_blocks <= self.max_blocks <= most,
                f"--min_blocks to {most} on a board of size {self.size}",
            ),
            ("num_colours", self.num_colours <= len(COLOURS), f"up to {len(COLOURS)}"),
            ("num_moves", 1 <= self.num_moves <= 12, "1 to 12"),
            ("view_px", 48 <= self.view_px <= 1024, "48 to 1024"),
            ("view", set(self.views) <= set(VIEWS), "corner or above"),
            ("wording", self.wording in ("short", "long"), "short or long"),
            ("question", self.question in ("moves", "stack"), "moves or stack"),
        ):
            found = getattr(self, option, self.views)
            remedy = "Leave it out for the default."
            check_settings((f"--{option}", found, good, wanted), remedy=remedy)


_SHORT = Level(
    min_blocks=2,
    max_blocks=2,
    num_colours=6,
    num_moves=1,
    vertical=False,
    swaps=False,
    views=("corner",),
    view_px=48,
    wording="short",
)

LEVELS: Mapping[int, Level] = {
    1: _SHORT,
    2: replace(_SHORT, num_moves=2),
    3: replace(_SHORT, num_moves=2, min_blocks=3, max_blocks=3, swaps=True),
    4: replace(
        _SHORT,
        num_moves=3,
        min_blocks=3,
        max_blocks=5,
        num_colours=8,
        swaps=True,
        vertical=True,
        views=VIEWS,
    ),
    5: Level(),
}
"""Level 1: two cubes, one move. 2: two moves. 3: three cubes, swaps. 4: up to five cubes, three
moves, three views. 5: up to eight cubes in twelve colours, large pictures, the long wording."""


def find_level(number: int | None) -> Level:
    """Finds a level.

    Args:
        number: 1 to 5; None for the last one.

    Raises:
        ConfigError: If there is no such level.
    """
    if number is None:
        return LEVELS[5]
    if number not in LEVELS:
        raise ConfigError(
            "--level", found=str(number), wanted="1 to 5", remedy="Choose one of the levels."
        )
    return LEVELS[number]
