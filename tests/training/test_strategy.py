"""ShardedStrategy inside a Trainer, in one process."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from mathcanvas_lightning.training.strategy import ShardedStrategy


def test_no_loop_runs_in_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    # FSDP2 can't gather parameters in it on CUDA; with gloo, Lightning turns it off by itself.
    monkeypatch.setattr(ModelParallelStrategy, "setup", lambda self, trainer: None)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    loops = (trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
    assert all(loop.inference_mode for loop in loops)
    strategy = ShardedStrategy()
    strategy.model = torch.nn.Linear(1, 1)
    strategy.setup(trainer)
    assert not any(loop.inference_mode for loop in loops)
