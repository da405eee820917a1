"""The cache alone: its size, what it evicts, and what it finds again."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.storage.cache import CHECKSUM_BYTES, LEDGER_BYTES, ShardCache, entry_name
from mathcanvas_lightning.storage.config import FileStatus

CAP = 1000
ROOM = CAP - LEDGER_BYTES - CHECKSUM_BYTES
STATUS = FileStatus(size_bytes=10_000, version="1")


def part(cache: ShardCache, number: int, size: int, url: str = "s3://x/a") -> bool:
    """Asks for a part; whether it had to be fetched."""
    fetched = []

    def fetch() -> bytes:
        fetched.append(number)
        return bytes([number]) * size

    name = entry_name(url, STATUS, (number, number + size))
    assert cache.part(name, size, fetch) == bytes([number]) * size
    return bool(fetched)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, CAP)), max_size=8))
def test_any_parts_keep_to_the_size_and_the_newest_is_found(parts: list[tuple[int, int]]) -> None:
    with TemporaryDirectory() as folder:
        cache = ShardCache(Path(folder), CAP)
        for number, size in parts:
            part(cache, number, size)
            assert sum(path.stat().st_size for path in Path(folder).iterdir()) <= CAP
            assert part(ShardCache(Path(folder), CAP), number, size) == (size > ROOM)


def test_a_damaged_ledger_is_counted_anew(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, CAP)
    for number in range(3):
        part(cache, number, 250)
    (tmp_path / ".bytes").write_text("none")
    part(cache, 3, 100)
    assert not any(part(cache, number, 250) for number in (1, 2))


def test_dropping_spares_other_files(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, CAP)
    urls = ["s3://x/a", "s3://x/b"]
    for number in (0, 1):
        assert all(part(cache, number, 5, url) for url in urls)
    cache.drop(urls[0], STATUS)
    assert [part(cache, 1, 5, url) for url in urls] == [True, False]
