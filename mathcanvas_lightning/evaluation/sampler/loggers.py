"""Shows sampled answers in TensorBoard and Weights & Biases: texts, and strips of drawings."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from mathcanvas_lightning.evaluation.sampler.results import SampledAnswer
from mathcanvas_lightning.records.pictures import Picture
from mathcanvas_lightning.training.callbacks.pictures import GAP_PX, picture_loggers

MAX_SHOWN = 8
"""Number of answers that loggers get; the files have all."""


def log_answers(trainer: Trainer, tag: str, answers: Sequence[SampledAnswer], step: int) -> None:
    """Logs the first answers, if a logger accepts pictures.

    Args:
        trainer: The Trainer with the loggers.
        tag: Name of the entry.
        answers: The answers.
        step: Optimizer step.
    """
    shown = [(_text(answer), _strip(answer)) for answer in answers[:MAX_SHOWN]]
    drawn = [(text, strip) for text, strip in shown if strip is not None]
    for logger in picture_loggers(trainer):
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, "\n\n---\n\n".join(text for text, _ in shown), step)
            for number, (_, strip) in enumerate(drawn):
                pixels = np.asarray(strip)
                logger.experiment.add_image(f"{tag}/{number}", pixels, step, dataformats="HWC")
        else:
            logger.log_text(tag, columns=["answer"], data=[[text] for text, _ in shown], step=step)
            if drawn:
                texts, strips = zip(*drawn, strict=True)
                logger.log_image(f"{tag}/drawings", [*strips], step=step, caption=[*texts])


def _text(answer: SampledAnswer) -> str:
    failure = answer.response.failure
    found = f"(failed: {failure.message})" if failure else answer.response.outputs[0].text
    return f"**{answer.held_out.index}**: {found}"


def _strip(answer: SampledAnswer) -> Image.Image | None:
    """The drawings of an answer, side by side; None without drawings."""
    steps = answer.response.outputs[0].steps if answer.response.outputs else ()
    drawings = [Image.open(BytesIO(one.data)) for one in steps if isinstance(one, Picture)]
    if not drawings:
        return None
    width = sum(one.width + GAP_PX for one in drawings) - GAP_PX
    strip = Image.new("RGB", (width, max(one.height for one in drawings)), "white")
    left = 0
    for drawing in drawings:
        strip.paste(drawing, (left, 0))
        left += drawing.width + GAP_PX
    return strip
