"""State machine of one problem: what it reads, writes or draws next, and when it ends.

There is no network in this file. The generator asks each problem what it needs next, computes it
for all problems as one batch, and hands the results back.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from numpy.random import Generator
from PIL import Image

from mathcanvas_lightning.data.sequence.rng import generator
from mathcanvas_lightning.data.sequence.tokenizer import SpecialTokens
from mathcanvas_lightning.generation.bagel.contexts import CONTEXTS, Context, Item, ItemMaker
from mathcanvas_lightning.generation.bagel.image_steps import Drawing
from mathcanvas_lightning.generation.bagel.problem import (
    Answer,
    FinishReason,
    InterleavedConfig,
    Problem,
    Step,
)
from mathcanvas_lightning.generation.bagel.text_steps import TokenChoice


@dataclass(slots=True, kw_only=True)
class Writing:
    """A text that the model is writing."""

    start: Context
    """State of the full context before the text, for a rollback."""
    rng: Generator
    next_id: int
    """Token that the context reads next."""
    ids: list[int] = field(default_factory=list)
    is_ended: bool = False
    """Whether the end token was chosen; the next token is then the action."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A problem that waits, with its inputs as items and the size of its drawings."""

    problem: Problem
    items: Sequence[Item]
    size_px: tuple[int, int]


class WaitingLine:
    """Problems that wait for a place in the batch.

    After a batch has exhausted the memory, its problems run again, each one alone: only the one
    that is too large fails.
    """

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._suspects: deque[Entry] = deque()
        self._alone: str | None = None
        """Uid of the problem that runs alone."""

    @property
    def uids(self) -> set[str]:
        """Uids of the problems that wait."""
        return {entry.problem.uid for entry in (*self._entries, *self._suspects)}

    def add(self, entry: Entry) -> None:
        """Adds a problem at the end."""
        self._entries.append(entry)

    def run_alone(self, entries: Iterable[Entry]) -> None:
        """Puts problems in front; each runs alone."""
        self._suspects.extend(entries)
        self._alone = None

    def next(self, running: Collection[str]) -> Entry | None:
        """Takes the next problem; None if there is none, or one runs alone.

        Args:
            running: Uids of the problems in the batch.
        """
        if self._alone in running or (self._suspects and running):
            return None
        self._alone = None
        if self._suspects:
            entry = self._suspects.popleft()
            self._alone = entry.problem.uid
            return entry
        return self._entries.popleft() if self._entries else None

    def drop(self, uids: Collection[str]) -> None:
        """Removes problems."""
        self._entries = deque(one for one in self._entries if one.problem.uid not in uids)
        self._suspects = deque(one for one in self._suspects if one.problem.uid not in uids)


