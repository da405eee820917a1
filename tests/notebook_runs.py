"""Runs notebooks of tools/ in one kernel: imports take most of the time.

This is a separate process: pytest takes sockets that Jupyter closes late for faults of a test.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from tests.conftest import ROOT

FOLDER = ROOT / "tools" / "notebooks"
SMALLER = {
    "1_data_to_shards": "num_tasks = 12",
    "2_look_into_a_pack": "",
    "3_fine_tune_with_lora": "max_steps = 5",
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


def run_notebook(path: Path, change: str, manager: Any) -> None:
    """Runs a notebook in a kernel, whose variables are cleared first."""
    notebook = nbformat.read(path, as_version=4)
    code = [number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    notebook.cells.insert(code[1] + 1, nbformat.v4.new_code_cell(change))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(CLEAR))
    NotebookClient(notebook, km=manager, timeout=400).execute()


def main(folder: str, names: list[str], change: str | None) -> None:
    """Runs notebooks in a folder; a change replaces the one that makes them small."""
    with kernel(folder) as manager:
        for name in names or SMALLER:
            text = SMALLER[name] if change is None else change
            run_notebook(FOLDER / f"{name}.ipynb", text, manager)


@contextmanager
def kernel(folder: str) -> Iterator[KernelManager]:
    """Starts a kernel that works in a folder.

    It listens at files. Ports would be chosen seconds before it listens, and another test could
    take one meanwhile.
    """
    with TemporaryDirectory() as sockets:
        file = f"{sockets}/kernel.json"
        manager = KernelManager(kernel_name="python3", transport="ipc", connection_file=file)
        manager.start_kernel(cwd=folder)
        try:
            yield manager
        finally:
            manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:3], sys.argv[3] if len(sys.argv) > 3 else None)
