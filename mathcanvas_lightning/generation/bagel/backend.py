"""Answers from BAGEL itself: texts and drawings by turns, many requests at once."""

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import ConfigError, MathCanvasError
from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.backends.settings import resolved_path
from mathcanvas_lightning.generation.bagel.generator import InterleavedGenerator
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
from mathcanvas_lightning.generation.bagel.problem import (
    Answer,
    InterleavedConfig,
    Mode,
    Problem,
    TooLongError,
)
from mathcanvas_lightning.generation.bagel.requests import (
    RequestError,
    open_picture,
    problems_of,
    response_of,
    unsupported,
    whose,
    with_sampling,
)
from mathcanvas_lightning.generation.requests import (
    Failure,
    GenerationRequest,
    GenerationResponse,
    Sampling,
)
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.vae import LatentVAE

Precision = Literal["auto", "float32", "bfloat16"]
ReasonInput = str | Path | Image.Image
"""A text, the path of a picture, or a picture."""


class BagelBackend:
    """Answers requests with a BAGEL checkpoint, on the Trainer's device.

    Many problems are worked on at once, each at a step of its own; when one is done, the next takes
    its place. What becomes of a problem does not depend on the others.

    Of a request's sampling it takes temperature, top_p, max_tokens (of all texts of an answer, the
    actions after them not counted), n and seed; what else is set makes the request fail, and so
    does a picture in a system message. Texts of system messages are read first; the texts and
    pictures of all other messages follow in order.

    Args:
        checkpoint: Directory in the layout of BAGEL-7B-MoT.
        model_name: What to call it in the journal; by default the directory's name.
        mode: "interleaved": texts and drawings by turns, as the model chooses; "understanding":
            one text; "image": one drawing, from a text or of pictures to edit.
        think: Asks for thoughts first, by a system prompt, where the request has none.
        drawing: How drawings are made.
        max_steps: Texts of an answer at most, each with the drawing that may follow.
        max_images: Drawings of an answer at most.
        max_batch_size: Problems worked on at a time, if memory allows.
        max_context_tokens: Of a question and its answer; by default what the model was made for, at
            most 16,384.
        dtype: Of weights and caches; "auto" is bfloat16 on GPUs, float32 elsewhere.
        vae_transform: How pictures are resized for the VAE; drawings get that size.
        vit_transform: How the result is resized for the ViT.
        interpolate_positions: Spread images over the whole position tables, if training did.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        model_name: str | None = None,
        mode: Mode = "interleaved",
        think: bool = False,
        drawing: DrawingConfig = DrawingConfig(),
        max_steps: int = 10,
        max_images: int = 10,
        max_batch_size: int = 16,
        max_context_tokens: int | None = None,
        dtype: Precision = "auto",
        vae_transform: ImageTransform | None = None,
        vit_transform: ImageTransform | None = None,
        interpolate_positions: bool = False,
    ) -> None:
        self._checkpoint = checkpoint
        self._model_name = model_name or Path(checkpoint).name
        self._mode, self._think = mode, think
        if mode == "understanding":  # without drawings there is no guidance: one context is enough
            drawing = dataclasses.replace(drawing, text_scale=1.0)
        self._config = InterleavedConfig(
            drawing=drawing, max_steps=max_steps, max_images=max_images
        )
        self._max_batch_size = max_batch_size
        self._max_context_tokens = max_context_tokens
        self._dtype = dtype
        self._vae_transform, self._vit_transform = vae_transform, vit_transform
        self._interpolate_positions = interpolate_positions
        self._generator: InterleavedGenerator | None = None
        self._asked: dict[str, _Asked] = {}
        self._ready: deque[GenerationResponse] = deque()

    @property
    def model_name(self) -> str:
        """The model's name, for the journal."""
        return self._model_name

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that decides its answers besides the requests, as JSON values."""
        transforms = (self._vae_transform, self._vit_transform)
        vae, vit = (one and dataclasses.asdict(one) for one in transforms)
        return {
            "checkpoint": resolved_path(self._checkpoint),
            "mode": self._mode,
            "think": self._think,
            "drawing": dataclasses.asdict(self._config.drawing),
            "max_steps": self._config.max_steps,
            "max_images": self._config.max_images,
            "max_context_tokens": self._max_context_tokens,
            "dtype": self._dtype,
            "vae_transform": vae,
            "vit_transform": vit,
            "interpolate_positions": self._interpolate_positions,
        }

    @property
    def max_pending(self) -> int:
        """Enough that a next problem is there when one is done."""
        return 2 * self._max_batch_size

    @property
    def num_pending(self) -> int:
        """Requests submitted and not yet collected."""
        return len(self._asked) + len(self._ready)

    def start(self, *, local_rank: int = 0, device: str = "cpu") -> None:  # noqa: ARG002
        """Loads the model; does nothing if it is loaded.

        Args:
            local_rank: Not used: the device tells it.
            device: Where to put the model.

        Raises:
            MathCanvasError: If the checkpoint can't be read, or memory is short.
        """
        if self._generator is not None:
            return
        is_cpu = torch.device(device).type == "cpu"
        name = ("float32" if is_cpu else "bfloat16") if self._dtype == "auto" else self._dtype
        placed = {"dtype": getattr(torch, name), "device": torch.device(device)}
        model = Bagel.from_checkpoint(self._checkpoint, **placed)
        model.attention_path = "sdpa"  # pictures come in many sizes: nothing to compile for each
        self._generator = InterleavedGenerator(
            model.eval(),
            LatentVAE.from_checkpoint(self._checkpoint, model.config.vae, **placed),
            TextTokenizer(self._checkpoint),
            config=self._config,
            max_batch_size=self._max_batch_size,
            max_context_tokens=self._max_context_tokens,
            vae_transform=self._vae_transform,
            vit_transform=self._vit_transform,
            interpolate_positions=self._interpolate_positions,
        )

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Takes requests.

        Args:
            requests: Pictures as they were read.

        Raises:
            BackendError: If the model isn't loaded.
        """
        generator = self._running()
        for request in requests:
            try:
                for problem in problems_of(
                    request, self._config, mode=self._mode, think=self._think
                ):
                    generator.submit(problem)
            except RequestError as error:
                self._ready.append(_failed(request, error.kind, str(error)))
            except TooLongError as error:
                self._ready.append(_failed(request, "prompt_too_long", str(error)))
            except MathCanvasError as error:
                self._ready.append(_failed(request, "unsupported", str(error)))
            else:
                self._asked[request.uid] = _Asked(request=request)

    def collect(self) -> list[GenerationResponse]:
        """Works on all problems until one is done.

        Returns:
            All that are; none only if nothing is pending.

        Raises:
            BackendError: If the device is out of memory, or anything else fails. No request is
                pending then.
        """
        while self._asked and not self._ready:
            for answer in self._advance():
                self._take(answer)
        responses = list(self._ready)
        self._ready.clear()
        return responses

    def reason(
        self,
        inputs: ReasonInput | Sequence[ReasonInput],
        *,
        sampling: Sampling = Sampling(temperature=0.3, max_tokens=8192),
        system_prompt: str | None = None,
        uid: str = "question",
    ) -> Answer:
        """Answers one question: for notebooks.

        Loads the model, if it isn't, on a GPU if there is one. After an interrupt it can be asked
        again.

        Args:
            inputs: Texts, and pictures (Pillow's images, or files as `Path`), in the order in which
                they are read.
            sampling: Temperature, top_p, max_tokens (of all texts) and seed.
            system_prompt: Read first.
            uid: With the seed, decides the draws.

        Returns:
            Its steps: texts and drawings.

        Raises:
            InputError: If there is no input, one can't be read, or they are too long.
            ConfigError: If the sampling has more than is listed above.
            BackendError: If other requests are pending.
            MathCanvasError: See `start`.
        """
        if others := unsupported(sampling, "n"):
            raise ConfigError(
                "sampling of reason()",
                found=", ".join(others),
                wanted="temperature, top_p, max_tokens and seed alone",
                remedy="Leave it out; for several answers, change the seed.",
            )
        given = [inputs] if isinstance(inputs, ReasonInput) else inputs
        opened = tuple(open_picture(one) if isinstance(one, Path) else one for one in given)
        self.start(device="cuda" if torch.cuda.is_available() else "cpu")
        if self.num_pending:
            raise BackendError(
                "reason()",
                found=f"{self.num_pending} pending requests",
                wanted="none",
                remedy="Collect their responses first.",
            )
        (answer,) = self._running().run(
            [
                Problem(
                    uid=uid,
                    inputs=opened,
                    mode=self._mode,
                    seed=sampling.seed,
                    think=self._think,
                    system_prompt=system_prompt,
                    config=with_sampling(self._config, sampling),
                )
            ]
        )
        return answer

    def _advance(self) -> list[Answer]:
        try:
            return self._running().advance()
        except BaseException as error:
            self._running().withdraw()
            self._asked.clear()
            if isinstance(error, Exception):
                raise self._broken(error) from error
            raise

    def _broken(self, error: Exception) -> BackendError:
        is_memory = isinstance(error, torch.OutOfMemoryError)
        found = "too little memory" if is_memory else type(error).__name__
        condition = "" if is_memory else ", if this comes of too little memory"
        return BackendError(
            f"BAGEL from {self._checkpoint}",
            found=f"{found}: {error}",
            wanted="a step of all problems in work",
            remedy=f"Lower max_batch_size or max_context_tokens{condition}, and run again.",
        )

    def close(self) -> None:
        """Lets the model go; pending requests are lost."""
        self._generator = None
        self._asked.clear()
        self._ready.clear()

    def _running(self) -> InterleavedGenerator:
        if self._generator is None:
            raise BackendError(
                f"BAGEL from {self._checkpoint}",
                found="no loaded model",
                wanted="a call of start() before requests",
                remedy="Call it.",
            )
        return self._generator

    def _take(self, answer: Answer) -> None:
        uid, number = whose(answer.uid)
        asked = self._asked[uid]
        asked.answers[number] = answer
        if len(asked.answers) == asked.request.sampling.n:
            del self._asked[uid]
            answers = [asked.answers[number] for number in sorted(asked.answers)]
            self._ready.append(response_of(asked.request, answers))


@dataclass(slots=True, kw_only=True)
class _Asked:
    """A request in work, and those of its answers that are there."""

    request: GenerationRequest
    answers: dict[int, Answer] = field(default_factory=dict)


def _failed(request: GenerationRequest, kind: str, message: str) -> GenerationResponse:
    return GenerationResponse(uid=request.uid, failure=Failure(kind=kind, message=message))
