"""Contexts of a problem, and the prefill of texts and images into them, many at a time.

Guidance needs three contexts: one with all texts and images, one with only the images, and one with
only the texts. Each has its own RoPE positions, without gaps for what it does not contain.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from mathcanvas_lightning.data.images.resize import ImageTransform, on_white
from mathcanvas_lightning.data.sequence.pack import PackItem, pack_samples
from mathcanvas_lightning.data.sequence.roles import SplitKind
from mathcanvas_lightning.data.sequence.splits import PlannedSplit
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.generation.bagel.kv_cache import (
    MARKERS,
    CachedTokens,
    KVCache,
    Span,
    SpanKind,
    forward_cached,
    in_passes,
)
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers.mot import Experts
from mathcanvas_lightning.model.vae import LatentVAE, pack_latents

ContextKind = Literal["full", "images", "texts"]
CONTEXTS: tuple[ContextKind, ...] = ("full", "images", "texts")
"""All; without texts (for the text guidance); without images (for the image guidance)."""
MAX_PREFILL_TOKENS = 8192
"""Maximum number of tokens in one forward pass (unless a single item has more); limits the memory
of the activations."""
_SPANS: dict[SplitKind, SpanKind] = {"text": "text", "vit": "vit", "clean": "latents"}


@dataclass(slots=True, kw_only=True)
class Context:
    """Position in one row of the KV cache."""

    row: int
    """Row of the cache."""
    length: int = 0
    """Number of tokens in the context."""
    position: int = 0
    """RoPE position of the next token."""

    def span(self, length: int, kind: SpanKind) -> Span:
        """The span of the next tokens in this context."""
        return Span(
            row=self.row, start=self.length, length=length, position=self.position, kind=kind
        )

    def copy(self) -> "Context":
        """A copy of the current state, for `roll_back`."""
        return replace(self)

    def roll_back(self, earlier: "Context") -> None:
        """Removes all tokens that were added after an earlier state."""
        self.length, self.position = earlier.length, earlier.position

    def append(self, span: Span) -> None:
        """Counts the tokens of a span as part of the context."""
        self.length = span.end
        self.position = span.position + (span.length if span.kind == "text" else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A text or an image, preprocessed for the prefill."""

    content: PackItem
    num_tokens: int
    """Number of tokens, with markers."""
    size_px: tuple[int, int] | None = None
    """Width and height for the VAE; None for a text."""

    def belongs_to(self, kind: ContextKind) -> bool:
        """Whether a context of this kind contains the item."""
        return kind != ("images" if self.size_px is None else "texts")


def contexts_of(
    items: Sequence[Item], contexts: Sequence[Context]
) -> list[tuple[Item, list[Context]]]:
    """The contexts that each item belongs to.

    Args:
        items: Items in reading order.
        contexts: The contexts that the guidance needs: full, images, texts.
    """
    pairs = list(zip(contexts, CONTEXTS, strict=False))
    return [(item, [c for c, kind in pairs if item.belongs_to(kind)]) for item in items]


