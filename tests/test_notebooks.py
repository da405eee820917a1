"""The notebooks of tools/: without outputs, and run from the first cell to the last."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "tools" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALLER = {
    "1_data_to_shards": "num_tasks = 12",
    "2_look_into_a_pack": "",
    "3_fine_tune_with_lora": "max_steps = 2",
    "4_answer_with_vllm": f"""
from mathcanvas_lightning import EchoBackend

VLLMBackend = lambda *args, **options: EchoBackend()
questions = {str(ROOT / "tools" / "questions.jsonl")!r}


def generate_responses(**options):
    from mathcanvas_lightning import generate_responses

    return generate_responses(**options | dict(backend="echo"))
""",
    "5_reason_with_drawings": "drawing_steps = 3",
    "6_does_the_drawing_help": "num_puzzles, drawing_steps = 2, 1",
}
"""Notebook -> code that makes it small, run after its first cells: parameters and imports."""
CLEAR = """
for name in [name for name in globals() if not name.startswith("_")]:
    if name not in ("In", "Out", "get_ipython", "exit", "quit", "open"):
        del globals()[name]
"""
"""Deletes the variables of the notebook before; `%reset` also deletes what new processes need."""
REAL_MODEL = "MATHCANVAS_NOTEBOOK_MODEL"


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def test_each_notebook_is_run_by_a_test() -> None:
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


def run_notebook(path: Path, change: str, manager: Any) -> None:
    """Runs a notebook in a kernel, whose variables are cleared first."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    code = [number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    notebook.cells.insert(code[1] + 1, nbformat.v4.new_code_cell(change))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(CLEAR))
    NotebookClient(notebook, km=manager, timeout=600).execute()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_notebooks_run(tmp_path: Path) -> None:
    pytest.importorskip("nbclient", reason="the extra test is not installed")
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")  # one for all: imports take most of the time
    manager.start_kernel(cwd=str(tmp_path))
    try:
        for path in NOTEBOOKS:
            run_notebook(path, SMALLER[path.stem], manager)
    finally:
        manager.shutdown_kernel(now=True)
    assert (tmp_path / "notebook_data" / "lora" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.skipif(REAL_MODEL not in os.environ, reason=f"{REAL_MODEL} names no language model")
def test_the_vllm_notebook_runs_with_a_real_engine(tmp_path: Path) -> None:
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path))
    change = f"model_path = {os.environ[REAL_MODEL]!r}\nmax_tokens = 4\n"
    change += f"questions = {str(ROOT / 'tools' / 'questions.jsonl')!r}"
    try:
        run_notebook(FOLDER / "4_answer_with_vllm.ipynb", change, manager)
    finally:
        manager.shutdown_kernel(now=True)
