"""Pictures of records: forms of references, and unusable pictures."""

import base64
import pickle
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.records.access import is_allowed
from mathcanvas_lightning.records.marks import (
    MarkError,
    escape_marks,
    has_marks,
    place_marks,
    without_marks,
)
from mathcanvas_lightning.records.pictures import (
    Picture,
    PictureError,
    load_pictures,
    locate_picture,
    read_pictures,
)
from mathcanvas_lightning.records.record import Record
from tests.conftest import encoded, png

PNG = png()
BASE64 = base64.b64encode(PNG).decode()


def record(*images: Any, base: str | Path = ".", allow_any_path: bool = False) -> Record:
    return Record(
        allow_any_path=allow_any_path,
        uid="x:1",
        position=0,
        index=1,
        query="Why?",
        images=images,
        image_base=str(base),
        values={},
        digest="",
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "broken.png").write_bytes(PNG[:-20])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "large.png").write_bytes(png(200, 200))
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    return tmp_path


def references(folder: Path) -> list[Any]:
    return [
        "a.png",
        "./a.png",
        "link.png",
        str(folder / "a.png"),
        f"file://{folder}/a.png",
        BASE64,
        "\n".join([BASE64[:40], BASE64[40:], ""]),
        f"data:image/png;base64,{BASE64}",
        PNG,
        {"bytes": PNG, "path": "gone.png"},
        {"bytes": None, "path": "a.png"},
        {"bytes": BASE64, "path": None},
        {"path": "a.png"},
    ]


def test_all_forms_of_references(folder: Path) -> None:
    pictures = read_pictures(record(*references(folder), base=folder))
    assert [picture.data for picture in pictures] == [PNG] * len(references(folder))
    assert pictures[0].place == f"x:1, picture 1 ({folder}/a.png)"
    assert pictures[8] == Picture(PNG, place="x:1, picture 9")


@pytest.mark.parametrize(
    ("reference", "kind", "message"),
    [
        ("nowhere.png", "picture_missing", "nowhere.png"),
        ("gone.png", "picture_missing", "gone.png"),
        (".", "picture_missing", "no file"),
        ("", "picture_missing", "empty"),
        ("a.png/x", "picture_missing", "a.png/x"),
        ("a\0b", "picture_missing", "no file"),
        ("\ud800", "picture_missing", "no file"),
        ("images", "picture_missing", "images"),
        ("abcd", "picture_missing", "abcd"),
        ("n" * 300, "picture_missing", "no file"),
        ("A" * 8000, "picture_unreadable", "neither base64 nor a path"),
        ("broken.png", "picture_unreadable", "broken.png"),
        ("empty.png", "picture_unreadable", "empty"),
        ("text.png", "picture_unreadable", "not an image"),
        ("data:image/png;base64,!", "picture_unreadable", "data URL"),
        (b"not a picture", "picture_unreadable", "not an image"),
        (BASE64[:60], "picture_unreadable", ""),
        (7, "picture_unreadable", "int"),
        ({"url": "a.png"}, "picture_unreadable", "dict"),
        ({"bytes": None, "path": None}, "picture_unreadable", "NoneType"),
        ("large.png", "picture_too_large", "200x200"),
    ],
)
def test_unusable_pictures(folder: Path, reference: Any, kind: str, message: str) -> None:
    with pytest.raises(PictureError) as error:
        limits = ImageLimits(max_pixels=10_000)
        load_pictures([PNG, reference], str(folder), place="x:1", limits=limits)
    assert error.value.kind == kind
    assert message in str(error.value)
    assert str(error.value).startswith("x:1, picture 2")
    assert len(str(error.value)) < 1000
    again = pickle.loads(pickle.dumps(error.value))
    assert (again.kind, str(again)) == (kind, str(error.value))


def test_too_large_files(folder: Path) -> None:
    with pytest.raises(PictureError) as error:
        load_pictures(["a.png"], str(folder), place="x", limits=ImageLimits(max_bytes=10))
    assert error.value.kind == "picture_too_large"


