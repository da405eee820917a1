"""Records: ids, questions, pictures, digests; all faults of all inputs at once."""

import base64
import json
import logging
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.data.rows.schema import (
    ImageSegment,
    InterleavedExample,
    TextSegment,
    row_from_example,
)
from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.records.faults import MAX_LINES, FaultList
from mathcanvas_lightning.records.files import read_records, write_records
from mathcanvas_lightning.records.filters import FieldIs, HasImages
from mathcanvas_lightning.records.record import Record, RecordInput, as_list, iter_records
from mathcanvas_lightning.records.survey import RecordKey, survey
from tests.conftest import png, write_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a picture a.png."""
    (tmp_path / "a.png").write_bytes(png())
    return tmp_path


def good(index: Any = "q1", **fields: Any) -> dict[str, Any]:
    return {"sample_index": index, "query_cot": "How many?", "image": "a.png", **fields}


def source(folder: Path, records: list[Any], name: str = "x.json", **options: Any) -> RecordInput:
    return RecordInput(path=str(write_json(folder / name, records)), **options)


def faults(*inputs: RecordInput, filters: Any = ()) -> str:
    with pytest.raises(InputError) as error:
        survey(inputs, filters)
    return str(error.value)


def test_fields_of_a_record(folder: Path) -> None:
    values = good(7, answer="3")
    (record,) = iter_records(source(folder, [values]))
    assert record == Record(
        uid="x:7",
        position=0,
        index=7,
        query="How many?",
        images=("a.png",),
        image_base=str(folder),
        values=values,
        digest=record.digest,
    )
    assert len(record.digest) == 16


def test_fields_of_any_name(folder: Path) -> None:
    records = [{"n": "a", "q": "Why?", "pics": ["a.png", "a.png"], "said": "Because."}]
    one = source(
        folder,
        records,
        name="some.json",
        index_field="n",
        query_field="q",
        image_field="pics",
        response_field="said",
    )
    (record,) = iter_records(one)
    assert (record.query, record.images) == ("Why?", ("a.png", "a.png"))
    assert survey([one]) == [
        RecordKey(label="some", uid="some:a", position=0, digest=record.digest, has_response=True)
    ]


@pytest.mark.parametrize(
    ("options", "is_folder", "label", "output", "base"),
    [
        ({"path": "in/x.jsonl"}, False, "x", "in/x_answers.jsonl", "in"),
        ({"path": "x.csv"}, False, "x", "x_answers.csv", "."),
        (
            {"path": "in/shards.v2"},
            True,
            "shards.v2",
            "in/shards.v2_answers.parquet",
            "in/shards.v2",
        ),
        (
            {"path": "x.json", "output": "y/z.csv", "name": "n", "image_base_path": "s3://b/c"},
            False,
            "n",
            "y/z.csv",
            "s3://b/c",
        ),
    ],
)
def test_default_names_of_an_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
    is_folder: bool,
    label: str,
    output: str,
    base: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if is_folder:
        Path(options["path"]).mkdir(parents=True)
    one = RecordInput(**options)
    assert (one.label, one.output_path, one.image_base) == (label, Path(output), base)


@pytest.mark.parametrize(
    ("value", "items"),
    [
        (None, []),
        ("", []),
        ("  ", []),
        ([], []),
        ("a.png", ["a.png"]),
        (["a.png", "b.png"], ["a.png", "b.png"]),
        ('["a.png", "b.png"]', ["a.png", "b.png"]),
        ("[1].png", ["[1].png"]),
        ("[" * 100_000, ["[" * 100_000]),
        (b"\x89", [b"\x89"]),
        ({"bytes": b"x"}, [{"bytes": b"x"}]),
        (0, [0]),
    ],
)
def test_as_list_of_one_several_or_no_values(value: Any, items: list[Any]) -> None:
    assert as_list(value) == items


@pytest.mark.parametrize("image", [None, "", [], "absent"])
def test_records_without_pictures(folder: Path, image: Any) -> None:
    record = good(image=image)
    if image == "absent":
        del record["image"]
    (found,) = iter_records(source(folder, [record]))
    assert found.images == ()
    assert len(survey([source(folder, [record])])) == 1


def test_the_digest_changes_with_the_content(folder: Path) -> None:
    data = base64.b64encode(png()).decode()
    records = [
        good(1),
        good(2),
        good(3, query_cot="How many ?"),
        good(4, image=["a.png"]),
        good(5, image=["a.png", "a.png"]),
        good(6, image=None),
        good(7, image=data),
        good(8, image={"bytes": data, "path": "a.png"}),
        good(9, image={"bytes": None, "path": "a.png"}),
        good(10, answer="else", model_answer="3"),
    ]
    digests = [record.digest for record in iter_records(source(folder, records))]
    assert [digests.index(digest) for digest in digests] == [0, 0, 2, 0, 4, 5, 6, 6, 0, 0]


@settings(deadline=None)
@given(st.lists(st.text("ab", min_size=1, max_size=3), min_size=2, max_size=4))
def test_the_digest_separates_texts(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("digest")

    def digest_of(query: str, images: list[str]) -> str:
        path = folder / "x.json"
        path.write_text(json.dumps([good(query_cot=query, image=images)]))
        return next(iter_records(RecordInput(path=str(path)))).digest

    joined = ["".join(pieces[:2]), *pieces[2:]]
    assert digest_of(pieces[0], pieces[1:]) != digest_of(joined[0], joined[1:])


@pytest.mark.parametrize(
    ("response", "has_response"),
    [
        (None, False),
        ("", False),
        (" \n", False),
        ([], False),
        ("B", True),
        (["B"], True),
        (0, True),
    ],
)
def test_records_that_have_a_response(folder: Path, response: Any, has_response: bool) -> None:
    (key,) = survey([source(folder, [good(model_answer=response)])])
    assert key.has_response == has_response


@pytest.mark.parametrize(
    ("record", "kind", "text"),
    [
        (["a"], "not an object", "['a']"),
        (None, "not an object", "None"),
        ({"query_cot": "Why?"}, "no 'sample_index'", "absent"),
        ({"sample_index": "x"}, "no 'query_cot'", "absent"),
        (good(1.0), "no usable index", "1.0"),
        (good(True), "no usable index", "True"),
        (good(None), "no usable index", "None"),
        (good(" "), "no usable index", "' '"),
        (good("1"), "duplicate index", "'1' is also the index of record 0"),
        (good("x", query_cot=" \n"), "no query", "query_cot is ' \\n'"),
        (good("x", query_cot=None), "no query", "None"),
        (good("x", query_cot=["a"]), "no query", "['a']"),
        (good("x", image="gone.png"), "picture_missing", "gone.png"),
        (good("x", image=["a.png", "gone.png"]), "picture_missing", "gone.png"),
        (good("x", image="."), "picture_missing", "no file"),
        (good("x", image=["a.png", ""]), "picture_missing", "empty"),
        (good("x", image={"bytes": None, "path": "gone.png"}), "picture_missing", "gone.png"),
        (good("x", image={"bytes": None, "path": None}), "picture_unreadable", "NoneType"),
        (good("x", image=5), "picture_unreadable", "int"),
        (good("x", image={"url": "a.png"}), "picture_unreadable", "dict"),
        (good("x", image="data:image/png;base64,?"), "picture_unreadable", "base64"),
        (good("x", query_cot="<image> <image>"), "a mark without picture", "more <image> marks"),
        (
            good("x", query_cot="<image3>", image=["a.png"] * 2),
            "a mark without picture",
            "<image3>",
        ),
    ],
)
def test_each_fault_is_found(folder: Path, record: Any, kind: str, text: str) -> None:
    report = faults(source(folder, [good(1), record]))
    assert f"\n{kind}" in report
    assert "x.json, record 1" in report
    assert text in report
    assert "1 fault," in report


def test_all_faults_are_reported_at_once(folder: Path) -> None:
    (folder / "broken.jsonl").write_text('{"sample_index": 1')
    text = faults(
        source(folder, [good(1), good(1), good(2, query_cot=""), 5], name="one.json"),
        source(folder, [good(1, image="gone.png"), good(" ")], name="two.json"),
        RecordInput(path=str(folder / "broken.jsonl")),
        RecordInput(path=str(folder / "none.json")),
        RecordInput(path=str(folder / "notes.txt")),
    )
    assert "found 9 faults" in text
    for words in (
        "duplicate index (1)",
        "no query (1)",
        "not an object (1)",
        "picture_missing (1)",
        "no usable index (1)",
        "unreadable file (3)",
        "broken.jsonl:1:",
        "none.json",
        "notes.txt",
        "unknown format (1)",
    ):
        assert words in text


def test_many_faults_are_reported_in_few_lines(folder: Path) -> None:
    records = [good(n, image=f"gone{n}.png") for n in range(500)] + [good(0)]
    lines = faults(source(folder, records)).splitlines()
    assert len(lines) < MAX_LINES + 8
    assert "picture_missing (500):" in lines
    assert "duplicate index (1):" in lines
    assert f"  ... and {500 - (MAX_LINES - 1)} more" in lines


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=200))
def test_every_kind_of_fault_is_shown(kinds: list[str]) -> None:
    found = FaultList()
    for number, kind in enumerate(kinds):
        found.add(kind, f"place {number}", "message")
    with pytest.raises(InputError) as error:
        found.raise_if_any()
    lines = str(error.value).splitlines()
    shown = sum(line.startswith("  - ") for line in lines)
    assert shown == min(len(kinds), MAX_LINES)
    hidden = sum(int(line.split()[2]) for line in lines if line.startswith("  ... and"))
    assert shown + hidden == len(kinds)
    for kind in set(kinds):
        assert f"{kind} ({kinds.count(kind)}):" in lines


def test_a_wrong_field_name_is_reported_once(folder: Path) -> None:
    records = [{"id": n, "query": "Why?", "picture": "a.png"} for n in range(50)]
    text = faults(source(folder, records, index_field="id", query_field="qurey"))
    assert "1 fault," in text
    assert "no record has the field 'qurey'; they have id, query, picture" in text
    assert "did you mean 'query'?" in text
    text = faults(source(folder, records, index_field="ids"))
    assert "2 faults" in text
    assert "no record has the field 'ids'; they have id, query, picture; did you mean 'id'?" in text
    assert "no record has the field 'query_cot'" in text


def test_a_wrong_picture_field_gives_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = good()
    record["images"] = record.pop("image")
    with caplog.at_level(logging.WARNING):
        survey([source(folder, [record])])
    assert "did you mean 'images'?" in caplog.text
    caplog.clear()
    del record["images"]
    survey([source(folder, [record])])
    assert caplog.text == ""


def test_filtered_records_may_have_faults_except_in_the_index(folder: Path) -> None:
    records = [good(1, level=1), good(2, level=2, query_cot="", image="gone.png")]
    one = source(folder, records)
    assert [key.uid for key in survey([one], [FieldIs("level", [1])])] == ["x:1"]
    assert [record.index for record in iter_records(one)] == [1, 2]
    again = source(folder, [*records, good(2, level=2)])
    assert "duplicate index" in faults(again, filters=[FieldIs("level", [1])])


def test_no_record_to_ask_is_a_fault(folder: Path) -> None:
    assert "no record to ask" in faults(source(folder, []))
    assert "no record to ask" in faults(source(folder, [good()]), filters=[HasImages(False)])


def test_inputs_must_not_overwrite_each_other(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "link").symlink_to(folder / "sub")
    pq.write_table(pa.table({"sample_index": ["1"], "query_cot": ["?"]}), folder / "sub/s.parquet")
    x = str(write_json(folder / "x.json", [good()]))
    y = str(write_json(folder / "y.json", [good()]))
    shards = str(folder / "sub")

    def report(*options: dict[str, Any]) -> str:
        return faults(*(RecordInput(**one) for one in options))

    assert "two inputs with one name" in report({"path": x}, {"path": x, "output": x + "l"})
    same = str(folder / "out.json")
    text = report({"path": x, "output": same}, {"path": y, "output": f"{shards}/../out.json"})
    assert "two inputs with one output" in text
    assert "output overwrites an input" in report({"path": x, "output": x})
    assert "output overwrites an input" in report({"path": x, "output": y}, {"path": y})
    inside = str(folder / "link" / "out.parquet")
    assert "output overwrites an input" in report({"path": shards, "output": inside})
    assert "output is a folder" in report({"path": x, "output": shards})
    assert "unknown format" in report({"path": x, "output": str(folder / "out.txt")})
    assert len(survey([RecordInput(path=x), RecordInput(path=y), RecordInput(path=shards)])) == 3


def test_reading_stops_at_an_invalid_record(folder: Path) -> None:
    with pytest.raises(InputError, match="record 1: found not an object"):
        list(iter_records(source(folder, [good(), 5])))
    with pytest.raises(InputError, match="record 0: found no usable index"):
        list(iter_records(source(folder, [good(None)])))


def test_csv_with_pictures(folder: Path) -> None:
    path = folder / "x.csv"
    data = base64.b64encode(png()).decode()
    path.write_text(
        "sample_index,query_cot,image\n"
        f'1,"Two\nlines?",a.png\n2,Why?,"[""a.png"", ""a.png""]"\n3,How?,\n4,{"y" * 9},{data}\n'
    )
    records = list(iter_records(RecordInput(path=str(path))))
    assert [record.uid for record in records] == ["x:1", "x:2", "x:3", "x:4"]
    assert [len(record.images) for record in records] == [1, 2, 0, 1]
    assert len(survey([RecordInput(path=str(path))])) == 4


def example(uid: str) -> InterleavedExample:
    question = (
        TextSegment(text="See"),
        ImageSegment(data=png()),
        TextSegment(text="and"),
        ImageSegment(data=png(colour="blue")),
    )
    solution = (TextSegment(text="So."), ImageSegment(data=png(4, 4)))
    return InterleavedExample(
        uid=uid, question=question, solution=solution, answer="B", extras={"level": 3}
    )


@pytest.mark.parametrize("encoding", ["json", "struct"])
def test_interleaved_shards(
    tmp_path: Path, encoding: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(2):
        rows = [row_from_example(example(f"r{number}"), encoding)]
        pq.write_table(pa.Table.from_pylist(rows), shards / f"train_{number}.parquet")
    one = RecordInput(path=str(shards))
    records = list(iter_records(one))
    assert [record.uid for record in records] == ["shards:r0", "shards:r1"]
    assert records[0].query == "See\n<image>\nand\n<image>"
    assert records[0].images == (png(), png(colour="blue"))
    assert len(survey([one], [FieldIs("level", ["3"])])) == 2
    assert caplog.text == ""
    write_records(
        one.output_path,
        ({**record.values, "model_answer": "C"} for record in iter_records(one)),
        like=one.path,
    )
    before, after = pq.read_table(shards), pq.read_table(one.output_path)
    assert after.drop_columns("model_answer").to_pylist() == before.to_pylist()
    assert after.schema.field("question_images").type == before.schema.field("question_images").type
    assert after["model_answer"].to_pylist() == ["C", "C"]
    assert [r.digest for r in iter_records(RecordInput(path=str(one.output_path)))] == [
        record.digest for record in records
    ]


def test_a_shard_with_only_questions_and_a_broken_shard(tmp_path: Path) -> None:
    row = row_from_example(example("r"), "json")
    question = {name: row[name] for name in ("id", "question_interleave", "question_images")}
    path = tmp_path / "x.parquet"
    write_records(path, [question])
    assert [record.index for record in iter_records(RecordInput(path=str(path)))] == ["r"]
    write_records(path, [question, {**question, "id": "s", "question_images": []}])
    text = faults(RecordInput(path=str(path)))
    assert "broken interleave (1):" in text
    assert "record 1" in text


@pytest.mark.parametrize("kind", ["link to a file", "broken link"])
def test_links(folder: Path, kind: str) -> None:
    target = folder / ("a.png" if kind == "link to a file" else "gone.png")
    (folder / "link.png").symlink_to(target)
    one = source(folder, [good(image="link.png")])
    if kind == "broken link":
        assert "picture_missing" in faults(one)
    else:
        assert len(survey([one])) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_is_not_a_picture(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    assert "picture_missing" in faults(source(folder, [good(image="pipe.png")]))


@pytest.mark.slow
def test_memory_of_a_survey_is_bounded(folder: Path) -> None:
    path = folder / "x.jsonl"
    with path.open("w") as file:
        for n in range(5000):
            file.write(json.dumps(good(n, padding="x" * 2000)) + "\n")
    tracemalloc.start()
    keys = survey([RecordInput(path=str(path))])
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(keys) == 5000
    assert kept / len(keys) < 300
    assert peak / len(keys) < 600


def test_keys_of_a_survey_have_no_values(folder: Path) -> None:
    keys = survey([source(folder, [good(n) for n in range(3)])])
    records = iter_records(RecordInput(path=str(folder / "x.json")))
    assert [(key.uid, key.position, key.digest) for key in keys] == [
        (record.uid, record.position, record.digest) for record in records
    ]
    assert len(list(read_records(folder / "x.json"))) == 3
