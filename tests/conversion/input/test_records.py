"""Streaming JSON: all records are read, and errors name the exact line and column."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.conversion.input import records
from mathcanvas_lightning.conversion.input.files import fetched
from mathcanvas_lightning.conversion.input.records import read_records
from mathcanvas_lightning.conversion.input.scan import recognise_source, scan_input
from mathcanvas_lightning.conversion.sources import BlockMoving
from mathcanvas_lightning.errors import InputError
from tests.conftest import examples

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=8,
)


@pytest.mark.slow
@given(st.lists(VALUES), st.booleans(), st.booleans())
def test_array_and_lines_hold_the_same(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], ascii_only: bool, mark: bool
) -> None:
    folder = tmp_path_factory.mktemp("json")
    array, lines = folder / "array.json", folder / "lines.jsonl"
    start = b"\xef\xbb\xbf" if mark else b""
    array.write_bytes(start + json.dumps(values, ensure_ascii=ascii_only, indent=1).encode())
    lines.write_bytes(
        start + b"\n".join(json.dumps(v, ensure_ascii=ascii_only).encode() for v in values)
    )
    assert list(read_records(array, "array")) == values
    assert list(read_records(lines, "lines")) == values


@pytest.mark.parametrize("chunk_bytes", [1, 7, 2**16])
@pytest.mark.parametrize(
    "text",
    [
        r"caf\ud83d",
        r"\ude00caf",
        r"\ud83d\ud83d\ude00",
        r"\\ud83d",
        r"\\\ud83d",
        r"\ud83d\n\ude00",
        r"\uD83D\uDE00",
        r"\ufdd0 \u00e9",
    ],
)
def test_halves_of_a_character_are_read_from_an_array(
    text: str, chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from lines, where they are halves still; ijson alone reads a question mark."""
    monkeypatch.setattr(records, "CHUNK_BYTES", chunk_bytes)
    content = f'[{{"{text}": "{text}"}}]'
    (tmp_path / "x.json").write_text(content)
    halves = dict.fromkeys(range(0xD800, 0xE000), "\ud800")
    ((name, value),) = json.loads(content)[0].items()
    expected = {name.translate(halves): value.translate(halves)}
    assert list(read_records(tmp_path / "x.json", "x")) == [expected]


@pytest.mark.parametrize(
    ("name", "text", "good", "place"),
    [
        ("x.json", '[{"a": 1},\n {"b": nul}]', 1, "2:11"),
        ("x.json", '[{"a": 1},\n {"b": 2', 1, "2:9"),
        ("x.json", '[{"a": 1}]\n rest', 1, "2:2"),
        ("x.json", '[{"a": 1},\n\n  {"é": "ü" x}]', 1, "3:13"),
        ("x.json", '[{"a": 1} {"b": 2}]', 1, "1:11"),
        ("x.json", "[", 0, "1:2"),
        ("x.json", '{"a": 1}\n{"b": 1,}\n', 1, "2:9"),
        ("x.json", '{\n"a": 1}', 0, "1:2"),
        ("x.jsonl", '{"a": 1}\n\n{"b": é', 1, "3:7"),
        ("x.jsonl", '{"a": 1}\nnot json', 1, "2:1"),
    ],
)
def test_broken_json_names_line_and_column(
    tmp_path: Path, name: str, text: str, good: int, place: str
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    reader = read_records(path, "my file")
    for _ in range(good):
        assert isinstance(next(reader), dict)
    with pytest.raises(InputError) as caught:
        next(reader)
    assert caught.value.place == f"my file:{place}"


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    for name, text in (("x.jsonl", b'{"a": "\xff"}'), ("x.json", b'[{"a": "\xff"}]')):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(InputError, match=rf"{name}:1:\d+"):
            list(read_records(tmp_path / name, name))


@settings(max_examples=examples(30))
@given(st.integers(0, 3000), st.integers(1, 300))
def test_error_position_is_right_across_chunks(
    tmp_path_factory: pytest.TempPathFactory, position: int, chunk: int
) -> None:
    text = json.dumps([{"key": "x" * 20, "n": i} for i in range(80)], indent=1)
    position = min(position, len(text) - 1)
    broken = text[:position] + "\x01" + text[position:]  # this byte is never legal
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(broken)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError) as caught:
        patch.setattr(records, "CHUNK_BYTES", chunk)
        list(read_records(path, "x"))
    before = broken[:position]
    assert caught.value.place == f"x:{before.count(chr(10)) + 1}:{position - before.rfind(chr(10))}"


