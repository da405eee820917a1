"""Converts requests to problems of the interleaved generator, and its answers to responses."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits
from mathcanvas_lightning.data.images.pixels import encode_png
from mathcanvas_lightning.data.images.resize import decode_image
from mathcanvas_lightning.errors import InputError, MathCanvasError
from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.bagel.kv_cache import is_memory_error
from mathcanvas_lightning.generation.bagel.problem import (
    Answer,
    InterleavedConfig,
    Mode,
    Problem,
    TooLongError,
)
from mathcanvas_lightning.generation.bagel.text_steps import TextConfig
from mathcanvas_lightning.generation.requests import (
    Failure,
    GenerationRequest,
    GenerationResponse,
    Output,
    Part,
    Sampling,
    Usage,
)
from mathcanvas_lightning.records.pictures import Picture, PictureError, decode_picture

ReasonInput = str | Path | Image.Image
"""A text, the path of a picture, or a Pillow image."""
_SEPARATOR = "#"
NOT_FINITE = (
    "the network computed NaN or infinite values: its weights are broken, or their precision "
    "(dtype) is too low"
)
OUT_OF_MEMORY = "this problem alone needs more memory than the device has"


class RequestError(Exception):
    """BAGEL cannot answer a request.

    Args:
        kind: Short name of the failure.
        message: Description.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def unsupported(sampling: Sampling, *more: str) -> list[str]:
    """Finds sampling values that BAGEL's generator does not support.

    Args:
        sampling: Sampling of a request.
        more: More unsupported fields.

    Returns:
        Names of the fields that are set.
    """
    plain = Sampling()
    guides = ("json_schema", "choice", "regex") if sampling.guide_strictly else ()
    names = ("repetition_penalty", "stop", *guides, *more)
    return [name for name in names if getattr(sampling, name) != getattr(plain, name)]


def with_sampling(config: InterleavedConfig, sampling: Sampling) -> InterleavedConfig:
    """The configuration with the sampling values of a request."""
    return dataclasses.replace(
        config,
        text=TextConfig(temperature=sampling.temperature, top_p=sampling.top_p),
        max_tokens=sampling.max_tokens,
    )


def problems_of(
    request: GenerationRequest, config: InterleavedConfig, *, mode: Mode, think: bool
) -> list[Problem]:
    """Converts a request to `n` problems, which differ in their random numbers.

    Args:
        request: The request.
        config: Configuration; the request's sampling overrides its values.
        mode: Mode of the problems.
        think: Whether to add a think prompt if there is no system message.

    Returns:
        Problems; `split_problem_uid` recovers the request's uid from theirs.

    Raises:
        RequestError: If a part of the request is unsupported.
        PictureError: If a picture is unreadable.
    """
    if others := unsupported(request.sampling):
        raise RequestError("unsupported", f"BAGEL does not support {', '.join(others)}")
    system = [message for message in request.messages if message.role == "system"]
    if any(isinstance(part, Picture) for message in system for part in message.parts):
        raise RequestError("unsupported", "a picture in a system message")
    opening = "\n".join(message.text for message in system)
    parts = [p for message in request.messages if message.role != "system" for p in message.parts]
    inputs = tuple(part if isinstance(part, str) else decode_picture(part) for part in parts)
    given = request.drawings
    drawings = None if given is None else tuple(map(decode_picture, given))
    return [
        Problem(
            uid=f"{request.uid}{_SEPARATOR}{number}",
            inputs=inputs,
            mode=mode,
            seed=request.seed,
            think=think,
            system_prompt=opening if opening.strip() else None,
            config=with_sampling(config, request.sampling),
            drawings=drawings,
        )
        for number in range(request.sampling.n)
    ]


def refused(
    request: GenerationRequest, error: RequestError | PictureError | MathCanvasError
) -> GenerationResponse:
    """The failure of a request that `problems_of` or the solver refused with an error."""
    kind = "prompt_too_long" if isinstance(error, TooLongError) else "unsupported"
    failure = Failure(kind=getattr(error, "kind", kind), message=str(error))
    return GenerationResponse(uid=request.uid, failure=failure)


