"""Resumed runs equal uninterrupted ones, on the same and on other numbers of ranks."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from mathcanvas_lightning.errors import DataError, OutputError
from mathcanvas_lightning.model.checkpoint import TABLES
from mathcanvas_lightning.training.checkpoint.resume import (
    find_checkpoint,
    require_complete,
    require_readable,
)
from mathcanvas_lightning.training.checkpoint.verify import stored_shapes
from mathcanvas_lightning.training.strategy import AtomicCheckpointIO, ShardedStrategy
from tests.conftest import QUIET
from tests.data.make_rows import interleaved_shards
from tests.training.launch import Run, difference, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first test waits for all runs

CUT, END = 6, 9
ADAM = {"optimizer": {"lr": 1e-3, "eps": 1e-4}}  # see test_sharding.py
LORA = {"parts": ["und", "gen"], "rank": 2}
TOP = {"save_top_k": 2, "monitor": "step", "mode": "max"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


Runs = Callable[..., Run]


@pytest.fixture(scope="module")
def runs(folder: Path) -> Runs:
    """All runs of this file, by name."""
    rows = interleaved_shards(folder / "rows", 60)
    made: dict[str, Run] = {}

    def make(name: str, ranks: int = 2, **options: Any) -> Run:
        if name not in made:
            steps = CUT if "cut" in name else END
            every = None if "resumed" in name else 3
            given = {"replicas": 1, "steps": steps, "save_every": every, "model": ADAM, **options}
            made[name] = Run(
                folder=folder / name, shards=[rows], packs_per_step=2, ranks=ranks, **given
            )
        return made[name]

    cut, lora = make("cut_2").saved(CUT), folder / "lora_cut_2" / "saved" / "step6.ckpt"
    launch(
        2,
        make("straight_2", saver=TOP, async_save=True),
        make("cut_2"),
        make("resumed_22", resume=cut),
        make("resumed_22_replicated", resume=cut, replicas=2),
        make("full_2", journal={"full_at": 6}),
        make("full_2_background", journal={"full_at": 6}, async_save=True),
        make("lora_cut_2", model={"lora": LORA, **ADAM}),
        make("lora_straight_2", model={"lora": LORA, **ADAM}),
        make("lora_resumed_2", model={"lora": LORA, **ADAM}, resume=lora),
    )
    launch(
        1,
        make("straight_1", 1, replicas=None),
        make("cut_1", 1),
        make("cut_one_file", 1, replicas=None),
        make("resumed_21", 1, resume=cut),
        make("resumed_11", 1, resume=folder / "cut_1/saved/step6.ckpt"),
        make("resumed_one_file", 1, resume=folder / "cut_one_file/saved/step6.ckpt", replicas=None),
        make("resumed_other", 1, resume=cut, model={"lora": {"rank": 2}}),
        make("resumed_folder", 1, resume=cut, replicas=None),
        make("chain_cut_1", 1, resume=make("cut_2").saved(3), save_every=3),
        make("full_1", 1, replicas=None, journal={"full_at": 6}),
    )
    launch(
        2,
        make("resumed_12", resume=folder / "cut_1/saved/step6.ckpt"),
        make("chain_resumed_2", resume=folder / "chain_cut_1/saved/step6.ckpt"),
    )
    return make


@pytest.mark.parametrize(
    ("straight", "cut", "resumed", "tolerance"),
    [
        ("straight_2", "cut_2", "resumed_22", 0),
        ("straight_1", "cut_one_file", "resumed_one_file", 0),
        ("lora_straight_2", "lora_cut_2", "lora_resumed_2", 0),
        ("straight_1", "cut_1", "resumed_11", 0),
        ("straight_1", "cut_1", "resumed_12", 1e-6),
        ("straight_1", "cut_2", "resumed_21", 1e-6),
        ("straight_1", "cut_2", "resumed_22_replicated", 1e-6),
    ],
)
def test_cut_and_resumed(
    straight: str, cut: str, resumed: str, tolerance: float, runs: Runs
) -> None:
    whole, first, second = runs(straight), runs(cut), runs(resumed)
    assert min(second.batches()) == CUT
    assert first.batches() | second.batches() == whole.batches()
    losses = first.losses() | second.losses()
    assert losses == pytest.approx(whole.losses(), abs=max(tolerance, 1e-7))
    assert difference(second.weights(), whole.weights()) <= tolerance


def test_two_ranks_then_one_then_two(runs: Runs) -> None:
    whole, last = runs("straight_2"), runs("chain_resumed_2")
    parts = [runs("cut_2"), runs("chain_cut_1"), last]
    assert [min(part.batches()) for part in parts] == [0, 3, CUT]
    for part in parts:
        assert part.batches().items() <= whole.batches().items()
    assert set().union(*(part.batches() for part in parts)) == set(whole.batches())
    assert difference(last.weights(), whole.weights()) <= 1e-6


def test_top_checkpoints_and_link(runs: Runs) -> None:
    saved = runs("straight_2").folder / "saved"
    assert sorted(path.name for path in saved.iterdir()) == [
        "last.ckpt",
        "step6.ckpt",
        "step9.ckpt",
    ]
    assert (saved / "last.ckpt").is_symlink()
    assert (saved / "last.ckpt").resolve() == (saved / "step9.ckpt").resolve()
    assert require_complete(saved / "step6.ckpt") == 6


@pytest.mark.parametrize("name", ["full_1", "full_2", "full_2_background"])
def test_full_disk(name: str, runs: Runs) -> None:
    run = runs(name)
    for rank in range(run.ranks):
        error = run.error(rank)
        assert error.startswith("OutputError")
        assert "step6.ckpt" in error
        assert "No space left on device" in error
    assert find_checkpoint(run.folder) == str(run.saved(3))
    names = {path.name for path in (run.folder / "saved").iterdir()}
    assert names == {"step3.ckpt", "last.ckpt"}


def test_checkpoint_of_another_model(runs: Runs) -> None:
    error = runs("resumed_other").error()
    assert error.startswith("ConfigError")
    assert "step6.ckpt" in error
    assert "lora.rank None" in error
    assert "lora.rank 2" in error


def test_frozen_weights_are_left_out_of_shards(runs: Runs) -> None:
    sizes = [
        sum(path.stat().st_size for path in runs(name).saved(CUT).glob("*.distcp"))
        for name in ("lora_cut_2", "cut_2")
    ]
    assert sizes[0] < sizes[1] / 5
    trained = [name for name in stored_shapes(runs("lora_cut_2").saved(CUT)) if "lora" in name]
    assert trained
    assert {n for n in stored_shapes(runs("lora_cut_2").saved(CUT)) if "lora" not in n} == {
        f"model.{name}" for name in TABLES
    }


def test_folder_without_sharding(runs: Runs) -> None:
    assert "ShardedStrategy" in runs("resumed_folder").error()


def copied(run: Run, folder: Path) -> Path:
    """Copies the checkpoints of a run."""
    shutil.copytree(run.folder / "saved", folder, symlinks=True)
    return folder


@pytest.mark.parametrize("name", ["cut_2", "cut_one_file"])
def test_finds_the_last_complete_checkpoint(name: str, runs: Runs, tmp_path: Path) -> None:
    saved = copied(runs(name), tmp_path / "saved")
    third, sixth = saved / "step3.ckpt", saved / "step6.ckpt"
    assert find_checkpoint(tmp_path) == str(sixth)
    sixth.rename(saved / ".tmp-step6.ckpt")
    assert find_checkpoint(tmp_path) == str(third)
    (saved / ".tmp-step6.ckpt").rename(saved / ".old-step6.ckpt")
    assert find_checkpoint(tmp_path) == str(saved / ".old-step6.ckpt")
    assert find_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("part", ["__0_0.distcp", "__1_0.distcp", ".metadata", "meta.pt"])
@pytest.mark.parametrize("keep", [None, 0, 0.5])
def test_incomplete_folder(part: str, keep: float | None, runs: Runs, tmp_path: Path) -> None:
    saved = copied(runs("cut_2"), tmp_path / "saved")
    damage(saved / "step6.ckpt" / part, keep)
    assert find_checkpoint(tmp_path) == str(saved / "step3.ckpt")
    with pytest.raises(DataError, match=r"step6\.ckpt") as caught:
        require_readable(saved / "step6.ckpt", sharded=True)
    if keep is None:
        assert part in str(caught.value)


@pytest.mark.parametrize("keep", [0, 0.5, 0.999])
def test_incomplete_file(keep: float, runs: Runs, tmp_path: Path) -> None:
    saved = copied(runs("cut_one_file"), tmp_path / "saved")
    damage(saved / "step6.ckpt", keep)
    assert find_checkpoint(tmp_path) == str(saved / "step3.ckpt")


def damage(path: Path, keep: float | None) -> None:
    """Truncates a file, or removes it."""
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def test_other_files_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_text("no checkpoint")
    (tmp_path / "b.ckpt").mkdir()
    torch.save({"weights": 1}, tmp_path / "c.ckpt")
    assert find_checkpoint(tmp_path) is None


def test_failed_save_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver, target = AtomicCheckpointIO(), tmp_path / "new" / "a.ckpt"
    saver.save_checkpoint({"global_step": 1}, target)
    (tmp_path / "new" / ".tmp-b.ckpt").write_text("left by a kill")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        saver.save_checkpoint({"global_step": 2}, target)
    monkeypatch.undo()
    assert [path.name for path in target.parent.iterdir()] == ["a.ckpt"]
    assert require_complete(target) == 1


class HalfUsed(LightningModule):
    """Uses only one of its two layers."""

    def configure_model(self) -> None:
        self.model = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
        for layer in self.model:
            fully_shard(layer, mesh=self.trainer.strategy.device_mesh["shard"])

    def training_step(self, batch: Tensor, number: int) -> Tensor:
        return self.model[0](batch).square().sum()

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader([torch.ones(4)] * 4)  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1, foreach=False)


@pytest.mark.filterwarnings("ignore")
def test_unused_parameters_can_be_resumed(tmp_path: Path) -> None:
    def fit(steps: int, resume: Path | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        trainer = Trainer(
            strategy=ShardedStrategy(), max_steps=steps, default_root_dir=tmp_path, **QUIET
        )
        module = HalfUsed()
        trainer.fit(module, ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        assert trainer.validate_loop.inference_mode is False  # FSDP2 gathers in no_grad only
        return {n: t.full_tensor().clone() for n, t in module.state_dict().items()}

    try:
        whole = fit(4)
        fit(2)
        resumed = fit(3, tmp_path / "2.ckpt")
        assert difference(fit(4, tmp_path / "3.ckpt"), whole) == 0
        assert difference(resumed, whole) > 0
    finally:
        torch.distributed.destroy_process_group()


def test_keywords_of_lightning_are_not_checked() -> None:
    require_readable("last", sharded=False)
