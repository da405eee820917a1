"""A text engine for tests: what vLLM does, with the native network and without a process."""

from collections import deque
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from mathcanvas_lightning.data.sequence.tokenizer import SpecialTokens
from mathcanvas_lightning.generation.backends.vllm.messages import ContextRequest, ContextResult
from mathcanvas_lightning.generation.bagel.contexts import Context
from mathcanvas_lightning.generation.bagel.kv_cache import CachedTokens, KVCache, forward_cached
from mathcanvas_lightning.generation.bagel.text_steps import next_logits
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.vllm_bagel.blocks import ContextPart, ImageBlock

Choose = Callable[[Tensor, ContextRequest, int], int]
"""Logits [V], request and index of the token -> token."""


def greedy(logits: Tensor, request: ContextRequest, index: int) -> int:
    """The most likely token, or a sample if the request has a temperature."""
    if request.temperature == 0:
        return int(logits.argmax())
    noise = torch.Generator().manual_seed(request.seed % 2**40 + index)
    return int(torch.multinomial((logits / request.temperature).softmax(-1), 1, generator=noise))


class FakeEngine:
    """Computes each text from its whole context; results come late and in another order.

    Args:
        model: BAGEL with its text head.
        special: Its special tokens.
        choose: Chooses the next token.
        patience: Number of calls of `collect` without waiting that return nothing.
    """

    def __init__(
        self, model: Bagel, special: SpecialTokens, choose: Choose = greedy, patience: int = 2
    ) -> None:
        self._model, self._special, self._choose = model, special, choose
        self._patience = self._calls = patience
        self.waiting: deque[ContextRequest] = deque()
        self.requests: list[ContextRequest] = []
        self.idle_calls = 0
        """Calls of `collect` that did not wait, with pending requests."""
        self.is_closed = False
        self._withdrawn: set[str] = set()

    @property
    def num_pending(self) -> int:
        return len(self.waiting)

    def submit(self, requests: Sequence[ContextRequest]) -> None:
        self.waiting += requests
        self.requests += requests
        uids = [one.uid for one in self.waiting]
        assert len({*uids, *self._withdrawn}) == len(uids) + len(self._withdrawn)

    def collect(self, *, wait: bool = True) -> list[ContextResult]:
        if not self.waiting:
            return []
        self._calls -= 1
        if not wait:
            self.idle_calls += 1
            if self._calls > 0:
                return []
        self._calls = self._patience
        return [self._answer(self.waiting.pop())]  # the newest first

    def withdraw(self, uids: Collection[str]) -> None:
        self._withdrawn.update(uids)
        self.waiting = deque(one for one in self.waiting if one.uid not in uids)

    def close(self) -> None:
        self.is_closed = True

    @torch.inference_mode()
    def _answer(self, request: ContextRequest) -> ContextResult:
        capacity = sum(map(_length, request.context)) + request.max_tokens + 2
        weight = self._model.language_model.lm_head.weight
        cache = KVCache(
            self._model.config.llm,
            num_rows=1,
            capacity=capacity,
            dtype=weight.dtype,
            device=weight.device,
        )
        context = Context(row=0)
        *parts, last = request.context
        assert isinstance(last, tuple)
        for part in (*parts, last[:-1]):
            if part:
                self._read(cache, context, part)
        next_id, ids, logprobs = last[-1], list[int](), list[float]()
        while len(ids) < request.max_tokens:
            next_id = self._next(cache, context, next_id, request, logprobs)
            if next_id == request.end_id:
                break
            ids.append(next_id)
        is_ended = next_id == request.end_id
        action = None
        if is_ended and request.wants_action:
            action = self._next(cache, context, next_id, request, logprobs)
        return ContextResult(
            uid=request.uid,
            token_ids=tuple(ids),
            finish_reason="stop" if is_ended else "length",
            action_id=action,
            logprobs=tuple(logprobs),
            num_context_tokens=sum(map(_length, request.context)),
        )

    def _next(
        self,
        cache: KVCache,
        context: Context,
        token_id: int,
        request: ContextRequest,
        logprobs: list[float],
    ) -> int:
        [logits] = next_logits(self._model, cache, [context], [token_id])
        chosen = self._choose(logits, request, len(logprobs))
        logprobs.append(float(logits.float().log_softmax(-1)[chosen]))
        return chosen

    def _read(self, cache: KVCache, context: Context, part: ContextPart) -> None:
        model, embed = self._model, self._model.language_model.model.embed_tokens
        if isinstance(part, tuple):
            und = embed(torch.tensor(part, device=cache.device))
            span = context.span(len(part), "text")
            gen = und[:0]
        else:
            markers = [self._special.start_of_image, self._special.end_of_image]
            und = embed(torch.tensor(markers, device=cache.device))
            gen = und[:0]
            features = torch.from_numpy(part.features)
            ids = torch.from_numpy(part.position_ids)
            if part.kind == "vit":
                patches = model.embed_vit(features, ids, [len(ids)])
                und = torch.cat([und[:1], patches, und[1:]])
            else:
                gen = model.embed_latents(features, features.new_zeros(len(ids)), ids)
            span = context.span(part.num_tokens, "vit" if part.kind == "vit" else "latents")
        context.append(span)
        forward_cached(model, CachedTokens(cache, [span]), und, gen)


def _length(part: ContextPart) -> int:
    return part.num_tokens if isinstance(part, ImageBlock) else len(part)
