"""Journals: complete lines, the latest entry of each record, linear cost."""

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.errors import OutputError
from mathcanvas_lightning.generation.requests import (
    Exchange,
    Failure,
    GenerationRequest,
    GenerationResponse,
    Message,
    Output,
    Sampling,
    Usage,
)
from mathcanvas_lightning.generation.run.journal.append import JournalWriter
from mathcanvas_lightning.generation.run.journal.folder import rank_files
from mathcanvas_lightning.generation.run.journal.lines import (
    decode_line,
    encode_line,
    journal_line,
    open_entries,
    origin_of,
    read_journal,
)


def line(
    uid: str = "a", text: str | None = "yes", time: float = 1.0, digest: str = "d"
) -> dict[str, Any]:
    request = GenerationRequest(uid=uid, messages=(Message(role="user", parts=("?",)),))
    response = (
        GenerationResponse(uid=uid, failure=Failure(kind="timeout", message="late"))
        if text is None
        else GenerationResponse(uid=uid, outputs=(Output(text=text, finish_reason="stop"),))
    )
    made = journal_line(
        Exchange(response=response, request=request), model="m", settings={}, digest=digest
    )
    return made | {"time": time}


def write(folder: Path, *lines: dict[str, Any], rank: int = 0) -> None:
    with JournalWriter(folder, rank) as journal:
        journal.append(lines)


def texts(folder: Path) -> dict[str, list[str]]:
    with open_entries() as read:
        return {uid: read(entry)["texts"] for (uid, _), entry in read_journal(folder).items()}


