"""Weights of a checkpoint, read one at a time."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.training.checkpoint.weights import NETWORK, NetworkWeights, SavedState


def test_weights_of_a_run_that_has_diverged() -> None:
    saved = SavedState(
        about={},
        shapes={f"{NETWORK}a.weight": (2,), f"{NETWORK}b.weight": (2,)},
        read=lambda name: torch.tensor([1.0, float("nan") if "b" in name else 2.0]),
    )
    record: Any = SimpleNamespace(
        lora=None, left_out=(), settings={"model.compute_dtype": "float32"}
    )
    weights = NetworkWeights(saved, record, {}, average=False, place="step9.ckpt")
    assert weights["a.weight"].tolist() == [1.0, 2.0]
    with pytest.raises(DataError, match=r"step9\.ckpt: found b\.weight with 1 values that are NaN"):
        weights["b.weight"]
