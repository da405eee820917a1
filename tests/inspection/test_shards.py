"""Inspection of shards: counts, problems, and the HTML page."""

import json
import re
import shutil
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mathcanvas_lightning import convert_cot, inspect_shards, iter_examples
from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.images.pixels import decode_image
from mathcanvas_lightning.errors import DataError
from tests.conftest import png
from tests.conversion.records import canvas_record


@pytest.fixture(scope="module")
def shards(puzzles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    convert_cot(
        str(puzzles / "enhanced_cot_cleaned.json"),
        str(folder),
        samples_per_file=5,
        row_group_rows=4,
        num_workers=0,
    )
    return folder


def rewrite(path: Path, change: dict[str, object], row: int = 3) -> str:
    """Changes one row of a shard; returns its uid."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[row] |= change
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    return str(rows[row]["id"])


def test_counts(shards: Path) -> None:
    report = inspect_shards(str(shards), rows=2)
    examples = list(iter_examples(shards))
    assert report.num_rows == len(examples) == sum(report.row_group_rows)
    assert report.num_files == len(list(shards.glob("*.parquet")))
    assert max(report.row_group_rows) == 4
    assert report.examples == examples[:2]
    assert report.image_formats == {"PNG RGB": 4 * len(examples)}
    assert report.image_sizes_px == {(192, 128): len(examples), (192, 64): 3 * len(examples)}
    assert report.images_per_row == {
        "question": [1] * len(examples),
        "solution": [3] * len(examples),
    }
    assert sum(report.answers.values()) == len(examples)
    assert report.problems == []


def test_shards_are_in_their_natural_order(tmp_path: Path) -> None:
    for name in ("x_2", "x_10", "x_1"):
        row = {"id": name, "answer": "1", "question_interleave": "[]", "solution_interleave": "[]"}
        images: dict[str, list[bytes]] = {"question_images": [], "solution_images": []}
        types = pa.list_(pa.binary())
        schema = pa.schema([*((k, pa.string()) for k in row), *((k, types) for k in images)])
        table = pa.Table.from_pylist([row | images], schema=schema)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assert [e.uid for e in iter_examples(tmp_path)] == ["x_1", "x_2", "x_10"]


def test_validation_finds_a_broken_image(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "copy")
    image = {"bytes": png(40, 40)[:-30], "path": "x.png"}
    uid = rewrite(folder / "blockmoving_001.parquet", {"question_images": [image]})
    assert inspect_shards(str(folder)).problems == []  # the headers are valid
    problems = inspect_shards(str(folder), validate=True).problems
    assert [p.uid for p in problems if p.uid] == [uid]
    assert "image_truncated" in problems[0].message
    assert any("SHA-256" in problem.message for problem in problems)


def test_broken_rows_and_files_are_all_listed(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "copy")
    uid = rewrite(folder / "blockmoving_000.parquet", {"question_interleave": "[{"})
    other = rewrite(folder / "blockmoving_001.parquet", {"answer": None})
    rewrite(folder / "blockmoving_002.parquet", {"id": "same"}, row=0)
    rewrite(folder / "blockmoving_002.parquet", {"id": "same"}, row=4)
    cut = folder / "blockmoving_003.parquet"
    cut.write_bytes(cut.read_bytes()[:-100])
    report = inspect_shards(str(folder))
    assert [problem.uid for problem in report.problems[:3]] == [uid, other, "same"]
    assert "is also that of" in report.problems[2].message
    assert "blockmoving_003" in report.problems[3].place
    assert len(report.problems) == 4


def test_info_file_is_compared(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "copy")
    (folder / "blockmoving_001.parquet").unlink()
    problems = inspect_shards(str(folder), validate=True).problems
    assert ["not there" in problem.message for problem in problems] == [True]
    (folder / "train_parquet_info.json").write_text(json.dumps({"num_samples": 5}))
    problems = inspect_shards(str(folder), validate=True).problems
    assert ["not an info file" in problem.message for problem in problems] == [True]


def test_nothing_to_inspect(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="wanted a folder of shards"):
            inspect_shards(str(folder))


def test_page_shows_rows_in_reading_order(shards: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    inspect_shards(str(shards), rows=3, html=str(page))
    html = page.read_text(encoding="utf-8")
    assert html.count("<article>") == 3
    assert html.count("data:image/png;base64,") == 12
    assert "http" not in html.split("<body>")[1]
    example = next(iter_examples(shards))
    step = html.index("step_1.png")
    assert html.index(example.uid) < html.index("Options:") < html.index("composite.png") < step
    assert step < html.index("Step 2:") < html.index("step_2.png")


def test_page_escapes_texts(tmp_path: Path, shards: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "copy")
    image = {"bytes": b"no image", "path": "x.png"}
    change = {"answer": "<script>alert(1)</script>", "question_images": [image]}
    rewrite(folder / "blockmoving_000.parquet", change, row=0)
    inspect_shards(str(folder), rows=1, html=str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert '<p class="notice">task_0/composite.png: not an image' in page
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page


def test_page_and_counts_show_what_the_model_gets(tmp_path: Path) -> None:
    """A browser would turn the image as its EXIF orientation says; the model gets it unturned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((64, 40), 80).save(tmp_path / "turned.jpg", exif=exif)
    record = canvas_record(0, "turned.jpg")
    (tmp_path / "x.json").write_text(json.dumps([record]))
    convert_cot(str(tmp_path / "x.json"), str(tmp_path / "out"), num_workers=0)
    page = tmp_path / "page.html"
    report = inspect_shards(str(tmp_path / "out"), html=str(page))
    assert report.num_oriented == 1
    html = page.read_text(encoding="utf-8")
    assert "64x40, with the EXIF orientation 6, which is ignored" in html
    shown = re.search(r"data:image/png;base64,([^\"]+)", html)
    assert shown is not None
    pixels = decode_image((tmp_path / "turned.jpg").read_bytes(), ImageLimits())
    with Image.open(BytesIO(b64decode(shown[1]))) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(pixels))


def test_lfs_pointer_is_named(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / "x.parquet").write_bytes(pointer)
    (problem,) = inspect_shards(str(tmp_path)).problems
    assert "Git LFS pointer" in problem.message


def test_values_that_have_no_python_value_are_named(shards: Path, tmp_path: Path) -> None:
    """Without checksums of its pages, damage may also look like this."""
    table = pq.read_table(next(shards.glob("*.parquet"))).slice(0, 4)
    times = pa.array([0, 1, 10**15, 3], pa.timestamp("s"))
    pq.write_table(table.append_column("time", times), tmp_path / "x.parquet")
    report = inspect_shards(str(tmp_path), validate=True)
    assert report.num_files == 1
    (problem,) = report.problems
    assert "x.parquet, row 2, column time: found a value" in problem.message
    with pytest.raises(DataError, match="row 2, column time"):
        list(iter_examples(tmp_path))


def test_half_of_a_character_is_a_problem(shards: Path, tmp_path: Path) -> None:
    """As in training, which would leave this row out."""
    path = Path(shutil.copy(next(shards.glob("*.parquet")), tmp_path))
    uid = rewrite(path, {"question_interleave": r'[{"type": "text", "content": "\ud83d"}]'})
    rewrite(path, {"question_images": []})
    problems = inspect_shards(str(path)).problems
    assert [problem.uid for problem in problems] == [uid]
    assert "half of a character" in problems[0].message
