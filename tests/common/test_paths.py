"""What paths and URLs name, and in what order they come."""

from pathlib import Path

import pytest

from mathcanvas_lightning.common.paths import is_remote, local_path, natural_key, plain_path


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
