"""How a process ends: signals as exceptions that are not lost, the process group is left first."""

import atexit
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType

BARRIER_TIMEOUT = timedelta(seconds=3)
"""How long a rank waits at exit for the others, in case one of them has failed."""
FAILED = 1
"""Exit status of a command that failed."""
SIGNALS = 128
"""A process that a signal ended exits with this number plus that of the signal, as in shells."""
AGAIN_S = 0.1
"""Time until a signal whose exception was lost is sent again."""


@contextlib.contextmanager
def exit_on_signals(*numbers: int) -> Iterator[None]:
    """Turns signals into SystemExit inside the block, so that cleanup code runs before the exit.

    A signal that is ignored stays ignored, such as SIGHUP below nohup.

    Args:
        numbers: Signal numbers; the exit status is `SIGNALS` plus the number.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, _exit_on_signal) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise SystemExit(SIGNALS + number)


@contextlib.contextmanager
def interrupts_pass() -> Iterator[None]:
    """Lets Ctrl-C and exits by signals leave the block as they began.

    Python only prints an exception that occurs in a destructor or a callback: the signal is then
    sent again. Code that ends early can raise another exception: Lightning SystemExit(1), a thread
    that waits for another one RuntimeError, a file lock a group of exceptions. Lightning ignores
    Ctrl-C from then on. The exception and the handler are restored.

    Raises:
        KeyboardInterrupt: After Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    outer = sys.exception()

    def report(lost: "sys.UnraisableHookArgs") -> None:
        if (number := _signal_of(lost.exc_type, lost.exc_value)) is None:
            hook(lost)
            return
        again = threading.Timer(AGAIN_S, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    sys.unraisablehook = report
    try:
        yield
    except BaseException as end:
        number = _first_signal(end, outer)
        if number is None or number == _signal_of(type(end), end):
            raise
        if number == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(SIGNALS + number) from None
    finally:
        sys.unraisablehook = hook
        if handler is not None:  # else it is not one of Python
            signal.signal(signal.SIGINT, handler)


def _first_signal(error: BaseException, outer: BaseException | None) -> int | None:
    """The signal that raised an exception, or an earlier one that led to it.

    Args:
        error: The exception.
        outer: Exception that was handled before, with all that led to it.
    """
    found: int | None = None
    step: BaseException | None = error
    while step is not None and step is not outer:
        parts = step.exceptions if isinstance(step, BaseExceptionGroup) else ()
        numbers = [_signal_of(type(step), step), *(_first_signal(part, outer) for part in parts)]
        found = next(filter(None, numbers), found)
        step = step.__context__
    return found


def _signal_of(kind: type[BaseException], error: BaseException | None) -> int | None:
    """The signal that raised an exception in the main thread, if a signal did."""
    if threading.current_thread() is not threading.main_thread():
        return None
    if issubclass(kind, KeyboardInterrupt):
        return signal.SIGINT
    code = error.code if isinstance(error, SystemExit) else None
    return code - SIGNALS if isinstance(code, int) and code > SIGNALS else None


def leave_process_group_at_exit() -> None:
    """Destroys the process group, if there is one, when the interpreter exits.

    Lightning does this only for NCCL. A gloo thread that still works on a collective while the
    interpreter is finalized can abort the process. So ranks first wait for each other, and for
    their pending collectives.

    The group stays usable until then: checkpoints may be saved and weights gathered after a fit.
    """
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return
    failed = hasattr(sys, "last_value")  # an uncaught exception: the other ranks may never come
    world = distributed.group.WORLD
    if world is not None and distributed.get_backend() == "gloo" and not failed:
        options = distributed.BarrierOptions()
        options.timeout = BARRIER_TIMEOUT
        with contextlib.suppress(RuntimeError):
            world.barrier(options).wait()
    distributed.destroy_process_group()
    gc.collect()  # drops references to the group, so that its threads end
