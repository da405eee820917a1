"""Backend that runs BAGEL itself: answers with texts and drawings, many requests in a batch."""

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch

from mathcanvas_lightning.common.display.short import ShortRepr
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import ConfigError, MathCanvasError
from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.backends.identity import fingerprint
from mathcanvas_lightning.generation.backends.settings import resolved_path
from mathcanvas_lightning.generation.bagel.generator import InterleavedGenerator
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
from mathcanvas_lightning.generation.bagel.options import BagelOptions, BagelSettings
from mathcanvas_lightning.generation.bagel.problem import Answer, Mode, Problem
from mathcanvas_lightning.generation.bagel.requests import (
    ReasonInput,
    RequestError,
    answer_error,
    failure_of,
    opened,
    problems_of,
    refused,
    response_of,
    split_problem_uid,
    step_error,
    unsupported,
    with_sampling,
)
from mathcanvas_lightning.generation.bagel.rollout.progress import follow
from mathcanvas_lightning.generation.bagel.rollout.solver import ProblemSolver
from mathcanvas_lightning.generation.bagel.workshop import load_parts
from mathcanvas_lightning.generation.events import EndEvent, Event
from mathcanvas_lightning.generation.requests import (
    DrawingsUse,
    GenerationRequest,
    GenerationResponse,
    Sampling,
)
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.vae import LatentVAE
from mathcanvas_lightning.records.pictures import PictureError


