"""The BAGEL backend in the predict loop, with the tiny reference checkpoint."""

import json
import os
import shutil
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.images.resize import ImageTransform
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.generation.backends.base import BackendError, GenerationBackend, generate
from mathcanvas_lightning.generation.bagel import generator
from mathcanvas_lightning.generation.bagel import requests as bagel_requests
from mathcanvas_lightning.generation.bagel.backend import BagelBackend
from mathcanvas_lightning.generation.bagel.contexts import Prefiller
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
from mathcanvas_lightning.generation.bagel.problem import Answer, Step
from mathcanvas_lightning.generation.events import DrawingEvent, EndEvent, TextEvent
from mathcanvas_lightning.generation.requests import (
    GenerationRequest,
    GenerationResponse,
    Message,
    Output,
    Part,
    Sampling,
)
from mathcanvas_lightning.generation.run.answer_folders import reasoning_result
from mathcanvas_lightning.generation.run.reasoning_folders import ReasoningFolders
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.layers.quantized import LAYER_OF, quantized_layers
from mathcanvas_lightning.records.pictures import Picture
from mathcanvas_lightning.records.record import RecordInput
from tests.conftest import TRAINER_WARNINGS, golden_folder, png
from tests.generation.runs import (
    predict,
    read_lines,
    records,
    run_command,
    run_file,
    write_lines,
)
from tests.parity.packs import need
from tests.ranks import reserved_port
from tests.warm import WarmPython

pytestmark = [pytest.mark.filterwarnings(text) for text in TRAINER_WARNINGS]


def checkpoint() -> Path:
    return need(golden_folder() / "tiny_bagel")


def drawing_px() -> int:
    """Side of small drawings that fit the position table of the checkpoint."""
    return 2 * BagelConfig.from_directory(checkpoint()).geometry.latent_patch_px


def options() -> dict[str, Any]:
    """Arguments of a backend in YAML form: small drawings, few steps."""
    geometry = BagelConfig.from_directory(checkpoint()).geometry

    def sizes(patch_px: int, side: int) -> dict[str, int]:
        longest = min(4, side) * patch_px
        least = min(2 * patch_px, longest)
        return {"max_image_size": longest, "min_image_size": least, "image_stride": patch_px}

    return {
        "checkpoint": str(checkpoint()),
        "drawing": {"num_timesteps": 4, "default_size": [drawing_px()] * 2},
        "max_steps": 3,
        "max_images": 2,
        "max_context_tokens": 512,
        "max_batch_size": 4,
        "vae_transform": sizes(geometry.latent_patch_px, geometry.max_latent_side),
        "vit_transform": sizes(geometry.vit_patch_px, geometry.max_vit_side),
    }


def backend(**changes: Any) -> BagelBackend:
    given = options() | changes
    given["drawing"] = DrawingConfig(**given["drawing"])
    for name in ("vae_transform", "vit_transform"):
        given[name] = ImageTransform(**given[name])
    return BagelBackend(**given)


@pytest.fixture(scope="module")
def bagel() -> BagelBackend:
    """A started backend."""
    made = backend()
    made.start()
    return made


def ask(uid: str, *parts: Part, system: str | None = None, **sampling: Any) -> GenerationRequest:
    messages = [Message(role="user", parts=parts)]
    if system is not None:
        messages.insert(0, Message(role="system", parts=(system,)))
    given = {"max_tokens": 24, "temperature": 1.0, **sampling}
    return GenerationRequest(uid=uid, messages=tuple(messages), sampling=Sampling(**given))


def system_picture(uid: str) -> GenerationRequest:
    messages = (
        Message(role="system", parts=("Look:", Picture(png()))),
        Message(role="user", parts=("?",)),
    )
    return GenerationRequest(uid=uid, messages=messages)


def answers(
    bagel: GenerationBackend, *requests: GenerationRequest
) -> dict[str, GenerationResponse]:
    return {response.uid: response for response in generate(bagel, requests)}


QUESTIONS = [
    ask("text", "What is drawn?"),
    ask("picture", "Look:", Picture(png(40, 32)), "What is it?"),
    ask("system", "Say it.", system="Be brief."),
    ask("two", "Which one?", n=2),
    ask("greedy", "Which one?", temperature=0.0),
]