class RunState:
    """A problem in progress, with its contexts.

    Args:
        problem: The problem.
        config: Sampling and limits.
        inputs: The question as items.
        size_px: Width and height of the drawings.
        contexts: The contexts that the guidance needs (full, images, texts); all empty.
        capacity: Maximum length of a context, in tokens.
        maker: Converts texts and drawings to items.
    """

    def __init__(
        self,
        problem: Problem,
        config: InterleavedConfig,
        *,
        inputs: Sequence[Item],
        size_px: tuple[int, int],
        contexts: Sequence[Context],
        capacity: int,
        maker: ItemMaker,
    ) -> None:
        self.problem, self.config, self.size_px = problem, config, size_px
        self.contexts = list(contexts)
        self.number = 0
        """Number of the current step."""
        self.unread: list[tuple[Item, list[Context]]] = []
        """Items to prefill next, each with its contexts."""
        self.writing: Writing | None = None
        self.drawing: Drawing | None = None
        self.finish_reason: FinishReason | None = None
        self._maker, self._capacity = maker, capacity
        self._steps: list[Step] = []
        self._num_written = 0
        self._num_images = 0
        self._num_input_tokens = sum(item.num_tokens for item in inputs)
        self._draws_next = problem.mode == "image" and not problem.think
        for item in inputs:
            self._enter(item)

    @property
    def full(self) -> Context:
        """The context with all texts and images."""
        return self.contexts[0]

    @property
    def noise_key(self) -> tuple[object, ...]:
        """Random key for the noise of the next drawing."""
        return (self.problem.seed, self.problem.uid, self.number)

    @property
    def wants_drawing(self) -> bool:
        """Whether a new drawing starts now."""
        idle = self.finish_reason is None and not self.unread and self.drawing is None
        return idle and self._draws_next

    def check_room(self) -> bool:
        """Whether the unread items fit into the context; if not, the problem is finished."""
        new = [item for item, contexts in self.unread if contexts and contexts[0] is self.full]
        return self._fits(sum(item.num_tokens for item in new))

    def proceed(self) -> None:
        """Starts a text or a drawing after the unread items were prefilled."""
        self.unread = []
        if not self._draws_next:
            self._begin_text()
        elif self._fits(self._maker.drawing_tokens(self.size_px)):
            self.number = max(self.number, 1)

    def next_choice(self) -> TokenChoice:
        """Settings and random number for the next token."""
        assert self.writing is not None
        return TokenChoice(
            uid=self.problem.uid,
            step=self.number,
            index=len(self.writing.ids) + self.writing.is_ended,
            config=self.config.text,
            uniform=self.writing.rng.random(),
        )

    def take_token(self, token_id: int) -> None:
        """Continues with the chosen token."""
        writing, special = self.writing, self._maker.tokenizer.special
        assert writing is not None
        if writing.is_ended:
            self._act(token_id, special)
            return
        self._num_written += 1
        if token_id == special.eos:
            writing.is_ended, writing.next_id = True, special.eos
            if self.problem.mode != "interleaved":
                self._end_single_text()
        else:
            writing.ids.append(token_id)
            writing.next_id = token_id
        if self.writing is not None:
            self._check_limits()

    def stop(self, reason: FinishReason) -> None:
        """Ends the problem at once, because its answer can't be computed."""
        self.writing = self.drawing = None
        self.finish_reason = reason

    def take_picture(self, picture: Image.Image) -> None:
        """Continues with the finished drawing."""
        self.drawing, self._draws_next = None, False
        self._steps.append(Step(number=self.number, content=picture))
        self._num_images += 1
        if self.problem.mode == "image":
            self.finish_reason = "stop"
        elif self.number == self.config.max_steps:
            self.finish_reason = "max_steps"
        else:
            self._enter(self._maker.image(picture))

    def answer(self) -> Answer:
        """The answer of a finished problem."""
        assert self.finish_reason is not None
        return Answer(
            uid=self.problem.uid,
            steps=tuple(self._steps),
            finish_reason=self.finish_reason,
            num_input_tokens=self._num_input_tokens,
            num_written_tokens=self._num_written,
        )

    def _begin_text(self) -> None:
        self.number += 1
        key = ("text", self.problem.seed, self.problem.uid, self.number)
        self.writing = Writing(
            start=self.full.copy(),
            rng=generator(*key),
            next_id=self._maker.tokenizer.special.bos,
        )
        self._check_limits()

    def _check_limits(self) -> None:
        writing = self.writing
        assert writing is not None
        if self._num_written >= self.config.max_tokens and not writing.is_ended:
            if self.problem.mode == "image":
                self._end_single_text()  # ends only the thought; the drawing is still made
            else:
                self._stop_text("max_tokens")
        elif self.full.length >= self._capacity:
            self._stop_text("window")

    def _stop_text(self, reason: FinishReason) -> None:
        self._end_text()
        self.finish_reason = reason

    def _end_text(self) -> tuple[Item, bool]:
        """Ends the text; returns it as an item, and whether the full context contains it already.

        The context keeps the generated tokens only if the cleaned text has the same tokens.
        """
        writing, self.writing = self.writing, None
        assert writing is not None
        text = self._maker.tokenizer.decode(writing.ids).strip()
        if text:
            self._steps.append(Step(number=self.number, content=text))
        item = self._maker.text(text)
        is_read = list(item.content.text_ids[0]) == writing.ids
        is_read = is_read and self.full.length == writing.start.length + item.num_tokens
        if not is_read:
            self.full.roll_back(writing.start)
        return item, is_read

    def _end_single_text(self) -> None:
        item, is_read = self._end_text()
        if self.problem.mode == "understanding":
            self.finish_reason = "stop"
            return
        self._draws_next = True
        self._enter(item, is_read=is_read)

    def _act(self, action_id: int, special: SpecialTokens) -> None:
        item, is_read = self._end_text()
        if action_id == special.start_of_image and self.config.drawings == "none":
            action_id = special.bos  # the next text follows at once
        if action_id not in (special.start_of_image, special.bos):
            self.finish_reason = "stop"
        elif action_id == special.start_of_image and self._num_images == self.config.max_images:
            self.finish_reason = "max_images"
        elif action_id == special.bos and self.number == self.config.max_steps:
            self.finish_reason = "max_steps"
        else:
            self._draws_next = action_id == special.start_of_image
            self._enter(item, is_read=is_read)

    def _enter(self, item: Item, *, is_read: bool = False) -> None:
        """Queues an item for all contexts of its kind; for all but the full one if `is_read`."""
        pairs = zip(self.contexts, CONTEXTS, strict=False)
        contexts = [context for context, kind in pairs if item.belongs_to(kind)]
        self.unread.append((item, contexts[1:] if is_read else contexts))

    def _fits(self, num_tokens: int) -> bool:
        if self.full.length + num_tokens > self._capacity:
            self.finish_reason = "window"
        return self.finish_reason is None