def test_a_file_has_priority_over_base64(tmp_path: Path) -> None:
    data = encoded("BMP", 1, 1)
    name = base64.b64encode(data).decode().replace("/", "_")
    assert locate_picture(base64.b64encode(data).decode(), str(tmp_path)) == data
    (tmp_path / "abcd").write_bytes(PNG)
    assert locate_picture("abcd", str(tmp_path)) == str(tmp_path / "abcd")
    (tmp_path / name).write_bytes(PNG)
    assert locate_picture(name, str(tmp_path)) == str(tmp_path / name)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40) | st.binary(max_size=30).map(lambda b: base64.b64encode(b).decode()))
def test_ordinary_texts_are_not_pictures(tmp_path: Path, text: str) -> None:
    if "://" not in text:
        with pytest.raises(PictureError):
            locate_picture(text, str(tmp_path / "empty"))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats(kind: str) -> None:
    data = encoded(kind)
    assert read_pictures(record(data))[0].data == data


def test_pictures_on_servers() -> None:
    with fsspec.open("memory://pictures/a.png", "wb") as file:
        file.write(PNG)
    url = "memory://pictures/a.png"
    assert read_pictures(record(url, base="/nowhere", allow_any_path=True))[0].data == PNG
    assert read_pictures(record("a.png", base="memory://pictures/"))[0].data == PNG
    for reference, max_bytes, kind in [
        ("memory://pictures/none.png", 10_000, "picture_missing"),
        (url, 10, "picture_too_large"),
    ]:
        with pytest.raises(PictureError) as error:
            limits = ImageLimits(max_bytes=max_bytes)
            load_pictures([reference], ".", place="x", access="any", limits=limits)
        assert error.value.kind == kind
        assert reference in str(error.value)


@pytest.mark.parametrize(
    ("text", "count", "pieces"),
    [
        ("Why?", 0, ["Why?"]),
        ("  Why?\n", 2, [0, 1, "Why?"]),
        ("See <image> and <image>.", 2, ["See", 0, "and", 1, "."]),
        ("<image><image>", 2, [0, 1]),
        ("See <image2>, then <image1>", 2, ["See", 1, ", then", 0]),
        ("See <image2>", 3, [0, 2, "See", 1]),
        ("See <image>, <image1>", 2, ["See", 1, ",", 0]),
        ("Both <image1>\n<image2>\nbelong.", 1, ["Both", 0, "belong."]),
        ("<image1> is <image1> and <image2>", 2, [0, "is  and", 1]),
        ("<image0>", 1, [0]),
        ("\\frac{<image1>}{<image>}", 2, ["\\frac{", 0, "}{", 1, "}"]),
        ("The tag <image> and <image2>", 0, ["The tag <image> and <image2>"]),
        ("The tag \\<image> in <image>", 1, ["The tag <image> in", 0]),
        ("The tag \\<image2>", 0, ["The tag <image2>"]),
        ("a new line \\\\<image1>", 1, ["a new line \\\\", 0]),
    ],
)
def test_pictures_replace_their_marks(text: str, count: int, pieces: list[Any]) -> None:
    assert place_marks(text, count) == pieces


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("<image><image>", 1),
        ("<image3>", 2),
        ("<image0>", 2),
        ("<image1><image>", 1),
    ],
)
def test_marks_without_a_picture(text: str, count: int) -> None:
    with pytest.raises(MarkError):
        place_marks(text, count)


MARKED = st.lists(
    st.sampled_from(["<image>", "<image1>", "<image2>", "<image3>", " word ", "{x}", "\n", "<"])
).map("".join)


@given(MARKED, st.integers(0, 4))
def test_each_picture_occurs_once_and_no_text_is_lost(text: str, count: int) -> None:
    try:
        pieces = place_marks(text, count)
    except MarkError:
        assert "<image" in text
        return
    assert sorted(piece for piece in pieces if isinstance(piece, int)) == list(range(count))
    texts = [piece for piece in pieces if isinstance(piece, str)]
    assert all(piece and piece == piece.strip() for piece in texts)
    kept = without_marks(text) if count else text
    assert "".join("".join(texts).split()) == "".join(kept.split())