class BagelBackend(ShortRepr):
    """Answers requests with a BAGEL checkpoint, on the Trainer's device.

    Batching is continuous: each problem of the batch can be at a different step, and a finished
    problem is replaced by the next one. In float32, the answer to a problem does not depend on the
    rest of the batch. In bfloat16 (the default on GPUs) the rounding of the kernels does, so a
    sampled token may differ when the batch is another one.

    Supported sampling values are temperature, top_p, max_tokens (over all texts of an answer, the
    action tokens not counted), n and seed. A request with any other value fails, as does one with a
    picture in a system message. The model reads the texts of the system messages first, then the
    texts and pictures of all other messages in order.

    Args:
        checkpoint: Directory in the layout of BAGEL-7B-MoT.
        model_name: Name in the journal; by default the name of the directory.
        mode: "interleaved": texts and drawings in turn, as the model chooses; "understanding":
            one text; "image": one drawing from a text, or from pictures to edit.
        think: If the request has no system prompt, add one that asks the model to think first.
        drawing: Settings for drawings.
        max_steps: Maximum number of texts in an answer; a drawing may follow each text.
        max_images: Maximum number of drawings in an answer.
        settings: Batch size, memory, precision and image sizes, see `BagelSettings`.
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
        **settings: Unpack[BagelSettings],
    ) -> None:
        self._checkpoint = checkpoint
        self._model_name = model_name or Path(checkpoint).name
        self._mode, self._think = mode, think
        if mode == "understanding":  # no drawings, so no guidance: one context is enough
            drawing = dataclasses.replace(drawing, text_scale=1.0)
        self._options = BagelOptions(**settings)
        self._config = self._options.config(
            mode, drawing, max_steps=max_steps, max_images=max_images
        )
        self._given: dict[str, Any] = {
            "config": self._config,
            "limits": self._options.limits,
            "images": self._options.images,
        }
        self._generator: ProblemSolver | None = None
        self._fingerprint: str | None = None
        """Fingerprint of the loaded model; None if no model is loaded."""
        self._asked: dict[str, _Asked] = {}
        self._ready: deque[GenerationResponse] = deque()
        self._num_short = 0
        """Number of requests in a row that alone ran out of memory."""

    @property
    def model_name(self) -> str:
        """Name of the model in the journal."""
        return self._model_name

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that change the answers, for the journal: JSON values."""
        drawing = dataclasses.asdict(self._config.drawing)
        if drawing["size"] is None:  # journals of versions without this setting stay valid
            del drawing["size"]
        return {
            "checkpoint": resolved_path(self._checkpoint),
            "weights": self._fingerprint or fingerprint(self._checkpoint),
            "mode": self._mode,
            "think": self._think,
            "drawing": drawing,
            "max_steps": self._config.max_steps,
            "max_images": self._config.max_images,
            **self._options.for_journal(),
        }

    @property
    def drawings(self) -> DrawingsUse:
        """Where the drawings of answers come from; requests must have those that are given."""
        return self._options.drawings

    @property
    def max_pending(self) -> int:
        """Maximum number of pending requests: those in progress, and as many that wait."""
        return 2 * self._options.max_batch_size

    @property
    def num_pending(self) -> int:
        """Number of requests that were submitted but not yet collected."""
        return len(self._asked) + len(self._ready)

    @property
    def generator(self) -> ProblemSolver:
        """What answers the problems, with the loaded model.

        Raises:
            BackendError: If the model is not loaded.
        """
        if self._generator is None:
            raise BackendError(
                f"BAGEL from {self._checkpoint}",
                found="no loaded model",
                wanted="a call of start() before requests",
                remedy="Call start().",
            )
        return self._generator

    def start(self, *, local_rank: int = 0, device: str = "cpu") -> None:
        """Loads the model; does nothing if it is loaded.

        Args:
            local_rank: Rank of this process on its machine.
            device: Device for the model.

        Raises:
            MathCanvasError: If the checkpoint cannot be read, or memory is short.
        """
        if self._generator is not None:
            return
        self._options.images.warn_of_sizes(BagelConfig.from_directory(self._checkpoint))
        loaded = fingerprint(self._checkpoint)
        self._generator = self._load(torch.device(device), local_rank)
        self._fingerprint = loaded

    def _load(self, device: torch.device, local_rank: int) -> ProblemSolver:  # noqa: ARG002
        """Loads the model; `local_rank` is not used here, because the device is enough."""
        return InterleavedGenerator(*self._load_parts(device), **self._given)

    def use(
        self,
        model: Bagel,
        vae: LatentVAE,
        tokenizer: TextTokenizer,
        *,
        autocast: torch.dtype | None = None,
    ) -> None:
        """Answers with a model in memory until `close`, instead of loading the checkpoint.

        Args:
            model: BAGEL in evaluation mode, whose attention has the path "sdpa".
            vae: Its autoencoder.
            tokenizer: Its tokenizer.
            autocast: See `InterleavedGenerator`.
        """
        self._generator = InterleavedGenerator(
            model, vae, tokenizer, autocast=autocast, **self._given
        )

    def _load_parts(
        self, device: torch.device, *, text_head: bool = True
    ) -> tuple[Bagel, LatentVAE, TextTokenizer]:
        options = self._options
        return load_parts(
            self._checkpoint,
            options.torch_dtype(device),
            device,
            size_px=self._config.drawing.size,
            text_head=text_head,
            quantized=options.quantized,
        )

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Adds requests to the queue; returns at once.

        Args:
            requests: Requests with encoded pictures.

        Raises:
            BackendError: If the model is not loaded.
        """
        generator = self.generator
        for request in requests:
            try:
                for problem in problems_of(
                    request, self._config, mode=self._mode, think=self._think
                ):
                    generator.submit(problem)
            except (RequestError, PictureError, MathCanvasError) as error:
                self._ready.append(refused(request, error))
            else:
                self._asked[request.uid] = _Asked(request=request)

    def collect(self) -> list[GenerationResponse]:
        """Computes until at least one request is finished.

        Returns:
            The responses of all finished requests; empty only if nothing is pending.

        Raises:
            BackendError: If the memory is too small for several requests in a row, each one alone,
                or another error occurs. All pending requests are dropped then.
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
        """Answers one question, for notebooks.

        Loads the model if needed, on a GPU if there is one.

        Args:
            inputs: Texts and pictures (Pillow images, or files as `Path`) in reading order.
            sampling: Temperature, top_p, max_tokens (over all texts) and seed.
            system_prompt: Text that the model reads first.
            uid: Id of the question; with the seed, it determines all random numbers.

        Returns:
            The answer, with its texts and drawings.

        Raises:
            InputError: If there is no input, or an input is unreadable or too long.
            ConfigError: If `sampling` sets values that are not listed above.
            BackendError: If requests are pending, memory is short, or the network computes NaN.
            MathCanvasError: See `start`.
        """
        if others := unsupported(sampling, "n"):
            raise ConfigError(
                "sampling of reason()",
                found=", ".join(others),
                wanted="only temperature, top_p, max_tokens and seed",
                remedy="Remove it; for several answers, change the seed.",
            )
        self.start(device="cuda" if torch.cuda.is_available() else "cpu")
        self._check_idle("reason()")
        (answer,) = self.generator.run(
            [
                Problem(
                    uid=uid,
                    inputs=opened(inputs),
                    mode=self._mode,
                    seed=sampling.seed,
                    think=self._think,
                    system_prompt=system_prompt,
                    config=with_sampling(self._config, sampling),
                )
            ]
        )
        if (failure := failure_of(answer)) is None:
            return answer
        if failure.kind == "out_of_memory":
            raise self._broken(torch.OutOfMemoryError(failure.message))
        raise answer_error(f"BAGEL from {self._checkpoint}", failure)

    def stream(self, request: GenerationRequest) -> Iterator[Event]:
        """Answers one request, and yields its texts and drawings while they are made.

        Closing the iterator drops the answer.

        Args:
            request: Request for one sample, with encoded pictures.

        Yields:
            Events; the last one has the response, which may be a failure.

        Raises:
            BackendError: If no model is loaded, requests are pending, or the computation fails.
        """
        self._check_idle("stream()")
        generator = self.generator
        try:
            problem, *_ = problems_of(request, self._config, mode=self._mode, think=self._think)
            generator.submit(problem)
        except (RequestError, PictureError, MathCanvasError) as error:
            yield EndEvent(response=refused(request, error))
            return
        try:
            yield from follow(request, self._advance, partial(generator.progress, problem.uid))
        finally:
            generator.withdraw()

    def _check_idle(self, method: str) -> None:
        if self.num_pending:
            raise BackendError(
                method,
                found=f"{self.num_pending} pending requests",
                wanted="none",
                remedy="Collect their responses first.",
            )

    def _advance(self) -> list[Answer]:
        try:
            return self.generator.advance()
        except BaseException as error:
            self.generator.withdraw()
            self._asked.clear()
            if isinstance(error, Exception) and not isinstance(error, MathCanvasError):
                raise self._broken(error) from error
            raise

    def _broken(self, error: Exception) -> BackendError:
        return step_error(f"BAGEL from {self._checkpoint}", error)

    def close(self) -> None:
        """Frees the model; pending requests are dropped."""
        generator, self._generator, self._fingerprint = self._generator, None, None
        self._asked.clear()
        self._ready.clear()
        if generator is not None:
            generator.close()

    def _take(self, answer: Answer) -> None:
        uid, number = split_problem_uid(answer.uid)
        asked = self._asked[uid]
        asked.answers[number] = answer
        if len(asked.answers) == asked.request.sampling.n:
            del self._asked[uid]
            answers = [asked.answers[number] for number in sorted(asked.answers)]
            self._ready.append(self._checked(response_of(asked.request, answers)))

    def _checked(self, response: GenerationResponse) -> GenerationResponse:
        """Ends the run after several responses in a row that failed because of memory."""
        failure = response.failure
        is_short = failure is not None and failure.kind == "out_of_memory"
        self._num_short = self._num_short + 1 if is_short else 0
        if failure is not None and self._num_short >= MAX_SHORT:
            self.generator.withdraw()
            self._asked.clear()
            raise self._broken(torch.OutOfMemoryError(failure.message))
        return response


MAX_SHORT = 3
"""After so many requests in a row for which the memory is too small, the run ends."""


@dataclass(slots=True, kw_only=True)
class _Asked:
    """A request in progress, and its answers so far."""

    request: GenerationRequest
    answers: dict[int, Answer] = field(default_factory=dict)
