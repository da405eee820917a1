"""From a row to what a pack holds of it: measured, planned, decoded, resized."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mathcanvas_lightning.batch import TokenGeometry
from mathcanvas_lightning.data.images.decode import ImageLimits, check_image
from mathcanvas_lightning.data.images.resize import ImageTransform, Pixels, decode_image
from mathcanvas_lightning.data.rows.readers import Element, RowFormat, Sample
from mathcanvas_lightning.data.sequence.pack import PackItem
from mathcanvas_lightning.data.sequence.roles import MARKERS, DropoutConfig, Elements, Floats
from mathcanvas_lightning.data.sequence.splits import PlannedSplit, plan_sequence
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer

ReadImage = Callable[[Element], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """How the rows of one data set become tokens."""

    row_format: RowFormat
    vae_transform: ImageTransform
    vit_transform: ImageTransform
    dropout: DropoutConfig
    limits: ImageLimits

    def sharing(self, num_images: int) -> int:
        """How many of a row's images share one limit of pixels: all of a conversation's."""
        return num_images if self.row_format == "vlm" else 1

    def tokens(
        self, width: int, height: int, num_images: int, geometry: TokenGeometry
    ) -> tuple[int, int]:
        """Latent and ViT tokens of an image.

        Args:
            width: Of the source, pixels.
            height: Of the source, pixels.
            num_images: Of its row.
            geometry: Patch sizes.

        Returns:
            Tokens for the VAE, tokens for the ViT, without markers.
        """
        shared = self.sharing(num_images)
        sizes = (
            (self.vae_transform.output_size(width, height, shared), geometry.latent_patch_px),
            (self.vit_transform.output_size(width, height, shared), geometry.vit_patch_px),
        )
        latent, vit = ((w // patch) * (h // patch) for (w, h), patch in sizes)
        return latent, vit


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSample:
    """A row with its texts as ids and the sizes of its images; nothing is decoded yet."""

    elements: tuple[Element, ...]
    text_ids: Mapping[int, Sequence[int]]
    """Element -> ids."""
    images: Mapping[int, bytes]
    """Element -> encoded image."""
    sizes_px: Mapping[int, tuple[int, int]]
    """Element -> width and height."""


def measure(
    sample: Sample, tokenizer: TextTokenizer, limits: ImageLimits, read_image: ReadImage
) -> MeasuredSample:
    """Tokenizes texts and reads the headers of images.

    Args:
        sample: The row.
        tokenizer: For its texts.
        limits: For its images.
        read_image: Gives the bytes of an image element.

    Returns:
        All that lengths depend on.

    Raises:
        ImageError: If an image has no readable header or is over a limit.
    """
    text_ids, images, sizes = {}, {}, {}
    for index, element in enumerate(sample.elements):
        if is_text(element):
            assert isinstance(element.content, str)
            text_ids[index] = tokenizer.encode(element.content)
        else:
            images[index] = read_image(element)
            info = check_image(images[index], limits, depth="header")
            sizes[index] = (info.width_px, info.height_px)
    return MeasuredSample(
        elements=sample.elements, text_ids=text_ids, images=images, sizes_px=sizes
    )


def is_text(element: Element) -> bool:
    """Whether an element is a text, not an image."""
    return element.role.name.endswith(("TEXT", "ANSWER"))


def count_elements(
    sample: MeasuredSample, settings: RowSettings, geometry: TokenGeometry
) -> Elements:
    """The sample as the numbers that plans are made of."""
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
    draws: Floats,
) -> tuple[PackItem, int]:
    """Plans a sample; each image that is used is decoded once and resized once a tower.

    Args:
        sample: The row.
        settings: Of its data set.
        geometry: Patch sizes.
        tokenizer: For the special ids.
        draws: [E, 4] of its elements.

    Returns:
        What a pack needs, and the tokens it takes there.

    Raises:
        ImageError: If an image can't be decoded.
    """
    elements = count_elements(sample, settings, geometry)
    splits = plan_sequence(
        settings.row_format, elements, draws, settings.dropout, tokenizer.special
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
    shared = settings.sharing(len(sample.images))
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