def test_a_line_contains_all_fields() -> None:
    sampling = Sampling(temperature=0.5, stop=("x",))
    request = GenerationRequest(
        uid="in:7", messages=(Message(role="user", parts=("?",)),), sampling=sampling
    )
    response = GenerationResponse(
        uid="in:7",
        outputs=(Output(text="ä\n", finish_reason="length"),),
        usage=Usage(prompt_tokens=3, completion_tokens=2),
    )
    made = journal_line(
        Exchange(response=response, request=request), model="m", settings={"a": 1}, digest="d"
    )
    made = json.loads(json.dumps(made))
    assert made["texts"] == ["ä\n"]
    assert made["finish_reasons"] == ["length"]
    assert made["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}
    assert made["error"] is None
    assert (made["model"], made["sampling"]["temperature"]) == ("m", 0.5)
    assert made["prompt_digest"] == request.text_digest
    maker = origin_of(made["model"], made["settings"], made["sampling"])
    assert maker == origin_of("m", {"a": 1}, vars(sampling))


def test_texts_are_read_back(tmp_path: Path) -> None:
    said = ['quote " and \\', "two\nlines", "ünï ☃ \u2028 \x00", ""]
    write(tmp_path, *(line(str(n), text) for n, text in enumerate(said)))
    assert texts(tmp_path) == {str(n): [text] for n, text in enumerate(said)}


def test_the_last_line_counts(tmp_path: Path) -> None:
    write(tmp_path, line("a", "old"), line("a", "new"), line("b", None))
    write(tmp_path, line("b", "answered", time=0.5), rank=1)  # the time does not matter
    assert texts(tmp_path) == {"a": ["new"], "b": ["answered"]}


def test_a_failure_never_replaces_an_answer(tmp_path: Path) -> None:
    write(tmp_path, line("a", "yes"), line("a", None, time=2.0), line("b", None))
    write(tmp_path, line("b", "found", time=0.1), rank=3)
    assert texts(tmp_path) == {"a": ["yes"], "b": ["found"]}


def test_changed_records_are_new_and_may_change_back(tmp_path: Path) -> None:
    write(tmp_path, line("a", "yes"), line("a", None, digest="other"))
    found = read_journal(tmp_path)
    assert found["a", "other"].failure == "timeout"
    assert found["a", "d"].failure is None


def test_origins_are_compared() -> None:
    made = origin_of("m", {}, {"temperature": 0})
    assert made == origin_of("m", {}, vars(Sampling()))  # 0 is 0.0, and absent ones are defaults
    others = [
        origin_of("n", {}, {}),
        origin_of("m", {"path": "/b"}, {}),
        origin_of("m", {}, {"temperature": 0.5}),
        origin_of("m", {}, None),
    ]
    assert made not in others
    assert len(set(others)) == 4


def test_texts_that_utf8_cannot_hold(tmp_path: Path) -> None:
    write(tmp_path, line("\ud83d", "half a \ud83d"), line("b"))
    assert texts(tmp_path) == {"\ud83d": ["half a \ud83d"], "b": ["yes"]}


def test_a_full_disk_loses_no_line(tmp_path: Path) -> None:
    with JournalWriter(tmp_path, 0) as journal:
        journal.append([line("a")])
        size = (tmp_path / "rank0.jsonl").stat().st_size
        with (
            largest_file(size + 10),
            pytest.raises(OutputError, match=r"rank0\.jsonl: .*too large"),
        ):
            journal.append([line("b"), line("c")])  # only 10 bytes fit
        journal.append([line("d")])
    assert set(texts(tmp_path)) == {"a", "d"}


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """In the block, this process can't write files beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_one_writer_per_file(tmp_path: Path) -> None:
    with JournalWriter(tmp_path, 0), pytest.raises(OutputError, match="another run"):
        JournalWriter(tmp_path, 0)
    JournalWriter(tmp_path, 0).close()


@pytest.mark.parametrize("num_lost", [1, 7, 40])
def test_an_incomplete_line_is_ignored(tmp_path: Path, num_lost: int) -> None:
    write(tmp_path, line("a"), line("b"))
    path = tmp_path / "rank0.jsonl"
    path.write_bytes(path.read_bytes()[:-num_lost])
    assert set(texts(tmp_path)) == {"a"}
    write(tmp_path, line("c"))
    assert set(texts(tmp_path)) == {"a", "c"}
    assert all(json.loads(one) for one in path.read_text().splitlines())


def test_an_incomplete_line_longer_than_a_block(tmp_path: Path) -> None:
    write(tmp_path, line("a"), line("b", "x" * 200_000))
    path = tmp_path / "rank0.jsonl"
    path.write_bytes(path.read_bytes()[:-2])
    write(tmp_path, line("c"))
    assert set(texts(tmp_path)) == {"a", "c"}


def test_damaged_lines_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, line("a"), line("b"), line("c"))
    path = tmp_path / "rank0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\x00\xff{nonsense\n" + b'{"uid": "d"}\n' + lines[2])
    assert set(texts(tmp_path)) == {"a", "c"}
    assert "2 damaged lines" in caplog.text


def test_no_journal_yet(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "absent") == {}


def test_ranks_in_order(tmp_path: Path) -> None:
    for rank in (10, 2, 0):
        write(tmp_path, line(str(rank)), rank=rank)
    (tmp_path / "lock").touch()
    assert [path.name for path in rank_files(tmp_path)] == [
        "rank0.jsonl",
        "rank2.jsonl",
        "rank10.jsonl",
    ]


def test_all_is_in_the_file_before_append_returns(tmp_path: Path) -> None:
    journal = JournalWriter(tmp_path, 0, sync_every_s=1000)
    journal.append([line("a")])
    assert set(texts(tmp_path)) == {"a"}  # as after a kill: nothing was closed
    journal.close()
    journal.close()


def test_syncs_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with JournalWriter(tmp_path, 0, sync_every_s=1000) as journal:
        for number in range(50):
            journal.append([line(str(number))])
        assert not synced
    assert len(synced) == 1
    with JournalWriter(tmp_path, 0, sync_every_s=0) as journal:
        journal.append([line("x")])
        assert len(synced) == 2


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", None]), st.integers(0, 2)),
        max_size=12,
    )
)
def test_order_of_files_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, str | None, int]]
) -> None:
    lines = [(line(uid, text, time=float(n)), rank) for n, (uid, text, rank) in enumerate(said)]
    spread, single = tmp_path_factory.mktemp("spread"), tmp_path_factory.mktemp("single")
    for one, rank in lines:
        write(spread, one, rank=rank)
        write(single, one)
    assert texts(spread).keys() == texts(single).keys()
    assert {u for u, t in texts(spread).items() if t} == {u for u, t in texts(single).items() if t}
    answered = {uid for uid, text, _ in said if text is not None}
    assert {u for (u, _), e in read_journal(single).items() if e.failure is None} == answered


@settings(deadline=None)
@given(st.integers(0, 7), st.data())
def test_every_flipped_bit_is_noticed(bit: int, data: st.DataObject) -> None:
    encoded = bytearray(encode_line(line("a", 'He said "yes", 12.5')))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= 1 << bit
    try:
        found, is_checked = decode_line(bytes(encoded))
    except ValueError:
        return
    # Only a flip in the name of the checksum leaves the content readable, and it is unchanged.
    assert not is_checked
    assert found["texts"] == ['He said "yes", 12.5']


def test_a_flipped_bit_costs_only_its_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, line("a"), line("b", "twelve"), line("c"))
    path = tmp_path / "rank0.jsonl"
    path.write_bytes(path.read_bytes().replace(b"twelve", b"twenve"))
    assert set(texts(tmp_path)) == {"a", "c"}
    assert "1 damaged line; " in caplog.text
    path.write_bytes(path.read_bytes().replace(b'"texts"', b'"tixts"', 1))
    assert set(texts(tmp_path)) == {"c"}


def test_lines_without_checksum_are_read(tmp_path: Path) -> None:
    old = {k: v for k, v in line("a").items() if k not in ("stamp", "pictures")}
    (tmp_path / "rank0.jsonl").write_text(json.dumps(old) + "\n")
    write(tmp_path, line("b"))
    assert set(texts(tmp_path)) == {"a", "b"}
    entries = read_journal(tmp_path)
    assert [entries[uid, "d"].is_checked for uid in "ab"] == [False, True]


@pytest.mark.parametrize(
    "change",
    [
        {"texts": None},
        {"texts": [1]},
        {"texts": []},
        {"usage": {}},
        {"usage": {"prompt_tokens": "x", "completion_tokens": 1}},
        {"error": {"kind": "timeout"}},
        {"finish_reasons": "stop"},
        {"settings": 3},
    ],
)
def test_lines_without_checksum_must_be_complete(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "rank0.jsonl").write_text(json.dumps(line("a") | change) + "\n")
    assert texts(tmp_path) == {}


def test_there_is_no_nan_in_a_line(tmp_path: Path) -> None:
    made = line("a") | {"settings": {"scale": float("nan"), "limit": float("inf")}}
    write(tmp_path, made)
    assert b"NaN" not in (tmp_path / "rank0.jsonl").read_bytes()
    assert b"Infinity" not in (tmp_path / "rank0.jsonl").read_bytes()
    (entry,) = read_journal(tmp_path).values()
    assert entry.origin == origin_of("m", made["settings"], vars(Sampling()))
