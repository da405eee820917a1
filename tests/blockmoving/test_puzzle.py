"""Puzzles have one right option, and nothing in their text says which one."""

from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.blockmoving.levels import LEVELS, Level
from mathcanvas_lightning.blockmoving.puzzle import Puzzle, draw_puzzle
from mathcanvas_lightning.blockmoving.rules import IllegalMoveError, Move, Stack, simulate
from mathcanvas_lightning.blockmoving.wording.explain import describe_moves
from mathcanvas_lightning.blockmoving.wording.short import show_option

NUM_PUZZLES = 1200
CHANCE, NUM_DEVIATIONS = 0.25, 3.5
"""A heuristic is at chance if its hits stay within so many standard deviations of it."""


@given(st.integers(0, 2**32), st.integers(2, 8), st.integers(1, 5), st.booleans(), st.booleans())
@settings(deadline=None)
def test_puzzles_have_one_right_option(
    seed: int, num_blocks: int, num_moves: int, swaps: bool, vertical: bool
) -> None:
    level = Level(
        min_blocks=2, max_blocks=num_blocks, num_moves=num_moves, swaps=swaps, vertical=vertical
    )
    puzzle = draw_puzzle(np.random.default_rng(seed), level)
    if puzzle is None:
        return
    right = [
        k for k, moves in puzzle.options.items() if leads_to(puzzle.initial, moves, puzzle.final)
    ]
    assert right == [puzzle.answer]
    assert sorted(puzzle.options) == ["A", "B", "C", "D"]
    assert len(set(puzzle.options.values())) == 4
    assert len(puzzle.steps) == num_moves
    stacks = [puzzle.initial, *(step.after for step in puzzle.steps)]
    assert len(set(stacks)) == len(stacks)
    assert swaps or all(step.swapped is None for step in puzzle.steps)
    assert vertical or all(step.move.direction[1] != "z" for step in puzzle.steps)


def leads_to(initial: Stack, moves: tuple[Move, ...], final: Stack) -> bool:
    try:
        return simulate(initial, moves)[-1].after == final
    except IllegalMoveError:
        return False


@cache
def _drawn(number: int) -> tuple[Puzzle, ...]:
    rng = np.random.default_rng(number)
    found: list[Puzzle] = []
    while len(found) < NUM_PUZZLES:
        puzzle = draw_puzzle(rng, LEVELS[number])
        if puzzle is not None:
            found.append(puzzle)
    return tuple(found)


def _texts(puzzle: Puzzle, number: int) -> dict[str, str]:
    if LEVELS[number].wording == "long":
        return {letter: describe_moves(moves) for letter, moves in puzzle.options.items()}
    return {letter: show_option(puzzle.initial, moves) for letter, moves in puzzle.options.items()}


def _similarity(texts: dict[str, str], letter: str) -> int:
    """Counts the words that an option shares with the others, place by place."""
    own = texts[letter].split()
    others = [text.split() for name, text in texts.items() if name != letter]
    return sum(a == b for other in others for a, b in zip(own, other, strict=False))


def _most_common_words(texts: dict[str, str], letter: str) -> int:
    counts = Counter(word for text in texts.values() for word in set(text.split()))
    return sum(counts[word] for word in texts[letter].split())


HEURISTICS = {
    "first": lambda texts, letter: -ord(letter),
    "last": lambda texts, letter: ord(letter),
    "shortest": lambda texts, letter: -len(texts[letter]),
    "longest": lambda texts, letter: len(texts[letter]),
    "most similar": _similarity,
    "least similar": lambda texts, letter: -_similarity(texts, letter),
    "most common words": _most_common_words,
    "alphabetical": lambda texts, letter: texts[letter],
}


def _assert_at_chance(num_right: float, num_puzzles: int, name: str) -> None:
    deviation = (CHANCE * (1 - CHANCE) * num_puzzles) ** 0.5
    assert abs(num_right - CHANCE * num_puzzles) < NUM_DEVIATIONS * deviation, (name, num_right)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_no_heuristic_on_the_text_beats_chance(number: int) -> None:
    for name, score in HEURISTICS.items():
        num_right = 0
        for puzzle in _drawn(number):
            texts = _texts(puzzle, number)
            num_right += max(texts, key=lambda letter: score(texts, letter)) == puzzle.answer
        _assert_at_chance(num_right, NUM_PUZZLES, name)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_a_trained_bag_of_words_stays_at_chance(number: int) -> None:
    puzzles = _drawn(number)
    options = [_texts(puzzle, number) for puzzle in puzzles]
    words = sorted({word for texts in options for text in texts.values() for word in text.split()})
    column = {word: number for number, word in enumerate(words)}

    def features(texts: dict[str, str], letter: str) -> np.ndarray:
        """Counts the words of an option and, apart from them, those of the other options."""
        row = np.zeros(2 * len(words) + 1)
        row[-1] = 1.0
        for name, text in texts.items():
            for word in text.split():
                row[column[word] + (0 if name == letter else len(words))] += 1
        return row

    half = NUM_PUZZLES // 2
    rows = np.stack([features(t, letter) for t in options[:half] for letter in t])
    labels = [letter == p.answer for p in puzzles[:half] for letter in p.options]
    ridge = rows.T @ rows + 10.0 * np.eye(rows.shape[1])
    weights = np.linalg.solve(ridge, rows.T @ np.array(labels, float))
    num_right = sum(
        max(texts, key=lambda letter: features(texts, letter) @ weights) == puzzle.answer
        for texts, puzzle in zip(options[half:], puzzles[half:], strict=True)
    )
    _assert_at_chance(num_right, NUM_PUZZLES - half, "bag of words")
