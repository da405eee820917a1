"""Continuous batching for BAGEL: many problems at once, each at its own step.

In each turn, new inputs of all problems are prefilled in one pass, all texts get their next tokens
as one batch, and all drawings advance one step as one batch, with all guidance branches. A finished
problem is replaced by the next one. In float32, the answer to a problem does not depend on the rest
of the batch: its random numbers are derived from its seed, its uid and the number of the step.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from numpy.random import Generator
from torch import Tensor

from mathcanvas_lightning.data.sequence.rng import generator
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.generation.bagel.contexts import Context, Item, contexts_of
from mathcanvas_lightning.generation.bagel.image_steps import Drawing
from mathcanvas_lightning.generation.bagel.options import BatchLimits, ImageOptions
from mathcanvas_lightning.generation.bagel.problem import Answer, InterleavedConfig
from mathcanvas_lightning.generation.bagel.rollout.progress import Progress
from mathcanvas_lightning.generation.bagel.rollout.reader import ProblemReader
from mathcanvas_lightning.generation.bagel.rollout.solver import ProblemSolver
from mathcanvas_lightning.generation.bagel.rollout.state import Rollout
from mathcanvas_lightning.generation.bagel.text_steps import TokenChoice, choose_tokens, next_logits
from mathcanvas_lightning.generation.bagel.workshop import open_workshop, own_precision
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.vae import LatentVAE

logger = logging.getLogger(__name__)

CUT_CHARACTER = "\ufffd"
"""What the decoder makes of the first bytes of a character."""
ChooseTokens = Callable[[Tensor, Sequence[TokenChoice]], list[int]]


class InterleavedGenerator(ProblemSolver):
    """Answers problems with texts and drawings.

    Args:
        model: BAGEL, on its device and in its dtype.
        vae: Autoencoder of the model, on the same device.
        tokenizer: Tokenizer of the model.
        config: Settings for problems that have no configuration.
        limits: Batch size and memory.
        images: How images become tokens.
        choose: Chooses the next tokens; can be replaced, for instance to constrain them.
        autocast: Type that autocast computes in, for weights of several types; None computes in
            the type of the weights.

    Raises:
        ConfigError: If the contexts of one problem do not fit into memory.
    """

    def __init__(
        self,
        model: Bagel,
        vae: LatentVAE,
        tokenizer: TextTokenizer,
        *,
        config: InterleavedConfig | None = None,
        limits: BatchLimits | None = None,
        images: ImageOptions | None = None,
        choose: ChooseTokens = choose_tokens,
        autocast: torch.dtype | None = None,
    ) -> None:
        config, limits = config or InterleavedConfig(), limits or BatchLimits()
        self.choose, self._autocast = choose, autocast
        self.model, self._tokens_per_turn = model, limits.tokens_per_turn
        self._tokenizer, self._special = tokenizer, tokenizer.special
        self._workshop = open_workshop(
            model,
            vae,
            tokenizer,
            num_contexts=config.drawing.num_contexts,
            limits=limits,
            images=images or ImageOptions(),
            dtype=autocast,
        )
        self.cache, self._painter = self._workshop.cache, self._workshop.painter
        batch_size = self._workshop.num_problems
        if batch_size < limits.max_batch_size:
            logger.warning(
                "memory is enough for the contexts of %d problems at a time, not %d; lower "
                "max_context_tokens to use larger batches",
                batch_size,
                limits.max_batch_size,
            )
        self._running: dict[int, _Seat] = {}
        reader = ProblemReader(
            self._workshop.maker,
            config,
            trained_size=model.config.drawing_size,
            capacity=self.cache.capacity,
        )
        super().__init__(reader, config, batch_size=batch_size)

    @torch.inference_mode()
    def _advance(self) -> list[Answer]:
        with own_precision(self.cache.device, self._autocast):
            self._admit()
            self._prefill()
            for _ in range(self._tokens_per_turn):
                self._write()
            self._draw()
            return self._collect()

    def _drop(self, uids: Collection[str]) -> None:
        kept = {
            n: seat for n, seat in self._running.items() if seat.rollout.problem.uid not in uids
        }
        self._running = kept

    def _in_progress(self) -> list[Rollout]:
        return [self._running[slot].rollout for slot in sorted(self._running)]

    def _progress_of(self, rollout: Rollout) -> Progress:
        seat = next(seat for seat in self._running.values() if seat.rollout is rollout)
        writing, drawing = seat.writing, seat.drawing
        text = None if writing is None else self._tokenizer.decode(writing.ids)
        return Progress(
            steps=rollout.steps,
            number=rollout.number,
            writing=None if text is None else text.strip().rstrip(CUT_CHARACTER),
            drawn=None if drawing is None else drawing.step / (len(drawing.times) - 1),
        )

    def _admit(self) -> None:
        for slot in range(self.batch_size):
            if slot in self._running:
                continue
            rollout = self._queue.next({one.problem.uid for one in self._in_progress()})
            if rollout is None:
                return
            is_text = rollout.problem.mode == "understanding"
            needed = 1 if is_text else rollout.config.drawing.num_contexts
            rows = self._workshop.rows(slot, needed)
            self._running[slot] = _Seat(
                rollout=rollout, contexts=[Context(row=row) for row in rows]
            )

    def _active(self) -> list["_Seat"]:
        """Unfinished problems, in the order of their rows in the cache."""
        ordered = (self._running[slot] for slot in sorted(self._running))
        return [seat for seat in ordered if seat.rollout.needs is not None]

    def _prefill(self) -> None:
        seats = self._active()
        entries = [entry for seat in seats for entry in seat.take_unread()]
        self._workshop.prefiller.prefill([entry for entry in entries if entry[1]])
        for seat in seats:
            if seat.rollout.needs == "text" and seat.writing is None:
                seat.begin_text(self._special.bos)

    def _write(self) -> None:
        writers = [(s, s.writing) for s in self._active() if s.writing is not None]
        if not writers:
            return
        next_ids = [writing.next_id for _, writing in writers]
        contexts = [seat.full for seat, _ in writers]
        logits = next_logits(self.model, self.cache, contexts, next_ids)
        is_finite = logits.amax(-1).isfinite()
        chosen = self.choose(logits, [_choice(seat.rollout, own) for seat, own in writers])
        for (seat, _), token_id, is_valid in zip(writers, chosen, is_finite.tolist(), strict=True):
            if is_valid:
                seat.take_token(token_id, self._special.eos)
            else:
                seat.rollout.stop("not_finite")

    def _draw(self) -> None:
        for seat in self._active():
            if seat.wants_drawing:
                rollout = seat.rollout
                seat.drawing = self._painter.begin(
                    rollout.config.drawing, seat.contexts, rollout.size_px, rollout.noise_key
                )
        drawers = [(s, s.drawing) for s in self._active() if s.drawing is not None]
        if not drawers:
            return
        self._painter.step([drawing for _, drawing in drawers])
        done = [(seat, drawing) for seat, drawing in drawers if drawing.is_done]
        pictures = self._painter.paint([drawing for _, drawing in done])
        for (seat, _), picture in zip(done, pictures, strict=True):
            seat.drawing = None
            if picture is None:
                seat.rollout.stop("not_finite")
            else:
                seat.rollout.take_picture(picture)

    def _collect(self) -> list[Answer]:
        ended = [slot for slot, seat in self._running.items() if seat.rollout.needs is None]
        return [self._running.pop(slot).rollout.answer() for slot in sorted(ended)]


@dataclass(slots=True, kw_only=True)
class _Writing:
    """A text that the model is writing."""

    start: Context
    """State of the full context before the text, for a rollback."""
    rng: Generator
    next_id: int
    """Token that the context reads next."""
    max_tokens: int
    """Maximum length of the text, with its end token."""
    ids: list[int] = field(default_factory=list)
    is_ended: bool = False
    """Whether the end token was chosen; the next token is then the action."""


@dataclass(slots=True, kw_only=True)
class _Seat:
    """A problem in progress, with its contexts in the cache."""

    rollout: Rollout
    contexts: list[Context]
    """The contexts that the guidance needs (full, images, texts)."""
    num_read: int = 0
    """Number of items of the rollout that the contexts contain."""
    is_partly_read: bool = False
    """Whether the full context contains the next item already, because the model wrote it."""
    writing: _Writing | None = None
    drawing: Drawing | None = None

    @property
    def full(self) -> Context:
        """The context with all texts and images."""
        return self.contexts[0]

    @property
    def wants_drawing(self) -> bool:
        """Whether a new drawing starts now."""
        is_read = self.num_read == len(self.rollout.items)
        return self.rollout.needs == "drawing" and is_read and self.drawing is None

    def take_unread(self) -> list[tuple[Item, list[Context]]]:
        """The items to prefill now, each with its contexts."""
        entries = contexts_of(self.rollout.items[self.num_read :], self.contexts)
        if self.is_partly_read:
            (item, contexts), *entries = entries
            entries.insert(0, (item, contexts[1:]))
        self.num_read, self.is_partly_read = len(self.rollout.items), False
        return entries

    def begin_text(self, bos: int) -> None:
        """Starts a text after all items were prefilled."""
        self.writing = _Writing(
            start=self.full.copy(),
            rng=generator(*self.rollout.text_key),
            next_id=bos,
            max_tokens=self.rollout.max_new_tokens,
        )

    def take_token(self, token_id: int, eos: int) -> None:
        """Continues with the chosen token."""
        writing = self.writing
        assert writing is not None
        if writing.is_ended:
            self._end_text(writing, action_id=token_id)
            return
        writing.next_id = token_id
        if token_id == eos:
            writing.is_ended = True
            if not self.rollout.wants_action(len(writing.ids) + 1):
                self._end_text(writing)
            return
        writing.ids.append(token_id)
        if len(writing.ids) == writing.max_tokens:
            self._end_text(writing)

    def _end_text(self, writing: _Writing, action_id: int | None = None) -> None:
        """The context keeps the generated tokens only if the cleaned text has the same tokens."""
        self.writing = None
        self.rollout.take_text(writing.ids, is_ended=writing.is_ended, action_id=action_id)
        new = self.rollout.items[self.num_read :]
        if new and self.full.length == writing.start.length + new[0].num_tokens:
            self.is_partly_read = list(new[0].content.text_ids[0]) == writing.ids
        if not self.is_partly_read:
            self.full.roll_back(writing.start)


def _choice(rollout: Rollout, writing: _Writing) -> TokenChoice:
    """Settings and random number for the next token."""
    return TokenChoice(
        uid=rollout.problem.uid,
        step=rollout.number,
        index=len(writing.ids) + writing.is_ended,
        config=rollout.config.text,
        uniform=writing.rng.random(),
    )
