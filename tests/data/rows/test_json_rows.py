"""Rows of JSON files: lines and arrays, found again by their offsets."""

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.data.rows import json_rows
from mathcanvas_lightning.data.rows.json_rows import iter_rows, read_rows

TEXTS = st.text(st.sampled_from('a"\\[]{},:é\u2028\n'), max_size=8)
VALUES = st.recursive(
    TEXTS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def encoded(rows: list[Any], layout: str) -> bytes:
    if layout == "lines":
        return "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    indent = None if layout == "array" else 2
    return b"\xef\xbb\xbf \n" + json.dumps(rows, ensure_ascii=False, indent=indent).encode()


@given(
    rows=st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), max_size=6),
    layout=st.sampled_from(["lines", "array", "indented array"]),
    chunk=st.integers(1, 40),
)
def test_rows_are_found_again_by_their_offsets(rows: list[Any], layout: str, chunk: int) -> None:
    file = io.BytesIO(encoded(rows, layout))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK_BYTES", chunk)
        found = list(iter_rows(file))
        assert [json.loads(row) for _, row in found] == rows
        for number, (offset, row) in enumerate(found):
            assert offset > 0 or layout == "lines"
            assert read_rows(file, offset, 2)[0] == row
            assert [json.loads(r) for r in read_rows(file, offset, 2)] == rows[number : number + 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1}, {"b": "cut', "cut short"),
        (b"[", "cut short"),
        (b'[{"a": 1}]\n[{"b": 2}]', r"behind the end of its array \(b'\[\{\"b\": 2\}\]'\)"),
        (b"\x1f\x8b\x08\0", r"gzip file\. Unpack it"),
        ('{"a": 1}'.encode("utf-16"), r"UTF-16\. Save it"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
    ],
)
def test_broken_files(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(iter_rows(io.BytesIO(content)))


def test_a_row_is_not_checked() -> None:
    rows = [row for _, row in iter_rows(io.BytesIO(b'[{"a": nonsense}, 5, {"b": 1}]'))]
    assert rows == [b'{"a": nonsense}', b"5", b'{"b": 1}']
