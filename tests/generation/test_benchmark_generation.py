"""The benchmark runs from its documented command and writes figures; no speed is asserted."""

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import RunTool

pytestmark = pytest.mark.slow


@pytest.mark.skipif(torch.cuda.is_available(), reason="measured by hand there")
def test_generation_benchmark(tmp_path: Path, run_tool: RunTool) -> None:
    done = run_tool(
        "benchmark_generation.py",
        *("--preset", "tiny", "--batch_sizes", "1", "2", "--text_tokens", "3"),
        *("--timesteps", "5", "--image_px", "32", "--plain_problems", "1", "--repeats", "1"),
        *("--json", tmp_path / "figures.json"),
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["agreement_levels"] < 0.1
    rows = {row["implementation"]: row for row in figures["rows"]}
    assert list(rows) == [
        "plain loop",
        "ours, batch 1",
        "ours, batch 2",
        "ours, batch 2, feature cache",
    ]
    assert all(row["problems_per_s"] > 0 for row in rows.values())
