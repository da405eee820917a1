"""Chat completions in the dialect of a server, with as many samples as a request wants."""

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from mathcanvas_lightning.generation.backends.server.api import chat_body, read_response
from mathcanvas_lightning.generation.backends.server.client import (
    AfterFailure,
    RetryPolicy,
    ServerClient,
)
from mathcanvas_lightning.generation.backends.server.dialect import LIMIT, NEW_LIMIT, Dialect
from mathcanvas_lightning.generation.backends.server.failures import (
    LIMIT_TOO_HIGH,
    TOO_LONG,
    RequestFailedError,
)
from mathcanvas_lightning.generation.requests import (
    GenerationRequest,
    GenerationResponse,
    Usage,
)

SEEDS = 2**31


@dataclass(slots=True, kw_only=True)
class Chat:
    """Sends chat completion requests to one server; used in the event loop of its client."""

    client: ServerClient
    model: str
    """Name of the model on the server."""
    extra: Mapping[str, Any]
    """Extra fields of all requests."""
    slots: asyncio.Semaphore
    """Limits the number of requests in flight."""
    after_failure: AfterFailure
    """Called after each failed try."""
    dialect: Dialect = field(default_factory=Dialect)
    """The fields that the server does not understand, as far as they are known."""

    async def test(self, request: GenerationRequest) -> None:
        """Sends a request for one sample at once, ahead of those that wait, without retries.

        Raises:
            RequestFailedError: If it is not answered.
        """
        request = replace(request, sampling=replace(request.sampling, n=1))
        retries = replace(self.client.retries, max_retries=0)
        await self._send(request, self._body(request, 0), self.dialect, retries)

    async def answer(self, request: GenerationRequest) -> GenerationResponse:
        """Answers a request.

        Args:
            request: The request.

        Returns:
            `sampling.n` outputs, or a failure if the model gave no text.

        Raises:
            PictureError: If a picture cannot be read.
            RequestFailedError: If no try succeeded.
        """
        first = await self._call(request)
        num_wanted, num_found = request.sampling.n, len(first.outputs)
        if first.failure is not None or num_found == num_wanted:
            return first
        if self._is_greedy(request):
            return replace(first, outputs=first.outputs * num_wanted)
        # The server does not know `n`: ask for the others one at a time, with other seeds.
        others = await asyncio.gather(
            *(self._call(request, sample) for sample in range(num_found, num_wanted)),
            return_exceptions=True,
        )
        responses = [first]
        for other in others:
            if isinstance(other, BaseException):
                raise other
            responses.append(other)
        return _merged(request, responses)

    async def _call(self, request: GenerationRequest, sample: int = 0) -> GenerationResponse:
        """Sends one request: for all samples, or for the sample with a number above 0."""
        async with self.slots:
            body, retries = self._body(request, sample), self.client.retries
            try:
                return await self._send(request, body, self.dialect, retries)
            except RequestFailedError as failed:
                if failed.kind not in (TOO_LONG, LIMIT_TOO_HIGH):
                    raise
            unlimited = {k: v for k, v in body.items() if k not in (LIMIT, NEW_LIMIT)}
            return await self._send(request, unlimited, self.dialect, retries)

    def _body(self, request: GenerationRequest, sample: int) -> dict[str, Any]:
        streaming: dict[str, Any] = {}
        if self.client.retries.idle_timeout_s is not None:
            streaming = {"stream": True, "stream_options": {"include_usage": True}}
        body = chat_body(request, self.model, {**streaming, **self.extra})
        if not body.get("stream"):
            body.pop("stream_options", None)
        if sample or self._is_greedy(request):
            body.pop("n", None)
        if sample and isinstance(body.get("seed"), int):
            body["seed"] = (body["seed"] + sample) % SEEDS
        return body

    def _is_greedy(self, request: GenerationRequest) -> bool:
        """Whether all samples are equal: one is enough, and vLLM refuses to make more."""
        return bool(self.extra.get("temperature", request.sampling.temperature) == 0)

    async def _send(
        self,
        request: GenerationRequest,
        body: Mapping[str, Any],
        dialect: Dialect,
        retries: RetryPolicy,
    ) -> GenerationResponse:
        """Sends a body; if it is refused, without the fields that the server may not understand."""
        is_strict = request.sampling.guide_strictly
        sent = dialect.translate(body, is_strict=is_strict)
        try:
            return await self.client.ask(
                "/chat/completions",
                partial(read_response, request),
                body=json.dumps(sent).encode(),
                retries=retries,
                after_failure=self.after_failure,
            )
        except RequestFailedError as failed:
            for other in dialect.alternatives(failed, sent, is_strict=is_strict):
                with contextlib.suppress(RequestFailedError):
                    response = await self._send(request, body, other, retries)
                    self.dialect.learn(other, failed)
                    return response
            raise


def _merged(
    request: GenerationRequest, responses: Sequence[GenerationResponse]
) -> GenerationResponse:
    """One response with the outputs of all; or the first failure."""
    for response in responses:
        if response.failure is not None:
            return response
    outputs = [output for response in responses for output in response.outputs]
    return GenerationResponse(
        uid=request.uid,
        outputs=tuple(outputs[: request.sampling.n]),
        usage=Usage(
            prompt_tokens=sum(response.usage.prompt_tokens for response in responses),
            completion_tokens=sum(response.usage.completion_tokens for response in responses),
        ),
    )
