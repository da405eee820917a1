"""GenerationModule: the predict loop over a backend."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from mathcanvas_lightning.generation.backends.base import GenerationBackend
from mathcanvas_lightning.generation.requests import (
    Exchange,
    GenerationRequest,
    GenerationResponse,
    Sampling,
)

QUIET_TRAINER: Mapping[str, Any] = {
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}
"""Options of a Trainer that only answers; backends bring their own processes and devices."""


POLL_S = 1.0


class RequestBatch:
    """Some requests, and the failures of records that could not be made into requests.

    No dataclass: Lightning looks into those for tensors, and refuses frozen ones within.

    Args:
        requests: To be asked.
        failures: To be handed on as they are.
        is_last: Whether no other batch follows.
    """

    def __init__(
        self,
        requests: Iterable[GenerationRequest],
        failures: Iterable[GenerationResponse] = (),
        *,
        is_last: bool = False,
    ) -> None:
        self.requests = tuple(requests)
        self.failures = tuple(failures)
        self.is_last = is_last


class Responses:
    """What a step of the loop returns; no list, for the same reason.

    Args:
        responses: In the order they got ready.
    """

    def __init__(self, responses: Iterable[GenerationResponse] = ()) -> None:
        self._responses = tuple(responses)

    def __iter__(self) -> Iterator[GenerationResponse]:
        return iter(self._responses)

    def __len__(self) -> int:
        return len(self._responses)


class ResponseCallback(Callback):
    """A callback that is told of responses as they come."""

    comes_last: ClassVar[bool] = False
    """Whether it is told after all others."""

    def on_responses(
        self, trainer: Trainer, pl_module: "GenerationModule", exchanges: Sequence[Exchange]
    ) -> None:
        """Called with some responses and their requests, as they get ready; each is given once.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            exchanges: At least one.
        """


class GenerationModule(LightningModule):
    """Hands requests to a backend and its responses to the callbacks, without a barrier.

    A step submits a batch and waits only while the backend has more than it needs to be busy, so
    what a step returns need not be answers to its own batch; the last step waits for all.

    Args:
        backend: What answers. Started with the first request, ended with the run, however that
            ends.
        sampling: Of all requests; None leaves each request its own.
    """

    def __init__(self, backend: GenerationBackend, sampling: Sampling | None = Sampling()) -> None:
        super().__init__()
        self.backend = backend
        self.sampling = sampling
        self._asked: dict[str, GenerationRequest] = {}

    def configure_callbacks(self) -> list[Callback]:
        """Adds what ends the backend.

        Returns:
            One callback.
        """
        return [_EndBackend()]

    def predict_step(
        self, batch: RequestBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> Responses:
        """Submits a batch and takes what has become ready.

        Args:
            batch: What to ask.
            batch_idx: Of this batch.
            dataloader_idx: Of its loader.

        Returns:
            Responses to this batch or earlier ones.
        """
        responses = list(batch.failures)
        self._hand_on(batch.failures)
        for request in batch.requests:
            self._submit(request)
            responses += self._collect(self.backend.max_pending)
        if batch.is_last or batch_idx + 1 >= self.trainer.num_predict_batches[dataloader_idx]:
            responses += self._collect(1)
        return Responses(responses)

    def on_predict_epoch_end(self) -> None:
        """Waits for the answers to all that was asked."""
        self._collect(1)

    def _submit(self, request: GenerationRequest) -> None:
        if self.sampling is not None:
            request = replace(request, sampling=self.sampling)
        self.backend.start(local_rank=self.trainer.local_rank, device=str(self.device))
        self._asked[request.uid] = request
        self.backend.submit([request])

    def _collect(self, max_pending: int) -> list[GenerationResponse]:
        """Collects until fewer than so many requests are pending."""
        collected: list[GenerationResponse] = []
        while self.backend.num_pending >= max_pending:
            ready = self.backend.collect()
            self._hand_on(ready)
            collected += ready
        return collected

    def _hand_on(self, responses: Sequence[GenerationResponse]) -> None:
        exchanges = [
            Exchange(response=response, request=self._asked.pop(response.uid, None))
            for response in responses
        ]
        told = [c for c in callbacks_of(self.trainer) if isinstance(c, ResponseCallback)]
        for callback in sorted(told, key=lambda c: c.comes_last) if exchanges else ():
            callback.on_responses(self.trainer, self, exchanges)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The callbacks of a Trainer, in order."""
    found: list[Callback] = vars(trainer)["callbacks"]  # which Lightning declares nowhere
    return found


class _EndBackend(Callback):
    """Closes the backend when the run ends: well, by an exception, or by SIGTERM."""

    def __init__(self) -> None:
        self._signals = ExitStack()
        self._is_closed = threading.Event()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Makes SIGTERM an exception, so that all is put in order before the process ends.

        A rank that another one started ends with that one, however that ends.
        """
        self._signals.enter_context(ending_on(signal.SIGTERM))
        if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher) and trainer.local_rank:
            threading.Thread(target=self._end_with, args=(os.getppid(),), daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """The run has ended well."""
        self._close(pl_module)

    def on_exception(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """The run has ended otherwise; Lightning calls no teardown then."""
        try:
            self._close(pl_module)
        finally:
            launcher = trainer.strategy.launcher
            if isinstance(launcher, _SubprocessScriptLauncher):
                launcher.kill(signal.SIGTERM)  # the other ranks, which would go on alone

    def _end_with(self, parent: int) -> None:
        """Ends this process in order when its parent has ended."""
        while not self._is_closed.wait(POLL_S):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _close(self, module: LightningModule) -> None:
        assert isinstance(module, GenerationModule)
        self._is_closed.set()
        try:
            module.backend.close()
        finally:
            self._signals.close()


@contextmanager
def ending_on(*numbers: int) -> Iterator[None]:
    """Makes signals exceptions for a while, so that all is put in order before the process ends.

    Args:
        numbers: Of the signals; the exit status tells which, as shells expect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, _exit_on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise SystemExit(128 + number)
