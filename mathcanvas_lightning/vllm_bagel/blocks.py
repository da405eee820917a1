"""Image blocks: the images of a context, as they travel to vLLM's workers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

BlockKind = Literal["vae", "vit"]
MARKERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBlock:
    """One image in a context: a start marker, its tokens, and an end marker.

    An image that the model knows by both towers has two blocks: latents, then patches. Keep a block
    and send it again with the next context: vLLM finds what it has computed for it by its digest.
    """

    kind: BlockKind
    """VAE latents, for the generation expert, or ViT patches, for the understanding expert."""
    features: npt.NDArray[np.generic]
    """Latent tokens [n, P] float32 without noise, or patches [n, P] uint8."""
    position_ids: npt.NDArray[np.int64]
    """[n] positions in the fixed position table."""
    digest: str = field(init=False)
    """Hash of the content."""

    def __post_init__(self) -> None:
        assert len(self.features) == len(self.position_ids), self.features.shape
        found = blake2b(f"{self.kind}{self.features.dtype}".encode(), digest_size=16)
        for values in (self.features, self.position_ids):
            found.update(np.ascontiguousarray(values).tobytes())
        object.__setattr__(self, "digest", found.hexdigest())

    @property
    def num_tokens(self) -> int:
        """Number of tokens, with markers."""
        return len(self.features) + MARKERS


ContextPart = tuple[int, ...] | ImageBlock
"""Token ids, or an image."""


def engine_prompt(context: Sequence[ContextPart], pad: int) -> dict[str, Any]:
    """The prompt of a context for vLLM's `LLM.generate` or `add_request`.

    Args:
        context: Token ids and image blocks in order.
        pad: Id of the token that stands for a block, see `BagelDirectory.pad`.

    Returns:
        vLLM's prompt of token ids with multimodal data.
    """
    ids: list[int] = []
    for part in context:
        ids += [pad] if isinstance(part, ImageBlock) else part
    blocks = [part for part in context if isinstance(part, ImageBlock)]
    if not blocks:
        return {"prompt_token_ids": ids}
    return {
        "prompt_token_ids": ids,
        "multi_modal_data": {"image": blocks},
        "multi_modal_uuids": {"image": [block.digest for block in blocks]},
    }
