"""Roles, dropout and lengths: the vectorised rules agree with each other and with real packs."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.batch import LossTotals
from mathcanvas_lightning.data.rows.readers import Role, RowFormat
from mathcanvas_lightning.data.sequence.pack import PackItem, pack_samples
from mathcanvas_lightning.data.sequence.rng import element_uniforms, generator, hash64, normal
from mathcanvas_lightning.data.sequence.roles import (
    DropoutConfig,
    Elements,
    assign_roles,
    find_dropped,
    longest_lengths,
    loss_totals,
    packed_lengths,
)
from mathcanvas_lightning.data.sequence.splits import plan_sequence
from mathcanvas_lightning.data.sequence.tokenizer import SpecialTokens
from mathcanvas_lightning.errors import ConfigError
from tests.conftest import examples
from tests.data.make_rows import GEOMETRY

SPECIAL = SpecialTokens(bos=1, eos=2, start_of_image=3, end_of_image=4, end_of_text=5)
ROLES = {
    "interleaved": [Role.PROMPT_TEXT, Role.CONTEXT_IMAGE, Role.ANSWER_TEXT, Role.DRAWN_IMAGE],
    "vlm": [Role.SEEN_IMAGE, Role.FIXED_TEXT, Role.FIXED_ANSWER],
}


@st.composite
def rows(draw: st.DrawFn, row_format: RowFormat) -> list[list[tuple[int, int]]]:
    """Rows as lists of (role, step)."""
    found = []
    for _ in range(draw(st.integers(1, 5))):
        if row_format == "t2i":
            captions = draw(st.integers(1, 3))
            row = [(Role.PROMPT_TEXT, 0)] * captions + [(Role.TARGET_IMAGE, 0)]
        elif row_format == "edit":
            row = [(Role.CONTEXT_IMAGE, 0)]
            for step in range(1, draw(st.integers(2, 6))):
                row += [(Role.PROMPT_TEXT, step)] * draw(st.integers(1, 3))
                row.append((Role.CONTEXT_IMAGE, step))
        else:
            roles = draw(st.lists(st.sampled_from(ROLES[row_format]), min_size=1, max_size=6))
            row = [(role, 0) for role in roles]
        found.append(row)
    return found


def as_elements(found: list[list[tuple[int, int]]], seed: int) -> Elements:
    flat = [element for row in found for element in row]
    roles = np.array([role for role, _ in flat], np.int8)
    text = np.isin(roles, [r for r in Role if r.name.endswith(("TEXT", "ANSWER"))])
    random = np.random.default_rng(seed)
    sides = random.integers(1, 4, len(flat))
    return Elements(
        offsets=np.cumsum([0, *map(len, found)]),
        roles=roles,
        steps=np.array([step for _, step in flat], np.int16),
        text_tokens=np.where(text, random.integers(0, 9, len(flat)), 0).astype(np.int32),
        latent_tokens=np.where(text, 0, sides**2).astype(np.int32),
        vit_tokens=np.where(text, 0, sides**2).astype(np.int32),
    )


FORMATS = st.sampled_from(["interleaved", "t2i", "edit", "vlm"])


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(200))
@given(data=st.data(), row_format=FORMATS, seed=st.integers(0, 100))
def test_lengths_equal_those_of_real_packs(
    data: st.DataObject, row_format: RowFormat, seed: int
) -> None:
    elements = as_elements(data.draw(rows(row_format)), seed)
    uniforms = element_uniforms(hash64(seed), 0, 0, len(elements.roles))
    dropout = DropoutConfig(text=0.3, vit=0.3, vae=0.3)
    roles = assign_roles(row_format, elements, uniforms)
    drop, drop_vit = find_dropped(roles, uniforms, dropout)
    lengths = packed_lengths(elements, roles, drop, drop_vit)
    totals = loss_totals(elements, roles, drop)
    most = longest_lengths(row_format, elements)
    assert (packed_lengths(elements, roles) <= most).all()
    for row in range(len(lengths)):
        one = elements.rows(row, row + 1)
        first, last = elements.offsets[row], elements.offsets[row + 1]
        plan = plan_sequence(row_format, one, uniforms[first:last], dropout, SPECIAL)
        pack = pack_samples([item_of(plan, one)], GEOMETRY, SPECIAL)
        assert pack.sequence_length == lengths[row]
        found = dataclasses.astuple(LossTotals.of(pack))
        np.testing.assert_allclose(found, totals[row], rtol=1e-5)


def item_of(plan: tuple, elements: Elements) -> PackItem:
    """The plan with texts and pictures of the right sizes."""
    sides = np.sqrt(elements.latent_tokens).astype(int)
    return PackItem(
        splits=plan,
        text_ids={s.element: [9] * elements.text_tokens[s.element] for s in plan},
        vae_pixels={s.element: blank(16 * sides[s.element]) for s in plan},
        vit_pixels={s.element: blank(14 * sides[s.element]) for s in plan},
    )


def blank(side: int) -> np.ndarray:
    return np.zeros((side, side, 3), np.uint8)


@pytest.mark.slow
@given(data=st.data(), row_format=st.sampled_from(["t2i", "edit"]), seed=st.integers(0, 1000))
def test_random_choices_follow_the_format(
    data: st.DataObject, row_format: RowFormat, seed: int
) -> None:
    elements = as_elements(data.draw(rows(row_format)), seed)
    uniforms = element_uniforms(hash64(seed), 0, 0, len(elements.roles))
    roles = assign_roles(row_format, elements, uniforms)
    for row in range(len(elements.offsets) - 1):
        here = slice(elements.offsets[row], elements.offsets[row + 1])
        used = [(Role(r), s) for r, s in zip(roles[here], elements.steps[here], strict=True) if r]
        if row_format == "t2i":
            assert used == [(Role.PROMPT_TEXT, 0), (Role.TARGET_IMAGE, 0)]
            continue
        start = used[0][1]
        assert used[0] == (Role.CONTEXT_IMAGE, start)
        assert used[-1] == (Role.TARGET_IMAGE, used[-1][1])
        assert 1 <= used[-1][1] - start <= 2
        for step, (text, image) in enumerate(zip(used[1::2], used[2::2], strict=True), start + 1):
            assert text == (Role.PROMPT_TEXT, step)
            wanted = Role.TARGET_IMAGE if step == used[-1][1] else Role.DRAWN_IMAGE
            assert image == (wanted, step)


def test_random_choices_are_uniform() -> None:
    row = [(Role.CONTEXT_IMAGE, 0)]
    for step in (1, 2, 3):
        row += [(Role.PROMPT_TEXT, step)] * 2 + [(Role.CONTEXT_IMAGE, step)]
    elements = as_elements([row] * 6000, 0)
    roles = assign_roles("edit", elements, element_uniforms(7, 0, 0, len(elements.roles)))
    by_row = roles.reshape(6000, -1)
    images = [0, 3, 6, 9]
    starts = [(by_row[:, at] == Role.CONTEXT_IMAGE).mean() for at in images[:3]]
    np.testing.assert_allclose(starts, 1 / 3, atol=0.03)
    ends = [(by_row[by_row[:, 0] == Role.CONTEXT_IMAGE][:, at] == 7).mean() for at in (3, 6)]
    np.testing.assert_allclose(ends, 1 / 2, atol=0.04)


def test_dropout_rates() -> None:
    elements = as_elements([[(Role.PROMPT_TEXT, 0), (Role.DRAWN_IMAGE, 0)]] * 20_000, 0)
    uniforms = element_uniforms(3, 0, 0, len(elements.roles))
    dropout = DropoutConfig(text=0.1, vit=0.3, vae=0.2)
    drop, drop_vit = find_dropped(elements.roles, uniforms, dropout)
    assert drop[0::2].mean() == pytest.approx(0.1, abs=0.01)
    assert drop[1::2].mean() == pytest.approx(0.2, abs=0.01)
    assert drop_vit[1::2].mean() == pytest.approx(0.3, abs=0.015)
    both = (drop[1::2] & drop_vit[1::2]).mean()
    assert both == pytest.approx(0.06, abs=0.01)  # independent random numbers


def test_dropout_outside_0_to_1() -> None:
    with pytest.raises(ConfigError, match=r"dropout\.vit.*1\.5"):
        DropoutConfig(vit=1.5)


@given(start=st.integers(0, 50), stop=st.integers(0, 50), visit=st.integers(0, 3))
def test_uniforms_of_a_range_are_those_of_the_whole(start: int, stop: int, visit: int) -> None:
    start, stop = sorted((start, stop))
    whole = element_uniforms(11, visit, 0, 50)
    np.testing.assert_array_equal(element_uniforms(11, visit, start, stop), whole[start:stop])


def test_uniforms_differ_by_stream_and_visit() -> None:
    first = element_uniforms(1, 0, 0, 5)
    for other in (element_uniforms(2, 0, 0, 5), element_uniforms(1, 1, 0, 5)):
        assert not np.isclose(first, other).any()


def test_random_numbers_are_stable() -> None:
    # A position in a checkpoint means the same samples in every version of this library.
    np.testing.assert_allclose(element_uniforms(1, 2, 3, 4)[0], FIXED, rtol=0, atol=1e-12)
    assert hash64("draws", 0, "set") == FIXED_HASH
    assert generator("order", 0, 0).integers(1 << 30) == FIXED_ORDER


FIXED = (0.6527702009682942, 0.11067824353160172, 0.732343633271771, 0.6335850030068766)
FIXED_HASH = 13699492639442914371
FIXED_ORDER = 294319876


def test_timesteps_are_standard_normal() -> None:
    uniform = element_uniforms(5, 0, 0, 20_000)[:, 3]
    values = np.array([normal(u) for u in uniform])
    assert values.mean() == pytest.approx(0, abs=0.03)
    assert values.std() == pytest.approx(1, abs=0.02)
    assert np.isfinite(normal(0.0))
