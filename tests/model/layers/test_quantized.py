"""Layers in NF4 and int8: error of the quantization, gradients, memory, and what is quantized."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.adapters import LoRASettings, add_lora, parameter_report
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers import quantized
from mathcanvas_lightning.model.layers.quantized import (
    Int8Linear,
    NF4Linear,
    WeightKind,
    quantize_frozen,
    quantized_layers,
    through_nf4,
)
from mathcanvas_lightning.model.parallelize import Parallelism, Precision, build_network

bitsandbytes = pytest.importorskip("bitsandbytes")
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
@pytest.mark.parametrize("shape", [(64, 32), (48, 128), (13, 7)])
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


@pytest.mark.parametrize("shape", [(64, 32), (48, 128), (96, 160), (13, 7)])
def test_each_weight_is_a_code_times_the_scale_of_its_block(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(shape[1], shape[0]).requires_grad_(False)
    layer = NF4Linear(linear, torch.float32)
    layer.load(linear.weight)
    packed = layer.weight.view(-1)
    codes = torch.stack([packed >> 4, packed & 15], dim=1).view(-1)[: layer.num_weights]
    table = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    scales = layer.absmax.repeat_interleave(quantized.BLOCK)[: layer.num_weights]
    torch.testing.assert_close(layer.dequantized().view(-1), table[codes.long()] * scales)
    with torch.no_grad():  # one row: bitsandbytes has an own kernel for it
        result = layer(torch.eye(shape[1])[:1])
    wanted = layer.dequantized()[:, :1].T + linear.bias
    torch.testing.assert_close(result, wanted, atol=1e-2, rtol=1e-2)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_stays_within_half_a_level(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(33, 20).requires_grad_(False)
    linear.weight[3] = 0.0
    linear.weight[4] *= 1e-6  # a row of small weights has its own scale
    layer = Int8Linear(linear, dtype)
    layer.load(linear.weight)
    level = linear.weight.abs().amax(1, keepdim=True) / 127
    error = (layer.weight * layer.scale[:, None] - linear.weight).abs()
    assert bool((error <= level / 2 + 1e-9).all())
    x = torch.randn(5, 33, dtype=dtype)
    exact = x.float() @ (layer.weight * layer.scale[:, None]).T + linear.bias
    # Only the result is rounded to bfloat16, never the scales.
    torch.testing.assert_close(
        layer(x), exact.to(dtype), rtol=1e-5 if dtype == torch.float32 else 1.6e-2, atol=1e-2
    )
    assert layer(x).dtype == dtype


@pytest.mark.parametrize(
    ("kind", "bits", "least", "most"), [("nf4", 4, 0.07, 0.12), ("int8", 8, 0.004, 0.012)]
)
def test_checkpoint_is_quantized_while_it_is_loaded(
    kind: WeightKind, bits: int, least: float, most: float, tmp_path: Path
) -> None:
    exact = build(quantized=False, lora=False)
    exact.save_checkpoint(tmp_path, dtype=torch.float32)
    model = Bagel.from_checkpoint(tmp_path, dtype=torch.float32, quantized=kind)
    wanted = {name: p.detach() for name, p in exact.named_parameters()}
    layers = dict(quantized_layers(model))
    assert len(layers) == CONFIG.llm.num_hidden_layers * 14 + CONFIG.vit.num_layers_used * 6
    for name, layer in layers.items():
        assert layer.weight.nbytes == layer.num_weights * bits // 8
        error = (layer.dequantized() - wanted[name]).norm() / wanted[name].norm()
        assert least < float(error) < most, name
    for name, parameter in model.named_parameters():
        assert name in layers or torch.equal(parameter, wanted[name]), name


def test_choice_of_components_of_a_quantized_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="components: found a choice, with quantized='int8'"):
        Bagel.from_checkpoint(tmp_path, quantized="int8", components=["connector"])
