"""Memory does not grow with the input."""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, png, run_python

NUM_RECORDS = 25_000
LIMIT_MIB = 250
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_a_file_that_is_larger_than_the_memory(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(64, 64))
    source = tmp_path / "x.json"
    padding = "A line of reasoning that says what was seen and what follows from it. " * 80
    with source.open("w") as file:
        for i in range(NUM_RECORDS):
            items = [{"type": "text", "content": f"{i} {padding}"}]
            if i % 50 == 0:
                items.append({"type": "image", "content": "a.png"})
            record = {
                "id": f"m{i % (NUM_RECORDS - 5)}",
                "question_interleave": items,
                "solution_interleave": items if i % 7 else [],
                "answer": str(i),
            }
            file.write(("[\n" if i == 0 else ",\n") + json.dumps(record))
        file.write("]")
    assert source.stat().st_size > LIMIT_MIB * 2**20
    tool = str(ROOT / "tools" / "convert_cot_to_parquet.py")
    words = ["--input", str(source), "--output", str(tmp_path / "out"), "--num_workers", "2"]
    done = run_python("-c", MEASURE, sys.executable, tool, *words, check=True)
    assert float(done.stdout) < LIMIT_MIB
    summary = json.loads((tmp_path / "out" / "conversion.json").read_text())
    no_solution = -(-NUM_RECORDS // 7)
    assert summary["rejects"]["no_solution"] in range(no_solution - 1, no_solution + 1)
    assert summary["rows"][""] + sum(summary["rejects"].values()) == NUM_RECORDS
    assert summary["rejects"]["duplicate_id"] in range(3, 6)
