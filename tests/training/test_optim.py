"""AdamW: the fused kernel is the default, also for weights in host memory."""

import torch
from torch import nn

from mathcanvas_lightning.training.optim import OptimizerConfig, make_optimizer


def trained(fused: bool | None) -> tuple[bool, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    optimizer = make_optimizer(model, OptimizerConfig(lr=1e-2, weight_decay=0.1, fused=fused))
    for step in range(3):
        model(torch.full((2, 7), 1.0 + step)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return bool(optimizer.defaults["fused"]), [p.detach() for p in model.parameters()]


def test_fused_by_default_and_equal_to_the_loop() -> None:
    is_fused, weights = trained(None)
    assert is_fused
    was_fused, plain = trained(False)
    assert not was_fused
    torch.testing.assert_close(weights, plain)
