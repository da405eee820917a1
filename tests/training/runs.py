"""Short trainings on generated shards, for the tests of this folder."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from mathcanvas_lightning.data.loading.config import DatasetConfig, WorkerConfig
from mathcanvas_lightning.data.sequence.roles import NO_DROPOUT
from mathcanvas_lightning.training.module import BagelModule
from mathcanvas_lightning.training.optim import OptimizerConfig, ScheduleConfig
from mathcanvas_lightning.training.source import ModelSource
from tests.conftest import QUIET
from tests.data.make_rows import config, module

SMALL: dict[str, Any] = {
    "llm_vocab_size": 320,
    "llm_hidden_size": 64,
    "llm_intermediate_size": 128,
    "llm_num_hidden_layers": 2,
    "llm_num_attention_heads": 2,
    "llm_num_key_value_heads": 1,
    "llm_rope_theta": 1e6,
    "llm_initializer_range": 0.02,
    "vit_hidden_size": 32,
    "vit_intermediate_size": 64,
    "vit_num_attention_heads": 2,
    "vae_ch": 8,
    "vae_ch_mult": (1, 1, 1, 1),
    "vae_norm_num_groups": 4,
    "vae_scale_factor": 0.3611,
    "vae_shift_factor": 0.1159,
    "max_latent_size": 6,
    "vit_max_num_patch_per_side": 8,
}


def training_data(*train: DatasetConfig, **options: Any) -> Any:
    """Makes a data module with the geometry of the tiny network."""
    from mathcanvas_lightning.data.datamodule import MathCanvasDataModule

    defaults: dict[str, Any] = {
        "max_num_tokens": 400,
        "max_num_tokens_per_sample": 400,
        "geometry": ModelSource(preset="tiny", overrides=SMALL).config().geometry,
        "workers": WorkerConfig(num_workers=0),
        "index_workers": 0,
        "dropout": NO_DROPOUT,
    }
    return MathCanvasDataModule(train=list(train), **{**defaults, **options})


def network(**options: Any) -> BagelModule:
    """Makes a module with a tiny, randomly initialized network."""
    defaults: dict[str, Any] = {
        "source": ModelSource(preset="tiny", overrides=SMALL),
        "optimizer": OptimizerConfig(lr=1e-3),
        "schedule": ScheduleConfig(name="constant"),
    }
    return BagelModule(**{**defaults, **options})


def train(
    model: BagelModule, data: Any, folder: Path, *, accumulate: int = 1, **options: Any
) -> Trainer:
    """Fits in this process, without loggers or progress bars."""
    seed_everything(0, verbose=False)
    defaults: dict[str, Any] = {
        **QUIET,
        "max_steps": 3,
        "accumulate_grad_batches": accumulate,
        "gradient_clip_val": 1.0,
        "default_root_dir": folder,
    }
    trainer = Trainer(**{**defaults, **options})
    trainer.fit(model, data)
    return trainer


def weights(model: BagelModule) -> dict[str, torch.Tensor]:
    """Copies the network's weights."""
    return {name: tensor.detach().clone() for name, tensor in model.network.state_dict().items()}


__all__ = ["SMALL", "config", "module", "network", "train", "training_data", "weights"]
