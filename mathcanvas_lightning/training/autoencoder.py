"""Trains an image autoencoder for drawings: from random weights, or from a checkpoint's."""

import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor

from mathcanvas_lightning.batch import to_unit_range
from mathcanvas_lightning.common.atomic import write_json
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.common.progress import progress_bar
from mathcanvas_lightning.data.images.resize import on_white
from mathcanvas_lightning.errors import InputError, check_settings
from mathcanvas_lightning.model.config import BAGEL_FILE, BagelConfig, VAEConfig
from mathcanvas_lightning.model.vae import VAE_FILE, LatentVAE, save_vae

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
MSE_WEIGHT, L1_WEIGHT, CHROMA_WEIGHT, KL_WEIGHT = 10.0, 1.0, 30.0, 1e-3
"""Weights of the loss. Small coloured shapes are few pixels, so colour has a separate term."""
MAX_LR_OF_TRAINED = 1e-4
"""Maximum learning rate where training starts from a checkpoint."""
NUM_HELD_OUT = 64
"""Pictures that are never trained on, to measure the error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderReport:
    """What was trained, and its error on held-out pictures."""

    path: str
    """The weights."""
    num_parameters: int
    num_steps: int
    psnr_db: float
    """Peak signal-to-noise ratio of the held-out pictures, in decibels."""
    first_psnr_db: float
    """Peak signal-to-noise ratio before training, in decibels."""
    scale_factor: float
    """Multiplies latents after the shift, so that their variance is 1."""
    shift_factor: float
    """Mean of the latents."""
    seconds: float


def train_vae(
    pictures: str,
    output: str,
    *,
    checkpoint: str | None = None,
    preset: str = "tiny",
    num_steps: int = 1200,
    batch_size: int = 16,
    crop_px: int = 48,
    max_lr: float = 4e-3,
    dtype: str = "bfloat16",
    seed: int = 0,
    progress: bool = True,
) -> AutoencoderReport:
    """Trains an image autoencoder on pictures, for drawings of small models or of your data.

    Args:
        pictures: Folder of PNG, JPEG or WebP files; sub-folders are read too.
        output: Gets ae.safetensors and config.json; a model directory keeps its other files.
        checkpoint: Model directory to start from; random weights by default.
        preset: Sizes of an autoencoder with random weights: tiny, small or 7b.
        num_steps: Optimizer steps.
        batch_size: Pictures per step.
        crop_px: Side of the random crop that is taken of each picture, a multiple of 8.
        max_lr: Maximum of the one-cycle learning rate; at most 1e-4 with a checkpoint.
        dtype: Type of the weights that are written: float32 or bfloat16.
        seed: Seed of all random numbers.
        progress: Show a progress bar on a terminal.

    Raises:
        ConfigError: If a setting can't be used.
        InputError: If there are too few pictures, or one can't be read.
    """
    _check(num_steps, batch_size, crop_px, dtype)
    started, rng = time.monotonic(), np.random.default_rng(seed)
    torch.manual_seed(seed)
    vae = _start(checkpoint, preset)
    images = _read_pictures(pictures, crop_px)
    images = [images[i] for i in rng.permutation(len(images))]
    num_held_out = max(1, min(NUM_HELD_OUT, len(images) // 5))
    held_out, trained = images[:num_held_out], images[num_held_out:]
    first = _psnr(vae, held_out, crop_px)
    lr = max_lr if checkpoint is None else min(max_lr, MAX_LR_OF_TRAINED)
    batches = _batches(rng, trained, batch_size, crop_px)
    _optimize(vae, batches, num_steps, lr, progress=progress)
    config = _with_unit_latents(vae, trained[:256], crop_px)
    target = local_path(output)
    _write(target, vae, config, getattr(torch, dtype))
    saved = LatentVAE.from_checkpoint(target, config)
    return AutoencoderReport(
        path=str(target / VAE_FILE),
        num_parameters=sum(p.numel() for p in vae.autoencoder.parameters()),
        num_steps=num_steps,
        psnr_db=_psnr(saved, held_out, crop_px),
        first_psnr_db=first,
        scale_factor=config.scale_factor,
        shift_factor=config.shift_factor,
        seconds=time.monotonic() - started,
    )


def autoencoder_loss(decoded: Tensor, images: Tensor, means: Tensor, logvars: Tensor) -> Tensor:
    """Reconstruction error in brightness and colour, and the distance to a normal distribution.

    Args:
        decoded: [n, 3, H, W], about -1 to 1.
        images: [n, 3, H, W], -1 to 1.
        means: [n, C, h, w] of the posterior.
        logvars: [n, C, h, w] of the posterior.

    Returns:
        A scalar.
    """
    chroma = (decoded - decoded.mean(1, keepdim=True)) - (images - images.mean(1, keepdim=True))
    divergence = 0.5 * (means.square() + logvars.exp() - 1 - logvars).mean()
    return (
        MSE_WEIGHT * F.mse_loss(decoded, images)
        + L1_WEIGHT * F.l1_loss(decoded, images)
        + CHROMA_WEIGHT * chroma.square().mean()
        + KL_WEIGHT * divergence
    )


def _start(checkpoint: str | None, preset: str) -> LatentVAE:
    if checkpoint is None:
        return LatentVAE(BagelConfig.preset(preset).vae)
    return LatentVAE.from_checkpoint(checkpoint, BagelConfig.from_directory(checkpoint).vae)


def _optimize(
    vae: LatentVAE, batches: Iterator[Tensor], num_steps: int, lr: float, *, progress: bool
) -> None:
    vae.requires_grad_(True)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=num_steps)
    with progress_bar("Training the autoencoder", num_steps, show=progress) as advance:
        for step in range(num_steps):
            images = next(batches)
            moments = vae.autoencoder.encoder(images)
            means, logvars = moments.chunk(2, dim=1)
            logvars = logvars.clamp(-30.0, 20.0)
            latents = means + torch.exp(0.5 * logvars) * torch.randn_like(means)
            loss = autoencoder_loss(vae.autoencoder.decoder(latents), images, means, logvars)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            advance(1, f"loss {loss.item():.3f}" if step % 10 == 0 else "")
    vae.requires_grad_(False)


@torch.no_grad()
def _with_unit_latents(vae: LatentVAE, images: Sequence[Tensor], crop_px: int) -> VAEConfig:
    """Returns the configuration whose shift and scale give latents mean 0 and variance 1."""
    crops = torch.stack([_centre(image, crop_px) for image in images])
    means = torch.cat([vae.moments(part).chunk(2, dim=1)[0] for part in crops.split(32)])
    return replace(
        vae.config, shift_factor=float(means.mean()), scale_factor=float(1 / means.std())
    )


@torch.no_grad()
def _psnr(vae: LatentVAE, images: Sequence[Tensor], crop_px: int) -> float:
    """Returns the peak signal-to-noise ratio of pictures that went through the autoencoder."""
    crops = torch.stack([_centre(image, crop_px) for image in images])
    decoded = vae.decode(torch.stack(vae.encode(list(crops), None))).clamp(-1, 1)
    error = ((decoded - to_unit_range(crops)) / 2).square().mean()
    return float(-10 * error.log10())


def _batches(
    rng: np.random.Generator, images: Sequence[Tensor], batch_size: int, crop_px: int
) -> Iterator[Tensor]:
    while True:
        chosen = [images[i] for i in rng.integers(len(images), size=batch_size)]
        yield to_unit_range(torch.stack([_crop(rng, image, crop_px) for image in chosen]))


def _crop(rng: np.random.Generator, image: Tensor, crop_px: int) -> Tensor:
    top, left = (int(rng.integers(side - crop_px + 1)) for side in image.shape[1:])
    return image[:, top : top + crop_px, left : left + crop_px]


def _centre(image: Tensor, crop_px: int) -> Tensor:
    top, left = ((side - crop_px) // 2 for side in image.shape[1:])
    return image[:, top : top + crop_px, left : left + crop_px]


def _read_pictures(folder: str, crop_px: int) -> list[Tensor]:
    """Reads all pictures of a folder as [3, H, W] uint8; small ones get a white margin."""
    files = sorted(p for p in local_path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise InputError(
            folder,
            found=f"{len(files)} pictures",
            wanted="at least 2 PNG, JPEG or WebP files",
            remedy="Give the folder that holds the pictures.",
        )
    return [_read(path, crop_px) for path in files]


def _read(path: Path, crop_px: int) -> Tensor:
    try:
        image = on_white(Image.open(io.BytesIO(path.read_bytes()))).convert("RGB")
    except Exception as error:  # decoders raise any exception on broken input
        raise InputError(
            str(path),
            found=f"no readable picture ({error})",
            wanted="a PNG, JPEG or WebP file",
            remedy="Remove the file or repair it.",
        ) from None
    if min(image.size) < crop_px:
        white = Image.new("RGB", (max(image.width, crop_px), max(image.height, crop_px)), "white")
        white.paste(image, ((white.width - image.width) // 2, (white.height - image.height) // 2))
        image = white
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def _write(folder: Path, vae: LatentVAE, config: VAEConfig, dtype: torch.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_vae(folder, config, {k: v.to(dtype) for k, v in vae.autoencoder.state_dict().items()})
    file = folder / BAGEL_FILE
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    content["vae_config"] = asdict(config)
    write_json(file, content)


def _check(num_steps: int, batch_size: int, crop_px: int, dtype: str) -> None:
    check_settings(
        ("--num_steps", num_steps, num_steps >= 10, "10 or more"),
        ("--batch_size", batch_size, batch_size >= 1, "1 or more"),
        ("--crop_px", crop_px, crop_px >= 8 and crop_px % 8 == 0, "a positive multiple of 8"),
        ("--dtype", dtype, dtype in ("float32", "bfloat16"), "float32 or bfloat16"),
        remedy="Leave it out for the default.",
    )
