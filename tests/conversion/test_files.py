"""Image files: links, near misses, pointers of Git LFS, and storages that fail for a while."""

import errno
import functools
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from mathcanvas_lightning.conversion.files import SourceFiles
from mathcanvas_lightning.conversion.rejection import RejectError, Rejection
from mathcanvas_lightning.conversion.samples import RecordConverter
from mathcanvas_lightning.conversion.sources import Draft, MathCanvas
from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.storage.config import StorageConfig
from mathcanvas_lightning.storage.files import Storage
from tests.conftest import png, read_jsonl, write_json
from tests.conversion.records import canvas_record, canvas_source, noise_png, run

DISTURBANCES = [errno.ESTALE, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ENOMEM]


def read(files: SourceFiles, path: str) -> bytes:
    return files.read(path, max_bytes=10**6)


def message(files: SourceFiles, path: str) -> str:
    with pytest.raises(RejectError) as caught:
        read(files, path)
    return f"{caught.value.reason}: {caught.value.message}"


@pytest.fixture
def disturbed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opening a file fails for some times."""
    real = os.open

    def disturb(code: int, times: int) -> list[str]:
        paths: list[str] = []

        def failing(path: Any, *args: Any, **options: Any) -> int:
            if str(path).endswith(".png") and len(paths) < times:
                paths.append(str(path))
                raise OSError(code, os.strerror(code))
            return real(path, *args, **options)

        monkeypatch.setattr("os.open", failing)
        quick = functools.partial(StorageConfig, backoff_s=0.001)
        monkeypatch.setattr("mathcanvas_lightning.storage.files.StorageConfig", quick)
        return paths

    return disturb


@pytest.mark.parametrize("code", DISTURBANCES)
def test_short_disturbance_loses_nothing(code: int, disturbed: Any, tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 6)
    paths = disturbed(code, 5)
    report = run(source, tmp_path / "out")
    assert len(paths) == 5
    assert (report.num_rows, report.rejects) == (6, {})


@pytest.mark.parametrize("code", DISTURBANCES)
def test_lasting_disturbance_is_an_error(code: int, disturbed: Any, tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 6)
    run(source, tmp_path / "out", samples_per_file=2)
    (tmp_path / "out" / "mathcanvas_002.parquet").unlink()
    disturbed(code, 10**6)
    with pytest.raises(InputError, match=r"a\.png: found a storage failure in each of 6 tries"):
        run(source, tmp_path / "out", samples_per_file=2)
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 2


@pytest.mark.parametrize(("code", "is_record"), [(errno.EIO, False), (errno.ENOENT, True)])
def test_files_that_a_source_format_opens(code: int, is_record: bool, tmp_path: Path) -> None:
    class Opening(MathCanvas):
        def parse(self, record: Any, files: SourceFiles) -> Draft:
            raise OSError(code, os.strerror(code))

    converter = RecordConverter(
        source=Opening(),
        files=SourceFiles(str(tmp_path)),
        limits=ImageLimits(),
        allow_no_solution=False,
    )
    if is_record:
        outcome = converter.convert(0, canvas_record(0))
        assert isinstance(outcome, Rejection)
        assert outcome.reason == "parser_failed"
    else:
        with pytest.raises(InputError, match="record 0"):
            converter.convert(0, canvas_record(0))


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.ENXIO])
def test_unreadable_file_is_a_rejection(code: int, disturbed: Any, tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 6)
    disturbed(code, 1)
    report = run(source, tmp_path / "out", max_image_reject_fraction=0.2)
    assert (report.num_rows, report.rejects, report.problem) == (5, {"image_unreadable": 1}, None)


def test_many_rejected_images_are_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    records = [canvas_record(n, "a.png" if n > 1 else "none.png") for n in range(10)]
    source = write_json(tmp_path / "x.json", records)
    report = run(source, tmp_path / "out")
    assert report.problem is not None
    assert "20.0% of the records were rejected for their images" in report.problem
    assert "--max_image_reject_fraction 0.1" in report.problem
    assert report.num_rows == 8
    report = run(source, tmp_path / "out", max_image_reject_fraction=0.2)
    assert report.problem is None


def snapshot(folder: Path) -> Path:
    """A data set as the Hugging Face cache lays it out: links into a folder beside it."""
    (folder / "set" / "blobs").mkdir(parents=True)
    (folder / "set" / "blobs" / "0a1b").write_bytes(png())
    images = folder / "set" / "snapshots" / "1" / "images"
    images.mkdir(parents=True)
    (images / "a.png").symlink_to("../../../blobs/0a1b")
    (folder / "outside.png").write_bytes(png(colour="blue"))
    (images / "out.png").symlink_to(folder / "outside.png")
    return images.parent


def test_links_into_a_named_folder_are_followed(tmp_path: Path) -> None:
    root = snapshot(tmp_path)
    source = write_json(
        root / "x.json", [canvas_record(n, f"images/{name}.png") for n, name in enumerate(["a"])]
    )
    report = run(source, tmp_path / "out")
    assert report.rejects == {"path_outside_image_dir": 1}
    assert "through a link" in read_jsonl(tmp_path / "out" / "rejects.jsonl")[0]["message"]
    report = run(source, tmp_path / "out", link_root=str(tmp_path / "set"))
    assert (report.num_rows, report.problem) == (1, None)
    with pytest.raises(ConfigError, match="--link_root"):
        run(source, tmp_path / "out", link_root="nowhere")


def test_links_to_other_places_and_dots_stay_refused(tmp_path: Path) -> None:
    root = snapshot(tmp_path)
    files = SourceFiles(str(root), link_root=str(tmp_path / "set"))
    assert read(files, "images/a.png") == png()
    assert "through a link; --link_root" in message(files, "images/out.png")
    for path in ("../../blobs/0a1b", "images/../../../blobs/0a1b", str(root / "images" / "a.png")):
        assert message(files, path).startswith("path_outside_image_dir")
        assert "through a link" not in message(files, path)


def test_relative_folder_is_that_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, colour in enumerate(("blue", "red")):
        (tmp_path / str(number) / "images").mkdir(parents=True)
        (tmp_path / str(number) / "images" / "a.png").write_bytes(png(colour=colour))
        monkeypatch.chdir(tmp_path / str(number))
        assert read(SourceFiles("images"), "a.png") == png(colour=colour)
        assert "there is 'a.png'" in message(SourceFiles("images"), "A.png")
    (tmp_path / "1" / "images" / "a.png").rename(tmp_path / "1" / "images" / "b.png")
    assert "there is" not in message(SourceFiles("images"), "A.png")
    assert "there is 'b.png'" in message(SourceFiles("images"), "B.png")


def test_linked_image_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(png())
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "images").symlink_to(tmp_path / "data")
    assert "through a link" in message(SourceFiles(str(tmp_path / "root")), "images/a.png")
    files = SourceFiles(str(tmp_path / "root"), link_root=str(tmp_path / "data"))
    assert read(files, "images/a.png") == png()


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "none.png").symlink_to("missing.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    files = SourceFiles(str(tmp_path))
    assert message(files, "none.png").startswith("image_missing")
    assert "a link to nothing" in message(files, "none.png")
    assert message(files, "loop.png").startswith("image_unreadable")


@pytest.mark.parametrize(
    ("written", "file", "hint"),
    [
        ("images\\a.png", "images/a.png", "there is 'images/a.png'"),
        ("my%20images/a.png", "my images/a.png", "there is 'my images/a.png'"),
        ("my%20images\\a.png", "my images/a.png", "there is 'my images/a.png'"),
        ("a.PNG", "a.png", "there is 'a.png'"),
        ("a.jpg", "a.JPG", "there is 'a.JPG'"),
        ("images/Cat.png", "images/cAT.PNG", "there is 'images/cAT.PNG'"),
        ("https://example.org/a.png", "a.png", "it is a URL"),
        ("data:image/svg+xml;utf8,<svg>", "a.png", "a data URL without base64"),
        ("data:image/png;base64," + "A" * 9999, "a.png", "a data URL: write the picture to a file"),
        (
            unicodedata.normalize("NFD", "é.png"),
            unicodedata.normalize("NFC", "é.png"),
            "in another Unicode normalization",
        ),
        (
            unicodedata.normalize("NFC", "é.png"),
            unicodedata.normalize("NFD", "é.png"),
            "in another Unicode normalization",
        ),
    ],
)
def test_near_miss_is_named(written: str, file: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(png())
    text = message(SourceFiles(str(tmp_path)), written)
    assert text.startswith("image_missing")
    assert hint in text
    assert len(text) < 500


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + "/a.png", "a/" * 3000, "a\0.png"])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    assert message(SourceFiles(str(tmp_path)), name).startswith("image_missing")


def test_the_image_folder_is_no_picture(tmp_path: Path) -> None:
    for name in (".", "a/.."):
        (tmp_path / "a").mkdir(exist_ok=True)
        assert "is the image folder" in message(SourceFiles(str(tmp_path)), name)


def test_no_hint_to_files_outside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "a.png").write_bytes(png())
    assert "there is" not in message(SourceFiles(str(tmp_path / "root")), "..\\a.png")


def test_lfs_pointer_is_named(tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 1)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / "a.png").write_bytes(pointer)
    run(source, tmp_path / "out")
    assert "Git LFS pointer" in read_jsonl(tmp_path / "out" / "rejects.jsonl")[0]["message"]


def test_storage_is_small_enough_to_send() -> None:
    import pickle

    files = SourceFiles("/x", Storage(), "/y")
    assert pickle.loads(pickle.dumps(files)).link_root == "/y"
    assert len(pickle.dumps(files)) < 1000


@pytest.mark.slow
def test_image_with_orientation(tmp_path: Path) -> None:
    from PIL import Image

    from mathcanvas_lightning import iter_examples
    from mathcanvas_lightning.data.images.decode import ImageLimits, check_image

    source = canvas_source(tmp_path, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "noise.png").write_bytes(noise_png())
    with Image.open(tmp_path / "noise.png") as image:
        image.crop((0, 0, 64, 40)).save(tmp_path / "turned.jpg", exif=exif)
    records = [canvas_record(0), canvas_record(1, "turned.jpg"), canvas_record(2, "turned.jpg")]
    write_json(source, records)
    for applied, size, kind in ((False, (64, 40), "JPEG"), (True, (40, 64), "PNG")):
        report = run(source, tmp_path / str(applied), apply_exif_orientation=applied, num_workers=1)
        assert (report.num_oriented, report.orientation_applied) == (2, applied)
        image = next(list(iter_examples(tmp_path / str(applied)))[1].images)
        info = check_image(image.data, ImageLimits())
        assert (info.width_px, info.height_px, info.format) == (*size, kind)
        assert image.path == "turned.jpg"
        is_original = image.data == (tmp_path / "turned.jpg").read_bytes()
        assert is_original != applied
