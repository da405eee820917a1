"""The mask rule, and equal results of all implementations of attention."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.batch import Split, make_splits
from mathcanvas_lightning.model.layers import attention
from mathcanvas_lightning.model.layers.attention import (
    Attention,
    count_attended_pairs,
    default_path,
    dense_mask,
    group_splits,
    make_layout,
)
from tests.conftest import examples

CPU = torch.device("cpu")
SPLITS = st.tuples(st.integers(1, 9), st.sampled_from(["causal", "full", "noise"]))
SAMPLES = st.lists(st.lists(SPLITS, min_size=1, max_size=5), min_size=1, max_size=4)


def flatten(samples: list[list[tuple[int, Any]]]) -> tuple[list[int], tuple[Split, ...]]:
    lens = [sum(length for length, _ in sample) for sample in samples]
    lengths, modes = zip(*(split for sample in samples for split in sample), strict=True)
    return lens, make_splits(lengths, modes)


@settings(deadline=None)
@given(SAMPLES)
def test_rule_for_each_pair(samples: list[list[tuple[int, Any]]]) -> None:
    lens, splits = flatten(samples)
    mask = dense_mask(make_layout(lens, splits, CPU))
    owner = [(s, number) for number, s in enumerate(splits) for _ in range(s.length)]
    sample = [number for number, length in enumerate(lens) for _ in range(length)]
    for query in range(len(owner)):
        for key in range(len(owner)):
            (_, own), (split, other) = owner[query], owner[key]
            same = own == other
            wanted = sample[query] == sample[key] and (
                query >= key or (same and split.attention_mode != "causal")
            )
            wanted = wanted and (same or split.attention_mode != "noise")
            assert mask[query, key] == wanted
    assert count_attended_pairs(lens, splits) == int(mask.sum())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=examples(40), deadline=None)
@given(
    SAMPLES,
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from([(4, 4), (4, 2), (2, 1)]),
    st.sampled_from([1, 5, 12, 128]),
)
def test_paths_agree(
    samples: list[list[tuple[int, Any]]],
    seed: int,
    shuffle: bool,
    heads: tuple[int, int],
    short: int,
) -> None:
    lens, splits = flatten(samples)
    generator = torch.Generator().manual_seed(seed)
    layout = make_layout(lens, splits, CPU)
    order = torch.randperm(sum(lens), generator=generator) if shuffle else torch.arange(sum(lens))
    layout = layout.sorted_by(order)
    q, k, v = (
        torch.randn(sum(lens), n, 16, generator=generator, requires_grad=True)
        for n in (heads[0], heads[1], heads[1])
    )
    weights = torch.randn(sum(lens), heads[0], 16, generator=generator)
    results = {}
    for path in ("dense", "sdpa"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "MAX_SHORT_SPLITS", short)
            out = Attention(layout, path)(q, k, v)
        results[path] = (out, *torch.autograd.grad((out * weights).sum(), (q, k, v)))
    for ours, wanted in zip(results["sdpa"], results["dense"], strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)
    # FlexAttention has no backward on the CPU.
    out = Attention(layout, "flex")(q.detach(), k.detach(), v.detach())
    torch.testing.assert_close(out, results["dense"][0], atol=1e-5, rtol=1e-4)


@settings(deadline=None)
@given(SAMPLES, st.integers(0, 100))
def test_order_of_storage_does_not_matter(samples: list[list[tuple[int, Any]]], seed: int) -> None:
    lens, splits = flatten(samples)
    layout = make_layout(lens, splits, CPU)
    order = torch.randperm(sum(lens), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(dense_mask(layout.sorted_by(order)), dense_mask(layout)[order][:, order])


@pytest.mark.parametrize("path", ["dense", "sdpa", "flex"])
def test_empty_sequence(path: Any) -> None:
    q, k, v = (torch.empty(0, n, 8, requires_grad=True) for n in (4, 2, 2))
    out = Attention(make_layout([], (), CPU), path)(q, k, v)
    assert out.shape == (0, 4, 8)
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(gradient.shape[0] == 0 for gradient in gradients)


def test_default_path() -> None:
    assert default_path(CPU) == "sdpa"
    assert default_path(torch.device("cuda")) == "flex"


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'both' is not one of"):
        Split(length=1, attention_mode="both")  # type: ignore[arg-type]


def test_images_need_no_mask_and_noise_is_left_out() -> None:
    lens, splits = flatten([[(9, "causal"), (6, "noise"), (6, "full"), (9, "causal")]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "MAX_SHORT_SPLITS", 1)
        lengths, groups = group_splits(make_layout(lens, splits, CPU))
    assert lengths == [9, 6, 6, 9]
    assert [group.keys for group in groups] == [(0,), (0, 1), (0, 2), (0, 2, 3)]
    assert [group.mask is None for group in groups] == [False, True, True, False]
