"""A problem never exceeds its limits, whatever the model writes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.bagel.contexts import ItemMaker
from mathcanvas_lightning.generation.bagel.problem import (
    Answer,
    InterleavedConfig,
    Problem,
    TooLongError,
)
from mathcanvas_lightning.generation.bagel.rollout.reader import ProblemReader
from tests.generation.drawing import FAST, VAE_TRANSFORM, VIT_TRANSFORM, parts, picture

actions = st.sampled_from(["start_of_image", "bos", "end_of_text", "eos"])


@settings(deadline=None)
@given(
    script=st.lists(st.tuples(st.text("ab \n", max_size=20), actions), min_size=60, max_size=60),
    mode=st.sampled_from(["interleaved", "understanding", "image"]),
    think=st.booleans(),
    limits=st.fixed_dictionaries(
        {
            "max_tokens": st.integers(1, 60),
            "max_steps": st.integers(1, 6),
            "max_images": st.integers(1, 4),
            "min_images": st.integers(0, 4),
            "drawings": st.sampled_from(["own", "none", "shuffled", "reference"]),
        }
    ),
    num_given=st.integers(0, 3),
    capacity=st.integers(30, 250),
)
def test_limits_hold(
    script: Any, mode: Any, think: bool, limits: Any, num_given: int, capacity: int
) -> None:
    model, _, tokenizer = parts()
    most = 0 if limits["drawings"] == "none" else limits["max_images"]
    limits["min_images"] = min(limits["min_images"], most)
    config = InterleavedConfig(drawing=FAST, **limits)
    given = tuple(picture(number, 32, 32) for number in range(num_given))
    maker = ItemMaker(model.config, tokenizer, VAE_TRANSFORM, VIT_TRANSFORM)
    reader = ProblemReader(maker, config, trained_size=None, capacity=capacity)
    problem = Problem(
        uid="a",
        inputs=("What?",),
        mode=mode,
        think=think,
        system_prompt="Hm.",
        drawings=given,
    )
    try:
        rollout = reader.read(problem)
    except TooLongError:
        return
    keys = set()
    for text, action in script:
        if rollout.needs is None:
            break
        assert sum(item.num_tokens for item in rollout.items) == rollout.length
        if rollout.needs == "drawing":
            assert mode == "image" or config.drawings == "own"
            assert rollout.length + maker.drawing_tokens(rollout.size_px) <= capacity
            key = ("noise", *rollout.noise_key)
            rollout.take_picture(picture(0, *rollout.size_px))
        else:
            budget, key = rollout.max_new_tokens, rollout.text_key
            assert 0 < budget <= capacity - rollout.length
            ids = tokenizer.encode(text)[:budget]
            is_ended = len(ids) < budget
            wants_action = is_ended and rollout.wants_action(len(ids) + 1)
            action_id = getattr(tokenizer.special, action) if wants_action else None
            rollout.take_text(ids, is_ended=is_ended, action_id=action_id)
        assert key not in keys, "two steps have the same random numbers"
        keys.add(key)
    answer = rollout.answer()
    assert answer.num_written_tokens <= config.max_tokens
    assert max((step.number for step in answer.steps), default=0) <= config.max_steps
    assert len(answer.drawings) <= config.max_images
    if mode == "understanding" or (mode == "interleaved" and config.drawings == "none"):
        assert not answer.drawings
    if mode == "interleaved" and config.drawings in ("shuffled", "reference"):
        pairs = zip(answer.drawings, given, strict=False)
        assert all(np.array_equal(found, wanted) for found, wanted in pairs)
        assert len(answer.drawings) <= num_given
    if mode == "interleaved" and answer.finish_reason == "stop" and config.drawings == "own":
        assert len(answer.drawings) >= config.min_images
    if mode == "image" and answer.finish_reason == "stop":
        assert len(answer.drawings) == 1


def answer_of(actions: Sequence[str], num_given: int = 0, **config: Any) -> Answer:
    """The answer of a model that writes "a" before each action."""
    model, _, tokenizer = parts()
    settings = InterleavedConfig(drawing=FAST, **config)
    maker = ItemMaker(model.config, tokenizer, VAE_TRANSFORM, VIT_TRANSFORM)
    reader = ProblemReader(maker, settings, trained_size=None, capacity=400)
    given = tuple(picture(number, 32, 32) for number in range(num_given))
    rollout = reader.read(Problem(uid="a", inputs=("What?",), drawings=given))
    for action in actions:
        while rollout.needs == "drawing":
            rollout.take_picture(picture(9, *rollout.size_px))
        if rollout.needs is None:
            break
        action_id = getattr(tokenizer.special, action)
        rollout.take_text(tokenizer.encode("a"), is_ended=True, action_id=action_id)
    return rollout.answer()


def kinds(answer: Answer) -> str:
    """The steps: "t" for a text, "d" for a drawing."""
    return "".join("t" if isinstance(step.content, str) else "d" for step in answer.steps)


DRAW, END = "start_of_image", "end_of_text"


@pytest.mark.parametrize(
    ("actions", "config", "wanted", "reason"),
    [
        ([DRAW, END], {}, "tdt", "stop"),
        ([END, END], {"min_images": 1}, "tdt", "stop"),
        ([DRAW, END], {"min_images": 1}, "tdt", "stop"),
        ([END] * 4, {"min_images": 3, "max_images": 3}, "tdtdtdt", "stop"),
        ([END] * 4, {"min_images": 3, "max_steps": 2}, "tdtd", "max_steps"),
        ([DRAW, DRAW, END], {"drawings": "none"}, "ttt", "stop"),
        ([DRAW, DRAW, END], {"drawings": "reference", "num_given": 2}, "tdtdt", "stop"),
        ([DRAW, DRAW, END], {"drawings": "reference", "num_given": 1}, "tdtt", "stop"),
        ([END, END], {"drawings": "shuffled", "num_given": 1, "min_images": 1}, "tdt", "stop"),
        ([END], {"drawings": "shuffled", "num_given": 0, "min_images": 1}, "t", "stop"),
    ],
)
def test_budget_and_given_drawings(
    actions: Sequence[str], config: Any, wanted: str, reason: str
) -> None:
    answer = answer_of(actions, **config)
    assert (kinds(answer), answer.finish_reason) == (wanted, reason)


@pytest.mark.parametrize(
    "config", [{"min_images": 3, "max_images": 2}, {"min_images": 1, "drawings": "none"}]
)
def test_budgets_that_contradict_each_other(config: Any) -> None:
    with pytest.raises(ConfigError, match="min_images"):
        InterleavedConfig(**config)
