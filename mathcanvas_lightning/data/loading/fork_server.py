"""Imported by the server that forks loader workers: SIGTERM to all processes of a job ends it last.

Schedulers such as SLURM send SIGTERM to all processes. The main process then finishes its step and
saves, for which it needs its workers; the server ends when the main process has ended.
"""

import os
import signal
import sys


def _get_sigterm_as_usual() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.register_at_fork(after_in_child=_get_sigterm_as_usual)
