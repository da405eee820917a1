"""The caller's side of an engine process: requests go in, results come out in any order."""

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.backends.vllm.diagnosis import find_cause, find_remedy
from mathcanvas_lightning.generation.backends.vllm.messages import (
    EngineFailure,
    EngineRequest,
    EngineResult,
    EngineSettings,
    Ready,
    Withdrawal,
)
from mathcanvas_lightning.generation.backends.vllm.process import EngineProcess, ProcessEndedError
from mathcanvas_lightning.generation.requests import GenerationRequest


class EngineClient:
    """A loaded model in an engine process, which ends with this process.

    Args:
        target: `module:function` of the engine.
        settings: Settings of the engine.
        environment: All environment variables of the engine.
        name: Name of the engine, for errors.

    Raises:
        BackendError: If the model can't be loaded, with the cause and a remedy.
    """

    def __init__(
        self, target: str, settings: EngineSettings, environment: Mapping[str, str], *, name: str
    ) -> None:
        self._name = name
        self._error: BackendError | None = None
        self._pending: Counter[str] = Counter()
        self._process = EngineProcess(target, environment)
        try:
            self._send(settings)
            ready = self._receive()
            assert isinstance(ready, Ready), ready
        except BaseException:
            self._process.close()
            raise
        self.window = ready.window
        """Maximum length of a prompt with its answer, in tokens."""

    @property
    def num_pending(self) -> int:
        """Number of requests that were submitted but not yet collected or withdrawn."""
        return self._pending.total()

    def check(self) -> None:
        """Checks that the engine has not failed.

        Raises:
            BackendError: If it has.
        """
        if self._error is not None:
            raise self._error

    def submit(self, requests: Sequence[EngineRequest]) -> None:
        """Adds requests to the running batch.

        Args:
            requests: Requests for chats or, with BAGEL, for contexts.

        Raises:
            BackendError: If the engine has ended.
        """
        for request in requests:
            if isinstance(request, GenerationRequest):
                request = replace(request, record={})  # the record may contain large pictures
            self._send(request)
            self._pending[request.uid] += 1

    def collect(self, *, wait: bool = True) -> list[EngineResult]:
        """Takes all results that are ready.

        Args:
            wait: Whether to wait for the first one if a request is pending.

        Returns:
            The results; with `wait` empty only if nothing is pending.

        Raises:
            BackendError: If the engine has ended; earlier calls return its last results.
        """
        results: list[EngineResult] = []
        while wait and self.num_pending and not results:
            self._take(results)
        with contextlib.suppress(*([BackendError] if results else [])):  # the next call raises it
            while self.num_pending and self._process.has_message:
                self._take(results)
        return results

    def withdraw(self, uids: Collection[str]) -> None:
        """Drops pending requests; no result comes for them.

        Args:
            uids: Uids of pending requests; later requests must have other uids, because a result
                may be on its way.

        Raises:
            BackendError: If the engine has ended.
        """
        self._send(Withdrawal(tuple(uids)))
        for uid in uids:
            del self._pending[uid]

    def close(self) -> None:
        """Stops the engine and all its processes; may be repeated."""
        self._process.close()

    def _take(self, results: list[EngineResult]) -> None:
        result = self._receive()
        if self._pending[result.uid]:  # a withdrawn one may have been on its way
            self._pending[result.uid] -= 1
            results.append(result)

    def _send(self, message: Any) -> None:
        self.check()
        try:
            self._process.send(message)
        except ProcessEndedError:
            raise self._broken("") from None

    def _receive(self) -> Any:
        self.check()
        try:
            message = self._process.receive()
        except ProcessEndedError:
            raise self._broken("") from None
        if isinstance(message, BackendError):
            self._process.close()
            raise message
        if isinstance(message, EngineFailure):
            raise self._broken(message.error)
        return message

    def _broken(self, error: str) -> BackendError:
        process = self._process
        process.close()
        ended = f"its process ended with exit status {process.status}"
        cause = find_cause(error, process.lines) or ended
        self._error = BackendError(
            self._name,
            found=cause,
            wanted="an engine that runs",
            remedy=find_remedy(cause),
        )
        return self._error
