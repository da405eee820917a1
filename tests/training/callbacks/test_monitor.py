"""Values logged by ThroughputMonitor against the batches, the schedule and a clock."""

import csv
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from mathcanvas_lightning.batch import MicroBatch
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.flops import forward_flops
from mathcanvas_lightning.training.callbacks import monitor as monitor_file
from mathcanvas_lightning.training.callbacks.monitor import (
    Counts,
    ThroughputMonitor,
    device_peak_flops,
    peak_memory_gib,
)
from mathcanvas_lightning.training.optim import OptimizerConfig, ScheduleConfig, make_schedule
from tests.conftest import ROOT, TRAINER_WARNINGS
from tests.data.make_rows import config, interleaved_shards
from tests.ranks import again_after_a_crash, reserved_port
from tests.training.runs import SMALL, network, train, training_data
from tests.warm import WarmProcess, WarmPython

pytestmark = pytest.mark.filterwarnings(*TRAINER_WARNINGS)
PEAK = 1e12
NAMES = {
    "speed/tokens_per_s",
    "speed/samples_per_s",
    "speed/data_wait",
    "memory/peak_gib",
    "data/fill",
    "lr",
}
Rows = list[dict[str, float]]


class Recorder(Callback):
    """Records micro-batches and progress bar metrics; may advance a clock."""

    def __init__(self, clock: Any = None) -> None:
        self.clock = clock
        self.batches: list[MicroBatch] = []
        self.bar: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self.batches.append(batch)
        self._advance(1.0)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.bar.append(trainer.progress_bar_metrics)

    def on_validation_batch_end(self, *_: Any) -> None:
        self._advance(100.0)

    def _advance(self, seconds: float) -> None:
        if self.clock is not None:
            self.clock.now += seconds


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("data") / "rows", 40)


def metrics(folder: Path) -> Rows:
    """Logged rows with a speed, numbers only."""
    [path] = folder.rglob("metrics.csv")
    with path.open() as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [row for row in rows if "speed/tokens_per_s" in row]


def fit(
    shards: Path, folder: Path, recorder: Recorder, monitor: ThroughputMonitor, **options: Any
) -> tuple[Rows, Any]:
    model = network(
        optimizer=OptimizerConfig(lr=1e-3), schedule=ScheduleConfig(warmup_steps=2, min_lr=1e-5)
    )
    data_options = options.pop("data", {})
    train(
        model,
        training_data(config(shards), packs_per_step=2, **data_options),
        folder,
        accumulate=2,
        callbacks=[recorder, monitor],
        logger=CSVLogger(folder, name="", version=""),
        **{"max_steps": 6, "log_every_n_steps": 2, **options},
    )
    return metrics(folder), model


def tokens_of(batches: list[MicroBatch]) -> int:
    return sum(s.num_tokens for batch in batches for s in batch.samples)


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Rows, Recorder, Any]:
    recorder = Recorder()
    rows, model = fit(shards, tmp_path_factory.mktemp("run"), recorder, ThroughputMonitor(PEAK))
    return rows, recorder, model


def test_logs_every_n_steps(run: tuple[Rows, Recorder, Any]) -> None:
    rows, recorder, _ = run
    assert [row["step"] for row in rows] == [1, 3, 5]
    for row in rows:
        assert NAMES | {"speed/mfu"} <= row.keys()
        assert row["speed/tokens_per_s"] > 0
        assert 0 <= row["speed/data_wait"] <= 1
        assert 0 < row["memory/peak_gib"] <= peak_memory_gib(torch.device("cpu"))
    assert all("speed/tokens_per_s" in bar for bar in recorder.bar[4:])


def test_fill_matches_the_batches(run: tuple[Rows, Recorder, Any]) -> None:
    rows, recorder, _ = run
    for number, row in enumerate(rows):
        batches = recorder.batches[4 * number : 4 * number + 4]
        tokens = tokens_of(batches)
        assert tokens == sum(batch.pack.sequence_length for batch in batches)
        assert row["data/fill"] == pytest.approx(tokens / (4 * 400))
        samples = sum(len(batch.samples) for batch in batches)
        assert row["speed/tokens_per_s"] / row["speed/samples_per_s"] == pytest.approx(
            tokens / samples, rel=1e-5
        )


