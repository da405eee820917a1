"""The engine process: runs vLLM's offline engine, receives requests, sends responses.

No other module here imports vllm. This process applies the chat template and decodes pictures while
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
from collections.abc import Collection, Mapping
from inspect import signature
from multiprocessing.connection import Connection
from typing import Any

from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.backends.gpus import share_of_gpus, visible_gpus
from mathcanvas_lightning.generation.backends.special_tokens import with_plain_text
from mathcanvas_lightning.generation.backends.vllm.contexts import (
    BagelPrompts,
    ContextText,
    check_architecture,
    find_bagel,
)
from mathcanvas_lightning.generation.backends.vllm.cpu import cpu_arguments
from mathcanvas_lightning.generation.backends.vllm.messages import (
    ContextRequest,
    ContextResult,
    EngineFailure,
    EngineRequest,
    EngineResult,
    EngineSettings,
    Ready,
    Withdrawal,
    failed,
)
from mathcanvas_lightning.generation.backends.vllm.watch import killed, watch
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
from mathcanvas_lightning.records.pictures import PictureError, decode_picture

logger = logging.getLogger(__name__)

GRACE_S = 15.0
"""Time for a regular shutdown after the parent has closed the pipe."""
GREEDY_BELOW = 1e-5
"""vLLM treats lower temperatures as 0."""


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
                connection.send(Ready(engine.window))
                is_ready.set()
                try:
                    _serve(engine, inbox, connection)
                except Exception as error:
                    cause = killed(engine.processes) if _is_dead(error) else ""
                    if cause:  # vLLM's own error does not contain it
                        raise RuntimeError(cause) from error
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
    engine: "_Engine",
    inbox: "queue.SimpleQueue[EngineRequest | Withdrawal | None]",
    connection: Connection,
) -> None:
    while True:
        while engine.is_idle or not inbox.empty():
            message = inbox.get()
            if message is None:
                return
            if isinstance(message, Withdrawal):
                engine.withdraw(message.uids)
                continue
            failure = engine.add(message)
            if failure is not None:
                connection.send(failed(message, failure))
        for result in engine.step():
            connection.send(result)


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
            arguments = cpu_arguments(arguments, os.environ)
        elif current_platform.is_cuda_alike() or current_platform.is_unspecified():
            gpus = share_of_gpus(visible_gpus(os.environ), settings.local_rank, settings.num_gpus)
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self._bagel = find_bagel(arguments)
        self._llm = LLM(**arguments)
        check_architecture(arguments, self._llm.model_config.hf_config.model_type)
        self.window: int = self._llm.model_config.max_model_len
        self._lora = LoRARequest("adapter", 1, settings.lora_path) if settings.lora_path else None
        self._special: set[str] | None = None
        self._requests: dict[str, GenerationRequest | ContextText] = {}
        self._num_added = 0
        self._closing = threading.Event()
        self.processes = multiprocessing.active_children()
        if self.processes:
            watched = (self.processes, self._closing)
            threading.Thread(target=watch, args=watched, daemon=True).start()

    @property
    def is_idle(self) -> bool:
        return not self._requests

    def add(self, request: EngineRequest) -> Failure | None:
        """Adds a request to the running batch; returns the failure if it cannot be added."""
        if isinstance(request, ContextRequest):
            return self._begin(ContextText(request))
        return self._begin(request)

    def step(self) -> list[EngineResult]:
        """Computes the next tokens; returns the results that are finished."""
        outputs = [output for output in self._llm.llm_engine.step() if output.finished]
        results: list[EngineResult] = []
        for output in outputs:
            request = self._requests.pop(output.request_id)
            if isinstance(request, GenerationRequest):
                results.append(read_result(request, output, self._bagel))
                continue
            if failure := _failure(output):
                results.append(failed(request.request, failure))
                continue
            taken = request.take(output, self.window)
            if isinstance(taken, ContextResult):
                results.append(taken)
            elif failure := self._begin(taken):
                results.append(failed(request.request, failure))
        return results

    def withdraw(self, uids: Collection[str]) -> None:
        """Drops requests."""
        numbers = [number for number, one in self._requests.items() if _uid(one) in uids]
        for number in numbers:
            del self._requests[number]
        self._llm.llm_engine.abort_request(numbers)

    def _begin(self, request: "GenerationRequest | ContextText") -> Failure | None:
        try:
            prompt = self._prompt(request)
            length = len(prompt.get("prompt_token_ids", ()))
            if length >= self.window:
                text = f"the prompt has {length} tokens, the window {self.window}"
                return Failure(kind="prompt_too_long", message=f"{text} including the answer")
            number = str(self._num_added)
            self._llm.llm_engine.add_request(
                number, prompt, self._sampling(request), lora_request=self._lora
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

    def _prompt(self, request: "GenerationRequest | ContextText") -> Any:
        if self._bagel is not None:
            return self._bagel.prompt(self._llm.renderer, request)
        if isinstance(request, ContextText):
            raise TypeError("only BAGEL writes texts after contexts of tokens and images")
        return self._render(request)

    def _sampling(self, request: "GenerationRequest | ContextText") -> Any:
        if isinstance(request, ContextText):
            return _sampling_params(request.sampling)
        more = {} if self._bagel is None else self._bagel.chat_sampling
        return _sampling_params(_chat_sampling(request) | more)

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
    return {"type": "image_pil", "image_pil": decode_picture(part).convert("RGB")}


def _sampling_params(values: Mapping[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(**values, output_kind=RequestOutputKind.FINAL_ONLY)


def _chat_sampling(request: GenerationRequest) -> dict[str, Any]:
    sampling = request.sampling
    return {
        "n": 1 if _is_greedy(sampling) else sampling.n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": None if _is_greedy(sampling) else request.seed,
        "stop": list(sampling.stop),
        "max_tokens": sampling.max_tokens,
        "structured_outputs": _guidance(sampling),
    }


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


def _failure(result: Any) -> Failure | None:
    failed_ones = [made for made in result.outputs if made.finish_reason in ("abort", "error")]
    if not failed_ones:
        return None
    message = f"vLLM aborted the answer: {failed_ones[0].finish_reason}"
    return Failure(kind="engine", message=message)


def read_result(
    request: GenerationRequest, result: Any, bagel: BagelPrompts | None = None
) -> GenerationResponse:
    """The response for a finished request of vLLM."""
    if failure := _failure(result):
        return GenerationResponse(uid=request.uid, failure=failure)
    outputs = tuple(
        Output(
            text=made.text if bagel is None else bagel.text(made),
            finish_reason=made.finish_reason,
            token_ids=tuple(made.token_ids),
        )
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


def _is_dead(error: Exception) -> bool:
    from vllm.v1.engine.exceptions import EngineDeadError

    return isinstance(error, EngineDeadError)


def _uid(request: "GenerationRequest | ContextText") -> str:
    return request.uid if isinstance(request, GenerationRequest) else request.request.uid


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
