"""Questions and answers of a conversation, and the request that the next question becomes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits, check_image
from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.generation.requests import (
    GenerationRequest,
    GenerationResponse,
    Message,
    Part,
    Sampling,
)
from mathcanvas_lightning.records.marks import MarkError, place_marks
from mathcanvas_lightning.records.pictures import Picture

UID = "question"
"""Id of each request: equal conversations with equal seeds get equal answers."""
LIMITS = ImageLimits(max_bytes=32 * 2**20)
"""Maximum sizes of a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """How questions are asked."""

    sampling: Sampling = Sampling(temperature=0.3)
    """Sampling of the first answer; a question may change its temperature and seed."""
    system_prompt: str | None = None
    """Text that the model reads first."""
    follow_up: bool = True
    """Whether a question comes after the earlier ones, if it does not say so itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, and how it is asked."""

    text: str
    pictures: tuple[Picture, ...] = ()
    """Each takes the place of its mark `<image>`; those without a mark come before the text."""
    sampling: Sampling = Sampling()
    follow_up: bool = True
    """Whether the model reads the conversation so far."""

    @property
    def message(self) -> Message:
        """The question as the user's message.

        Raises:
            InputError: If there is nothing to read, or a mark has no picture.
        """
        try:
            pieces = place_marks(self.text, len(self.pictures))
        except MarkError as error:
            raise InputError(
                "the question",
                found=str(error),
                wanted="a picture for each mark",
                remedy="Add the picture, or remove the mark.",
            ) from None
        if not pieces:
            raise InputError(
                "the question", found="nothing", wanted="a text or a picture", remedy="Write one."
            )
        parts = (one if isinstance(one, str) else self.pictures[one] for one in pieces)
        return Message(role="user", parts=tuple(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A question and its answer."""

    question: Question
    answer: tuple[Part, ...]
    """Texts and drawings in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Questions and answers so far."""

    turns: tuple[Turn, ...] = ()

    def request(self, question: Question, system_prompt: str | None = None) -> GenerationRequest:
        """Builds the request for the next question.

        Args:
            question: The question.
            system_prompt: Text that the model reads first.

        Raises:
            InputError: See `Question.message`.
        """
        system = [Message(role="system", parts=(system_prompt,))] if system_prompt else []
        earlier = [
            message
            for turn in (self.turns if question.follow_up else ())
            for message in (turn.question.message, Message(role="assistant", parts=turn.answer))
        ]
        messages = (*system, *earlier, question.message)
        return GenerationRequest(uid=UID, messages=messages, sampling=question.sampling)

    def with_answer(self, question: Question, response: GenerationResponse) -> "Conversation":
        """The conversation after an answer; a failed one leaves no trace."""
        if response.failure is not None:
            return self
        output = response.outputs[0]
        parts = output.steps or (output.text,)
        answer = tuple(part for part in parts if part)
        turn = Turn(question=question, answer=answer)
        return replace(self, turns=(*self.turns, turn)) if answer else self

    def without_last(self) -> "Conversation":
        """The conversation before its last turn."""
        return replace(self, turns=self.turns[:-1])


def checked_pictures(files: Sequence[tuple[str, bytes]]) -> tuple[Picture, ...]:
    """Checks pictures of a user.

    Args:
        files: Name and content of each file.

    Raises:
        InputError: If a file is no image, broken or too large.
    """
    for name, data in files:
        try:
            check_image(data, LIMITS)
        except ImageError as error:
            raise InputError(
                f"picture {name}",
                found=str(error),
                wanted="an image file, such as PNG or JPEG",
                remedy="Choose another file.",
            ) from None
    return tuple(Picture(data, place=f"picture {name}") for name, data in files)
