"""The README's commands, run as they are written, in a copy of the tracked files."""

import csv
import json
import os
import re
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT, read_jsonl

BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?```(bash|python)\n(.*?)```", re.DOTALL)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
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
    _make_ready(clone)
    return clone


def _make_ready(clone: Path) -> None:
    """A .venv that has what this one has, and is marked as up to date: nothing is installed."""
    venv.create(clone / ".venv", symlinks=True)
    (site,) = (clone / ".venv").glob("lib/python*/site-packages")
    (site / "this.pth").write_text(f"{clone}\n{sysconfig.get_path('purelib')}\n")
    command = clone / ".venv" / "bin" / "mathcanvas"  # as installing the package makes it
    command.write_text('#!/bin/sh\nexec python -m mathcanvas_lightning "$@"\n')
    command.chmod(0o755)
    mark = ". tools/env.sh; cksum setup.cfg pyproject.toml tools/env.sh >.venv/.ready-$(vllm_extra)"
    subprocess.run(["bash", "-c", mark], cwd=clone, check=True)


@pytest.mark.timeout(900)
def test_commands_run_as_written(clone: Path) -> None:
    blocks = BLOCK.findall((clone / "README.md").read_text())
    assert len(blocks) >= 6
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    path = f"{clone}/.venv/bin:{environment['PATH']}"  # as activating it once does
    for not_run, language, code in blocks:
        if not_run:
            continue
        command = ["bash", "-euo", "pipefail", "-c", code]
        if language == "python":
            (clone / "demo" / "example.py").write_text(code)
            command = [".venv/bin/python", "demo/example.py"]
        done = subprocess.run(
            command,
            cwd=clone,
            env=environment | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    fall_clearly(clone / "demo" / "run" / "curves" / "version_0" / "metrics.csv")
    assert (clone / "demo" / "exported" / "ema.safetensors").is_file()
    assert (clone / "demo" / "shards.html").stat().st_size > 100_000
    assert (clone / "demo" / "blocks" / "train" / "train_parquet_info.json").is_file()
    for answers in ("answers.jsonl", "tool_answers.jsonl"):
        said = read_jsonl(clone / "demo" / answers)
        assert len(said) == 32
        assert all(one["model_answer"] for one in said)
    for folder in ("reasoning", "reasoned"):
        results = list((clone / "demo" / folder).glob("*/reasoning_result.json"))
        assert len(results) >= 10
        told = [json.loads(path.read_text())["summary"] for path in results]
        assert sum(one["text_steps"] for one in told) >= len(results)
        page = (clone / "demo" / f"{folder}.html").read_text()
        assert page.count("data:image/") > len(results)
        drawn = list((clone / "demo" / folder).glob("*/images/reasoning_image_*.png"))
        assert len(drawn) == sum(one["image_steps"] for one in told)
    scores = json.loads((clone / "demo" / "answers_scores.json").read_text())
    assert len(scores["records"]) == 32
    assert (clone / "demo" / "puzzles" / "task_19" / "composite.png").is_file()


def fall_clearly(curves: Path) -> None:
    """Both losses of the demo, between its first and its last validation."""
    with curves.open() as file:
        rows = list(csv.DictReader(file))
    for name in ("ce", "mse"):
        values = [float(v) for row in rows if (v := row[f"val/blockmoving_test/{name}"])]
        assert values[-1] < 0.8 * values[0], (name, values)
