"""What is asked of the interleaved generator, and what it answers."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from PIL import Image

from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
from mathcanvas_lightning.generation.bagel.text_steps import TextConfig

Mode = Literal["interleaved", "understanding", "image"]
"""Texts and drawings by turns, as the model chooses; one text about texts and pictures; one
drawing, from a text (text-to-image) or from pictures too (editing)."""
FinishReason = Literal["stop", "max_steps", "max_tokens", "max_images", "window"]
"""The model's own end; a limit of the configuration; or a context that is full."""

THINK_PROMPTS: dict[Mode, str] = {
    "interleaved": "You should think step by step, and draw whenever a drawing helps, before you "
    "give the answer.",
    "understanding": "You should first think about the reasoning process in the mind and then "
    "provide the user with the answer. \nThe reasoning process is enclosed within <think> </think> "
    "tags, i.e. <think> reasoning process here </think> answer here",
    "image": "You should first think about the planning process in the mind and then generate the "
    "image. \nThe planning process is enclosed within <think> </think> tags, i.e. <think> planning "
    "process here </think> image here",
}
"""System prompts that ask for thoughts; those for one text and one drawing are BAGEL's own."""


class TooLongError(InputError):
    """A problem that does not fit into a context."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class InterleavedConfig:
    """How problems are answered.

    Raises:
        ConfigError: If a limit is below 1.
    """

    text: TextConfig = field(default_factory=TextConfig)
    drawing: DrawingConfig = field(default_factory=DrawingConfig)
    max_steps: int = 10
    """Texts of an answer, each with the drawing that may follow it."""
    max_tokens: int = 8192
    """Tokens written in all texts of an answer, their ends included; the actions chosen after
    them do not count. A thought before a single drawing is only cut."""
    max_images: int = 10
    """Drawings of an answer."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_tokens", "max_images"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    name,
                    found=str(getattr(self, name)),
                    wanted="1 or more",
                    remedy="To get no drawings, use the mode understanding."
                    if name == "max_images"
                    else "Raise it.",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question of texts and pictures.

    Raises:
        ConfigError: If the mode is unknown.
    """

    uid: str
    """Names it among those in work; decides its draws, together with the seed."""
    inputs: tuple[str | Image.Image, ...]
    """In the order in which they are read."""
    mode: Mode = "interleaved"
    seed: int = 0
    think: bool = False
    """Puts a think prompt first; a single drawing then follows a text."""
    system_prompt: str | None = None
    """A text that is read first, unless it is empty; None is the mode's think prompt, if it shall
    think."""
    config: InterleavedConfig | None = None
    """None is the generator's."""

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(
                f"mode of problem {self.uid}",
                found=repr(self.mode),
                wanted=f"one of {', '.join(get_args(Mode))}",
                remedy="Choose one of them.",
            )

    @property
    def opening(self) -> str | None:
        """What is read before the inputs."""
        if self.system_prompt is None and self.think:
            return THINK_PROMPTS[self.mode]
        return self.system_prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A text or a drawing of an answer."""

    number: int
    """From 1; a drawing has the number of the text that it follows."""
    content: str | Image.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a problem."""

    uid: str
    steps: tuple[Step, ...]
    finish_reason: FinishReason
    num_input_tokens: int
    """Read at first, markers and image tokens included."""
    num_written_tokens: int
    """Chosen in all texts, their ends included, the actions after them not."""

    @property
    def text(self) -> str:
        """All texts, an empty line between them."""
        return "\n\n".join(step.content for step in self.steps if isinstance(step.content, str))

    @property
    def drawings(self) -> tuple[Image.Image, ...]:
        """All drawings."""
        contents = (step.content for step in self.steps)
        return tuple(content for content in contents if isinstance(content, Image.Image))
