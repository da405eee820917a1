"""Files are recognised by their first bytes, and nothing that can be read is refused."""

import gzip
import json
import pickle

import pytest

from mathcanvas_lightning.common.file_kinds import START_BYTES, kind_of

TEXT = '[{"id": 1, "question": "Why?"}]'


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (gzip.compress(b"{}", mtime=0), "gzip"),
        (b"PK\x05\x06" + b"\0" * 18, "zip"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"Rar!\x1a\x07", "RAR"),
        (b"PAR1", "Parquet"),
        (b"ARROW1\0\0", "Arrow"),
        (b"SQLite format 3\0", "SQLite"),
        (pickle.dumps({"a": 1}), "pickle"),
        (b"%PDF-1.7", "PDF"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypavif", "AVIF"),
        (b"\n<svg xmlns=", "SVG"),
        (b'<?xml version="1.0"?>\n<svg>', "SVG"),
        (b"<!DOCTYPE html>", "HTML"),
        (TEXT.encode("utf-16"), "UTF-16"),
        (TEXT.encode("utf-16-le"), "UTF-16"),
        (TEXT.encode("utf-16-be"), "UTF-16"),
        ("id,answer".encode("utf-16-le"), "UTF-16"),
        (TEXT.encode("utf-32"), "UTF-32"),
        (TEXT.encode("utf-32-le"), "UTF-32"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
    ],
)
def test_kinds(start: bytes, name: str) -> None:
    kind = kind_of(start[:START_BYTES])
    assert kind is not None
    assert name in kind.name


@pytest.mark.parametrize(
    "text", ["", TEXT, json.dumps({"a": "é"}), "id,answer\n1,2", "5", "null", "é"]
)
def test_text_is_no_kind(text: str) -> None:
    assert kind_of(text.encode()) is None
