"""Logs pictures that the network predicts from noised images, beside the original images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

from mathcanvas_lightning.batch import LossTotals, MicroBatch, PackedBatch
from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.flow import add_noise, unpatchify
from mathcanvas_lightning.model.vae import LatentVAE, to_pixels
from mathcanvas_lightning.training.inputs import PackInputs
from mathcanvas_lightning.training.module import BagelModule
from mathcanvas_lightning.training.run.logger import RunLogger

GAP_PX = 4
TAG = "val/pictures"
Pixels: TypeAlias = npt.NDArray[np.uint8]
"""Image as [H, W, 3]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanEstimate:
    """Clean latents of a noisy image, predicted in one step."""

    image: int
    """Number of the image in the pack."""
    latent: Tensor
    """[C, h, w] scaled latents."""


class PictureLogger(Callback):
    """Logs predictions for the first noisy images of the first validation batch.

    On the left is the one-step prediction of the clean image, x_t - t v, on the right the image.
    Noise and timesteps are the same in each validation, so the pictures of a run can be compared.
    They are logged to TensorBoard and Weights & Biases. In the folder of a run, and without these
    loggers, they are saved as `pictures/step_N.png` in the log folder.

    Args:
        every_n_steps: Minimum number of optimizer steps between two pictures; with 1, every
            validation logs one.
        num_images: Maximum number of images.
    """

    def __init__(self, every_n_steps: int = 1, num_images: int = 4) -> None:
        if min(every_n_steps, num_images) < 1:
            raise ConfigError(
                "PictureLogger",
                found=f"every_n_steps {every_n_steps}, num_images {num_images}",
                wanted="1 or more of each",
                remedy="Leave the callback out to log no pictures.",
            )
        self.every_n_steps, self.num_images = every_n_steps, num_images
        self._last_step: int | None = None

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Logs a picture after the first batch, if it is due."""
        is_first = batch_idx == 0 and dataloader_idx == 0 and not trainer.sanity_checking
        if not is_first or not self._is_due(trainer.global_step):
            return
        if not isinstance(batch, MicroBatch) or not isinstance(pl_module, BagelModule):
            return
        self._last_step = trainer.global_step
        # On all ranks: the forward pass gathers shards, and log_dir is broadcast from rank zero.
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        (output, inputs), _ = pl_module.run(batch, LossTotals.of(batch.pack))
        if not trainer.is_global_zero:
            return
        patch = pl_module.config.latent_patch_size
        estimates = clean_estimates(batch.pack, inputs, output.velocities, patch, self.num_images)
        if picture := compare(pl_module.vae, batch.pack, estimates):
            log_picture(trainer, picture, trainer.global_step, folder)

    def _is_due(self, step: int) -> bool:
        return self._last_step is None or step - self._last_step >= self.every_n_steps


def clean_estimates(
    pack: PackedBatch, inputs: PackInputs, velocities: Tensor, patch: int, limit: int
) -> list[CleanEstimate]:
    """Predicts clean latents from noisy ones in one step: x_t - t v.

    Args:
        pack: A pack with M noisy latent tokens.
        inputs: Inputs of the network for the pack.
        velocities: [M, P] predicted velocities.
        patch: Side of a latent patch.
        limit: Maximum number of images.

    Returns:
        Predictions for the first noisy images of the pack.
    """
    noisy = pack.noisy_latents()
    times = inputs.timesteps[noisy]
    noised = add_noise(inputs.latents[noisy], inputs.noise[noisy], times)
    clean = noised - times[:, None] * velocities.to(noised.dtype)
    found: list[CleanEstimate] = []
    start = taken = 0
    flags = noisy.tolist()
    for (rows, columns), image in zip(pack.latent_shapes, pack.latent_image_ids, strict=True):
        count = rows * columns
        if flags[start]:
            tokens = clean[taken : taken + count]
            found.append(
                CleanEstimate(image=image, latent=unpatchify(tokens, rows, columns, patch))
            )
            taken += count
        start += count
    return found[:limit]


def compare(
    vae: LatentVAE, pack: PackedBatch, estimates: Sequence[CleanEstimate]
) -> Image.Image | None:
    """Draws a grid with one row per prediction: the decoded prediction and the image.

    Args:
        vae: The autoencoder that decodes.
        pack: The pack with the images.
        estimates: Predictions for some of the images.

    Returns:
        The picture; None without predictions.
    """
    pairs = [
        (_pixels(vae.decode(estimate.latent[None])[0]), _pixels(pack.images[estimate.image]))
        for estimate in estimates
    ]
    if not pairs:
        return None
    height = max(pixels.shape[0] for pair in pairs for pixels in pair)
    width = max(pixels.shape[1] for pair in pairs for pixels in pair)
    size = (2 * width + GAP_PX, len(pairs) * (height + GAP_PX) - GAP_PX)
    picture = Image.new("RGB", size, "white")
    for row, pair in enumerate(pairs):
        for column, pixels in enumerate(pair):
            corner = (column * (width + GAP_PX), row * (height + GAP_PX))
            picture.paste(Image.fromarray(pixels), corner)
    return picture


def log_picture(trainer: Trainer, picture: Image.Image, step: int, folder: Path) -> None:
    """Logs a picture; saves it as a file in a run's folder, or if no logger accepts pictures.

    Args:
        trainer: The Trainer with the loggers.
        picture: The picture.
        step: Optimizer step.
        folder: Log folder of the run.
    """
    loggers = list(picture_loggers(trainer))
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(TAG, np.asarray(picture), step, dataformats="HWC")
        else:
            logger.log_image(TAG, [picture], step=step)
    if not loggers or any(isinstance(logger, RunLogger) for logger in trainer.loggers):
        with written_whole(folder / "pictures" / f"step_{step}.png") as path:
            picture.save(path, format="PNG")


def picture_loggers(trainer: Trainer) -> Iterator[TensorBoardLogger | WandbLogger]:
    """Yields the loggers of a Trainer that accept pictures and texts."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger | WandbLogger):
            yield logger


def _pixels(image: Tensor) -> Pixels:
    """Converts [3, H, W], uint8 or float from about -1 to 1."""
    levels = to_pixels(image) if image.is_floating_point() else image.movedim(0, -1)
    pixels: Pixels = levels.cpu().numpy()
    return np.ascontiguousarray(pixels)
