"""The moving average: against a reference, resumed, validated, sharded."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mathcanvas_lightning.errors import ConfigError, DataError
from mathcanvas_lightning.model.adapters import LoRASettings
from mathcanvas_lightning.training.callbacks.ema import (
    EMAConfig,
    EMAWeights,
    parameter_name,
    stored_name,
)
from mathcanvas_lightning.training.checkpoint.export import export_checkpoint
from mathcanvas_lightning.training.module import BagelModule
from mathcanvas_lightning.training.optim import OptimizerConfig
from mathcanvas_lightning.training.source import FreezeConfig
from tests.conftest import QUIET, TRAINER_WARNINGS
from tests.data.make_rows import interleaved_shards
from tests.ranks import run_ranks
from tests.training.runs import config, network, train, training_data, weights

pytestmark = pytest.mark.filterwarnings(
    *TRAINER_WARNINGS, "ignore:You defined a `validation_step`", "ignore:The dirpath has changed"
)
DECAY = 0.7
Weights = dict[str, torch.Tensor]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """A tiny network is fastest on one thread, especially on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("data") / "rows", 24)


def averages(model: BagelModule) -> Weights:
    """Copies the averages, gathered, by the parameters' names."""
    assert model.ema_weights is not None
    return {
        parameter_name(name): whole(tensor) for name, tensor in model.ema_weights.named_parameters()
    }


