"""Rows and images by their place."""

from pathlib import Path

import pyarrow as pa
import pytest

from mathcanvas_lightning.data.rows.readers import Element, Role
from mathcanvas_lightning.data.rows.source import RowSource, TableRows
from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.storage.config import StorageConfig
from mathcanvas_lightning.storage.files import Storage


@pytest.mark.parametrize("path", ["talks.jsonl", "./talks.jsonl"])
def test_images_beside_a_file_of_the_working_folder(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"pixels")
    source = RowSource("vlm", Storage())
    image = Element(role=Role.SEEN_IMAGE, content="pictures/a.png")
    assert source.read_image(image, path) == b"pixels"
    outside = Element(role=Role.SEEN_IMAGE, content=str(tmp_path / "pictures" / "a.png"))
    with pytest.raises(DataError, match="a path below the image folder"):
        source.read_image(outside, path)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a\0b.png", "a name that no file can have"),
        ("a" * 300, "File name too long"),
        ("pictures", "a folder or device"),
        ("pictures\\a.png", "nothing; there is 'pictures/a.png'"),
        ("pictures/a%2Epng", "nothing; there is 'pictures/a.png'"),
        ("pictures/A.PNG", "nothing; there is 'pictures/a.png'"),
        ("http://host/a.png", "nothing; it is a URL"),
        ("pictures/b.png", "found nothing; wanted a file"),
    ],
)
def test_names_that_no_image_has(name: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"pixels")
    source = RowSource("vlm", Storage(StorageConfig(max_retries=0)))
    image = Element(role=Role.SEEN_IMAGE, content=name)
    with pytest.raises(DataError, match=found):
        source.read_image(image, str(tmp_path / "talks.jsonl"))


@pytest.mark.parametrize("chunk_rows", [1, 2, 100])
@pytest.mark.parametrize("wanted", [None, [], [4], [0, 3, 5]])
def test_rows_are_kept_by_their_numbers(chunk_rows: int, wanted: list[int] | None) -> None:
    images = [[{"bytes": b"%d" % n}] for n in range(6)]
    whole = pa.table({"id": [f"row{n}" for n in range(6)], "images": images})
    table = pa.Table.from_batches(whole.to_batches(max_chunksize=chunk_rows))
    rows = TableRows.keep(table, wanted)
    for number in range(6):
        if wanted is None or number in wanted:
            assert rows.row(number, "place") == {"id": f"row{number}", "images": images[number]}
        else:
            with pytest.raises(DataError, match="only 6 rows"):
                rows.row(number, "place")
