"""The card beside scores: what it knows of the answers, and what it must not show."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mathcanvas_lightning.cli.main import main
from mathcanvas_lightning.evaluation.card.card import file_fingerprint
from mathcanvas_lightning.evaluation.scoring import score_responses
from mathcanvas_lightning.generation.run.provenance import command_of, git_commit, software
from tests.conftest import TRAINER_WARNINGS, write_json
from tests.generation.runs import records, run_file, write_lines

pytestmark = [pytest.mark.filterwarnings(text) for text in TRAINER_WARNINGS]


def card_of(scores: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(scores.with_name(f"{scores.stem}_card.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning calls functions that jsonargparse deprecates
def test_a_card_of_answers_of_predict(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "questions.jsonl", records(3, answer="7", api_key="hidden1234"))
    config = run_file(
        tmp_path,
        {"class_path": "mathcanvas_lightning.EchoBackend", "init_args": {"model_name": "echo"}},
        source,
        data={
            "init_args": {
                "inputs": [{"path": str(source), "output": str(tmp_path / "answers.jsonl")}],
                "prompt": {
                    "class_path": "mathcanvas_lightning.ChatPrompt",
                    "init_args": {"system_prompt": "Be brief."},
                },
            }
        },
    )
    words = ["predict", "--config", str(config), "--model.init_args.sampling.seed", "5"]
    assert main(words) == 0
    answers = tmp_path / "answers.jsonl"
    assert main(["score", "--input", str(answers), "--by", "answer", "--num_workers", "1"]) == 0
    card = card_of(tmp_path / "answers.jsonl_scores.json")
    assert card["scores"]["records"] == 3
    assert card["model"]["name"] == "echo"
    assert card["prompt"]["system_prompt"] == "Be brief."
    assert card["seed"] == card["sampling"]["seed"] == 5
    assert card["answers"] == {"file": str(answers), "fingerprint": file_fingerprint(answers)}
    assert (card["data"]["path"], card["data"]["records"]) == (str(source), 3)
    assert card["software"]["answers"] == card["software"]["scores"] == software()
    assert card["commands"] == {
        "answers": " ".join(["mathcanvas", *words]),
        "scores": f"mathcanvas score --input {answers} --by answer --num_workers 1",
    }
    page = (tmp_path / "answers.jsonl_scores_card.md").read_text()
    assert "Be brief." in page
    assert card["commands"]["answers"] in page
    assert "hidden1234" not in json.dumps(card) + page

    first = card["data"]["fingerprint"]
    write_lines(source, records(3, answer="8"))  # the prompt does not read this field
    assert main(words) == 0
    score_responses(str(answers), num_workers=1, progress=False)
    assert card_of(tmp_path / "answers.jsonl_scores.json")["data"]["fingerprint"] == first
    write_lines(source, [{**one, "query_cot": "Why?"} for one in records(3, answer="8")])
    assert main(words) == 0
    score_responses(str(answers), num_workers=1, progress=False)
    assert card_of(tmp_path / "answers.jsonl_scores.json")["data"]["fingerprint"] != first


@pytest.mark.slow
def test_a_card_of_answers_from_elsewhere(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [{"answer": "1", "model_answer": "1|2"}])
    report = score_responses(str(path), num_workers=1, progress=False)
    card = card_of(report.output)
    assert card["model"] == {"name": None, "checkpoint": None, "fingerprint": None}
    assert card["prompt"] is card["sampling"] is card["commands"]["answers"] is None
    page = (tmp_path / "a.json_scores_card.md").read_text()
    assert "| model | not known |" in page


def test_secrets_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_json(tmp_path / "a.json", [{"answer": "1", "model_answer": "1"}])
    journal = tmp_path / "a.json.journal"
    journal.mkdir()
    (journal / "about.json").write_text(
        json.dumps({"prompt": {"headers": "x-secret", "template": "Bearer abcdefgh12345678"}})
    )
    report = score_responses(str(path), num_workers=1, progress=False)
    text = json.dumps(card_of(report.output))
    assert "x-secret" not in text
    assert "abcdefgh12345678" not in text


def test_the_command_of_a_call() -> None:
    def command(**given: Any) -> str:
        return command_of("score", score_responses, given)

    assert command(input="a b.json") == "mathcanvas score --input 'a b.json'"
    # The command line gives an empty list where the default is an empty tuple.
    assert command(input="a.json", by=[]) == "mathcanvas score --input a.json"
    assert command(input="a.json", by=["x", "y"]) == "mathcanvas score --input a.json --by x y"
    assert command(input="a.json", progress=False) == "mathcanvas score --input a.json"


def test_the_commit_of_a_file(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    file = tmp_path / "module.py"
    file.write_text("1\n")
    git("init")
    assert git_commit(file) is None  # not tracked, as in a virtual environment in a repository
    git("add", "module.py")
    git("commit", "-m", "first")
    clean = git_commit(file)
    assert clean is not None
    assert len(clean) == 40
    file.write_text("2\n")
    assert git_commit(file) == f"{clean}+changes"
