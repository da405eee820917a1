"""The notebooks of tools/: without outputs, and run from the first cell to the last."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, run_python

FOLDER = ROOT / "tools" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
REAL_MODEL = "MATHCANVAS_NOTEBOOK_MODEL"


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def test_each_notebook_is_run_by_a_test() -> None:
    pytest.importorskip("nbclient", reason="the extra test is not installed")
    from tests.notebook_runs import SMALLER

    assert [path.stem for path in NOTEBOOKS] == list(SMALLER)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path: Path) -> None:
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in code] == [[]] * len(code)
    assert {cell["execution_count"] for cell in code} == {None}
    assert code[0]["metadata"]["tags"] == ["parameters"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_notebooks_lead_somewhere(path: Path) -> None:
    text = "".join(line for cell in cells(path) for line in cell["source"])
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (FOLDER / target).is_file(), target


def run_notebooks(folder: Path, *words: str) -> None:
    done = run_python("-m", "tests.notebook_runs", folder, *words, timeout=500)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.mark.slow
def test_notebooks_run(tmp_path: Path) -> None:
    pytest.importorskip("nbclient", reason="the extra test is not installed")
    run_notebooks(tmp_path)
    assert (tmp_path / "notebook_data" / "lora" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.skipif(REAL_MODEL not in os.environ, reason=f"{REAL_MODEL} names no language model")
def test_the_vllm_notebook_runs_with_a_real_engine(tmp_path: Path) -> None:
    change = f"model_path = {os.environ[REAL_MODEL]!r}\nmax_tokens = 4\n"
    change += f"questions = {str(ROOT / 'tools' / 'questions.jsonl')!r}"
    run_notebooks(tmp_path, "4_answer_with_vllm", change)
