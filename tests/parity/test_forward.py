"""The training forward equals the reference: hidden states, losses, gradients."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mathcanvas_lightning.model.bagel import Bagel, BagelOutput
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.flow import unpatchify, velocity_target
from mathcanvas_lightning.model.layers.attention import dense_mask, make_layout
from mathcanvas_lightning.model.vae import LatentVAE, pack_latents, to_pixels
from tests.conftest import golden_folder
from tests.parity.packs import GoldenPack, forward_inputs, load_pack, need

GOLDEN = golden_folder()
FORWARDS = sorted(
    path.stem.removeprefix("forward_") for path in GOLDEN.glob("forward_*.safetensors")
)
NOISE_NORM = 1e-7


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return json.loads(need(GOLDEN / "settings.json").read_text())


@pytest.fixture
def model() -> Bagel:
    need(GOLDEN / "tiny_bagel")
    model = Bagel.from_checkpoint(GOLDEN / "tiny_bagel", dtype=torch.float32)
    model.freeze()
    return model


@pytest.fixture(scope="module")
def vae() -> LatentVAE:
    path = need(GOLDEN / "tiny_bagel")
    return LatentVAE.from_checkpoint(path, BagelConfig.from_directory(path).vae)


def run(
    model: Bagel, name: str, settings: dict[str, Any]
) -> tuple[GoldenPack, dict[str, Tensor], BagelOutput, Tensor, Tensor]:
    """Returns the pack, the reference's tensors, and our output, mse and loss."""
    if name.endswith("_freeze_und"):
        model.freeze(und=True)
    forward = load_file(GOLDEN / f"forward_{name}.safetensors")
    pack = load_pack(GOLDEN, name.removesuffix("_freeze_und"), model.config)
    inputs = forward_inputs(pack, forward, model.config, settings)
    output = model(pack.batch, **inputs)
    target = velocity_target(inputs["latents"], inputs["noise"])
    mse = (output.velocities - target[pack.batch.noisy_latents()]) ** 2
    loss = settings["ce_weight"] * output.ce.mean() + settings["mse_weight"] * mse.mean()
    return pack, forward, output, mse, loss


def test_reference_files_are_complete() -> None:
    if not FORWARDS:
        pytest.skip(f"no forward_*.safetensors in {GOLDEN}")
    assert all((GOLDEN / f"grad_norms_{name}.json").exists() for name in FORWARDS)


@pytest.mark.parametrize("path", ["dense", "sdpa"])
@pytest.mark.parametrize("name", FORWARDS)
def test_forward(name: str, path: Any, model: Bagel, settings: dict[str, Any]) -> None:
    model.attention_path = path
    pack, forward, output, mse, loss = run(model, name, settings)
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(output.hidden_states, forward["last_hidden_state"], **close)
    torch.testing.assert_close(output.ce, forward["ce"], **close)
    torch.testing.assert_close(mse, forward["mse"], **close)
    weights = pack.batch.ce_weights
    reweighted = (output.ce * weights).sum() / weights.sum()
    for ours, key in (
        (output.ce.mean(), "ce_mean"),
        (mse.mean(), "mse_mean"),
        (reweighted, "ce_reweighted"),
        (loss, "loss"),
    ):
        torch.testing.assert_close(ours, forward[key], rtol=1e-5, atol=0)


@pytest.mark.parametrize("path", ["dense", "sdpa"])
@pytest.mark.parametrize("name", FORWARDS)
def test_gradients(name: str, path: Any, model: Bagel, settings: dict[str, Any]) -> None:
    model.attention_path = path
    _, forward, _, _, loss = run(model, name, settings)
    loss.backward()
    gradients = {
        parameter: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        for parameter, tensor in model.named_parameters()
    }
    for key, wanted in forward.items():
        if key.startswith("grad."):
            ours = gradients[key.removeprefix("grad.")]
            error = (ours - wanted).norm() / wanted.norm().clamp(min=NOISE_NORM)
            assert error < 1e-3, f"{key}: {error}"
    norms = json.loads(need(GOLDEN / f"grad_norms_{name}.json").read_text())
    assert norms.keys() == gradients.keys()
    for parameter, wanted in norms.items():
        ours = gradients[parameter].norm().item()
        if max(ours, wanted or 0.0) > NOISE_NORM:
            assert ours == pytest.approx(wanted or 0.0, rel=1e-3), parameter


