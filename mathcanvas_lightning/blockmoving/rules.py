"""The rules of BlockMoving, as a pure simulation.

A move shifts one block by one unit along an axis. An empty target takes it, an occupied one swaps.
Nothing floats: what has lost its support falls until something carries it. So between moves every
column is filled from the ground without a gap, and a stack is its columns.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Cell = tuple[int, int, int]
"""x, y, z, each from 0; z is the height."""

DIRECTIONS: Mapping[str, Cell] = {
    "+x": (1, 0, 0),
    "-x": (-1, 0, 0),
    "+y": (0, 1, 0),
    "-y": (0, -1, 0),
    "+z": (0, 0, 1),
    "-z": (0, 0, -1),
}


@dataclass(frozen=True, slots=True)
class Move:
    """Shift the block in a cell by one unit."""

    cell: Cell
    direction: str
    """A key of `DIRECTIONS`."""

    @property
    def target(self) -> Cell:
        """The cell it is shifted to."""
        (x, y, z), (dx, dy, dz) = self.cell, DIRECTIONS[self.direction]
        return x + dx, y + dy, z + dz

    def __str__(self) -> str:
        return f"{show_cell(self.cell)} {self.direction}"


class IllegalMoveError(Exception):
    """There is no block to move, or the target is outside the board."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Blocks on a board of size x size columns, at most size high."""

    size: int
    columns: tuple[tuple[int, ...], ...]
    """Block numbers from the ground up, of column (x, y) at x * size + y."""

    @classmethod
    def empty(cls, size: int) -> "Stack":
        """A board without blocks."""
        return cls(size, ((),) * (size * size))

    def column(self, x: int, y: int) -> tuple[int, ...]:
        """Block numbers of a column from the ground up."""
        return self.columns[x * self.size + y]

    def with_column(self, x: int, y: int, blocks: tuple[int, ...]) -> "Stack":
        """The same stack but for one column."""
        index = x * self.size + y
        return Stack(self.size, (*self.columns[:index], blocks, *self.columns[index + 1 :]))

    def at(self, cell: Cell) -> int | None:
        """The block in a cell, if any."""
        column = self.column(cell[0], cell[1])
        return column[cell[2]] if cell[2] < len(column) else None

    def __iter__(self) -> Iterator[tuple[Cell, int]]:
        """Cells and their blocks, by x, y, z."""
        for index, column in enumerate(self.columns):
            x, y = divmod(index, self.size)
            for z, block in enumerate(column):
                yield (x, y, z), block

    def cells(self) -> dict[int, Cell]:
        """Block -> its cell."""
        return {block: cell for cell, block in self}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A move and its result."""

    move: Move
    block: int
    """The block that was shifted."""
    swapped: int | None
    """The block it changed places with, if any."""
    fell: Mapping[int, tuple[Cell, Cell]]
    """Blocks that then fell: block -> from where, to where."""
    after: Stack
    """The stack at rest again."""


def apply_move(stack: Stack, move: Move) -> Step:
    """Makes one move.

    Args:
        stack: At rest.
        move: Any move.

    Returns:
        The move with its result.

    Raises:
        IllegalMoveError: If there is no block to move, or the target is outside the board.
    """
    block = stack.at(move.cell) if _on_board(stack, move.cell) else None
    if block is None:
        raise IllegalMoveError(f"no block at {show_cell(move.cell)}")
    if not _on_board(stack, move.target):
        raise IllegalMoveError(f"{show_cell(move.target)} is outside the board")
    x, y, z = move.cell
    tx, ty, tz = move.target
    swapped = stack.at(move.target)
    if swapped is not None:
        source = stack.column(x, y)
        after = stack.with_column(x, y, (*source[:z], swapped, *source[z + 1 :]))
        target = after.column(tx, ty)
        after = after.with_column(tx, ty, (*target[:tz], block, *target[tz + 1 :]))
        return Step(move=move, block=block, swapped=swapped, fell={}, after=after)
    source = stack.column(x, y)
    after = stack.with_column(x, y, source[:z] + source[z + 1 :])
    target = after.column(tx, ty)
    after = after.with_column(tx, ty, (*target, block))
    shifted = {b: (x, y, z + 1 + k) for k, b in enumerate(source[z + 1 :])}
    # A block that is shifted straight up into an empty cell falls back to its place. After other
    # moves, the blocks that were above it fall by one cell.
    shifted[block] = move.target
    landed = after.cells()
    fell = {b: (cell, landed[b]) for b, cell in shifted.items() if landed[b] != cell}
    return Step(move=move, block=block, swapped=None, fell=fell, after=after)


def simulate(stack: Stack, moves: tuple[Move, ...]) -> list[Step]:
    """Makes moves one after the other.

    Raises:
        IllegalMoveError: If one of them can't be made.
    """
    steps = []
    for move in moves:
        steps.append(apply_move(stack, move))
        stack = steps[-1].after
    return steps


def show_cell(cell: Cell) -> str:
    """`(x,y,z)`."""
    return f"({cell[0]},{cell[1]},{cell[2]})"


def _on_board(stack: Stack, cell: Cell) -> bool:
    return all(0 <= coordinate < stack.size for coordinate in cell)
