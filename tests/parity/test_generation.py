"""Texts, drawings and chains equal those of the reference."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.images.resize import ImageTransform, decode_image
from mathcanvas_lightning.data.rows.readers import READERS, Role
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.generation.bagel import image_steps
from mathcanvas_lightning.generation.bagel.contexts import CONTEXTS, Context, Item, ItemMaker
from mathcanvas_lightning.generation.bagel.generator import InterleavedGenerator
from mathcanvas_lightning.generation.bagel.guidance import DrawingConfig
from mathcanvas_lightning.generation.bagel.image_steps import Drawing
from mathcanvas_lightning.generation.bagel.options import BatchLimits, ImageOptions
from mathcanvas_lightning.generation.bagel.problem import InterleavedConfig, Problem
from mathcanvas_lightning.generation.bagel.text_steps import (
    TextConfig,
    TokenChoice,
    choose_tokens,
    next_logits,
)
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.config import BagelConfig
from mathcanvas_lightning.model.vae import LatentVAE
from tests.conftest import golden_folder
from tests.generation.drawing import Studio, open_studio
from tests.parity.packs import need

GOLDEN = golden_folder()
CLOSE = {"atol": 1e-4, "rtol": 0}
LATENT_CLOSE = {"atol": 1e-3, "rtol": 0}
ROOM = 2048


@dataclass(frozen=True)
class Case:
    """One result of the reference, with its name and settings."""

    file: str
    name: str
    about: dict[str, Any]
    row_id: str

    def __str__(self) -> str:
        return f"{self.file}.{self.name}"

    def result(self, name: str) -> Tensor:
        return results(self.file)[f"{self.name}.{name}"]

    def has(self, name: str) -> bool:
        return f"{self.name}.{name}" in results(self.file)


@cache
def results(file: str) -> dict[str, Tensor]:
    return load_file(need(GOLDEN / f"{file}.safetensors"))


def read_cases() -> list[Case]:
    """All cases of all files; a case without a row uses that of the case before the dot."""
    cases = []
    for path in sorted(GOLDEN.glob("generate*.json")):
        about = json.loads(path.read_text())
        for name, own in about.items():
            row_id = own.get("row_id") or about[name.rsplit(".", 1)[0]]["row_id"]
            cases.append(Case(path.stem, name, own, row_id))
    return cases


CASES = read_cases()
CHAINS = [case for case in CASES if "given_text" in case.about]
DRAWINGS = [case for case in CASES if "image_shape" in case.about and case not in CHAINS]
TEXTS = [case for case in CASES if "text_max_length" in case.about and case not in CHAINS]


def ask(studio: Studio, row_id: str) -> list[Context]:
    """The contexts of a row's question."""
    contexts = studio.contexts()
    studio.prefill(contexts, *question(row_id, studio.maker))
    return contexts


def question_parts(row_id: str) -> list[str | Image.Image]:
    """Texts and pictures of a golden row's question, in order."""
    rows = pq.read_table(need(GOLDEN / "rows.parquet")).to_pylist()
    [row] = [row for row in rows if row["id"] == row_id]
    parts: list[str | Image.Image] = []
    for element in READERS["interleaved"](row, row_id).elements:
        if element.role == Role.PROMPT_TEXT:
            assert isinstance(element.content, str)
            parts.append(element.content)
        elif element.role == Role.CONTEXT_IMAGE:
            assert isinstance(element.content, bytes)
            parts.append(decode_image(element.content, ImageLimits()))
    return parts


def question(row_id: str, maker: ItemMaker) -> list[Item]:
    """The question as items."""
    return [
        maker.text(part) if isinstance(part, str) else maker.image(part)
        for part in question_parts(row_id)
    ]


@cache
def transforms() -> tuple[ImageTransform, ImageTransform]:
    settings = json.loads(need(GOLDEN / "settings.json").read_text())
    return (
        ImageTransform(**settings["image_transform"]),
        ImageTransform(**settings["vit_image_transform"]),
    )


@cache
def parts() -> tuple[Bagel, LatentVAE, TextTokenizer]:
    folder = need(GOLDEN / "tiny_bagel")
    model = Bagel.from_checkpoint(folder, dtype=torch.float32)
    vae = LatentVAE.from_checkpoint(folder, BagelConfig.from_directory(folder).vae)
    return model, vae, TextTokenizer(str(folder))


