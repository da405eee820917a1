"""The plan: every row once, no pack too long, independent of ranks and interruptions."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.data.plan import bin_packing
from mathcanvas_lightning.data.plan import epoch as plan_module
from mathcanvas_lightning.data.plan.bin_packing import fill_packs
from mathcanvas_lightning.data.plan.epoch import EpochPlan, Plan
from mathcanvas_lightning.data.plan.origin import PlanOrigin
from mathcanvas_lightning.data.plan.position import Position
from mathcanvas_lightning.data.plan.schedule import FILLER, Schedule, schedule
from mathcanvas_lightning.data.sequence.roles import DropoutConfig
from mathcanvas_lightning.errors import ConfigError
from tests.conftest import examples
from tests.data.make_rows import planned

CAPACITY = 100
LENGTHS = st.lists(st.integers(3, CAPACITY), min_size=1, max_size=60)


def samples(plan: EpochPlan) -> list[tuple[int, int, int]]:
    """(data set, row, visit) in the order of training."""
    return list(zip(plan.datasets.tolist(), plan.rows.tolist(), plan.visits.tolist(), strict=True))


def pack_lengths(plan: EpochPlan) -> list[int]:
    return [sum(plan.lengths[p] for p in plan.samples(n)) for n in range(plan.num_packs)]


@given(lengths=st.lists(st.integers(1, CAPACITY), max_size=80))
def test_packs_hold_each_sample_once(lengths: list[int]) -> None:
    packs = fill_packs(np.array(lengths, np.int64), CAPACITY, np.random.default_rng(0))
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert all(0 < sum(lengths[p] for p in pack) <= CAPACITY for pack in packs)
    free = [CAPACITY - sum(lengths[p] for p in pack) for pack in packs]
    for number, room in enumerate(free):  # no later sample would have fitted
        assert all(lengths[p] > room for pack in packs[number + 1 :] for p in pack)


def plain_fill(lengths: np.ndarray, capacity: int, random: np.random.Generator) -> list[list[int]]:
    """What `fill_packs` finds, by trying every candidate in turn."""
    pool = [(int(lengths[i]), i) for i in np.argsort(lengths, kind="stable")]
    choices = iter(random.random(len(lengths)).tolist())
    finish = bin_packing.FINISH_MEANS * float(lengths.mean()) if pool else 0.0
    packs, misses = [], 0
    while pool:
        free = capacity
        pack: list[int] = []
        while fitting := sum(length <= free for length, _ in pool):
            if free > finish or not pack:
                taken: tuple[int, ...] = (int(next(choices) * fitting),)
            else:
                taken, misses = plain_best([x for x, _ in pool], free, capacity // 500, misses)
            for position in taken:
                length, index = pool.pop(position)
                free -= length
                pack.append(index)
        packs.append(pack)
    return packs


def plain_best(pool: list[int], free: int, slack: int, misses: int) -> tuple[tuple[int, ...], int]:
    """The first candidate that leaves at most the slack, else the first that leaves the least."""

    def longest_below(stop: int, free: int) -> int:
        return sum(length <= free for length in pool[:stop]) - 1

    def grid(longest: int, tries: int) -> range:
        return range(longest, -1, -max(1, longest // tries))

    def pairs(longest: int, free: int, tries: int) -> Iterator[tuple[int, int]]:
        for first in grid(longest, tries):
            if (second := longest_below(first, free - pool[first])) >= 0:
                yield first, second

    longest = longest_below(len(pool), free)
    few = misses > bin_packing.MAX_MISSES
    tries = bin_packing.NUM_FEW_TRIPLES if few else bin_packing.NUM_TRIPLES
    stages: list[list[tuple[int, ...]]] = [
        [(longest,)],
        [*pairs(longest, free, bin_packing.NUM_PAIRS)],
        [
            (first, *pair)
            for first in grid(longest, tries)
            if (second := longest_below(first, free - pool[first])) >= 0
            for pair in pairs(second, free - pool[first], tries)
        ],
    ]
    best: tuple[int, ...] = (longest,)
    least = free + 1
    for number, stage in enumerate(stages):
        for candidate in stage:
            gap = free - sum(pool[position] for position in candidate)
            if gap < least:
                best, least = candidate, gap
            if least <= slack:
                break
        if number == 2:
            misses = max(0, misses + (1 if least > slack else -1))
        if least <= slack:
            break
    return best, misses


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(3_000, 16_000) | st.integers(1, 20_000), max_size=60)
    | st.lists(st.builds(lambda a, b: 3400 * a + b, st.integers(1, 5), st.integers(0, 900))),
    capacity=st.sampled_from([20_000, 51_200]),
)
def test_the_search_finds_what_trying_every_candidate_finds(
    lengths: list[int], capacity: int
) -> None:
    rows = np.array(lengths, np.int64)
    found = fill_packs(rows, capacity, np.random.default_rng(0))
    assert found == plain_fill(rows, capacity, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("step", "capacity"),
    [(100, 51_200), (3400, 51_200), (3400, 255), (3400, 2_000), (3400, 300_000)],
)
def test_the_search_in_a_whole_window(step: int, capacity: int) -> None:
    random = np.random.default_rng(0)
    rows = random.integers(1, 6, 300) * step + random.integers(100, 1200, 300)
    rows = rows * capacity // 51_200
    found = fill_packs(rows, capacity, np.random.default_rng(1))
    assert found == plain_fill(rows, capacity, np.random.default_rng(1))


@pytest.mark.slow
@settings(deadline=None)
@given(
    lengths=LENGTHS,
    group=st.integers(1, 70),
    window=st.integers(1, 80),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_every_row_once_an_epoch(
    lengths: list[int], group: int, window: int, seed: int, epoch: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "WINDOW_ROWS", window)
        plan = Plan(
            [planned(lengths, rows_per_group=group)], seed=seed, max_num_tokens=CAPACITY
        ).epoch(epoch)
    assert sorted(plan.rows.tolist()) == list(range(len(lengths)))
    assert set(plan.visits.tolist()) == {epoch}
    assert plan.lengths.tolist() == [lengths[row] for row in plan.rows]
    assert max(pack_lengths(plan)) <= CAPACITY
    assert sum(pack_lengths(plan)) == sum(lengths)


@settings(deadline=None)
@given(
    packs=st.integers(0, 60),
    ranks=st.sampled_from([1, 2, 3, 4]),
    accumulate=st.integers(1, 5),
    stop=st.integers(0, 70),
)
def test_schedule_covers_each_pack_once(packs: int, ranks: int, accumulate: int, stop: int) -> None:
    per_step = 12 * accumulate
    whole = schedule(packs, (), per_step)
    steps = [whole.step_packs(step) for step in range(whole.num_steps)]
    flat = [pack for step in steps for pack in step if pack != FILLER]
    assert sorted(flat) == list(range(packs))
    assert all(FILLER not in step for step in steps[:-1])
    assert whole.num_fillers == sum(step.count(FILLER) for step in steps) < per_step
    by_rank = [list(whole.rank_packs(rank, ranks)) for rank in range(ranks)]
    assert {len(taken) for taken in by_rank} == {len(steps) * per_step // ranks}
    for step, wanted in enumerate(steps):
        found = [pack for taken in by_rank for s, pack in taken if s == step]
        assert Counter(found) == Counter(wanted)
    stop = min(stop, whole.num_steps)
    for rank in range(ranks):
        rest = list(whole.rank_packs(rank, ranks, stop))
        assert rest == by_rank[rank][stop * per_step // ranks :]


@given(
    packs=st.integers(0, 80),
    parts=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6)), max_size=4),
    last=st.integers(1, 9),
)
def test_changing_packs_per_step_within_an_epoch(
    packs: int, parts: list[tuple[int, int]], last: int
) -> None:
    done: list[int] = []
    segments: list[tuple[int, int]] = []
    for per_step, steps in parts:
        left = schedule(packs, segments, per_step)
        steps = min(steps, left.num_steps)
        done += [p for s in range(steps) for p in left.step_packs(s) if p != FILLER]
        segments.append((per_step, steps))
    left = schedule(packs, segments, last)
    done += [p for s in range(left.num_steps) for p in left.step_packs(s) if p != FILLER]
    assert sorted(done) == list(range(packs))


def test_slots_are_contiguous() -> None:
    whole = Schedule(np.arange(10), 4)
    by_slot = [[whole.pack(step, slot) for step in range(whole.num_steps)] for slot in range(4)]
    assert by_slot == [[0, 1, 2], [3, 4, 5], [6, 7, FILLER], [8, 9, FILLER]]


def test_order_differs_by_seed_and_epoch() -> None:
    data = [planned([10] * 50)]
    orders = {
        tuple(Plan(data, seed=seed, max_num_tokens=CAPACITY).epoch(epoch).rows.tolist())
        for seed in range(2)
        for epoch in range(2)
    }
    assert len(orders) == 4
    again = Plan(data, seed=0, max_num_tokens=CAPACITY).epoch(0).rows.tolist()
    assert tuple(again) in orders


def test_validation_keeps_the_order_of_rows() -> None:
    plan = Plan([planned([10] * 30)], seed=0, max_num_tokens=100, shuffle=False)
    packs = [sorted(plan.epoch(0).rows[list(plan.epoch(0).samples(n))].tolist()) for n in range(3)]
    assert sorted(row for pack in packs for row in pack) == list(range(30))


@pytest.mark.slow
@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    weights=st.lists(st.floats(0.1, 5), min_size=4, max_size=4),
)
def test_weights_are_exact_shares(sizes: list[int], weights: list[float]) -> None:
    data = [planned([10] * size, name=f"set{i}", weight=weights[i]) for i, size in enumerate(sizes)]
    plan = Plan(data, seed=0, max_num_tokens=CAPACITY)
    epochs = [samples(plan.epoch(epoch)) for epoch in range(3)]
    for taken in epochs:
        assert len(taken) == len(set(taken))  # never the same visit twice
        counts = Counter(dataset for dataset, _, _ in taken)
        per_weight = [counts[d] / weights[d] for d in range(len(sizes))]
        slack = max(1 / weights[d] for d in range(len(sizes)))
        assert max(per_weight) - min(per_weight) <= 2 * slack
        for dataset, size in enumerate(sizes):
            rows = Counter(row for d, row, _ in taken if d == dataset)
            assert sorted(rows) == list(range(size))  # each at least once
            assert max(rows.values()) - min(rows.values()) <= 1
    for dataset in range(len(sizes)):  # over epochs, the extra samples are spread evenly
        rows = Counter(row for taken in epochs for d, row, _ in taken if d == dataset)
        assert max(rows.values()) - min(rows.values()) <= 1
        visits = Counter((row, visit) for e in epochs for d, row, visit in e if d == dataset)
        assert max(visits.values()) == 1  # and never with the same random numbers


def test_a_data_set_without_weight_is_visited_once_beside_weights() -> None:
    data = [
        planned([10] * 10, name="plain"),
        planned([10] * 100, name="light", weight=1.0),
        planned([10] * 20, name="heavy", weight=2.0),
    ]
    assert Plan(data, seed=0, max_num_tokens=CAPACITY).quotas == (10, 100, 200)


def test_many_visits_of_a_small_data_set_are_drawn_together() -> None:
    """Packs and random numbers are those of single visits."""
    small = planned([5, 20, 40, 9, 30], weight=1.0, dropout=DropoutConfig(text=0.4))
    plan = Plan([small, planned([10] * 117, name="b", weight=1.0)], seed=0, max_num_tokens=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "CHUNK_ROWS", 1)
        one_by_one = Plan(plan.datasets, seed=0, max_num_tokens=100).epoch(1)
    together = plan.epoch(1)
    assert plan.quotas == (117, 117)
    assert together.digest == one_by_one.digest
    assert np.array_equal(together.losses, one_by_one.losses)


def test_chunks_are_bounded_by_the_span_of_counters() -> None:
    few = replace(planned([10] * 500), counters=np.arange(500) * 10_000)
    spans: list[int] = []
    draw = plan_module.element_uniforms

    def draw_some(stream: int, visit: int, start: int, stop: int) -> Any:
        spans.append(stop - start)
        return draw(stream, visit, start, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "element_uniforms", draw_some)
        Plan([few], seed=0, max_num_tokens=CAPACITY).epoch(0)
    assert max(spans) <= plan_module.CHUNK_ELEMENTS
    assert len(spans) == 10


def test_data_sets_are_interleaved_evenly() -> None:
    data = [planned([10] * 600, name="large"), planned([10] * 200, name="small")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "WINDOW_ROWS", 80)
        taken = Plan(data, seed=0, max_num_tokens=CAPACITY).epoch(0).datasets
    shares = [taken[start : start + 100].mean() for start in range(0, 800, 100)]
    assert max(abs(share - 0.25) for share in shares) < 0.1


def test_dropout_changes_lengths_from_epoch_to_epoch() -> None:
    data = [planned([10] * 200, dropout=DropoutConfig(text=0.5))]
    plan = Plan(data, seed=0, max_num_tokens=CAPACITY)
    totals = [int(plan.epoch(epoch).lengths.sum()) for epoch in range(3)]
    assert len(set(totals)) > 1
    assert all(600 < total < 1400 for total in totals)
    assert plan.total_steps(3, 2) == sum(-(-plan.num_packs(e) // 2) for e in range(3))


@settings(deadline=None)
@given(
    length=st.integers(3, CAPACITY),
    count=st.integers(1, 60),
    window=st.integers(1, 30),
    spread=st.integers(0, 4),
)
def test_equal_counts_need_no_plans(length: int, count: int, window: int, spread: int) -> None:
    random = np.random.default_rng(count)
    lengths = random.integers(length, min(length + spread, CAPACITY) + 1, count).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "WINDOW_ROWS", window)
        plan = Plan([planned(lengths)], seed=0, max_num_tokens=CAPACITY)
        counted = [plan.num_packs(epoch) for epoch in range(3)]
        is_known = CAPACITY // min(lengths) == CAPACITY // max(lengths)
        assert plan.epoch.cache_info().misses == (0 if is_known else 3)
        assert counted == [plan.epoch(epoch).num_packs for epoch in range(3)]


def test_total_steps_plans_each_epoch_once() -> None:
    plan = Plan([planned([20, 50, 30] * 9)], seed=0, max_num_tokens=CAPACITY)
    wanted = sum(-(-plan.epoch(epoch).num_packs // 2) for epoch in range(6))
    plan.epoch.cache_clear()
    assert plan.total_steps(6, 2) == plan.total_steps(6, 2) == wanted
    assert plan.epoch.cache_info().misses == 6


@pytest.mark.parametrize(
    ("name", "digest"),
    [("usual", "1b3728faec97841b"), ("few ways to fill a pack", "c2e11c87029821e4")],
)
def test_packs_are_those_of_earlier_versions(name: str, digest: str) -> None:
    """If this fails, runs that were stopped within an epoch can't resume: say so in a release."""
    random = np.random.default_rng(0)
    lengths = {
        "usual": random.integers(300, 9000, 4_500),
        "few ways to fill a pack": random.integers(1, 6, 4_500) * 3400
        + random.integers(100, 1200, 4_500),
    }[name]
    plan = Plan([planned(lengths.tolist())], seed=0, max_num_tokens=51_200).epoch(0)
    found = np.concatenate([plan.rows, plan.pack_ends]).astype("<i8").tobytes()
    assert hashlib.sha256(found).hexdigest()[:16] == digest


