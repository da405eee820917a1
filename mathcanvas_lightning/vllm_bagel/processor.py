"""Turns the images of a prompt into items for the workers: one block, one item."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.images.resize import decode_image, on_white
from mathcanvas_lightning.vllm_bagel import PAD
from mathcanvas_lightning.vllm_bagel.blocks import MARKERS, BlockKind, ImageBlock
from mathcanvas_lightning.vllm_bagel.directory import BagelDirectory, engine_directory
from mathcanvas_lightning.vllm_bagel.pictures import PictureRules

KINDS: tuple[BlockKind, ...] = ("vit", "vae")
"""Kind of a block by its number in `FIELDS`."""
FIELDS = {"kind": True, "features": False, "position_ids": False}
"""Fields of an item -> whether they stay on the CPU; those stay also if the item is cached, and
positions need the kind."""


class BagelInfo(BaseProcessingInfo):
    """What the processor knows of the model."""

    @cached_property
    def directory(self) -> BagelDirectory:
        """Sizes and special tokens."""
        return engine_directory(self.ctx.model_config.model)

    @cached_property
    def rules(self) -> PictureRules:
        """The rules for pictures, from the engine's `mm_processor_kwargs`."""
        return self.directory.picture_rules(self.ctx.get_merged_mm_kwargs({}))

    def get_data_parser(self) -> "BagelDataParser":
        """The parser below."""
        return BagelDataParser(self.rules)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of images."""
        return {"image": None}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """None that a request can set."""
        return {}

    def get_mm_max_tokens_per_item(
        self,
        seq_len: int,
        mm_counts: Mapping[str, int],  # noqa: ARG002
    ) -> Mapping[str, int]:
        """Number of tokens of the largest image."""
        return {"image": min(self.directory.max_block_tokens, seq_len)}


class BagelImages(ModalityDataItems[Sequence[Any], Any]):
    """Image blocks or pictures of a prompt.

    Args:
        data: Blocks, PIL images, or vLLM's media with their encoded bytes.
        rules: How a picture becomes a block.
    """

    def __init__(self, data: Sequence[Any], rules: PictureRules) -> None:
        super().__init__(data, "image")
        self._rules = rules

    def get_count(self) -> int:
        """Number of images."""
        return len(self.data)

    def get(self, index: int) -> Any:
        """The image as it was given."""
        return self.data[index]

    def get_item_for_hash(self, index: int) -> object:
        """The digest of a block, or the picture."""
        item = self.data[index]
        return item.digest if isinstance(item, ImageBlock) else item

    def get_processor_data(self) -> Mapping[str, object]:
        """Nothing for a processor of transformers."""
        return {}

    def get_passthrough_data(self) -> Mapping[str, object]:
        """The fields of all items."""
        blocks = [_block(item, self._rules) for item in self.data]
        return {
            "kind": torch.tensor([KINDS.index(block.kind) for block in blocks]),
            "features": [torch.from_numpy(block.features) for block in blocks],
            "position_ids": [torch.from_numpy(block.position_ids) for block in blocks],
        }


class BagelDataParser(MultiModalDataParser):
    """Accepts image blocks besides pictures.

    Args:
        rules: How a picture becomes a block.
    """

    def __init__(self, rules: PictureRules) -> None:
        super().__init__()
        self._rules = rules

    def _parse_image_data(self, data: Any) -> BagelImages | None:
        if data is None:
            return None
        items = data if isinstance(data, list | tuple) else [data]
        return BagelImages(items, self._rules)


class BagelDummies(BaseDummyInputsBuilder[BagelInfo]):
    """The largest inputs, with which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """A placeholder for each image."""
        return PAD * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self,
        seq_len: int,
        mm_counts: Mapping[str, int],
        mm_options: Mapping[str, Any],  # noqa: ARG002
    ) -> dict[str, list[ImageBlock]]:
        """Image blocks of the largest size."""
        directory = self.info.directory
        num_tokens = min(directory.max_block_tokens, seq_len) - MARKERS
        num_tokens = min(num_tokens, directory.config.vit_max_num_patch_per_side**2)
        block = ImageBlock(
            kind="vit",
            features=np.zeros((num_tokens, directory.config.vit.patch_dim), np.uint8),
            position_ids=np.arange(num_tokens),
        )
        return {"image": [block] * mm_counts.get("image", 0)}


class BagelProcessor(BaseMultiModalProcessor[BagelInfo]):
    """Replaces the placeholder of each image by its tokens."""

    def _get_mm_fields_config(
        self,
        hf_inputs: Mapping[str, Any],  # noqa: ARG002
        hf_processor_mm_kwargs: Mapping[str, object],
    ) -> Mapping[str, MultiModalFieldConfig]:
        if hf_processor_mm_kwargs:
            raise ValueError(
                "mm_processor_kwargs of a request are not supported; set them for the engine"
            )
        return {
            name: MultiModalFieldConfig.batched("image", keep_on_cpu=keep_on_cpu)
            for name, keep_on_cpu in FIELDS.items()
        }

    def _get_prompt_updates(
        self,
        mm_items: Any,  # noqa: ARG002
        hf_processor_mm_kwargs: Mapping[str, object],  # noqa: ARG002
        out_mm_kwargs: Mapping[str, Any],
    ) -> Sequence[PromptReplacement]:
        directory = self.info.directory

        def tokens(number: int) -> list[int]:
            count = len(out_mm_kwargs["image"][number]["position_ids"].data)
            special = directory.special
            return [special.start_of_image, *[directory.pad] * count, special.end_of_image]

        return [PromptReplacement(modality="image", target=[directory.pad], replacement=tokens)]


def _block(item: Any, rules: PictureRules) -> ImageBlock:
    if isinstance(item, ImageBlock):
        return item
    if isinstance(item, MediaWithBytes):
        item = decode_image(item.original_bytes, ImageLimits())
    if not isinstance(item, Image.Image):
        raise TypeError(f"an image is a PIL image or an ImageBlock, not {type(item).__name__}")
    return rules.vit_block(on_white(item))