def test_mfu_matches_the_batches(run: tuple[Rows, Recorder, Any]) -> None:
    rows, recorder, model = run
    for number, row in enumerate(rows):
        batches = recorder.batches[4 * number : 4 * number + 4]
        flops = 3 * sum(forward_flops(model.config, batch.pack) for batch in batches)
        seconds = tokens_of(batches) / row["speed/tokens_per_s"]
        assert row["speed/mfu"] == pytest.approx(flops / seconds / PEAK, rel=1e-5)


def test_learning_rate_of_each_step(run: tuple[Rows, Recorder, Any]) -> None:
    rows, _, model = run
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = make_schedule(optimizer, model.schedule_config, 6)
    wanted = []
    for _ in range(6):
        wanted.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [row["lr"] for row in rows] == pytest.approx([wanted[1], wanted[3], wanted[5]])
    assert rows[0]["lr"] == pytest.approx(5e-4)


@pytest.mark.slow
def test_time_excludes_validation(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Advances the clock by 1 s per micro-batch, and by 100 s per validation batch."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(monitor_file, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    recorder = Recorder(clock)
    rows, _ = fit(
        shards,
        tmp_path,
        recorder,
        ThroughputMonitor(),
        data={"validation": (config(shards, name="val"),)},
        val_check_interval=2,
        limit_val_batches=2,
    )
    assert clock.now > 500
    for number, row in enumerate(rows):
        # The clock starts after the second of the first batch.
        seconds = 3 if number == 0 else 4
        tokens = tokens_of(recorder.batches[4 * number : 4 * number + 4])
        assert row["speed/tokens_per_s"] == pytest.approx(tokens / seconds)


def test_no_mfu_without_peak(shards: Path, tmp_path: Path) -> None:
    rows, _ = fit(shards, tmp_path, Recorder(), ThroughputMonitor(), max_steps=2)
    assert rows[0].keys() >= NAMES
    assert "speed/mfu" not in rows[0]


@pytest.mark.slow
def test_continues_in_the_next_epoch(shards: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    rows, _ = fit(
        shards,
        tmp_path,
        recorder,
        ThroughputMonitor(),
        max_steps=-1,
        max_epochs=2,
        log_every_n_steps=1,
    )
    assert {batch.epoch for batch in recorder.batches} == {0, 1}
    assert len(rows) == len(recorder.batches) // 2
    pairs = [recorder.batches[i : i + 2] for i in range(0, len(recorder.batches), 2)]
    assert [row["data/fill"] for row in rows] == pytest.approx(
        [tokens_of(pair) / 800 for pair in pairs]
    )


def test_holes_and_fillers_count_as_packs(run: tuple[Rows, Recorder, Any]) -> None:
    _, recorder, model = run
    batch = next(batch for batch in recorder.batches if len(batch.samples) > 1)
    hole = replace(batch.samples[0], is_hole=True)
    counts = Counts()
    counts.add(replace(batch, samples=()), model.config)
    assert (counts.packs, counts.samples, counts.tokens, counts.flops) == (1, 0, 0, 0)
    counts.add(replace(batch, samples=(hole, *batch.samples[1:])), None)
    assert (counts.packs, counts.samples) == (2, len(batch.samples) - 1)
    assert counts.tokens == sum(s.num_tokens for s in batch.samples[1:])


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA A10G", 125e12),
        ("GeForce RTX 3080", None),
        ("some card", None),
    ],
)
def test_peak_of_a_gpu(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert device_peak_flops(torch.device("cuda")) == peak


def test_no_peak_of_a_cpu() -> None:
    assert device_peak_flops(torch.device("cpu")) is None


def test_wrong_peak() -> None:
    with pytest.raises(ConfigError, match="peak_flops: found 0"):
        ThroughputMonitor(0)


def start_ranks(warm: WarmPython, arguments: list[str]) -> list[WarmProcess]:
    """Starts `mathcanvas` on two processes that communicate over gloo."""
    port = reserved_port()
    return [
        warm.start(
            ["-m", "mathcanvas_lightning", *arguments],
            env={
                **os.environ,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "GROUP_RANK": "0",
                "TORCHELASTIC_RUN_ID": "test",
                "OMP_NUM_THREADS": "1",
            },
            cwd=ROOT,
        )
        for rank in range(2)
    ]


def run_settings(shards: Path, folder: Path, **trainer: Any) -> dict[str, Any]:
    """A run's YAML."""
    sizes = {
        "vae_transform": {"max_image_size": 64, "min_image_size": 32},
        "vit_transform": {"max_image_size": 56, "min_image_size": 28, "image_stride": 14},
    }
    return {
        "data": {
            "class_path": "mathcanvas_lightning.MathCanvasDataModule",
            "init_args": {
                "train": [{"path": str(shards), **sizes}],
                "validation": [{"path": str(shards), "name": "val", **sizes}],
                "max_num_tokens": 400,
                "max_num_tokens_per_sample": 400,
                "packs_per_step": 2,
                "workers": {"num_workers": 0},
                "index_workers": 0,
                "progress": False,
            },
        },
        "model": {
            "class_path": "mathcanvas_lightning.BagelModule",
            "init_args": {
                "source": {"preset": "tiny", "overrides": SMALL},
                "schedule": {"name": "constant"},
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 2,
            "log_every_n_steps": 1,
            "val_check_interval": 1,
            "limit_val_batches": 2,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "default_root_dir": str(folder),
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(folder), "name": "", "version": ""},
            },
            **trainer,
        },
    }


