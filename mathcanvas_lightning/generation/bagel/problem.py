"""Problems for the interleaved generator, and its answers."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from PIL import Image

from mathcanvas_lightning.common.display.notebook import view
from mathcanvas_lightning.common.display.short import counted, short_repr
from mathcanvas_lightning.data.images.shown import shown_drawing
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
from mathcanvas_lightning.generation.bagel.text_steps import TextConfig
from mathcanvas_lightning.generation.requests import DrawingsUse, Failure

Mode = Literal["interleaved", "understanding", "image"]
"""interleaved: texts and drawings in turn, as the model chooses. understanding: one text about
texts and pictures. image: one drawing from a text (text-to-image) or from pictures (editing)."""
FinishReason = Literal[
    "stop",
    "max_steps",
    "max_tokens",
    "max_images",
    "window",
    "not_finite",
    "out_of_memory",
    "failed",
]
"""stop: the model ended its answer. window: a context is full. not_finite: the network computed NaN
or infinity, so the answer is useless. out_of_memory: the problem alone needs more
memory than the device has. failed: the text engine refused the problem. Others: that limit was
reached."""

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
"""System prompts that ask the model to think first; for understanding and image BAGEL's own."""


class TooLongError(InputError):
    """A problem does not fit into a context."""


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class InterleavedConfig:
    """Sampling of texts and drawings, and limits of an answer.

    Raises:
        ConfigError: If a limit is below 1.
    """

    text: TextConfig = field(default_factory=TextConfig)
    drawing: DrawingConfig = field(default_factory=DrawingConfig)
    max_steps: int = 10
    """Maximum number of texts in an answer; a drawing may follow each text."""
    max_tokens: int = 8192
    """Maximum number of tokens in all texts of an answer, with end tokens but without action
    tokens. If it is reached in the thought before a single drawing, the drawing is still made."""
    max_images: int = 10
    """Maximum number of drawings in an answer."""
    min_images: int = 0
    """Minimum number of drawings in an interleaved answer: where the model would end its answer
    before, it draws. Other limits end an answer earlier."""
    drawings: DrawingsUse = "own"
    """What an answer has where the model wants to draw; other values than "own" show how much the
    drawings help."""

    def __post_init__(self) -> None:
        if self.drawings not in get_args(DrawingsUse):
            raise ConfigError(
                "drawings",
                found=repr(self.drawings),
                wanted=" or ".join(get_args(DrawingsUse)),
                remedy="Change it.",
            )
        for name in ("max_steps", "max_tokens", "max_images"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    name,
                    found=str(getattr(self, name)),
                    wanted="1 or more",
                    remedy="For answers without drawings, use the mode understanding."
                    if name == "max_images"
                    else "Raise it.",
                )
        most = 0 if self.drawings == "none" else self.max_images
        if not 0 <= self.min_images <= most:
            raise ConfigError(
                "min_images",
                found=str(self.min_images),
                wanted=f"0 to {most}, {'as no step has a drawing' if most == 0 else 'max_images'}",
                remedy="Lower it, or change drawings." if most == 0 else "Lower it.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with texts and pictures.

    Raises:
        ConfigError: If the mode is unknown.
    """

    uid: str
    """Id, unique among pending problems; with the seed, it determines all random numbers."""
    inputs: tuple[str | Image.Image, ...]
    """Texts and pictures in reading order."""
    mode: Mode = "interleaved"
    seed: int = 0
    think: bool = False
    """Whether the model thinks first; in the mode image it then writes a text before it draws."""
    system_prompt: str | None = None
    """Text that the model reads first; "" for none. None: the think prompt if `think` is set."""
    config: InterleavedConfig | None = None
    """Configuration of this problem; None uses the generator's."""
    drawings: tuple[Image.Image, ...] | None = None
    """Drawings in the order of the steps, for answers whose drawings are not the model's own."""

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
        """Text that the model reads before the inputs."""
        if self.system_prompt is None and self.think:
            return THINK_PROMPTS[self.mode]
        return self.system_prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A text or a drawing of an answer."""

    number: int
    """Number of the step, from 1; a drawing has the number of the text before it."""
    content: str | Image.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a problem: texts, drawings, and why it ended."""

    uid: str
    steps: tuple[Step, ...]
    finish_reason: FinishReason
    num_input_tokens: int
    """Number of input tokens, with markers and image tokens."""
    num_written_tokens: int
    """Number of generated text tokens, with end tokens but without action tokens."""
    failure: Failure | None = None
    """Why the finish reason is "failed"."""

    @property
    def text(self) -> str:
        """All texts, separated by empty lines."""
        return "\n\n".join(step.content for step in self.steps if isinstance(step.content, str))

    @property
    def drawings(self) -> tuple[Image.Image, ...]:
        """All drawings."""
        contents = (step.content for step in self.steps)
        return tuple(content for content in contents if isinstance(content, Image.Image))

    def __repr__(self) -> str:
        drawings = counted(len(self.drawings), "drawing")
        named = {"text": self.text, "finish_reason": self.finish_reason}
        return short_repr(self, repr(self.uid), drawings, **named)

    def _repr_html_(self) -> str:
        pieces = [
            step.content if isinstance(step.content, str) else shown_drawing(step.content)
            for step in self.steps
        ]
        return view(self.uid, {"answer": pieces}, facts={"finish reason": self.finish_reason})
