"""The engine process: runs vLLM's offline engine, receives requests, sends responses.

The only module that imports vllm. This process applies the chat template and decodes pictures while
vLLM's core, its child process, computes. New requests join the running batch at once.
"""

import contextlib
import dataclasses
import difflib
import logging
import multiprocessing
import os
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from inspect import signature
from multiprocessing.connection import Connection, wait
from typing import Any

from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits
from mathcanvas_lightning.data.images.resize import decode_image
from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.backends.gpus import (
    CPU_CACHE_BYTES,
    share_of_gpus,
    visible_gpus,
)
from mathcanvas_lightning.generation.backends.special_tokens import with_plain_text
from mathcanvas_lightning.generation.requests import (
    Failure,
    GenerationRequest,
    GenerationResponse,
    Message,
    Output,
    Part,
    Sampling,
    Usage,
)
from mathcanvas_lightning.records.pictures import PictureError, failure_kind

logger = logging.getLogger(__name__)

GRACE_S = 15.0
"""Time for a regular shutdown after the parent has closed the pipe."""
NOTICE_S = 2.0
"""Time for vLLM to detect a failure of one of its processes and to report the cause."""
GREEDY_BELOW = 1e-5
"""vLLM treats lower temperatures as 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The first message to the engine."""

    arguments: dict[str, Any]
    """Arguments of `vllm.LLM`."""
    lora_path: str | None
    local_rank: int
    num_gpus: int
    """Number of GPUs that this engine needs."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Message of the engine: it accepts requests now."""


@dataclass(frozen=True, slots=True)
class EngineFailure:
    """The last message of an engine that cannot start or cannot continue."""

    error: str


def main(descriptor: int) -> None:
    """Runs the engine until the process at the other end closes the pipe.

    Args:
        descriptor: File descriptor of this end of the pipe.
    """
    connection = Connection(descriptor)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    is_ready = threading.Event()
    threading.Thread(target=_read, args=(connection, inbox, is_ready), daemon=True).start()
    settings = inbox.get()
    if settings is None:
        return
    try:
        with tempfile.TemporaryDirectory(prefix="mathcanvas-") as folder:
            os.environ["VLLM_RPC_BASE_PATH"] = folder  # sockets are deleted with the folder
            with contextlib.closing(_Engine(settings)) as engine:
                connection.send(Ready())
                is_ready.set()
                try:
                    _serve(engine, inbox, connection)
                except Exception as error:
                    killed = _killed(engine.processes) if _is_dead(error) else ""
                    if killed:  # vLLM's own error does not contain the cause
                        raise RuntimeError(killed) from error
                    raise
    except BrokenPipeError:
        pass  # the parent has ended
    except Exception as error:
        with contextlib.suppress(OSError):
            is_ours = isinstance(error, BackendError)
            connection.send(error if is_ours else EngineFailure(_text(error)))
        raise


def _read(
    connection: Connection, inbox: "queue.SimpleQueue[Any]", is_ready: threading.Event
) -> None:
    """Reads messages in a loop, so that neither process blocks because the other does not read."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        inbox.put(None)
        if is_ready.is_set():
            time.sleep(GRACE_S)
    finally:
        os.killpg(0, signal.SIGKILL)


def _serve(
    engine: "_Engine", inbox: "queue.SimpleQueue[GenerationRequest | None]", connection: Connection
) -> None:
    while True:
        while engine.is_idle or not inbox.empty():
            request = inbox.get()
            if request is None:
                return
            failure = engine.add(request)
            if failure is not None:
                connection.send(GenerationResponse(uid=request.uid, failure=failure))
        for response in engine.step():
            connection.send(response)


class _Engine:
    """Continuous batching over a `vllm.LLM`.

    Raises:
        BackendError: If the settings do not fit the machine or this version of vLLM.
    """

    def __init__(self, settings: EngineSettings) -> None:
        from vllm import LLM
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform

        arguments = dict(settings.arguments)
        _check_names(arguments)
        if current_platform.is_cpu():
            arguments.setdefault("enforce_eager", True)
            if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
                arguments.setdefault("kv_cache_memory_bytes", CPU_CACHE_BYTES)
        elif current_platform.is_cuda_alike() or current_platform.is_unspecified():
            gpus = share_of_gpus(visible_gpus(os.environ), settings.local_rank, settings.num_gpus)
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self._llm = LLM(**arguments)
        self._window: int = self._llm.model_config.max_model_len
        self._lora = LoRARequest("adapter", 1, settings.lora_path) if settings.lora_path else None
        self._special: set[str] | None = None
        self._requests: dict[str, GenerationRequest] = {}
        self._num_added = 0
        self._closing = threading.Event()
        self.processes = multiprocessing.active_children()
        if self.processes:
            watched = (self.processes, self._closing)
            threading.Thread(target=_watch, args=watched, daemon=True).start()

    @property
    def is_idle(self) -> bool:
        return not self._requests

    def add(self, request: GenerationRequest) -> Failure | None:
        """Adds a request to the running batch; returns the failure if it cannot be added."""
        try:
            prompt = self._render(request)
            num_tokens = len(prompt.get("prompt_token_ids", ()))
            if num_tokens >= self._window:
                text = f"the prompt has {num_tokens} tokens, the window {self._window}"
                return Failure(kind="prompt_too_long", message=f"{text} including the answer")
            number = str(self._num_added)
            self._llm.llm_engine.add_request(
                number, prompt, _sampling_params(request), lora_request=self._lora
            )
        except PictureError as error:
            return Failure(kind=error.kind, message=str(error))
        except Exception as error:  # templates and processors may raise anything
            if _is_dead(error):
                raise
            return Failure(kind="unsupported", message=_text(error))
        self._requests[number] = request
        self._num_added += 1
        return None

    def step(self) -> list[GenerationResponse]:
        """Computes the next tokens; returns the responses that are finished."""
        results = [result for result in self._llm.llm_engine.step() if result.finished]
        return [read_result(self._requests.pop(result.request_id), result) for result in results]

    def close(self) -> None:
        self._closing.set()
        self._llm.llm_engine.engine_core.shutdown()

    def _special_tokens(self) -> Collection[str]:
        """Spellings of the model's special tokens, which would act as such in a prompt."""
        if self._special is None:
            tokenizer: Any = self._llm.renderer.tokenizer
            added = getattr(tokenizer, "added_tokens_decoder", {}).values()
            self._special = {
                *getattr(tokenizer, "all_special_tokens", ()),
                *(token.content for token in added if token.special),
            }
        return self._special

    def _render(self, request: GenerationRequest) -> Any:
        """Renders the prompt like `LLM.chat`, but without a length limit."""
        from vllm.renderers import ChatParams
        from vllm.utils.mistral import is_mistral_tokenizer

        renderer = self._llm.renderer
        tokenizing = dataclasses.replace(
            renderer.default_chat_tok_params, max_total_tokens=None, add_special_tokens=False
        )
        options = {
            "add_generation_prompt": True,
            "continue_final_message": False,
            "tools": None,
            "tokenize": is_mistral_tokenizer(renderer.tokenizer),
            **request.template_options,
        }
        chat = ChatParams(chat_template=self._llm.chat_template, chat_template_kwargs=options)
        special = self._special_tokens()
        messages: Any = [_chat_message(message, special) for message in request.messages]
        _, (prompt,) = renderer.render_chat([messages], chat, tokenizing)
        return prompt