@pytest.mark.parametrize("text", ["", " \n ", "[]", " [ ] "])
def test_no_records(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert list(read_records(path, "x")) == []


def test_deep_nesting_is_an_error_not_a_crash(tmp_path: Path) -> None:
    deep = "[" * 3000 + "]" * 3000
    for name in ("x.json", "x.jsonl"):
        (tmp_path / name).write_text(f"[{deep}]")
        scan = scan_input(read_records(tmp_path / name, name), name, BlockMoving(), progress=False)
        assert scan.num_records == 0
        assert "deep" in str(scan.error) or "recursion" in str(scan.error)


def test_missing_file(tmp_path: Path) -> None:
    for source in (str(tmp_path / "none.json"), f"file://{tmp_path}/none.json", str(tmp_path)):
        with pytest.raises(InputError, match="wanted a JSON"), fetched(source):
            pass


def test_file_url(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1]")
    with fetched(f"file://{tmp_path}/x.json") as path:
        assert list(read_records(path, "x")) == [1]


RECORDS = [{"a": 1}, {"é": [2, {"b": None}]}]
LINES = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS).encode()
ARRAY = json.dumps(RECORDS, indent=1, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("x.json.gz", gzip.compress(ARRAY, mtime=0)),
        ("x.JSONL.GZ", gzip.compress(b"\xef\xbb\xbf" + LINES, mtime=0)),
        ("packed.json", gzip.compress(ARRAY, mtime=0)),
        ("array.jsonl", ARRAY),
        ("array.ndjson", b"\n" + ARRAY),
        ("lines.json", LINES),
    ],
)
def test_other_files_that_are_read(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert list(read_records(tmp_path / name, name)) == RECORDS


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (LINES.decode().encode("utf-16"), "text in UTF-16"),
        (LINES.decode().encode("utf-16-le"), "text in UTF-16"),
        (ARRAY.decode().encode("utf-16-be"), "text in UTF-16"),
        (ARRAY.decode().encode("utf-32"), "text in UTF-32"),
        (gzip.compress(ARRAY.decode().encode("utf-16"), mtime=0), "text in UTF-16"),
        (gzip.compress(ARRAY * 1000, mtime=0)[:-30], "a damaged gzip file"),
        (gzip.compress(ARRAY, mtime=0)[:12], "a damaged gzip file"),
        (b"\x1f\x8b none", "a damaged gzip file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (b"PK\x03\x04 ...", "a zip archive"),
        (b"PAR1 ... PAR1", "a Parquet file"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\x89PNG\r\n\x1a\n", "a picture"),
        (b"\1\2\0\0\3", "a binary file"),
        (b"\n<!doctype html><html></html>", "HTML or XML"),
    ],
)
def test_other_files_are_named(content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(read_records(tmp_path / "x.json", "my file"))
    assert caught.value.found.startswith(found)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b'{\n "a": 1\n}', "each object on one line"),
        (b'{"a": 1},\n{"a": 2},', "remove the comma behind the object"),
        (b'{"a": 1}{"a": 2}', "on a separate line"),
        (b'{"a": 1}\r{"a": 2}\r', "a line feed"),
        (b"{'a': 1}", "double quotes"),
        (b"[{'a': 1}]", "double quotes"),
        (b'[{"a": 1},]', "remove the comma before the end"),
        (b'[{"a": 1,}]', "remove the comma before the end"),
        (b"id,answer\n1,2", "named .csv or .tsv"),
        (b"- id: 1\n", "named .csv or .tsv"),
        (b'// made today\n{"a": 1}', "JSON has no comments"),
        (b'{"a": 1} # made today', "JSON has no comments"),
    ],
)
def test_usual_mistakes_are_named(content: bytes, hint: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=f"malformed JSON .*{hint}"):
        list(read_records(tmp_path / "x.json", "x"))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_no_json_are_named(value: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(f'[{{"a": 1}},\n {{"a": {value}}}]')
    with pytest.raises(InputError, match=f"{value}, which is no JSON; write null") as caught:
        list(read_records(tmp_path / "x.json", "x"))
    assert caught.value.place.startswith("x:2:")


@pytest.mark.parametrize(
    ("records", "found", "remedy"),
    [
        ([{"id": 1, "image": "a.png", "conversations": []}], "conversations", "row format vlm"),
        ([[{"id": 1}]], "arrays instead of objects", "end in .json"),
        ([1, 2], "no objects", "--source"),
        ([], "no record", "the file is empty"),
    ],
)
def test_unknown_records_come_with_advice(
    records: list[Any], found: str, remedy: str, tmp_path: Path
) -> None:
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(InputError) as caught:
        recognise_source(read_records(tmp_path / "x.jsonl", "x"), "x")
    assert found in caught.value.found
    assert remedy in caught.value.remedy


DIGITS = "1" * 4301


@pytest.mark.parametrize("chunk_bytes", [1000, 2**16])
@pytest.mark.parametrize("start", [0, 1, 255, 5000])
@pytest.mark.parametrize("number", ['{"t": "%s"}', '{"t": "x %s"}', '{"t": 0.%s}'])
def test_many_digits_are_read_from_an_array(
    number: str, start: int, chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text or a fraction of thousands of digits is an ordinary value."""
    monkeypatch.setattr(records, "CHUNK_BYTES", chunk_bytes)
    lines = ['{"a": 1}', '{"b": "%s"}' % ("x" * start), number % DIGITS, '{"c": 3}']
    (tmp_path / "x.json").write_text("[" + ",\n".join(lines) + "]")
    assert list(read_records(tmp_path / "x.json", "x")) == [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (DIGITS, "digits"),
        ("-" + DIGITS * 40, "digits"),
        ("[" * 20_000 + "]" * 20_000, "nested hundreds of levels deep"),
        ('{"a":' * 20_000 + "1" + "}" * 20_000, "nested hundreds of levels deep"),
    ],
    ids=["integer", "long integer", "arrays", "objects"],
)
def test_what_would_end_the_process_is_an_error(value: str, reason: str, tmp_path: Path) -> None:
    """ijson crashes at such an integer, and needs gigabytes for such a nesting."""
    (tmp_path / "x.json").write_text(f'[{{"a": 1}},\n{{"b": {value}}}]')
    reader = read_records(tmp_path / "x.json", "x")
    with pytest.raises(InputError, match=reason) as caught:
        list(reader)
    assert caught.value.place.startswith("x:")


def test_errors_behind_many_digits_have_their_place(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(f'["{DIGITS}",\n{{"b": 1,}}]')
    with pytest.raises(InputError) as caught:
        list(read_records(tmp_path / "x.json", "x"))
    assert caught.value.place == "x:2:9"


def test_exponents_of_any_size(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('[{"a": 1}, {"b": 1e-999999999999999999999, "c": 1e400}]')
    assert list(read_records(tmp_path / "x.json", "x")) == [{"a": 1}, {"b": 0.0, "c": float("inf")}]