def pixels(part: Part) -> Any:
    assert isinstance(part, Picture)
    with Image.open(BytesIO(part.data)) as image:
        return np.asarray(image).astype(int)


def same(one: Output, other: Output) -> None:
    """Equal texts; drawings may differ by the rounding of pixels."""
    assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
    for left, right in zip(one.steps, other.steps, strict=True):
        if isinstance(left, str):
            assert left == right
        else:
            assert np.abs(pixels(left) - pixels(right)).max() <= 1


@pytest.mark.parametrize("mode", ["interleaved", "image"])
def test_answers_do_not_depend_on_the_batch(mode: str) -> None:
    bagel = backend(mode=mode)
    together = answers(bagel, *QUESTIONS)
    assert together.keys() == {question.uid for question in QUESTIONS}
    for question in QUESTIONS:
        (alone,) = answers(bagel, question).values()
        assert alone.failure is None
        for one, other in zip(alone.outputs, together[question.uid].outputs, strict=True):
            same(one, other)
    drawn = [part for one in together["two"].outputs for part in one.steps if part]
    if mode == "image":
        assert np.any(pixels(drawn[0]) != pixels(drawn[1]))


def test_samples_differ_and_are_counted(bagel: BagelBackend) -> None:
    (response,) = answers(bagel, ask("two", "Which one?", n=2)).values()
    first, second = response.outputs
    assert first.text != second.text
    assert 0 < response.usage.completion_tokens <= 2 * 24
    assert response.usage.prompt_tokens > 0


def test_seeds_change_the_answers(bagel: BagelBackend) -> None:
    (one,) = answers(bagel, ask("a", "Go on", seed=1)).values()
    (same,) = answers(bagel, ask("a", "Go on", seed=1)).values()
    (other,) = answers(bagel, ask("a", "Go on", seed=2)).values()
    assert one.outputs == same.outputs
    assert one.outputs[0].text != other.outputs[0].text


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (ask("a", "?", stop=("x",)), "unsupported"),
        (ask("a", "?", choice=("0", "1")), "unsupported"),
        (ask("a", "?", Picture(png()[:30])), "picture_unreadable"),
        (ask("a", "word " * 2000), "prompt_too_long"),
        (system_picture("a"), "unsupported"),
    ],
    ids=["stop", "choice", "cut picture", "too long", "picture in a system message"],
)
def test_a_failed_request_does_not_affect_others(
    bagel: BagelBackend, request_: GenerationRequest, kind: str
) -> None:
    found = answers(bagel, request_, ask("b", "And this?"))
    assert found["b"].failure is None
    failure = found["a"].failure
    assert failure is not None
    assert failure.kind == kind


