"""vLLM with a model that reads pictures."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from mathcanvas_lightning.generation.backends.vllm.backend import VLLMBackend
from mathcanvas_lightning.generation.requests import GenerationResponse
from mathcanvas_lightning.records.pictures import Picture
from tests.conftest import encoded, lasting_processes, png
from tests.generation.engine import (  # noqa: F401 - fixtures
    SMALL_CACHE,
    answers,
    ask,
    engine_lock,
    in_one_process,
    real_engine,
)
from tests.generation.tiny_idefics3 import TOKENS_PER_TILE, make_tiny_idefics3

pytestmark = real_engine
RED, BLUE = Picture(png(40, 30, "red")), Picture(encoded("JPEG", 100, 50, "blue"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("idefics3")
    make_tiny_idefics3(folder)
    return folder


@pytest.fixture(scope="module")
def backend(engine_lock: None, model: Path) -> Iterator[VLLMBackend]:  # noqa: F811
    engine = VLLMBackend(
        str(model), dtype="float32", max_model_len=512, max_images=3, engine_options=SMALL_CACHE
    )
    with in_one_process():
        engine.start()
    yield engine
    engine.close()
    assert not lasting_processes()


def ids(response: GenerationResponse) -> tuple[int, ...]:
    assert response.failure is None, response.failure
    (output,) = response.outputs
    return output.token_ids


@pytest.mark.slow
def test_pictures_and_their_positions_change_the_answer(backend: VLLMBackend) -> None:
    found = answers(
        backend,
        [
            ask("none", "See: and say."),
            ask("red", "See: ", RED, "and say."),
            ask("green", "See: ", Picture(png(40, 30, "green")), "and say."),
            ask("after", "See: and say.", RED),
            ask("red blue", "First ", RED, "then ", BLUE, "."),
            ask("blue red", "First ", BLUE, "then ", RED, "."),
        ],
    )
    assert len({ids(response) for response in found.values()}) == len(found)
    tokens = {uid: response.usage.prompt_tokens for uid, response in found.items()}
    assert tokens["red"] == tokens["green"] >= tokens["none"] + TOKENS_PER_TILE
    assert tokens["red blue"] == tokens["blue red"]


def test_encoding_of_a_picture_does_not_matter(backend: VLLMBackend) -> None:
    kinds = {kind: Picture(encoded(kind, 40, 30, "white")) for kind in ("PNG", "BMP", "WEBP")}
    kinds["clear"] = Picture(png(40, 30, (9, 9, 9, 0), "RGBA"))  # type: ignore[arg-type]
    kinds["grey"] = Picture(png(40, 30, "white", "L"))
    found = answers(backend, [ask(kind, picture, "?") for kind, picture in kinds.items()])
    assert len({ids(response) for response in found.values()}) == 1


@pytest.mark.slow
def test_too_many_or_too_large_pictures_fail_only_their_request(backend: VLLMBackend) -> None:
    wide = Picture(png(400, 40))
    found = answers(
        backend,
        [ask("four", *[RED] * 4), ask("long", "word " * 100, wide, RED, wide), ask("one", RED)],
    )
    assert found["four"].failure
    assert found["four"].failure.kind == "unsupported"
    assert "3" in found["four"].failure.message
    assert found["long"].failure
    assert found["long"].failure.kind == "prompt_too_long"
    assert ids(found["one"])


@pytest.mark.slow
def test_template_options_reach_the_template(backend: VLLMBackend) -> None:
    plain = ask("plain", "Hi.")
    terse = dataclasses.replace(plain, uid="terse", template_options={"terse": True})
    found = answers(backend, [plain, terse])
    more = found["terse"].usage.prompt_tokens - found["plain"].usage.prompt_tokens
    assert more == len("Be terse. ")  # one token per letter
