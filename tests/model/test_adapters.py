"""LoRA: placement, unchanged outputs at the start, merging."""

import pytest
import torch

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.adapters import (
    LORA_PARTS,
    LoRASettings,
    absorb_lora,
    add_lora,
    has_lora,
    merge_lora,
    parameter_report,
    unmerge_lora,
)
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.synthetic import synthetic_inputs, synthetic_pack

CONFIG = BagelConfig.preset("tiny", llm_vocab_size=128)
BATCH = synthetic_pack([["question", "clean", "vit", "answer", "noisy", "clean", "answer"]], CONFIG)
INPUTS = synthetic_inputs(BATCH, CONFIG)


@pytest.fixture
def model() -> Bagel:
    model = Bagel.empty(CONFIG, dtype=torch.float32, device="cpu")
    model.reset_parameters(0)
    return model


def hidden(model: Bagel) -> torch.Tensor:
    with torch.no_grad():
        return model(BATCH, **INPUTS).hidden_states


def disturb(model: Bagel) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("part", LORA_PARTS)
def test_each_part(part: str, model: Bagel) -> None:
    before = hidden(model)
    names = add_lora(model, LoRASettings(parts=[part], rank=2))
    layers = CONFIG.vit.num_layers_used if part == "vit" else CONFIG.llm.num_hidden_layers
    wanted = {"und": 7 * layers, "gen": 7 * layers, "vit": 6 * layers, "connector": 2}
    assert len(names) == wanted[part]
    assert all(("_moe_gen" in name) == (part == "gen") for name in names)
    assert torch.equal(hidden(model), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.lora_{matrix}.default.weight" for name in names for matrix in "AB"}
    disturb(model)
    assert not torch.allclose(hidden(model), before)


def test_merge_and_unmerge(model: Bagel) -> None:
    before = hidden(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_lora(model, LoRASettings(parts=list(LORA_PARTS), rank=4, alpha=8))
    disturb(model)
    adapted = hidden(model)
    merge_lora(model)
    torch.testing.assert_close(hidden(model), adapted, atol=1e-4, rtol=1e-4)
    unmerge_lora(model)
    torch.testing.assert_close(hidden(model), adapted, atol=1e-5, rtol=1e-5)
    assert has_lora(model)
    absorb_lora(model)
    assert not has_lora(model)
    assert model.state_dict().keys() == weights.keys()
    torch.testing.assert_close(hidden(model), adapted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(adapted, before)


def test_adapters_train(model: Bagel) -> None:
    add_lora(model, LoRASettings(parts=["gen"], rank=2))
    disturb(model)
    model.llm2vae.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    model(BATCH, **INPUTS).velocities.square().sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert gradients
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())


def test_pattern(model: Bagel) -> None:
    names = add_lora(model, LoRASettings(parts=["und", "gen"], pattern=r"layers\.1\..*(q|v)_proj"))
    assert sorted(names) == [
        f"language_model.model.layers.1.self_attn.{p}_proj{suffix}"
        for p in "qv"
        for suffix in ("", "_moe_gen")
    ]


def test_seed_of_the_initial_weights() -> None:
    states = []
    for seed in (1, 1, 2):
        model = Bagel.empty(CONFIG, dtype=torch.float32, device="cpu")
        model.reset_parameters(0)
        torch.manual_seed(99)
        add_lora(model, LoRASettings(rank=2, seed=seed))
        states.append({n: t for n, t in model.state_dict().items() if "lora_A" in n})
        assert torch.rand(1).item() == pytest.approx(
            torch.rand(1, generator=torch.Generator().manual_seed(99)).item()
        )
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not all(torch.equal(states[0][n], states[2][n]) for n in states[0])


def test_generators_of_gpus_stay_as_they_are(model: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError("seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = torch.get_rng_state()
    assert add_lora(model, LoRASettings(parts=["gen"], rank=2, seed=7))
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_settings(model: Bagel) -> None:
    with pytest.raises(ConfigError, match=r"lora\.parts"):
        add_lora(model, LoRASettings(parts=["llm"]))
    with pytest.raises(ConfigError, match="at least one"):
        add_lora(model, LoRASettings(pattern="nothing"))


def test_report(model: Bagel) -> None:
    model.freeze(vit=True)
    report = {entry.part: entry for entry in parameter_report(model)}
    assert report["total"].total == sum(p.numel() for p in model.parameters())
    assert report["vit_model"].trainable == 0
    assert report["gen expert"].trainable == report["gen expert"].total
    assert report["gen expert"].total == report["und expert"].total
    parts = [entry.total for name, entry in report.items() if name != "total"]
    assert sum(parts) == report["total"].total
    add_lora(model, LoRASettings(parts=["gen"], rank=2))
    report = {entry.part: entry for entry in parameter_report(model)}
    assert 0 < report["total"].trainable == report["gen expert"].trainable
