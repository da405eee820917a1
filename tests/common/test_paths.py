"""What paths and URLs name, and in what order they come."""

import sys
from pathlib import Path

import pytest

from mathcanvas_lightning.common.paths import (
    file_name,
    import_from_here,
    is_remote,
    join_path,
    local_path,
    natural_key,
    parent_folder,
    plain_path,
    unquoted_name,
    without_query,
)


@pytest.mark.parametrize("path", ["/a/b.parquet", "a b/c", "file:///a/b.parquet"])
def test_local(path: str) -> None:
    assert not is_remote(path)
    assert plain_path(path) == path.removeprefix("file://")
    assert local_path(path) == Path(path.removeprefix("file://"))


@pytest.mark.parametrize("url", ["s3://bucket/a//b", "http://host/a/", "memory://a"])
def test_remote(url: str) -> None:
    assert is_remote(url)
    assert plain_path(url) == url


def test_numbers_in_names_count() -> None:
    paths = ["/b/x_1.parquet", "/a/x_10.parquet", "/a/x_2.parquet"]
    assert sorted(paths, key=natural_key) == paths[::-1]


@pytest.mark.parametrize("path", ["~/a b", "file://~/a b"])
def test_home_folder(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert plain_path(path) == "/home/me/a b"
    assert local_path(Path("~")) == Path("/home/me")
    assert join_path("~", "~") == "/home/me/~"
    assert plain_path("s3://~/a") == "s3://~/a"


@pytest.mark.parametrize(
    ("folder", "name", "joined"),
    [
        ("a", "b/c#?.png", "a/b/c#?.png"),
        ("", "~b", "./~b"),
        ("s3://x/", "b/c#?%.png", "s3://x/b/c#?%.png"),
        ("http://x/y/", "b/c#?% \u03c0.png", "http://x/y/b/c%23%3F%25%20%CF%80.png"),
        ("https://x/y?sig=1&b=2", "c d", "https://x/y/c%20d?sig=1&b=2"),
    ],
)
def test_joining(folder: str, name: str, joined: str) -> None:
    assert join_path(folder, name) == joined


def test_parts_of_urls() -> None:
    url = "https://x/y%20z/a%23b.parquet?X-Amz-Signature=secret"
    assert without_query(url) == "https://x/y%20z/a%23b.parquet"
    assert file_name(url) == "a%23b.parquet"
    assert unquoted_name(url) == "a#b.parquet"
    assert parent_folder(url) == "https://x/y%20z"
    for path in ("s3://x/a?b#c", "x/a?b#c"):
        assert without_query(path) == path
        assert file_name(path) == unquoted_name(path) == "a?b#c"
        assert parent_folder(path) == path.removesuffix("/a?b#c")
    assert parent_folder("a") == ""


def test_any_digits_sort() -> None:
    names = ["m2_٣.parquet", "m2_9.parquet", "m2_10²5.parquet", "①.parquet"]
    assert sorted(set(names), key=natural_key) == names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with modules named like installed ones, and one with a new name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(tmp_path)])
    for name in ("lightning", "sympy", "my_module_of_mine"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('this ran')")
    return tmp_path


@pytest.mark.parametrize(
    "texts",
    [
        ["predict", "--help"],
        ["predict", "--config", "a.yaml", "--data.init_args.inputs", "x.jsonl"],
        ["lightning.pytorch.Trainer"],
        ["my_module_of_mine"],
    ],
)
def test_the_working_folder_is_not_importable_without_need(folder: Path, texts: list[str]) -> None:
    (folder / "a.yaml").write_text("model: {class_path: mathcanvas_lightning.GenerationModule}")
    before = list(sys.path)
    import_from_here(texts)
    assert sys.path == before


@pytest.mark.parametrize(
    "texts",
    [
        ["my_module_of_mine.Backend"],
        ["--model=my_module_of_mine.Backend"],
        ["--config", "a.yaml"],
        ["--config=outer.yaml"],
    ],
)
def test_a_class_path_makes_the_working_folder_importable(folder: Path, texts: list[str]) -> None:
    (folder / "a.yaml").write_text("backend:\n  class_path: my_module_of_mine.Backend\n")
    (folder / "outer.yaml").write_text("model: a.yaml\n")
    before = list(sys.path)
    import_from_here(texts)
    assert sys.path == [*before, str(folder)]  # last: it never replaces an installed module