def split_problem_uid(problem_uid: str) -> tuple[str, int]:
    """Splits a problem's uid into the request's uid and the number of the answer, from 0."""
    uid, number = problem_uid.rsplit(_SEPARATOR, 1)
    return uid, int(number)


def opened(inputs: ReasonInput | Sequence[ReasonInput]) -> tuple[str | Image.Image, ...]:
    """Reads the pictures among inputs.

    Args:
        inputs: One or several texts and pictures.

    Raises:
        InputError: See `open_picture`.
    """
    given = [inputs] if isinstance(inputs, ReasonInput) else inputs
    return tuple(open_picture(one) if isinstance(one, Path) else one for one in given)


def open_picture(path: Path) -> Image.Image:
    """Reads and decodes a picture.

    Args:
        path: Path of the image file.

    Raises:
        InputError: If the file does not exist, is not an image, or exceeds the usual limits.
    """
    limits = ImageLimits()
    try:
        with path.open("rb") as file:
            return decode_image(file.read(limits.max_bytes + 1), limits)
    except (OSError, ValueError, ImageError) as error:  # ValueError: a NUL in the path
        raise InputError(
            f"picture {path}",
            found=str(error),
            wanted="an image file",
            remedy="Check the path and the file; pass a text as str.",
        ) from None


def response_of(request: GenerationRequest, answers: Sequence[Answer]) -> GenerationResponse:
    """Converts the answers of a request to a response.

    Args:
        request: The request.
        answers: All answers, in order.

    Returns:
        The response; a failure if one of the answers failed. The finish reason "max_tokens"
        becomes "length", as in other backends; other reasons stay.
    """
    failures = [failure for one in answers if (failure := failure_of(one)) is not None]
    if failures:
        return GenerationResponse(uid=request.uid, failure=failures[0])
    return GenerationResponse(
        uid=request.uid,
        outputs=tuple(_output(answer) for answer in answers),
        usage=Usage(
            prompt_tokens=answers[0].num_input_tokens,
            completion_tokens=sum(answer.num_written_tokens for answer in answers),
        ),
    )


def failure_of(answer: Answer) -> Failure | None:
    """Why an answer is useless; None if it is not."""
    if answer.finish_reason == "not_finite":
        return Failure(kind="not_finite", message=NOT_FINITE)
    if answer.finish_reason == "out_of_memory":
        return Failure(kind="out_of_memory", message=OUT_OF_MEMORY)
    return answer.failure


def _output(answer: Answer) -> Output:
    reason = "length" if answer.finish_reason == "max_tokens" else answer.finish_reason
    return Output(text=answer.text, finish_reason=reason, steps=tuple(_parts(answer)))


def _parts(answer: Answer) -> Iterator[Part]:
    """Texts and drawings; a missing text becomes "", so that the texts give the step numbers."""
    num_texts = 0
    for step in answer.steps:
        is_text = isinstance(step.content, str)
        yield from [""] * (step.number - num_texts - is_text)
        num_texts = step.number
        yield step.content if isinstance(step.content, str) else encoded_drawing(step.content)


def answer_error(place: str, failure: Failure) -> BackendError:
    """The error for an answer that is useless.

    Args:
        place: Description of the model.
        failure: Why it is useless.
    """
    return BackendError(
        place,
        found=failure.message,
        wanted="an answer",
        remedy="Check the training, export the weights again, or set dtype: float32."
        if failure.kind == "not_finite"
        else "Run again.",
    )


def step_error(place: str, error: Exception) -> BackendError:
    """The error for a step of the computation that failed.

    Args:
        place: Description of the model.
        error: What was raised.
    """
    is_memory = is_memory_error(error)
    found = "too little memory" if is_memory else type(error).__name__
    condition = "" if is_memory else ", if memory is the cause"
    return BackendError(
        place,
        found=f"{found}: {error}",
        wanted="a step of all problems in progress",
        remedy=f"Lower max_batch_size or max_context_tokens{condition}, and run again.",
    )


def encoded_drawing(drawing: Image.Image) -> Picture:
    """Encodes a drawing as PNG."""
    return Picture(encode_png(drawing), place="a drawing")
