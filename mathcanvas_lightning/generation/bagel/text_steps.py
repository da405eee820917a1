"""Decoding of texts: one token for many texts at a time, and the sampling of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.bagel.contexts import Context
from mathcanvas_lightning.generation.bagel.kv_cache import (
    CachedTokens,
    KVCache,
    forward_cached,
    on_device,
)
from mathcanvas_lightning.model.bagel import Bagel

BELOW_ONE = 1 - 2.0**-24
"""The largest float32 below 1; larger float64 numbers below 1 would round to 1."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class TextConfig:
    """How tokens are sampled.

    Raises:
        ConfigError: If a value is out of range.
    """

    temperature: float = 0.3
    """Sampling temperature; 0 always takes the most likely token."""
    top_p: float = 1.0
    """Nucleus sampling: sample from the most likely tokens whose probabilities sum to this."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(
                "text",
                found=f"temperature {self.temperature}, top_p {self.top_p}",
                wanted="a temperature of 0 or more, and 0 < top_p <= 1",
                remedy="Change it.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChoice:
    """Everything besides the logits that determines the next token of a text."""

    uid: str
    """Uid of the problem."""
    step: int
    """Number of the problem's step, from 1."""
    index: int
    """Index of the token in the step, from 0: text tokens, end token, action."""
    config: TextConfig
    uniform: float
    """Random number in [0, 1)."""


def next_logits(
    model: Bagel, cache: KVCache, contexts: Sequence[Context], token_ids: Sequence[int]
) -> Tensor:
    """Appends one token to each context and computes the logits of the next token.

    Args:
        model: BAGEL.
        cache: KV cache of all contexts.
        contexts: Contexts of the texts.
        token_ids: One token for each context.

    Returns:
        [n, V] logits.
    """
    spans = [context.span(1, "text") for context in contexts]
    for context, span in zip(contexts, spans, strict=True):
        context.append(span)
    ids = on_device(torch.tensor(token_ids), cache.device)
    und = model.language_model.model.embed_tokens(ids)
    hidden, _ = forward_cached(model, CachedTokens(cache, spans), und, und[:0])
    logits: Tensor = model.language_model.lm_head(hidden)
    return logits


def choose_tokens(logits: Tensor, choices: Sequence[TokenChoice]) -> list[int]:
    """Samples the next token of each text.

    Args:
        logits: [n, V] logits.
        choices: Settings and random numbers of the n texts.

    Returns:
        Token ids; any id for logits with NaN. Reading them waits for the device.
    """
    if all(choice.config.temperature == 0 for choice in choices):
        return _to_list(logits.argmax(-1))
    columns = [(c.config.temperature, c.config.top_p, c.uniform) for c in choices]
    settings = on_device(torch.tensor(columns, dtype=torch.float32), logits.device)
    any_nucleus = any(choice.config.top_p < 1 for choice in choices)
    return _to_list(sample(logits.float(), *settings.unbind(1), any_nucleus=any_nucleus))


def sample(
    logits: Tensor,
    temperatures: Tensor,
    top_ps: Tensor,
    uniforms: Tensor,
    *,
    any_nucleus: bool = True,
) -> Tensor:
    """Samples tokens by inverse transform sampling over the token ids.

    Args:
        logits: [n, V] float32.
        temperatures: [n]; 0 takes the most likely token.
        top_ps: [n]; 1 keeps all tokens.
        uniforms: [n] random numbers in [0, 1).
        any_nucleus: Whether any top_p is below 1; if not, sorting is skipped.

    Returns:
        [n] int64 token ids.
    """
    sharp = logits / temperatures.clamp(min=1e-6)[:, None]
    if any_nucleus:
        sharp = keep_nucleus(sharp, top_ps)
    cumulative = sharp.softmax(-1).double().cumsum(-1)
    wanted = uniforms.clamp(max=BELOW_ONE)[:, None] * cumulative[:, -1:]
    sampled = torch.searchsorted(cumulative, wanted, right=True)[:, 0]
    sampled = sampled.clamp(max=logits.shape[1] - 1)  # with NaN logits the index is V
    return torch.where(temperatures > 0, sampled, logits.argmax(-1))


def keep_nucleus(logits: Tensor, top_ps: Tensor) -> Tensor:
    """Sets the logits of all tokens outside the nucleus to -inf."""
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    cumulative = ordered.softmax(-1).double().cumsum(-1)
    before = torch.nn.functional.pad(cumulative[:, :-1], (1, 0))
    is_out = (before >= top_ps[:, None]) & (top_ps[:, None] < 1)
    return logits.masked_fill(is_out.scatter(1, ids, is_out), -torch.inf)


def _to_list(token_ids: Tensor) -> list[int]:
    ids: list[int] = token_ids.tolist()
    return ids
