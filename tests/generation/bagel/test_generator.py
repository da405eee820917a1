"""Continuous batching of problems: steps, limits, modes."""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.generation.bagel.generator import InterleavedGenerator
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig, FeatureCache
from mathcanvas_lightning.generation.bagel.problem import (
    THINK_PROMPTS,
    Answer,
    InterleavedConfig,
    Problem,
)
from mathcanvas_lightning.generation.bagel.text_steps import TextConfig, choose_tokens
from mathcanvas_lightning.generation.bagel.workshop import free_bytes
from mathcanvas_lightning.model.layers.mot import Decoder
from tests.generation.drawing import (
    FAST,
    SIZES,
    Script,
    generator,
    grouped,
    low_default,
    parts,
    picture,
)

ANSWERS: dict[str, Any] = {
    "a": [("Draw it.", "draw"), (None, "draw"), (None, "stop")],
    "b": [(None, "stop")],
    "c": [(None, "write"), (None, "draw"), ("So: 3", "stop")],
    "d": [("", "draw"), ("  spaces ", "stop")],
    "e": [(None, "draw"), (None, "write"), ("Done.", "stop")],
    "f": [("x" * 12, "draw"), (None, "stop")],
    "g": [("Ends at once", "?")],
}
INPUTS: dict[str, tuple[str | Image.Image, ...]] = {
    "a": ("What is it?", picture(1)),
    "b": ("Only text",),
    "c": (picture(2, 32, 32), "between", picture(3)),
    "d": (picture(4),),
    "e": ("A long question. " * 5, picture(5, 96, 32)),
    "f": ("No picture here",),
    "g": ("Short", picture(6)),
}


def problems(seed: int = 0) -> list[Problem]:
    return [Problem(uid=uid, inputs=inputs, seed=seed) for uid, inputs in INPUTS.items()]


def kinds(answer: Answer) -> list[tuple[int, str]]:
    return [
        (step.number, "text" if isinstance(step.content, str) else "drawing")
        for step in answer.steps
    ]


def same(left: Answer, right: Answer) -> None:
    """Equal texts; drawings may differ by the rounding of pixels."""
    assert kinds(left) == kinds(right)
    for one, other in zip(left.steps, right.steps, strict=True):
        if isinstance(one.content, str):
            assert one.content == other.content
        else:
            pixels = [np.asarray(step.content).astype(int) for step in (one, other)]
            assert np.abs(pixels[0] - pixels[1]).max() <= 1
    assert left.finish_reason == right.finish_reason
    assert left.num_input_tokens == right.num_input_tokens
    assert left.num_written_tokens == right.num_written_tokens


def answer_one(problem: Problem, script: Any, **options: Any) -> Answer:
    [answer] = generator(script, **options).run([problem])
    return answer


@functools.cache
def all_answers() -> list[Answer]:
    """The answers to the problems, together."""
    answers: list[Answer] = generator(Script(ANSWERS)).run(problems())
    return answers


def test_steps_follow_the_actions() -> None:
    answers = {answer.uid: answer for answer in all_answers()}
    assert kinds(answers["a"]) == [
        (1, "text"),
        (1, "drawing"),
        (2, "text"),
        (2, "drawing"),
        (3, "text"),
    ]
    assert kinds(answers["c"]) == [(1, "text"), (2, "text"), (2, "drawing"), (3, "text")]
    assert kinds(answers["d"]) == [(1, "drawing"), (2, "text")]
    assert answers["a"].steps[0].content == "Draw it."
    assert answers["d"].text == "spaces"
    assert answers["d"].num_written_tokens == 0 + 1 + len("  spaces ") + 1
    assert {answer.finish_reason for answer in answers.values()} == {"stop"}
    # Drawings have the size of the last picture for the VAE, or the default size.
    assert [d.size for d in answers["a"].drawings] == [(48, 32)] * 2
    assert answers["e"].drawings[0].size == (48, 16)
    assert answers["f"].drawings[0].size == FAST.default_size


