"""The box at the end of a run, and a trace of some steps."""

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from mathcanvas_lightning.batch import MicroBatch
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.training.callbacks.profiling import StepProfiler
from mathcanvas_lightning.training.callbacks.progress import ProgressLines
from mathcanvas_lightning.training.callbacks.totals import EndSummary
from tests.conftest import TRAINER_WARNINGS
from tests.data.make_rows import config, interleaved_shards
from tests.training.runs import network, train, training_data

pytestmark = pytest.mark.filterwarnings(*TRAINER_WARNINGS, "ignore:You defined a `validation_step`")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("data") / "rows", 20)


class Seen(Callback):
    """Counts samples and tokens by hand."""

    def __init__(self) -> None:
        self.samples = self.tokens = self.packs = 0

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, n: int
    ) -> None:
        assert isinstance(batch, MicroBatch)
        self.packs += 1
        self.samples += len(batch.samples)
        self.tokens += sum(sample.num_tokens for sample in batch.samples)


@pytest.mark.slow
def test_box_at_the_end(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = Seen()
    data = training_data(config(shards), packs_per_step=2, validation=[config(shards, name="val")])
    options = {"max_steps": 3, "val_check_interval": 2, "limit_val_batches": 1}
    callbacks = [seen, EndSummary(peak_flops=1e12)]
    train(network(), data, tmp_path, accumulate=2, callbacks=callbacks, **options)
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "This run" in shown
    assert "3 steps" in shown
    assert f"samples {seen.samples:,}" in shown
    assert f"tokens {seen.tokens:,}" in shown
    assert f"fill of the packs {seen.tokens / (400 * seen.packs):.1%}" in shown
    assert "last checkpoint none was saved" in shown
    for name in ("tokens/s", "MFU", "peak memory", "waits data 0:", "validation 0:"):
        assert name in shown


def test_wrong_settings() -> None:
    with pytest.raises(ConfigError, match="every_s 0"):
        ProgressLines(every_s=0)
    with pytest.raises(ConfigError, match="active 0"):
        StepProfiler(active=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trace_of_some_steps(shards: Path, tmp_path: Path) -> None:
    profiler = StepProfiler(str(tmp_path), wait=1, warmup=1, active=1)
    train(network(), training_data(config(shards)), tmp_path, max_steps=4, profiler=profiler)
    [trace] = tmp_path.glob("*.json")
    names = {event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]}
    assert any("training_step" in name for name in names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_is_too_short_for_a_trace(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profiler = StepProfiler(str(tmp_path / "traces"))
    train(network(), training_data(config(shards)), tmp_path, max_steps=1, profiler=profiler)
    assert not list(tmp_path.rglob("*.json"))
    assert "ended outside of a trace" in caplog.text
