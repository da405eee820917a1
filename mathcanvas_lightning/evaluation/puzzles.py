"""Scores the steps of answers to BlockMoving puzzles: what they state and what they draw."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from mathcanvas_lightning.blockmoving.checking import (
    TASK_FIELDS,
    chances,
    check_answer,
    stack_chance,
)
from mathcanvas_lightning.common.paths import natural_key
from mathcanvas_lightning.common.progress import progress_bar
from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.evaluation.credit import wilson_interval
from mathcanvas_lightning.evaluation.verdicts import ChainVerdict, ScoredRecord
from mathcanvas_lightning.generation.run.answer_folders import RESULT_FILE, folder_name

ANSWER = "answer"
"""Check of the final answer; the others are those of `blockmoving.checking`."""
NO_ERROR = "none"
"""Place of the first error of an answer without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckScore:
    """Share of answers that pass a check."""

    num_right: int
    num_answers: int
    interval: tuple[float, float]
    """Wilson's 95 % interval."""
    chance: float
    """Share that uniform guesses would reach."""

    @property
    def share(self) -> float:
        """Share of the answers that are right."""
        return self.num_right / self.num_answers if self.num_answers else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainScore:
    """Where answers go wrong, and whether right drawings go with right answers."""

    drawings: Mapping[str, CheckScore]
    """Step, such as "drawing 1" -> share of right drawings, of the answers to puzzles that have
    this step."""
    first_errors: Mapping[str, CheckScore]
    """What is wrong first, such as "state 1", or "none" -> share of the answers; `num_right` counts
    these answers."""
    answers: Mapping[str, CheckScore]
    """"all drawings right" and "a drawing wrong" -> share of right answers among these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PuzzleScores:
    """Scores of the steps of answers."""

    records: Sequence[ScoredRecord]
    """The records, with the verdict on the chain of their first answer."""
    checks: Mapping[str, CheckScore]
    """Check -> score."""
    chain: ChainScore


@dataclass(frozen=True, slots=True, kw_only=True)
class PuzzleFiles:
    """Folders that the checks read."""

    tasks: Path
    """Folder that `generate_blockmoving` wrote."""
    answers: Path
    """Folder that `ReasoningFolders` wrote."""


def check_puzzles(
    scored: Sequence[ScoredRecord], files: PuzzleFiles, *, progress: bool
) -> PuzzleScores:
    """Checks the first answer to each record against its puzzle.

    Args:
        scored: Scored puzzles; their ids are names of folders of puzzles.
        files: Puzzles and answers.
        progress: Show a progress bar.

    Returns:
        The scores; answers without a folder count as wrong.

    Raises:
        InputError: If a puzzle is missing.
    """
    checks: defaultdict[str, list[tuple[bool, float]]] = defaultdict(list)
    records: list[ScoredRecord] = []
    guesses: list[float] = []
    with progress_bar("Reading drawings", len(scored), show=progress) as advance:
        for one in scored:
            uid = one.record.uid or ""
            task = read_task(files.tasks, uid)
            found = check_answer(task, *_read_steps(files.answers / folder_name(uid, 1)))
            is_right, chance = one.responses[0].verdict == "right", chances(task)
            for name, passes in ({ANSWER: is_right} | dict(found.checks)).items():
                checks[name].append((passes, chance[name]))
            chain = ChainVerdict(
                drawings=found.drawings,
                first_error=found.first_error or (None if is_right else ANSWER),
            )
            first, *others = one.responses
            records.append(replace(one, responses=(replace(first, chain=chain), *others)))
            guesses.append(stack_chance(task))
            advance(1, "")
    return PuzzleScores(
        records=records,
        checks={name: _share(results) for name, results in checks.items()},
        chain=_chain_score(records, guesses),
    )


def _share(results: Sequence[tuple[bool, float]]) -> CheckScore:
    """The score of a check.

    Args:
        results: For each answer whether it passes, and the chance of a guess.
    """
    count, num_right = len(results), sum(passes for passes, _ in results)
    return CheckScore(
        num_right=num_right,
        num_answers=count,
        interval=wilson_interval(num_right / max(1, count), count),
        chance=sum(chance for _, chance in results) / max(1, count),
    )


def _chain_score(records: Sequence[ScoredRecord], guesses: Sequence[float]) -> ChainScore:
    """The scores of the chains.

    Args:
        records: Records with verdicts on their chains.
        guesses: For each record the chance that a guessed stack is right.
    """
    by_step: defaultdict[str, list[tuple[bool, float]]] = defaultdict(list)
    by_drawings: dict[bool, list[tuple[bool, float]]] = {True: [], False: []}
    errors: Counter[str] = Counter()
    for one, guess in zip(records, guesses, strict=True):
        response = one.responses[0]
        assert response.chain is not None
        for number, is_right in enumerate(response.chain.drawings, start=1):
            by_step[f"drawing {number}"].append((is_right, guess))
        errors[response.chain.first_error or NO_ERROR] += 1
        by_drawings[all(response.chain.drawings)].append((response.verdict == "right", 0.0))
    count = len(records)
    return ChainScore(
        drawings={name: _share(by_step[name]) for name in sorted(by_step, key=natural_key)},
        first_errors={
            name: _share([(True, 0.0)] * number + [(False, 0.0)] * (count - number))
            for name, number in errors.most_common()
        },
        answers={
            "all drawings right": _share(by_drawings[True]),
            "a drawing wrong": _share(by_drawings[False]),
        },
    )


def read_task(tasks: Path, uid: str) -> Mapping[str, Any]:
    """Reads a puzzle.

    Args:
        tasks: Folder that `generate_blockmoving` wrote.
        uid: Name of the puzzle's folder.

    Raises:
        InputError: If there is no such puzzle.
    """
    path = tasks / uid / "data.json"
    try:
        task: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if missing := TASK_FIELDS - task.keys():
            raise ValueError(f"no {', '.join(sorted(missing))}")
        return task
    except (OSError, ValueError) as error:
        raise InputError(
            str(path),
            found=f"{type(error).__name__}: {error}",
            wanted="the puzzle of the record",
            remedy="Give the folder of generate-blockmoving from which the records were converted.",
        ) from None


def _read_steps(folder: Path) -> tuple[list[str], list[Image.Image]]:
    """Reads the texts and drawings of an answer; none if it has no folder."""
    texts: list[str] = []
    drawings: list[Image.Image] = []
    path = folder / RESULT_FILE
    if not path.is_file():
        return texts, drawings
    for step in json.loads(path.read_text(encoding="utf-8"))["reasoning_steps"]:
        if step["type"] == "text":
            texts.append(step["content"])
        else:
            with Image.open(folder / step["content"]) as picture:
                drawings.append(picture.convert("RGB"))
    return texts, drawings