def test_without_drawings_the_next_text_follows_at_once() -> None:
    config = InterleavedConfig(drawing=FAST, text=TextConfig(), drawings="none")
    [answer] = generator(Script(ANSWERS)).run([replace(problems()[0], config=config)])
    assert kinds(answer) == [(1, "text"), (2, "text"), (3, "text")]
    assert answer.finish_reason == "stop"


def test_drawings_have_the_size_that_was_trained_or_asked_for() -> None:
    model = parts()[0]
    before = model.config
    try:
        model.config = replace(before, drawing_size=(64, 32))
        trained = answer_one(problems()[0], Script(ANSWERS))
        config = InterleavedConfig(drawing=replace(FAST, size=(32, 40)))
        asked = answer_one(replace(problems()[0], config=config), Script(ANSWERS))
    finally:
        model.config = before
    assert [drawing.size for drawing in trained.drawings] == [(64, 32)] * 2
    assert [drawing.size for drawing in asked.drawings] == [(32, 32)] * 2  # whole tokens


@functools.cache
def one_by_one() -> tuple[list[Answer], Any]:
    """The answers to the problems, each alone, and the tokens that were chosen."""
    script = Script(ANSWERS)
    return [answer_one(problem, script, max_batch_size=1) for problem in problems()], script.chosen


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_problem_does_not_depend_on_the_others(batch_size: int) -> None:
    alone, wanted_ids = one_by_one()
    script = Script(ANSWERS)
    generators = generator(script, max_batch_size=batch_size, tokens_per_turn=batch_size)
    together = generators.run(reversed(problems()))
    assert script.chosen == wanted_ids
    for left, right in zip(alone, reversed(together), strict=True):
        same(left, right)


def test_seeds_and_uids_change_the_answers() -> None:
    texts = {uid: [(None, "draw"), (None, "stop")] for uid in ("one", "two")}
    cases = [("one", 0), ("two", 0), ("one", 1), ("one", 0)]
    answers = [
        answer_one(Problem(uid=uid, inputs=("Draw.", picture(0)), seed=seed), Script(texts))
        for uid, seed in cases
    ]
    same(answers[0], answers[3])
    for other in answers[1:3]:
        assert other.text != answers[0].text
        assert np.any(np.asarray(other.drawings[0]) != np.asarray(answers[0].drawings[0]))


def test_global_random_state_is_unchanged() -> None:
    before = torch.random.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()
    generator(Script(ANSWERS)).run(problems()[:2])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_new_problems_enter_when_others_finish() -> None:
    running = generator(Script(ANSWERS), max_batch_size=2)
    order = []
    for problem in problems():
        running.submit(problem)
    assert running.num_pending == len(INPUTS)
    while running.num_pending:
        ended = [answer.uid for answer in running.advance()]
        order += ended
        assert running.num_pending == len(INPUTS) - len(order)
    assert sorted(order) == sorted(INPUTS)
    assert order.index("b") < order.index("a")  # short answers do not wait for long ones
    assert running.advance() == []