def _chat_message(message: Message, special: Collection[str] = ()) -> dict[str, Any]:
    message = with_plain_text(message, special)
    if all(isinstance(part, str) for part in message.parts):
        return {"role": message.role, "content": message.text}
    return {"role": message.role, "content": [_chat_part(part) for part in message.parts]}


def _chat_part(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    try:
        image = decode_image(part.data, ImageLimits()).convert("RGB")
    except ImageError as error:
        raise PictureError(failure_kind(error), f"{part.place}: {error}") from None
    return {"type": "image_pil", "image_pil": image}


def _sampling_params(request: GenerationRequest) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = request.sampling
    return SamplingParams(
        n=1 if _is_greedy(sampling) else sampling.n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        seed=None if _is_greedy(sampling) else request.seed,
        stop=list(sampling.stop),
        max_tokens=sampling.max_tokens,
        structured_outputs=_guidance(sampling),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _guidance(sampling: Sampling) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    if sampling.json_schema is not None:
        return StructuredOutputsParams(json=sampling.json_schema)
    if sampling.choice is not None:
        return StructuredOutputsParams(choice=list(sampling.choice))
    if sampling.regex is not None:
        return StructuredOutputsParams(regex=sampling.regex)
    return None


def _is_greedy(sampling: Sampling) -> bool:
    """Whether all n answers are equal; vLLM then generates one and refuses n > 1."""
    return sampling.temperature < GREEDY_BELOW


def read_result(request: GenerationRequest, result: Any) -> GenerationResponse:
    """The response for a finished request of vLLM."""
    failed = [made for made in result.outputs if made.finish_reason in ("abort", "error")]
    if failed:
        message = f"vLLM aborted the answer: {failed[0].finish_reason}"
        failure = Failure(kind="engine", message=message)
        return GenerationResponse(uid=request.uid, failure=failure)
    outputs = tuple(
        Output(text=made.text, finish_reason=made.finish_reason, token_ids=tuple(made.token_ids))
        for made in result.outputs
    )
    usage = Usage(
        prompt_tokens=len(result.prompt_token_ids or ()),
        completion_tokens=sum(len(output.token_ids) for output in outputs),
    )
    if _is_greedy(request.sampling):
        outputs *= request.sampling.n  # computed once, so its tokens count once
    return GenerationResponse(uid=request.uid, outputs=outputs, usage=usage)


def _check_names(arguments: dict[str, Any]) -> None:
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    known |= signature(LLM).parameters.keys() - {"kwargs"}
    for name in sorted(arguments.keys() - known):
        close = difflib.get_close_matches(name, known, n=3)
        raise BackendError(
            f"engine_options.{name}",
            found="an unknown argument for this version of vLLM",
            wanted=f"one of its engine arguments, such as {', '.join(close or sorted(known)[:3])}",
            remedy="Correct or remove it; `vllm serve --help=all` lists all (with dashes).",
        )


def _watch(children: Sequence[Any], closing: threading.Event) -> None:
    """Kills all processes if one of vLLM's processes dies; vLLM would wait for it forever."""
    wait([child.sentinel for child in children])
    if not closing.wait(timeout=NOTICE_S):
        logger.error("RuntimeError: %s", _ended(children))
        os.killpg(0, signal.SIGKILL)


def _killed(children: Sequence[Any]) -> str:
    """Error message if a signal ended one of the processes, else ""."""
    for child in children:
        child.join(NOTICE_S)
    is_killed = any(child.exitcode is not None and child.exitcode < 0 for child in children)
    return _ended(children) if is_killed else ""


def _ended(children: Sequence[Any]) -> str:
    ended = ", ".join(f"{c.name}: {c.exitcode}" for c in children if c.exitcode is not None)
    return f"vLLM's core ended unexpectedly (exit status of {ended})"


def _is_dead(error: Exception) -> bool:
    from vllm.v1.engine.exceptions import EngineDeadError

    return isinstance(error, EngineDeadError)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
