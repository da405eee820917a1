"""Scores the steps of answers to BlockMoving puzzles: what they state and what they draw."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mathcanvas_lightning.blockmoving.checking import TASK_FIELDS, chances, check_answer
from mathcanvas_lightning.common.progress import progress_bar
from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.evaluation.credit import wilson_interval
from mathcanvas_lightning.evaluation.verdicts import ScoredRecord
from mathcanvas_lightning.generation.run.answer_folders import RESULT_FILE, folder_name

ANSWER = "answer"
"""Check of the final answer; the others are those of `blockmoving.checking`."""


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
class PuzzleFiles:
    """Folders that the checks read."""

    tasks: Path
    """Folder that `generate_blockmoving` wrote."""
    answers: Path
    """Folder that `ReasoningFolders` wrote."""


def check_puzzles(
    scored: Sequence[ScoredRecord], files: PuzzleFiles, *, progress: bool
) -> dict[str, CheckScore]:
    """Checks the first answer to each record against its puzzle.

    Args:
        scored: Scored puzzles; their ids are names of folders of puzzles.
        files: Puzzles and answers.
        progress: Show a progress bar.

    Returns:
        Check -> score; answers without a folder count as wrong.

    Raises:
        InputError: If a puzzle is missing.
    """
    passed: defaultdict[str, list[bool]] = defaultdict(list)
    chance: defaultdict[str, float] = defaultdict(float)
    with progress_bar("Reading drawings", len(scored), show=progress) as advance:
        for one in scored:
            uid = one.record.uid or ""
            task = read_task(files.tasks, uid)
            texts, drawings = _read_steps(files.answers / folder_name(uid, 1))
            checks = {ANSWER: one.responses[0].verdict == "right"}
            checks |= check_answer(task, texts, drawings)
            for name, is_right in checks.items():
                passed[name].append(is_right)
            for name, share in chances(task).items():
                chance[name] += share
            advance(1, "")
    return {
        name: CheckScore(
            num_right=sum(verdicts),
            num_answers=len(verdicts),
            interval=wilson_interval(sum(verdicts) / len(verdicts), len(verdicts)),
            chance=chance[name] / len(verdicts),
        )
        for name, verdicts in passed.items()
    }


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
