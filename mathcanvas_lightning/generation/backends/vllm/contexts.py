"""Texts after contexts of BAGEL: what vLLM computes for a request, and the result of it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Any

from mathcanvas_lightning.data.images.resize import on_white
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.backends.vllm.messages import ContextRequest, ContextResult
from mathcanvas_lightning.generation.requests import GenerationRequest, Message
from mathcanvas_lightning.records.pictures import decode_picture
from mathcanvas_lightning.vllm_bagel import ARCHITECTURE, PLUGIN
from mathcanvas_lightning.vllm_bagel.blocks import ContextPart, engine_prompt
from mathcanvas_lightning.vllm_bagel.directory import read_directory
from mathcanvas_lightning.vllm_bagel.pictures import PictureRules

SEED_BITS = 31


@dataclass(frozen=True, slots=True)
class ContextText:
    """A context request in progress: first the text, then the action after its end token."""

    request: ContextRequest
    written: ContextResult | None = None
    """The text, while the action is computed."""

    @property
    def context(self) -> tuple[ContextPart, ...]:
        """What the model reads."""
        request, written = self.request, self.written
        if written is None:
            return request.context
        return (*request.context, (*written.token_ids, request.end_id))

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of `vllm.SamplingParams`."""
        request, is_action = self.request, self.written is not None
        is_greedy = request.temperature == 0
        return {
            "temperature": request.temperature,
            "top_p": request.top_p,
            # The action has its own random number.
            "seed": None if is_greedy else (request.seed + is_action) % 2**SEED_BITS,
            "max_tokens": 1 if is_action else request.max_tokens,
            "ignore_eos": True,
            "stop_token_ids": [] if is_action else [request.end_id],
            "logprobs": 0 if request.wants_logprobs else None,
            "detokenize": False,
        }

    def take(self, output: Any, window: int) -> "ContextResult | ContextText":
        """Takes vLLM's output.

        Args:
            output: A finished RequestOutput.
            window: The engine's window.

        Returns:
            The result; or the request in progress, if the action is still to be computed.
        """
        [made] = output.outputs
        ids = tuple(made.token_ids)
        pairs = zip(ids, made.logprobs or (), strict=False)  # none if they were not wanted
        logprobs = tuple(row[token].logprob for token, row in pairs)
        if self.written is not None:
            logprobs = self.written.logprobs + logprobs
            return replace(self.written, action_id=ids[0], logprobs=logprobs)
        is_ended = ids[-1] == self.request.end_id
        num_context = len(output.prompt_token_ids)
        result = ContextResult(
            uid=self.request.uid,
            token_ids=ids[:-1] if is_ended else ids,
            finish_reason="stop" if is_ended else "length",
            logprobs=logprobs,
            num_context_tokens=num_context,
            num_cached_tokens=output.num_cached_tokens or 0,
        )
        if is_ended and self.request.wants_action and num_context + len(ids) < window:
            return replace(self, written=result)
        return result


class BagelPrompts:
    """Makes prompts for BAGEL's model in vLLM.

    Args:
        path: BAGEL's directory.
        picture_options: vLLM's `mm_processor_kwargs`.
    """

    def __init__(self, path: str, picture_options: Mapping[str, Any]) -> None:
        directory = read_directory(path)
        self._pad = directory.pad
        self._tokenizer = TextTokenizer(path)
        self._rules = directory.picture_rules(picture_options)

    @property
    def chat_sampling(self) -> dict[str, Any]:
        """Arguments of `vllm.SamplingParams` for the answer in a chat: one text of BAGEL."""
        return {
            "ignore_eos": True,  # of the configuration, which may be another token
            "stop_token_ids": [self._tokenizer.special.eos],
            "skip_special_tokens": False,
        }

    def text(self, made: Any) -> str:
        """The text of vLLM's CompletionOutput, decoded as in the native generator."""
        if isinstance(made.stop_reason, str):  # vLLM has cut it at a stop text
            return str(made.text).strip()
        eos = self._tokenizer.special.eos
        return self._tokenizer.decode([one for one in made.token_ids if one != eos]).strip()

    def prompt(self, renderer: Any, request: GenerationRequest | ContextText) -> Any:
        """The prompt of a request, with all image tokens.

        Args:
            renderer: Renderer of the engine.
            request: A chat or a context.

        Raises:
            PictureError: If a picture is unreadable.
            InputError: If a picture is too large, or there is no input.
        """
        if isinstance(request, ContextText):
            context = request.context
        else:
            context = understanding_context(request.messages, self._tokenizer, self._rules)
        # The window is checked later, with a better message.
        tokenizing = replace(renderer.default_cmpl_tok_params, max_total_tokens=None)
        [prompt] = renderer.render_cmpl([engine_prompt(context, self._pad)], tokenizing)
        return prompt


