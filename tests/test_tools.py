"""The benchmarks run from their documented command and write figures; no speed is asserted."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import RunTool

Benchmark = Callable[..., Any]


@pytest.fixture
def benchmark(tmp_path: Path, run_tool: RunTool) -> Benchmark:
    """Runs a benchmark with these words; returns its figures."""

    def run(*words: str | Path) -> Any:
        done = run_tool(*words, "--json", tmp_path / "figures.json")
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "figures.json").read_text())

    return run


@pytest.mark.slow
def test_conversion_benchmark(benchmark: Benchmark) -> None:
    figures = benchmark(
        "benchmark_conversion.py",
        *("--num_records", "60", "--num_tasks", "10", "--repeats", "1", "--num_workers", "1"),
    )["figures"]
    assert set(figures) == {"plain loop", "ours, 0 workers", "ours, 1 workers"}
    assert len({figure["rows"] for figure in figures.values()}) == 1
    assert all(figure["rows_per_s"] > 0 < figure["peak_mib"] for figure in figures.values())


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="measured by hand there")
def test_model_benchmark(benchmark: Benchmark) -> None:
    figures = benchmark(
        "benchmark_model.py",
        *("--preset", "tiny", "--tokens", "200", "--repeats", "1", "--vae", "--shares"),
    )
    rows = figures["rows"]
    passes = {"forward", "forward+backward", "training step", "VAE encode"}
    assert {row["pass"] for row in rows} == passes
    assert {row["implementation"] for row in rows} == {"ours", "index gather"}
    assert all(row["tokens_per_s"] > 0 for row in rows)
    for row in figures["shares"]:
        assert row["products"] > 0 < row["attention"]
        assert row["products"] + row["attention"] + row["rest"] == pytest.approx(1.0)


@pytest.mark.slow
def test_data_benchmark(benchmark: Benchmark, golden: Path) -> None:
    figures = benchmark(
        "benchmark_data.py",
        *("--plan_rows", "3000", "--rows", "12", "--repeats", "1"),
        *("--tokenizer", golden / "tiny_bagel"),
    )
    assert set(figures["planning"]) == {"interleaved", "mixture", "long rows"}
    packing = figures["packing"]
    assert packing["ours"]["tokens"] == packing["baseline"]["tokens"] > 0
    assert figures["fill"]["all, ours"]["samples"] == 3000


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="measured by hand there")
def test_training_benchmark(benchmark: Benchmark) -> None:
    figures = benchmark(
        "benchmark_training.py",
        *("--preset", "tiny", "--steps", "1", "--tasks", "12"),
    )
    assert set(figures["speeds"]) == {"ours", "ours without data wait", "plain loop"}
    assert all(row["tokens_per_s"] > 0 for row in figures["speeds"].values())
    parts = figures["parts_s"]
    assert sum(v for k, v in parts.items() if k != "step") == pytest.approx(parts["step"])


@pytest.mark.slow
def test_predict_benchmark(tmp_path: Path, run_tool: RunTool) -> None:
    figures = tmp_path / "figures.json"
    done = run_tool(
        "benchmark_predict.py", *("--records", "50", "--rounds", "1"), *("--json", figures)
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert [one["records"] for one in found["echo"]] == [10, 50]
    assert all(one["first_seconds"] > 0 < one["again_peak_mib"] for one in found["echo"])
    assert "µs a record" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="measured by hand there")
def test_attention_check(benchmark: Benchmark) -> None:
    lines = benchmark(
        *("check_attention.py", "--lengths", "5", "130"),
    )
    assert {(line["stack"], line["dtype"]) for line in lines} == {
        (stack, dtype) for stack in ("decoder", "ViT") for dtype in ("float32", "bfloat16")
    }
    assert all(0 <= line["error"] <= line["tolerance"] for line in lines)


def test_gpu_check_is_valid_bash() -> None:
    tool = Path(__file__).parents[1] / "tools" / "gpu_check.sh"
    assert subprocess.run(["bash", "-n", str(tool)], check=False).returncode == 0
