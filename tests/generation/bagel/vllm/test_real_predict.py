"""The shipped configuration with the real engine equals the native backend, also after a kill."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mathcanvas_lightning.generation.bagel.backend import BagelBackend
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
from mathcanvas_lightning.generation.requests import Sampling
from mathcanvas_lightning.generation.run.reasoning_folders import ReasoningFolders
from mathcanvas_lightning.records.record import RecordInput
from tests.conftest import ROOT, TRAINER_WARNINGS
from tests.generation.backends.vllm.test_real_predict import (
    journal_lines,
    kill_in_the_middle,
    run_to_the_end,
)
from tests.generation.engine import ONE_PROCESS, SMALL_CACHE, engine_lock, real_engine
from tests.generation.reasoning import (
    TRANSFORMS,
    drawing_checkpoint,
    puzzle_records,
)
from tests.generation.runs import command, predict, read_lines, write_lines
from tests.vllm_bagel.plugin import registered_plugin

__all__ = ["engine_lock", "registered_plugin"]
pytestmark = [
    *real_engine,
    *(pytest.mark.filterwarnings(text) for text in TRAINER_WARNINGS),
    pytest.mark.usefixtures("registered_plugin"),
]
CONFIG = ROOT / "configs" / "predict_bagel_vllm.yaml"
NUM_PUZZLES, NUM_BEFORE_KILL = 6, 2
DRAWING = {"text_scale": 2.0, "image_scale": 1.5, "num_timesteps": 6, "timestep_shift": 2.0}
MAX_TOKENS = 120


def results(output: Path) -> dict[str, Any]:
    """Answers and drawings of a run, by the index of the record."""
    found = {}
    for one in read_lines(output):
        folder = output.parent / output.stem / str(one["sample_index"])
        said = json.loads((folder / "reasoning_result.json").read_text())
        drawn = [np.asarray(Image.open(path)) for path in sorted(folder.glob("images/*.png"))]
        found[one["sample_index"]] = (one["model_answer"], said["summary"], drawn)
    return found


def test_answers_equal_those_of_the_native_backend_after_a_kill(tmp_path: Path) -> None:
    checkpoint = drawing_checkpoint(tmp_path / "bagel")
    some = puzzle_records(tmp_path, NUM_PUZZLES)
    source = write_lines(tmp_path / "puzzles.jsonl", some)
    native = tmp_path / "native.jsonl"
    backend = BagelBackend(
        str(checkpoint),
        drawing=DrawingConfig(**DRAWING),  # type: ignore[arg-type]
        max_steps=4,
        max_images=3,
        max_context_tokens=512,
        **TRANSFORMS,
    )
    sampling = Sampling(max_tokens=MAX_TOKENS)
    inputs = [RecordInput(path=str(source), output=str(native))]
    predict(backend, inputs, ReasoningFolders(), sampling=sampling)

    output = tmp_path / "answers.jsonl"
    made = "--model.init_args.backend.init_args"
    words = [
        f"{made}.checkpoint={checkpoint}",
        f"{made}.drawing={json.dumps(DRAWING)}",
        f"{made}.max_batch_size=3",
        f"{made}.engine.engine_options={json.dumps(SMALL_CACHE)}",
        f"--model.init_args.sampling.max_tokens={MAX_TOKENS}",
        f"--data.init_args.inputs={json.dumps([{'path': str(source), 'output': str(output)}])}",
    ]
    run = command(CONFIG, *words)
    kill_in_the_middle(run, output, NUM_BEFORE_KILL, NUM_PUZZLES, env=ONE_PROCESS)
    kept = {line["uid"] for line in journal_lines(output)}
    assert NUM_BEFORE_KILL <= len(kept) < NUM_PUZZLES
    shown = run_to_the_end(run, env=ONE_PROCESS)
    assert "Memory: vLLM: 1.4 million parameters" in shown
    assert max(Counter(line["uid"] for line in journal_lines(output)).values()) == 1

    wanted, found = results(native), results(output)
    assert sorted(found) == sorted(wanted) == list(range(NUM_PUZZLES))
    for number, (text, summary, drawings) in wanted.items():
        assert found[number][:2] == (text, summary), number
        for one, other in zip(drawings, found[number][2], strict=True):
            assert np.abs(one.astype(int) - other).max() <= 1
    counts = [summary["image_steps"] for _, summary, _ in wanted.values()]
    assert sum(counts) >= NUM_PUZZLES  # the model draws
    assert len(set(counts)) > 1
