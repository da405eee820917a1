"""Texts of an engine and native drawings give the answers of the native generator."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.generation.backends.vllm.messages import ContextRequest, ContextResult
from mathcanvas_lightning.generation.bagel.contexts import Prefiller
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
from mathcanvas_lightning.generation.bagel.problem import Answer, InterleavedConfig, Problem
from mathcanvas_lightning.generation.bagel.requests import failure_of
from mathcanvas_lightning.generation.bagel.rollout.reader import ProblemReader
from mathcanvas_lightning.generation.bagel.text_steps import TextConfig, TokenChoice
from mathcanvas_lightning.generation.bagel.vllm.drawer import Drawer
from mathcanvas_lightning.generation.bagel.vllm.generator import EngineGenerator, Team
from mathcanvas_lightning.generation.bagel.vllm.text_engine import ContextMaker
from mathcanvas_lightning.generation.bagel.workshop import open_workshop
from mathcanvas_lightning.generation.requests import Failure
from mathcanvas_lightning.vllm_bagel.blocks import ImageBlock
from tests.conftest import examples
from tests.generation.bagel.test_generator import ANSWERS, INPUTS, problems, same
from tests.generation.drawing import FAST, SIZES, Script, generator, grouped, parts, picture
from tests.generation.text_engine import Choose, FakeEngine, greedy

QUICK = DrawingConfig(num_timesteps=2, default_size=(32, 32))
GREEDY = InterleavedConfig(drawing=FAST, text=TextConfig(temperature=0.0), max_tokens=40)


def engine_generator(
    choose: Choose = greedy,
    config: InterleavedConfig = GREEDY,
    *,
    engine: FakeEngine | None = None,
    batch_size: int = 16,
    **options: Any,
) -> EngineGenerator:
    model, vae, tokenizer = parts()
    settings = {"max_batch_size": 4, "max_context_tokens": 400, **SIZES, **options}
    groups = grouped(settings)
    workshop = open_workshop(
        model, vae, tokenizer, num_contexts=config.drawing.num_contexts, **groups
    )
    team = Team(
        engine=engine or FakeEngine(model, tokenizer.special, choose),
        drawer=Drawer(workshop),
        contexts=ContextMaker(workshop.maker, vae, model.config.latent_patch_size),
        device=torch.device("cpu"),
    )
    reader = ProblemReader(
        workshop.maker, config, trained_size=None, capacity=workshop.cache.capacity
    )
    return EngineGenerator(team, reader, config, batch_size=batch_size)


def scripted(answers: Any, length: int = 6) -> Choose:
    """The choices of `Script`, for an engine; texts of the model are greedy."""
    script = Script(answers, length)

    def choose(logits: torch.Tensor, request: ContextRequest, index: int) -> int:
        uid, number, _ = request.uid.rsplit("/", 2)
        about = TokenChoice(uid=uid, step=int(number), index=index, config=GREEDY.text, uniform=0.5)
        return script(logits[None], [about])[0]

    return choose


def drawer_of(made: EngineGenerator) -> Drawer:
    drawer = made.team.drawer
    assert drawer is not None
    return drawer


def check(found: list[Answer], wanted: list[Answer]) -> None:
    for left, right in zip(found, wanted, strict=True):
        same(left, right)


@cache
def native_answers() -> list[Answer]:
    return generator(Script(ANSWERS), GREEDY).run(problems())


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, pytest.param(2, marks=pytest.mark.slow), 8])
def test_answers_equal_those_of_the_native_generator(slots: int) -> None:
    """With room for all contexts, and with so little that they are read again."""
    made = engine_generator(scripted(ANSWERS), max_batch_size=slots)
    check(made.run(problems()), native_answers())
    assert made.num_pending == 0
    if slots != 2:
        assert (drawer_of(made).num_rebuilt > 0) == (slots == 1)


@pytest.mark.slow
def test_the_model_decides_like_the_native_generator() -> None:
    wanted = generator(lambda logits, _: logits.argmax(-1).tolist(), GREEDY).run(problems())
    check(engine_generator().run(problems()), wanted)


texts = st.lists(
    st.tuples(
        st.sampled_from(["", " x ", "abc", "a longer text"]),
        st.sampled_from(["draw"] * 3 + ["write", "stop", "?"]),
    ),
    min_size=30,
    max_size=30,
)


@settings(max_examples=examples(25), deadline=None)
@given(
    texts=texts,
    mode=st.sampled_from(["interleaved"] * 4 + ["understanding", "image"]),
    think=st.booleans(),
    limits=st.fixed_dictionaries(
        {
            "max_tokens": st.integers(1, 40),
            "max_steps": st.integers(1, 5),
            "max_images": st.integers(1, 3),
        }
    ),
    capacity=st.integers(45, 150),
    with_picture=st.booleans(),
)
def test_limits_end_answers_at_the_same_place(
    texts: Any, mode: Any, think: bool, limits: Any, capacity: int, with_picture: bool
) -> None:
    config = InterleavedConfig(drawing=QUICK, text=GREEDY.text, **limits)
    inputs = ("What?", picture(0)) if with_picture else ("What?",)
    prompt = "Think." if think else None
    problem = Problem(uid="a", inputs=inputs, mode=mode, think=think, system_prompt=prompt)
    room = {"max_context_tokens": capacity}
    wanted = generator(Script({"a": texts}), config, **room).run([problem])
    check(engine_generator(scripted({"a": texts}), config, **room).run([problem]), wanted)


@pytest.mark.slow
def test_the_engine_writes_while_the_drawer_draws() -> None:
    model, _, tokenizer = parts()
    engine = FakeEngine(model, tokenizer.special, scripted(ANSWERS))
    engine_generator(engine=engine).run(problems())
    assert engine.idle_calls > 5


def test_blocks_are_sent_again_as_they_were() -> None:
    """So the prefix cache finds them, and no image is encoded twice."""
    model, _, tokenizer = parts()
    engine = FakeEngine(model, tokenizer.special, scripted(ANSWERS))
    engine_generator(engine=engine).run(problems()[:1])
    first, second, third = (request.context for request in engine.requests)
    assert [type(part) for part in first[:-1]] == [tuple, ImageBlock, ImageBlock]
    for longer, shorter in ((second, first), (third, second)):
        assert all(a is b for a, b in zip(longer, shorter[:-1], strict=False))
        text, latents, patches, start = longer[len(shorter) - 1 :]
        assert isinstance(text, tuple)
        assert text[0] == start[0] == tokenizer.special.bos
        assert (latents.kind, patches.kind) == ("vae", "vit")


def test_kept_contexts_read_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = Prefiller.prefill

    def prefill(self: Prefiller, entries: Any) -> Any:
        read.extend(item.num_tokens for item, _ in entries)
        return real(self, entries)

    monkeypatch.setattr(Prefiller, "prefill", prefill)
    texts = {"a": [("Draw it.", "draw"), ("Again", "draw"), ("So", "stop")]}
    engine_generator(scripted(texts)).run([problems()[0]])
    image = (2 * 3 + 2) + (2 * 3 + 2)
    # The question, its picture and the first text; then the drawing and the second text.
    assert read == [len("What is it?") + 2, image, len("Draw it.") + 2, image, len("Again") + 2]


def test_samples_depend_on_seed_uid_and_step() -> None:
    config = replace(GREEDY, text=TextConfig(temperature=1.0))
    texts = {uid: [(None, "write"), (None, "stop")] for uid in "ab"}
    script, eos = scripted(texts), parts()[2].special.eos

    def choose(logits: torch.Tensor, request: ContextRequest, index: int) -> int:
        sampled = greedy(logits, request, index)
        return sampled if index < 6 and sampled != eos else script(logits, request, index)

    seeds: set[int] = set()
    said = []
    for uid, seed in (("a", 0), ("a", 0), ("b", 0), ("a", 1)):
        model, _, tokenizer = parts()
        engine = FakeEngine(model, tokenizer.special, choose)
        made = engine_generator(engine=engine, config=config)
        said.append(made.run([Problem(uid=uid, inputs=("Go on",), seed=seed)])[0].text)
        seeds |= {request.seed for request in engine.requests}
    assert said[0] == said[1]
    assert len(set(said)) == 3
    assert len(seeds) == 6


class Broken(FakeEngine):
    """Changes the results of one problem."""

    def __init__(self, **changes: Any) -> None:
        model, _, tokenizer = parts()
        super().__init__(model, tokenizer.special, scripted(ANSWERS))
        self.changes = changes

    def collect(self, *, wait: bool = True) -> list[ContextResult]:
        found = super().collect(wait=wait)
        return [
            replace(one, **self.changes) if one.uid.startswith("a/2/") else one for one in found
        ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"logprobs": (0.0, float("nan"))}, "not_finite"),
        ({"failure": Failure(kind="engine", message="aborted")}, "failed"),
    ],
)
def test_a_failed_text_ends_only_its_problem(changes: Any, reason: str) -> None:
    found = {one.uid: one for one in engine_generator(engine=Broken(**changes)).run(problems())}
    assert found["a"].finish_reason == reason
    assert {one.finish_reason for uid, one in found.items() if uid != "a"} == {"stop"}
    failure = failure_of(found["a"])
    assert failure is not None
    assert failure.kind == {"not_finite": "not_finite", "failed": "engine"}[reason]


class Interrupted(FakeEngine):
    """Raises once, with texts pending."""

    def __init__(self, error: BaseException) -> None:
        model, _, tokenizer = parts()
        super().__init__(model, tokenizer.special, scripted(ANSWERS))
        self.error: BaseException | None = error

    def collect(self, *, wait: bool = True) -> list[ContextResult]:
        if self.error is not None and len(self.requests) > len(INPUTS):
            error, self.error = self.error, None
            raise error
        return super().collect(wait=wait)


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        pytest.param(RuntimeError("out of order"), marks=pytest.mark.slow),
    ],
)
def test_run_works_again_after_an_error(error: BaseException) -> None:
    engine = Interrupted(error)
    made = engine_generator(engine=engine)
    with pytest.raises(type(error)):
        made.run(problems())
    assert made.num_pending == engine.num_pending == 0
    assert not drawer_of(made).is_busy
    check(made.run(problems()), native_answers())


def test_problems_wait_for_room_in_the_batch() -> None:
    model, _, tokenizer = parts()
    engine = FakeEngine(model, tokenizer.special, scripted(ANSWERS))
    made = engine_generator(engine=engine, batch_size=2)
    for problem in problems():
        made.submit(problem)
    made.advance()
    assert len({request.uid for request in engine.requests}) <= 3
    with pytest.raises(InputError, match="same uid"):
        made.submit(problems()[0])
    check(made.run([]), [])
    assert made.num_pending == 0


def test_closing_stops_the_engine() -> None:
    model, _, tokenizer = parts()
    engine = FakeEngine(model, tokenizer.special)
    engine_generator(engine=engine).close()
    assert engine.is_closed
