"""A record's own fields: core columns win, and no value turns into another one."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning import inspect_shards, iter_examples
from mathcanvas_lightning.conversion.sources import Draft, SourceFormat, options_text, text_field
from mathcanvas_lightning.data.rows.schema import CORE_COLUMNS
from tests.conftest import examples, png, read_jsonl
from tests.conversion.records import canvas_record, puzzle_source, run


class OwnFormat(SourceFormat):
    """Reads id and answer from fields that are not named like columns."""

    name = "own"
    id_field = "pid"
    fields = frozenset({"pid", "gold", "text"})
    recognised_by = frozenset({"pid"})

    def parse(self, record: Any, files: Any) -> Draft:
        """See `SourceFormat.parse`."""
        return Draft(
            uid=text_field(record, "pid"),
            question=[text_field(record, "text")],
            solution=["So it is."],
            answer=text_field(record, "gold"),
        )


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.mark.parametrize("name", CORE_COLUMNS)
@pytest.mark.parametrize("value", ["other", 77, 0.5, True, None])
def test_core_columns_win(name: str, value: Any, tmp_path: Path) -> None:
    source = puzzle_source(tmp_path, **{name: value, "level": 3})
    for _ in range(2):  # the second time, the shards are read back
        report = run(source, tmp_path / "out", samples_per_file=1)
        examples = list(iter_examples(tmp_path / "out"))
        assert [(e.uid, e.answer) for e in examples] == [("task_0", "B"), ("task_1", "B")]
        assert examples[0].extras == {"level": 3, f"source_{name}": value}
        assert report.renamed_fields == {name: f"source_{name}"}
    summary = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert summary["renamed_fields"] == {name: f"source_{name}"}
    table = pq.read_table(tmp_path / "out" / "blockmoving_000.parquet")
    assert len(set(table.column_names)) == len(table.column_names)
    assert inspect_shards(str(tmp_path / "out"), validate=True, progress=False).problems == []


def test_equal_ids_in_another_field_are_no_duplicates(tmp_path: Path) -> None:
    lines = [{"pid": f"p{n}", "text": "?", "gold": "4", "id": "DUP", "answer": "x"} for n in (1, 2)]
    source = tmp_path / "x.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    report = run(source, tmp_path / "out", source="tests.conversion.test_fields.OwnFormat")
    assert [e.uid for e in iter_examples(tmp_path / "out")] == ["p1", "p2"]
    assert report.renamed_fields == {"answer": "source_answer", "id": "source_id"}


def test_new_name_is_not_that_of_another_field(tmp_path: Path) -> None:
    source = puzzle_source(tmp_path, id="a", source_id="b", source_source_id="c")
    report = run(source, tmp_path / "out")
    assert report.renamed_fields == {"id": "source_source_source_id"}
    extras = next(iter_examples(tmp_path / "out")).extras
    expected = {"source_id": "b", "source_source_id": "c", "source_source_source_id": "a"}
    assert extras == expected


def test_without_such_fields_nothing_is_renamed(tmp_path: Path) -> None:
    report = run(puzzle_source(tmp_path, level=3), tmp_path / "out")
    assert report.renamed_fields == {}
    assert "renamed_fields" not in json.loads((tmp_path / "out" / "conversion.json").read_text())


TEXTS = st.text() | st.text(st.characters(categories=["Cs", "Ll"]))  # also half surrogate pairs
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**53 - 2, 2**53 + 2)
    | st.integers(-(2**63) - 2, -(2**63) + 2)
    | st.floats()
    | TEXTS
)
NAMES = st.sampled_from([*CORE_COLUMNS, "source_id", "uid", "a.b", ""]) | TEXTS


@settings(max_examples=examples(30), deadline=None)
@given(extras=st.lists(st.dictionaries(NAMES, SCALARS, max_size=4), min_size=1, max_size=5))
def test_any_scalar_fields(extras: list[dict[str, Any]], folder: Path) -> None:
    """Core columns hold; integers stay exact; half a surrogate pair in a value is a rejection."""
    own = {"task_id", "gt", "pred", "cot_text"}
    source = puzzle_source(folder)
    record = json.loads(source.read_text().splitlines()[0])
    lines = [
        {k: v for k, v in extra.items() if k not in own} | record | {"task_id": number}
        for number, extra in enumerate(extras)
    ]
    texts = [json.dumps(line) for line in lines]
    lines = [json.loads(text) for text in texts]  # two halves of a pair become one character
    source.write_text("\n".join(texts))
    shutil.rmtree(folder / "out", ignore_errors=True)
    report = run(source, folder / "out")
    assert set(report.rejects) <= {"invalid_field"}
    for example in iter_examples(folder / "out") if report.num_rows else ():
        line = lines[int(example.uid.removeprefix("task_"))]
        assert example.answer == "B"
        for name, value in line.items():
            column = report.renamed_fields.get(name, name)
            if isinstance(value, int) and not isinstance(value, bool):
                assert name in own or int(example.extras[column] or 0) == value


def test_large_integers_beside_floats(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    stamps = [2**60 + 1, 0.5, None, 7, float("nan")]
    records = [canvas_record(n) | {"stamp": stamp} for n, stamp in enumerate(stamps)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, records)))
    run(tmp_path / "x.jsonl", tmp_path / "out")
    column = pq.read_table(tmp_path / "out" / "mathcanvas_000.parquet")["stamp"]
    assert column.to_pylist() == [str(2**60 + 1), "0.5", None, "7", None]


def test_other_names_of_an_id_stay_columns(tmp_path: Path) -> None:
    source = puzzle_source(tmp_path, uid="u", level=3)
    run(source, tmp_path / "out")
    assert next(iter_examples(tmp_path / "out")).extras == {"level": 3, "uid": "u"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "missing_field"),
        (float("inf"), "invalid_field"),
        (["A"], "invalid_field"),
        ([], "invalid_field"),
        ({"a": 1}, "invalid_field"),
    ],
)
@pytest.mark.parametrize("field", ["id", "answer"])
def test_values_that_are_no_text(field: str, value: Any, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    records = [canvas_record(0) | {field: value}, canvas_record(1)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert run(tmp_path / "x.jsonl", tmp_path / "out").rejects == {reason: 1}
    assert read_jsonl(tmp_path / "out" / "rejects.jsonl")[0]["record"] == 0


def test_no_option_is_dropped() -> None:
    lines = options_text([f"option {n}" for n in range(60)]).splitlines()[1:]
    assert lines[25:28] == ["Z: option 25", "AA: option 26", "AB: option 27"]
    assert lines[-1] == "BH: option 59"
    assert len({line.partition(":")[0] for line in lines}) == 60


@pytest.mark.parametrize(
    "names", [["1", "2", "10"], ["A", "B", "Z", "AA", "AB"], ["first", "second", "third"]]
)
def test_named_options_are_in_their_order(names: list[str]) -> None:
    lines = options_text(dict.fromkeys(reversed(names), "x")).splitlines()[1:]
    assert lines == [f"{name}: x" for name in names]


KEYS = st.sampled_from([*CORE_COLUMNS, "type", "content", "index", "options", "solution"]) | (
    st.sampled_from(["task_id", "gt", "pred", "cot_text", "question", "image"])
)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["a.png", "<image>a.png</image> B", "<image1>", "[{", "B", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=examples(80), deadline=None)
@given(
    records=st.lists(st.dictionaries(KEYS | TEXTS, VALUES, max_size=8) | VALUES, max_size=4),
    source=st.sampled_from(["blockmoving", "mathcanvas", "mathvision"]),
    encoding=st.sampled_from(["json", "struct"]),
)
def test_any_records(records: list[Any], source: str, encoding: str, folder: Path) -> None:
    """Each record is a row that can be read back, or a reject; nothing raises."""
    shutil.rmtree(folder / "any", ignore_errors=True)
    (folder / "any").mkdir()
    (folder / "any" / "a.png").write_bytes(png())
    path = folder / "any" / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    report = run(path, folder / "any" / "out", source=source, interleave_encoding=encoding)
    assert report.num_records == len(records) == report.num_rows + report.num_rejects
    uids = [e.uid for e in iter_examples(folder / "any" / "out")] if report.num_rows else []
    assert len(uids) == len(set(uids)) == report.num_rows
    assert len(read_jsonl(folder / "any" / "out" / "rejects.jsonl")) == report.num_rejects
