"""Files of records: reading, writing, errors of malformed files."""

import csv
import json
import os
import tracemalloc
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.records import files as formats
from mathcanvas_lightning.records.files import format_of, read_records, write_records
from mathcanvas_lightning.records.record import RecordInput
from tests.conftest import png

TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
RECORDS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=4), max_size=5)


def written(folder: Path, name: str, records: list[Any], like: Path | None = None) -> Path:
    path = folder / name
    write_records(path, iter(records), like=like)
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
    return path


@settings(deadline=None)
@given(RECORDS)
def test_json_and_lines_roundtrip(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("json")
    array = written(folder, "x.json", records)
    lines = written(folder, "x.jsonl", records)
    assert array.read_text() == json.dumps(records, indent=2, ensure_ascii=False) + "\n"
    assert list(read_records(array)) == records
    assert list(read_records(lines)) == records
    assert [list(r) for r in read_records(array)] == [list(r) for r in records]


@settings(deadline=None)
@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(TEXTS, min_size=n, max_size=n))))
def test_csv_roundtrip(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    folder = tmp_path_factory.mktemp("csv")
    names = ["query", "", "with, comma", 'with "quotes"']
    records = [dict(zip(names, row, strict=False)) for row in rows]
    for name in ("x.csv", "x.tsv"):
        assert list(read_records(written(folder, name, records))) == records


@settings(deadline=None)
@given(st.dictionaries(TEXTS, st.lists(VALUES, min_size=4, max_size=4), min_size=1, max_size=4))
def test_parquet_roundtrip_of_values_or_their_json(
    tmp_path_factory: pytest.TempPathFactory, columns: dict[str, list[Any]]
) -> None:
    records = [{name: values[row] for name, values in columns.items()} for row in range(4)]
    path = written(tmp_path_factory.mktemp("parquet"), "x.parquet", records)
    found = list(read_records(path))
    for name, values in columns.items():
        column = [record[name] for record in found]
        assert column == values or [v and json.loads(v) for v in column] == values


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None], pa.int64()),
        ([1.0, 0.5], pa.float64()),
        ([None, None], pa.string()),
        (["a", None], pa.string()),
        ([[], ["a"]], pa.list_(pa.string())),
        ([b"a", None], pa.binary()),
        ([date(2024, 1, 1), None], pa.date32()),
        ([float("nan"), 1.5], pa.float64()),
        ([{"bytes": b"x", "path": None}, {"bytes": b"y", "path": "p"}], None),
    ],
)
@pytest.mark.parametrize("rows_per_group", [1, 2])
def test_parquet_common_types(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: list[Any],
    kind: pa.DataType | None,
    rows_per_group: int,
) -> None:
    monkeypatch.setattr(formats, "GROUP_RECORDS", rows_per_group)
    path = written(tmp_path, "x.parquet", [{"a": value} for value in values])
    assert pq.ParquetFile(path).num_row_groups == 2 // rows_per_group
    assert kind is None or pq.read_schema(path).field("a").type == kind
    assert str([record["a"] for record in read_records(path)]) == str(values)


@pytest.mark.parametrize(
    "values",
    [[1, "a"], [True, 1], [{"a": 1}, {"b": 2}], [{}, None], [[1], 2], [2**70, 1], ["a", [1.5]]],
)
@pytest.mark.parametrize("rows_per_group", [1, 2])
def test_parquet_values_without_a_common_type_are_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[Any], rows_per_group: int
) -> None:
    monkeypatch.setattr(formats, "GROUP_RECORDS", rows_per_group)
    path = written(tmp_path, "x.parquet", [{"a": value} for value in values])
    found = [record["a"] for record in read_records(path)]
    assert [value if value is None else json.loads(value) for value in found] == values


def test_large_integers_are_kept_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "GROUP_RECORDS", 1)
    path = written(tmp_path, "x.parquet", [{"a": 2**60 + 1}, {"a": 0.5}])
    assert [record["a"] for record in read_records(path)] == [str(2**60 + 1), "0.5"]


