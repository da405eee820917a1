"""The decoder in vLLM's layers: Qwen2 with two experts that share attention.

vLLM keeps the tokens of a batch in the order of the sequences, so each expert gathers its tokens
and the results are scattered back. Text generation has no tokens of the generation expert, and
skips this.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.platforms import current_platform

from mathcanvas_lightning.model.config import GEN_SUFFIX, LLMConfig

SUFFIXES = ("", GEN_SUFFIX)
STACKED = {
    ".q_proj": (".qkv_proj", "q"),
    ".k_proj": (".qkv_proj", "k"),
    ".v_proj": (".qkv_proj", "v"),
    ".gate_proj": (".gate_up_proj", 0),
    ".up_proj": (".gate_up_proj", 1),
}
"""Part of a published name -> vLLM's merged layer and the part of it."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Which expert computes which tokens of a batch."""

    und: Tensor | None
    """Indexes of the understanding expert's tokens; None if it computes all."""
    gen: Tensor | None
    is_gen: Tensor
    """[T] bool."""
    gathers: bool
    """Whether each expert computes only its tokens. With LoRA both compute all, because vLLM's
    adapters count on the order of the batch."""

    @classmethod
    def of(cls, is_gen: Tensor, *, gathers: bool) -> "Routing":
        """The routing of a batch; reads the mask, so a GPU waits here.

        Args:
            is_gen: [T] bool.
            gathers: See `gathers`.
        """
        gen = is_gen.nonzero().flatten()
        if len(gen) == 0:
            return cls(None, None, is_gen, gathers)
        return cls((~is_gen).nonzero().flatten(), gen, is_gen, gathers)

    def __call__(
        self, of_und: Callable[[Tensor], Tensor], of_gen: Callable[[Tensor], Tensor], x: Tensor
    ) -> Tensor:
        """Applies the function of each token's expert to [T, n]."""
        if self.und is None or self.gen is None:
            return of_und(x)
        if not self.gathers:
            return torch.where(self.is_gen[:, None], of_gen(x), of_und(x))
        und = of_und(x[self.und])
        out = und.new_empty(len(x), und.shape[1])
        out[self.und] = und
        out[self.gen] = of_gen(x[self.gen])
        return out


