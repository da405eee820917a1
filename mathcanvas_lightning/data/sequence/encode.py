"""Encodes a row for a pack: tokenizes, plans the splits, decodes and resizes the images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mathcanvas_lightning.batch import TokenGeometry
from mathcanvas_lightning.data.images.decode import ImageLimits, image_size
from mathcanvas_lightning.data.images.resize import ImageTransform, Pixels, decode_image
from mathcanvas_lightning.data.rows.readers import Element, RowFormat, Sample
from mathcanvas_lightning.data.sequence.pack import PackItem
from mathcanvas_lightning.data.sequence.roles import MARKERS, DropoutConfig, Elements, Floats
from mathcanvas_lightning.data.sequence.splits import PlannedSplit, plan_sequence
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer

ReadImage = Callable[[Element], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """How the rows of a data set are converted to tokens."""

    row_format: RowFormat
    vae_transform: ImageTransform
    vit_transform: ImageTransform
    dropout: DropoutConfig
    limits: ImageLimits

    def num_sharing(self, num_images: int) -> int:
        """Number of images that share the limit `max_pixels`: in conversations, all of the row."""
        return num_images if self.row_format == "vlm" else 1

    def tokens(
        self, width: int, height: int, num_images: int, geometry: TokenGeometry
    ) -> tuple[int, int]:
        """Latent and ViT tokens of an image.

        Args:
            width: Width of the source image, in pixels.
            height: Height of the source image, in pixels.
            num_images: Number of images of its row.
            geometry: Patch sizes of the model.

        Returns:
            Tokens for the VAE and tokens for the ViT, without markers.
        """
        shared = self.num_sharing(num_images)
        sizes = (
            (self.vae_transform.output_size(width, height, shared), geometry.latent_patch_px),
            (self.vit_transform.output_size(width, height, shared), geometry.vit_patch_px),
        )
        latent, vit = ((w // patch) * (h // patch) for (w, h), patch in sizes)
        return latent, vit


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSample:
    """A row with its texts as token ids and the sizes of its images, not decoded yet."""

    elements: tuple[Element, ...]
    text_ids: Mapping[int, Sequence[int]]
    """Element -> token ids of the text."""
    images: Mapping[int, bytes]
    """Element -> encoded image file."""
    sizes_px: Mapping[int, tuple[int, int]]
    """Element -> width and height of the source image."""


def measure(
    sample: Sample, tokenizer: TextTokenizer, limits: ImageLimits, read_image: ReadImage
) -> MeasuredSample:
    """Tokenizes the texts and reads the image headers of a row.

    Args:
        sample: The row.
        tokenizer: Tokenizer of the texts.
        limits: Maximum sizes of images.
        read_image: Returns the bytes of an image element.

    Returns:
        Everything that the length of the row depends on.

    Raises:
        ImageError: If an image has no readable header or exceeds a limit.
    """
    images = {i: read_image(e) for i, e in enumerate(sample.elements) if not is_text(e)}
    return MeasuredSample(
        elements=sample.elements,
        text_ids=encode_texts(sample, tokenizer),
        images=images,
        sizes_px={i: image_size(data, limits) for i, data in images.items()},
    )


def encode_texts(sample: Sample, tokenizer: TextTokenizer) -> dict[int, Sequence[int]]:
    """Element -> token ids, for the texts of a row."""
    return {
        index: tokenizer.encode(str(element.content))
        for index, element in enumerate(sample.elements)
        if is_text(element)
    }


def is_text(element: Element) -> bool:
    """Whether an element is a text; otherwise it is an image."""
    return element.role.name.endswith(("TEXT", "ANSWER"))


def count_elements(
    sample: MeasuredSample, settings: RowSettings, geometry: TokenGeometry
) -> Elements:
    """Roles and token counts of the sample's elements, the input of a plan."""
    tokens = {
        index: settings.tokens(*size, len(sample.images), geometry)
        for index, size in sample.sizes_px.items()
    }
    indexes = range(len(sample.elements))
    return Elements(
        offsets=np.array([0, len(sample.elements)]),
        roles=np.array([e.role for e in sample.elements], np.int8),
        steps=np.array([e.step for e in sample.elements], np.int16),
        text_tokens=np.array([len(sample.text_ids.get(i, ())) for i in indexes], np.int32),
        latent_tokens=np.array([tokens.get(i, (0, 0))[0] for i in indexes], np.int32),
        vit_tokens=np.array([tokens.get(i, (0, 0))[1] for i in indexes], np.int32),
    )


def prepare(
    sample: MeasuredSample,
    settings: RowSettings,
    geometry: TokenGeometry,
    tokenizer: TextTokenizer,
    uniforms: Floats,
) -> tuple[PackItem, int]:
    """Plans a sample; each used image is decoded once and resized once per tower.

    Args:
        sample: The row.
        settings: Settings of its data set.
        geometry: Patch sizes of the model.
        tokenizer: Source of the special ids.
        uniforms: [E, 4] random numbers of the elements, see `element_uniforms`.

    Returns:
        The item of a pack, and its number of tokens.

    Raises:
        ImageError: If an image can't be decoded.
    """
    elements = count_elements(sample, settings, geometry)
    splits = plan_sequence(
        settings.row_format, elements, uniforms, settings.dropout, tokenizer.special
    )
    vae, vit = _resize(sample, splits, settings)
    texts = {s.element: sample.text_ids[s.element] for s in splits if s.kind == "text"}
    item = PackItem(splits=splits, text_ids=texts, vae_pixels=vae, vit_pixels=vit)
    return item, sum(_length(split, elements) for split in splits if not split.dropped)


def _length(split: PlannedSplit, elements: Elements) -> int:
    counts = {"text": elements.text_tokens, "vit": elements.vit_tokens}
    return int(counts.get(split.kind, elements.latent_tokens)[split.element]) + MARKERS


def _resize(
    sample: MeasuredSample, splits: Sequence[PlannedSplit], settings: RowSettings
) -> tuple[dict[int, Pixels], dict[int, Pixels]]:
    shared = settings.num_sharing(len(sample.images))
    decoded: dict[int, Image.Image] = {}
    vae: dict[int, Pixels] = {}
    vit: dict[int, Pixels] = {}
    for split in splits:
        if split.kind == "text" or split.dropped:
            continue
        index = split.element
        if index not in decoded:
            decoded[index] = decode_image(sample.images[index], settings.limits)
        if split.kind == "vit":
            vit[index] = settings.vit_transform(decoded[index], shared)
        elif index not in vae:
            vae[index] = settings.vae_transform(decoded[index], shared)
    return vae, vit
