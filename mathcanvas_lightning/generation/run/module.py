"""GenerationModule: submits requests to a backend in Lightning's predict loop."""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from mathcanvas_lightning.common.exits import exit_on_signals
from mathcanvas_lightning.generation.backends.base import GenerationBackend, drop_pending
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
"""Options of a Trainer that only predicts; backends have their own processes and devices."""
POLL_S = 1.0


class RequestBatch:
    """Requests, and failures of records from which no request could be built.

    Not a dataclass: Lightning searches dataclasses for tensors, and fails if they contain frozen
    ones.

    Args:
        requests: Requests to answer.
        failures: Responses that go directly to the callbacks.
        is_last: Whether this is the last batch.
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
    """Result of one step of the loop; not a list, for the same reason as `RequestBatch`.

    Args:
        responses: Responses in the order in which they finished.
    """

    def __init__(self, responses: Iterable[GenerationResponse] = ()) -> None:
        self._responses = tuple(responses)

    def __iter__(self) -> Iterator[GenerationResponse]:
        return iter(self._responses)

    def __len__(self) -> int:
        return len(self._responses)


class ResponseCallback(Callback):
    """A callback that receives each response when it is ready."""

    comes_last: ClassVar[bool] = False
    """Whether the callback is called after all others."""
    keeps_drawings: ClassVar[bool] = False
    """Whether the callback writes drawings to files; if none does, the journal keeps them."""

    def on_responses(
        self, trainer: Trainer, pl_module: "GenerationModule", exchanges: Sequence[Exchange]
    ) -> None:
        """Called for new responses; each response is passed exactly once.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            exchanges: One or more responses with their requests.
        """


class GenerationModule(LightningModule):
    """Passes requests to a backend and its responses to the callbacks.

    A step submits its batch, then waits only until the backend has room again. So a step may return
    responses to earlier batches, and the backend never idles between batches. The last step waits
    for all responses.

    Args:
        backend: Answers the requests. It is started with the first request and closed at the end
            of the run, also after an error.
        sampling: Sampling for all requests; None keeps the sampling of each request.
    """

    def __init__(self, backend: GenerationBackend, sampling: Sampling | None = Sampling()) -> None:
        super().__init__()
        self.backend = backend
        self.sampling = sampling
        self.start_s = 0.0
        """Seconds that the backend took to start, in this run."""
        self._asked: dict[str, GenerationRequest] = {}

    def configure_callbacks(self) -> list[Callback]:
        """Adds the callback that closes the backend.

        Returns:
            One callback.
        """
        return [_CloseBackend()]

    def predict_step(
        self, batch: RequestBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> Responses:
        """Submits a batch and collects finished responses.

        Args:
            batch: Requests and failures.
            batch_idx: Index of the batch.
            dataloader_idx: Index of its loader.

        Returns:
            Responses to this batch or to earlier ones.
        """
        responses = list(batch.failures)
        self._notify(batch.failures)
        for request in batch.requests:
            self._submit(request)
            responses += self._collect(self.backend.max_pending)
        if batch.is_last or batch_idx + 1 >= self.trainer.num_predict_batches[dataloader_idx]:
            responses += self._collect(1)
        return Responses(responses)

    def on_predict_start(self) -> None:
        """Resets the clock of the start."""
        self.start_s = 0.0

    def on_predict_epoch_end(self) -> None:
        """Waits for the responses to all requests."""
        self._collect(1)

    def _submit(self, request: GenerationRequest) -> None:
        if self.sampling is not None:
            request = replace(request, sampling=self.sampling)
        started = time.monotonic()
        self.backend.start(local_rank=self.trainer.local_rank, device=str(self.device))
        self.start_s += time.monotonic() - started
        if not self._asked:
            drop_pending(self.backend)  # of a call of generate() that was left early
        self._asked[request.uid] = request
        self.backend.submit([request])

    def _collect(self, max_pending: int) -> list[GenerationResponse]:
        """Collects responses until fewer than `max_pending` requests are pending."""
        collected: list[GenerationResponse] = []
        while self.backend.num_pending >= max_pending:
            ready = self.backend.collect()
            self._notify(ready)
            collected += ready
        return collected

    def _notify(self, responses: Sequence[GenerationResponse]) -> None:
        exchanges = [
            Exchange(response=response, request=self._asked.pop(response.uid, None))
            for response in responses
        ]
        callbacks = [c for c in callbacks_of(self.trainer) if isinstance(c, ResponseCallback)]
        for callback in sorted(callbacks, key=lambda c: c.comes_last) if exchanges else ():
            callback.on_responses(self.trainer, self, exchanges)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The callbacks of a Trainer, in order."""
    found: list[Callback] = vars(trainer)["callbacks"]  # the attribute has no type annotation
    return found


class _CloseBackend(Callback):
    """Closes the backend at the end of the run, also after an exception or SIGTERM."""

    def __init__(self) -> None:
        self._signals = ExitStack()
        self._is_closed = threading.Event()
        self._parent = os.getppid()  # before ranks meet; the first one may end just after that

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Turns SIGTERM into an exception, so that the backend is closed before the process exits.

        Child ranks exit when their parent process exits.
        """
        self._signals.enter_context(exit_on_signals(signal.SIGTERM))
        if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher) and trainer.local_rank:
            threading.Thread(target=self._exit_with_parent, daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Closes the backend after a successful run."""
        self._close(pl_module)

    def on_exception(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Closes the backend after a failed run, for which Lightning does not call teardown."""
        try:
            self._close(pl_module)
        finally:
            launcher = trainer.strategy.launcher
            if isinstance(launcher, _SubprocessScriptLauncher):
                launcher.kill(signal.SIGTERM)  # stops the other ranks, which would continue

    def _exit_with_parent(self) -> None:
        """Sends SIGTERM to this process when its parent has ended."""
        while not self._is_closed.wait(POLL_S):
            if os.getppid() != self._parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _close(self, module: LightningModule) -> None:
        assert isinstance(module, GenerationModule)
        self._is_closed.set()
        try:
            module.backend.close()
        finally:
            self._signals.close()