def test_pictures_of_several_samples_are_decoded_once(
    bagel: BagelBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    real = bagel_requests.decode_picture
    monkeypatch.setattr(
        bagel_requests, "decode_picture", lambda *args: decoded.append(args) or real(*args)
    )
    answers(bagel, ask("three", "Look:", Picture(png(40, 32)), n=3))
    assert len(decoded) == 1


def test_max_tokens_gives_the_finish_reason_length(bagel: BagelBackend) -> None:
    (response,) = answers(bagel, ask("a", "Go on", max_tokens=1)).values()
    assert response.outputs[0].finish_reason == "length"
    assert response.usage.completion_tokens == 1


def test_steps_keep_their_numbers() -> None:
    """An empty text stands for a missing one."""
    drawing = Image.new("RGB", (4, 4))
    steps = [(1, drawing), (2, "Then"), (4, drawing), (5, "So"), (5, drawing)]
    answer = Answer(
        uid="a#0",
        steps=tuple(Step(number=number, content=content) for number, content in steps),
        finish_reason="max_images",
        num_input_tokens=1,
        num_written_tokens=1,
    )
    (output,) = bagel_requests.response_of(ask("a", "?"), [answer]).outputs
    found = [part if isinstance(part, str) else "drawing" for part in output.steps]
    assert found == ["", "drawing", "Then", "", "", "drawing", "So", "drawing"]
    result = reasoning_result("a", output.steps)["reasoning_steps"]
    assert [one["iteration"] for one in result] == [number for number, _ in steps]
    assert output.finish_reason == "max_images"


def test_understanding_needs_one_context() -> None:
    """It needs a third of the memory of the other modes."""
    for mode, rows in (("understanding", 1), ("interleaved", 3)):
        made = backend(mode=mode, max_batch_size=1)
        made.start()
        assert made.generator.cache.num_rows == rows


def test_settings_contain_what_changes_the_answers() -> None:
    found = backend().settings
    assert json.loads(json.dumps(found)).keys() == found.keys()
    for change in (
        {"mode": "image"},
        {"max_steps": 2},
        {"interpolate_positions": True},
        {"drawing": {"num_timesteps": 5}},
        {"dtype": "float32"},
        {"weights": "bf16"},
        {"weights": "int8"},
        {"weights": "nf4"},
    ):
        assert backend(**change).settings != found
    assert backend(max_batch_size=1).settings == found


@pytest.mark.parametrize("weights", ["bf16", "int8", "nf4"])
def test_weights_with_fewer_bits(weights: str) -> None:
    if weights == "nf4":
        pytest.importorskip("bitsandbytes")
    made = backend(weights=weights)
    found = answers(made, *QUESTIONS[:2])
    made.start()
    model = made.generator.model  # type: ignore[attr-defined]
    made.close()
    assert all(response.failure is None for response in found.values())
    kinds = {type(layer) for _, layer in quantized_layers(model)}
    assert kinds == ({LAYER_OF[weights]} if weights in LAYER_OF else set())  # type: ignore[index]
    computed = torch.bfloat16 if weights == "bf16" else torch.float32
    assert model.language_model.lm_head.weight.dtype == computed


def test_weights_that_contradict_the_precision_are_refused() -> None:
    with pytest.raises(ConfigError, match="weights: found bf16, with dtype float32"):
        backend(weights="bf16", dtype="float32")


def test_nf4_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"^weights: found nf4.*mathcanvas-lightning\[qlora\]"):
        backend(weights="nf4").start()


def test_positions_can_be_interpolated() -> None:
    drawn = []
    for interpolate in (False, True):
        (response,) = answers(
            backend(mode="image", interpolate_positions=interpolate), ask("a", "Draw")
        ).values()
        drawn.append(pixels(response.outputs[0].steps[-1]))
    assert np.any(drawn[0] != drawn[1])


