"""A module that records its batches without learning."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from mathcanvas_lightning.batch import MicroBatch
from mathcanvas_lightning.data.loading.config import WorkerConfig
from tests.conftest import QUIET
from tests.data.hashes import digest
from tests.data.make_rows import config, module


class Recorder(LightningModule):
    """Writes one line per micro-batch: epoch, step, ids and digest."""

    def __init__(self, journal: Path, *, ask_for_steps: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.journal = journal
        self.ask_for_steps = ask_for_steps
        self.steps_asked = 0

    def training_step(self, batch: MicroBatch, batch_idx: int) -> torch.Tensor:
        line = {
            "epoch": batch.epoch,
            "step": batch.step,
            "optimizer_step": self.global_step,
            "uids": [sample.uid for sample in batch.samples],
            "digest": digest(batch),
        }
        with self.journal.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return self.weight.sum() * 0

    def validation_step(self, batch: MicroBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        assert batch.samples or batch.is_filler

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.ask_for_steps:
            self.steps_asked = int(self.trainer.estimated_stepping_batches)
        return torch.optim.SGD(self.parameters(), lr=0.1)


class StopAt(Callback):
    """Ends the run after some optimizer steps, like a kill."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.strategy.barrier()  # no rank is killed while another one still saves
            raise KilledError


class KilledError(Exception):
    """Simulates a kill."""


def fit(
    folder: Path,
    journal: Path,
    *,
    packs_per_step: int,
    ranks: int = 1,
    workers: int = 0,
    epochs: int | None = None,
    stop: int | None = None,
    resume: Path | None = None,
    ask_for_steps: bool = False,
    every: int = 1,
    max_steps: int = -1,
    validate: bool = False,
    checkpoints: ModelCheckpoint | None = None,
    **trainer_options: Any,
) -> Trainer:
    """Trains on shards and saves a checkpoint every `every` steps."""
    seed_everything(0, verbose=False)
    data = module(
        config(folder), packs_per_step=packs_per_step, workers=WorkerConfig(num_workers=workers)
    )
    if validate:
        data.validation_configs = (config(folder, name="val"),)
    callbacks: list[Callback] = [
        checkpoints
        or ModelCheckpoint(
            journal.parent,
            "step{step}",
            every_n_train_steps=every,
            save_top_k=-1,
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,
        )
    ]
    if stop is not None:
        callbacks.append(StopAt(stop))
    trainer = Trainer(
        strategy="ddp" if ranks > 1 else "auto",
        max_epochs=epochs or (2 if max_steps < 0 else -1),
        max_steps=max_steps,
        accumulate_grad_batches=packs_per_step // ranks,
        callbacks=callbacks,
        default_root_dir=journal.parent,
        **{**QUIET, "devices": ranks, "enable_checkpointing": True, **trainer_options},
    )
    rank_journal = journal.with_suffix(f".{trainer.global_rank}.jsonl")
    model = Recorder(rank_journal, ask_for_steps=ask_for_steps)
    try:
        trainer.fit(model, data, ckpt_path=None if resume is None else str(resume))
    except KilledError:
        if ranks > 1:
            os._exit(0)
    return trainer
