"""The network on packs of any composition; presets; frozen parts."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.checkpoint import TABLES
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers import cross_entropy as losses
from mathcanvas_lightning.model.layers.basic import rotary_tables
from mathcanvas_lightning.model.layers.cross_entropy import token_cross_entropy
from mathcanvas_lightning.model.synthetic import KINDS, synthetic_inputs, synthetic_pack
from tests.conftest import examples

CONFIG = BagelConfig.preset("tiny", llm_vocab_size=128)


@pytest.fixture(scope="module")
def model() -> Bagel:
    model = Bagel.empty(CONFIG, dtype=torch.float32, device="cpu")
    model.reset_parameters(0)
    torch.manual_seed(1)
    for parameter in model.parameters():  # so that the experts differ and llm2vae is not zero
        if parameter.ndim > 1:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.freeze()
    return model


PACKS = {
    "all": [["question", "clean", "vit", "answer", "noisy", "clean", "vit", "answer"]],
    "only text": [["question", "answer"], ["answer"]],
    "no text loss": [["question", "noisy"]],
    "no image loss": [["question", "clean", "vit", "answer"]],
    "no ViT": [["question", "noisy", "clean", "answer"]],
    "no latents": [["question", "vit", "answer"]],
    "no loss at all": [["question", "vit"]],
    "only images": [["vit", "clean", "noisy"]],
}


@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize("freeze", [{}, {"und": True}, {"vit": True, "connector": True}])
def test_every_trained_parameter_gets_a_gradient(name: str, freeze: Any, model: Bagel) -> None:
    model.freeze(**freeze)
    batch = synthetic_pack(PACKS[name], CONFIG)
    output = model(batch, **synthetic_inputs(batch, CONFIG))
    assert output.hidden_states.shape == (batch.sequence_length, CONFIG.llm.hidden_size)
    assert output.ce.shape == batch.ce_indexes.shape
    assert output.velocities.shape == (len(batch.mse_indexes), CONFIG.latent_dim)
    loss = output.ce.sum() + output.velocities.square().sum()
    assert torch.isfinite(loss)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    without = [n for n, g in zip(trained, gradients, strict=True) if g is None]
    assert without == []
    model.freeze()


@settings(max_examples=examples(25), deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(KINDS), min_size=1, max_size=6), min_size=1, max_size=3),
    st.integers(0, 1000),
)
def test_packing_changes_no_result(samples: list[list[str]], seed: int) -> None:
    model = _trained()
    together = synthetic_pack(samples, CONFIG, seed=seed)
    inputs = synthetic_inputs(together, CONFIG, seed)
    with torch.no_grad():
        packed = model(together, **inputs).hidden_states
        model.attention_path = "dense"
        dense = model(together, **inputs).hidden_states
        model.attention_path = None
    torch.testing.assert_close(packed, dense, atol=2e-5, rtol=1e-4)
    start = images = vit_image = split = 0
    for length in together.sample_lens:
        inside = lambda indexes: (indexes >= start) & (indexes < start + length)  # noqa: B023, E731
        of_text, of_vit = inside(together.text_indexes), inside(together.vit_indexes)
        of_latents = inside(together.latent_indexes)
        splits, total = [], 0
        while total < length:
            splits.append(together.splits[split])
            total += together.splits[split].length
            split += 1
        shapes, covered = [], 0
        while covered < int(of_latents.sum()):
            shapes.append(together.latent_shapes[images])
            covered += shapes[-1][0] * shapes[-1][1]
            images += 1
        vit_lens, seen = [], 0
        while seen < int(of_vit.sum()):
            vit_lens.append(together.vit_lens[vit_image])
            seen += vit_lens[-1]
            vit_image += 1
        single = dataclasses.replace(
            together,
            sample_lens=(length,),
            splits=tuple(splits),
            position_ids=together.position_ids[start : start + length],
            text_ids=together.text_ids[of_text],
            text_indexes=together.text_indexes[of_text] - start,
            vit_patches=together.vit_patches[of_vit],
            vit_position_ids=together.vit_position_ids[of_vit],
            vit_indexes=together.vit_indexes[of_vit] - start,
            vit_lens=tuple(vit_lens),
            latent_shapes=tuple(shapes),
            latent_image_ids=(0,) * len(shapes),
            latent_position_ids=together.latent_position_ids[of_latents],
            latent_indexes=together.latent_indexes[of_latents] - start,
            timestep_logits=together.timestep_logits[of_latents],
            ce_indexes=together.ce_indexes[:0],
            ce_label_ids=together.ce_label_ids[:0],
            ce_weights=together.ce_weights[:0],
            mse_indexes=together.mse_indexes[:0],
        )
        with torch.no_grad():
            own = model(single, **{key: value[of_latents] for key, value in inputs.items()})
        torch.testing.assert_close(
            own.hidden_states, packed[start : start + length], atol=2e-5, rtol=1e-4
        )
        start += length
    assert split == len(together.splits)


_MODELS: dict[str, Bagel] = {}


def _trained() -> Bagel:
    if "model" not in _MODELS:
        model = Bagel.empty(CONFIG, dtype=torch.float32, device="cpu")
        model.reset_parameters(3)
        generator = torch.Generator().manual_seed(5)
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
        _MODELS["model"] = model
    return _MODELS["model"]


@pytest.mark.parametrize(
    ("name", "billions"), [("7b", 14.61), ("small", 0.0976), ("tiny", 0.00141)]
)
def test_presets_have_their_sizes(name: str, billions: float) -> None:
    with torch.device("meta"):
        model = Bagel(BagelConfig.preset(name))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e9 == pytest.approx(billions, rel=5e-3 if name == "tiny" else 5e-4)


def test_overrides() -> None:
    config = BagelConfig.preset("tiny", llm_hidden_size=128, max_latent_size=4, vae_ch=64)
    assert (config.llm.hidden_size, config.max_latent_size, config.vae.ch) == (128, 4, 64)
    assert config.vit == BagelConfig.preset("tiny").vit
    for name in ("llm_width", "width"):
        with pytest.raises(ConfigError, match=f"model.{name}"):
            BagelConfig.preset("tiny", **{name: 1})
    with pytest.raises(ConfigError, match="one of tiny, small, 7b"):
        BagelConfig.preset("huge")


def test_geometry() -> None:
    geometry = BagelConfig.preset("7b").geometry
    assert (geometry.vit_patch_px, geometry.latent_patch_px) == (14, 16)
    assert (geometry.max_vit_side, geometry.max_latent_side) == (70, 64)


def test_new_model(model: Bagel) -> None:
    models = [Bagel.empty(CONFIG, dtype=torch.float32, device="cpu") for _ in range(3)]
    for bagel, seed in zip(models, (7, 7, 8), strict=True):
        bagel.reset_parameters(seed)
    states = [bagel.state_dict() for bagel in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(
        states[0]["language_model.lm_head.weight"], states[2]["language_model.lm_head.weight"]
    )
    assert not states[0]["llm2vae.weight"].any()
    for name, tensor in states[0].items():
        if "_moe_gen" in name:
            assert torch.equal(tensor, states[0][name.replace("_moe_gen", "")])


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        ({}, set()),
        ({"llm": True}, {"language_model"}),
        ({"vit": True}, {"vit_model"}),
        ({"connector": True}, {"connector"}),
        ({"vit": True, "connector": True}, {"vit_model", "connector"}),
    ],
)
def test_freezing(freeze: dict[str, bool], frozen: set[str], model: Bagel) -> None:
    model.freeze(**freeze)
    for name, parameter in model.named_parameters():
        wanted = name.split(".")[0] not in frozen and name not in TABLES
        assert parameter.requires_grad == wanted, name
    model.freeze()


def test_cross_entropy_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 8, generator=generator, requires_grad=True)
    weight = torch.randn(30, 8, generator=generator, requires_grad=True)
    labels = torch.randint(0, 30, (50,), generator=generator)
    scale = torch.randn(50, generator=generator)
    whole = token_cross_entropy(hidden, weight, labels)
    wanted = torch.autograd.grad((whole * scale).sum(), (hidden, weight))
    shapes = []
    real = losses.F.linear

    def linear(*args: Any) -> Any:
        shapes.append(len(args[0]))
        return real(*args)

    monkeypatch.setattr(losses, "CHUNK_LOGITS", 7 * 30)
    monkeypatch.setattr(losses.F, "linear", linear)
    chunked = token_cross_entropy(hidden, weight, labels)
    torch.testing.assert_close(chunked, whole)
    ours = torch.autograd.grad((chunked * scale).sum(), (hidden, weight))
    torch.testing.assert_close(ours, wanted)
    assert max(shapes) == 7
    assert token_cross_entropy(hidden[:0], weight, labels[:0]).shape == (0,)


@pytest.mark.parametrize("autocast", [False, True])
def test_gradient_of_the_head_is_summed_in_float32(
    autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding the sum after every chunk would lose more with every further chunk."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(512, 16, generator=generator).bfloat16()
    weight = torch.randn(30, 16, generator=generator).bfloat16()
    labels = torch.randint(0, 30, (512,), generator=generator)
    exact = weight.double().requires_grad_()
    token_cross_entropy(hidden.double(), exact, labels).sum().backward()
    assert exact.grad is not None
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 4 * 30)
    given = (weight.float() if autocast else weight).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        token_cross_entropy(hidden, given, labels).sum().backward()
    assert given.grad is not None
    assert given.grad.dtype == given.dtype
    error = (given.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 0.004  # half a unit of bfloat16 in each entry, or less


def test_rotary_positions_are_relative() -> None:
    cos, sin = rotary_tables(torch.tensor([0, 5, 5000]), 8, 1e6)
    assert cos.shape == sin.shape == (3, 1, 8)
    assert torch.equal(cos[0], torch.ones(1, 8))
    torch.testing.assert_close(cos[..., :4], cos[..., 4:])


@pytest.mark.slow
def test_compiled_layers_give_the_same(model: Bagel) -> None:
    pytest.importorskip("torch._inductor")
    batch = synthetic_pack(PACKS["all"], CONFIG)
    inputs = synthetic_inputs(batch, CONFIG)
    with torch.no_grad():
        wanted = model(batch, **inputs).hidden_states
        compiled = Bagel.empty(CONFIG, dtype=torch.float32, device="cpu")
        compiled.load_state_dict(model.state_dict())
        for layer in compiled.language_model.model.layers:
            layer.compile(backend="aot_eager", dynamic=True)
        ours = compiled(batch, **inputs).hidden_states
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)
    assert list(compiled.state_dict()) == list(model.state_dict())


def test_bfloat16_is_close_to_float32() -> None:
    model = _trained()
    half = Bagel.empty(CONFIG, dtype=torch.bfloat16, device="cpu")
    half.load_state_dict(model.state_dict())
    batch = synthetic_pack(PACKS["all"], CONFIG)
    inputs = synthetic_inputs(batch, CONFIG)
    with torch.no_grad():
        wanted, ours = model(batch, **inputs), half(batch, **inputs)
    assert ours.hidden_states.dtype == torch.bfloat16
    assert ours.ce.dtype == torch.float32
    torch.testing.assert_close(ours.ce, wanted.ce, atol=0.1, rtol=0.02)
    error = (ours.hidden_states.float() - wanted.hidden_states).norm()
    assert error < 0.03 * wanted.hidden_states.norm()
