"""Runs a command as the only work of a process: Ctrl-C never shows a traceback.

While the modules of the command line are imported, and after the command, a signal ends the process
at once. Only modules that import in no time are imported here, so that this holds from the start.
"""

import atexit
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

from mathcanvas_lightning.common.exits import FAILED, SIGNALS


def run(name: str | None = None) -> NoReturn:
    """Runs a command with the options of this process, and ends the process.

    Args:
        name: Name of the command; by default the first word of the command line.
    """
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        _end_at_once(heard)
        from mathcanvas_lightning.cli.main import main, run_command

        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status: str | int | None = main() if name is None else run_command(name)
    except KeyboardInterrupt:  # before the command, or again while it ends
        status = SIGNALS + signal.SIGINT
    except SystemExit as end:  # such as after the help of a command
        status = end.code
    finally:
        _end_at_once(heard)
    if isinstance(status, int) and status > SIGNALS:
        _leave(status)
    sys.exit(_written(status))


def _end_at_once(heard: bool) -> None:
    if heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _written(status: str | int | None) -> str | int | None:
    """Writes what standard output still holds, which fails on a full disk.

    Returns:
        The status of the command, or `FAILED` if its output is lost.
    """
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except OSError as error:
        # Python would try again at exit, and end with a status of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # A broken pipe is no error: the reader has ended, such as `head`.
        if not (status or isinstance(error, BrokenPipeError)):
            with suppress(OSError):
                sys.stderr.write(f"error: standard output: {error.strerror}\n")
        return status or FAILED
    return status


def _leave(status: int) -> NoReturn:
    """Ends the process without its threads, which may wait for servers."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the terminal may be closed
            stream.flush()
    os._exit(status)
