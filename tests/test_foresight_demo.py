"""The stages of tools/foresight_demo.sh fit together: each reads what an earlier one wrote."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mathcanvas_lightning.cli.main import main
from tests.conftest import ROOT

RECORD = """#!/bin/sh
{ for word in "$(basename "$0")" "$@"; do printf '%s\\n' "$word"; done; echo; } >>commands.txt
"""
OUTPUT = re.compile(r"(?:output: ?|--output\n|default_root_dir(?:: |\n))(demo/[\w/.]+)")
PLACE = re.compile(r"demo/foresight/[\w/.]+")


@pytest.fixture
def commands(tmp_path: Path) -> list[list[str]]:
    """The commands of the script at reduced length, recorded instead of run."""
    for name in ("tools/foresight_demo.sh", "tools/env.sh", "setup.cfg", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    programs = tmp_path / "programs"
    for path in (programs / "python", programs / "mathcanvas"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(RECORD)
        path.chmod(0o755)
    (tmp_path / "demo" / "foresight").mkdir(parents=True)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    mark = ". tools/env.sh; cksum setup.cfg pyproject.toml tools/env.sh >.venv/.ready-"
    subprocess.run(["bash", "-c", mark], cwd=tmp_path, check=True)
    subprocess.run(
        ["bash", "tools/foresight_demo.sh"],
        cwd=tmp_path,
        env={
            **os.environ,
            "ROWS": "4",
            "HELD_OUT": "3",
            "STEPS": "1",
            "PATH": f"{programs}:{os.environ['PATH']}",
        },
        check=True,
        capture_output=True,
    )
    recorded = (tmp_path / "commands.txt").read_text().strip().split("\n\n")
    return [command.split("\n") for command in recorded]


@pytest.mark.slow
def test_each_stage_reads_what_an_earlier_one_wrote(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made: set[str] = set()
    for program, *words in commands:
        name = words.pop(0) if program == "mathcanvas" else Path(words.pop(0)).stem
        if name in ("generate_blockmoving", "convert_cot_to_parquet"):
            assert main([name.replace("_", "-"), *words, "--num_workers", "0"]) == 0
            continue
        if name == "-":  # leaves out puzzles that were trained
            shutil.copy(words[0], words[-1])
            continue
        if name == "make_tiny_bagel":
            assert main(["make-bagel", *words]) == 0
            continue
        text = "\n".join(words)
        if name == "fit":
            text += Path(words[words.index("--config") + 1]).read_text()
        places, outputs = set(PLACE.findall(text)), set(OUTPUT.findall(text))
        missing = {p for p in places - outputs - made if not Path(p).exists()}
        assert not missing, (name, words)
        made |= outputs
        made |= {f"{output}/checkpoints/last.ckpt" for output in outputs if name == "fit"}
        made |= {f"{p}_scores.json" for p in places if name == "score_responses"}
    names = ("drawn", "plain", "suppressed")
    answers = {f"{part}_{n}_{k}" for part in ("test", "seen") for n in names for k in "1234"}
    assert {f"demo/foresight/answers/{name}.parquet_scores.json" for name in answers} <= made