def hugging_face_table() -> pa.Table:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [
        pa.field("id", pa.int32(), nullable=False, metadata={"note": "kept"}),
        pa.field("image", image),
        pa.field("score", pa.float32()),
        pa.field("kind", pa.dictionary(pa.int8(), pa.string())),
        pa.field("when", pa.timestamp("us", "UTC")),
        pa.field("price", pa.decimal128(6, 2)),
        pa.field("nothing", pa.null()),
        pa.field("embedding", pa.list_(pa.float32())),
        pa.field("model_answer", pa.null()),
    ]
    rows = {
        "id": [1, 2, 3],
        "image": [{"bytes": png(), "path": "a.png"}, {"bytes": None, "path": None}, None],
        "score": [0.1, float("nan"), None],
        "kind": ["x", "y", "x"],
        "when": [0, 1, None],
        "price": [Decimal("1.50"), None, Decimal("-2.00")],
        "nothing": [None] * 3,
        "embedding": [[0.1, float("nan")], [], None],
        "model_answer": [None] * 3,
    }
    arrays = [pa.array(rows[field.name], field.type) for field in fields]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata={"huggingface": "{}"}))


def test_parquet_keeps_types_and_metadata_of_its_input(tmp_path: Path) -> None:
    table = hugging_face_table()
    source = tmp_path / "in.parquet"
    pq.write_table(table, source)
    records = [
        {**record, "model_answer": f"answer {n}", "tokens": n}
        for n, record in enumerate(read_records(source))
    ]
    result = pq.read_table(written(tmp_path, "out.parquet", records, like=source))
    assert result.schema.metadata == {b"huggingface": b"{}"}
    for field in table.schema:
        if field.name != "model_answer":
            assert result.schema.field(field.name).type == field.type
            assert str(result[field.name].to_pylist()) == str(table[field.name].to_pylist())
    assert result.schema.field("id").metadata == {b"note": b"kept"}
    assert result["model_answer"].to_pylist() == ["answer 0", "answer 1", "answer 2"]
    assert result.column_names[-1] == "tokens"
    assert result["tokens"].type == pa.int64()


def test_json_texts_of_parquet_are_not_wrapped_again(tmp_path: Path) -> None:
    first = written(tmp_path, "1.parquet", [{"a": 1, "b": "x"}, {"a": "y", "b": None}])
    records = list(read_records(first))
    again = written(tmp_path, "2.parquet", records, like=first)
    assert list(read_records(again)) == records == [{"a": "1", "b": "x"}, {"a": '"y"', "b": None}]


def test_folder_of_shards_is_read_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        pq.write_table(pa.table({"n": [number]}), tmp_path / f"part_{number}.parquet")
    (tmp_path / ".hidden.parquet").write_bytes(b"")
    assert [record["n"] for record in read_records(tmp_path)] == [1, 2, 10]


def test_pictures_and_dates_become_texts_in_json_and_csv(tmp_path: Path) -> None:
    record = {"picture": b"\x00\xff", "day": date(2024, 1, 2), "none": None, "list": ["é", 1]}
    texts = {"picture": "AP8=", "day": "2024-01-02", "none": None, "list": ["é", 1]}
    assert list(read_records(written(tmp_path, "x.jsonl", [record]))) == [texts]
    cells = {**texts, "day": '"2024-01-02"', "picture": '"AP8="', "none": "", "list": '["é", 1]'}
    assert list(read_records(written(tmp_path, "x.csv", [record]))) == [cells]


def test_half_a_surrogate_pair_in_every_format(tmp_path: Path) -> None:
    records = [{"a": "\ud800"}, {"a": "é"}]
    assert list(read_records(written(tmp_path, "x.jsonl", records))) == records
    found = read_records(written(tmp_path, "x.parquet", records))
    assert [json.loads(record["a"]) for record in found] == ["\ud800", "é"]
    assert len(list(read_records(written(tmp_path, "x.csv", records)))) == 2


def test_csv_has_the_columns_of_all_records(tmp_path: Path) -> None:
    path = written(tmp_path, "x.csv", [{"b": "1"}, {"a": "2", "b": "3"}, {"c": ""}])
    assert list(read_records(path)) == [
        {"b": "1", "a": "", "c": ""},
        {"b": "3", "a": "2", "c": ""},
        {"b": "", "a": "", "c": ""},
    ]


