"""Predict runs with the real engine and a real model: the command resumes what the tool began."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from mathcanvas_lightning.evaluation.scoring import score_responses
from mathcanvas_lightning.generation.backends.vllm.backend import VLLMBackend
from mathcanvas_lightning.generation.prompts.chat import ChatPrompt
from mathcanvas_lightning.generation.requests import Sampling
from mathcanvas_lightning.records.record import RecordInput
from tests.conftest import ROOT, TRAINER_WARNINGS, real_problems
from tests.generation.engine import (  # noqa: F401
    ONE_GIB,
    ONE_PROCESS,
    SMALL_CACHE,
    engine_lock,
    in_one_process,
    real_engine,
    smollm2,
)
from tests.generation.runs import command, predict, read_lines, run_file, write_lines
from tests.generation.tiny_idefics3 import make_tiny_idefics3

pytestmark = [*real_engine, *(pytest.mark.filterwarnings(text) for text in TRAINER_WARNINGS)]
NUM_SUMS, NUM_BEFORE_KILL = 16, 4
MAX_TOKENS = 24
WINDOW = 256


def arithmetic(num: int) -> list[dict[str, Any]]:
    """Additions and subtractions of small numbers."""
    found = []
    for n in range(num):
        a, b = 2 + n % 13, 1 + n % 7
        plus = n % 2 == 0
        question = f"What is {a} {'+' if plus else '-'} {b}? Answer with the number alone."
        answer = str(a + b if plus else a - b)
        found.append({"sample_index": n, "query_cot": question, "answer": answer})
    return found


def tool(model: Path, source: Path, output: Path) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "tools" / "generate_response.py"),
        *("--model_path", str(model)),
        *("--tensor_parallel_size", "1"),
        *("--max_model_len", str(WINDOW)),
        *("--max_tokens", str(MAX_TOKENS)),
        *("--text_only_input", str(source)),
        *("--text_only_output", str(output)),
    ]


def journal_lines(output: Path) -> list[dict[str, Any]]:
    path = output.with_name(f"{output.name}.journal") / "rank0.jsonl"
    if not path.exists():
        return []
    data = path.read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def test_the_command_resumes_a_killed_tool_and_a_kill_loses_nothing(
    smollm2: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Resuming needs equal settings, so tool and command have the same ones."""
    source = write_lines(tmp_path / "sums.jsonl", arithmetic(NUM_SUMS))
    output = tmp_path / "answers.jsonl"
    words = tool(smollm2, source, output)
    ended = kill_in_the_middle(words, output, NUM_BEFORE_KILL, NUM_SUMS, env=ONE_GIB)
    assert "VLLM::EngineCore" in ended  # vLLM runs in processes of its own
    kept = [line["uid"] for line in journal_lines(output)]
    assert NUM_BEFORE_KILL <= len(kept) < NUM_SUMS
    assert not output.exists()

    config = run_file(
        tmp_path,
        {
            "class_path": "mathcanvas_lightning.VLLMBackend",
            "init_args": {"model_path": str(smollm2), "max_model_len": WINDOW},
        },
        source,
    )
    words = [f"--model.init_args.sampling.max_tokens={MAX_TOKENS}"]
    run_to_the_end(command(config, *words), env=ONE_GIB | ONE_PROCESS)
    counts = Counter(line["uid"] for line in journal_lines(output))
    assert counts == {f"sums:{n}": 1 for n in range(NUM_SUMS)}
    answered = read_lines(output)
    assert [one["sample_index"] for one in answered] == list(range(NUM_SUMS))
    assert len({one["model_answer"] for one in answered}) > NUM_SUMS / 4
    report = score_responses(str(output), progress=False)
    assert report.overall.num_failed == 0
    assert report.overall.accuracy > 0.2  # much better than chance, even with this small model


def kill_in_the_middle(
    words: list[str], output: Path, num_answers: int, num_records: int, *, env: dict[str, str]
) -> set[str]:
    """Kills a run after some answers, anew if it had all; returns the names of its processes."""
    for _ in range(5):
        names = _kill(words, output, num_answers, env)
        if len(journal_lines(output)) < num_records:
            return names
        output.unlink(missing_ok=True)
        shutil.rmtree(output.with_name(f"{output.name}.journal"))
    raise AssertionError("all records are answered at the same time")


def _kill(words: list[str], output: Path, num_answers: int, env: dict[str, str]) -> set[str]:
    log = output.with_name("killed.log")
    with log.open("w") as file:
        process = subprocess.Popen(
            words, cwd=ROOT, env=os.environ | env, stdout=file, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + 1000
    while len(journal_lines(output)) < num_answers:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    names, engine = set(), []
    with suppress(psutil.NoSuchProcess):
        engine = psutil.Process(process.pid).children(recursive=True)
        names = {one.name() for one in engine}
    process.kill()
    assert process.wait(300) in (-signal.SIGKILL, 0)
    _, alive = psutil.wait_procs(engine, timeout=240)
    assert not alive
    return names


def run_to_the_end(words: list[str], *, env: dict[str, str]) -> str:
    """Runs a command; returns its standard error."""
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_real_problems_with_pictures(tmp_path: Path) -> None:
    folder = real_problems()
    problems = read_lines(folder / "test.jsonl")[::3]
    source = write_lines(tmp_path / "problems.jsonl", problems)
    make_tiny_idefics3(tmp_path / "model")
    with in_one_process():
        report = predict(
            VLLMBackend(str(tmp_path / "model"), dtype="float32", engine_options=SMALL_CACHE),
            [
                RecordInput(
                    path=str(source),
                    output=str(tmp_path / "answers.jsonl"),
                    image_base_path=str(folder),
                    index_field="id",
                    query_field="question",
                )
            ],
            prompt=ChatPrompt(options_field="options"),
            sampling=Sampling(max_tokens=8),
        )
    written = read_lines(tmp_path / "answers.jsonl")
    assert [one["id"] for one in written] == [one["id"] for one in problems]
    assert report.num_failed == 0
    assert len({one["model_answer"] for one in written}) > len(problems) / 2