def test_realistic_packs_are_full() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 6, 20_000) * 3400 + random.integers(100, 1200, 20_000)
    plan = Plan([planned(lengths.tolist())], seed=0, max_num_tokens=51_200).epoch(0)
    assert plan.fill > 0.985


@settings(deadline=None, max_examples=examples(60))
@given(
    lengths=LENGTHS,
    runs=st.lists(
        st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 3]), st.integers(0, 5)),
        max_size=5,
    ),
)
def test_interrupted_runs_take_each_row_once_an_epoch(
    lengths: list[int], runs: list[tuple[int, int, int]]
) -> None:
    """Runs with different ranks and accumulation, each stopped after some steps; two epochs."""
    state: dict[str, object] | None = None
    taken: dict[int, list[int]] = {0: [], 1: []}
    for ranks, accumulate, steps in [*runs, (2, 2, 1000)]:
        plan = Plan([planned(lengths)], seed=0, max_num_tokens=CAPACITY)
        states = []
        for rank in range(ranks):
            position = Position(
                plan,
                PlanOrigin(fingerprint={"seed": "0"}, values={}),
                packs_per_step=ranks * accumulate,
                num_ranks=ranks,
            )
            if state is not None:
                position.restore(state)
            for epoch, pack in islice(walk(position, rank), steps * accumulate):
                if pack != FILLER:
                    planned_epoch = plan.epoch(epoch)
                    taken[epoch] += [
                        int(planned_epoch.rows[p]) for p in planned_epoch.samples(pack)
                    ]
                position.count_batch()
            states.append(position.state())
        assert all(other == states[0] for other in states)
        state = json.loads(json.dumps(states[0]))
    assert sorted(taken[0]) == sorted(taken[1]) == list(range(len(lengths)))


def walk(position: Position, rank: int) -> Iterator[tuple[int, int]]:
    """(epoch, pack) of a rank until the end of the second epoch."""
    while True:
        begun = position.begin()
        assert begun is not None
        start, left = begun
        if start.epoch == 2:
            return
        for _, pack in left.rank_packs(rank, position.num_ranks, start.step):
            yield start.epoch, pack


@pytest.mark.parametrize("weight", [1e-12, 1e-320])
def test_weights_that_differ_too_much_are_refused(weight: float) -> None:
    data = [planned([10] * 9, name="a", weight=1.0), planned([10] * 9, name="b", weight=weight)]
    with pytest.raises(ConfigError, match="weight of the data set a"):
        Plan(data, seed=0, max_num_tokens=100)
