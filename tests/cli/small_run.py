"""Settings of a fit that takes a second, as a YAML file."""

from pathlib import Path
from typing import Any

import yaml

from tests.training.launch import TRANSFORMS
from tests.training.runs import SMALL


def write_settings(path: Path, shards: Path, **trainer: Any) -> Path:
    """Writes the settings of two steps on a new tiny network.

    Args:
        path: File to write.
        shards: Data to train on and to validate with.
        trainer: Further settings of the Trainer.

    Returns:
        The file.
    """
    sets = [{"path": str(shards), "name": "set", **TRANSFORMS}]
    content = {
        "data": {
            "class_path": "mathcanvas_lightning.MathCanvasDataModule",
            "init_args": {
                "train": sets,
                "validation": sets,
                "max_num_tokens": 400,
                "max_num_tokens_per_sample": 400,
                "workers": {"num_workers": 0},
                "index_workers": 0,
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
            "devices": 1,
            "max_steps": 2,
            "log_every_n_steps": 1,
            "val_check_interval": 1,
            "limit_val_batches": 1,
            "num_sanity_val_steps": 0,
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {
                        "filename": "step{step}",
                        "auto_insert_metric_name": False,
                        "every_n_train_steps": 1,
                        "save_top_k": 1,
                        "monitor": "step",
                        "mode": "max",
                        "save_last": "link",
                        "save_on_train_epoch_end": False,
                        "enable_version_counter": False,
                    },
                }
            ],
            **trainer,
        },
    }
    path.write_text(yaml.safe_dump(content))
    return path
