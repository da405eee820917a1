"""The commands of the README and its guides, run as they are written, in a copy of the files."""

import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from mathcanvas_lightning.errors import ConfigError, StorageError
from tests.conftest import ROOT, read_jsonl
from tests.generation.engine import ONE_GIB, ONE_PROCESS, made_smollm2
from tests.warm import warm_python, write_warm_command

GUIDES = ("README.md", "tools/README.md", "configs/README.md")
"""In the order that they are run: later ones use what earlier ones made."""
PAGES = (*GUIDES, ".github/CONTRIBUTING.md")
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?```(bash|python)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
QUICK = {"STEPS": "85", "PUZZLES": "800", "HELD_OUT": "32"}
"""The quickstart at reduced length: until its first validation, when it reads puzzles."""
MAX_README_LINES, MAX_IMAGE_BYTES = 120, 150_000


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """A checkout with `.venv` and the language model; Python starts warm (see `tests/warm.py`)."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("needs a git checkout")
    clone = tmp_path / "clone"
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/golden"):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    with contextlib.suppress(ConfigError, StorageError):  # otherwise the quickstart makes it
        shutil.copytree(made_smollm2(), clone / "demo" / "smollm2")
    python = _make_ready(clone)
    with warm_python(python, clone, _environment(clone)) as warm:
        write_warm_command(clone / ".venv" / "bin" / "python", python, clone, warm)
        yield clone


def _make_ready(clone: Path) -> Path:
    """A .venv with the packages of this one, marked as up to date: nothing is installed."""
    venv.create(clone / ".venv", symlinks=True)
    (site,) = (clone / ".venv").glob("lib/python*/site-packages")
    (site / "this.pth").write_text(f"{clone}\n{sysconfig.get_path('purelib')}\n")
    command = clone / ".venv" / "bin" / "mathcanvas"  # as installing the package makes it
    command.write_text('#!/bin/sh\nexec python -m mathcanvas_lightning "$@"\n')
    command.chmod(0o755)
    mark = ". tools/env.sh; cksum setup.cfg pyproject.toml tools/env.sh >.venv/.ready-$(vllm_extra)"
    subprocess.run(["bash", "-c", mark], cwd=clone, check=True)
    python = clone / ".venv" / "bin" / "cold_python"
    python.symlink_to(Path(sys.executable).resolve())
    return python


def _environment(clone: Path) -> dict[str, str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith("PYTEST_")
    }
    path = f"{clone}/.venv/bin:{environment['PATH']}"  # as activating it once does
    return environment | QUICK | ONE_PROCESS | ONE_GIB | {"PATH": path}


@pytest.mark.slow
@pytest.mark.timeout(4800)
def test_commands_run_as_written(clone: Path) -> None:
    blocks = [block for page in GUIDES for block in BLOCK.findall((clone / page).read_text())]
    assert len(blocks) >= 20
    for not_run, language, code in blocks:
        if not not_run:
            run_block(clone, language, code)
    fall_clearly(clone / "demo" / "run" / "metrics.csv")
    beats_chance(clone / "demo" / "reasoning.parquet_scores.json")
    assert (clone / "demo" / "exported" / "ema.safetensors").is_file()
    assert (clone / "demo" / "shards.html").read_text().count("data:image/") >= 10
    assert (clone / "demo" / "blocks" / "train" / "train_parquet_info.json").is_file()
    num_questions = len(read_jsonl(clone / "tools" / "questions.jsonl"))
    for answers in ("answers.jsonl", "tool_answers.jsonl"):
        said = read_jsonl(clone / "demo" / answers)
        assert len(said) == num_questions
        assert all(one["model_answer"] for one in said)
    for folder in ("reasoning", "reasoned"):
        results = list((clone / "demo" / folder).glob("*/reasoning_result.json"))
        assert len(results) >= 10
        counts = [json.loads(path.read_text())["summary"] for path in results]
        assert sum(one["text_steps"] for one in counts) >= len(results)
        page = (clone / "demo" / f"{folder}.html").read_text()
        assert page.count("data:image/") > len(results)
        drawn = list((clone / "demo" / folder).glob("*/images/reasoning_image_*.png"))
        assert len(drawn) == sum(one["image_steps"] for one in counts)
    assert "Curves of the run" in (clone / "demo" / "reasoning.html").read_text()
    assert list((clone / "demo" / "run").rglob("answers/puzzles/step_*.html"))
    for answers in ("answers", "tool_answers"):
        scores = json.loads((clone / "demo" / f"{answers}.jsonl_scores.json").read_text())
        assert len(scores["records"]) == num_questions
    assert (clone / "demo" / "puzzles" / "task_19" / "composite.png").is_file()


def run_block(clone: Path, language: str, code: str) -> None:
    """Runs one block of a page and prints its time."""
    command = ["bash", "-euo", "pipefail", "-c", code]
    if language == "python":
        (clone / "demo" / "example.py").write_text(code)
        command = [".venv/bin/python", "demo/example.py"]
    started = time.monotonic()
    done = subprocess.run(
        command,
        cwd=clone,
        env=_environment(clone),
        capture_output=True,
        text=True,
        timeout=2400,
        check=False,
    )
    print(f"--- {time.monotonic() - started:.0f} s\n{code}\n{done.stdout[-3000:]}")
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def fall_clearly(curves: Path) -> None:
    """Both losses of the demo fall until its last validation."""
    with curves.open() as file:
        rows = list(csv.DictReader(file))
    for name in ("ce", "mse"):
        first = next(float(v) for row in rows if (v := row[f"train/{name}"]))
        *_, last = (float(v) for row in rows if (v := row[f"val/puzzles/{name}"]))
        assert last < 0.6 * first, (name, first, last)


def beats_chance(scores: Path) -> None:
    """Held-out pictures are read far more often than by chance; solving takes more steps."""
    checks = json.loads(scores.read_text())["puzzles"]
    for name in ("before", "after"):
        assert checks[name]["interval"][0] > checks[name]["chance"] + 0.05, (name, checks[name])


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in LINK.findall(without_code((ROOT / page).read_text())):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if target.suffix == ".png":
            assert target.stat().st_size < MAX_IMAGE_BYTES, link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def without_blocks(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", without_blocks(text))


def anchors(text: str) -> set[str]:
    """Headings as GitHub names them in links; lines of code are no headings."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", found.lower()).replace(" ", "-") for found in headings}


@pytest.mark.parametrize("folder", ["fit", "trainer"])
def test_every_configuration_is_in_its_guide(folder: str) -> None:
    guide = (ROOT / "configs" / "README.md").read_text()
    for path in sorted((ROOT / "configs" / folder).glob("*.yaml")):
        assert f"`{path.name}`" in guide, path.name
