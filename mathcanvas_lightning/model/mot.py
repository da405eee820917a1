"""The decoder: Qwen2 layers with two experts, und and gen, that share attention.

Tokens come sorted by expert, und first. So each expert works on one slice, nothing is gathered or
scattered inside a layer, and attention, which knows each token's place, needs no sorting back.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mathcanvas_lightning.model.attention import Attention
from mathcanvas_lightning.model.config import LLMConfig
from mathcanvas_lightning.model.layers import RMSNorm, rotate

Rotary = tuple[Tensor, Tensor]


def by_expert(
    und: Callable[[Tensor], Tensor], gen: Callable[[Tensor], Tensor], x: Tensor, num_und: int
) -> Tensor:
    """Applies one function to the first `num_und` rows and another to the rest; either may be none.

    Empty slices run too, so that the parameters of both take part in every graph.
    """
    return torch.cat([und(x[:num_und]), gen(x[num_und:])])


def detach_und(x: Tensor, num_und: int) -> Tensor:
    """The same tensor, through whose first `num_und` rows no gradient passes."""
    return torch.cat([x[:num_und].detach(), x[num_und:]])


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
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class SelfAttention(nn.Module):
    """Projections and norms of both experts around one attention over all tokens."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.freeze_und = False
        size = config.hidden_size
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        for suffix in ("", "_moe_gen"):
            self.add_module(f"q_proj{suffix}", nn.Linear(size, queries))
            self.add_module(f"k_proj{suffix}", nn.Linear(size, keys))
            self.add_module(f"v_proj{suffix}", nn.Linear(size, keys))
            self.add_module(f"o_proj{suffix}", nn.Linear(queries, size, bias=False))
            self.add_module(f"q_norm{suffix}", RMSNorm(config.head_dim, config.rms_norm_eps))
            self.add_module(f"k_norm{suffix}", RMSNorm(config.head_dim, config.rms_norm_eps))

    def forward(self, x: Tensor, num_und: int, rotary: Rotary, attention: Attention) -> Tensor:
        """[T, D] sorted by expert to [T, D]."""
        projected = [self._heads(name, x, num_und) for name in ("q_proj", "k_proj", "v_proj")]
        query, key = (
            rotate(self._both(name, heads, num_und), rotary)
            for name, heads in zip(("q_norm", "k_norm"), projected[:2], strict=True)
        )
        qkv = [query, key, projected[2]]
        if self.freeze_und:
            qkv = [detach_und(heads, num_und) for heads in qkv]
        return self._both("o_proj", attention(*qkv).flatten(1), num_und)

    def _heads(self, name: str, x: Tensor, num_und: int) -> Tensor:
        projected = self._both(name, x, num_und)
        return projected.view(len(x), projected.shape[-1] // self.head_dim, self.head_dim)

    def _both(self, name: str, x: Tensor, num_und: int) -> Tensor:
        return by_expert(getattr(self, name), getattr(self, f"{name}_moe_gen"), x, num_und)


class DecoderLayer(nn.Module):
    """Norm, attention, norm, MLP, each with both experts."""

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

    def forward(self, x: Tensor, num_und: int, rotary: Rotary, attention: Attention) -> Tensor:
        """One layer.

        Args:
            x: [T, D], und tokens first.
            num_und: How many they are.
            rotary: Tables of `rotary_tables`, in the same order.
            attention: The pack's, made for the same order.

        Returns:
            [T, D].
        """
        x = self._detached(x, num_und)
        normed = by_expert(self.input_layernorm, self.input_layernorm_moe_gen, x, num_und)
        x = self._detached(x + self.self_attn(normed, num_und, rotary, attention), num_und)
        und, gen = x[:num_und], x[num_und:]
        und = und + self.mlp(self.post_attention_layernorm(und))
        gen = gen + self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(gen))
        return self._detached(torch.cat([und, gen]), num_und)

    def _detached(self, x: Tensor, num_und: int) -> Tensor:
        return detach_und(x, num_und) if self.freeze_und else x


class Decoder(nn.Module):
    """Embeddings, layers and the final norms."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.freeze_und = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_moe_gen = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, num_und: int, rotary: Rotary, attention: Attention) -> Tensor:
        """Embedded tokens [T, D], und first, to last hidden states [T, D] in the same order."""
        for layer in self.layers:
            x = layer(x, num_und, rotary, attention)
        x = by_expert(self.norm, self.norm_moe_gen, x, num_und)
        return detach_und(x, num_und) if self.freeze_und else x


class LanguageModel(nn.Module):
    """The decoder and its head; the nesting gives parameters their published names."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