def test_an_error_of_the_model_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("odd")
    made = backend()
    made.start()
    generator = made.generator
    with monkeypatch.context() as patch:
        patch.setattr(Prefiller, "prefill", raises(error))
        made.submit([ask("a", "?", n=2), ask("b", "?")])
        with pytest.raises(BackendError, match=r"(?s)RuntimeError: odd.*max_batch_size") as raised:
            made.collect()
    assert raised.value.__cause__ is error
    assert made.num_pending == generator.num_pending == 0
    assert made.collect() == []
    assert answers(made, ask("a", "?"))["a"].failure is None


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_a_problem_that_is_too_large_fails_and_the_others_are_answered(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [ask(uid, f"Question {uid}?") for uid in "abcd"]
    expected = answers(backend(), *asked)
    made = backend()
    made.start()
    prefill = Prefiller.prefill

    def limited(self: Prefiller, entries: Any) -> None:
        if any(uid.startswith("b") for uid in made.generator.running):
            raise kind("can't allocate memory: 2 GiB")
        prefill(self, entries)

    with monkeypatch.context() as patch:
        patch.setattr(Prefiller, "prefill", limited)
        found = answers(made, *asked)
    failure = found.pop("b").failure
    assert failure is not None
    assert failure.kind == "out_of_memory"
    assert found == {uid: one for uid, one in expected.items() if uid != "b"}
    assert answers(made, ask("b", "Question b?"))["b"] == expected["b"]


def test_too_little_memory_for_every_problem_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = backend()
    made.start()
    with monkeypatch.context() as patch:
        patch.setattr(Prefiller, "prefill", raises(torch.OutOfMemoryError("2 GiB")))
        made.submit([ask(uid, "?") for uid in "abcde"])
        with pytest.raises(BackendError, match=r"(?s)too little memory.*max_batch_size"):
            while made.num_pending:
                made.collect()
    assert made.num_pending == made.generator.num_pending == 0
    assert answers(made, ask("a", "?"))["a"].failure is None


def raises(error: BaseException) -> Any:
    def fail(*args: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("mode", ["understanding", "image"])
def test_other_modes(mode: str) -> None:
    made = backend(mode=mode)
    found = answers(made, ask("a", "A red square", Picture(png(32, 32))))
    (output,) = found["a"].outputs
    drawings = [step for step in output.steps if isinstance(step, Picture)]
    assert len(drawings) == (mode == "image")
    assert bool(output.text) == (mode == "understanding")


def test_needs_to_be_started_and_can_be_closed() -> None:
    made = backend()
    assert isinstance(made, GenerationBackend)
    with pytest.raises(BackendError, match="start"):
        made.submit([ask("a", "?")])
    made.start()
    made.submit([ask("a", "?")])
    assert made.num_pending == 1
    made.close()
    assert made.num_pending == 0
    assert made.collect() == []
    made.close()


def test_reason(bagel: BagelBackend, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png(32, 32))
    sampling = Sampling(temperature=1.0, max_tokens=16, seed=3)
    by_path = bagel.reason(["Look:", tmp_path / "red.png"], sampling=sampling)
    by_image = bagel.reason(["Look:", Image.open(tmp_path / "red.png")], sampling=sampling)
    assert by_path.text == by_image.text
    assert by_path.steps
    assert bagel.reason("Hello", sampling=sampling).text
    with pytest.raises(InputError):
        bagel.reason([])


def test_reason_rejects_unsupported_arguments(bagel: BagelBackend, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(png(32, 32)[:40])
    for name in ("absent.png", "text.png", "cut.png", ".", "nul\0"):
        with pytest.raises(InputError, match="picture"):
            bagel.reason(["Look:", tmp_path / name])
    for sampling in (Sampling(n=2), Sampling(stop=("x",)), Sampling(choice=("0", "1"))):
        with pytest.raises(ConfigError, match="reason"):
            bagel.reason("What?", sampling=sampling)


def test_reason_rejects_pictures_over_the_limits(
    bagel: BagelBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(png(32, 32))
    monkeypatch.setattr(bagel_requests, "ImageLimits", lambda: ImageLimits(max_pixels=100))
    with pytest.raises(InputError, match="over 100"):
        bagel.reason([path])


def test_reason_works_again_after_an_interrupt(
    bagel: BagelBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=8, seed=3)
    wanted = bagel.reason("Go on", sampling=sampling)
    with monkeypatch.context() as patch:
        patch.setattr(bagel.generator, "choose", raises(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            bagel.reason("Go on", sampling=sampling)
    assert bagel.reason("Go on", sampling=sampling) == wanted


def test_a_streamed_answer_is_that_of_a_run(bagel: BagelBackend) -> None:
    request = ask("stream", "Look:", Picture(png(40, 32)), "What is it?")
    wanted = answers(bagel, request)["stream"]
    *before, end = bagel.stream(request)
    assert isinstance(end, EndEvent)
    assert end.response == wanted
    shown: dict[tuple[int, type], Part] = {}
    for event in before:
        if isinstance(event, TextEvent) and event.text:
            shown[event.step, str] = event.text
        elif isinstance(event, DrawingEvent) and event.picture is not None:
            assert event.share == 1.0
            shown[event.step, Picture] = event.picture
    assert list(shown.values()) == [part for part in wanted.outputs[0].steps if part]
    assert len(before) > len(shown)  # unfinished steps, too


def test_a_closed_stream_leaves_nothing(bagel: BagelBackend) -> None:
    request = ask("again", "What is drawn?")
    stream = bagel.stream(request)
    first = next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert bagel.generator.num_pending == 0
    assert next(iter(bagel.stream(request))) == first


def test_a_stream_ends_with_the_failure_of_its_request(bagel: BagelBackend) -> None:
    for request in (ask("broken", Picture(b"no picture")), ask("sampling", "?", stop=("x",))):
        (event,) = bagel.stream(request)
        assert isinstance(event, EndEvent)
        assert event.response == answers(bagel, request)[request.uid]
        assert event.response.failure is not None
    bagel.submit([ask("pending", "?")])
    with pytest.raises(BackendError, match="pending"):
        next(bagel.stream(ask("stream", "?")))
    assert bagel.collect()


@pytest.mark.slow
def test_missing_checkpoint(tmp_path: Path, warm: WarmPython) -> None:
    source = write_lines(tmp_path / "questions.jsonl", records(1))
    made = {
        "class_path": "mathcanvas_lightning.BagelBackend",
        "init_args": {"checkpoint": str(tmp_path / "absent")},
    }
    done = run_command(warm, run_file(tmp_path, made, source))
    assert done.returncode == 1
    assert "absent" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_ranks_share_and_agree(tmp_path: Path, warm: WarmPython, warm_command: Path) -> None:
    (tmp_path / "red.png").write_bytes(png(40, 32))
    some = records(7, image="red.png")
    made = {"class_path": "mathcanvas_lightning.BagelBackend", "init_args": options()}
    said = {}
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        source = write_lines(tmp_path / "questions.jsonl", some)
        trainer = {"devices": ranks, "strategy": "ddp" if ranks > 1 else "auto"}
        words = ["--model.init_args.sampling={temperature: 1.0, max_tokens: 16}"]
        folders = [{"class_path": "mathcanvas_lightning.ReasoningFolders"}]
        words.append(f"--trainer.callbacks={json.dumps(folders)}")
        config = run_file(folder, made, source, trainer=trainer)
        port = {"MASTER_PORT": str(reserved_port())}
        done = run_command(warm, config, *words, python=warm_command, env=os.environ | port)
        assert done.returncode == 0, done.stderr
        said[ranks] = read_lines(folder / "answers.jsonl")
        assert len(list((folder / "answers").iterdir())) == 7
    assert said[1] == said[2]
    assert len({one["model_answer"] for one in said[1]}) > 1


def test_drawings_are_written_to_folders(tmp_path: Path) -> None:
    source = RecordInput(
        path=str(write_lines(tmp_path / "questions.jsonl", records(2))),
        output=str(tmp_path / "answers.jsonl"),
    )
    predict(backend(mode="image"), [source], ReasoningFolders())
    for n in range(2):
        with Image.open(tmp_path / "answers" / str(n) / "images" / "reasoning_image_1.png") as one:
            assert one.size == (drawing_px(), drawing_px())


def test_the_trainers_precision_changes_nothing(tmp_path: Path) -> None:
    drawn = []
    for precision in ("32-true", "bf16-mixed", "bf16-true"):
        folder = tmp_path / precision
        folder.mkdir()
        source = RecordInput(
            path=str(write_lines(folder / "questions.jsonl", records(1))),
            output=str(folder / "answers.jsonl"),
        )
        made = backend(mode="image", dtype="float32")
        predict(made, [source], ReasoningFolders(), trainer={"precision": precision})
        picture = folder / "answers" / "0" / "images" / "reasoning_image_1.png"
        drawn.append(pixels(Picture(picture.read_bytes())))
    for other in drawn[1:]:
        assert np.abs(drawn[0] - other).max() <= 1


def test_nan_fails_the_problem_and_not_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    made = backend(mode="understanding")
    made.start()
    whole = generator.next_logits

    def broken(model: Any, cache: Any, contexts: Any, token_ids: Any) -> torch.Tensor:
        logits = whole(model, cache, contexts, token_ids)
        logits[0] = torch.nan
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(generator, "next_logits", broken)
        found = answers(made, ask("a", "What is drawn?"))["a"]
        assert found.failure is not None
        assert found.failure.kind == "not_finite"
        with pytest.raises(BackendError, match="NaN"):
            made.reason("What is drawn?", sampling=Sampling(max_tokens=4))
    assert answers(made, ask("a", "What is drawn?"))["a"].failure is None


def test_a_drawing_that_is_not_finite_fails_the_problem(tmp_path: Path) -> None:
    model = shutil.copytree(checkpoint(), tmp_path / "model")
    weights = load_file(model / "ema.safetensors")
    weights["llm2vae.weight"].fill_(torch.finfo(torch.float32).max)  # finite, but no product is
    save_file(weights, model / "ema.safetensors")
    made = backend(checkpoint=str(model), mode="image")
    failure = answers(made, ask("a", "A red square."))["a"].failure
    assert failure is not None
    assert failure.kind == "not_finite"


def test_given_drawings_need_those_of_records() -> None:
    given = backend(drawings="reference")
    given.start()
    response = answers(given, ask("a", "What?"))["a"]
    assert response.failure is not None
    assert "mathcanvas predict" in response.failure.message


@pytest.mark.parametrize("settings", [{"drawings": "shuffled"}, {"min_images": 1}])
def test_settings_of_interleaved_answers_in_another_mode(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="interleaved"):
        backend(mode="understanding", **settings)
