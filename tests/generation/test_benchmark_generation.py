"""The benchmark runs from its documented command and writes figures; no speed is asserted."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT, RunTool
from tests.generation.text_engine import FakeEngine

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


def test_texts_by_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a fake engine: the drawings are those of the plain loop, and all figures are there."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool, side = (import_module(f"benchmark_generation{end}") for end in ("", "_vllm"))

    @contextmanager
    def fake_side(bench: Any) -> Iterator[Any]:
        yield side.VLLMSide(bench, FakeEngine(bench.model, bench.tokenizer.special))

    monkeypatch.setattr(tool, "vllm_side", fake_side)
    words = ["--preset", "tiny", "--batch_sizes", "1", "2", "--text_tokens", "3", "--vllm"]
    words += ["--timesteps", "5", "--image_px", "32", "--plain_problems", "1", "--repeats", "1"]
    json_path = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["tool", *words, "--json", str(json_path)])
    tool.main()
    figures = json.loads(json_path.read_text())
    assert figures["agreement_levels"] < 0.1
    assert {"vLLM writes, batch 1", "vLLM writes, batch 2"} < {
        row["implementation"] for row in figures["rows"]
    }
    for shares in figures["vllm_shares"].values():
        assert 0 < shares["drawing"] + shares["waiting_for_vllm"] <= 1
