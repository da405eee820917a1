"""BAGEL reasoning with drawings: many problems at once, each at a step of its own.

At each turn, all that is new to any problem is read in one pass, all texts get their next tokens
as one batch, and all drawings move one step as one batch, with all branches of their guidance.
When a problem ends, the next one takes its place. What becomes of a problem does not depend on
what else is in work: its draws are keyed by its seed, its uid and the number of its step.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import psutil  # type: ignore[import-untyped]
import torch
from PIL import Image
from torch import Tensor

from mathcanvas_lightning.data.images.resize import ImageTransform, on_white
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.generation.bagel.contexts import Context, Item, ItemMaker, Reader
from mathcanvas_lightning.generation.bagel.image_steps import Painter
from mathcanvas_lightning.generation.bagel.kv_cache import KVCache, plan_batch_size, token_bytes
from mathcanvas_lightning.generation.bagel.problem import (
    Answer,
    InterleavedConfig,
    Problem,
    TooLongError,
)
from mathcanvas_lightning.generation.bagel.rollout import RunState
from mathcanvas_lightning.generation.bagel.text_steps import TokenDraw, choose_tokens, next_logits
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.vae import LatentVAE

logger = logging.getLogger(__name__)

ChooseTokens = Callable[[Tensor, Sequence[TokenDraw]], list[int]]
DEFAULT_MAX_CONTEXT = 16_384
MEMORY_SHARE = 0.8
"""Of the memory that is free, for contexts, where no amount is given."""
SHORTEST_TEXT = 3
"""Tokens that a text takes at least: its start, one token, its end."""


class InterleavedGenerator:
    """Answers problems with texts and drawings.

    Args:
        model: On its device, in its dtype.
        vae: Its autoencoder, on the same device.
        tokenizer: Of the model.
        vae_transform: How pictures are resized for the VAE; drawings get that size.
        vit_transform: How the result is resized for the ViT.
        config: How problems are answered that bring no configuration of their own.
        max_batch_size: Problems in work at a time; fewer, if memory is short.
        max_context_tokens: Of a context; by default what the model was made for, at most 16,384.
        memory_bytes: For all contexts; by default most of what is free on the device.
        tokens_per_turn: Tokens that texts get between two steps of drawings.
        interpolate_positions: Spread images over the whole position tables, if training did.
        choose: Chooses tokens; another one may constrain them.

    Raises:
        ConfigError: If a number is below 1, or the contexts of one problem don't fit into memory.
    """

    def __init__(
        self,
        model: Bagel,
        vae: LatentVAE,
        tokenizer: TextTokenizer,
        *,
        vae_transform: ImageTransform | None = None,
        vit_transform: ImageTransform | None = None,
        config: InterleavedConfig | None = None,
        max_batch_size: int = 16,
        max_context_tokens: int | None = None,
        memory_bytes: int | None = None,
        tokens_per_turn: int = 8,
        interpolate_positions: bool = False,
        choose: ChooseTokens = choose_tokens,
    ) -> None:
        self.config = config or InterleavedConfig()
        self._model, self._choose, self._tokens_per_turn = model, choose, tokens_per_turn
        self._device = model.language_model.lm_head.weight.device
        self._maker = ItemMaker(
            model,
            tokenizer,
            vae_transform or ImageTransform(),
            vit_transform or ImageTransform(image_stride=model.config.vit.patch_size),
            interpolate_positions=interpolate_positions,
        )
        _check_positive(
            max_batch_size=max_batch_size,
            max_context_tokens=max_context_tokens,
            tokens_per_turn=tokens_per_turn,
        )
        longest = min(model.config.llm.max_position_embeddings, DEFAULT_MAX_CONTEXT)
        self._num_contexts = self.config.drawing.num_contexts
        self._cache = _make_cache(
            model,
            self._num_contexts,
            capacity=max_context_tokens or longest,
            memory_bytes=memory_bytes,
            max_batch_size=max_batch_size,
        )
        self.batch_size = len(self._cache.keys[0]) // self._num_contexts
        self._reader = Reader(model, vae, self._cache, self._maker)
        self._painter = Painter(
            model,
            vae,
            self._cache,
            tokenizer.special,
            interpolate_positions=interpolate_positions,
        )
        self._waiting: deque[tuple[Problem, list[Item], tuple[int, int]]] = deque()
        self._running: dict[int, RunState] = {}
        self._pending: set[str] = set()

    @property
    def num_pending(self) -> int:
        """Problems submitted and not yet answered."""
        return len(self._pending)

    def submit(self, problem: Problem) -> None:
        """Takes a problem, without working on it yet.

        Args:
            problem: With a uid that no other one in work has.

        Raises:
            InputError: If it has no input, one that can't be read, or too much for a context.
            ConfigError: If its configuration needs contexts that the generator's doesn't.
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
        items = self._read_inputs(problem)
        sizes = [item.size_px for item in items if item.size_px is not None]
        size = sizes[-1] if sizes else self._default_size(config)
        self._check_room(problem, items, size)
        self._waiting.append((problem, items, size))
        self._pending.add(problem.uid)

    @torch.inference_mode()
    def advance(self) -> list[Answer]:
        """Takes all problems in work further by some tokens and a step of a drawing.

        An exception in here ends all problems in work, whose contexts may then be half written;
        those that wait are not touched.

        Returns:
            Those that ended; often none. Call it as long as problems are pending.
        """
        try:
            with _own_precision(self._device):
                self._admit()
                self._read()
                for _ in range(self._tokens_per_turn):
                    self._write()
                self._draw()
                return self._collect()
        except BaseException:
            self.withdraw(self._pending - {problem.uid for problem, *_ in self._waiting})
            raise

    def withdraw(self, uids: Collection[str] | None = None) -> None:
        """Forgets problems, whatever has become of them.

        Args:
            uids: Of these, as far as they are pending; None is all.
        """
        uids = set(self._pending if uids is None else uids)
        self._waiting = deque(one for one in self._waiting if one[0].uid not in uids)
        for slot, state in list(self._running.items()):
            if state.problem.uid in uids:
                del self._running[slot]
        self._pending.difference_update(uids)

    def run(self, problems: Iterable[Problem]) -> list[Answer]:
        """Answers problems.

        Args:
            problems: With uids that differ.

        Returns:
            Their answers, in the order of the problems. What was submitted before is answered
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

    def _check_uid(self, uid: str) -> None:
        if uid in self._pending:
            raise InputError(
                f"problem {uid}",
                found="another one of this uid in work",
                wanted="a uid of its own, which also decides its draws",
                remedy="Name it otherwise.",
            )

    def _read_inputs(self, problem: Problem) -> list[Item]:
        # Empty texts are left out, as in training.
        inputs = [part for part in problem.inputs if not isinstance(part, str) or part.strip()]
        opening = [text for text in [problem.opening] if text and text.strip()]
        if not inputs:
            raise InputError(
                f"problem {problem.uid}",
                found="no input",
                wanted="a text that is not empty, or a picture",
                remedy="Give it a question.",
            )
        for_vae = problem.mode != "understanding"
        items = []
        for given in (*opening, *inputs):
            if isinstance(given, str):
                items.append(self._maker.text(given))
            else:
                items.append(self._maker.image(_opaque(given, problem.uid), for_vae=for_vae))
        return items

    def _default_size(self, config: InterleavedConfig) -> tuple[int, int]:
        """Of drawings where there is no picture: a multiple of a token's side."""
        side = self._maker.geometry.latent_patch_px
        width, height = (max(length // side, 1) * side for length in config.drawing.default_size)
        return width, height

    def _check_room(self, problem: Problem, items: Sequence[Item], size: tuple[int, int]) -> None:
        drawing = 0 if problem.mode == "understanding" else self._maker.drawing_tokens(size)
        if problem.mode == "interleaved":
            self._maker.image_tokens(size)  # a drawing is read again: it has to fit the tables
        needed = sum(item.num_tokens for item in items)
        needed += drawing if problem.mode == "image" else SHORTEST_TEXT
        if needed > self._cache.capacity:
            raise TooLongError(
                f"problem {problem.uid}",
                found=f"{needed} tokens to read and begin with",
                wanted=f"at most {self._cache.capacity}, the length of a context",
                remedy="Raise max_context_tokens, or give smaller or fewer pictures.",
            )

    def _admit(self) -> None:
        for slot in range(self.batch_size):
            if slot in self._running or not self._waiting:
                continue
            problem, items, size = self._waiting.popleft()
            config = problem.config or self.config
            needed = 1 if problem.mode == "understanding" else config.drawing.num_contexts
            first = slot * self._num_contexts
            for row in range(first, first + needed):
                self._cache.clear(row)
            self._running[slot] = RunState(
                problem,
                config,
                inputs=items,
                size_px=size,
                contexts=[Context(row=first + i) for i in range(needed)],
                capacity=self._cache.capacity,
                maker=self._maker,
            )

    def _active(self) -> list[RunState]:
        """Problems that go on, in the order of their rows in the cache."""
        ordered = (self._running[slot] for slot in sorted(self._running))
        return [state for state in ordered if state.finish_reason is None]

    def _read(self) -> None:
        states = [state for state in self._active() if state.unread and state.make_room()]
        self._reader.read([entry for state in states for entry in state.unread if entry[1]])
        for state in states:
            state.proceed()

    def _write(self) -> None:
        writers = [state for state in self._active() if state.writing is not None]
        if not writers:
            return
        next_ids = [state.writing.next_id for state in writers if state.writing is not None]
        contexts = [state.full for state in writers]
        logits = next_logits(self._model, self._cache, contexts, next_ids)
        chosen = self._choose(logits, [state.draw_token() for state in writers])
        for state, token_id in zip(writers, chosen, strict=True):
            state.take_token(token_id)

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
            state.take_picture(picture)

    def _collect(self) -> list[Answer]:
        ended = [slot for slot, state in self._running.items() if state.finish_reason is not None]
        answers = [self._running.pop(slot).answer() for slot in sorted(ended)]
        self._pending.difference_update(answer.uid for answer in answers)
        return answers


def _check_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ConfigError(name, found=str(number), wanted="1 or more", remedy="Raise it.")


def _make_cache(
    model: Bagel,
    num_contexts: int,
    *,
    capacity: int,
    memory_bytes: int | None,
    max_batch_size: int,
) -> KVCache:
    llm, weight = model.config.llm, model.language_model.lm_head.weight
    problem_bytes = num_contexts * capacity * token_bytes(llm, weight.dtype)
    if memory_bytes is None:
        memory_bytes = int(_free_bytes(weight.device) * MEMORY_SHARE)
    batch_size = plan_batch_size(problem_bytes, memory_bytes, max_batch_size)
    if batch_size < max_batch_size:
        logger.warning(
            "memory holds the contexts of %d problems at a time, not %d; a lower "
            "max_context_tokens makes room",
            batch_size,
            max_batch_size,
        )
    return KVCache(
        llm,
        num_rows=batch_size * num_contexts,
        capacity=capacity,
        dtype=weight.dtype,
        device=weight.device,
    )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        unused: int = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    available: int = psutil.virtual_memory().available
    return available


@contextmanager
def _own_precision(device: torch.device) -> Iterator[None]:
    """Lets the model's own dtypes decide, whatever precision a Trainer has set around it."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(default)


def _opaque(image: Image.Image, uid: str) -> Image.Image:
    try:
        return on_white(image)
    except Exception as error:  # Pillow's decoders raise whatever comes to them
        raise InputError(
            f"a picture of problem {uid}",
            found=f"{type(error).__name__}: {error}",
            wanted="an image that can be decoded",
            remedy="Check the file.",
        ) from None