@pytest.mark.slow
def test_sharded_over_two_ranks(shards: Path, tmp_path: Path, warm: WarmPython) -> None:
    """Values are summed over both ranks; only rank zero shows a summary and writes pictures."""
    strategy = {"class_path": "mathcanvas_lightning.training.strategy.ShardedStrategy"}
    settings = run_settings(shards, tmp_path / "run", devices=2, strategy=strategy)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))

    def run() -> list[subprocess.CompletedProcess[str]]:
        return [rank.wait() for rank in start_ranks(warm, ["fit", "--config", str(path)])]

    outputs = []
    for done in again_after_a_crash(run, tmp_path / "run"):
        assert done.returncode == 0, done.stderr[-3000:]
        outputs.append(done.stdout)
    assert "1 x 2" in outputs[0]
    assert "What is trained" not in outputs[1]
    rows = metrics(tmp_path / "run")
    data = training_data(
        config(shards), packs_per_step=2, dropout=_default_dropout(), validation=()
    )
    data.prepare_data()
    data.setup("fit")
    schedule = data.schedule(0)
    planned = data.plan.epoch(0)
    for step, row in enumerate(rows):
        packs = [planned.samples(pack) for pack in schedule.step_packs(step)]
        tokens = sum(int(planned.lengths[place]) for pack in packs for place in pack)
        assert row["data/fill"] == pytest.approx(tokens / 800)
    assert len(rows) == 2
    pictures = sorted(path.name for path in (tmp_path / "run").rglob("step_*.png"))
    assert pictures == ["step_1.png", "step_2.png"]


def _default_dropout() -> Any:
    from mathcanvas_lightning.data.sequence.roles import DropoutConfig

    return DropoutConfig()


@pytest.mark.slow
def test_from_the_command_line(shards: Path, tmp_path: Path, warm: WarmPython) -> None:
    """Callbacks are on by default, are set by their sections, and removed by null."""
    settings = run_settings(shards, tmp_path / "run", devices=1)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    options = ["--debug_batches=1", "--throughput.peak_flops=1e12", "--pictures=null"]
    words = ["-m", "mathcanvas_lightning", "fit", "--config", path, *options]
    done = warm.run(words, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "What is trained" in done.stdout
    assert "Epoch 0, step 0, pack 0 of 2:" in done.stdout
    assert done.stdout.index("pack 0 of 2") > done.stdout.index("What is trained")
    rows = metrics(tmp_path / "run")
    assert all("speed/mfu" in row for row in rows)
    assert [path.name for path in (tmp_path / "run").rglob("*.png")] == ["curves.png"]
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["pictures"] is None
    assert saved["throughput"]["init_args"] == {"peak_flops": 1e12}
    assert json.dumps(saved["summary"]).count("StartSummary") == 1