def test_texts_and_drawings_are_computed_as_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four problems need as many passes as one; all guidance branches share a pass."""
    passes = []
    real = Decoder.forward
    monkeypatch.setattr(
        Decoder, "forward", lambda self, *args: passes.append(len(args[1])) or real(self, *args)
    )
    texts = {str(i): [("Draw.", "draw"), ("Done.", "stop")] for i in range(4)}
    counts = []
    for size in (1, 4):
        passes.clear()
        inputs = [Problem(uid=str(i), inputs=(picture(i),)) for i in range(size)]
        generator(Script(texts)).run(inputs)
        counts.append(len(passes))
    assert counts[0] == counts[1]
    # Start token, five letters, end token; one pass per step of the drawing; three prefills.
    assert counts[0] == 2 * 7 + (FAST.num_timesteps - 1) + 3
    assert 4 * 3 * 6 in passes


@pytest.mark.parametrize(
    ("limits", "reason", "steps"),
    [
        ({"max_steps": 1}, "max_steps", [(1, "text"), (1, "drawing")]),
        ({"max_steps": 2}, "max_steps", [(1, "text"), (1, "drawing"), (2, "text")]),
        ({"max_images": 1}, "max_images", [(1, "text"), (1, "drawing"), (2, "text"), (3, "text")]),
        ({"max_tokens": 4}, "max_tokens", [(1, "text")]),
        ({"max_tokens": 6}, "max_tokens", [(1, "text"), (1, "drawing")]),
        ({"max_tokens": 7}, "max_tokens", [(1, "text"), (1, "drawing"), (2, "text")]),
    ],
)
def test_limits(limits: dict[str, int], reason: str, steps: list[Any]) -> None:
    texts: Any = {"a": [("First", "draw"), ("Then", "write"), ("Also", "draw"), ("End", "stop")]}
    config = InterleavedConfig(drawing=FAST, **limits)
    problem = Problem(uid="a", inputs=("What?", picture(0)), config=config)
    answer = answer_one(problem, Script(texts))
    assert (answer.finish_reason, kinds(answer)) == (reason, steps)
    if "max_tokens" in limits:
        assert answer.num_written_tokens == limits["max_tokens"]
        # The end token of a text counts, the action token does not.
        assert answer.text == {4: "Firs", 6: "First", 7: "First\n\nT"}[limits["max_tokens"]]


def test_the_limit_of_tokens_cuts_a_thought_but_not_the_drawing() -> None:
    texts: Any = {"a": [("A long thought", "draw")]}
    config = InterleavedConfig(drawing=FAST, max_tokens=6)
    problem = Problem(uid="a", inputs=("Draw",), mode="image", think=True, config=config)
    answer = answer_one(problem, Script(texts))
    assert kinds(answer) == [(1, "text"), (1, "drawing")]
    assert (answer.text, answer.finish_reason) == ("A long", "stop")
    assert answer.num_written_tokens == 6


ENDLESS: Any = {"a": [(None, "draw"), (None, "write")] * 20, "b": [("Hi", "stop")]}


@functools.cache
def in_a_large_context() -> Answer:
    config = InterleavedConfig(drawing=FAST, max_tokens=60)
    return answer_one(Problem(uid="a", inputs=("Go on",), config=config), Script(ENDLESS))


@pytest.mark.parametrize("room", range(20, 120, 11))
def test_a_full_context_ends_a_problem_cleanly(room: int) -> None:
    """In any state: its texts and drawings are kept, and other problems continue."""
    config = InterleavedConfig(drawing=FAST, max_steps=40, max_images=40)
    running = generator(Script(ENDLESS), config, max_batch_size=2, max_context_tokens=room)
    inputs = [Problem(uid="a", inputs=("Go on",)), Problem(uid="b", inputs=("Say hi",))]
    answers = running.run(inputs)
    assert [answer.finish_reason for answer in answers] == ["window", "stop"]
    assert answers[1].text == "Hi"
    for one, other in zip(answers[0].steps, in_a_large_context().steps, strict=False):
        if isinstance(one.content, str):
            assert isinstance(other.content, str)
            assert one is answers[0].steps[-1] or one.content == other.content


def test_understanding_uses_only_the_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"a": [("It is red", "draw")]}
    problem = Problem(uid="a", inputs=(picture(0), "Which colour?"), mode="understanding")
    monkeypatch.setattr(parts()[1], "moments", None)  # must not be called
    answer = answer_one(problem, Script(texts))
    assert (answer.text, answer.finish_reason) == ("It is red", "stop")
    assert answer.num_written_tokens == len("It is red") + 1
    assert answer.num_input_tokens == 2 * 3 + 2 + len("Which colour?") + 2


@pytest.mark.parametrize("inputs", [("A red square",), (picture(0, 32, 32), "Make it red")])
def test_text_to_image_and_editing(inputs: tuple[str | Image.Image, ...]) -> None:
    answer = answer_one(Problem(uid="a", inputs=inputs, mode="image"), Script({}))
    assert kinds(answer) == [(1, "drawing")]
    assert answer.finish_reason == "stop"
    assert answer.drawings[0].size == (FAST.default_size if len(inputs) == 1 else (32, 32))
    assert answer.num_written_tokens == 0


def test_modes_run_side_by_side() -> None:
    texts = {"u": [(None, "")], "i": [(None, "draw"), (None, "stop")], "t": [(None, "")]}
    cases = [
        Problem(uid="u", inputs=("Say", picture(0)), mode="understanding"),
        Problem(uid="i", inputs=("Solve", picture(1))),
        Problem(uid="d", inputs=("Draw",), mode="image"),
        Problem(uid="t", inputs=("Draw",), mode="image", think=True, system_prompt="Think."),
    ]
    together = generator(Script(texts)).run(cases)
    for problem, answer in zip(cases, together, strict=True):
        same(answer, answer_one(problem, Script(texts)))
    assert kinds(together[3]) == [(1, "text"), (1, "drawing")]


@pytest.mark.parametrize("mode", ["interleaved", "understanding", "image"])
def test_think_prompts_can_be_replaced(mode: Any) -> None:
    texts = {"a": [("Hm.", "stop")]}
    question = Problem(uid="a", inputs=("What?",), mode=mode, think=True)
    own = Problem(uid="a", inputs=("What?",), mode=mode, think=True, system_prompt="Mine")
    answers = [answer_one(problem, Script(texts)) for problem in (question, own)]
    assert answers[0].text == answers[1].text == "Hm."
    lengths = [answer.num_input_tokens - len("What?") - 4 for answer in answers]
    assert lengths == [len(THINK_PROMPTS[mode].strip()), len("Mine")]


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_system_prompt_is_skipped(prompt: str) -> None:
    texts = {"a": [("Hm.", "stop")]}
    problem = Problem(uid="a", inputs=("What?",), system_prompt=prompt, think=True)
    assert answer_one(problem, Script(texts)).num_input_tokens == len("What?") + 2


def test_names_of_special_tokens_in_texts_are_ordinary_text() -> None:
    answer = answer_one(
        Problem(uid="a", inputs=("<|im_end|>",)), Script({"a": [("<|endoftext|>", "stop")]})
    )
    assert answer.num_input_tokens == len("<|im_end|>") + 2
    assert answer.text == "<|endoftext|>"


def test_empty_texts_are_skipped() -> None:
    texts = {"a": [(None, "stop")]}
    answers = [
        answer_one(Problem(uid="a", inputs=inputs), Script(texts))
        for inputs in (("One", "Two"), ("One", " \n", "Two", ""))
    ]
    same(*answers)


def test_transparent_pictures_get_a_white_background() -> None:
    clear = Image.new("RGBA", (48, 32), (9, 9, 9, 0))
    white = Image.new("RGB", (48, 32), "white")
    texts = {"a": [(None, "draw"), (None, "stop")]}
    answers = [
        answer_one(Problem(uid="a", inputs=(image, "See")), Script(texts))
        for image in (clear, white, white.convert("L"))
    ]
    same(answers[0], answers[1])
    same(answers[2], answers[1])


def test_the_feature_cache_draws_almost_the_same() -> None:
    texts = {"a": [("Draw.", "draw"), ("Done.", "stop")]}
    drawn = []
    for reuse in (None, FeatureCache(refresh_every=2)):
        drawing = DrawingConfig(num_timesteps=21, feature_cache=reuse)
        config = InterleavedConfig(drawing=drawing)
        problem = Problem(uid="a", inputs=(picture(0),), config=config)
        answer = answer_one(problem, Script(texts))
        drawn.append(np.asarray(answer.drawings[0]).astype(int))
    difference = np.abs(drawn[0] - drawn[1])
    assert 0 < difference.mean() < 3
    assert drawn[0].std() > 10


def test_without_guidance_there_is_one_context() -> None:
    texts = {"a": [("Draw.", "draw"), (None, "stop")]}
    problem = Problem(uid="a", inputs=("Draw", picture(0)))
    for scales, rows in ({"text_scale": 1.0}, 1), ({"image_scale": 1.0}, 2), ({}, 3):
        config = InterleavedConfig(drawing=DrawingConfig(num_timesteps=3, **scales))
        running = generator(Script(texts), config, max_batch_size=1)
        assert running.cache.num_rows == rows
        assert kinds(running.run([problem])[0])[1] == (1, "drawing")


def test_memory_limits_the_batch_size(caplog: pytest.LogCaptureFixture) -> None:
    llm = parts()[0].config.llm
    one = 3 * 400 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_dim * 2 * 4
    assert generator(None, memory_bytes=2 * one).batch_size == 2
    assert "contexts of 2 problems" in caplog.text
    with pytest.raises(ConfigError, match="GiB for one problem"):
        generator(None, memory_bytes=one - 1)
    assert generator(None, max_batch_size=3).batch_size == 3  # limited by the free memory


@pytest.mark.parametrize("name", ["max_batch_size", "max_context_tokens", "tokens_per_turn"])
def test_numbers_are_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        generator(None, **{name: 0})


@pytest.mark.parametrize("name", ["max_steps", "max_tokens", "max_images"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        InterleavedConfig(**{name: 0})


def test_problems_that_cannot_be_answered(tmp_path: Any) -> None:
    """They are rejected at once; problems in progress continue."""
    running = generator(Script({"a": [("Fine", "stop")]}), max_context_tokens=60)
    running.submit(Problem(uid="a", inputs=("Fine?",)))
    with pytest.raises(InputError, match="length of a context"):
        running.submit(Problem(uid="long", inputs=("word " * 20,)))
    with pytest.raises(InputError, match="no input"):
        running.submit(Problem(uid="empty", inputs=(" \n",)))
    path = tmp_path / "cut.png"
    picture(0, 200, 200).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as cut, pytest.raises(InputError, match="decoded"):
        running.submit(Problem(uid="cut", inputs=(cut,)))
    with pytest.raises(InputError, match="same uid"):
        running.submit(Problem(uid="a", inputs=("Again",)))
    with pytest.raises(ConfigError, match="mode"):
        Problem(uid="x", inputs=("What?",), mode="video")  # type: ignore[arg-type]
    assert running.num_pending == 1
    assert [answer.text for answer in running.run([])] == []
    assert running.num_pending == 0


def test_pictures_beyond_the_position_tables() -> None:
    large = ImageTransform(max_image_size=512, min_image_size=512)
    for options in ({"vae_transform": large}, {"vit_transform": large}):
        settings = {**SIZES, **options, "max_context_tokens": 4000}
        running = InterleavedGenerator(*parts(), **grouped(settings))
        with pytest.raises(InputError, match="position table"):
            running.submit(Problem(uid="a", inputs=(picture(0, 512, 512),)))
    running = InterleavedGenerator(*parts(), **grouped({**SIZES, "max_context_tokens": 4000}))
    with pytest.raises(InputError, match="512 x 512"):  # the size without a picture
        running.submit(Problem(uid="a", inputs=("Draw",), mode="image"))


def test_drawings_that_could_not_be_read_again() -> None:
    """They fit the position table of latents, but not that of patches: rejected at once."""
    large = SIZES | {"vit_transform": ImageTransform(max_image_size=512, min_image_size=512)}
    texts = {"b": [("Draw.", "draw"), ("Done.", "stop")]}
    running = generator(Script(texts), **large, max_context_tokens=4000)
    with pytest.raises(InputError, match="position table"):
        running.submit(Problem(uid="b", inputs=("Only text",)))
    [answer] = running.run([Problem(uid="c", inputs=("Draw",), mode="image")])
    assert kinds(answer) == [(1, "drawing")]


class Failing(Script):
    """Raises an exception once, in the middle of a text."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(ANSWERS)
        self.error: BaseException | None = error

    def __call__(self, logits: Any, draws: Any) -> list[int]:
        if self.error is not None and draws[0].step == 2:
            error, self.error = self.error, None
            raise error
        return super().__call__(logits, draws)


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        pytest.param(RuntimeError("out of order"), marks=pytest.mark.slow),
    ],
)
def test_run_works_again_after_an_error(error: BaseException) -> None:
    running = generator(Failing(error), max_batch_size=2)
    with pytest.raises(type(error)):
        running.run(problems())
    assert running.num_pending == 0
    for left, right in zip(running.run(problems()), all_answers(), strict=True):
        same(left, right)


