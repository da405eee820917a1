"""Answers to puzzles: where their chains go wrong, and whether right drawings go with answers."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mathcanvas_lightning import generate_blockmoving, write_report
from mathcanvas_lightning.cli.main import main
from mathcanvas_lightning.evaluation.score_files import iter_scored
from mathcanvas_lightning.evaluation.scoring import score_responses

NUM = 4


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Answers to puzzles of two moves; each has one more fault than the one before.

    0: none. 1: the last drawing is wrong, not the answer. 2: a state in words is wrong, both
    drawings and the answer. 3: no folder with steps, and no answer.
    """
    tasks = tmp_path / "tasks"
    generate_blockmoving(str(tasks), num_tasks=NUM, level=2, num_workers=0, progress=False)
    found = json.loads((tasks / "enhanced_cot_cleaned.json").read_text())
    lines = []
    for number, record in enumerate(found):
        uid = f"task_{record['task_id']}"
        task = json.loads((tasks / uid / "data.json").read_text())
        _, *parts = re.split(r"<image>(.*?)</image>", record["cot_text"])
        letter = task["answer"] if number < 2 else "ABCD"["ABCD".index(task["answer"]) - 1]
        texts, pictures = parts[1::2], parts[2::2]
        if number == 1:
            pictures[1] = pictures[0]
        if number == 2:
            pictures = [f"{uid}/composite.png"] * 2
            texts = [re.sub(r"(Step 1: \w+\.)[^.]*\.", r"\1 white 222.", text) for text in texts]
        if number < 3:
            write_steps(tmp_path / "answers" / uid, texts, [tasks / one for one in pictures])
        response = f"The answer is {letter}." if number < 3 else None
        lines.append(
            {"id": uid, "query_cot": "?", "answer": task["answer"], "model_answer": response}
        )
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_steps(folder: Path, texts: list[str], pictures: list[Path]) -> None:
    (folder / "images").mkdir(parents=True)
    steps: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        steps.append({"type": "text", "content": text})
        if number < len(pictures):
            shutil.copy(pictures[number], folder / "images" / f"{number}.png")
            steps.append({"type": "image", "content": f"images/{number}.png"})
    (folder / "reasoning_result.json").write_text(json.dumps({"reasoning_steps": steps}))


def test_where_answers_go_wrong(answers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = str(answers.parent / "tasks")
    report = score_responses(str(answers), puzzles=tasks, num_workers=1, progress=False)
    chain = report.chain
    assert chain is not None

    def counts(scores: Any) -> dict[str, tuple[int, int]]:
        return {name: (one.num_right, one.num_answers) for name, one in scores.items()}

    assert counts(chain.drawings) == {"drawing 1": (2, NUM), "drawing 2": (1, NUM)}
    assert counts(chain.first_errors) == {
        "none": (1, NUM),
        "drawing 2": (1, NUM),
        "state 1": (1, NUM),
        "before": (1, NUM),
    }
    assert counts(chain.answers) == {"all drawings right": (1, 1), "a drawing wrong": (1, 3)}
    low, high = chain.answers["a drawing wrong"].interval
    assert low < 1 / 3 < high
    lines = [line.responses[0].chain for line in iter_scored(report.output)]
    assert [line and line.drawings for line in lines] == [
        (True, True),
        (True, False),
        (False, False),
        (False, False),
    ]
    page = write_report(str(answers)).path.read_text()
    assert "Drawings, read back: right, wrong. First error: drawing 2." in page
    assert "First error: none." in page
    assert main(["score", "--input", str(answers), "--puzzles", tasks, "--num_workers", "1"]) == 0
    assert "first error: state 1" in capsys.readouterr().out


def test_an_answer_without_puzzles_has_no_chain(answers: Path) -> None:
    report = score_responses(str(answers), num_workers=1, progress=False)
    assert report.chain is None
    assert all(line.responses[0].chain is None for line in iter_scored(report.output))
    assert "read back" not in write_report(str(answers)).path.read_text()
