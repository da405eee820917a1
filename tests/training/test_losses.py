"""Losses over global counts: the shares of a step sum to its mean losses."""

import dataclasses

import pytest
import torch

from mathcanvas_lightning.batch import LossTotals
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.bagel import BagelOutput
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.synthetic import synthetic_pack
from mathcanvas_lightning.training.losses import (
    CEReduction,
    LossConfig,
    ce_total,
    loss_terms,
    token_accuracy,
)

CONFIG = BagelConfig.preset("tiny")
PACK = synthetic_pack([["question", "answer", "noisy"], ["answer", "answer"]], CONFIG)


def output_of(pack: object, seed: int = 0) -> tuple[BagelOutput, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(PACK.mse_indexes), 8)
    output = BagelOutput(
        hidden_states=torch.zeros(1, 4),
        ce=torch.rand(len(PACK.ce_indexes), generator=generator),
        velocities=torch.rand(shape, generator=generator),
    )
    return output, torch.rand(shape, generator=generator)


@pytest.mark.parametrize("reduction", ["token", "square", "sample"])
def test_terms_are_means(reduction: CEReduction) -> None:
    output, target = output_of(PACK)
    terms = loss_terms(output, target, PACK, LossTotals.of(PACK), reduction)
    weights = {
        "token": torch.ones_like(PACK.ce_weights),
        "square": PACK.ce_weights,
        "sample": PACK.ce_weights**2,
    }[reduction]
    assert terms.ce == pytest.approx(float((output.ce * weights).sum() / weights.sum()), rel=1e-6)
    mse = ((output.velocities - target) ** 2).mean()
    assert terms.mse == pytest.approx(float(mse), rel=1e-6)
    assert terms.combined(LossConfig()) == pytest.approx(float(0.25 * terms.ce + terms.mse))


def test_shares_sum_to_the_whole() -> None:
    output, target = output_of(PACK)
    own = LossTotals.of(PACK)
    twice = LossTotals(
        ce_tokens=2 * own.ce_tokens,
        ce_square=2 * own.ce_square,
        ce_sample=2 * own.ce_sample,
        mse_tokens=2 * own.mse_tokens,
    )
    whole, half = (loss_terms(output, target, PACK, t, "token") for t in (own, twice))
    assert 2 * half.ce == pytest.approx(float(whole.ce))
    assert 2 * half.mse == pytest.approx(float(whole.mse))


def test_a_pack_without_losses_stays_in_the_graph() -> None:
    pack = synthetic_pack([["question"]], CONFIG)
    ce, velocities = torch.zeros(0, requires_grad=True), torch.zeros(0, 8, requires_grad=True)
    output = BagelOutput(hidden_states=torch.zeros(1, 4), ce=ce, velocities=velocities)
    terms = loss_terms(output, torch.zeros(0, 8), pack, LossTotals(), "square")
    loss = terms.combined(LossConfig())
    assert loss == 0
    loss.backward()
    assert ce.grad is not None
    assert ce_total(LossTotals(), "token") == 1


def test_accuracy() -> None:
    head = torch.eye(5)
    states = torch.eye(5)[[0, 1, 2, 3]]
    labels = torch.tensor([0, 1, 0, 3])
    assert token_accuracy(states, head, labels, chunk=3) == 3
    assert token_accuracy(states[:0], head, labels[:0]) == 0


def test_weights_that_make_no_loss() -> None:
    for weights in ({"ce_weight": -1.0}, {"ce_weight": 0.0, "mse_weight": 0.0}):
        with pytest.raises(ConfigError, match="ce_weight"):
            LossConfig(**weights)
    assert dataclasses.asdict(LossConfig(ce_weight=0.0))["mse_weight"] == 1.0