class ByHand(Callback):
    """Averages copies of the weights in float64 after each step."""

    def __init__(self, decay: float = DECAY) -> None:
        self.decay = decay
        self.step = 0
        self.average: Weights = {}

    def on_fit_start(self, trainer: Any, pl_module: BagelModule) -> None:
        self.average = {k: v.double() for k, v in trainable(pl_module).items()}

    def on_train_batch_end(self, trainer: Any, pl_module: BagelModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        for name, weight in trainable(pl_module).items():
            kept = self.average[name] * self.decay
            self.average[name] = kept + (1 - self.decay) * weight.double()


def trainable(model: BagelModule) -> Weights:
    found = model.network.named_parameters()
    return {name: whole(parameter) for name, parameter in found if parameter.requires_grad}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Copies a tensor, gathered if it is sharded."""
    gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return gathered.detach().clone()


def close(found: Weights, wanted: Weights, tolerance: float = 2e-7) -> None:
    assert found.keys() == wanted.keys()
    differences = {n: float((found[n].double() - wanted[n]).abs().max()) for n in found}
    assert max(differences.values()) <= tolerance


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"ema": EMAConfig(decay=DECAY)}, marks=pytest.mark.slow),
        {"ema": EMAConfig(decay=DECAY, on_cpu=True), "freeze": FreezeConfig(vit=True)},
        pytest.param(
            {"ema": EMAConfig(decay=DECAY), "lora": LoRASettings(rank=2)}, marks=pytest.mark.slow
        ),
    ],
    ids=["all", "on_cpu, frozen", "lora"],
)
def test_average_by_hand(options: dict[str, Any], shards: Path, tmp_path: Path) -> None:
    hand = ByHand()
    model = network(**options)
    data = training_data(config(shards), packs_per_step=2)
    train(model, data, tmp_path, accumulate=2, max_steps=4, callbacks=[hand])
    assert hand.step == 4
    close(averages(model), hand.average)
    moved = {n: (hand.average[n] - w).abs().max() for n, w in trainable(model).items()}
    assert max(moved.values()) > 1e-4  # the average is not just the weights


def test_without_ema_nothing_is_allocated(shards: Path, tmp_path: Path) -> None:
    model = network()
    train(model, training_data(config(shards)), tmp_path, max_steps=1)
    assert model.ema_weights is None
    assert not [name for name in model.state_dict() if "ema" in name]
    assert model.configure_callbacks() == []


def test_half_precision_weights_have_a_float32_average() -> None:
    layer = torch.nn.Linear(2, 2).bfloat16()
    with torch.no_grad():
        layer.weight.fill_(1.0)
    ema = EMAWeights(layer, EMAConfig(decay=0.999))
    with torch.no_grad():
        layer.weight.fill_(2.0)
    for _ in range(3):
        ema.update(layer)
    assert torch.allclose(ema.weight, torch.full((2, 2), 2 - 0.999**3))
    before = layer.weight.clone()
    ema.swap_in(layer)
    ema.swap_in(layer)  # the second call keeps the backup
    assert torch.equal(layer.weight, ema.weight.bfloat16())
    ema.swap_out(layer)
    ema.swap_out(layer)
    assert torch.equal(layer.weight, before)


def test_on_cpu_stays_there() -> None:
    layer = torch.nn.Linear(2, 2)
    holder = torch.nn.Module()
    holder.ema = EMAWeights(layer, EMAConfig(decay=0.9, on_cpu=True))
    assert holder.to("meta").ema.weight.device.type == "cpu"
    holder.ema = EMAWeights(layer, EMAConfig(decay=0.9))
    assert holder.to("meta").ema.weight.device.type == "meta"


def saver(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        folder,
        "step{step}",
        every_n_train_steps=1,
        save_top_k=-1,
        auto_insert_metric_name=False,
        save_on_train_epoch_end=False,
    )


def run(
    folder: Path,
    data: Any,
    *,
    steps: int,
    resume: Path | str | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> BagelModule:
    """Fits with accumulation 2, and saves at each step."""
    options = {"accumulate_grad_batches": 2, **options}
    # With the default eps, Adam takes full steps for gradients that are only rounding errors.
    optimizer = OptimizerConfig(lr=1e-3, eps=1e-6)
    model = network(ema=EMAConfig(decay=DECAY), optimizer=optimizer)
    trainer = Trainer(
        max_steps=steps,
        callbacks=[*callbacks, saver(folder)],
        default_root_dir=folder,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        **{**QUIET, "devices": "auto", "enable_checkpointing": True, **options},
    )
    trainer.fit(model, data, ckpt_path=None if resume is None else str(resume))
    return model


@pytest.mark.slow
def test_resumed_run_has_the_same_average(shards: Path, tmp_path: Path) -> None:
    data = training_data(config(shards), packs_per_step=2)
    straight = run(tmp_path / "whole", data, steps=4)
    saved = torch.load(tmp_path / "whole" / "step2.ckpt", weights_only=True)["state_dict"]
    data = training_data(config(shards), packs_per_step=2)
    resumed = run(tmp_path / "resumed", data, steps=4, resume=tmp_path / "whole" / "step2.ckpt")
    for name, tensor in averages(straight).items():
        assert torch.equal(averages(resumed)[name], tensor), name
        assert f"ema_weights.{stored_name(name)}" in saved
    # A checkpoint has the average of the step at which it was saved.
    last = torch.load(tmp_path / "whole" / "step4.ckpt", weights_only=True)["state_dict"]
    name = next(iter(averages(straight)))
    assert torch.equal(last[f"ema_weights.{stored_name(name)}"], averages(straight)[name])


class Watch(Callback):
    """Compares the weights during validation with the averages, and keeps those before it."""

    def __init__(self, folder: Path, fail: bool = False) -> None:
        self.folder, self.fail = folder, fail
        self.before: Weights = {}
        self.validated = 0

    def on_train_batch_end(self, trainer: Any, pl_module: BagelModule, *args: Any) -> None:
        self.before = weights(pl_module)

    def on_validation_batch_end(self, trainer: Any, pl_module: BagelModule, *args: Any) -> None:
        found = weights(pl_module)
        for name, average in averages(pl_module).items():
            assert torch.equal(found[name], average)
        self.validated += 1
        if self.fail:
            raise ZeroDivisionError


@pytest.mark.slow
def test_validation_uses_the_average(shards: Path, tmp_path: Path) -> None:
    data = training_data(config(shards), validation=[config(shards, name="val")])
    model, watch = network(ema=EMAConfig(decay=DECAY)), Watch(tmp_path)
    checkpoints = ModelCheckpoint(tmp_path, "{step}", monitor="val/val/ce", save_top_k=-1)
    options: dict[str, Any] = {"limit_val_batches": 2, "val_check_interval": 2, "max_steps": 4}
    callbacks = [checkpoints, watch]
    train(model, data, tmp_path, enable_checkpointing=True, callbacks=callbacks, **options)
    assert watch.validated == 4
    after = weights(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in watch.before.items())
    assert any(not torch.equal(after[n], average) for n, average in averages(model).items())
    saved = torch.load(checkpoints.best_model_path, weights_only=True)
    assert saved["global_step"] in (2, 4)
    last = torch.load(tmp_path / "step=4.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(last[f"model.{name}"], tensor) for name, tensor in after.items())


def test_training_weights_are_restored_after_a_failure(shards: Path, tmp_path: Path) -> None:
    data = training_data(config(shards), validation=[config(shards, name="val")])
    model, watch = network(ema=EMAConfig(decay=DECAY)), Watch(tmp_path, fail=True)
    with pytest.raises(ZeroDivisionError):
        train(model, data, tmp_path, callbacks=[watch], val_check_interval=2, max_steps=4)
    assert watch.validated == 1
    after = weights(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in watch.before.items())


def test_wrong_settings() -> None:
    for decay in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=r"ema\.decay"):
            EMAConfig(decay=decay)


def test_checkpoint_of_another_model() -> None:
    model = network(ema=EMAConfig(decay=DECAY))
    checkpoint: dict[str, Any] = {}
    model.on_save_checkpoint(checkpoint)
    model.on_load_checkpoint(checkpoint)
    network(ema=EMAConfig(decay=0.5)).on_load_checkpoint(checkpoint)
    with pytest.raises(ConfigError, match="found weights of another network: ema True; wanted ema"):
        network().on_load_checkpoint(checkpoint)
    with pytest.raises(ConfigError, match=r"lora\.rank None; wanted .*lora\.rank 16"):
        network(ema=EMAConfig(decay=0.5), lora=LoRASettings()).on_load_checkpoint(checkpoint)
    network(lora=LoRASettings()).on_save_checkpoint(checkpoint)
    network(lora=LoRASettings(seed=3, dropout=0.1)).on_load_checkpoint(checkpoint)
    with pytest.raises(ConfigError, match=r"lora\.rank 16; wanted lora\.rank 4"):
        network(lora=LoRASettings(rank=4)).on_load_checkpoint(checkpoint)
    with pytest.raises(DataError, match="a checkpoint without a record"):
        model.on_load_checkpoint({})
    with pytest.raises(DataError, match="a record of version 99"):
        model.on_load_checkpoint({"mathcanvas": {"version": 99}})


class ByHandInShards(ByHand):
    """Also compares weights before, during and after validation."""

    def on_train_start(self, trainer: Any, pl_module: BagelModule) -> None:
        self.average = {k: v.double() for k, v in averages(pl_module).items()}
        self.step = trainer.global_step
        assert pl_module.ema_weights is not None
        for part in pl_module.ema_weights.parameters():
            assert isinstance(part, DTensor)
            assert part.to_local().numel() <= -(-part.shape[0] // trainer.world_size) * (
                part.numel() // part.shape[0]
            )

    def on_validation_start(self, trainer: Any, pl_module: BagelModule) -> None:
        self.before = trainable(pl_module)

    def on_validation_end(self, trainer: Any, pl_module: BagelModule) -> None:
        found = in_shards(pl_module)
        assert all(torch.equal(found[n], v) for n, v in averages(pl_module).items())
        self.validated = True

    def on_train_batch_start(self, trainer: Any, pl_module: BagelModule, *args: Any) -> None:
        if hasattr(self, "validated"):
            found = in_shards(pl_module)
            assert all(torch.equal(found[name], v) for name, v in self.before.items())
            del self.validated


def in_shards(model: BagelModule) -> Weights:
    """Copies the weights; first frees gathered copies, to read the shards."""
    for module in model.network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return trainable(model)


def sharded_run(
    folder: Path, shards: Path, steps: int, ranks: int, resume: Path | None = None
) -> None:
    """Trains sharded, with validation; rank 0 writes the averages and the reference."""
    from mathcanvas_lightning.training.strategy import ShardedStrategy

    hand = ByHandInShards()
    validation = [config(shards, name="val")]
    model = run(
        folder,
        training_data(config(shards), validation=validation, packs_per_step=4),
        steps=steps,
        resume=resume,
        callbacks=[hand],
        accumulate_grad_batches=4 // ranks,
        devices=ranks,
        strategy=ShardedStrategy(),
        limit_val_batches=1,
        val_check_interval=2,
        inference_mode=False,
    )
    found = {"ema": averages(model), "hand": hand.average}
    if model.global_rank == 0:
        torch.save(found, folder / "found.pt")


def launch(ranks: int, folder: Path, shards: Path, resume: Path | None = None) -> None:
    options = {"shards": shards, "steps": 4, "ranks": ranks, "resume": resume}
    run_ranks(ranks, folder, partial(sharded_run, folder, **options))


@pytest.fixture(scope="module")
def sharded(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps on two ranks."""
    folder = tmp_path_factory.mktemp("sharded")
    launch(2, folder, shards)
    return folder


@pytest.mark.slow
def test_in_shards(sharded: Path) -> None:
    found = torch.load(sharded / "found.pt", weights_only=True)
    close(found["ema"], found["hand"])


@pytest.mark.slow
def test_exported_from_shards(sharded: Path, tmp_path: Path) -> None:
    report = export_checkpoint(
        str(sharded / "step4.ckpt"), output=str(tmp_path / "out"), ema=True, dtype="fp32"
    )
    assert report.step == 4
    stored = load_file(tmp_path / "out" / "ema.safetensors")
    averages = torch.load(sharded / "found.pt", weights_only=True)["ema"]
    assert averages
    for name, average in averages.items():
        assert torch.equal(stored[name], average), name


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 1])
def test_resumed_in_shards(ranks: int, sharded: Path, shards: Path, tmp_path: Path) -> None:
    resume = sharded / "step2.ckpt"
    launch(ranks, tmp_path, shards, resume)
    found, wanted = (
        torch.load(f / "found.pt", weights_only=True)["ema"] for f in (tmp_path, sharded)
    )
    if ranks == 2:
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    else:
        close(found, {name: tensor.double() for name, tensor in wanted.items()}, 1e-6)
