"""Counted operations against those of torch's FlopCounterMode."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.flops import forward_flops
from mathcanvas_lightning.model.layers.attention import count_attended_pairs
from mathcanvas_lightning.model.synthetic import synthetic_inputs, synthetic_pack

CONFIG = BagelConfig.preset("tiny")


@pytest.mark.parametrize(
    "sample", [["question", "answer"], ["question", "clean", "vit", "answer", "noisy"], ["vit"]]
)
def test_count_is_that_of_torch_without_masked_pairs(sample: list) -> None:
    batch = synthetic_pack([sample, sample], CONFIG)
    model = Bagel.empty(CONFIG, dtype=torch.float32, device="cpu")
    model.reset_parameters(0)
    model.attention_path = "dense"
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(batch, **synthetic_inputs(batch, CONFIG))
    masked = batch.sequence_length**2 - count_attended_pairs(batch.sample_lens, batch.splits)
    masked_vit = sum(batch.vit_lens) ** 2 - sum(length**2 for length in batch.vit_lens)
    wasted = 4 * (
        masked * CONFIG.llm.num_hidden_layers * CONFIG.llm.hidden_size
        + masked_vit * CONFIG.vit.num_layers_used * CONFIG.vit.hidden_size
    )
    assert counter.get_total_flops() == forward_flops(CONFIG, batch) + wasted
