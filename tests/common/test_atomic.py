"""A file appears complete or not at all, and a full disk is named."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.errors import OutputError


@pytest.fixture
def small_disk() -> Iterator[None]:
    """This process can't write files of over ten bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, small_disk: None) -> None:
    target = tmp_path / "report.json"
    target.write_text("old")
    with pytest.raises(OutputError) as caught, written_whole(target) as temporary:
        temporary.write_text("x" * 100)
    assert caught.value.place == str(target)
    assert caught.value.found == "no room to write it (File too large)"
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
    assert target.read_text() == "old"


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="found a folder"), written_whole(tmp_path):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match="file: found a place where no folder can be made"),
        written_whole(tmp_path / "file" / "report.json"),
    ):
        pass


def test_errors_of_other_files_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "new"):
        (tmp_path / "none").read_text()
