"""Requests as problems of the interleaved generator, and its answers as responses."""

import dataclasses
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits
from mathcanvas_lightning.data.images.resize import decode_image
from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.generation.bagel.problem import Answer, InterleavedConfig, Mode, Problem
from mathcanvas_lightning.generation.bagel.text_steps import TextConfig
from mathcanvas_lightning.generation.requests import (
    GenerationRequest,
    GenerationResponse,
    Output,
    Part,
    Sampling,
    Usage,
)
from mathcanvas_lightning.records.pictures import Picture, failure_kind

_SEPARATOR = "#"


class RequestError(Exception):
    """A request that can't be asked.

    Args:
        kind: Of its failure.
        message: What is wrong.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def unsupported(sampling: Sampling, *more: str) -> list[str]:
    """What is set that this model's loop doesn't know.

    Args:
        sampling: Of a request.
        more: Further fields that are not taken here.

    Returns:
        Names of fields.
    """
    plain = Sampling()
    names = ("repetition_penalty", "stop", "json_schema", "choice", "regex", *more)
    return [name for name in names if getattr(sampling, name) != getattr(plain, name)]


def with_sampling(config: InterleavedConfig, sampling: Sampling) -> InterleavedConfig:
    """The configuration with a request's way of choosing tokens."""
    return dataclasses.replace(
        config,
        text=TextConfig(temperature=sampling.temperature, top_p=sampling.top_p),
        max_tokens=sampling.max_tokens,
    )


def problems_of(
    request: GenerationRequest, config: InterleavedConfig, *, mode: Mode, think: bool
) -> list[Problem]:
    """As many problems as answers are wanted, which differ in their draws.

    Args:
        request: What is asked.
        config: How, but for the request's sampling.
        mode: Of all requests.
        think: Whether to ask for thoughts, where there is no system message.

    Returns:
        Problems; `whose` tells the request by their uids.

    Raises:
        RequestError: If a part of it is not supported, or can't be read.
    """
    if others := unsupported(request.sampling):
        raise RequestError("unsupported", f"BAGEL's own loop has no {', '.join(others)}")
    system = [message for message in request.messages if message.role == "system"]
    if any(isinstance(part, Picture) for message in system for part in message.parts):
        raise RequestError("unsupported", "a picture in a system message")
    opening = "\n".join(message.text for message in system)
    parts = [p for message in request.messages if message.role != "system" for p in message.parts]
    inputs = tuple(_decoded(part) for part in parts)
    return [
        Problem(
            uid=f"{request.uid}{_SEPARATOR}{number}",
            inputs=inputs,
            mode=mode,
            seed=request.seed,
            think=think,
            system_prompt=opening if opening.strip() else None,
            config=with_sampling(config, request.sampling),
        )
        for number in range(request.sampling.n)
    ]


def whose(problem_uid: str) -> tuple[str, int]:
    """The uid of a problem's request, and which of its answers it is, from 0."""
    uid, number = problem_uid.rsplit(_SEPARATOR, 1)
    return uid, int(number)


def open_picture(path: Path) -> Image.Image:
    """Reads a picture.

    Args:
        path: Of its file.

    Returns:
        Its pixels.

    Raises:
        InputError: If there is no such file, or it is no image, or one over the usual limits.
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
            remedy="Check the path and the file; a text is given as str.",
        ) from None


def response_of(request: GenerationRequest, answers: Sequence[Answer]) -> GenerationResponse:
    """All answers to a request.

    Args:
        request: What was asked.
        answers: In the order of their numbers.

    Returns:
        The response. A limit of tokens is "length" in it, as elsewhere; other reasons keep their
        names.
    """
    return GenerationResponse(
        uid=request.uid,
        outputs=tuple(_output(answer) for answer in answers),
        usage=Usage(
            prompt_tokens=answers[0].num_input_tokens,
            completion_tokens=sum(answer.num_written_tokens for answer in answers),
        ),
    )


def _decoded(part: Part) -> str | Image.Image:
    if isinstance(part, str):
        return part
    try:
        return decode_image(part.data, ImageLimits())
    except ImageError as error:
        raise RequestError(failure_kind(error), f"{part.place}: {error}") from None


def _output(answer: Answer) -> Output:
    reason = "length" if answer.finish_reason == "max_tokens" else answer.finish_reason
    return Output(text=answer.text, finish_reason=reason, steps=tuple(_parts(answer)))


def _parts(answer: Answer) -> Iterator[Part]:
    """The steps; empty texts stand where the answer has none, so that texts count as numbers do."""
    num_texts = 0
    for step in answer.steps:
        is_text = isinstance(step.content, str)
        yield from [""] * (step.number - num_texts - is_text)
        num_texts = step.number
        yield step.content if isinstance(step.content, str) else _encoded(step.content)


def _encoded(drawing: Image.Image) -> Picture:
    buffer = BytesIO()
    drawing.save(buffer, "PNG")
    return Picture(buffer.getvalue(), place="a drawing")
