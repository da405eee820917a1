"""Sampling of tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.bagel import text_steps
from mathcanvas_lightning.generation.bagel.text_steps import (
    TextConfig,
    TokenChoice,
    choose_tokens,
    sample,
)
from tests.generation.drawing import low_default

FLOATS = st.floats(-8, 8, width=32)


def choices(*rows: tuple[float, float, float]) -> list[TokenChoice]:
    return [
        TokenChoice(uid="a", step=1, index=0, uniform=u, config=TextConfig(temperature=t, top_p=p))
        for t, p, u in rows
    ]


def pick(logits: Tensor, temperature: float, top_p: float, uniform: float) -> int:
    row = (torch.tensor([value]) for value in (temperature, top_p, uniform))
    return int(sample(logits[None], *row))


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=20), st.floats(0, 0.999))
def test_temperature_zero_takes_the_most_likely(values: list[float], uniform: float) -> None:
    logits = torch.tensor(values)
    assert values[pick(logits, 0.0, 1.0, uniform)] == max(values)
    assert choose_tokens(logits[None], choices((0.0, 1.0, uniform))) == [int(logits.argmax())]


@settings(deadline=None)
@given(
    st.lists(FLOATS, min_size=1, max_size=20),
    st.floats(0.1, 3),
    st.floats(0.01, 1),
    st.floats(0, 1, exclude_max=True),
)
def test_only_tokens_of_the_nucleus_are_sampled(
    values: list[float], temperature: float, top_p: float, uniform: float
) -> None:
    logits = torch.tensor(values)
    chosen = pick(logits, temperature, top_p, uniform)
    probabilities = (logits.double() / temperature).softmax(-1)
    likelier = probabilities[probabilities > probabilities[chosen] * (1 + 1e-5)].sum()
    assert likelier < top_p + 1e-5


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=2, max_size=6), st.sampled_from([0.7, 1.0]))
def test_samples_follow_the_distribution(values: list[float], top_p: float) -> None:
    count = 4000
    logits = torch.tensor(values)
    uniforms = (torch.arange(count) + 0.5) / count
    found = sample(
        logits.expand(count, -1), torch.ones(count), torch.full((count,), top_p), uniforms
    )
    probabilities = logits.softmax(-1)
    ids = logits.sort(descending=True, stable=True).indices
    ordered = probabilities[ids]
    kept = ordered.cumsum(0) - ordered < top_p
    wanted = torch.zeros_like(probabilities)
    wanted[ids[kept]] = ordered[kept] / ordered[kept].sum()
    frequencies = torch.bincount(found, minlength=len(values)) / count
    borderline = ((ordered.cumsum(0) - top_p).abs() < 1e-5).any()
    if not borderline:
        torch.testing.assert_close(frequencies, wanted, atol=2e-3, rtol=0)


def test_each_row_has_its_own_settings() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.9]] * 3)
    rows = choices((0.0, 1.0, 0.99), (1.0, 1.0, 0.99), (1.0, 0.3, 0.99))
    assert choose_tokens(logits, rows) == [1, 2, 1]
    for number, row in enumerate(rows):
        assert choose_tokens(logits[:1], [row]) == [[1], [2], [1]][number]


def test_no_sorting_without_top_p(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_steps, "keep_nucleus", None)
    assert choose_tokens(torch.zeros(2, 4), choices((1.0, 1.0, 0.3), (0.0, 1.0, 0.3))) == [1, 0]


def test_numbers_just_below_one_never_choose_an_impossible_token() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf]])
    for top_p in (1.0, 0.99):
        assert choose_tokens(logits, choices((1.0, top_p, 1 - 2.0**-50))) != [2]
    assert choose_tokens(logits * torch.nan, choices((1.0, 1.0, 0.5)))[0] in range(3)


def test_the_default_dtype_does_not_matter() -> None:
    logits = torch.zeros(1, 10_000)
    row = choices((1.0, 1.0, 0.123456))
    with low_default():
        assert choose_tokens(logits, row) == [1234]


def test_low_precision_is_enough() -> None:
    logits = torch.tensor([[0.0, 4.0, 1.0]], dtype=torch.bfloat16)
    assert choose_tokens(logits, choices((0.3, 1.0, 0.5))) == [1]


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_wrong_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="top_p"):
        TextConfig(**wrong)