class _Attention(nn.Module):
    """Attention over all tokens; each expert has its own projections and norms."""

    def __init__(self, config: LLMConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        quant = vllm_config.quant_config
        heads, kv_heads, size = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        for suffix in SUFFIXES:
            qkv = QKVParallelLinear(
                config.hidden_size,
                size,
                heads,
                kv_heads,
                bias=True,
                quant_config=quant,
                prefix=f"{prefix}.qkv_proj{suffix}",
            )
            out = RowParallelLinear(
                heads * size,
                config.hidden_size,
                bias=False,
                quant_config=quant,
                prefix=f"{prefix}.o_proj{suffix}",
            )
            self.add_module(f"qkv_proj{suffix}", qkv)
            self.add_module(f"o_proj{suffix}", out)
            self.add_module(f"q_norm{suffix}", RMSNorm(size, config.rms_norm_eps))
            self.add_module(f"k_norm{suffix}", RMSNorm(size, config.rms_norm_eps))
        self._head_dim = size
        self._sizes = [qkv.num_heads * size, qkv.num_kv_heads * size, qkv.num_kv_heads * size]
        self.rotary_emb = get_rope(
            size,
            max_position=config.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
        self.attn = Attention(
            qkv.num_heads,
            size,
            size**-0.5,
            num_kv_heads=qkv.num_kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=quant,
            prefix=f"{prefix}.attn",
            attn_backend=_attention_backend(),
        )

    def forward(self, positions: Tensor, x: Tensor, routing: Routing) -> Tensor:
        und, gen = (self._projection(suffix) for suffix in SUFFIXES)
        query, key, value = routing(und, gen, x).split(self._sizes, dim=-1)
        query, key = self.rotary_emb(positions, query.contiguous(), key.contiguous())
        attended = self.attn(query, key, value.contiguous())
        und, gen = (_first(self.get_submodule(f"o_proj{suffix}")) for suffix in SUFFIXES)
        return routing(und, gen, attended)

    def _projection(self, suffix: str) -> Callable[[Tensor], Tensor]:
        """Normed q and k, and v, in one row for each token."""
        qkv, q_norm, k_norm = (
            self.get_submodule(name + suffix) for name in ("qkv_proj", "q_norm", "k_norm")
        )

        def project(x: Tensor) -> Tensor:
            query, key, value = qkv(x)[0].split(self._sizes, dim=-1)
            heads = (-1, self._head_dim)
            query = q_norm(query.unflatten(-1, heads).contiguous()).flatten(1)
            key = k_norm(key.unflatten(-1, heads).contiguous()).flatten(1)
            return torch.cat([query, key, value], dim=-1)

        return project


class _MLP(nn.Module):
    """Qwen2's gated MLP."""

    def __init__(self, config: LLMConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        quant = vllm_config.quant_config
        self.gate_up_proj = MergedColumnParallelLinear(
            config.hidden_size,
            [config.intermediate_size] * 2,
            bias=False,
            quant_config=quant,
            prefix=f"{prefix}.gate_up_proj",
        )
        self.down_proj = RowParallelLinear(
            config.intermediate_size,
            config.hidden_size,
            bias=False,
            quant_config=quant,
            prefix=f"{prefix}.down_proj",
        )
        self.act_fn = SiluAndMul()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_up_proj(x)[0]))[0]
        return out


class _Layer(nn.Module):
    """Norm, attention, norm, MLP, each with weights for both experts."""

    def __init__(self, config: LLMConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.self_attn = _Attention(config, vllm_config, f"{prefix}.self_attn")
        for suffix in SUFFIXES:
            name = f"mlp{suffix}"
            self.add_module(name, _MLP(config, vllm_config, f"{prefix}.{name}"))
            for norm in ("input_layernorm", "post_attention_layernorm"):
                self.add_module(norm + suffix, RMSNorm(config.hidden_size, config.rms_norm_eps))

    def forward(self, positions: Tensor, x: Tensor, routing: Routing) -> Tensor:
        normed = routing(*self._experts("input_layernorm"), x)
        x = x + self.self_attn(positions, normed, routing)
        normed = routing(*self._experts("post_attention_layernorm"), x)
        return x + routing(*self._experts("mlp"), normed)

    def _experts(self, name: str) -> tuple[nn.Module, nn.Module]:
        return self.get_submodule(name), self.get_submodule(name + GEN_SUFFIX)


class _Decoder(nn.Module):
    """Embeddings, layers and the final norms."""

    def __init__(self, config: LLMConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self._gathers = vllm_config.lora_config is None
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, prefix=f"{prefix}.embed_tokens"
        )
        self.layers = nn.ModuleList(
            _Layer(config, vllm_config, f"{prefix}.layers.{number}")
            for number in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_moe_gen = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, positions: Tensor, is_gen: Tensor, x: Tensor) -> Tensor:
        routing = Routing.of(is_gen, gathers=self._gathers)
        for layer in self.layers:
            x = layer(positions, x, routing)
        return routing(self.norm, self.norm_moe_gen, x)


class BagelLanguageModel(nn.Module):
    """The decoder and its head, nested as in the published parameter names.

    Args:
        config: Sizes.
        vllm_config: vLLM's configuration.
        prefix: Name of this module in the model.
    """

    def __init__(self, config: LLMConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.model = _Decoder(config, vllm_config, f"{prefix}.model")
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.lm_head",
        )
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """[T] int64 to [T, D]."""
        embedded: Tensor = self.model.embed_tokens(input_ids)
        return embedded

    def forward(self, input_ids: Tensor, positions: Tensor, is_gen: Tensor, x: Tensor) -> Tensor:  # noqa: ARG002
        """Runs the decoder.

        Args:
            input_ids: Not used; vLLM expects the name.
            positions: [T] RoPE positions.
            is_gen: [T] bool, tokens of the generation expert.
            x: [T, D] embeddings.

        Returns:
            [T, D] last hidden states.
        """
        hidden: Tensor = self.model(positions, is_gen, x)
        return hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """[n, D] to [n, V]; None on all but the first rank, as in vLLM."""
        logits: Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Loads weights by their published names; returns vLLM's names."""
        loader = AutoWeightsLoader(self)
        loaded: set[str] = loader.load_weights(
            weights, mapper=WeightsMapper(orig_to_new_stacked=STACKED)
        )
        return loaded


def _first(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        out: Tensor = module(x)[0]  # vLLM's linear layers return the bias too
        return out

    return apply


def _attention_backend() -> Any:
    """The CPU's backend; None lets vLLM choose one that supports the ranges of images."""
    if not current_platform.is_cpu():
        return None
    from mathcanvas_lightning.vllm_bagel.cpu_attention import ImageCPUAttentionBackend

    return ImageCPUAttentionBackend
