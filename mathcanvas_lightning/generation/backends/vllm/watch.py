"""Watches the processes of vLLM, which would wait for a dead one forever."""

import logging
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any

logger = logging.getLogger(__name__)

NOTICE_S = 2.0
"""Time for vLLM to detect a failure of one of its processes and to report the cause."""


def watch(children: Sequence[Any], closing: threading.Event) -> None:
    """Kills all processes if one of vLLM's processes dies; vLLM would wait for it forever."""
    wait([child.sentinel for child in children])
    if not closing.wait(timeout=NOTICE_S):
        logger.error("RuntimeError: %s", _ended(children))
        os.killpg(0, signal.SIGKILL)


def killed(children: Sequence[Any]) -> str:
    """Error message if a signal ended one of the processes, else ""."""
    for child in children:
        child.join(NOTICE_S)
    is_killed = any(child.exitcode is not None and child.exitcode < 0 for child in children)
    return _ended(children) if is_killed else ""


def _ended(children: Sequence[Any]) -> str:
    ended = ", ".join(f"{c.name}: {c.exitcode}" for c in children if c.exitcode is not None)
    return f"vLLM's core ended unexpectedly (exit status of {ended})"
