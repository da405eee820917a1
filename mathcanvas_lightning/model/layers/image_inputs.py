"""Embeds image tokens as inputs of the decoder: ViT patches and VAE latents."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mathcanvas_lightning.batch import to_unit_range
from mathcanvas_lightning.model.layers.attention import (
    Attention,
    AttentionPath,
    TokenLayout,
    default_path,
    full_layout,
)
from mathcanvas_lightning.model.layers.basic import Connector, PositionTable, TimeEmbedder
from mathcanvas_lightning.model.layers.flex import Stack
from mathcanvas_lightning.model.layers.padding import Padding, pad_rows
from mathcanvas_lightning.model.layers.vit import ViTModel


class ImageInputs(nn.Module):
    """Base of a module that has BAGEL's parts for images as attributes."""

    attention_path: AttentionPath | None = None
    """How attention is computed; None chooses by device."""
    pads: bool = False
    """Pad short packs, also where attention is not compiled."""
    vit_model: ViTModel
    connector: Connector
    vit_pos_embed: PositionTable
    time_embedder: TimeEmbedder
    vae2llm: nn.Linear
    latent_pos_embed: PositionTable

    def embed_vit(self, patches: Tensor, position_ids: Tensor, lens: Sequence[int]) -> Tensor:
        """Encodes image patches as inputs of the decoder.

        Args:
            patches: [V, P] of all images, uint8 or float from -1 to 1.
            position_ids: [V] int64.
            lens: Number of patches of each image.

        Returns:
            [V, D].
        """
        counts = torch.tensor(lens, dtype=torch.int64)
        images = torch.repeat_interleave(torch.arange(len(lens)), counts)
        return self._embed_vit(patches, position_ids, full_layout(images.to(patches.device)))

    def _embed_vit(self, patches: Tensor, position_ids: Tensor, layout: TokenLayout) -> Tensor:
        count = len(patches)
        padding = Padding.of_patches(count) if self._is_padded(patches.device) else Padding()
        features = self.vit_model.vision_model(
            pad_rows(to_unit_range(patches), padding.gen),
            pad_rows(position_ids, padding.gen),
            self._attention(padding.of_layout(layout, count), "vit"),
        )
        embedded: Tensor = self.connector(features[:count]) + self.vit_pos_embed(position_ids)
        return embedded

    def embed_latents(self, noised: Tensor, timesteps: Tensor, position_ids: Tensor) -> Tensor:
        """Embeds noised latent tokens as inputs of the decoder.

        Args:
            noised: [L, P] latents, noised to their timesteps.
            timesteps: [L] shifted times.
            position_ids: [L] int64.

        Returns:
            [L, D].
        """
        projected = self.vae2llm(noised.to(self.vae2llm.weight.dtype))
        embedded: Tensor = (
            projected + self.time_embedder(timesteps) + self.latent_pos_embed(position_ids)
        )
        return embedded

    def _attention(self, layout: TokenLayout, stack: Stack = "decoder") -> Attention:
        return Attention(layout, self._path(layout.sequence_indexes.device), stack)

    def _is_padded(self, device: torch.device) -> bool:
        return self.pads or self._path(device) == "flex"

    def _path(self, device: torch.device) -> AttentionPath:
        return self.attention_path or default_path(device)
