"""The decoder: Qwen2 layers with two experts, und and gen, that share attention.

From the embeddings to the final norm, the tokens of each expert are in a separate tensor. So each
expert works on one contiguous block, and no layer gathers or scatters tokens. Attention gets the
index of each token in the sequence from the layout.
"""

import torch
from torch import Tensor, nn

from mathcanvas_lightning.model.config import GEN_SUFFIX, LLMConfig
from mathcanvas_lightning.model.layers.attention import LayerAttention, StackAttention
from mathcanvas_lightning.model.layers.basic import RMSNorm, rotate
from mathcanvas_lightning.model.layers.swiglu import gated_down

Rotary = tuple[Tensor, Tensor]
"""Rotary cosines and sines of one expert's tokens."""
Experts = tuple[Tensor, Tensor]
"""Hidden states of the und and the gen tokens, [n, D] each; either may be empty."""


class MLP(nn.Module):
    """Qwen2's gated MLP."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, D] to [n, D]."""
        return gated_down(self.gate_proj(x), self.up_proj(x), self.down_proj)


class SelfAttention(nn.Module):
    """Attention over all tokens; each expert has its own projections and norms."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.freeze_und = False
        size = config.hidden_size
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        for suffix in ("", GEN_SUFFIX):
            self.add_module(f"q_proj{suffix}", nn.Linear(size, queries))
            self.add_module(f"k_proj{suffix}", nn.Linear(size, keys))
            self.add_module(f"v_proj{suffix}", nn.Linear(size, keys))
            self.add_module(f"o_proj{suffix}", nn.Linear(queries, size, bias=False))
            self.add_module(f"q_norm{suffix}", RMSNorm(config.head_dim, config.rms_norm_eps))
            self.add_module(f"k_norm{suffix}", RMSNorm(config.head_dim, config.rms_norm_eps))

    def forward(
        self, und: Tensor, gen: Tensor, rotary: tuple[Rotary, Rotary], attention: LayerAttention
    ) -> Experts:
        """Normed hidden states of both experts to the residuals of both."""
        of_und = self._project(und, rotary[0], "")
        of_gen = self._project(gen, rotary[1], GEN_SUFFIX)
        if self.freeze_und:
            of_und = [heads.detach() for heads in of_und]
        query, key, value = (torch.cat(pair) for pair in zip(of_und, of_gen, strict=True))
        attended = attention(query, key, value).flatten(1)
        return (
            self._part("o_proj")(attended[: len(und)]),
            self._part(f"o_proj{GEN_SUFFIX}")(attended[len(und) :]),
        )

    def forward_und(self, und: Tensor, rotary: Rotary, attention: LayerAttention) -> Tensor:
        """Same as `forward`, for input without gen tokens."""
        attended = attention(*self._project(und, rotary, "")).flatten(1)
        residual: Tensor = self._part("o_proj")(attended)
        return residual

    def _project(self, x: Tensor, rotary: Rotary, suffix: str) -> list[Tensor]:
        """Computes normed and rotated q and k, and v, of one expert: [n, heads, H] each."""
        query, key, value = (
            self._part(f"{name}_proj{suffix}")(x).unflatten(-1, (-1, self.head_dim))
            for name in "qkv"
        )
        query = rotate(self._part(f"q_norm{suffix}")(query), rotary)
        key = rotate(self._part(f"k_norm{suffix}")(key), rotary)
        return [query, key, value]

    def _part(self, name: str) -> nn.Module:
        part = getattr(self, name)
        assert isinstance(part, nn.Module)
        return part


class DecoderLayer(nn.Module):
    """Norm, attention, norm, MLP, each with weights for both experts."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.freeze_und = False
        self.self_attn = SelfAttention(config)
        self.mlp = MLP(config)
        self.mlp_moe_gen = MLP(config)
        self.input_layernorm = RMSNorm(size, eps)
        self.input_layernorm_moe_gen = RMSNorm(size, eps)
        self.post_attention_layernorm = RMSNorm(size, eps)
        self.post_attention_layernorm_moe_gen = RMSNorm(size, eps)

    def forward(
        self, und: Tensor, gen: Tensor, rotary: tuple[Rotary, Rotary], attention: LayerAttention
    ) -> Experts:
        """Runs one layer.

        Args:
            und: [n, D] hidden states of the understanding expert's tokens.
            gen: [m, D] hidden states of the generation expert's tokens.
            rotary: Tables of `rotary_tables` for each expert.
            attention: Attention over the und tokens followed by the gen tokens.

        Returns:
            New hidden states of both experts.
        """
        if len(gen) == 0 and not torch.is_grad_enabled():
            return self._forward_und(und, rotary[0], attention), gen
        und = self._detached(und)
        of_und, of_gen = self.self_attn(
            self.input_layernorm(und), self.input_layernorm_moe_gen(gen), rotary, attention
        )
        und, gen = self._detached(und + of_und), gen + of_gen
        und = und + self.mlp(self.post_attention_layernorm(und))
        gen = gen + self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(gen))
        return self._detached(und), gen

    def _forward_und(self, und: Tensor, rotary: Rotary, attention: LayerAttention) -> Tensor:
        """Skips the gen expert, during text generation."""
        und = und + self.self_attn.forward_und(self.input_layernorm(und), rotary, attention)
        after: Tensor = und + self.mlp(self.post_attention_layernorm(und))
        return after

    def _detached(self, und: Tensor) -> Tensor:
        return und.detach() if self.freeze_und else und


class Decoder(nn.Module):
    """Embeddings, layers and the final norms."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.freeze_und = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_moe_gen = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, und: Tensor, gen: Tensor, rotary: tuple[Rotary, Rotary], attention: StackAttention
    ) -> Experts:
        """Embedded tokens of both experts to their last hidden states."""
        for number, layer in enumerate(self.layers):
            und, gen = layer(und, gen, rotary, attention.of_layer(number))
        und, gen = self.norm(und), self.norm_moe_gen(gen)
        return (und.detach() if self.freeze_und else und), gen


class LanguageModel(nn.Module):
    """The decoder and its head, nested as in the published parameter names."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
