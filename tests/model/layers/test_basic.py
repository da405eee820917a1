"""Layers that take no memory."""

from typing import Any

import pytest
import torch
from torch import nn

from mathcanvas_lightning.model.layers.basic import without_memory


def test_without_memory_nothing_is_initialized(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a tensor was initialized")

    for name in ("uniform_", "normal_"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    with without_memory():
        layers = nn.Linear(3, 4), nn.Embedding(5, 6), nn.Conv2d(1, 2, 3)
    assert all(parameter.is_meta for layer in layers for parameter in layer.parameters())
    with pytest.raises(AssertionError, match="was initialized"):
        nn.Linear(3, 4)