@cache
def capacity() -> int:
    """Length of a context for the longest question and its answer."""
    maker = ItemMaker(parts()[0].config, parts()[2], *transforms())
    questions = [question(row_id, maker) for row_id in {case.row_id for case in CASES}]
    return ROOM + max(sum(item.num_tokens for item in items) for items in questions)


@pytest.fixture
def studio() -> Studio:
    num_rows = len(CONTEXTS) * (len(DRAWINGS) + len(TEXTS) + 1)
    return open_studio(*parts(), *transforms(), num_rows=num_rows, capacity=capacity())


def drawing_config(about: dict[str, Any]) -> DrawingConfig:
    height, width = about["image_shape"]
    return DrawingConfig(
        text_scale=about["cfg_text_scale"],
        image_scale=about["cfg_img_scale"],
        interval=tuple(about["cfg_interval"]),
        renorm=about["cfg_renorm_type"],
        renorm_min=about["cfg_renorm_min"],
        num_timesteps=about["num_timesteps"],
        timestep_shift=about["timestep_shift"],
        default_size=(width, height),
    )


def begin(
    studio: Studio, case: Case, contexts: Sequence[Context], noise: str = "init_noise"
) -> Drawing:
    """A drawing that starts from the reference's noise."""
    config = drawing_config(case.about)
    drawing = studio.painter.begin(config, contexts, config.default_size, ("test",))
    assert drawing.latents.shape == case.result(noise).shape
    drawing.latents = case.result(noise)
    return drawing


def finish(studio: Studio, drawings: Sequence[Drawing]) -> None:
    """Steps all drawings together until each is done."""
    while remaining := [drawing for drawing in drawings if not drawing.is_done]:
        studio.painter.step(remaining)


def write(
    studio: Studio, contexts: Sequence[Context], wanted_ids: Sequence[Tensor]
) -> list[tuple[list[int], Tensor]]:
    """Greedy texts from full contexts as one batch; continues after an end token if wanted."""
    ids = [[studio.maker.tokenizer.special.bos] for _ in contexts]
    logits: list[list[Tensor]] = [[] for _ in contexts]
    while active := [i for i in range(len(ids)) if len(logits[i]) < len(wanted_ids[i])]:
        rows = next_logits(
            studio.model, studio.cache, [contexts[i] for i in active], [ids[i][-1] for i in active]
        )
        for i, row in zip(active, rows, strict=True):
            logits[i].append(row)
            ids[i].append(int(row.argmax()))
    return [(own[:-1], torch.stack(rows)) for own, rows in zip(ids, logits, strict=True)]


