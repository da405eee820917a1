"""Runs a command and stops all its processes when the command ends or the parent process ends.

Started by its path as the leader of a process group: `launcher.py PARENT_PID GRACE_S COMMAND...`.
It polls the parent's process id, which also works if the parent is killed with SIGKILL. Linux's
PR_SET_PDEATHSIG would not reach the children of the command, and would fire when the thread that
started this process ends.
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
    """Runs the command until it or the parent ends, then stops the process group.

    Args:
        parent_pid: Id of the process that started this one.
        grace_s: Time between SIGTERM and SIGKILL.
        command: Program and arguments.

    Returns:
        The command's exit code; 128 plus the signal number if a signal ended it.
    """
    # A handler instead of SIG_IGN, because the command would inherit SIG_IGN.
    signal.signal(signal.SIGTERM, lambda *_: None)
    child = subprocess.Popen(command)  # noqa: S603 - the command comes from the user
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