def test_frozen_und_has_no_gradient(model: Bagel, settings: dict[str, Any]) -> None:
    name = next((name for name in FORWARDS if name.endswith("_freeze_und")), None)
    if name is None:
        pytest.skip("no forward with a frozen expert")
    *_, loss = run(model, name, settings)
    loss.backward()
    for parameter, tensor in model.named_parameters():
        trains = "_moe_gen" in parameter or parameter.split(".")[0] not in (
            "language_model",
            "vit_model",
            "connector",
            "vit_pos_embed",
            "latent_pos_embed",
        )
        trains = trains or parameter == "language_model.lm_head.weight"
        assert tensor.requires_grad == trains, parameter
        assert (tensor.grad is not None) == trains, parameter


def test_masks(model: Bagel) -> None:
    masks = load_file(need(GOLDEN / "masks.safetensors"))
    pack = load_pack(GOLDEN, "pack_all", model.config).batch
    whole = dense_mask(make_layout(pack.sample_lens, pack.splits, torch.device("cpu")))
    start = 0
    for number, length in enumerate(pack.sample_lens):
        end = start + length
        assert torch.equal(whole[start:end, start:end], masks[f"sample_{number}"])
        assert not whole[start:end, end:].any()
        assert not whole[end:, start:end].any()
        start = end


@pytest.mark.parametrize("name", FORWARDS)
def test_vae_moments(name: str, model: Bagel, vae: LatentVAE) -> None:
    forward = load_file(GOLDEN / f"forward_{name}.safetensors")
    pack = load_pack(GOLDEN, name.removesuffix("_freeze_und"), model.config)
    moments = vae.moments(pack.padded_images)
    torch.testing.assert_close(moments, forward["vae_moments"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["generate", "generate_more"])
def test_vae_decodes_drawings(name: str, model: Bagel, vae: LatentVAE) -> None:
    tensors = load_file(need(GOLDEN / f"{name}.safetensors"))
    about = json.loads(need(GOLDEN / f"{name}.json").read_text())
    cases = [key.removesuffix(".pixels") for key in tensors if key.endswith(".pixels")]
    assert cases
    side = model.config.geometry.latent_patch_px
    for case in cases:
        rows, columns = (size // side for size in about[case]["image_shape"])
        latent = unpatchify(
            tensors[f"{case}.latent"], rows, columns, model.config.latent_patch_size
        )
        pixels = to_pixels(vae.decode(latent[None]))[0].int()
        wanted = tensors[f"{case}.pixels"].int()
        difference = (pixels - wanted).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() <= 1e-3


def test_repeated_images_are_encoded_once(
    model: Bagel, vae: LatentVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = load_pack(GOLDEN, "pack_all", model.config).batch
    if len(batch.images) == len(batch.latent_shapes):
        pytest.skip("no image is repeated in pack_all")
    encoded = []
    real = LatentVAE.moments
    monkeypatch.setattr(
        LatentVAE, "moments", lambda self, x: encoded.append(len(x)) or real(self, x)
    )
    tokens = pack_latents(vae, batch, model.config.latent_patch_size)
    assert sum(encoded) == len(batch.images)
    assert tokens.shape == (len(batch.latent_indexes), model.config.latent_dim)
    separate = [vae.encode([image], None)[0] for image in batch.images]
    start = 0
    for image, (rows, columns) in zip(batch.latent_image_ids, batch.latent_shapes, strict=True):
        item = tokens[start : start + rows * columns]
        torch.testing.assert_close(
            unpatchify(item, rows, columns, model.config.latent_patch_size), separate[image]
        )
        start += rows * columns


@pytest.mark.parametrize("name", ["pack_no_text", "pack_no_vit", "pack_no_vae"])
def test_packs_without_one_kind(name: str, model: Bagel) -> None:
    need(GOLDEN / f"{name}.json")
    batch = load_pack(GOLDEN, name, model.config).batch
    zeros = torch.zeros(len(batch.latent_indexes), model.config.latent_dim)
    times = torch.sigmoid(batch.timestep_logits)
    output = model(batch, latents=zeros, noise=zeros, timesteps=times)
    assert torch.isfinite(output.hidden_states).all()
    assert len(output.ce) == len(batch.ce_indexes)
