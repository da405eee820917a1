"""The formulas against what layers really keep."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers.basic import rotary_tables
from mathcanvas_lightning.model.layers.mot import DecoderLayer
from mathcanvas_lightning.model.layers.vit import ViTLayer
from mathcanvas_lightning.training.memory.formulas import layer_activation_bytes, pinned_bytes

TOKENS = 256


class FusedAttention(torch.autograd.Function):
    """Keeps what a fused kernel keeps: q, k, v and the result."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.clone()
        ctx.save_for_backward(query, key, value, result)
        return result


def kept_bytes(layer: torch.nn.Module, run: object) -> int:
    """Bytes of floats that autograd saves, without the layer's weights."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()  # type: ignore[operator]
    assert result is not None
    return sum(size for place, size in sizes.items() if place not in weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("hidden", "inner", "kv_heads"), [(256, 512, 2), (128, 1024, 4)])
def test_activations_of_a_layer(dtype: torch.dtype, hidden: int, inner: int, kv_heads: int) -> None:
    config = BagelConfig.preset(
        "tiny",
        llm_hidden_size=hidden,
        llm_intermediate_size=inner,
        llm_num_key_value_heads=kv_heads,
        vit_hidden_size=hidden,
        vit_intermediate_size=inner,
        vit_num_attention_heads=4,
    )
    und, gen, patches = (
        torch.randn(n, hidden, dtype=dtype, requires_grad=True)
        for n in (TOKENS // 2, TOKENS // 2, TOKENS)
    )
    tables = rotary_tables(torch.arange(TOKENS), config.llm.head_dim, 1e4)
    first, second = (tuple(part) for part in zip(*(t.chunk(2) for t in tables), strict=True))
    decoder, vit = DecoderLayer(config.llm).to(dtype), ViTLayer(config.vit).to(dtype)
    wanted = layer_activation_bytes(config, dtype, is_compiled=False)
    found = (
        kept_bytes(decoder, lambda: decoder(und, gen, (first, second), FusedAttention.apply)),
        kept_bytes(vit, lambda: vit(patches, FusedAttention.apply)),
    )
    assert [size / TOKENS for size in found] == pytest.approx(wanted, rel=0.04)


def test_compiled_layers_keep_less() -> None:
    config = BagelConfig.preset("7b")
    compiled, whole = (
        layer_activation_bytes(config, torch.bfloat16, is_compiled=c) for c in (True, False)
    )
    assert compiled[0] < 0.95 * whole[0]
    assert compiled[1] == whole[1]


def test_page_locked_tensors_are_rounded_up() -> None:
    assert pinned_bytes([1, 3, 4, 5, 0], 1) == 1 + 4 + 4 + 8
    with torch.device("meta"):
        sizes = [parameter.numel() for parameter in Bagel(BagelConfig.preset("7b")).parameters()]
    assert sum(sizes) * 2 == pytest.approx(29.2e9, rel=0.01)
    assert pinned_bytes(sizes, 2) == pytest.approx(55.1e9, rel=0.01)
