"""Packs of any composition with random contents, for benchmarks and tests."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from mathcanvas_lightning.batch import AttentionMode, PackedBatch, Split
from mathcanvas_lightning.model.config import BagelConfig

Kind = Literal["question", "answer", "vit", "clean", "noisy"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Text without loss, text with loss, ViT image, clean VAE image, noisy VAE image."""

_MODES: dict[Kind, AttentionMode] = {
    "question": "causal",
    "answer": "causal",
    "vit": "full",
    "clean": "full",
    "noisy": "noise",
}


def synthetic_pack(
    samples: Sequence[Sequence[Kind]],
    config: BagelConfig,
    *,
    seed: int = 0,
    text_tokens: tuple[int, int] = (2, 9),
    image_side: tuple[int, int] = (1, 3),
) -> PackedBatch:
    """Makes a random pack.

    Args:
        samples: The kind of each split of each sample.
        config: Vocabulary, patch sizes and position tables.
        seed: Random seed of sizes and contents.
        text_tokens: Minimum and maximum number of tokens of a text.
        image_side: Minimum and maximum number of token rows and columns of an image.

    Returns:
        The pack; the sizes of its images match its latents.
    """
    builder = _PackBuilder(config, seed, text_tokens, image_side)
    for sample in samples:
        builder.start_sample()
        for kind in sample:
            builder.add(kind)
    return builder.build()


def synthetic_inputs(batch: PackedBatch, config: BagelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Makes random latents, noise and timesteps for a pack: arguments of `Bagel.forward`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(batch.latent_indexes), config.latent_dim)
    return {
        "latents": torch.randn(shape, generator=generator),
        "noise": torch.randn(shape, generator=generator),
        "timesteps": torch.sigmoid(batch.timestep_logits),
    }


class _PackBuilder:
    def __init__(
        self,
        config: BagelConfig,
        seed: int,
        text_tokens: tuple[int, int],
        image_side: tuple[int, int],
    ) -> None:
        self._config = config
        self._generator = torch.Generator().manual_seed(seed)
        self._text_tokens = text_tokens
        self._image_side = image_side
        self._index = self._position = 0
        self._sample_lens: list[int] = []
        self._splits: list[Split] = []
        self._vit_lens: list[int] = []
        self._shapes: list[tuple[int, int]] = []
        self._images: list[Tensor] = []
        self._image_ids: list[int] = []
        empty = torch.empty(0, dtype=torch.int64)
        self._parts: dict[str, list[Tensor]] = {name: [empty] for name in _TENSORS}
        self._parts["vit_patches"] = [torch.empty(0, config.vit.patch_dim)]
        self._parts["timestep_logits"] = [torch.empty(0)]

    def start_sample(self) -> None:
        self._sample_lens.append(0)
        self._position = 0

    def add(self, kind: Kind) -> None:
        if kind in ("question", "answer"):
            length = self._add_text(has_loss=kind == "answer")
        else:
            length = self._add_image(kind)
        self._splits.append(Split(length=length, attention_mode=_MODES[kind]))
        self._sample_lens[-1] += length
        self._index += length

    def build(self) -> PackedBatch:
        tensors = {name: torch.cat(parts) for name, parts in self._parts.items()}
        return PackedBatch(
            sample_lens=tuple(self._sample_lens),
            splits=tuple(self._splits),
            vit_lens=tuple(self._vit_lens),
            latent_shapes=tuple(self._shapes),
            latent_image_ids=tuple(self._image_ids),
            images=tuple(self._images),
            ce_weights=torch.ones(len(tensors["ce_indexes"])),
            **tensors,
        )

    def _add_text(self, *, has_loss: bool) -> int:
        length = self._draw(self._text_tokens)
        indexes = self._index + torch.arange(length)
        self._append(
            text_ids=self._words(length),
            text_indexes=indexes,
            position_ids=self._position + torch.arange(length),
        )
        if has_loss:
            self._append(ce_indexes=indexes, ce_label_ids=self._words(length))
        self._position += length
        return length

    def _add_image(self, kind: Kind) -> int:
        rows, columns = self._draw(self._image_side), self._draw(self._image_side)
        if self._repeats_drawing(kind):
            rows, columns = self._shapes[-1]
        tokens = rows * columns
        inner = self._index + 1 + torch.arange(tokens)
        self._append(
            text_ids=self._words(2),  # start and end of image
            text_indexes=torch.tensor([self._index, self._index + tokens + 1]),
            position_ids=torch.full((tokens + 2,), self._position),
        )
        if kind == "vit":
            self._vit_lens.append(tokens)
            side = self._config.vit_max_num_patch_per_side
            self._append(
                vit_indexes=inner,
                vit_position_ids=_table_ids(rows, columns, side),
                vit_patches=self._normal(tokens, self._config.vit.patch_dim),
            )
        else:
            self._add_latents(kind, rows, columns, inner)
        self._position += kind != "noisy"
        return tokens + 2

    def _add_latents(self, kind: Kind, rows: int, columns: int, inner: Tensor) -> None:
        side = self._config.geometry.latent_patch_px
        self._shapes.append((rows, columns))
        if not self._repeats_drawing(kind):
            self._images.append(self._normal(3, rows * side, columns * side).clamp(-1, 1))
        self._image_ids.append(len(self._images) - 1)
        draw = self._normal(1) if kind == "noisy" else torch.tensor([-torch.inf])
        self._append(
            latent_indexes=inner,
            latent_position_ids=_table_ids(rows, columns, self._config.max_latent_size),
            timestep_logits=draw.expand(rows * columns),
        )
        if kind == "noisy":
            self._append(mse_indexes=inner)

    def _repeats_drawing(self, kind: Kind) -> bool:
        """Whether this is the clean copy of the noisy drawing before it, as in real samples."""
        last = self._splits[-1] if self._sample_lens[-1] else None
        return kind == "clean" and last is not None and last.attention_mode == "noise"

    def _append(self, **tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            self._parts[name].append(tensor)

    def _draw(self, bounds: tuple[int, int]) -> int:
        return int(torch.randint(bounds[0], bounds[1] + 1, (1,), generator=self._generator))

    def _words(self, count: int) -> Tensor:
        return torch.randint(self._config.llm.vocab_size, (count,), generator=self._generator)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)


_TENSORS = (
    "position_ids",
    "text_ids",
    "text_indexes",
    "vit_position_ids",
    "vit_indexes",
    "latent_position_ids",
    "latent_indexes",
    "ce_indexes",
    "ce_label_ids",
    "mse_indexes",
)


def _table_ids(rows: int, columns: int, side: int) -> Tensor:
    return (torch.arange(rows)[:, None] * side + torch.arange(columns)).flatten()
