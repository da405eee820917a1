"""Runs a command so that nothing of it is left when it ends, or when we do.

Started by its path, as the leader of a process group: `server_launcher.py PARENT_PID GRACE_S
COMMAND...`. Watching the parent's id works where the parent is killed with SIGKILL, and, unlike
Linux's PR_SET_PDEATHSIG, covers the children of the command and doesn't fire when the thread that
started it ends.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil  # type: ignore[import-untyped]

POLL_S = 0.2


def main(parent_pid: int, grace_s: float, command: list[str]) -> int:
    """Runs the command until it or the parent ends, then ends the process group.

    Args:
        parent_pid: The process that started this one.
        grace_s: From SIGTERM to SIGKILL.
        command: What to run.

    Returns:
        The command's exit code; 128 and the signal's number where a signal ended it.
    """
    # A handler, and not SIG_IGN, which the command would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    child = subprocess.Popen(command)  # noqa: S603 - the user's own
    while child.poll() is None and os.getppid() == parent_pid:
        time.sleep(POLL_S)
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while child.poll() is None or _others_of_group():
        if time.monotonic() > deadline:
            os.killpg(0, signal.SIGKILL)
        time.sleep(POLL_S)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _others_of_group() -> bool:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                process.pid != os.getpid()
                and os.getpgid(process.pid) == os.getpgrp()
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                return True
    return False


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
