"""Attention on the CPU: causal in texts, full inside images.

GPU backends of vLLM read the ranges of images themselves; its CPU backend does not. Here each image
and each text between images becomes a separate request for the kernel, over the same row of the
block table; the kernel takes a flag for each request.
"""

from dataclasses import replace
from typing import Any

import torch
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionMetadataBuilder

from mathcanvas_lightning.vllm_bagel.ranges import Segment, attention_segments


class ImageCPUAttentionBackend(CPUAttentionBackend):
    """vLLM's CPU backend with full attention inside images."""

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        """The builder below."""
        return ImageMetadataBuilder

    @classmethod
    def supports_mm_prefix(cls) -> bool:
        """True: that is what this class adds."""
        return True


class ImageMetadataBuilder(CPUAttentionMetadataBuilder):
    """Builds the metadata of a forward pass."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> Any:
        """Divides requests with new image tokens into segments.

        Args:
            common_prefix_len: As in vLLM.
            common_attn_metadata: The requests of the pass.
            fast_build: As in vLLM.

        Returns:
            vLLM's metadata.

        Raises:
            SplitImageError: If the pass ends inside an image.
        """
        given = common_attn_metadata
        ranges = given.mm_req_doc_ranges
        if ranges:
            starts = given.query_start_loc[: given.num_reqs + 1]
            segments = attention_segments(
                starts.diff().tolist(), given.seq_lens[: given.num_reqs].tolist(), ranges
            )
            if not all(segment.is_causal for segment in segments):
                given = _divided(given, segments)
        return super().build(common_prefix_len, given, fast_build)


def _divided(given: Any, segments: list[Segment]) -> Any:
    lengths = torch.tensor([0, *(segment.length for segment in segments)], dtype=torch.int32)
    starts = lengths.cumsum(0, dtype=torch.int32)
    rows = torch.tensor([segment.request for segment in segments])
    return replace(
        given,
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=torch.tensor([segment.end for segment in segments], dtype=torch.int32),
        num_reqs=len(segments),
        max_query_len=int(lengths.max()),
        block_table_tensor=given.block_table_tensor[rows],
        causal=torch.tensor([segment.is_causal for segment in segments], dtype=torch.int32),
    )