def find_bagel(arguments: Mapping[str, Any]) -> BagelPrompts | None:
    """What makes the prompts if the engine runs BAGEL by our plugin; else None.

    Args:
        arguments: Arguments of `vllm.LLM`.

    Raises:
        BackendError: If vLLM would not find the plugin.
    """
    overrides = arguments.get("hf_overrides")
    if not isinstance(overrides, Mapping) or overrides.get("architectures") != [ARCHITECTURE]:
        return None
    allowed = os.environ.get("VLLM_PLUGINS")
    names = {one.name for one in entry_points(group="vllm.general_plugins")}
    if PLUGIN not in names or (allowed is not None and PLUGIN not in allowed.split(",")):
        raise BackendError(
            "vLLM's plugins",
            found=f"{', '.join(sorted(names)) or 'none'}; VLLM_PLUGINS is {allowed}",
            wanted=f"{PLUGIN}, the plugin of this package",
            remedy="Install this package again (pip install -e .), and add the plugin to "
            "VLLM_PLUGINS if that is set.",
        )
    return BagelPrompts(arguments["model"], arguments.get("mm_processor_kwargs") or {})


def check_architecture(arguments: Mapping[str, Any], model_type: str) -> None:
    """Refuses vLLM's own BAGEL unless the user asks for it.

    Args:
        arguments: Arguments of `vllm.LLM`.
        model_type: Type of the loaded model.

    Raises:
        BackendError: If a hub name led to vLLM's own BAGEL.
    """
    overrides = arguments.get("hf_overrides") or {}
    is_wanted = not isinstance(overrides, Mapping) or "architectures" in overrides
    if model_type == "bagel" and not is_wanted:
        raise BackendError(
            f"model_path {arguments['model']}",
            found="the hub name of a BAGEL, which vLLM's own, different model would run",
            wanted="the folder of the checkpoint",
            remedy=f"hf download {arguments['model']} --local-dir FOLDER, and set the folder.",
        )


def understanding_context(
    messages: Sequence[Message], tokenizer: TextTokenizer, rules: PictureRules
) -> tuple[ContextPart, ...]:
    """A conversation as BAGEL reads it in the mode understanding, like the native generator.

    Args:
        messages: The conversation. System messages come first; empty texts are skipped.
        tokenizer: BAGEL's tokenizer.
        rules: How pictures become blocks.

    Returns:
        The context with the start token of the answer.

    Raises:
        PictureError: If a picture is unreadable.
        InputError: If a picture is too large, or there is no input.
    """
    special = tokenizer.special
    opening = "\n".join(message.text for message in messages if message.role == "system")
    parts = [part for message in messages if message.role != "system" for part in message.parts]
    context: list[ContextPart] = []
    for part in (opening, *parts):
        if not isinstance(part, str):
            context.append(rules.vit_block(on_white(decode_picture(part))))
        elif part.strip():
            context.append((special.bos, *tokenizer.encode(part.strip()), special.eos))
    if not context:
        raise InputError(
            "a conversation",
            found="no input",
            wanted="a text that is not empty, or a picture",
            remedy="Add a question.",
        )
    return (*context, (special.bos,))
