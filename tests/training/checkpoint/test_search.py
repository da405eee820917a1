"""Which checkpoint a restarted run resumes from, and what it passes over."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from mathcanvas_lightning.errors import ConfigError, DataError
from mathcanvas_lightning.training.checkpoint import resume
from mathcanvas_lightning.training.checkpoint.record import RECORD_KEY
from mathcanvas_lightning.training.checkpoint.resume import checkpoint_locations, find_checkpoint
from mathcanvas_lightning.training.checkpoint.verify import require_readable
from mathcanvas_lightning.training.settings import make_record
from tests.training.runs import network

RECORD = make_record(network()).to_state()


def save(path: Path, step: int, **changes: Any) -> str:
    """Writes what matters of a run's checkpoint; None leaves a section out."""
    content = {
        "global_step": step,
        "state_dict": {},
        "optimizer_states": [{"state": {}}],
        "lr_schedulers": [{}],
        RECORD_KEY: RECORD,
        **changes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return str(path)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    monkeypatch.setattr(resume, "rank_zero_info", texts.append)
    return texts


def test_the_last_one_with_record_and_optimizer_state(tmp_path: Path, said: list[str]) -> None:
    save(tmp_path / "step2.ckpt", 2)
    last = save(tmp_path / "deep" / "metric=1" / "step4.ckpt", 4)
    save(tmp_path / "v1-5-pruned.ckpt", 999_000, **{RECORD_KEY: None})
    save(tmp_path / "weights6.ckpt", 6, optimizer_states=None, lr_schedulers=None)
    save(tmp_path / ".tmp-step8.ckpt", 8)
    torch.save(torch.ones(3), tmp_path / "tensor.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    torch.save({"global_step": "x"}, tmp_path / "text.ckpt")
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "folder.ckpt").mkdir()
    assert find_checkpoint(tmp_path) == last
    assert said[-1] == f"Resuming from step 4: {last}"
    passed_over = {Path(text.split(": found")[0].removeprefix("Skipped ")).name for text in said}
    assert passed_over >= {"v1-5-pruned.ckpt", "weights6.ckpt", "tensor.ckpt", "list.ckpt"}
    assert passed_over >= {"text.ckpt", "empty.ckpt", "folder.ckpt"}
    assert ".tmp-step8.ckpt" not in passed_over
    [weights] = [text for text in said if "weights6" in text]
    assert "found only weights" in weights
    [foreign] = [text for text in said if "v1-5" in text]
    assert "without a record" in foreign


def test_records_of_other_modules_are_not_needed(tmp_path: Path) -> None:
    last = save(tmp_path / "step2.ckpt", 2, **{RECORD_KEY: None})
    assert find_checkpoint(tmp_path) is None
    assert find_checkpoint(tmp_path, need_record=False) == last


def test_links_are_followed(tmp_path: Path) -> None:
    real = save(tmp_path / "scratch" / "step4.ckpt", 4)
    root = tmp_path / "run"
    root.mkdir()
    (root / "checkpoints").symlink_to(tmp_path / "scratch")
    (root / "above").symlink_to(tmp_path)  # a circle
    assert Path(find_checkpoint(root) or "").resolve() == Path(real)
    assert find_checkpoint(root / "checkpoints") == str(root / "checkpoints" / "step4.ckpt")
    (tmp_path / "scratch" / "last.ckpt").symlink_to("step4.ckpt")
    (tmp_path / "scratch" / "gone.ckpt").symlink_to("step9.ckpt")
    assert find_checkpoint(root / "checkpoints") == str(root / "checkpoints" / "step4.ckpt")


def trainer(root: Path | None, *savers: ModelCheckpoint, logger: Any = False) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=logger, default_root_dir=root, callbacks=list(savers) or None
    )


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root, stopped = tmp_path / "run", tmp_path / "run" / "stopped.ckpt"
    own = ModelCheckpoint(tmp_path / "own")
    assert checkpoint_locations(trainer(root, own), root_is_named=True) == [
        tmp_path / "own",
        stopped,
    ]
    assert checkpoint_locations(trainer(None, own), root_is_named=False) == [tmp_path / "own"]
    assert checkpoint_locations(trainer(None), root_is_named=False) == []
    assert checkpoint_locations(trainer(root), root_is_named=True) == [
        root / "checkpoints",
        stopped,
    ]
    logs = tmp_path / "logs" / "curves"
    for version in ("version_0", "version_1"):
        (logs / version / "checkpoints").mkdir(parents=True)
    (logs / "other" / "checkpoints").mkdir(parents=True)
    found = sorted(logs.glob("version_*/checkpoints"))
    for version, folder in (("mine", "mine"), (3, "version_3"), ("", "")):
        one = trainer(None, logger=CSVLogger(tmp_path / "logs", name="curves", version=version))
        wanted = [logs / folder / "checkpoints"]
        assert checkpoint_locations(one, root_is_named=False) == wanted
    logger = CSVLogger(tmp_path / "logs", name="curves")
    assert checkpoint_locations(trainer(None, logger=logger), root_is_named=False) == found
    mixed = trainer(root, own, ModelCheckpoint(every_n_train_steps=7), logger=logger)
    assert checkpoint_locations(mixed, root_is_named=True) == [tmp_path / "own", *found, stopped]


def test_another_experiment_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without a separate folder starts in a folder with other runs."""
    save(tmp_path / "old_experiment" / "step4.ckpt", 4)
    save(tmp_path / "run" / "nested" / "checkpoints" / "step4.ckpt", 4)
    monkeypatch.chdir(tmp_path)
    for root, named in ((None, False), (tmp_path / "run", True), (tmp_path / "new", True)):
        locations = checkpoint_locations(trainer(root), root_is_named=named)
        assert find_checkpoint(*locations) is None
    stopped = save(tmp_path / "run" / "stopped.ckpt", 3)
    locations = checkpoint_locations(trainer(tmp_path / "run"), root_is_named=True)
    assert find_checkpoint(*locations) == stopped


def test_a_checkpoint_that_is_named(tmp_path: Path) -> None:
    weights = save(tmp_path / "weights.ckpt", 6, optimizer_states=None)
    with pytest.raises(ConfigError, match=r"only weights.*set model\.source\.weights"):
        require_readable(weights, sharded=False)
    require_readable(weights, sharded=False, weights_only=True)
    foreign = save(tmp_path / "foreign.ckpt", 6, **{RECORD_KEY: None})
    for weights_only in (False, True):
        with pytest.raises(DataError, match="without a record"):
            require_readable(foreign, sharded=False, weights_only=weights_only)
    torch.save(SimpleNamespace(a=1), tmp_path / "object.ckpt")
    with pytest.raises(DataError, match=r"object\.ckpt: found a damaged checkpoint, or none"):
        require_readable(tmp_path / "object.ckpt", sharded=False)
