"""BAGEL as a model of vLLM: contexts with images in, logits of the next text token out."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMRoPE, SupportsMultiModal
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from mathcanvas_lightning.model.config import GEN_SUFFIX
from mathcanvas_lightning.model.layers.attention import AttentionPath
from mathcanvas_lightning.model.layers.basic import Connector, PositionTable, TimeEmbedder
from mathcanvas_lightning.model.layers.image_inputs import ImageInputs
from mathcanvas_lightning.model.layers.vit import ViTModel
from mathcanvas_lightning.vllm_bagel import PAD
from mathcanvas_lightning.vllm_bagel.directory import engine_directory
from mathcanvas_lightning.vllm_bagel.language_model import BagelLanguageModel
from mathcanvas_lightning.vllm_bagel.processor import (
    KINDS,
    BagelDummies,
    BagelInfo,
    BagelProcessor,
)
from mathcanvas_lightning.vllm_bagel.ranges import ImageRange, gen_mask, rope_positions

NOT_LOADED = {"llm2vae.": None}
"""Prefixes of published names that only drawing needs."""


@MULTIMODAL_REGISTRY.register_processor(BagelProcessor, info=BagelInfo, dummy_inputs=BagelDummies)
class MathCanvasBagel(ImageInputs, SupportsMultiModal, SupportsLoRA, SupportsMRoPE):
    """BAGEL without its autoencoder and velocity head; latents come with the request.

    Args:
        vllm_config: vLLM's configuration.
        prefix: Name of this module; empty.
    """

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        f"qkv_proj{suffix}": [f"{name}_proj{suffix}" for name in "qkv"]
        for suffix in ("", GEN_SUFFIX)
    } | {"gate_up_proj": ["gate_proj", "up_proj"]}

    attention_path: AttentionPath | None = "sdpa"  # FlexAttention would compile in vLLM's worker
    _mark_language_model: Callable[..., AbstractContextManager[None]]
    _mark_tower_model: Callable[..., AbstractContextManager[None]]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        assert not prefix, prefix
        self.config = vllm_config.model_config.hf_config  # vLLM's adapters read it
        directory = engine_directory(vllm_config.model_config.model)
        config = directory.config
        size = config.llm.hidden_size
        self._special = directory.special
        self._tables = ("vit_pos_embed", "latent_pos_embed")
        files = {file.name for file in directory.weights.files.values()}
        if len(files) == 1:  # several files have an index, which vLLM follows
            self.allow_patterns_overrides = sorted(files)
        with self._mark_language_model(vllm_config):
            self.language_model = BagelLanguageModel(config.llm, vllm_config, "language_model")
        with self._mark_tower_model(vllm_config, "image"):
            self.vit_model = ViTModel(config.vit)
            self.connector = Connector(config.vit.hidden_size, size)
            self.vit_pos_embed = PositionTable(config.vit_max_num_patch_per_side, size)
            self.time_embedder = TimeEmbedder(size)
            self.vae2llm = nn.Linear(config.latent_dim, size)
            self.latent_pos_embed = PositionTable(config.max_latent_size, size)

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:  # noqa: ARG003
        """The text that stands for an image in a prompt."""
        if modality != "image":
            raise ValueError(f"BAGEL reads images, not {modality}")
        return PAD

    def get_mm_mapping(self) -> MultiModelKeys:
        """Which modules belong to the decoder; adapters apply to those only."""
        return MultiModelKeys.from_string_field(
            language_model="language_model", connector="connector", tower_model="vit_model"
        )

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: Sequence[Any]
    ) -> tuple[Tensor, int]:
        """Positions of a prompt, see `rope_positions`.

        Args:
            input_tokens: Tokens of the prompt.
            mm_features: Its images.
        """
        images = [
            ImageRange(
                start=feature.mm_position.offset,
                length=feature.mm_position.length,
                is_latent=KINDS[int(feature.data["kind"].data)] == "vae",
            )
            for feature in mm_features
        ]
        return rope_positions(len(input_tokens), images)

    def embed_multimodal(
        self,
        *,
        kind: Tensor,
        features: Sequence[Tensor],
        position_ids: Sequence[Tensor],
    ) -> list[Tensor]:
        """Embeds image blocks.

        Args:
            kind: [n] number of each block's kind in `KINDS`.
            features: Features of each block.
            position_ids: Positions of each block's tokens in the position table.

        Returns:
            [tokens with markers, D] of each block.
        """
        kinds = [KINDS[number] for number in kind.flatten().tolist()]
        markers = self.language_model.embed_input_ids(
            torch.tensor(
                [self._special.start_of_image, self._special.end_of_image],
                device=position_ids[0].device,
            )
        )
        embedded: list[Tensor] = [markers] * len(kinds)
        for wanted in set(kinds):
            members = [number for number, found in enumerate(kinds) if found == wanted]
            values = torch.cat([features[number] for number in members])
            ids = torch.cat([position_ids[number] for number in members])
            lens = [len(position_ids[number]) for number in members]
            if wanted == "vit":
                tokens = self.embed_vit(values, ids, lens)
            else:
                times = torch.zeros(len(ids), device=ids.device)
                tokens = self.embed_latents(values, times, ids)
            for number, part in zip(members, tokens.split(lens), strict=True):
                embedded[number] = torch.cat([markers[:1], part, markers[1:]])
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        """Runs the decoder.

        Args:
            input_ids: [T], without images.
            positions: [3, T] of `rope_positions`.
            intermediate_tensors: Always None: there is one pipeline stage.
            inputs_embeds: [T, D], with images.

        Returns:
            [T, D] last hidden states.
        """
        assert intermediate_tensors is None
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.language_model.embed_input_ids(input_ids)
        hidden: Tensor = self.language_model(
            input_ids, positions[0], gen_mask(positions), inputs_embeds
        )
        return hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """[n, D] to [n, V]."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Loads weights by their published names; fixed tables that are absent are computed."""
        loader = AutoWeightsLoader(self)
        loaded: set[str] = loader.load_weights(
            weights, mapper=WeightsMapper(orig_to_new_prefix=NOT_LOADED)
        )
        for name in self._tables:
            table = getattr(self, name)
            if f"{name}.pos_embed" not in loaded and isinstance(table, PositionTable):
                table.reset()
                loaded.add(f"{name}.pos_embed")
        return loaded
