"""The rules of BlockMoving, case by case and as invariants."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.blockmoving.rules import (
    DIRECTIONS,
    IllegalMoveError,
    Move,
    Stack,
    apply_move,
)
from mathcanvas_lightning.blockmoving.wording.explain import describe_step


def stack(columns: dict[tuple[int, int], tuple[int, ...]], size: int = 3) -> Stack:
    built = Stack.empty(size)
    for (x, y), blocks in columns.items():
        built = built.with_column(x, y, blocks)
    return built


def test_empty_target_takes_the_block() -> None:
    step = apply_move(stack({(0, 0): (0,)}), Move((0, 0, 0), "+x"))
    assert step.after == stack({(1, 0): (0,)})
    assert step.fell == {}
    assert step.swapped is None
    assert "empty" in describe_step(step)


def test_occupied_target_swaps() -> None:
    step = apply_move(stack({(0, 0): (0, 1), (0, 1): (2,)}), Move((0, 0, 0), "+y"))
    assert step.after == stack({(0, 0): (2, 1), (0, 1): (0,)})
    assert step.swapped == 2
    assert "swap" in describe_step(step)


def test_swap_up_and_down() -> None:
    for cell, direction in (((0, 0, 0), "+z"), ((0, 0, 1), "-z")):
        step = apply_move(stack({(0, 0): (0, 1, 2)}), Move(cell, direction))
        assert step.after == stack({(0, 0): (1, 0, 2)})


def test_what_loses_its_support_falls() -> None:
    step = apply_move(stack({(0, 0): (0, 1, 2)}), Move((0, 0, 0), "+x"))
    assert step.after == stack({(0, 0): (1, 2), (1, 0): (0,)})
    assert step.fell == {1: ((0, 0, 1), (0, 0, 0)), 2: ((0, 0, 2), (0, 0, 1))}
    assert describe_step(step).count("falls") == 2


def test_the_moved_block_falls_too() -> None:
    step = apply_move(stack({(0, 0): (0, 1, 2), (1, 0): (3,)}), Move((0, 0, 2), "+x"))
    assert step.after == stack({(0, 0): (0, 1), (1, 0): (3, 2)})
    assert step.fell == {2: ((1, 0, 2), (1, 0, 1))}


def test_up_into_nothing_falls_back() -> None:
    before = stack({(0, 0): (0, 1)})
    step = apply_move(before, Move((0, 0, 1), "+z"))
    assert step.after == before
    assert step.fell == {1: ((0, 0, 2), (0, 0, 1))}


@pytest.mark.parametrize(
    ("cell", "direction"),
    [((1, 1, 0), "+x"), ((0, 0, 1), "+x"), ((0, 0, 0), "-x"), ((0, 0, 0), "-z"), ((5, 0, 0), "-x")],
)
def test_illegal_moves(cell: tuple[int, int, int], direction: str) -> None:
    with pytest.raises(IllegalMoveError):
        apply_move(stack({(0, 0): (0,)}), Move(cell, direction))


@given(st.integers(0, 2**32), st.integers(2, 9), st.integers(2, 4))
def test_no_move_loses_or_floats_a_block(seed: int, num_blocks: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    current = Stack.empty(size)
    for block in range(min(num_blocks, size * size)):
        x, y = rng.integers(size, size=2)
        if len(current.column(x, y)) < size:
            current = current.with_column(int(x), int(y), (*current.column(x, y), block))
    blocks = sorted(block for _, block in current)
    for _ in range(20):
        cell = tuple(int(c) for c in rng.integers(size, size=3))
        try:
            step = apply_move(current, Move(cell, str(rng.choice(list(DIRECTIONS)))))
        except IllegalMoveError:
            continue
        assert sorted(block for _, block in step.after) == blocks
        assert all(len(column) <= size for column in step.after.columns)
        before, after = current.cells(), step.after.cells()
        moved = {block for block in blocks if before[block] != after[block]}
        assert moved <= {step.block, step.swapped, *step.fell}
        current = step.after