def test_csv_of_spreadsheets(tmp_path: Path) -> None:
    path = tmp_path / "x.CSV"
    path.write_bytes('\ufeffid,query\r\n1,"Two\r\nlines, and ""quotes"""\r\n\r\n2,é\r\n'.encode())
    assert list(read_records(path)) == [
        {"id": "1", "query": 'Two\r\nlines, and "quotes"'},
        {"id": "2", "query": "é"},
    ]


def test_csv_cells_may_be_large(tmp_path: Path) -> None:
    records = [{"image": "A" * 1_000_000}]
    assert list(read_records(written(tmp_path, "x.csv", records))) == records


@pytest.mark.parametrize(
    ("name", "data", "place", "found"),
    [
        ("x.csv", b"a,b\n1,2\n1\n", "x.csv:3", "1 cells below a header of 2"),
        ("x.csv", b"a,b\n1,2,3\n", "x.csv:2", "3 cells"),
        ("x.csv", b"a,a\n1,2\n", "x.csv:1", "twice"),
        ("x.csv", b'a,b\n1,"2\n3,4\n', "x.csv:3", "malformed CSV"),
        ("x.csv", b"a,b\n1,\xff\n", "x.csv:", "malformed CSV"),
        ("x.json", b'[{"a": 1},\n {"b": nul}]', "x.json:2:11", "malformed JSON"),
        ("x.jsonl", b'{"a": 1}\nnot json', "x.jsonl:2:1", "malformed JSON"),
        ("x.parquet", b"PAR1 but not whole", "x.parquet", "damage"),
    ],
)
def test_errors_of_malformed_files_name_the_line(
    tmp_path: Path, name: str, data: bytes, place: str, found: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        list(read_records(path))
    assert place in error.value.place
    assert found in error.value.found


@pytest.mark.parametrize("name", ["", "x.txt", "records", "no.json", "no.csv", "no.parquet"])
def test_missing_files_and_unknown_suffixes(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        read_records(str(tmp_path / name) if name else "")


def test_folders_without_shards_and_folders_instead_of_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.parquet or \.pq file"):
        list(read_records(tmp_path))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="a superuser may read all")
def test_unreadable_files(tmp_path: Path) -> None:
    path = written(tmp_path, "x.jsonl", [{}])
    path.chmod(0)
    with pytest.raises(InputError, match="denied"):
        list(read_records(path))


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.parquet"])
def test_a_failure_keeps_the_old_file(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, [{"a": "old"}])
    before = path.read_bytes()

    def broken() -> Any:
        yield {"a": "new"}
        raise ValueError("the end")

    with pytest.raises(ValueError, match="the end"):
        write_records(path, broken())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.parquet"])
def test_no_records_give_an_empty_file(tmp_path: Path, name: str) -> None:
    assert list(read_records(written(tmp_path, name, []))) == []


def test_formats_by_suffix(tmp_path: Path) -> None:
    names = ["a.JSON", "a.jsonl", "a.ndjson", "a.csv", "a.tsv", "a.parquet"]
    kinds = ["json", "jsonl", "jsonl", "csv", "csv", "parquet"]
    assert [format_of(name) for name in names] == kinds
    assert format_of(tmp_path) == "parquet"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.parquet"])
def test_memory_does_not_grow_with_the_records(tmp_path: Path, name: str) -> None:
    def peak(count: int) -> int:
        records = ({"n": str(n), "text": f"{n} " * 200} for n in range(count))
        tracemalloc.start()
        write_records(tmp_path / name, records)
        assert sum(1 for _ in read_records(tmp_path / name)) == count
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    formats_few, formats_many = peak(2_000), peak(10_000)
    assert formats_many < formats_few + 2**21


def test_other_programs_can_read_the_csv(tmp_path: Path) -> None:
    path = written(tmp_path, "x.csv", [{"a": "x\ny", "b": 1, "c": True}])
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["a", "b", "c"], ["x\ny", "1", "true"]]


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_records(Path("~/x.jsonl"), [{"a": 1}])
    assert (tmp_path / "x.jsonl").is_file()
    assert list(read_records("~/x.jsonl")) == [{"a": 1}]
    source = RecordInput(path="~/x.jsonl")
    assert source.output_path == tmp_path / "x_answers.jsonl"
    assert source.label == "x"
    assert source.image_base == str(tmp_path)
