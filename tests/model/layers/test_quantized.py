"""Layers in NF4: error of the quantization, gradients, memory, and what is quantized."""

import sys

import pytest
import torch
from torch import nn

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.adapters import LoRASettings, add_lora, parameter_report
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers import quantized
from mathcanvas_lightning.model.layers.quantized import (
    NF4Linear,
    quantize_frozen,
    quantized_layers,
    through_nf4,
)
from mathcanvas_lightning.model.parallelize import Parallelism, Precision, build_network

pytest.importorskip("bitsandbytes")
CONFIG = BagelConfig.preset("tiny")
CPU = torch.device("cpu")


def build(*, quantized: bool = True, lora: bool = True) -> Bagel:
    def prepare(model: Bagel) -> None:
        model.freeze()
        if lora:
            add_lora(model, LoRASettings(parts=("und", "gen"), rank=4))

    return build_network(
        CONFIG,
        None,
        None,
        device=CPU,
        precision=Precision(
            params=torch.float32, frozen=torch.float32, compute=torch.float32, quantized=quantized
        ),
        parallelism=Parallelism(),
        prepare=prepare,
        seed=0,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 32), (13, 7)])
def test_result_and_gradient(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(shape[1], shape[0], dtype=dtype).requires_grad_(False)
    layer = NF4Linear(linear, dtype)
    layer.load(linear.weight)
    weight = layer.dequantized()
    assert torch.equal(weight, through_nf4(linear.weight, dtype))
    x = torch.randn(3, shape[1], dtype=dtype, requires_grad=True)
    result = layer(x)
    torch.testing.assert_close(result, x @ weight.T + linear.bias, atol=1e-2, rtol=1e-2)
    [gradient] = torch.autograd.grad(result.sum(), x)
    torch.testing.assert_close(gradient, weight.sum(0).expand(3, -1), atol=1e-2, rtol=2e-2)


def test_error_of_every_layer() -> None:
    exact = dict(build(quantized=False).named_parameters())
    layers = dict(quantized_layers(build()))
    assert len(layers) == CONFIG.llm.num_hidden_layers * 14 + CONFIG.vit.num_layers_used * 6
    for name, layer in layers.items():
        wanted = exact[name]
        # NF4 of normal values, with a scale for 64 of them: about 9 % of their norm.
        error = float((layer.dequantized() - wanted).norm() / wanted.norm())
        assert 0.07 < error < 0.12, name


def test_only_frozen_layers_of_the_stacks_are_quantized() -> None:
    model = build()
    names = {name for name, _ in quantized_layers(model)}
    for name, parameter in model.named_parameters():
        assert (parameter.dtype == torch.uint8) == (name in names)
        assert name not in names or not parameter.requires_grad
    assert not any("lora" in name or "lm_head" in name or "norm" in name for name in names)
    assert not any(name.startswith(("time_embedder", "connector", "vae2llm")) for name in names)
    wanted = parameter_report(build(quantized=False))
    assert parameter_report(model) == wanted


def test_sharded_or_without_frozen_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="no frozen layers"):
        build(lora=False)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"mathcanvas-lightning\[qlora\]"):
        quantize_frozen(nn.Linear(2, 2).requires_grad_(False), torch.float32)
    assert quantized.BLOCK == 64
