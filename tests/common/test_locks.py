"""Locks: exclusive, released, and an error of ours where the file system has none."""

import errno
import fcntl
import threading
from pathlib import Path

import pytest
from filelock import Timeout

from mathcanvas_lightning.common import locks
from mathcanvas_lightning.common.locks import acquire_lock, locked
from mathcanvas_lightning.errors import OutputError


def test_only_one_holds_a_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), pytest.raises(Timeout):
        acquire_lock(tmp_path / "lock", wait=False)
    acquire_lock(tmp_path / "lock", wait=False).release()


def test_who_waits_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "NOTICE_S", 0.0)
    held = acquire_lock(tmp_path / "lock")
    done = threading.Event()

    def wait() -> None:
        with locked(tmp_path / "lock"):
            done.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    while f"holds the lock {tmp_path / 'lock'}" not in caplog.text:
        assert not done.wait(0.01)
    held.release()
    waiting.join(300)
    assert done.is_set()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS and Lustre answer if they are mounted without locks."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, "refused")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OutputError, match=r"lock: found a file that can't be locked.*local disk"):
        acquire_lock(tmp_path / "lock")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be locked"):
        acquire_lock(tmp_path / "file" / "lock")