def same_pixels(found: Any, wanted: Tensor) -> None:
    difference = np.abs(np.asarray(found).astype(int) - wanted.numpy().astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


def test_golden_files_exist() -> None:
    """Each file has cases that are compared below."""
    files = {case.file for case in CASES}
    if not files:
        pytest.skip(f"no generate*.json in {GOLDEN}")
    assert {case.file for case in TEXTS + DRAWINGS + CHAINS} == files


@torch.inference_mode()
def test_texts(studio: Studio) -> None:
    """All texts as one batch."""
    if not TEXTS:
        pytest.skip("no texts")
    full = [ask(studio, case.row_id)[0] for case in TEXTS]
    wanted = [case.result("text_ids") for case in TEXTS]
    for case, ids, (own_ids, logits) in zip(
        TEXTS, wanted, write(studio, full, wanted), strict=True
    ):
        assert own_ids == ids.tolist(), case
        torch.testing.assert_close(logits, case.result("text_logits"), **CLOSE)


@torch.inference_mode()
@pytest.mark.parametrize("case", DRAWINGS, ids=str)
def test_drawings(case: Case, studio: Studio) -> None:
    drawing = begin(studio, case, ask(studio, case.row_id))
    finish(studio, [drawing])
    torch.testing.assert_close(drawing.latents, case.result("latent"), **LATENT_CLOSE)
    if case.has("pixels"):
        same_pixels(studio.painter.paint([drawing])[0], case.result("pixels"))


@torch.inference_mode()
def test_drawings_as_one_batch(studio: Studio) -> None:
    """Sizes, numbers of steps, guidance and start times differ."""
    if not DRAWINGS:
        pytest.skip("no drawings")
    drawings: list[Drawing] = []
    for case in DRAWINGS:
        drawings.append(begin(studio, case, ask(studio, case.row_id)))
        studio.painter.step([d for d in drawings if not d.is_done])
    finish(studio, drawings)
    for case, drawing in zip(DRAWINGS, drawings, strict=True):
        torch.testing.assert_close(drawing.latents, case.result("latent"), **LATENT_CLOSE)


@torch.inference_mode()
@pytest.mark.parametrize("case", CHAINS, ids=str)
def test_chain(case: Case, studio: Studio) -> None:
    """Question, text, drawing, the drawing read again, a generated text, a second drawing."""
    contexts = ask(studio, case.row_id)
    studio.prefill(contexts, studio.maker.text(case.about["given_text"]))
    first = begin(studio, case, contexts)
    finish(studio, [first])
    torch.testing.assert_close(first.latents, case.result("latent"), **LATENT_CLOSE)
    [picture] = studio.painter.paint([first])
    same_pixels(picture, case.result("pixels"))
    # Continues with the reference's pixels: a difference of one level would change the logits.
    pixels = case.result("pixels").numpy()
    studio.prefill(contexts, studio.maker.image(Image.fromarray(pixels)))
    before = contexts[0].copy()
    [(ids, logits)] = write(studio, contexts[:1], [case.result("text_ids")])
    assert ids == case.result("text_ids").tolist()
    torch.testing.assert_close(logits, case.result("text_logits"), **CLOSE)
    contexts[0].roll_back(before)
    special = studio.maker.tokenizer.special
    for token in (special.bos, special.eos):
        logits = next_logits(studio.model, studio.cache, contexts[:1], [token])
    torch.testing.assert_close(logits, case.result("action_logits_after_bos_eos"), **CLOSE)
    contexts[0].roll_back(before)
    second = begin(studio, case, contexts, "second_init_noise")
    finish(studio, [second])
    torch.testing.assert_close(second.latents, case.result("second_latent"), **LATENT_CLOSE)


@pytest.mark.parametrize("case", CHAINS, ids=str)
def test_chain_by_the_generator(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same chain by the generator, with the given text and action forced."""
    model, vae, tokenizer = parts()
    special = tokenizer.special
    given_text = case.about["given_text"]
    given = [*tokenizer.encode(given_text), special.eos, special.start_of_image]
    logits = []

    def choose(rows: Tensor, choices: Sequence[TokenChoice]) -> list[int]:
        assert len(rows) == len(choices) == 1
        if choices[0].step == 1:
            return [given[choices[0].index]]
        logits.append(rows[0])
        return choose_tokens(rows, choices)

    noise = case.result("init_noise")
    monkeypatch.setattr(image_steps, "initial_noise", lambda *key: noise)
    wanted_ids = case.result("text_ids").tolist()
    if special.eos in wanted_ids:  # the end token ends the text
        wanted_ids = wanted_ids[: wanted_ids.index(special.eos)]
    vae_transform, vit_transform = transforms()
    generator = InterleavedGenerator(
        model,
        vae,
        tokenizer,
        images=ImageOptions(vae_transform=vae_transform, vit_transform=vit_transform),
        config=InterleavedConfig(
            text=TextConfig(temperature=0),
            drawing=drawing_config(case.about),
            max_tokens=len(given) - 1 + len(wanted_ids),  # the action token does not count
        ),
        limits=BatchLimits(max_batch_size=2, max_context_tokens=capacity()),
        choose=choose,
    )
    [answer] = generator.run([Problem(uid="chain", inputs=tuple(question_parts(case.row_id)))])
    texts = [given_text.strip()] if given_text.strip() else []
    *first, picture = answer.steps[: len(texts) + 1]
    written = answer.steps[len(texts) + 1 :]
    assert [(step.number, step.content) for step in first] == [(1, text) for text in texts]
    assert picture.number == 1
    same_pixels(picture.content, case.result("pixels"))
    logits = logits[: len(wanted_ids)]
    ids = [int(row.argmax()) for row in logits]
    assert [special.bos, *ids[:-1]] == wanted_ids
    # A level of a few pixels of the drawing may differ, so the logits differ a little more.
    close = {"atol": 1e-2, "rtol": 0}
    wanted_logits = case.result("text_logits")[: len(wanted_ids)]
    torch.testing.assert_close(torch.stack(logits), wanted_logits, **close)
    if special.eos not in ids:
        assert answer.finish_reason == "max_tokens"
        text = tokenizer.decode(ids).strip()
        assert [step.content for step in written] == ([text] if text else [])
