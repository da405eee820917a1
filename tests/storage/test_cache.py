"""The cache alone: its size, what it evicts, and what it finds again."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.storage.cache import CHECKSUM_BYTES, LEDGER_BYTES, ShardCache, entry_name

CAP = 1000
ROOM = CAP - LEDGER_BYTES - CHECKSUM_BYTES


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, CAP)), max_size=8))
def test_any_parts_keep_to_the_size_and_the_newest_is_found(parts: list[tuple[int, int]]) -> None:
    with TemporaryDirectory() as folder:
        cache = ShardCache(Path(folder), CAP)
        for number, size in parts:
            name, data = entry_name("file", (number, size)), bytes([number]) * size
            cache.add_part(name, data)
            assert sum(path.stat().st_size for path in Path(folder).iterdir()) <= CAP
            assert ShardCache(Path(folder), CAP).find_part(name, size) == (
                data if size <= ROOM else None
            )
        for number, size in parts:
            found = cache.find_part(entry_name("file", (number, size)), size)
            assert found in (None, bytes([number]) * size)


def test_a_damaged_ledger_is_counted_anew(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, CAP)
    names = [entry_name("file", number) for number in range(3)]
    for name in names:
        cache.add_part(name, b"x" * 250)
    (tmp_path / ".bytes").write_text("none")
    cache.add_part(names[0], b"x" * 250)
    assert all(cache.find_part(name, 250) for name in names[1:])


def test_dropping_spares_other_files(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, CAP)
    names = [entry_name(file, part) for file in "ab" for part in (0, 1)]
    for name in names:
        cache.add_part(name, b"xy")
    cache.drop(names[0])
    assert [cache.find_part(name, 2) for name in names] == [None, None, b"xy", b"xy"]