def test_an_error_keeps_queued_problems() -> None:
    running = generator(Failing(RuntimeError("out of order")), max_batch_size=2)
    for problem in problems():
        running.submit(problem)
    answers: dict[str, Answer] = {}
    with pytest.raises(RuntimeError, match="out of order"):
        while True:
            answers |= {answer.uid: answer for answer in running.advance()}
    num_left = running.num_pending
    assert num_left == len(INPUTS) - len(answers) - 2
    while running.num_pending:
        answers |= {answer.uid: answer for answer in running.advance()}
    for problem in problems()[-num_left:]:
        same(answers[problem.uid], answer_one(problem, Script(ANSWERS)))


def test_an_invalid_input_drops_only_its_own_run() -> None:
    running = generator(Script(ANSWERS))
    running.submit(problems()[1])
    with pytest.raises(InputError, match="no input"):
        running.run([problems()[0], Problem(uid="x", inputs=())])
    assert running.num_pending == 1
    assert len(running.run(problems()[2:4])) == 2


@contextmanager
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("precision", [low_default, autocast])
def test_a_trainers_precision_does_not_reach_the_model(precision: Any) -> None:
    wanted, script = all_answers(), Script(ANSWERS)
    running = generator(script)
    with precision():
        found = running.run(problems())
        assert torch.get_default_dtype() == {low_default: torch.bfloat16}.get(
            precision, torch.float32
        )
    for left, right in zip(found, wanted, strict=True):
        same(left, right)


