"""The autoencoder: published names, batching by size, frozen state."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.model.config import BagelConfig, VAEConfig
from mathcanvas_lightning.model.synthetic import synthetic_pack
from mathcanvas_lightning.model.vae import (
    LatentVAE,
    pack_latents,
    save_random_vae,
    to_ldm_names,
    to_pixels,
)

CONFIG = VAEConfig(ch=32, ch_mult=(1, 2), num_res_blocks=2, downsample=2, z_channels=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    save_random_vae(folder, CONFIG, torch.Generator().manual_seed(0))
    return folder


@pytest.fixture(scope="module")
def vae(folder: Path) -> LatentVAE:
    return LatentVAE.from_checkpoint(folder, CONFIG)


def test_names_there_and_back(folder: Path, vae: LatentVAE) -> None:
    stored = load_file(folder / "ae.safetensors")
    assert "encoder.down.1.block.0.nin_shortcut.weight" in stored
    again = to_ldm_names(vae.autoencoder.state_dict(), len(CONFIG.ch_mult))
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)


def test_stays_frozen(vae: LatentVAE) -> None:
    vae.train()
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_sizes_do_not_mix(vae: LatentVAE) -> None:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, h, w, generator=generator) for h, w in ((8, 8), (8, 16), (8, 8))]
    noise = [
        torch.randn(4, h // 2, w // 2, generator=generator) for _, h, w in (i.shape for i in images)
    ]
    together = vae.encode(images, noise)
    for image, drawn, latent in zip(images, noise, together, strict=True):
        torch.testing.assert_close(vae.encode([image], [drawn])[0], latent, atol=1e-5, rtol=1e-4)
    means = vae.encode(images, None)
    assert not torch.allclose(means[0], together[0])
    assert vae.encode([], None) == []


def test_many_images_are_encoded_and_decoded_in_parts(
    vae: LatentVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    for name in ("encoder", "decoder"):
        layer, whole = getattr(vae.autoencoder, name), getattr(vae.autoencoder, name).forward
        counted = lambda x, whole=whole: sizes.append(len(x)) or whole(x)  # noqa: E731
        monkeypatch.setattr(layer, "forward", counted)
    images = torch.rand(19, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    latents = vae.encode(list(images), None)
    assert sizes == [8, 8, 3]
    decoded = vae.decode(torch.stack(latents))
    assert sizes == [8, 8, 3] * 2
    torch.testing.assert_close(decoded[17:18], vae.decode(latents[17][None]))


def test_scale_and_shift(vae: LatentVAE) -> None:
    image = torch.rand(3, 8, 8)
    mean = vae.moments(image[None])[0, :4]
    wanted = CONFIG.scale_factor * (mean - CONFIG.shift_factor)
    latent = vae.encode([image], None)[0]
    torch.testing.assert_close(latent, wanted)
    direct = vae.autoencoder.decoder(mean[None])
    torch.testing.assert_close(vae.decode(latent[None]), direct, atol=1e-5, rtol=1e-4)


def test_half_precision(folder: Path) -> None:
    vae = LatentVAE.from_checkpoint(folder, CONFIG, dtype=torch.bfloat16)
    latent = vae.encode([torch.rand(3, 8, 8)], None)[0]
    assert latent.dtype == torch.float32
    assert vae.dtype == torch.bfloat16


def test_pixels_are_rounded_down() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0])
    pixels = to_pixels(values.expand(3, 1, 6))
    assert pixels.shape == (1, 6, 3)
    assert pixels[0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_pack_without_latents(vae: LatentVAE) -> None:
    config = BagelConfig.preset("tiny")
    batch = synthetic_pack([["question", "vit"]], config)
    assert pack_latents(vae, batch, 2).shape == (0, 16)


def test_missing_or_wrong_weights(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found nothing"):
        LatentVAE.from_checkpoint(tmp_path, CONFIG)
    state = load_file(folder / "ae.safetensors")
    state["decoder.conv_in.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "ae.safetensors")
    with pytest.raises(DataError, match="vae_config"):
        LatentVAE.from_checkpoint(tmp_path, CONFIG)
    state["decoder.conv_in.bias"] = torch.full((64,), float("nan"))
    save_file(state, tmp_path / "ae.safetensors")
    with pytest.raises(DataError, match=r"decoder\.conv_in\.bias with 64 values that are NaN"):
        LatentVAE.from_checkpoint(tmp_path, CONFIG)
    (tmp_path / "ae.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid 1\n")
    with pytest.raises(DataError, match="found a Git LFS pointer"):
        LatentVAE.from_checkpoint(tmp_path, CONFIG)
