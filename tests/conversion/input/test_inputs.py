"""Kinds of input: Parquet, CSV, tar, gzip, folders and patterns."""

import datetime
import decimal
import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning import convert_cot, iter_examples
from mathcanvas_lightning.conversion.input.files import find_inputs, kind_of, opened_input
from mathcanvas_lightning.conversion.input.tars import split_name
from mathcanvas_lightning.errors import InputError
from tests.conftest import png
from tests.servers import file_server


def read(path: Path | str, start: int = 0, stop: int | None = None) -> list[Any]:
    with opened_input(str(path)) as files:
        return list(files.read(start, stop))


def count(path: Path | str) -> int:
    with opened_input(str(path)) as files:
        return files.count()


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            add(archive, name, data)
    return path


def write_parts(folder: Path) -> Path:
    """Two Parquet files of 7 and 5 rows in small row groups."""
    folder.mkdir()
    for number, rows in ((10, range(7, 12)), (2, range(7))):
        table = pa.table({"n": list(rows)})
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=3)
    (folder / "train_parquet_info.json").write_text("{}")
    return folder


def test_parquet_values_are_those_of_json(tmp_path: Path) -> None:
    day = datetime.date(2026, 1, 2)
    moment = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
    columns = {
        "day": [day],
        "moment": [moment],
        "price": [decimal.Decimal("1.50")],
        "nothing": pa.nulls(1),
        "nested": [[{"at": day}]],
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    (record,) = read(tmp_path / "x.parquet")
    assert json.loads(json.dumps(record)) == {
        "day": "2026-01-02",
        "moment": "2026-01-02T03:04:00+00:00",
        "price": 1.5,
        "nothing": None,
        "nested": [{"at": "2026-01-02"}],
    }


def test_folder_and_pattern_are_read_in_natural_order(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "data")
    for source in (folder, f"{folder}/*.parquet", f"{folder}/part-[0-9]*.parquet"):
        assert [record["n"] for record in read(source)] == list(range(12))
    assert [record["n"] for record in read(f"{folder}/part-1*.parquet")] == list(range(7, 12))
    assert count(folder) == 12


@given(start=st.integers(0, 14), length=st.integers(0, 14) | st.none())
def test_a_range_is_a_slice(
    start: int, length: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.getbasetemp() / "ranges"
    if not base.exists():
        base.mkdir()
        write_parts(base / "parquet")
        (base / "json").mkdir()
        for name, rows in (("a", range(7)), ("b", range(7, 12))):
            lines = "".join(json.dumps({"n": n}) + "\n" for n in rows)
            (base / "json" / f"{name}.jsonl").write_text(lines)
    stop = None if length is None else start + length
    for kind in ("parquet", "json"):
        found = [record["n"] for record in read(base / kind, start, stop)]
        assert found == list(range(12))[start:stop]


def test_tar_members_with_one_key_are_a_record(tmp_path: Path) -> None:
    members = {
        "./a/1.png": png(),
        "./a/1.json": b'{"answer": "4", "__key__": "x"}',
        "./a/1.txt": b"How many?",
        "./a/1.pkl": pickle.dumps({"answer": "5"}),
        "./a/1.pth": b"\x80",
        "./a/.hidden.txt": b"x",
        "./a/2.mask.PNG": png(),
        "./a/2.list.json": b"[1]",
    }
    expected = [
        {
            "__key__": "a/1",
            "png": {"bytes": png(), "path": "a/1.png"},
            "answer": "4",
            "txt": "How many?",
        },
        {
            "__key__": "a/2",
            "mask.png": {"bytes": png(), "path": "a/2.mask.PNG"},
            "list.json": [1],
        },
    ]
    assert read(write_tar(tmp_path / "x.tar", members)) == expected
    assert read(write_tar(tmp_path / "x.tar.gz", members, "w:gz")) == expected
    assert count(tmp_path / "x.tar") == 2


def test_no_pickle_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pickle.loads", lambda _: pytest.fail("a pickle was read"))
    monkeypatch.setattr("pickle.load", lambda _: pytest.fail("a pickle was read"))
    source = write_tar(tmp_path / "x.tar", {"1.txt": b"a", "1.pickle": pickle.dumps("b")})
    assert read(source) == [{"__key__": "1", "txt": "a"}]


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("x.tar", b"no tar", "a damaged tar file"),
        ("x.parquet", b"no parquet", r"x\.parquet"),
        ("x.csv", b"a,b\n1\n", r"x\.csv:2.*1 cells"),
        ("x.csv", b"PAR1", r"end in \.parquet"),
        ("x.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "damaged gzip"),
        ("x.tsv", b"a\ta\n", "occurs twice"),
    ],
)
def test_damaged_input_names_file_and_fault(
    name: str, data: bytes, match: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=match):
        read(tmp_path / name)


def test_bad_tar_member_is_named(tmp_path: Path) -> None:
    for name, data in (("1.json", b"{"), ("1.txt", b"\xff")):
        with pytest.raises(InputError, match=rf"x\.tar, member {name}"):
            read(write_tar(tmp_path / "x.tar", {name: data}))
    path = write_tar(tmp_path / "cut.tar", {"1.png": png(600, 600)})
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match=r"cut\.tar.*damaged"):
        read(path)


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.tsv", "x.tsv.gz"])
def test_csv(name: str, tmp_path: Path) -> None:
    data = 'n,text\n1,"a\nb"\n'.replace(",", "\t" if ".tsv" in name else ",").encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read(tmp_path / name) == [{"n": "1", "text": "a\nb"}]


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in ("none.json", "none.parquet", "empty", "*.json", "none/*.json"):
        with pytest.raises(InputError, match=r"(Check|Correct) the path"):
            read(tmp_path / source)


