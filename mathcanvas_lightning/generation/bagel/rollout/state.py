"""State machine of one problem: what it reads, writes or draws next, and when it ends.

There is no network in this file. A solver asks each problem what it needs next, computes it for
many problems at a time, and hands the results back.
"""

from collections.abc import Sequence
from typing import Literal

from PIL import Image

from mathcanvas_lightning.generation.bagel.contexts import Item, ItemMaker
from mathcanvas_lightning.generation.bagel.problem import (
    Answer,
    FinishReason,
    InterleavedConfig,
    Problem,
    Step,
)
from mathcanvas_lightning.generation.requests import GIVEN_DRAWINGS, Failure

Need = Literal["text", "drawing"]


class Rollout:
    """A problem in progress.

    Args:
        problem: The problem.
        config: Sampling and limits.
        inputs: The question as items.
        size_px: Width and height of the drawings.
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
        capacity: int,
        maker: ItemMaker,
    ) -> None:
        self.problem, self.config, self.size_px = problem, config, size_px
        self.items: list[Item] = []
        """Everything that the context with all texts and images contains, in order."""
        self.length = 0
        """Number of tokens of these items."""
        self.number = 0
        """Number of the current step."""
        self.finish_reason: FinishReason | None = None
        self._failure: Failure | None = None
        self._need: Need = "text"
        self._maker, self._capacity = maker, capacity
        self._steps: list[Step] = []
        self._num_written = 0
        self._num_images = 0
        self._num_input_tokens = sum(item.num_tokens for item in inputs)
        draws_first = problem.mode == "image" and not problem.think
        self._read(*inputs, then="drawing" if draws_first else "text")

    @property
    def needs(self) -> Need | None:
        """What comes after the items; None if the problem is finished."""
        return None if self.finish_reason else self._need

    @property
    def steps(self) -> tuple[Step, ...]:
        """Texts and drawings that are finished."""
        return tuple(self._steps)

    @property
    def noise_key(self) -> tuple[object, ...]:
        """Random key for the noise of the next drawing."""
        return (self.problem.seed, self.problem.uid, self.number)

    @property
    def text_key(self) -> tuple[object, ...]:
        """Random key for the tokens of the next text."""
        return ("text", *self.noise_key)

    @property
    def max_new_tokens(self) -> int:
        """Maximum length of the next text in tokens: with its end token, without the action."""
        return min(self.config.max_tokens - self._num_written, self._capacity - self.length)

    def wants_action(self, num_tokens: int) -> bool:
        """Whether the model chooses what follows a text.

        Args:
            num_tokens: Length of the text, with its end token.
        """
        return self.problem.mode == "interleaved" and self.length + num_tokens < self._capacity

    def take_text(self, ids: Sequence[int], *, is_ended: bool, action_id: int | None) -> None:
        """Continues after a text.

        Args:
            ids: Tokens of the text, without the end token.
            is_ended: Whether the model chose the end token; otherwise a limit was reached.
            action_id: The token after the end token; ignored if the problem wants no action.
        """
        item = self._keep_text(ids)
        has_action = is_ended and self.wants_action(len(ids) + 1)
        self._num_written += len(ids) + is_ended
        is_spent = not is_ended and self._num_written >= self.config.max_tokens
        limit: FinishReason = "max_tokens" if is_spent else "window"
        if has_action:
            assert action_id is not None
            self._act(item, action_id)
        elif self.problem.mode == "image" and (is_ended or is_spent):
            self._read(item, then="drawing")  # the limit ends only the thought
        else:
            is_whole = is_ended and self.problem.mode == "understanding"
            self.finish_reason = "stop" if is_whole else limit

    def take_picture(self, picture: Image.Image) -> None:
        """Continues with the finished drawing."""
        self._steps.append(Step(number=self.number, content=picture))
        self._num_images += 1
        if self.problem.mode == "image":
            self.finish_reason = "stop"
        elif self.number == self.config.max_steps:
            self.finish_reason = "max_steps"
        else:
            self._read(self._maker.image(picture), then="text")

    def stop(self, reason: FinishReason, failure: Failure | None = None) -> None:
        """Ends the problem at once, because its answer can't be computed."""
        self.finish_reason, self._failure = reason, failure

    def answer(self) -> Answer:
        """The answer of a finished problem."""
        assert self.finish_reason is not None
        return Answer(
            uid=self.problem.uid,
            steps=self.steps,
            finish_reason=self.finish_reason,
            num_input_tokens=self._num_input_tokens,
            num_written_tokens=self._num_written,
            failure=self._failure,
        )

    def _keep_text(self, ids: Sequence[int]) -> Item:
        """Adds a text to the answer; the context reads the cleaned text, tokenized again."""
        text = self._maker.tokenizer.decode(ids).strip()
        if text:
            self._steps.append(Step(number=self.number, content=text))
        return self._maker.text(text)

    def _act(self, item: Item, action_id: int) -> None:
        special, num_images = self._maker.tokenizer.special, self._num_images
        writes, draws = action_id == special.bos, action_id == special.start_of_image
        if not (writes or draws):
            draws = num_images < self.config.min_images and self._has_drawing
        elif draws and not self._has_drawing:
            writes, draws = True, False  # the next text follows at once
        if not (writes or draws):
            self.finish_reason = "stop"
        elif draws and num_images == self.config.max_images:
            self.finish_reason = "max_images"
        elif writes and self.number == self.config.max_steps:
            self.finish_reason = "max_steps"
        else:
            self._read(item, then="drawing" if draws else "text")
            if self._is_given and self.needs == "drawing":
                assert self.problem.drawings is not None
                self.take_picture(self.problem.drawings[num_images])

    @property
    def _is_given(self) -> bool:
        """Whether the drawings are those of the problem, not the model's own."""
        return self.config.drawings in GIVEN_DRAWINGS

    @property
    def _has_drawing(self) -> bool:
        """Whether the answer can have one more drawing, apart from limits."""
        if self._is_given:
            return self._num_images < len(self.problem.drawings or ())
        return self.config.drawings != "none"

    def _read(self, *items: Item, then: Need) -> None:
        """Adds items to the context; what follows must fit into it too."""
        self.items += items
        self.length += sum(item.num_tokens for item in items)
        self._need = then
        if then == "drawing":
            self.number = max(self.number, 1)
            if self.length + self._maker.drawing_tokens(self.size_px) > self._capacity:
                self.finish_reason = "window"
            return
        self.number += 1
        if self.max_new_tokens <= 0:
            is_spent = self.length <= self._capacity and self._num_written >= self.config.max_tokens
            self.finish_reason = "max_tokens" if is_spent else "window"
