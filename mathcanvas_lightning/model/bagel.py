"""The BAGEL network: a packed sequence in; hidden states, text losses and velocities out."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mathcanvas_lightning.batch import PackedBatch
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.model.checkpoint import (
    TABLES,
    config_for_weights,
    find_weights,
    load_qwen2,
    load_weights,
)
from mathcanvas_lightning.model.config import BAGEL_FILE, GEN_SUFFIX, BagelConfig, LLMConfig
from mathcanvas_lightning.model.flow import add_noise
from mathcanvas_lightning.model.layers.attention import TokenLayout, full_layout, stored_layout
from mathcanvas_lightning.model.layers.basic import (
    Connector,
    PositionTable,
    TimeEmbedder,
    rotary_tables,
    without_memory,
)
from mathcanvas_lightning.model.layers.cross_entropy import token_cross_entropy
from mathcanvas_lightning.model.layers.image_inputs import ImageInputs
from mathcanvas_lightning.model.layers.mot import DecoderLayer, LanguageModel
from mathcanvas_lightning.model.layers.padding import Padding, pad_rows
from mathcanvas_lightning.model.layers.quantized import WeightKind, quantize_frozen
from mathcanvas_lightning.model.layers.vit import ViTModel
from mathcanvas_lightning.model.saving import write_checkpoint

COMPONENTS = ("language_model", "vit_model", "connector", "time_embedder", "vae2llm", "llm2vae")


@dataclass(frozen=True, slots=True, kw_only=True)
class BagelOutput:
    """Outputs of a forward pass."""

    hidden_states: Tensor
    """[T, D] in sequence order, after the final norm."""
    ce: Tensor
    """[E] float32, cross entropy at each position with text loss."""
    velocities: Tensor
    """[M, P] predictions at the noisy latents."""


class Bagel(ImageInputs):
    """The network without its autoencoder; the forward pass is deterministic.

    Args:
        config: Sizes of the model.
    """

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.config = config
        size = config.llm.hidden_size
        self.language_model = LanguageModel(config.llm)
        self.vit_model = ViTModel(config.vit)
        self.connector = Connector(config.vit.hidden_size, size)
        self.vit_pos_embed = PositionTable(config.vit_max_num_patch_per_side, size)
        self.time_embedder = TimeEmbedder(size)
        self.vae2llm = nn.Linear(config.latent_dim, size)
        self.llm2vae = nn.Linear(size, config.latent_dim)
        self.latent_pos_embed = PositionTable(config.max_latent_size, size)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        components: Collection[str] | None = None,
        text_head: bool = True,
        quantized: WeightKind | None = None,
        seed: int = 0,
        **overrides: Any,
    ) -> Self:
        """Loads a directory in BAGEL-7B-MoT layout.

        Args:
            path: The directory.
            dtype: Type of the computation, and of all parameters that are not quantized.
            device: Device of all parameters.
            components: Parts to load, of `COMPONENTS`; None loads all. The other parts are
                initialized randomly.
            text_head: Whether to load `lm_head`. Without it the model reads and draws, but cannot
                write: `lm_head` does not exist then.
            quantized: Type in which the linear layers of decoder and ViT are stored, to answer with
                less memory; they are frozen. Embeddings, head, connectors and norms keep `dtype`.
            seed: Random seed of the parts that are not loaded.
            overrides: Fields of the configuration to change, as in `BagelConfig.preset`. Position
                tables are rebuilt if their size changes.

        Returns:
            The model. Loading needs host memory for the model and one more tensor.

        Raises:
            ConfigError: If a config file can't be used, a component is unknown, or components are
                chosen of a quantized model.
            DataError: If weights are missing, unexpected or of another shape.
        """
        _check_components(components, quantized)
        weights = find_weights(path)
        config = config_for_weights(BagelConfig.from_directory(path), weights)
        with without_memory():
            model = cls(config.override(**overrides))
        if not text_head:
            del model.language_model.lm_head
        model = model.to(dtype=dtype)
        if quantized is not None:
            for layer in model.layers():
                quantize_frozen(layer.requires_grad_(False), dtype, quantized, place="weights")
        model = model.to_empty(device=device)
        if components is None:
            model.reset_tables()
            components = None if text_head else {name.split(".")[0] for name in model.state_dict()}
        else:
            model.reset_parameters(seed)
        load_weights(model, weights, place=str(path), components=components)
        return model

    @classmethod
    def from_qwen2(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        seed: int = 0,
        **overrides: Any,
    ) -> Self:
        """Starts a new model from a plain Qwen2 checkpoint.

        Both experts get the weights of Qwen2's layers. The q/k norms start at one, the velocity
        head at zero. ViT, connector and the other new parts are initialized randomly.

        Args:
            path: Directory of a Qwen2 model, with config.json.
            dtype: Type of all parameters.
            device: Device of all parameters.
            seed: Random seed of the new parts.
            overrides: Fields of the configuration to change.

        Returns:
            The model.

        Raises:
            ConfigError: If config.json can't be used.
            DataError: If weights are missing or of another shape.
        """
        config = BagelConfig(llm=LLMConfig.from_file(local_path(path) / BAGEL_FILE))
        model = cls.empty(config.override(**overrides), dtype=dtype, device=device)
        model.reset_parameters(seed)
        load_qwen2(model.language_model, find_weights(path), place=str(path))
        model.copy_und_to_gen()
        return model

    @classmethod
    def empty(cls, config: BagelConfig, *, dtype: torch.dtype, device: torch.device | str) -> Self:
        """Allocates a model without initializing its parameters."""
        with without_memory():
            model = cls(config)
        return model.to(dtype=dtype).to_empty(device=device)

    def layers(self) -> list[nn.Module]:
        """The layers of the ViT and the decoder, in the order they run."""
        return [*self.vit_model.vision_model.encoder.layers, *self.language_model.model.layers]

    def save_checkpoint(
        self,
        path: str | Path,
        *,
        dtype: torch.dtype = torch.bfloat16,
        source: str | Path | None = None,
    ) -> None:
        """Writes a directory that the reference, this library and vLLM read.

        Args:
            path: Directory to write.
            dtype: Type of the stored weights.
            source: Directory from which tokenizer and autoencoder are taken.

        Raises:
            ConfigError: If the model still has adapters; see `absorb_lora`.
        """
        state = self.state_dict()
        if any(".lora_" in name for name in state):
            raise ConfigError(
                "save_checkpoint",
                found="a model with LoRA adapters",
                wanted="plain weights",
                remedy="Call absorb_lora(model) first.",
            )
        write_checkpoint(state, self.config, path, dtype=dtype, source=source)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Initializes all parameters randomly, with the same values on every device.

        Args:
            seed: Random seed.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn * self.config.llm.initializer_range)
        self.copy_und_to_gen()
        self.llm2vae.weight.zero_()
        self.reset_tables()

    @staticmethod
    def fixed_tables(config: BagelConfig) -> dict[str, Tensor]:
        """Computes the fixed position tables of a configuration, by parameter name."""
        size = config.llm.hidden_size
        found = {
            "vit_pos_embed": PositionTable(config.vit_max_num_patch_per_side, size),
            "latent_pos_embed": PositionTable(config.max_latent_size, size),
        }
        for table in found.values():
            table.reset()
        return {f"{name}.pos_embed": table.pos_embed.detach() for name, table in found.items()}

    def reset_tables(self) -> None:
        """Fills the fixed position tables."""
        self.latent_pos_embed.reset()
        self.vit_pos_embed.reset()

    @torch.no_grad()
    def copy_und_to_gen(self) -> None:
        """Makes the generation expert a copy of the understanding expert."""
        state = self.language_model.state_dict()
        for name, tensor in state.items():
            if GEN_SUFFIX in name:
                tensor.copy_(state[name.replace(GEN_SUFFIX, "")])

    def freeze(
        self, *, llm: bool = False, vit: bool = False, connector: bool = False, und: bool = False
    ) -> None:
        """Freezes parts, and unfreezes all others except the fixed position tables.

        Args:
            llm: Freeze the decoder with both experts, and its head.
            vit: Freeze the image encoder.
            connector: Freeze the connector.
            und: Freeze the understanding expert and everything that feeds it, and stop gradients
                through it. The generation expert and the text head are still trained.
        """
        frozen = {"language_model": llm, "vit_model": vit or und, "connector": connector or und}
        for name, parameter in self.named_parameters():
            part = name.split(".")[0]
            is_und = part == "language_model" and GEN_SUFFIX not in name and "lm_head" not in name
            parameter.requires_grad_(
                not (frozen.get(part, False) or (und and is_und) or name in TABLES)
            )
        self.language_model.model.freeze_und = und
        for layer in self.language_model.model.layers:
            assert isinstance(layer, DecoderLayer)
            layer.freeze_und = layer.self_attn.freeze_und = und

    def forward(
        self, batch: PackedBatch, *, latents: Tensor, noise: Tensor, timesteps: Tensor
    ) -> BagelOutput:
        """Runs the network on a pack.

        Args:
            batch: The pack, on the model's device.
            latents: [L, P] clean latent tokens of `pack_latents`.
            noise: [L, P]; not used where the timestep is 0.
            timesteps: [L] shifted times, 0 for clean images.

        Returns:
            Hidden states, text losses and velocities. Every trained parameter receives a gradient
            (possibly zero), also from a pack without images or without text loss.
        """
        # und tokens first, then gen tokens, so that each expert works on one contiguous block.
        layout = batch.layout
        texts = self.language_model.model.embed_tokens(batch.text_ids)
        patches = self._embed_vit(
            batch.vit_patches,
            batch.vit_position_ids,
            full_layout(layout.vit_image_ids, layout.vit_blocks),
        )
        noised = add_noise(latents, noise, timesteps)
        gen = self.embed_latents(noised, timesteps, batch.latent_position_ids)
        und = torch.cat([texts, patches])
        und = torch.empty_like(und).index_copy(0, layout.und_storage_indexes, und)
        hidden = self._decode(und, gen, batch.position_ids[layout.order], stored_layout(layout))
        hidden = hidden[layout.inverse]
        return BagelOutput(
            hidden_states=hidden,
            ce=token_cross_entropy(
                hidden[batch.ce_indexes], self.language_model.lm_head.weight, batch.ce_label_ids
            ),
            velocities=self.llm2vae(hidden[batch.mse_indexes]),
        )

    def _decode(
        self, und: Tensor, gen: Tensor, position_ids: Tensor, layout: TokenLayout
    ) -> Tensor:
        """Embedded tokens of both experts, und first, to their last hidden states [T, D]."""
        llm, sizes = self.config.llm, [len(und), len(gen)]
        padding = Padding.of_experts(*sizes) if self._is_padded(und.device) else Padding()
        counts = (padding.und, padding.gen)
        attention = self._attention(padding.of_layout(layout, len(und)))
        rotary = [
            rotary_tables(pad_rows(ids, count), llm.head_dim, llm.rope_theta)
            for ids, count in zip(position_ids.split(sizes), counts, strict=True)
        ]
        padded = (pad_rows(x, count) for x, count in zip((und, gen), counts, strict=True))
        und, gen = self.language_model.model(*padded, (rotary[0], rotary[1]), attention)
        return torch.cat([und[: sizes[0]], gen[: sizes[1]]])


def _check_components(components: Collection[str] | None, quantized: WeightKind | None) -> None:
    if unknown := set(components or ()) - set(COMPONENTS):
        raise ConfigError(
            "components",
            found=str(sorted(unknown)),
            wanted=f"some of {', '.join(COMPONENTS)}",
            remedy="Leave it out to load all.",
        )
    if quantized is not None and components is not None:
        raise ConfigError(
            "components",
            found=f"a choice, with quantized={quantized!r}",
            wanted="all parts of a quantized model",
            remedy="Leave one of them out.",
        )
