"""Continuous batching for BAGEL: many problems at once, each at its own step.

In each turn, new inputs of all problems are prefilled in one pass, all texts get their next tokens
as one batch, and all drawings advance one step as one batch, with all guidance branches. A finished
problem is replaced by the next one. In float32, the answer to a problem does not depend on the rest
of the batch: its random numbers are derived from its seed, its uid and the number of the step.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor

from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.generation.bagel.contexts import (
    Context,
    Item,
    ItemMaker,
    Prefiller,
    opaque,
)
from mathcanvas_lightning.generation.bagel.image_steps import Painter
from mathcanvas_lightning.generation.bagel.kv_cache import (
    KVCache,
    is_memory_error,
    plan_batch_size,
    token_bytes,
)
from mathcanvas_lightning.generation.bagel.options import BatchLimits, ImageOptions
from mathcanvas_lightning.generation.bagel.problem import (
    Answer,
    InterleavedConfig,
    Problem,
    TooLongError,
)
from mathcanvas_lightning.generation.bagel.rollout import Entry, RunState, WaitingLine
from mathcanvas_lightning.generation.bagel.text_steps import TokenChoice, choose_tokens, next_logits
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.vae import LatentVAE

logger = logging.getLogger(__name__)
ChooseTokens = Callable[[Tensor, Sequence[TokenChoice]], list[int]]
DEFAULT_MAX_CONTEXT = 16_384
MEMORY_SHARE = 0.8
"""Share of the free memory that contexts may use, if no amount is given."""
SHORTEST_TEXT = 3
"""Minimum length of a text in tokens: start token, one token, end token."""


class InterleavedGenerator:
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
        limits, images = limits or BatchLimits(), images or ImageOptions()
        self.config = config or InterleavedConfig()
        self.choose = choose
        self._model, self._tokens_per_turn = model, limits.tokens_per_turn
        self._device = model.language_model.lm_head.weight.device
        self._autocast = autocast
        self._maker = ItemMaker(
            model,
            tokenizer,
            images.vae_transform or ImageTransform(),
            images.vit_transform or ImageTransform(image_stride=model.config.vit.patch_size),
            interpolate_positions=images.interpolate_positions,
        )
        self._num_contexts = self.config.drawing.num_contexts
        cache_dtype = autocast or model.language_model.lm_head.weight.dtype
        self.cache = _make_cache(model, self._num_contexts, limits, cache_dtype)
        self.batch_size = self.cache.num_rows // self._num_contexts
        self._prefiller = Prefiller(model, vae, self.cache, self._maker)
        self._painter = Painter(
            model,
            vae,
            self.cache,
            tokenizer.special,
            interpolate_positions=images.interpolate_positions,
        )
        self._line = WaitingLine()
        self._running: dict[int, RunState] = {}
        self._pending: set[str] = set()

    @property
    def num_pending(self) -> int:
        """Number of problems that were submitted but not yet answered."""
        return len(self._pending)

    def submit(self, problem: Problem) -> None:
        """Adds a problem to the queue; returns at once.

        Args:
            problem: Problem whose uid differs from those of all pending problems.

        Raises:
            InputError: If there is no input, or an input is unreadable or too long for a context.
            ConfigError: If the problem's configuration needs more contexts than the generator's.
        """
        config = problem.config or self.config
        if problem.mode != "understanding" and config.drawing.num_contexts > self._num_contexts:
            raise ConfigError(
                f"drawing of problem {problem.uid}",
                found=f"guidance with {config.drawing.num_contexts} contexts",
                wanted=f"at most the {self._num_contexts} of the generator's configuration",
                remedy="Give the generator a configuration with the same guidance.",
            )
        self._check_uid(problem.uid)
        entry = self._entry(problem)
        self._check_room(problem, entry.items, entry.size_px)
        self._line.add(entry)
        self._pending.add(problem.uid)

    @torch.inference_mode()
    def advance(self) -> list[Answer]:
        """Advances all problems in progress by some tokens and one step of a drawing.

        If the memory is exhausted, the problems in progress run again, each one alone; one that
        needs too much memory alone ends with the reason out_of_memory. If another exception occurs,
        all problems in progress are dropped, because their contexts may be incomplete; queued
        problems stay in the queue.

        Returns:
            Answers that are finished now, often none. Call again while problems are pending.
        """
        try:
            with _own_precision(self._device, self._autocast):
                self._admit()
                self._prefill()
                for _ in range(self._tokens_per_turn):
                    self._write()
                self._draw()
                return self._collect()
        except BaseException as error:
            if not (is_memory_error(error) and self._running):
                self.withdraw(self._pending - self._line.uids)
                raise
            shortage = str(error)
        return self._run_alone(shortage)  # outside the handler, which keeps tensors alive

    def withdraw(self, uids: Collection[str] | None = None) -> None:
        """Drops pending problems.

        Args:
            uids: Uids of the problems to drop; None drops all.
        """
        uids = set(self._pending if uids is None else uids)
        self._line.drop(uids)
        for slot, state in list(self._running.items()):
            if state.problem.uid in uids:
                del self._running[slot]
        self._pending.difference_update(uids)

    def run(self, problems: Iterable[Problem]) -> list[Answer]:
        """Answers problems and waits for all answers.

        Args:
            problems: Problems with different uids.

        Returns:
            Answers in the order of the problems. Problems that were submitted before are answered
            too, but not returned. After an exception none of these problems is pending.

        Raises:
            InputError: See `submit`.
            ConfigError: See `submit`.
        """
        order: list[str] = []
        answers: dict[str, Answer] = {}
        try:
            for problem in problems:
                self.submit(problem)
                order.append(problem.uid)
            while self.num_pending:
                answers |= {answer.uid: answer for answer in self.advance()}
        except BaseException:
            self.withdraw(order)
            raise
        return [answers[uid] for uid in order]

    def _run_alone(self, shortage: str) -> list[Answer]:
        """Restarts the problems of a batch that exhausted the memory, each one alone."""
        answers = self._collect()
        states = [self._running[slot] for slot in sorted(self._running)]
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(states) == 1:
            states[0].stop("out_of_memory")
            logger.warning("problem %s fails: %s", states[0].problem.uid, shortage)
            return [*answers, *self._collect()]
        self._running.clear()
        if states:
            self.batch_size = len(states) - 1
            self._line.run_alone([self._entry(state.problem) for state in states])
            logger.warning("too little memory for %d problems: %s", len(states), shortage)
        return answers

    def _entry(self, problem: Problem) -> Entry:
        items = self._read_inputs(problem)
        size = self._drawing_size(items, problem.config or self.config)
        return Entry(problem=problem, items=items, size_px=size)

    def _check_uid(self, uid: str) -> None:
        if uid in self._pending:
            raise InputError(
                f"problem {uid}",
                found="a pending problem with the same uid",
                wanted="a unique uid, because it also seeds the random numbers",
                remedy="Change the uid.",
            )

    def _read_inputs(self, problem: Problem) -> list[Item]:
        # Empty texts are skipped, as in training.
        inputs = [part for part in problem.inputs if not isinstance(part, str) or part.strip()]
        opening = [text for text in [problem.opening] if text and text.strip()]
        if not inputs:
            raise InputError(
                f"problem {problem.uid}",
                found="no input",
                wanted="a text that is not empty, or a picture",
                remedy="Add a question.",
            )
        for_vae = problem.mode != "understanding"
        items = []
        for given in (*opening, *inputs):
            if isinstance(given, str):
                items.append(self._maker.text(given))
            else:
                items.append(self._maker.image(opaque(given, problem.uid), for_vae=for_vae))
        return items

    def _drawing_size(self, items: Sequence[Item], config: InterleavedConfig) -> tuple[int, int]:
        """Size of a problem's drawings, rounded to multiples of a token's side."""
        sizes = [item.size_px for item in items if item.size_px is not None]
        chosen = config.drawing.size or self._model.config.drawing_size
        if chosen is None and sizes:
            return sizes[-1]
        side = self._maker.geometry.latent_patch_px
        width, height = (
            max(length // side, 1) * side for length in chosen or config.drawing.default_size
        )
        return width, height

    def _check_room(self, problem: Problem, items: Sequence[Item], size: tuple[int, int]) -> None:
        drawing = 0 if problem.mode == "understanding" else self._maker.drawing_tokens(size)
        if problem.mode == "interleaved":
            self._maker.image_tokens(size)  # raises if the model could not read the drawing again
        needed = sum(item.num_tokens for item in items)
        needed += drawing if problem.mode == "image" else SHORTEST_TEXT
        if needed > self.cache.capacity:
            raise TooLongError(
                f"problem {problem.uid}",
                found=f"{needed} tokens for the question and the shortest answer",
                wanted=f"at most {self.cache.capacity}, the length of a context",
                remedy="Raise max_context_tokens, or use fewer or smaller pictures.",
            )

    def _admit(self) -> None:
        for slot in range(self.batch_size):
            if slot in self._running:
                continue
            entry = self._line.next({state.problem.uid for state in self._running.values()})
            if entry is None:
                return
            problem = entry.problem
            config = problem.config or self.config
            needed = 1 if problem.mode == "understanding" else config.drawing.num_contexts
            first = slot * self._num_contexts
            for row in range(first, first + needed):
                self.cache.clear(row)
            self._running[slot] = RunState(
                problem,
                config,
                inputs=entry.items,
                size_px=entry.size_px,
                contexts=[Context(row=first + i) for i in range(needed)],
                capacity=self.cache.capacity,
                maker=self._maker,
            )

    def _active(self) -> list[RunState]:
        """Unfinished problems, in the order of their rows in the cache."""
        ordered = (self._running[slot] for slot in sorted(self._running))
        return [state for state in ordered if state.finish_reason is None]

    def _prefill(self) -> None:
        states = [s for s in self._active() if s.unread and s.check_room()]
        self._prefiller.prefill([entry for s in states for entry in s.unread if entry[1]])
        for state in states:
            state.proceed()

    def _write(self) -> None:
        writers = [state for state in self._active() if state.writing is not None]
        if not writers:
            return
        next_ids = [state.writing.next_id for state in writers if state.writing is not None]
        contexts = [state.full for state in writers]
        logits = next_logits(self._model, self.cache, contexts, next_ids)
        is_finite = logits.amax(-1).isfinite()
        chosen = self.choose(logits, [state.next_choice() for state in writers])
        for state, token_id, is_valid in zip(writers, chosen, is_finite.tolist(), strict=True):
            if is_valid:
                state.take_token(token_id)
            else:
                state.stop("not_finite")

    def _draw(self) -> None:
        for state in self._active():
            if state.wants_drawing:
                state.drawing = self._painter.begin(
                    state.config.drawing, state.contexts, state.size_px, state.noise_key
                )
        drawers = [state for state in self._active() if state.drawing is not None]
        if not drawers:
            return
        self._painter.step([state.drawing for state in drawers if state.drawing is not None])
        done = [state for state in drawers if state.drawing is not None and state.drawing.is_done]
        pictures = self._painter.paint([s.drawing for s in done if s.drawing is not None])
        for state, picture in zip(done, pictures, strict=True):
            if picture is None:
                state.stop("not_finite")
            else:
                state.take_picture(picture)

    def _collect(self) -> list[Answer]:
        ended = [slot for slot, state in self._running.items() if state.finish_reason is not None]
        answers = [self._running.pop(slot).answer() for slot in sorted(ended)]
        self._pending.difference_update(answer.uid for answer in answers)
        return answers


def _make_cache(
    model: Bagel, num_contexts: int, limits: BatchLimits, dtype: torch.dtype
) -> KVCache:
    llm, device = model.config.llm, model.language_model.lm_head.weight.device
    longest = min(llm.max_position_embeddings, DEFAULT_MAX_CONTEXT)
    capacity = limits.max_context_tokens or longest
    problem_bytes = num_contexts * capacity * token_bytes(llm, dtype)
    memory_bytes = limits.memory_bytes
    if memory_bytes is None:
        memory_bytes = int(free_bytes(device) * MEMORY_SHARE)
    batch_size = plan_batch_size(problem_bytes, memory_bytes, limits.max_batch_size)
    if batch_size < limits.max_batch_size:
        logger.warning(
            "memory is enough for the contexts of %d problems at a time, not %d; lower "
            "max_context_tokens to use larger batches",
            batch_size,
            limits.max_batch_size,
        )
    return KVCache(
        llm,
        num_rows=batch_size * num_contexts,
        capacity=capacity,
        dtype=dtype,
        device=device,
    )


def free_bytes(device: torch.device) -> int:
    """Free memory of a device, including what PyTorch has reserved but does not use."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        unused: int = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    available: int = psutil.virtual_memory().available
    return available


@contextmanager
def _own_precision(device: torch.device, autocast: torch.dtype | None) -> Iterator[None]:
    """Undoes the Trainer's default dtype and autocast, so that only the generator's types count."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            yield
    finally:
        torch.set_default_dtype(default)
