"""The start summary against network and plan; the memory estimate against measurements."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy

from mathcanvas_lightning.common.display.short import counted
from mathcanvas_lightning.model.adapters import LoRASettings, parameter_report
from mathcanvas_lightning.model.vae import LatentVAE
from mathcanvas_lightning.training.callbacks.summary import (
    DebugBatches,
    StartSummary,
    count_vae_parameters,
    describe_run,
    memory_estimate,
    mesh_sizes,
)
from mathcanvas_lightning.training.module import BagelModule
from mathcanvas_lightning.training.optim import ScheduleConfig, count_steps
from mathcanvas_lightning.training.source import FreezeConfig
from mathcanvas_lightning.training.strategy import ShardedStrategy
from tests.conftest import TRAINER_WARNINGS
from tests.data.make_rows import config, interleaved_shards
from tests.training.runs import network, train, training_data

pytestmark = pytest.mark.filterwarnings(*TRAINER_WARNINGS)


class Lines(Callback):
    """Records the lines of the summary."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.lines = dict(describe_run(trainer, pl_module))
        self.steps = count_steps(trainer)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("data") / "rows", 20)


def start(
    shards: Path, folder: Path, model: BagelModule, *callbacks: Callback, **options: Any
) -> tuple[Lines, Any]:
    described = Lines()
    data = training_data(config(shards), packs_per_step=2, **options.pop("data", {}))
    options = {"max_steps": 1, **options}
    train(model, data, folder, accumulate=2, callbacks=[described, *callbacks], **options)
    return described, data


def test_memory_by_hand() -> None:
    estimate = memory_estimate(
        parameters=1001,
        trainable=500,
        param_dtype=torch.bfloat16,
        shards=4,
        ema=True,
        vae_parameters=10,
        compute_dtype=torch.float32,
    )
    assert estimate.weights == 251 * 2
    assert estimate.gradients == 125 * 2
    assert estimate.moments == 125 * 4
    assert estimate.ema == 125 * 4
    assert estimate.autoencoder == 10 * 4
    assert estimate.total == 502 + 250 + 500 + 500 + 40


def test_memory_of_the_published_model() -> None:
    """14.6 billion float32 parameters with moments on eight GPUs, as in the recipe."""
    estimate = memory_estimate(
        parameters=14_600_000_000, trainable=14_600_000_000, param_dtype=torch.float32, shards=8
    )
    assert estimate.total / 2**30 == pytest.approx(14.6e9 * 16 / 8 / 2**30)


class Sizes(Callback):
    """Measures the bytes of the gradients after a backward pass."""

    gradients = 0

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        found = [p.grad for p in pl_module.network.parameters() if p.grad is not None]
        self.gradients = sum(g.nbytes for g in found)


def test_memory_as_measured(shards: Path, tmp_path: Path) -> None:
    model, sizes = network(freeze=FreezeConfig(vit=True)), Sizes()
    start(shards, tmp_path, model, sizes)
    total = parameter_report(model.network)[-1]
    estimate = memory_estimate(
        parameters=total.total, trainable=total.trainable, param_dtype=torch.float32
    )
    state = model.trainer.optimizers[0].state.values()
    moments = sum(s[name].nbytes for s in state for name in ("exp_avg", "exp_avg_sq"))
    assert estimate.weights == sum(p.nbytes for p in model.network.parameters())
    assert (estimate.gradients, estimate.moments) == (sizes.gradients, moments)


@pytest.mark.slow
def test_page(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network(
        freeze=FreezeConfig(vit=True), schedule=ScheduleConfig(warmup_steps=2, min_lr=1e-5)
    )
    validation = (config(shards, name="val"),)
    described, data = start(
        shards,
        tmp_path,
        model,
        StartSummary(),
        data={"validation": validation},
        max_steps=-1,
        max_epochs=2,
        limit_val_batches=1,
    )
    shown = capsys.readouterr().out
    for entry in parameter_report(model.network):
        pattern = rf"{entry.part}\W+{entry.total:,}\W+{entry.trainable:,}\W+"
        assert re.search(pattern, shown), entry
    assert re.search(r"vit_model\W+[\d,]+\W+0\W+frozen", shown)
    planned, schedule = data.plan.epoch(0), data.schedule(0)
    steps = data.total_steps(2)
    assert model.trainer.global_step == steps == described.steps
    lines = described.lines
    assert lines["weights"].startswith("preset tiny, random with seed 0")
    assert lines["number types"] == "parameters float32, computing in float32"
    assert lines["devices"] == "one, cpu"
    assert lines["packs per step"] == "2: ranks 1 x accumulated 2"
    assert lines["an epoch"] == (
        f"20 samples in {planned.num_packs} packs of 400 tokens, {planned.fill:.1%} full; "
        f"{schedule.num_steps} steps, {counted(schedule.num_fillers, 'filler')}"
    )
    assert lines["total steps"] == f"{steps}: 2 epochs"  # of different lengths
    assert lines["training data"] == f"{config(shards).label}: 20 rows"
    assert lines["validation data"] == "val: 20 rows"
    assert lines["learning rate"] == f"2 steps of warm-up to 0.001, cosine to 1e-05 at step {steps}"
    assert "without activations: weights " in lines["memory per rank"]
    words = " ".join(shown.split())
    assert all(name in words for name in lines)


def test_adapters_and_rows_left_out(shards: Path, tmp_path: Path) -> None:
    model = network(
        lora=LoRASettings(parts=("gen",), rank=4), param_dtype="bfloat16", compute_dtype="bfloat16"
    )
    lengths = {"max_num_tokens": 105, "max_num_tokens_per_sample": 105}
    described, data = start(shards, tmp_path, model, data={**lengths, "overlong": "quarantine"})
    [loaded] = data.train_data.datasets
    assert loaded.left_out
    rows, left_out = len(loaded.rows), len(loaded.left_out)
    assert described.lines["training data"].endswith(f": {rows} rows, {left_out} left out")
    assert described.lines["weights"].endswith("; LoRA of rank 4, alpha 32 on gen")
    assert described.lines["number types"] == "parameters bfloat16, computing in bfloat16"
    assert described.lines["learning rate"] == "0.001, constant"
    assert described.steps == 1


def test_autoencoder_is_counted() -> None:
    vae = network().config.vae
    assert count_vae_parameters(vae) == sum(p.numel() for p in LatentVAE(vae).parameters())


class MeshOfEight(ShardedStrategy):
    """A strategy of two replicas on four ranks each, without processes."""

    @property
    def device_mesh(self) -> Any:
        size = SimpleNamespace
        return {"replicate": size(size=lambda: 2), "shard": size(size=lambda: 4)}


def test_mesh() -> None:
    sharded: Any = SimpleNamespace(strategy=MeshOfEight(), world_size=8)
    assert mesh_sizes(sharded) == (2, 4)
    plain: Any = SimpleNamespace(strategy=DDPStrategy(), world_size=3)
    assert mesh_sizes(plain) == (3, 1)


def test_debug_batches(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    _, data = start(shards, tmp_path, model, DebugBatches(3))
    shown = capsys.readouterr().out
    numbers = re.findall(r"Epoch 0, step (\d+), pack (\d+) of 2:", shown)
    assert numbers == [("0", "0"), ("0", "1"), ("1", "0")]
    schedule = data.schedule(0)
    first = data.micro_batch(0, schedule, 0, 0)
    assert all(f" {sample.uid} " in shown for sample in first.samples)
    assert f"{first.pack.sequence_length:,} tokens" in shown
