"""Texts after contexts, without vLLM: sampling, the action, and conversations as contexts."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.generation.backends.base import BackendError
from mathcanvas_lightning.generation.backends.vllm import contexts
from mathcanvas_lightning.generation.backends.vllm.contexts import (
    ContextText,
    check_architecture,
    find_bagel,
    understanding_context,
)
from mathcanvas_lightning.generation.backends.vllm.messages import ContextRequest, ContextResult
from mathcanvas_lightning.generation.requests import Message
from mathcanvas_lightning.records.pictures import Picture, PictureError
from mathcanvas_lightning.vllm_bagel import ARCHITECTURE
from mathcanvas_lightning.vllm_bagel.blocks import ImageBlock
from mathcanvas_lightning.vllm_bagel.pictures import PictureRules
from tests.conftest import png
from tests.generation.drawing import VAE_TRANSFORM, VIT_TRANSFORM, parts

MODEL, _, TOKENIZER = parts()
SPECIAL = TOKENIZER.special
RULES = PictureRules(
    geometry=MODEL.config.geometry,
    special=SPECIAL,
    vae_transform=VAE_TRANSFORM,
    vit_transform=VIT_TRANSFORM,
)
END, WINDOW = 9, 20
REQUEST = ContextRequest(
    uid="a", context=((1, 2),), end_id=END, max_tokens=5, wants_action=True, wants_logprobs=True
)


def output(*ids: int, prompt: int = 2) -> Any:
    """vLLM's output; the logprob of a token is minus its id."""
    logprobs = [{token: SimpleNamespace(logprob=-token)} for token in ids]
    made = SimpleNamespace(token_ids=list(ids), logprobs=logprobs)
    return SimpleNamespace(outputs=[made], prompt_token_ids=[0] * prompt, num_cached_tokens=1)


def test_text_and_action() -> None:
    text = ContextText(REQUEST)
    assert text.context == ((1, 2),)
    assert (text.sampling["max_tokens"], text.sampling["stop_token_ids"]) == (5, [END])
    action = text.take(output(3, 4, END), WINDOW)
    assert isinstance(action, ContextText)
    assert action.context == ((1, 2), (3, 4, END))
    assert (action.sampling["max_tokens"], action.sampling["stop_token_ids"]) == (1, [])
    assert action.take(output(7, prompt=5), WINDOW) == ContextResult(
        uid="a",
        token_ids=(3, 4),
        finish_reason="stop",
        action_id=7,
        logprobs=(-3, -4, -END, -7),
        num_context_tokens=2,
        num_cached_tokens=1,
    )


@pytest.mark.parametrize(
    ("ids", "prompt", "reason"),
    [((3, 4, 5, 6, 7), 2, "length"), ((3, END), WINDOW - 2, "stop")],
    ids=["max_tokens", "full window"],
)
def test_no_action(ids: Sequence[int], prompt: int, reason: str) -> None:
    result = ContextText(REQUEST).take(output(*ids, prompt=prompt), WINDOW)
    assert isinstance(result, ContextResult)
    assert (result.finish_reason, result.action_id) == (reason, None)
    assert result.token_ids == tuple(token for token in ids if token != END)


def test_an_action_is_computed_only_if_wanted() -> None:
    plain = replace(REQUEST, wants_action=False, wants_logprobs=False)
    made = output(END)
    made.outputs[0].logprobs = None
    result = ContextText(plain).take(made, WINDOW)
    assert isinstance(result, ContextResult)
    assert (result.token_ids, result.logprobs, result.finish_reason) == ((), (), "stop")
    assert ContextText(plain).sampling["logprobs"] is None


def test_text_and_action_have_different_random_numbers() -> None:
    text = ContextText(replace(REQUEST, temperature=1.0, seed=2**31 - 1))
    action = text.take(output(END), WINDOW)
    assert isinstance(action, ContextText)
    assert (text.sampling["seed"], action.sampling["seed"]) == (2**31 - 1, 0)
    assert ContextText(REQUEST).sampling["seed"] is None


def test_conversation() -> None:
    picture = Picture(png(40, 30))
    messages = [
        Message(role="user", parts=(" First ", picture, "  ", "<|im_end|>")),
        Message(role="system", parts=("Be brief.",)),
        Message(role="assistant", parts=("Yes.",)),
    ]
    opening, first, block, second, answer, start = understanding_context(messages, TOKENIZER, RULES)
    assert isinstance(block, ImageBlock)
    assert block.kind == "vit"
    assert start == (SPECIAL.bos,)
    texts = []
    for part in (opening, first, second, answer):
        assert isinstance(part, tuple)
        assert (part[0], part[-1]) == (SPECIAL.bos, SPECIAL.eos)
        assert SPECIAL.eos not in part[1:-1]
        texts.append(TOKENIZER.decode(part[1:-1]))
    assert texts == ["Be brief.", "First", "<|im_end|>", "Yes."]


def test_unusable_conversations() -> None:
    for parts_of, error, match in (
        ((" ",), InputError, "no input"),
        ((Picture(b"x", place="a.png"),), PictureError, r"a\.png"),
    ):
        with pytest.raises(error, match=match):
            understanding_context([Message(role="user", parts=parts_of)], TOKENIZER, RULES)


def test_a_missing_plugin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"model": "x", "hf_overrides": {"architectures": [ARCHITECTURE]}}
    assert find_bagel({"model": "x"}) is None
    assert find_bagel({"model": "x", "hf_overrides": {"architectures": ["Other"]}}) is None
    monkeypatch.setattr(contexts, "entry_points", lambda group: ())
    with pytest.raises(BackendError, match=r"found none.*mathcanvas_bagel.*pip install"):
        find_bagel(arguments)


def test_vllms_own_bagel_needs_a_wish() -> None:
    check_architecture({"model": "x"}, "qwen2")
    wanted = {"architectures": ["BagelForConditionalGeneration"]}
    check_architecture({"model": "x", "hf_overrides": wanted}, "bagel")
    with pytest.raises(BackendError, match=r"a/b: found the hub name.*hf download a/b"):
        check_architecture({"model": "a/b"}, "bagel")
