"""Writing: one token of many texts at a time, and how a token is chosen."""

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
"""The largest float32 below 1, to which some numbers below 1 round."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class TextConfig:
    """How tokens are chosen.

    Raises:
        ConfigError: If a value is out of its range.
    """

    temperature: float = 0.3
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Only the likeliest tokens that make up this probability are drawn from."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(
                "text",
                found=f"temperature {self.temperature}, top_p {self.top_p}",
                wanted="a temperature of 0 or more, and 0 < top_p <= 1",
                remedy="Change it.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDraw:
    """What decides one token besides its logits."""

    uid: str
    """Of the problem."""
    step: int
    """Of the problem, from 1."""
    index: int
    """Of the token in the step's text, from 0; the action after the text counts on."""
    config: TextConfig
    uniform: float
    """In [0, 1)."""


def next_logits(
    model: Bagel, cache: KVCache, contexts: Sequence[Context], token_ids: Sequence[int]
) -> Tensor:
    """Lets a token enter each context.

    Args:
        model: The model.
        cache: Of all contexts.
        contexts: Those that are written to.
        token_ids: One for each.

    Returns:
        [n, V] logits of what follows.
    """
    spans = [context.span(1, "text") for context in contexts]
    for context, span in zip(contexts, spans, strict=True):
        context.accept(span)
    ids = on_device(torch.tensor(token_ids), cache.device)
    und = model.language_model.model.embed_tokens(ids)
    hidden, _ = forward_cached(model, CachedTokens(cache, spans), und, und[:0])
    logits: Tensor = model.language_model.lm_head(hidden)
    return logits


def choose_tokens(logits: Tensor, draws: Sequence[TokenDraw]) -> list[int]:
    """The next token of each text.

    Args:
        logits: [n, V].
        draws: n.

    Returns:
        Their ids: the only wait for the device in a step.
    """
    if all(draw.config.temperature == 0 for draw in draws):
        return _to_list(logits.argmax(-1))
    columns = [(d.config.temperature, d.config.top_p, d.uniform) for d in draws]
    settings = on_device(torch.tensor(columns, dtype=torch.float32), logits.device)
    any_nucleus = any(draw.config.top_p < 1 for draw in draws)
    return _to_list(sample(logits.float(), *settings.unbind(1), any_nucleus=any_nucleus))


def sample(
    logits: Tensor,
    temperatures: Tensor,
    top_ps: Tensor,
    uniforms: Tensor,
    *,
    any_nucleus: bool = True,
) -> Tensor:
    """Draws tokens by the inverse of their distribution function, in the order of their ids.

    Args:
        logits: [n, V] float32.
        temperatures: [n]; 0 takes the likeliest.
        top_ps: [n]; 1 keeps all tokens.
        uniforms: [n] in [0, 1).
        any_nucleus: Whether a row keeps less than all; if none does, nothing is sorted.

    Returns:
        [n] int64 ids.
    """
    sharp = logits / temperatures.clamp(min=1e-6)[:, None]
    if any_nucleus:
        sharp = _nucleus(sharp, top_ps)
    cumulative = sharp.softmax(-1).double().cumsum(-1)
    wanted = uniforms.clamp(max=BELOW_ONE)[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, wanted, right=True)[:, 0]
    drawn = drawn.clamp(max=logits.shape[1] - 1)  # NaN leads beyond the end
    return torch.where(temperatures > 0, drawn, logits.argmax(-1))


def _nucleus(logits: Tensor, top_ps: Tensor) -> Tensor:
    """Makes all but the likeliest tokens, which make up the probability, impossible."""
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    cumulative = ordered.softmax(-1).double().cumsum(-1)
    before = torch.nn.functional.pad(cumulative[:, :-1], (1, 0))
    is_out = (before >= top_ps[:, None]) & (top_ps[:, None] < 1)
    return logits.masked_fill(is_out.scatter(1, ids, is_out), -torch.inf)


def _to_list(token_ids: Tensor) -> list[int]:
    ids: list[int] = token_ids.tolist()
    return ids
