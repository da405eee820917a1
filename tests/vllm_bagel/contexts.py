"""Contexts of texts and images, and what the native generator computes for them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from PIL import Image

from mathcanvas_lightning.data.sequence.pack import pack_samples
from mathcanvas_lightning.generation.bagel.contexts import Context, Item, ItemMaker
from mathcanvas_lightning.generation.bagel.text_steps import next_logits
from mathcanvas_lightning.model.bagel import Bagel
from mathcanvas_lightning.model.vae import pack_latents
from mathcanvas_lightning.vllm_bagel.blocks import ContextPart
from mathcanvas_lightning.vllm_bagel.pictures import blocks_of_pack
from tests.generation.drawing import Studio, open_studio, picture
from tests.parity.test_generation import CHAINS, TEXTS, parts, question, transforms

SENTENCE = "The red cube moves to the left of a blue ball; 3 + 4 = 7, so we draw it again. " * 4
NUM_WRITTEN = 12
"""Tokens of each greedy text."""
SHAPES = (
    *("t", "T", "v", "b", "l", "tv", "tb", "bt", "tbt", "tvt", "vv", "bb", "tbb", "vtv", "btb"),
    *("tll", "tvvt", "tbtv", "bvt", "vbt", "tbbt", "Tv", "vT", "bT", "tvtvt", "tbtbt", "vvv"),
    *("tvvvvvv", "vtbtv", "blvt", "bbb", "tbtbtb"),
)
"""t, T: a short or long text; b: an image as latents and patches; v: patches only; l: latents only.
"""


@dataclass(frozen=True)
class Case:
    """A context, as the native generator and as vLLM reads it."""

    name: str
    items: tuple[Item, ...]
    context: tuple[ContextPart, ...]
    """Ends with the start token of the text to write."""


@dataclass(frozen=True)
class Written:
    """A greedy text."""

    ids: list[int]
    logprobs: list[float]

    @property
    def unused_id(self) -> int:
        """A token that does not occur in the text."""
        return next(token for token in range(len(self.ids) + 1) if token not in self.ids)


@cache
def cases() -> list[Case]:
    """Mixed contexts: 0 to 6 image blocks of different sizes, in any order with texts."""
    model, _, tokenizer = parts()
    maker = ItemMaker(model.config, tokenizer, *transforms())
    made = [_case(number, shape, maker) for number, shape in enumerate(SHAPES)]
    return [*made, *(_golden_case(name, items) for name, items in golden_questions(maker))]


def golden_questions(maker: ItemMaker) -> list[tuple[str, list[Item]]]:
    """The contexts of the reference's texts, with their names."""
    found = [(str(case), question(case.row_id, maker)) for case in TEXTS]
    for case in CHAINS:
        drawn = Image.fromarray(case.result("pixels").numpy())
        given = [maker.text(case.about["given_text"]), maker.image(drawn)]
        found.append((str(case), [*question(case.row_id, maker), *given]))
    return found


def golden_texts() -> dict[str, list[int]]:
    """The reference's greedy ids by the name of the case, without the start token."""
    return {str(case): case.result("text_ids").tolist()[1:] for case in (*TEXTS, *CHAINS)}


@cache
def native_cases() -> dict[str, Written]:
    """The native generator's texts for all cases, by their names."""
    found = cases()
    return dict(zip([case.name for case in found], native_texts(found), strict=True))


@torch.inference_mode()
def native_texts(
    found: Sequence[Case], num_tokens: int = NUM_WRITTEN, model: Bagel | None = None
) -> list[Written]:
    """Greedy texts of the native generator; end tokens do not end them."""
    base, vae, tokenizer = parts()
    capacity = max(sum(item.num_tokens for item in case.items) for case in found) + num_tokens + 1
    studio = open_studio(
        model or base, vae, tokenizer, *transforms(), num_rows=len(found), capacity=capacity
    )
    contexts = [Context(row=row) for row in range(len(found))]
    entries = zip(found, contexts, strict=True)
    studio.prefiller.prefill([(item, [own]) for case, own in entries for item in case.items])
    return _write(studio, contexts, num_tokens)


def _write(studio: Studio, contexts: Sequence[Context], num_tokens: int) -> list[Written]:
    written = [Written([], []) for _ in contexts]
    ids = [studio.maker.tokenizer.special.bos] * len(contexts)
    for _ in range(num_tokens):
        logits = next_logits(studio.model, studio.cache, contexts, ids)
        ids = logits.argmax(-1).tolist()
        rows = logits.log_softmax(-1)
        for own, row, token in zip(written, rows, ids, strict=True):
            own.ids.append(token)
            own.logprobs.append(float(row[token]))
    return written


def _case(number: int, shape: str, maker: ItemMaker) -> Case:
    rng = random.Random(number)
    items = []
    for place, kind in enumerate(shape):
        if kind in "tT":
            length = rng.randint(5, 30) if kind == "t" else 200
            first = rng.randrange(80)
            items.append(maker.text(SENTENCE[first : first + length]))
            continue
        width, height = rng.randint(20, 200), rng.randint(20, 200)
        item = maker.image(picture(100 * number + place, width, height), for_vae=kind != "v")
        items.append(_only_latents(item) if kind == "l" else item)
    return _as_case(f"{number}:{shape}", items, maker)


def _golden_case(name: str, items: Sequence[Item]) -> Case:
    model, _, tokenizer = parts()
    return _as_case(name, items, ItemMaker(model.config, tokenizer, *transforms()))


def _as_case(name: str, items: Sequence[Item], maker: ItemMaker) -> Case:
    model, vae, tokenizer = parts()
    context: list[ContextPart] = []
    for item in items:
        pack = pack_samples([item.content], maker.geometry, tokenizer.special)
        if item.size_px is None:
            context.append(tuple(pack.text_ids.tolist()))
        else:
            latents = pack_latents(vae, pack, model.config.latent_patch_size)
            context += blocks_of_pack(pack, latents)
    return Case(name, tuple(items), (*context, (tokenizer.special.bos,)))


def _only_latents(item: Item) -> Item:
    splits = tuple(split for split in item.content.splits if split.kind == "clean")
    assert len(splits) == 1
    vit = pack_samples([item.content], *_geometry()).vit_lens[0] + 2
    content = replace(item.content, splits=splits)
    return replace(item, content=content, num_tokens=item.num_tokens - vit)


def _geometry() -> tuple[object, object]:
    model, _, tokenizer = parts()
    return model.config.geometry, tokenizer.special