@given(MARKED, st.integers(0, 4))
def test_escaped_marks_stay_text(text: str, count: int) -> None:
    pieces = place_marks(escape_marks(text), count)
    assert "".join(str(piece) for piece in pieces[count:]) == text.strip()
    assert not has_marks(escape_marks(text))


@given(st.permutations(range(4)), st.lists(st.sampled_from(["a", "b c"]), min_size=4, max_size=4))
def test_numbered_marks_determine_the_order(order: list[int], words: list[str]) -> None:
    text = "".join(f"{word}<image{n + 1}>" for word, n in zip(words, order, strict=True))
    placed = [piece for piece in place_marks(text, 4) if isinstance(piece, int)]
    assert placed == list(order)


def test_names_on_web_servers_are_quoted() -> None:
    assert locate_picture("a?b#.png", "http://host/x/?sig=1") == "http://host/x/a%3Fb%23.png?sig=1"
    assert locate_picture("http://host/y.png?sig=1", "http://host/x") == "http://host/y.png?sig=1"
    assert locate_picture("a?b#.png", "s3://host/x") == "s3://host/x/a?b#.png"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A picture beside the folder of a data set."""
    path = tmp_path / "private" / "s.png"
    path.parent.mkdir()
    path.write_bytes(PNG)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.png").symlink_to(path)
    (tmp_path / "data" / "folder").symlink_to(path.parent)
    return path


@pytest.mark.parametrize(
    "reference",
    [
        "{path}",
        "../private/s.png",
        "sub/../../private/s.png",
        "file://{path}",
        "local://{path}",
        "memory://private/s.png",
        "link.png",
        "folder/s.png",
    ],
)
def test_pictures_outside_the_base_are_read_only_if_allowed(private: Path, reference: str) -> None:
    with fsspec.open("memory://private/s.png", "wb") as file:
        file.write(PNG)
    base = private.parent.parent / "data"
    (base / "sub").mkdir()
    named = reference.format(path=private)
    for given_reference in (named, {"bytes": None, "path": named}):
        with pytest.raises(PictureError) as error:
            read_pictures(record(given_reference, base=base))
        assert error.value.kind == "picture_outside"
        assert "allow_any_path" in str(error.value)
    assert read_pictures(record(named, base=base, allow_any_path=True))[0].data == PNG


@pytest.mark.parametrize(
    ("path", "base", "access", "is_read"),
    [
        ("http://host/a.png", "/data", "web", True),
        ("https://host/a.png", "/data", "folder", False),
        ("s3://bucket/data/a.png", "s3://bucket/data", "web", True),
        ("s3://bucket/data2/a.png", "s3://bucket/data", "web", False),
        ("s3://bucket/data/../b/a.png", "s3://bucket/data/", "web", False),
        ("gs://bucket/data/a.png", "s3://bucket/data", "web", False),
        ("/data/a.png", "s3://bucket/data", "web", False),
        ("/data/a.png", "file:///data", "web", True),
        ("/data2/a.png", "/data", "web", False),
        ("/etc/a.png", "/", "web", True),
        ("ftp://host/a.png", "/data", "any", True),
    ],
)
def test_what_may_be_read(path: str, base: str, access: Any, is_read: bool) -> None:
    assert is_allowed(path, base, access) == is_read


def test_a_folder_that_becomes_a_link_is_checked_again(tmp_path: Path) -> None:
    (tmp_path / "base" / "images").mkdir(parents=True)
    path, base = str(tmp_path / "base" / "images" / "a.png"), str(tmp_path / "base")
    assert is_allowed(path, base, "folder")
    (tmp_path / "base" / "images").rename(tmp_path / "private")
    (tmp_path / "base" / "images").symlink_to(tmp_path / "private")
    assert not is_allowed(path, base, "folder")