def test_columns_of_the_same_name(tmp_path: Path) -> None:
    table = pa.table([pa.array([1]), pa.array([2])], names=["id", "id"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="the column 'id' twice"):
        read(tmp_path / "x.parquet")


def test_kinds_and_first_kind_of_a_folder(tmp_path: Path) -> None:
    names = {"a.PARQUET": "parquet", "a.tgz": "tar", "a.jsonl.gz": "json", "a": "json"}
    assert {name: kind_of(name) for name in names} == names
    assert kind_of("http://x/a.parquet?key=b.json") == "parquet"
    assert split_name("./a.b/c.d.JPG") == ("a.b/c", "d.jpg")
    for name in ("b.json", "c.jsonl", "d.csv"):
        (tmp_path / name).write_text("")
    assert find_inputs(str(tmp_path)) == [str(tmp_path / "c.jsonl")]


def test_all_kinds_give_the_same_rows(tmp_path: Path) -> None:
    records = [{"id": f"r{n}", "q": f"Q{n}", "s": "So.", "a": str(n)} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "x.parquet")
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    rows = [",".join(record.values()) for record in records]
    (tmp_path / "x.csv").write_text("\n".join([",".join(records[0]), *rows]) + "\n")
    members = {f"{n}.json": json.dumps(record).encode() for n, record in enumerate(records)}
    write_tar(tmp_path / "x.tar", members)
    keys = {"id": "id", "question": "q", "solution": "s", "answer": "a"}
    with file_server(tmp_path) as url:
        sources = [tmp_path / name for name in ("x.jsonl.gz", "x.csv", "x.parquet", "x.tar")]
        found = []
        for number, source in enumerate([*sources, f"{url}/x.parquet"]):
            output = tmp_path / f"out{number}"
            convert_cot(str(source), str(output), columns=keys, num_workers=0, progress=False)
            found.append([(e.uid, e.question, e.answer) for e in iter_examples(output)])
    assert len(found[0]) == 3
    assert all(rows == found[0] for rows in found)


def test_decimals_keep_all_their_digits(tmp_path: Path) -> None:
    """As ids of 20 digits, as databases write them, they stay different."""
    long = [decimal.Decimal(2**64 + n) for n in range(2)]
    table = pa.table(
        {
            "id": pa.array(long, pa.decimal128(38, 0)),
            "answer": pa.array([decimal.Decimal("3.00"), decimal.Decimal("0.1")]),
            "exact": pa.array([decimal.Decimal("1234567890123456.7891")] * 2),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    exact = "1234567890123456.7891"
    assert read(tmp_path / "x.parquet") == [
        {"id": 2**64, "answer": 3, "exact": exact},
        {"id": 2**64 + 1, "answer": 0.1, "exact": exact},
    ]


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 3, [None, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffc")]
)


@pytest.mark.parametrize(
    "values",
    [
        NOT_UTF8,
        pa.array([1, 10**15, 2], pa.timestamp("s")),
        pa.array([1, 2**30, 2], pa.int32()).cast(pa.date32()),
    ],
    ids=["text", "time", "day"],
)
def test_unreadable_value_is_named(values: pa.Array, tmp_path: Path) -> None:
    table = pa.table(
        {"n": range(22), "bad": pa.concat_arrays([values.slice(0, 1)] * 19 + [values])}
    )
    pq.write_table(table, tmp_path / "x.parquet")
    for start in (0, 17):
        with pytest.raises(InputError) as caught:
            read(tmp_path / "x.parquet", start)
        assert caught.value.place == f"{tmp_path / 'x.parquet'}, row 20, column bad"


def test_csv_of_another_encoding_names_its_line(tmp_path: Path) -> None:
    lines = ["id,text", *(f"{n},x" for n in range(3000)), "3000,caf\xe9", "3001,x"]
    (tmp_path / "x.csv").write_text("\n".join(lines), encoding="latin-1")
    with pytest.raises(InputError, match="can't decode byte 0xe9") as caught:
        read(tmp_path / "x.csv")
    assert caught.value.place == f"{tmp_path / 'x.csv'}:3002"