class ItemMaker:
    """Converts texts and pictures to items.

    Args:
        config: Gives the patch sizes and the sizes of the position tables.
        tokenizer: Tokenizer of the model.
        vae_transform: Resizes pictures for the VAE.
        vit_transform: Resizes the result again for the ViT.
        interpolate_positions: Whether positions of image tokens are interpolated.
    """

    def __init__(
        self,
        config: BagelConfig,
        tokenizer: TextTokenizer,
        vae_transform: ImageTransform,
        vit_transform: ImageTransform,
        *,
        interpolate_positions: bool = False,
    ) -> None:
        self.geometry = config.geometry
        self.tokenizer = tokenizer
        self.interpolate_positions = interpolate_positions
        self._vae_transform, self._vit_transform = vae_transform, vit_transform

    def text(self, text: str) -> Item:
        """Tokenizes a stripped text; names of special tokens in it stay ordinary text."""
        ids = self.tokenizer.encode(text.strip())
        splits = (PlannedSplit(kind="text", element=0, droppable=False),)
        return Item(
            content=PackItem(splits=splits, text_ids={0: ids}), num_tokens=len(ids) + MARKERS
        )

    def image(self, image: Image.Image, *, for_vae: bool = True) -> Item:
        """Resizes a picture for the VAE, and the result for the ViT.

        Args:
            image: RGB or greyscale image.
            for_vae: Whether the item has VAE latents; for understanding, ViT patches are enough.

        Returns:
            The item.
        """
        latents = self._vae_transform(image)
        patches = self._vit_transform(Image.fromarray(latents))
        kinds: tuple[SplitKind, ...] = ("clean", "vit") if for_vae else ("vit",)
        splits = tuple(PlannedSplit(kind=kind, element=0, droppable=False) for kind in kinds)
        height, width = latents.shape[:2]
        return Item(
            content=PackItem(splits=splits, vae_pixels={0: latents}, vit_pixels={0: patches}),
            num_tokens=self.image_tokens(image.size, for_vae=for_vae),
            size_px=(width, height),
        )

    def drawing_size(self, size_px: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the drawings after a picture of this size."""
        return self._vae_transform.output_size(*size_px)

    def image_tokens(self, size_px: tuple[int, int], *, for_vae: bool = True) -> int:
        """Number of tokens of a picture with this width and height, with markers.

        Raises:
            InputError: If the picture has more rows or columns than a position table.
        """
        size = self.drawing_size(size_px)
        vit = self._grid(self._vit_transform.output_size(*size), "vit")
        return vit + (self._grid(size, "latents") if for_vae else 0)

    def drawing_tokens(self, size_px: tuple[int, int]) -> int:
        """Number of tokens of a drawing with this width and height, with markers.

        Raises:
            InputError: If the drawing has more rows or columns than the position table.
        """
        return self._grid(size_px, "latents")

    def _grid(self, size_px: tuple[int, int], kind: SpanKind) -> int:
        vit = kind == "vit"
        patch = self.geometry.vit_patch_px if vit else self.geometry.latent_patch_px
        side = self.geometry.max_vit_side if vit else self.geometry.max_latent_side
        columns, rows = (length // patch for length in size_px)
        if max(columns, rows) > side and not self.interpolate_positions:
            raise InputError(
                f"a picture of {size_px[0]} x {size_px[1]} pixels",
                found=f"{columns} x {rows} tokens of {patch} pixels",
                wanted=f"at most {side} per side, the size of the model's position table",
                remedy="Lower max_image_size of the image transform.",
            )
        return columns * rows + MARKERS


class Prefiller:
    """Prefills items into the KV cache.

    Args:
        model: BAGEL.
        vae: Encodes images (mean of its posterior).
        cache: KV cache of all contexts.
        maker: Maker of the items.
    """

    def __init__(self, model: Bagel, vae: LatentVAE, cache: KVCache, maker: ItemMaker) -> None:
        self._model, self._vae, self._cache, self._maker = model, vae, cache, maker

    def prefill(self, entries: Sequence[tuple[Item, Sequence[Context]]]) -> list[Experts]:
        """Prefills each item into its contexts; an image is encoded only once.

        Args:
            entries: Items with their contexts; items of one context in reading order.

        Returns:
            Last hidden states of each forward pass, in the order of `CachedTokens`.
        """
        passes = in_passes(
            entries, lambda entry: entry[0].num_tokens * len(entry[1]), MAX_PREFILL_TOKENS
        )
        return [self._prefill_pass(entries_of_pass) for entries_of_pass in passes]

    def _prefill_pass(self, entries: Sequence[tuple[Item, Sequence[Context]]]) -> Experts:
        und_parts, gen_parts = self._embed([item for item, _ in entries])
        spans: list[Span] = []
        und: list[Tensor] = []
        gen: list[Tensor] = []
        first = 0
        for item, contexts in entries:
            kinds = [_SPANS[split.kind] for split in item.content.splits]
            for context in contexts:
                for part, kind in enumerate(kinds, first):
                    length = len(und_parts[part]) + len(gen_parts[part])
                    span = context.span(length, kind)
                    context.append(span)
                    spans.append(span)
                    und.append(und_parts[part])
                    gen.append(gen_parts[part])
            first += len(kinds)
        tokens = CachedTokens(self._cache, spans)
        return forward_cached(self._model, tokens, torch.cat(und), torch.cat(gen))

    def _embed(self, items: Sequence[Item]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Token embeddings for both experts, one tensor for each split of each item."""
        model, maker = self._model, self._maker
        pack = pack_samples(
            [item.content for item in items],
            maker.geometry,
            maker.tokenizer.special,
            interpolate_positions=maker.interpolate_positions,
        )
        counts = [
            (MARKERS, split.length - MARKERS) if planned.kind == "clean" else (split.length, 0)
            for planned, split in zip(
                (split for item in items for split in item.content.splits), pack.splits, strict=True
            )
        ]
        order = torch.argsort(torch.cat([pack.text_indexes, pack.vit_indexes]))
        pack = pack.to(self._cache.device)
        und = model.language_model.model.embed_tokens(pack.text_ids)
        if pack.vit_lens:
            patches = model.embed_vit(pack.vit_patches, pack.vit_position_ids, pack.vit_lens)
            und = torch.cat([und, patches])[order.to(und.device)]
        gen = und[:0]
        if pack.latent_shapes:
            latents = pack_latents(self._vae, pack, model.config.latent_patch_size)
            gen = model.embed_latents(
                latents, latents.new_zeros(len(latents)), pack.latent_position_ids
            )
        und_counts, gen_counts = zip(*counts, strict=True)
        return und.split(und_counts), gen.split(gen_counts)


def opaque(image: Image.Image, uid: str) -> Image.Image:
    """Decodes a picture and puts it on a white background.

    Raises:
        InputError: If it can't be decoded.
    """
    try:
        return on_white(image)
    except Exception as error:  # Pillow's decoders may raise anything
        raise InputError(
            f"a picture of problem {uid}",
            found=f"{type(error).__name__}: {error}",
            wanted="an image that can be decoded",
            remedy="Check the file.",
        ) from None