def test_reused_layouts_mark_their_rows_as_used() -> None:
    running = generator(Script({}), max_batch_size=1)
    running.run([Problem(uid=uid, inputs=("Draw",), mode="image") for uid in "ab"])
    cache = running.cache
    with torch.inference_mode():
        for row in range(3):
            assert cache.keys[0][row].any()
            cache.clear(row)
    assert not any(tensor.any() for tensor in cache.keys + cache.values)


def test_unused_reserved_memory_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, amount in (("mem_get_info", (10, 99)), ("memory_reserved", 7)):
        monkeypatch.setattr(torch.cuda, name, lambda device, amount=amount: amount)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4)
    assert free_bytes(torch.device("cuda")) == 10 + 7 - 4


def test_guidance_with_more_contexts_than_the_generator() -> None:
    plain = InterleavedConfig(drawing=DrawingConfig(text_scale=1.0))
    running = generator(choose_tokens, plain)
    with pytest.raises(ConfigError, match="3 contexts"):
        running.submit(Problem(uid="a", inputs=("Draw",), config=InterleavedConfig(drawing=FAST)))


def test_nan_values_do_not_reach_the_next_problem() -> None:
    """Not even if the next problem uses the same row of the cache."""
    running = generator(Script(ANSWERS), max_batch_size=2)
    wanted = [answer_one(problem, Script(ANSWERS)) for problem in problems()[:3]]
    running.submit(Problem(uid="f", inputs=("x" * 60,)))
    running.submit(problems()[0])
    running.advance()
    with torch.inference_mode():
        for tensor in running.cache.values:
            tensor[0, :, :60] = torch.nan
    answers = []
    for problem in problems()[1:3]:
        running.submit(problem)
    while running.num_pending:
        answers += running.advance()
    found = {answer.uid: answer for answer in answers}
    for answer in wanted:
        same(found[answer.uid], answer)


@pytest.mark.slow
def test_low_precision() -> None:
    model, vae, tokenizer = parts()
    low = InterleavedGenerator(
        copy.deepcopy(model).to(torch.bfloat16),
        copy.deepcopy(vae).to(torch.bfloat16),
        tokenizer,
        config=InterleavedConfig(drawing=FAST),
        choose=Script(ANSWERS),
        **grouped({"max_context_tokens": 400, **SIZES}),
    )
    answers = low.run(problems())
    assert {answer.finish_reason for answer in answers} == {"stop"}
    [exact] = [a for a in generator(Script(ANSWERS)).run(problems()) if a.uid == "d"]
    pixels = [np.asarray(answer.drawings[0]).astype(float) for answer in (exact, answers[3])]
    assert np.abs(pixels[0] - pixels[1]).mean() < 0.1 * pixels[0].std()
