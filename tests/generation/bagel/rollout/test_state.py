"""A problem never exceeds its limits, whatever the model writes."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.generation.bagel.contexts import ItemMaker
from mathcanvas_lightning.generation.bagel.problem import InterleavedConfig, Problem, TooLongError
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
            "drawings": st.sampled_from(["own", "none"]),
        }
    ),
    capacity=st.integers(30, 250),
)
def test_limits_hold(script: Any, mode: Any, think: bool, limits: Any, capacity: int) -> None:
    model, _, tokenizer = parts()
    config = InterleavedConfig(drawing=FAST, **limits)
    maker = ItemMaker(model.config, tokenizer, VAE_TRANSFORM, VIT_TRANSFORM)
    reader = ProblemReader(maker, config, trained_size=None, capacity=capacity)
    problem = Problem(uid="a", inputs=("What?",), mode=mode, think=think, system_prompt="Hm.")
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
    if mode == "image" and answer.finish_reason == "stop":
        assert len(answer.drawings) == 1
